"""Rules, thresholds, silences and acknowledgements through the API, and what receivers hear of them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internist.schema.wire import Series, Threshold
from internist_server.alerts.labels import fingerprint, labels
from internist_server.store import alerts as store
from tests.server.sending import EPOCH_MS, Sender, start_of

NOBODY = "http://127.0.0.1:9/"
SERIES = (Series(0, "gradient.global_norm", "model", ""), Series(1, "loss", "model", ""))
HIGH = {"name": "gradient_large", "metric": "gradient.*", "above": 5.0, "severity": "critical", "labels": {"team": "a"}}


@pytest.fixture
def api(database_url, serve, clock):
    clock.now_ms = EPOCH_MS
    return serve(database_url, webhook_url=NOBODY)


@pytest.fixture
def sender(api):
    return a_run(api)


def a_run(api, **changes):
    made = Sender(api, start_of(**changes))
    made.send(made.declare(SERIES))
    return made


def send(sender, *points):
    """Points of (step, gradient norm), beside a loss."""
    sender.send([sender.frame(step, [value**2, 1.0]) for step, value in points])  # norms travel squared


def alerts(sender):
    return sender.api.get("/api/v1/alerts", params={"run": sender.run}).json()["alerts"]


def told(api):
    with api.app.state.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT condition, status FROM notifications ORDER BY id").all()
    return [tuple(row) for row in rows]


def tick(api):
    api.app.state.services.ingest.tick()


def put(api, *rules):
    answer = api.put("/api/v1/rules", json={"rules": rules})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_rule_that_is_set_while_a_run_is_live_fires_from_its_next_step_on(api, sender):
    send(sender, (0, 7.0))
    put(api, HIGH)

    send(sender, (1, 7.0), (2, 1.0))

    (alert,) = alerts(sender)
    assert (alert["rule"], alert["condition"], alert["state"]) == ("gradient_large", "threshold", "resolved")
    assert (alert["opened_step"], alert["closed_step"], alert["labels"]) == (1, 2, {"team": "a"})
    assert alert["severity"] == "critical" and "gradient.global_norm" in alert["message"]
    rules = api.get("/api/v1/rules").json()
    assert [rule["name"] for rule in rules["rules"]] == ["gradient_large"] and rules["rules"][0]["for"] == 1


def test_a_rule_that_is_taken_away_ends_its_alert(api, sender):
    put(api, HIGH)
    send(sender, (0, 7.0))
    put(api)

    send(sender, (1, 7.0))

    assert [alert["state"] for alert in alerts(sender)] == ["resolved"]


def test_what_is_remembered_of_a_rule_outlives_the_server(database_url, serve, clock):
    patient = HIGH | {"for": 3}
    first = a_run(serve(database_url))
    put(first.api, patient)
    send(first, (0, 7.0), (1, 7.0))

    first.api = serve(database_url)
    send(first, (2, 7.0))

    assert [(alert["state"], alert["opened_step"]) for alert in alerts(first)] == [("firing", 2)]


def test_a_rule_on_a_condition_changes_who_is_told_and_how_loudly(api, sender):
    put(api, {"name": "calm", "condition": "run_killed", "severity": "info", "enabled": False})

    sender.send([sender.finish(3, "killed")])

    (alert,) = alerts(sender)
    assert (alert["rule"], alert["severity"], told(api)) == ("run_killed", "info", [])


def test_the_thresholds_that_a_run_starts_with_are_its_own(api):
    limited = a_run(api, thresholds=(Threshold("gradient.global_norm", above=5.0),))
    other = a_run(api, run="run2", attempt="run2-a")

    for sender in (limited, other):
        send(sender, (0, 7.0))

    assert [alert["rule"] for alert in alerts(limited)] == ["threshold_gradient_global_norm"]
    assert alerts(other) == []
    path = f"/api/v1/runs/{limited.run}/thresholds"
    kept = {"thresholds": [{"metric": "gradient.global_norm", "above": 5.0, "below": None}]}
    assert limited.api.get(path).json() == kept


def test_the_thresholds_of_a_run_can_be_set_and_stay_when_it_is_resumed(api, sender):
    path = f"/api/v1/runs/{sender.run}/thresholds"
    answer = api.put(
        path, json={"thresholds": [{"metric": "gradient.*", "above": 1.0}, {"metric": "loss", "below": 2.0}]}
    )
    assert answer.status_code == 200, answer.text

    again = a_run(api, attempt="run1-b", parent="run1-a", started_at_ms=EPOCH_MS + 1)
    send(again, (5, 7.0))

    assert [alert["rule"] for alert in alerts(again)] == ["threshold_loss"]  # a name is no glob here
    assert api.put("/api/v1/runs/nobody/thresholds", json={"thresholds": []}).status_code == 404


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (HIGH | {"abve": 1}, "abve"),
        (HIGH | {"above": None}, "a rule has one of"),
        (HIGH | {"receivers": ["nobody"]}, "names the receiver 'nobody'"),
        (HIGH | {"name": "threshold_loss"}, "those of thresholds of single runs"),
        (HIGH | {"for": "soon"}, "for"),
        (HIGH | {"metric": ""}, "metric"),
    ],
)
def test_a_rule_that_cannot_be_is_422_and_says_why(sqlite_api, rule, said):
    answer = sqlite_api.put("/api/v1/rules", json={"rules": [rule]})

    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.json()
    assert sqlite_api.get("/api/v1/rules").json()["rules"] == []


def test_a_rule_of_the_file_is_shown_and_its_name_is_taken(sqlite_url, serve, tmp_path):
    path = tmp_path / "internist.toml"
    path.write_text('[[receiver]]\nname = "oncall"\nwebhook_url = "http://h/"\n[[rule]]\nname = "a"\nabove = 1\n')
    api = serve(sqlite_url, rules=path)

    found = api.get("/api/v1/rules").json()

    assert ([rule["name"] for rule in found["file"]], found["receivers"]) == (["a"], ["oncall"])
    assert api.put("/api/v1/rules", json={"rules": [HIGH | {"name": "a"}]}).status_code == 409
    assert api.put("/api/v1/rules", json={"rules": [HIGH | {"receivers": ["oncall"]}]}).status_code == 200


def test_what_is_over_is_told_after_a_while_and_what_comes_back_before_is_one_incident(api, sender, clock):
    put(api, HIGH)
    for step in range(0, 12, 2):
        send(sender, (step, 7.0), (step + 1, 1.0))
        clock.advance(14)
        tick(api)
    assert told(api) == [("gradient_large", "firing")]

    clock.advance(16)
    tick(api)

    assert told(api) == [("gradient_large", "firing"), ("gradient_large", "resolved")]


def test_a_run_that_ends_is_told_of_at_once(api, sender):
    put(api, HIGH)
    send(sender, (0, 7.0))

    sender.send([sender.finish(1)])

    assert told(api) == [("gradient_large", "firing"), ("gradient_large", "resolved")]


def test_a_silence_hushes_what_matches_until_it_expires(api, sender, clock):
    put(api, HIGH)
    body = {"matchers": {"alertname": "gradient_*", "team": "a"}, "author": "ada", "reason": "a test", "seconds": 60}
    silence = api.post("/api/v1/silences", json=body).json()
    assert (silence["author"], silence["expires_at_ms"]) == ("ada", clock.now_ms + 60_000)

    send(sender, (0, 7.0))
    tick(api)
    assert (told(api), len(api.get("/api/v1/silences").json())) == ([], 1)
    sender.beat(0)
    clock.advance(61)
    sender.beat(0)
    tick(api)

    assert ("gradient_large", "firing") in told(api)
    assert api.get("/api/v1/silences").json() == []
    assert len(api.get("/api/v1/silences", params={"expired": True}).json()) == 1


def test_a_silence_can_be_taken_back(api, sender):
    put(api, HIGH)
    body = {"matchers": {"run": sender.run}, "author": "ada", "reason": "a test", "seconds": 3600}
    silence = api.post("/api/v1/silences", json=body).json()
    send(sender, (0, 7.0))

    assert api.delete(f"/api/v1/silences/{silence['id']}").status_code == 200
    tick(api)

    assert told(api) == [("gradient_large", "firing")]
    assert api.delete("/api/v1/silences/77").json()["error"] == "silence_not_found"


@pytest.mark.parametrize(
    "change",
    [
        {"author": ""}, {"author": "  "}, {"reason": ""}, {"matchers": {}}, {"matchers": {"run": ""}},
        {"matchers": {"run id": "a"}}, {"seconds": 0}, {"seconds": -1}, {"seconds": 1e12}, {"until": 3},
        {"reason": None},
    ],
)  # fmt: skip
def test_a_silence_without_author_reason_matchers_or_end_is_422(sqlite_api, change):
    good = {"matchers": {"run": "run1"}, "author": "ada", "reason": "a test", "seconds": 60}

    assert sqlite_api.post("/api/v1/silences", json=good | change).status_code == 422


def test_what_somebody_has_seen_is_not_told_again_until_they_take_it_back(database_url, serve, clock):
    clock.now_ms = EPOCH_MS
    api = serve(database_url, webhook_url=NOBODY, repeat_after_s=60)
    sender = a_run(api)
    put(api, HIGH)
    send(sender, (0, 7.0))
    path = f"/api/v1/alerts/{alerts(sender)[0]['id']}/acknowledge"

    def after_a_minute():
        clock.advance(61)
        tick(api)
        return told(api)

    assert after_a_minute() == [("gradient_large", "firing")] * 2
    api.post(path, json={"by": "ada"})
    assert after_a_minute() == [("gradient_large", "firing")] * 2
    assert api.delete(path).json()["acknowledged_by"] is None
    assert told(api) == [("gradient_large", "firing")] * 3
    assert api.delete("/api/v1/alerts/77/acknowledge").status_code == 404


EVENTS = ("high", "high", "low", "nan", "again", "attempt", "restart", "tick", "rules", "back")
ACTS = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(1, 90)), max_size=12)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(ACTS)
def test_no_order_of_frames_attempts_restarts_and_clocks_opens_a_fingerprint_twice_or_loses_an_end(
    sqlite_url, clock, serve, acts
):
    clock.now_ms = EPOCH_MS
    api, step, attempts = serve(sqlite_url, webhook_url=NOBODY), 0, 1
    run = f"run{len(api.get('/api/v1/runs').json())}"
    sender = a_run(api, run=run, attempt=f"{run}-1")
    put(api, HIGH, {"name": "loss_gone", "metric": "loss", "absent": 20})
    last = []

    for act, amount in acts:
        clock.now_ms += -amount * 500 if act == "back" else amount * 200
        if act in ("high", "low", "nan"):
            step += amount
            value = {"high": 7.0, "low": 1.0, "nan": float("nan")}[act]
            last = [sender.frame(step, [value**2, 1.0], at_ms=clock.now_ms)]
            sender.send(last)
        elif act == "again" and last:
            sender.send(last)
        elif act == "attempt":
            attempts += 1
            sender = a_run(
                api, run=run, attempt=f"{run}-{attempts}", started_at_ms=EPOCH_MS + attempts, start_step=step
            )
            last = []
        elif act == "restart":
            api = sender.api = serve(sqlite_url, webhook_url=NOBODY)
        elif act == "rules":
            put(api, HIGH | {"above": float(amount % 9)})
        else:
            tick(api)
        with api.app.state.services.database.read() as session:
            firing = store.firing(session, sender.run)
        fingerprints = [fingerprint(labels(alert)) for alert in firing]
        assert len(set(fingerprints)) == len(fingerprints)
    sender.send([sender.finish(step + 1)])

    assert all(alert["state"] in ("resolved", "superseded") for alert in alerts(sender))
    with api.app.state.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT run_id, condition, status FROM notifications ORDER BY id").all()
    for group in {row.condition for row in rows}:
        said = [row.status for row in rows if (row.run_id, row.condition) == (run, group)]
        assert said == ["firing", "resolved"] * (len(said) // 2)
