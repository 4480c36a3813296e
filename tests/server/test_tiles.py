"""Whatever happens in whatever order, what is read is what was sent: tiles and loose frames against a plain model."""

import math

import numpy as np
import pytest
import sqlalchemy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from internist.schema.wire import Finish, Frame, Plan, Record
from internist_migrations.upgrade import downgrade, upgrade
from internist_server.changes import Changes
from internist_server.compactor import Compactor
from internist_server.envelope import Contents
from internist_server.ingest import Ingest
from internist_server.store import heatmap, removal, windows
from internist_server.store.attempts import LAST_STEP, find_attempt, lineage
from internist_server.store.compaction import Sizes
from internist_server.store.database import Database
from internist_server.store.retention import Retention
from internist_server.store.series import search_series
from internist_server.store.tables import FrameRow, JudgementRow
from internist_server.store.tile_tables import BlockRow, JudgedBlockRow
from internist_server.values.planes import pack, unpack
from tests.server.sending import EPOCH_MS, STEP_MS, module_series, start_of

DAY_MS = 86_400_000
SMALL = Sizes(block=8, kept=3)
METRICS = ("activation.rms_max", "activation.nonfinite", "activation.rms")
"""Merged by their largest, by their sum, and by the mean of squares."""


class World:
    """A run of two ranks, its store, and what a reader should see of it."""

    def __init__(self, database, run, *, project=None):
        self.database, self.run, self.now_ms, self.project = database, run, EPOCH_MS, project or run
        self.ingest = Ingest(database, Changes(), max_series=1_000, clock=lambda: self.now_ms)
        self.compactor = Compactor(database, sizes=SMALL)
        self.series = tuple(
            module_series(n, metric, "blocks.0", role="block", cadence=10) for n, metric in enumerate(METRICS)
        )
        self.before = []
        self.attempt = None
        self.start(0)

    def start(self, first):
        """Begin an attempt at a step, which resumes the one before."""
        parent = self.attempt
        if parent is not None:
            self.before.append((self.first, self.sent))
        self.attempt, self.first = f"{self.run}-{len(self.before)}", first
        self.sequences, self.sent = [0, 0], [{}, {}]
        for rank in range(2):
            self.ingest.start(
                start_of(
                    self.run, attempt=self.attempt, parent=parent, start_step=first, rank=rank, world_size=2,
                    project=self.project, started_at_ms=EPOCH_MS + len(self.before),
                )
            )  # fmt: skip
            self.take(rank, [{"series": self.series}, {"plan": Plan(0, (0, 1, 2))}, {"plan": Plan(1, (1,))}])

    def take(self, rank, contents):
        first = self.sequences[rank]
        records = tuple(Record(first + place, **content) for place, content in enumerate(contents))
        assert not self.ingest.take(self.run, Contents(self.attempt, rank, records, ())).refused
        self.sequences[rank] += len(records)

    def send(self, rank, steps, values, *, plan=0):
        """Frames of these steps, the same values in each; of two for one step and series the later plan's counts."""
        of_plan = values if plan == 0 else values[1:2]
        blob = np.asarray(of_plan, "<f4").tobytes()
        self.take(rank, [{"frame": Frame(plan, step, EPOCH_MS + step * STEP_MS, blob)} for step in steps])
        for step in steps:
            self.sent[rank].setdefault(step, {})[plan] = values

    def compact(self):
        """Compact all that is judged: before series are declared again, the judge's state is stored."""
        self.take(0, [{"series": self.series}])
        self.compactor.compact()

    def give_up(self):
        """Give up every point that may be."""
        keeps_nothing = Retention(days_of_project={self.run: 1e-9})
        Compactor(self.database, sizes=SMALL, retention=keeps_nothing, clock=lambda: self.now_ms + 1).give_up_old()

    def page(self):
        """All series, as read, and up to where their points were given up."""
        with self.database.read() as session:
            attempt = find_attempt(session, self.run, self.attempt)
            page = windows.read_points(session, attempt, search_series(session, self.run), pixels=10_000)
            return page.windows, max((one.fine_from for one in lineage(session, attempt)), default=0)

    def seen(self):
        """Values by metric and step, as read, of the steps whose points are kept."""
        found, fine_from = self.page()
        return {
            window.series.metric: {
                step: value for step, value in zip(window.steps, window.values, strict=True) if step >= fine_from
            }
            for window in found
        }

    def expected(self):
        """The same by the model: one value at a time."""
        fine_from = self.page()[1]
        found = {metric: {} for metric in METRICS}
        for step, sent in self._history():
            for at, metric in enumerate(METRICS):
                parts = [part for rank in range(2) if (part := self._part(sent[rank], step, at)) is not None]
                if parts and step >= fine_from:
                    found[metric][step] = _merged(metric, parts)
        return found

    def _history(self):
        """Every step with what tells it: of two attempts the one that resumed the other, from where it began on."""
        last, told = LAST_STEP, []
        for first, sent in [(self.first, self.sent), *reversed(self.before)]:
            steps = sorted(set(sent[0]) | set(sent[1]))
            told += [(step, sent) for step in steps if first <= step <= last]
            last = min(last, first - 1)
        return sorted(told, key=lambda one: one[0])

    def _part(self, sent, step, at):
        of_step = sent.get(step, {})
        if 1 in of_step and at == 1:
            return np.float32(of_step[1][1])
        return np.float32(of_step[0][at]) if 0 in of_step else None

    def judged(self, *, pixels=10_000):
        """What the heat map shows."""
        with self.database.read() as session:
            attempt = find_attempt(session, self.run, self.attempt)
            return repr(
                heatmap.read_heatmap(
                    session, attempt, metric="activation.rms", first=0, last=LAST_STEP, pixels=pixels,
                    wanted=heatmap.Rows("modules"),
                )
            )  # fmt: skip


def _merged(metric, parts):
    if any(math.isnan(part) for part in parts):
        return "nan"
    wide = [float(part) for part in parts]
    if metric == "activation.rms_max":
        value = max(wide)
    elif metric == "activation.nonfinite":
        value = sum(wide)
    else:
        value = math.sqrt(sum(wide) / len(wide))
    return value if math.isfinite(value) else "inf"


def same(seen, expected):
    """Whether they are equal; what is written with the digits of a float32 is as near as those."""
    assert {metric: list(points) for metric, points in seen.items()} == {
        metric: list(points) for metric, points in expected.items()
    }
    for metric, points in expected.items():
        for step, value in points.items():
            assert seen[metric][step] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), step


@pytest.fixture(scope="module")
def module_database(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('tiles') / 'internist.db'}"
    upgrade(url)
    database = Database(url)
    yield database
    database.close()


VALUES = st.sampled_from([0.0, 1.0, 3.5, 1e-30, 7e8, float("nan"), float("inf")])
ACTIONS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 1), st.integers(1, 14), st.tuples(VALUES, VALUES, VALUES)),
    st.tuples(st.just("late"), st.integers(0, 1), st.integers(0, 60), st.tuples(VALUES, VALUES, VALUES)),
    st.tuples(st.just("extra"), st.integers(0, 1), st.integers(0, 60), st.tuples(VALUES, VALUES, VALUES)),
    st.tuples(st.just("compact")),
    st.tuples(st.just("silence")),
    st.tuples(st.just("give up")),
    st.tuples(st.just("resume"), st.integers(0, 30)),
)
_runs = iter(range(1 << 30))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                                                HealthCheck.function_scoped_fixture])  # fmt: skip
@example(actions=[  # another attempt goes on within a span
    ("late", 0, 57, (0.0, 0.0, 0.0)), ("send", 0, 14, (0.0, 0.0, math.inf)), ("send", 0, 1, (0.0, 0.0, 0.0)),
    ("silence",), ("compact",), ("compact",), ("send", 0, 1, (0.0, 0.0, 0.0)), ("resume", 3),
    ("send", 0, 1, (0.0, 0.0, 0.0)), ("give up",),
])  # fmt: skip
@given(actions=st.lists(ACTIONS, min_size=6, max_size=20))
def test_any_interleaving_reads_as_a_plain_model_does(module_database, actions):
    world = World(module_database, f"run{next(_runs)}")
    reached = [0, 0]
    for action in actions:
        if action[0] == "send":
            _, rank, count, values = action
            steps = range(reached[rank], reached[rank] + 10 * count, 10)
            reached[rank] += 10 * count
            world.send(rank, steps, values)
        elif action[0] in ("late", "extra"):
            _, rank, place, values = action
            world.send(rank, [10 * place], values, plan=int(action[0] == "extra"))
        elif action[0] == "compact":
            world.compact()
        elif action[0] == "give up":
            drawn = world.judged(pixels=1)
            world.give_up()
            assert world.judged(pixels=1) == drawn
        elif action[0] == "resume":
            world.start(min(10 * action[1], max(reached)))
            reached = [world.first, world.first]
        else:
            world.now_ms += 31_000
            world.ingest.tick()

    same(world.seen(), world.expected())
    for rank in range(2):
        world.take(rank, [{"finish": Finish(max(reached), EPOCH_MS)}])
    judged = world.judged()
    world.compactor.compact()
    same(world.seen(), world.expected())
    assert world.judged() == judged


def test_a_crash_at_any_statement_of_the_compactor_loses_and_doubles_nothing(database_url):
    database = Database(database_url)
    world = World(database, "run1")
    for begin in range(0, 400, 100):
        for rank in range(2):
            world.send(rank, range(begin, begin + 100, 10), (1.0 + begin, 0.0, 2.0 + rank))
    for rank in range(2):
        world.take(rank, [{"finish": Finish(390, EPOCH_MS)}])
    judged, expected = world.judged(), world.expected()
    countdown = [0]

    def count():
        with database.read() as session:
            loose = session.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(FrameRow))
            tiled = session.scalar(sqlalchemy.select(sqlalchemy.func.sum(BlockRow.count))) or 0
            judgements = session.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(JudgementRow))
            judged_tiled = session.scalar(sqlalchemy.select(sqlalchemy.func.sum(JudgedBlockRow.count))) or 0
        return loose + tiled, judgements + judged_tiled, tiled

    frames, judgements, _ = count()

    def fail(*_):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise RuntimeError("the process was killed")

    sqlalchemy.event.listen(database.engine, "before_cursor_execute", fail)
    for crash_at in range(1, 200):
        countdown[0] = crash_at
        try:
            world.compactor.compact()
        except RuntimeError:
            countdown[0] = 0
            assert count()[:2] == (frames, judgements)
            continue
        break
    sqlalchemy.event.remove(database.engine, "before_cursor_execute", fail)

    assert crash_at > 20
    assert count()[:2] == (frames, judgements)
    assert count()[2] > frames / 2
    same(world.seen(), expected)
    assert world.judged() == judged
    database.close()


def test_what_lies_in_tiles_survives_the_way_to_an_earlier_version_and_back(database_url):
    database = Database(database_url)
    world = World(database, "run1")
    for rank in range(2):
        world.send(rank, range(0, 200, 10), (1.5, 0.0, 2.0 + rank))
        world.send(rank, [200], (math.inf, 0.0, 900.0))
    world.compact()
    for rank in range(2):
        world.send(rank, range(210, 260, 10), (1.0, 0.0, 1.0))
    judged, expected = world.judged(), world.expected()
    database.close()

    downgrade(database_url, "0015")
    upgrade(database_url)

    world.database = Database(database_url)
    same(world.seen(), expected)
    assert world.judged() == judged
    with world.database.read() as session:
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.sum(BlockRow.count))) > 0
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(JudgementRow)) > 0
    world.database.close()


def test_a_spike_of_one_step_is_kept_in_spans(module_database):
    world = World(module_database, f"run{next(_runs)}")
    for rank in range(2):
        world.send(rank, range(0, 600, 10), (1.0, 0.0, 1.0))
        world.send(rank, [600], (1.0, 0.0, 900.0))
        world.send(rank, range(610, 900, 10), (1.0, 0.0, 1.0))
        world.take(rank, [{"finish": Finish(890, EPOCH_MS)}])
    fine = world.judged(pixels=1)

    world.compactor.compact()

    assert "values=(30.0,)" in fine
    assert world.judged(pixels=1) == fine


def test_of_points_that_are_given_up_spans_are_left(module_database):
    world = World(module_database, f"run{next(_runs)}")
    for rank in range(2):
        world.send(rank, range(0, 600, 10), (1.0, 0.0, 1.0))
        world.send(rank, [600], (1.0, 0.0, 900.0))
        world.send(rank, range(610, 900, 10), (1.0, 0.0, 1.0))
        world.take(rank, [{"finish": Finish(890, EPOCH_MS)}])
    world.compactor.compact()
    drawn = world.judged(pixels=1)
    retention = Retention(days_of_project={world.run: 7.0})
    old = Compactor(module_database, retention=retention, clock=lambda: EPOCH_MS + 8 * DAY_MS)

    assert Compactor(module_database, retention=retention, clock=lambda: EPOCH_MS + 6 * DAY_MS).give_up_old() == 0
    assert old.give_up_old() > 0
    assert old.give_up_old() == 0

    with module_database.read() as session:
        attempt = find_attempt(session, world.run, world.attempt)
        page = windows.read_points(session, attempt, search_series(session, world.run), pixels=10_000)
    window = next(one for one in page.windows if one.series.metric == "activation.rms")
    assert len(window.steps) < 20 and max(window.high) == 30.0 and min(window.low) == 1.0
    assert window.steps[-1] == 890 and window.times_ms[-1] == EPOCH_MS + 890 * STEP_MS
    assert world.judged(pixels=1) == drawn


def test_of_points_that_are_too_many_the_oldest_are_given_up(module_database):
    worlds = [World(module_database, f"run{next(_runs)}", project="full") for _ in range(2)]
    for lap, world in enumerate(worlds):
        world.now_ms += lap * DAY_MS
        for rank in range(2):
            world.send(rank, range(0, 900, 10), (1.0, 0.0, 1.0))
            world.take(rank, [{"finish": Finish(890, EPOCH_MS)}])
        world.compactor.compact()
    drawn = [world.judged(pixels=1) for world in worlds]
    newer = worlds[1]
    with module_database.read() as session:
        attempt = find_attempt(session, newer.run, newer.attempt).id
        of_newer = sqlalchemy.select(sqlalchemy.func.sum(BlockRow.packed_bytes)).where(BlockRow.attempt_id == attempt)
        taken = session.scalar(of_newer)
        tiles = removal.read_usage(session, newer.run).tiles
    assert taken == tiles > 0

    keeper = Compactor(
        module_database, retention=Retention(mib_of_project={"full": taken / (1 << 20)}), clock=lambda: EPOCH_MS
    )
    assert keeper.give_up_old() > 0
    assert keeper.give_up_old() == 0

    assert len(worlds[0].seen()["activation.rms"]) < len(newer.seen()["activation.rms"]) == 90
    same(newer.seen(), newer.expected())
    assert [world.judged(pixels=1) for world in worlds] == drawn


@given(data=st.binary(min_size=8, max_size=2_400), dtype=st.sampled_from(["<f2", "<f4", "<f8", "<i8", "u1", "?"]))
def test_what_is_packed_is_unpacked_to_the_bit(data, dtype):
    items = np.frombuffer(data[: len(data) // 8 * 8], "u1" if dtype == "?" else dtype)
    items = items > 99 if dtype == "?" else items

    found = unpack([pack(items), pack(items[::-1])], len(items), dtype)

    assert found[0].tobytes() == items.tobytes()
    assert found[1].tobytes() == items[::-1].tobytes()
