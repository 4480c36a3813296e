"""The life of a run: what alarms when it stands still, is silent, or ends, and when nothing is to be said."""

import json
from dataclasses import replace

import numpy as np
import pytest

from internist.schema.wire import CoverageEntry, Heartbeat
from internist_server.directives import DENSE_STEPS
from internist_server.store.attempts import find_attempt, touch_run
from internist_server.store.judgements import load_checkpoint, load_state, save_checkpoint, save_state
from tests.server.sending import EPOCH_MS, STEP_MS, Sender, module_series, start_of
from tests.server.sick_runs import EVERY, faulty_block, frames, small_model

FIRST = 1000


@pytest.fixture
def sender(database_url, serve, clock):
    """A live run that has been well for 1,000 steps, on a server that has a receiver nobody listens at."""
    clock.now_ms = EPOCH_MS + FIRST * STEP_MS
    made = Sender(serve(database_url, webhook_url="http://127.0.0.1:9/", resolve_after_s=0))
    made.send(made.declare(small_model()))
    made.send(frames(made, range(0, FIRST, EVERY)))
    made.beat(FIRST - 10)
    return made


def tick(sender):
    sender.api.app.state.services.ingest.tick()


def alerts(sender, **params):
    return sender.api.get("/api/v1/alerts", params={"run": sender.run, **params}).json()["alerts"]


def told(sender):
    """Notifications so far, as (condition, status)."""
    with sender.api.app.state.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT condition, status FROM notifications ORDER BY id").all()
    return [tuple(row) for row in rows]


def paused(sender, step, *, pause, step_age_ms=0):
    beat = Heartbeat(sender.start.attempt, 0, step, step_age_ms, pause)
    answer = sender.api.post(f"/api/v1/runs/{sender.run}/heartbeat", json=json.loads(json.dumps({
        "attempt": beat.attempt, "rank": beat.rank, "step": beat.step, "step_age_ms": beat.step_age_ms,
        "pause": beat.pause,
    })))  # fmt: skip
    assert answer.status_code == 200, answer.text


def test_a_run_without_heartbeat_is_lost_and_comes_back(sender, clock):
    clock.advance(61)
    tick(sender)
    (alert,) = alerts(sender)
    assert (alert["rule"], alert["state"], alert["cause"], alert["series"]) == ("run_lost", "firing", "run", None)
    assert sender.get()["state"] == "lost"

    sender.beat(FIRST)

    assert [alert["state"] for alert in alerts(sender)] == ["resolved"]
    assert told(sender) == [("run_lost", "firing"), ("run_lost", "resolved")]


def test_a_process_that_is_killed_is_lost_and_never_stalled_and_its_true_step_is_told(sender, clock):
    sender.send(frames(sender, range(FIRST, FIRST + 70, EVERY)))  # the last heartbeat is of step 990

    for _ in range(20):
        clock.advance(5)
        tick(sender)

    assert told(sender) == [("run_lost", "firing")]
    assert "its last step was 1060" in alerts(sender)[0]["message"]


def test_a_run_that_is_stalled_and_then_lost_is_told_as_both(sender, clock):
    clock.advance(70)
    sender.beat(FIRST - 10, step_age_ms=70_000)
    clock.advance(70)

    tick(sender)

    assert told(sender) == [("run_stalled", "firing"), ("run_lost", "firing"), ("run_stalled", "resolved")] or told(
        sender
    ) == [("run_stalled", "firing"), ("run_stalled", "resolved"), ("run_lost", "firing")]
    assert [one["rule"] for one in alerts(sender, state="firing")] == ["run_lost"]


def test_a_run_whose_step_does_not_move_is_stalled(sender, clock):
    clock.advance(50)
    sender.beat(990, step_age_ms=50_000)
    assert sender.get()["state"] == "live"
    clock.advance(20)

    sender.beat(990, step_age_ms=70_000)

    (alert,) = alerts(sender)
    assert (alert["rule"], alert["state"]) == ("run_stalled", "firing")
    assert sender.get()["state"] == "stalled"
    assert "step 990 has not moved for 70 s" in sender.get()["state_reason"]
    sender.beat(991)
    assert [alert["state"] for alert in alerts(sender)] == ["resolved"]


def test_a_run_that_says_it_pauses_is_not_stalled_however_long(sender, clock):
    for minute in range(1, 120):
        clock.advance(30)
        paused(sender, 990, pause="evaluation", step_age_ms=minute * 30_000)

    assert alerts(sender) == []
    assert (sender.get()["state"], sender.get()["state_reason"]) == ("live", "paused at step 990: evaluation")
    clock.advance(61)
    tick(sender)
    assert [alert["rule"] for alert in alerts(sender)] == ["run_lost"]


def test_a_pause_after_which_the_run_went_on_is_known_the_next_time(sender, clock):
    pause_ms = 100_000
    late = [replace(record, frame=replace(record.frame, measured_at_ms=record.frame.measured_at_ms + pause_ms))
            for record in frames(sender, range(FIRST, FIRST + 100, EVERY))]  # fmt: skip
    clock.advance(110)
    sender.send(late)

    clock.advance(150)
    sender.beat(FIRST + 90, step_age_ms=150_000)
    assert alerts(sender) == []
    clock.advance(60)
    sender.beat(FIRST + 90, step_age_ms=210_000)

    assert [alert["rule"] for alert in alerts(sender)] == ["run_stalled"]


@pytest.mark.parametrize("outcome", ["finished", "failed", "killed"])
def test_a_run_that_has_ended_is_neither_lost_nor_stalled(sender, clock, outcome):
    sender.send([sender.finish(FIRST, outcome)])
    clock.advance(3600)

    tick(sender)

    assert alerts(sender, condition="run_lost") == alerts(sender, condition="run_stalled") == []
    assert sender.get()["state"] == outcome


@pytest.mark.parametrize("outcome", ["finished", "failed", "killed"])
def test_the_end_of_a_run_closes_what_fires(sender, outcome):
    steps = [FIRST, FIRST + 10, FIRST + 20]
    sender.send(frames(sender, steps, faulty_block(1, first=FIRST, last=5000, feature=False)))
    assert [one["state"] for one in alerts(sender)] == ["firing"]

    sender.send([sender.finish(FIRST + 20, outcome)])

    assert alerts(sender, state="firing") == []
    assert sender.get()["open_alerts"] == 0
    closed = alerts(sender, condition="update")[0]
    assert (closed["state"], closed["closed_step"]) == ("resolved", FIRST + 20)
    assert closed["message"].endswith("the run has ended")
    assert [one for one in told(sender) if one[0] == "update"] == [("update", "firing"), ("update", "resolved")]


def test_frames_that_come_after_the_end_leave_nothing_firing(sender):
    late = frames(sender, [FIRST, FIRST + 10, FIRST + 20], faulty_block(1, first=FIRST, last=5000, feature=False))
    sender.send([sender.finish(FIRST + 20)])

    sender.send(late)

    assert alerts(sender, state="firing") == []


@pytest.mark.parametrize(
    ("outcome", "rule", "severity", "said"),
    [
        ("failed", "run_failed", "critical", "the run ended by an error at step 1000"),
        ("killed", "run_killed", "warning", "the run was killed by a signal at step 1000"),
    ],
)
def test_a_run_that_ends_badly_is_told_once(sender, clock, outcome, rule, severity, said):
    end = sender.finish(FIRST, outcome)
    sender.send([end])
    sender.post([end])
    clock.advance(3600)
    tick(sender)

    (alert,) = alerts(sender)
    assert (alert["rule"], alert["severity"], alert["message"]) == (rule, severity, said)
    assert told(sender) == [(rule, "firing")]


def test_an_end_that_is_shipped_long_afterwards_is_recorded_not_told(sender, clock):
    clock.advance(3600)

    sender.send([sender.finish(FIRST, "failed")])

    assert [alert["rule"] for alert in alerts(sender)] == ["run_failed"]
    assert told(sender) == []


def covered(sender):
    entry = CoverageEntry("module", "blocks.0.fc", "measured")
    return sender.record(coverage=(entry,))


@pytest.fixture
def well(sender):
    """A run that is judged well as far as its points say."""
    later = range(FIRST, 2 * FIRST, EVERY)
    sender.send(frames(sender, later))
    return sender


def judged_ok(sender):
    """Let the summary say that all is well: the small model is judged on two cards alone."""
    with sender.api.app.state.services.database.write() as session:
        attempt = find_attempt(session, sender.run, sender.start.attempt)
        state = load_state(session, attempt.id)
        save_state(session, attempt.id, replace(state, summary=replace(state.summary, state="ok")))
        touch_run(session, sender.run)


def test_a_run_of_which_too_little_is_judged_is_not_measured(well):
    well.send([covered(well)])

    run, board = well.get(), well.get("/verdicts")
    assert run["verdict"] == board["state"] == "not measured"
    assert run["sentence"].startswith("Too little is judged to call it well. Two of six conditions hold")


def test_a_run_whose_coverage_is_unknown_is_not_measured(well):
    judged_ok(well)
    assert well.get()["verdict"] == "not measured"
    assert well.get()["sentence"].startswith("It is not known that anything of the model is measured.")

    well.send([covered(well)])
    judged_ok(well)

    assert well.get()["verdict"] == "ok"


def test_a_run_whose_frames_are_refused_is_not_measured_until_good_ones_outweigh_them(well):
    well.send([covered(well)])
    judged_ok(well)
    assert well.get()["verdict"] == "ok"

    well.post([well.frame(2000, [1.0])])

    assert well.get()["verdict"] == "not measured"
    assert well.get()["sentence"].startswith("Frames were refused (")
    well.send(frames(well, range(2010, 2110, EVERY)))
    judged_ok(well)
    assert well.get()["verdict"] == "ok"


def test_a_violation_is_told_whatever_else_is_not_known(well):
    sick = frames(well, [2000, 2010, 2020], faulty_block(1, first=2000, last=5000, feature=False))
    well.send(sick)

    assert well.get()["verdict"] == well.get("/verdicts")["state"] == "violated"


def test_a_directive_ends_with_its_incident(sender):
    def change(_, block, metric):
        return np.nan if (block, metric) == (0, "update.own") else 1.0

    reply = sender.send(frames(sender, [FIRST], change))

    assert [one["until_step"] for one in reply["directives"]] == [FIRST + DENSE_STEPS]
    assert sender.send([sender.finish(FIRST + 10)])["directives"] == []


def test_a_run_whose_judge_is_of_another_version_is_judged_anew(sender, caplog):
    caplog.set_level("WARNING", logger="internist_server")
    said = sender.get("/verdicts")
    with sender.api.app.state.services.database.write() as session:
        attempt = find_attempt(session, sender.run, sender.start.attempt)
        state = load_state(session, attempt.id)
        save_state(session, attempt.id, replace(state, version=state.version + 1))
        checkpoint = load_checkpoint(session, attempt.id)
        save_checkpoint(session, attempt.id, replace(checkpoint, state=b"of another version"))
        touch_run(session, sender.run)

    assert said["step"] == FIRST - EVERY
    assert sender.get("/verdicts") == said  # what is stored says so to the judge of this version, too
    assert "is judged anew" in caplog.text

    sender.send(frames(sender, range(FIRST, FIRST + 100, EVERY)))

    after = sender.get("/verdicts")
    assert (after["step"], after["sentence"]) == (FIRST + 90, said["sentence"])


def test_an_optimizer_alone_declares_no_parametrisation(sqlite_api):
    muon = Sender(sqlite_api, start_of(optimizers=("Muon", "AdamW")))
    norm = module_series(0, "weight.operator_norm", "blocks.0.fc.weight", cadence=10)
    muon.send([*muon.declare([norm]), *(muon.frame(step, [3.7]) for step in range(0, 600, 10))])

    members = [one for one in muon.get("/verdicts")["members"] if one["condition"] == "spectral_weight"]
    assert [(one["state"], one["basis"]) for one in members] == [("ok", "baseline")]
