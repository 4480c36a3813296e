import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from internist.schema.wire import Note
from internist_server.store import alerts as store
from tests.server.sending import EPOCH_MS, STEP_MS, Sender, start_of
from tests.server.sick_runs import EVERY, faulty_block, frames, small_model

FIRST, LAST = 1000, 1100
DEADLINE_S = 30


@pytest.fixture
def sender(database_url, serve, clock):
    """A run that has been well for 1,000 steps, on a server that has a receiver nobody listens at."""
    clock.now_ms = EPOCH_MS + 1000 * STEP_MS
    made = Sender(serve(database_url, webhook_url="http://127.0.0.1:9/", resolve_after_s=0))
    made.send(made.declare(small_model()))
    made.send(frames(made, range(0, FIRST, EVERY)))
    return made


def fault(sender, steps, **changes):
    return sender.send(frames(sender, steps, faulty_block(1, first=FIRST, last=LAST, **changes)))


def alerts(sender, **params):
    return sender.api.get("/api/v1/alerts", params={"run": sender.run, **params}).json()["alerts"]


def queued(sender):
    """Notifications so far, as (condition, status, subjects)."""
    with sender.api.app.state.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT condition, status, alerts FROM notifications ORDER BY id").all()
    subjects = {alert["id"]: alert["subject"] for alert in alerts(sender)}
    members = [json.loads(row[2]) if isinstance(row[2], str) else row[2] for row in rows]
    return [(row[0], row[1], [subjects[one] for one in ids]) for row, ids in zip(rows, members, strict=True)]


def test_a_faulty_block_opens_an_alert_that_resolves_when_it_is_mended(sender):
    fault(sender, range(FIRST, FIRST + 50, EVERY), feature=False)
    (alert,) = alerts(sender)
    assert (alert["state"], alert["condition"], alert["block"]) == ("firing", "update", "blocks.1")
    # so far out it opens at its second point
    assert (alert["pending_step"], alert["opened_step"], alert["severity"]) == (1000, 1010, "critical")
    assert alert["ratio"] > 20

    fault(sender, range(FIRST + 50, LAST + 200, EVERY), feature=False)

    (alert,) = alerts(sender)
    assert alert["state"] == "resolved"
    assert LAST < alert["closed_step"] < LAST + 150
    assert sender.get()["open_alerts"] == 0


def test_a_short_excursion_leaves_no_alert(sender):
    fault(sender, [FIRST], feature=False)
    assert [alert["state"] for alert in alerts(sender)] == ["pending"]

    sender.send(frames(sender, range(FIRST + 10, FIRST + 60, EVERY)))

    assert alerts(sender) == []


def test_a_critical_alert_wishes_for_every_step(sender):
    reply = fault(sender, [FIRST, FIRST + 10, FIRST + 20])

    assert [(one["until_step"], "1010" in one["reason"]) for one in reply["directives"]] == [(1030, True)]
    assert sender.beat(FIRST + 21)["directives"] == reply["directives"]
    assert fault(sender, [FIRST + 60])["directives"] == []


def test_one_notification_per_condition_opens_and_closes_a_group(sender):
    fault(sender, range(FIRST, LAST + 10, EVERY), feature=False)
    sender.send(frames(sender, range(LAST + 10, LAST + 200, EVERY)))

    assert queued(sender) == [
        ("update", "firing", ["blocks.1.fc"]),
        ("update", "resolved", ["blocks.1.fc"]),
    ]


def test_a_later_member_joins_silently(sender):
    fault(sender, [FIRST, FIRST + 10, FIRST + 20], feature=False)

    sender.send(frames(sender, range(FIRST + 30, FIRST + 90, EVERY), faulty_block(0, first=FIRST, last=LAST)))

    assert [(condition, status) for condition, status, _ in queued(sender)] == [("update", "firing")]


def test_features_do_not_open_a_group_while_a_cause_in_an_earlier_block_fires(sender):
    fault(sender, [FIRST, FIRST + 10, FIRST + 20])
    causes = {alert["cause"] for alert in alerts(sender, state="firing")}

    assert causes == {"own", "feature"}
    assert [(condition, status) for condition, status, _ in queued(sender)] == [("update", "firing")]


def test_frames_measured_long_ago_are_recorded_not_notified(sender, clock):
    clock.advance(3600)

    fault(sender, [FIRST, FIRST + 10, FIRST + 20])

    assert any(alert["state"] == "firing" for alert in alerts(sender))
    assert queued(sender) == []


def test_a_new_attempt_supersedes_the_alerts_of_the_old_one(sender):
    fault(sender, [FIRST, FIRST + 10, FIRST + 20], feature=False)

    Sender(sender.api, start_of(attempt="run1-b", parent="run1-a", started_at_ms=EPOCH_MS + 1, start_step=900))

    assert [(alert["state"], alert["closed_step"]) for alert in alerts(sender)] == [("superseded", 900)]
    assert [status for _, status, _ in queued(sender)] == ["firing", "resolved"]


def test_an_attempt_that_is_shipped_belatedly_alarms_nobody(sender):
    newer = Sender(sender.api, start_of(attempt="run1-b", started_at_ms=EPOCH_MS + 1))
    newer.send(newer.declare(small_model()))

    fault(sender, [FIRST, FIRST + 10, FIRST + 20])

    assert {alert["state"] for alert in alerts(sender)} == {"superseded"}
    assert queued(sender) == []
    assert sender.get()["open_alerts"] == 0


def test_a_nan_fires_at_once_with_its_value(sender):
    def change(step, block, metric):
        return np.nan if (block, metric) == (0, "update.own") else 1.0

    sender.send(frames(sender, [FIRST], change))

    (alert,) = alerts(sender, condition="numeric")
    assert (alert["state"], alert["value"], alert["opened_step"]) == ("firing", "nan", FIRST)


def test_the_first_to_acknowledge_stays(sender):
    fault(sender, [FIRST, FIRST + 10, FIRST + 20], feature=False)
    (alert,) = alerts(sender)
    path = f"/api/v1/alerts/{alert['id']}/acknowledge"

    first = sender.api.post(path, json={"by": "ada"}).json()
    second = sender.api.post(path, json={"by": "bob"}).json()

    assert first["acknowledged_by"] == second["acknowledged_by"] == "ada"
    assert first["acknowledged_at_ms"] == sender.api.app.state.services.clock()


def test_a_new_normal_resolves_its_alert_and_is_measured_by_itself(sender):
    steps = range(FIRST, FIRST + 120, EVERY)
    fault(sender, steps, feature=False)
    (alert,) = alerts(sender)
    path = f"/api/v1/alerts/{alert['id']}/acknowledge"

    seen = sender.api.post(path, json={"by": "ada", "new_normal": True}).json()

    assert (seen["state"], seen["acknowledged_by"]) == ("resolved", "ada")
    assert "new normal" in seen["message"]
    assert [status for _, status, _ in queued(sender)] == ["firing", "resolved"]
    later = faulty_block(1, first=FIRST, last=10_000, feature=False)
    sender.send(frames(sender, range(FIRST + 120, FIRST + 400, EVERY), later))
    assert [one["state"] for one in alerts(sender)] == ["resolved"]
    again = sender.api.post(path, json={"by": "ada", "new_normal": True})
    assert again.status_code == 422 and "out of the band" in again.json()["detail"]


def test_a_fault_that_recovers_says_so_and_names_the_band_it_had(sender):
    fault(sender, range(FIRST, LAST + 200, EVERY), feature=False)

    (alert,) = alerts(sender)
    assert alert["state"] == "resolved"
    assert "out of its band since step 1000" in alert["message"] and "it had" in alert["message"]


@pytest.mark.parametrize(
    "query", ["severity=critical", "module=blocks.1", "runs=run1", "condition=forwards", "state=open"]
)
def test_a_filter_that_is_not_known_is_422(sqlite_api, query):
    answer = sqlite_api.get(f"/api/v1/alerts?{query}")

    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["runs?projekt=a", "runs/run1?verbose=1", "runs/run1/points?metric=a&pixel=3", "scaling?x=1"]
)
def test_no_route_ignores_what_it_does_not_know(sqlite_api, path):
    Sender(sqlite_api)

    assert sqlite_api.get(f"/api/v1/{path}").status_code == 422


@pytest.mark.parametrize("by", ["", "a\nb", "x" * 300, None])
def test_nobody_cannot_acknowledge(sqlite_api, by):
    assert sqlite_api.post("/api/v1/alerts/1/acknowledge", json={"by": by}).status_code == 422


def test_an_unknown_alert_is_404(sqlite_api):
    answer = sqlite_api.post("/api/v1/alerts/77/acknowledge", json={"by": "ada"})

    assert (answer.status_code, answer.json()["error"]) == (404, "alert_not_found")


def test_an_alert_of_the_users_code_is_kept_and_notified(sender):
    note = Note("Loss spike", "at batch 7", "error", 900, EPOCH_MS + 900 * STEP_MS)

    sender.send([sender.record(note=note)])

    (alert,) = alerts(sender, condition="user")
    assert (alert["message"], alert["severity"], alert["state"]) == ("Loss spike: at batch 7", "critical", "resolved")
    assert [(condition, status) for condition, status, _ in queued(sender)] == [("user", "firing")]


def test_what_is_to_be_known_aloud_is_what_fires_and_what_has_just_had_its_moment(sender):
    fault(sender, [FIRST, FIRST + 10, FIRST + 20], feature=False)
    noted_ms = EPOCH_MS + 900 * STEP_MS
    sender.send([sender.record(note=Note("old", "", "info", 1, noted_ms - 1))])
    sender.send([sender.record(note=Note("new", "", "info", 1, noted_ms))])

    with sender.api.app.state.services.database.read() as session:
        known = [store.current(session, runs=runs, moments_since_ms=noted_ms) for runs in (None, {"run1"}, {"run2"})]

    assert [[(one.rule, one.kind, one.module) for one in found] for found in known] == [
        [("update_out_of_band", "module", "blocks.1.fc"), ("user", None, None)],
        [("update_out_of_band", "module", "blocks.1.fc"), ("user", None, None)],
        [],
    ]


def test_what_was_over_lately_is_known_and_what_was_belated_is_not(sender, clock):
    fault(sender, [FIRST, FIRST + 10, FIRST + 20], feature=False)
    sender.send([sender.finish(FIRST + 20)])
    clock.advance(3600)
    late = Sender(sender.api, start_of("run2"))
    late.send(late.declare(small_model()))
    late.send(frames(late, range(0, FIRST, EVERY)))
    fault(late, [FIRST, FIRST + 10, FIRST + 20], feature=False)

    with sender.api.app.state.services.database.read() as session:
        assert store.current(session, runs=None, moments_since_ms=0) == []
        assert [one.run for one in store.closed_since(session, EPOCH_MS)] == ["run1"]
        assert store.closed_since(session, clock.now_ms) == []


def test_alerts_are_listed_open_ones_first(sender):
    sender.send([sender.record(note=Note("old", "", "info", 1, EPOCH_MS))])
    fault(sender, [FIRST, FIRST + 10, FIRST + 20], feature=False)
    sender.send([sender.record(note=Note("new", "", "info", 1, EPOCH_MS))])

    page = sender.api.get("/api/v1/alerts").json()

    assert [alert["rule"] for alert in page["alerts"]] == ["update_out_of_band", "user", "user"]
    assert [alert["message"] for alert in page["alerts"]][1:] == ["new", "old"]
    assert (page["total"], page["open"]) == (3, 1)
    assert len(alerts(sender, state=["firing", "pending"])) == 1


def test_a_run_that_is_only_shipped_afterwards_is_lost_without_alarm(sender, clock):
    clock.advance(3600)

    sender.api.app.state.services.ingest.tick()

    assert sender.get()["state"] == "lost"
    assert alerts(sender) == []


def test_a_webhook_receiver_hears_of_an_alert_and_its_end(sqlite_url, serve, clock):
    heard, both = [], threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            if len(heard) == 2:
                both.set()

        def log_message(self, *_):
            """Be quiet."""

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    clock.now_ms = EPOCH_MS + 1000 * STEP_MS
    api = serve(sqlite_url, webhook_url=f"http://127.0.0.1:{receiver.server_port}/hook", resolve_after_s=0)
    sender = Sender(api)
    sender.send(sender.declare(small_model()))
    sender.send(frames(sender, range(0, FIRST, EVERY)))

    fault(sender, range(FIRST, LAST + 200, EVERY), feature=False)

    try:
        assert both.wait(DEADLINE_S)
    finally:
        receiver.shutdown()
        receiver.server_close()
    assert [body["status"] for body in heard] == ["firing", "resolved"]
    assert heard[0]["version"] == "4"
