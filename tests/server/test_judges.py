"""Judges in memory: restored from a checkpoint and the frames since, they are what they would be had they stayed."""

import numpy as np

from internist.schema.wire import Frame, Plan, Record
from internist_server.changes import Changes
from internist_server.envelope import Contents
from internist_server.ingest import Ingest
from internist_server.judges import Judges, restore
from internist_server.known import KnownRun
from internist_server.rulebook import RuleBook
from internist_server.store.attempts import LAST_STEP, Segment, find_attempt
from internist_server.store.database import Database
from internist_server.store.judgements import load_order, read_judged
from tests.server.sending import EPOCH_MS, STEP_MS, module_series, start_of

EVERY, STEPS, BLOCKS = 10, 84, 2
METRICS = ("activation.rms", "update.own", "attention.max_logit")


class Client:
    """Two ranks of one run that speak to ingest itself."""

    def __init__(self, ingest, run):
        self.ingest, self.run, self.sequences = ingest, run, [0, 0]
        for rank in range(2):
            ingest.start(start_of(run, rank=rank, world_size=2))

    def declare(self, rank, series):
        self.take(rank, [{"series": tuple(series)}, {"plan": Plan(0, tuple(one.number for one in series))}])

    def take(self, rank, contents):
        first = self.sequences[rank]
        records = tuple(Record(first + place, **content) for place, content in enumerate(contents))
        reply = self.ingest.take(self.run, Contents(f"{self.run}-a", rank, records, ()))
        assert not reply.refused
        self.sequences[rank] += len(records)


def frame(step, values):
    return {"frame": Frame(0, step, EPOCH_MS + step * STEP_MS, np.asarray(values, "<f4").tobytes())}


def eventful(rng, series):
    """Values by step and series: calm, then one block too large, one that is not a number, and a late return."""
    values = np.exp(0.05 * rng.standard_normal((STEPS, len(series))))
    at = np.array([one.metric == "update.own" and one.subject == "blocks.1" for one in series])
    values[30:55, at] *= 20
    values[40:43, 0] = np.nan
    return values


def test_a_judge_that_is_restored_says_what_one_in_memory_says(sqlite_url):
    database, now = Database(sqlite_url), [EPOCH_MS]
    series = [module_series(b * 3 + m, metric, f"blocks.{b}", cadence=EVERY)
              for b in range(BLOCKS) for m, metric in enumerate(METRICS)]  # fmt: skip
    series_2 = [*series, module_series(99, "activation.rms", "blocks.9", cadence=EVERY)]
    said = {}
    for run in ("stays", "restored"):
        client = Client(Ingest(database, Changes(), max_series=1_000, clock=lambda: now[0]), run)
        rng = np.random.default_rng(3)
        values = eventful(rng, series_2)
        lost = set(rng.choice(STEPS, 12, replace=False).tolist())  # steps that rank 1 sends late
        for rank in range(2):
            client.declare(rank, series)
        for place in range(STEPS):
            now[0] += 31_000  # a rank that sends nothing is not waited for
            if place == 60:
                client.declare(0, [series_2[-1]])
                client.take(0, [{"plan": Plan(0, tuple(one.number for one in series_2))}])
            width = len(series_2) if place >= 60 else len(series)
            client.take(0, [frame(place * EVERY, values[place, :width])])
            if place not in lost:
                client.take(1, [frame(place * EVERY, 1.5 * values[place, : len(series)])])
            elif place > 5:
                client.take(1, [frame((place - 5) * EVERY, 3.0 * values[place, : len(series)])])
            client.ingest.tick()
            if run == "restored" and place % 3 == 0:
                client.ingest = Ingest(database, Changes(), max_series=1_000, clock=lambda: now[0])
        with database.read() as session:
            attempt = find_attempt(session, run, f"{run}-a")
            order = load_order(session, attempt.id)
            windows = list(read_judged(session, Segment(attempt.id, 0, LAST_STEP), order, first=0, last=LAST_STEP))
            state = restore(session, attempt).judge.verdicts("r", "a")
            members = [(one.subject, one.metric, one.condition, one.state, one.ratio, one.since_step)
                       for one in state.members]  # fmt: skip
            said[run] = windows, members
    database.close()

    (stays, stays_members), (restored, restored_members) = said["stays"], said["restored"]
    assert sum(len(window.steps) for window in stays) > STEPS / 2
    for one, other in zip(stays, restored, strict=True):
        np.testing.assert_array_equal(one.steps, other.steps)
        np.testing.assert_array_equal(one.ratios, other.ratios)
        np.testing.assert_array_equal(one.basis, other.basis)
    assert repr(stays_members) == repr(restored_members)
    assert max(np.nanmax(np.abs(window.ratios[np.isfinite(window.ratios)])) for window in stays) > 3


def test_judges_in_memory_are_those_that_were_busy_last_and_a_failure_forgets_its_run_alone(sqlite_url):
    database = Database(sqlite_url)
    ingest = Ingest(database, Changes(), max_series=1_000, clock=lambda: EPOCH_MS)
    for run in ("a", "b", "c"):
        Client(ingest, run)
    with database.read() as session:
        found = {run: KnownRun(0).get(session, find_attempt(session, run, f"{run}-a")) for run in ("a", "b", "c")}
        judges = Judges(RuleBook(), max_bytes=1 << 20)
        live = {run: judges.get(session, known) for run, known in found.items()}
        for one in live.values():
            one.size = 1 << 19
        assert judges.get(session, found["a"]) is live["a"]  # there were three, and room for two

        assert judges.get(session, found["b"]) is not live["b"]
        judges.forget_run("b")
        assert judges.get(session, found["a"]) is live["a"]
    database.close()
