"""A real Alertmanager is told of what fires: it routes, silences, inhibits and resolves by our labels."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from internist.schema.alerts import Alert
from internist_server.alerts.alertmanager import BATCH, TIMEOUT_S, Pusher
from internist_server.alerts.labels import fingerprint, labels
from internist_server.clocks import system_clock_ms
from tests.server.alertmanagers import DEADLINE_S, alertmanager_process, free_port, inbox
from tests.server.processes import server_process
from tests.server.sending import Sender
from tests.server.sick_runs import EVERY, faulty_block, small_model, values_at
from tests.server.test_notify import ALERT

pytestmark = pytest.mark.alertmanager

EXAMPLE = Path(__file__).parents[2] / "examples" / "alertmanager.yml"
FIRST, LAST = 1000, 1100
REQUESTS = 12
"""That a run sends while an Alertmanager does not answer: each would take its whole patience if it waited for it."""
END_WITHIN_S = 2.0
"""From the end of a run to the end of its alerts where people see it."""


def train(api):
    """A run whose block 1 falls ill at step 1000, measured up to now."""
    sender = Sender(api)
    now_ms = system_clock_ms()
    sender.send(sender.declare(small_model()))
    sender.send([measured(sender, step, now_ms=now_ms) for step in range(0, FIRST + 50, EVERY)])
    return sender


def measured(sender, step, *, now_ms):
    """A frame of a run whose block 1 is ill from step 1000 on, and which now is at step 1050."""
    change = faulty_block(1, first=FIRST, last=LAST, feature=False)
    return sender.frame(step, values_at(step, change), at_ms=now_ms - 10 * (FIRST + 50 - step))


def ends_at(alert):
    return datetime.fromisoformat(alert["endsAt"])


@contextmanager
def pushing(url: str, read: Callable[[], list[Alert]], *, ended: tuple[Alert, ...] = (), refresh_s: float = 60.0):
    """A thread that tells one Alertmanager of what `read` says fires."""
    pusher = Pusher(
        url,
        read_firing=lambda runs: [one for one in read() if runs is None or one.run in runs],
        read_ended=lambda since_ms: [one for one in ended if (one.closed_at_ms or 0) >= since_ms],
        external_url="http://host:8237",
        refresh_s=refresh_s,
        clock=system_clock_ms,
    )
    pusher.start()
    try:
        yield pusher
    finally:
        pusher.stop()
        pusher.join(DEADLINE_S)
        assert not pusher.is_alive()


@pytest.fixture
def fired() -> Alert:
    """An alert that has just begun to fire."""
    return replace(ALERT, opened_at_ms=system_clock_ms())


@pytest.fixture
def alertmanager(alertmanager_program, tmp_path) -> Iterator:
    """An Alertmanager with the configuration of the examples, as it is."""
    with alertmanager_process(alertmanager_program, tmp_path, EXAMPLE) as running:
        yield running


def test_an_alert_arrives_with_its_labels_and_the_run_s_page(alertmanager, tmp_path):
    with server_process(
        str(tmp_path / "a.db"), tmp_path, INTERNIST_ALERTMANAGER_URL=alertmanager.address,
        INTERNIST_EXTERNAL_URL="http://board/",
    ) as server:  # fmt: skip
        train(server)

        (alert,) = alertmanager.await_alerts(lambda found: found, "an alert")
        (ours,) = server.get("/api/v1/alerts").json()["alerts"]

    told = alert["labels"]
    assert told == labels(Alert(**ours))
    assert alert["fingerprint"] == fingerprint(told)
    assert (told["alertname"], told["severity"], told["level"]) == ("update_out_of_band", "critical", "module")
    assert (told["run"], told["project"], told["block"], told["module"]) == ("run1", "tests", "blocks.1", "blocks.1.fc")
    assert {"summary", "value", "band", "advice"} <= set(alert["annotations"])
    assert alert["generatorURL"] == "http://board/runs/run1"
    assert alert["status"]["state"] == "active"


def test_its_own_silence_mutes_an_alert(alertmanager, fired):
    alertmanager.silence(run=fired.run, block="blocks.2")

    with pushing(alertmanager.address, lambda: [fired, replace(fired, block="blocks.3", subject="blocks.3.attn")]):
        found = alertmanager.await_alerts(lambda found: len(found) == 2, "two alerts")

    states = {one["labels"]["block"]: (one["status"]["state"], len(one["status"]["silencedBy"])) for one in found}
    assert states == {"blocks.2": ("suppressed", 1), "blocks.3": ("active", 0)}


def test_the_end_of_a_run_ends_its_alerts_where_people_see_them(alertmanager_program, tmp_path):
    with (
        inbox(tmp_path) as mail,
        alertmanager_process(alertmanager_program, tmp_path, mail.config) as alertmanager,
        server_process(str(tmp_path / "a.db"), tmp_path, INTERNIST_ALERTMANAGER_URL=alertmanager.address) as server,
    ):
        sender = train(server)
        assert mail.await_status("firing")["commonLabels"]["run"] == "run1"

        began = time.monotonic()
        sender.send([sender.finish(FIRST + 50)])
        body = mail.await_status("resolved")
        took_s = time.monotonic() - began

    assert body["commonLabels"]["module"] == "blocks.1.fc"
    assert took_s < END_WITHIN_S
    assert mail.statuses() == ["firing", "resolved"]


def test_a_server_that_is_killed_and_started_again_keeps_its_alerts_firing(alertmanager_program, tmp_path):
    with inbox(tmp_path) as mail, alertmanager_process(alertmanager_program, tmp_path, mail.config) as alertmanager:
        told = {"INTERNIST_ALERTMANAGER_URL": alertmanager.address, "INTERNIST_ALERTMANAGER_REFRESH_S": "30"}
        with server_process(str(tmp_path / "a.db"), tmp_path, **told) as server:
            sender = train(server)
            (before,) = alertmanager.await_alerts(lambda found: found, "an alert")
        with server_process(str(tmp_path / "a.db"), tmp_path, **told) as server:
            (after,) = alertmanager.await_alerts(
                lambda found: found and ends_at(found[0]) > ends_at(before), "the alert again"
            )
            assert (after["labels"], after["startsAt"]) == (before["labels"], before["startsAt"])
            assert "resolved" not in mail.statuses()

            sender.api = server
            sender.send([sender.finish(FIRST + 50)])

            mail.await_status("resolved")


def test_what_was_over_while_the_server_was_down_is_over_when_it_is_back(alertmanager, fired):
    with pushing(alertmanager.address, lambda: [fired]):
        alertmanager.await_alerts(lambda found: found, "an alert")
    over = replace(fired, state="resolved", closed_at_ms=system_clock_ms())

    with pushing(alertmanager.address, list, ended=(over,)):
        alertmanager.await_alerts(lambda found: not found, "its end")


def test_what_is_told_again_does_not_expire_and_what_is_not_does(alertmanager, fired):
    with pushing(alertmanager.address, lambda: [fired], refresh_s=1.0):
        (first,) = alertmanager.await_alerts(lambda found: found, "an alert")
        once_over = ends_at(first) + timedelta(seconds=1)
        (last,) = alertmanager.await_alerts(
            lambda found: not found or datetime.fromisoformat(found[0]["updatedAt"]) > once_over, "a second life"
        )
        assert last["startsAt"] == first["startsAt"]

    alertmanager.await_alerts(lambda found: not found, "the end of what nobody tells of")


def test_one_that_does_not_answer_holds_up_nobody_and_is_told_when_it_does(alertmanager_program, tmp_path):
    port = free_port()
    silent = socket.create_server(("127.0.0.1", port))  # takes connections, and never answers
    with (
        alertmanager_process(alertmanager_program, tmp_path, EXAMPLE) as other,
        server_process(
            str(tmp_path / "a.db"), tmp_path, INTERNIST_ALERTMANAGER_URL=f"http://127.0.0.1:{port}, {other.address}",
            INTERNIST_ALERTMANAGER_REFRESH_S="5",
        ) as server,
    ):  # fmt: skip
        sender = train(server)
        (elsewhere,) = other.await_alerts(lambda found: found, "an alert at the other one")
        began = time.monotonic()
        for place in range(REQUESTS):
            sender.send([measured(sender, FIRST + 50 + place, now_ms=system_clock_ms())])
        assert time.monotonic() - began < REQUESTS * TIMEOUT_S / 2

        silent.close()
        with alertmanager_process(alertmanager_program, tmp_path, EXAMPLE, port=port) as late:
            (alert,) = late.await_alerts(lambda found: found, "the alert, late")

    assert (alert["labels"], alert["startsAt"]) == (elsewhere["labels"], elsewhere["startsAt"])


def test_a_batch_that_is_refused_does_not_keep_others_from_theirs_and_is_told_again(tmp_path, fired):
    many = [replace(fired, subject=f"blocks.{place}.attn") for place in range(BATCH + 1)]

    with inbox(tmp_path, failures=[400]) as mail, pushing(mail.url, lambda: many):
        bodies = mail.await_bodies(3)

    assert [len(body) for body in bodies] == [BATCH, 1, BATCH]
    assert [one["labels"] for one in bodies[2]] == [one["labels"] for one in bodies[0]]


def on(fired, **changes):
    """An alert on another place, of the same run."""
    return replace(fired, **changes)


def await_suppressed(alertmanager, alerts, expected):
    """Which of these are inhibited, as places in the list, once those that are expected are: it takes a moment."""
    keys = [fingerprint(labels(alert)) for alert in alerts]

    def places(found):
        muted = {one["fingerprint"] for one in found if one["status"]["inhibitedBy"]}
        return [place for place, key in enumerate(keys) if key in muted]

    def holds(found):
        return len(found) == len(alerts) and set(expected) <= set(places(found))

    with pushing(alertmanager.address, lambda: alerts):
        return places(alertmanager.await_alerts(holds, f"{expected} of {len(alerts)} alerts are inhibited"))


def test_by_the_example_the_narrower_place_is_told_by_the_wider_one(alertmanager, fired):
    weight = on(fired, condition="spectral_weight", rule="weight_out_of_band", cause="weight", metric="weight.rms")
    block = on(weight, subject="blocks.2", module="blocks.2")
    parameter = on(weight, subject="blocks.2.attn.weight", kind="parameter")
    elsewhere = on(weight, subject="blocks.3.attn", module="blocks.3.attn", block="blocks.3")
    alerts = [block, weight, parameter, elsewhere, on(weight, run="r2")]

    assert await_suppressed(alertmanager, alerts, [1, 2]) == [1, 2]
    whole = on(weight, subject="model", kind="model", block=None, module=None)
    assert await_suppressed(alertmanager, [whole, *alerts], [1, 2, 3, 4]) == [1, 2, 3, 4]


def test_by_the_example_a_parameter_is_told_by_its_module(alertmanager, fired):
    parameter = on(fired, subject="blocks.2.attn.weight", kind="parameter")

    assert await_suppressed(alertmanager, [fired, parameter, on(parameter, module="blocks.2.mlp")], [1]) == [1]


def test_by_the_example_no_effect_on_a_block_hides_its_cause_in_a_layer(alertmanager, fired):
    effect = on(fired, subject="blocks.2", module="blocks.2", metric="update.feature", cause="feature")
    forward = on(effect, condition="forward", rule="forward_out_of_band", metric="activation.rms")

    assert await_suppressed(alertmanager, [fired, effect, forward], [1, 2]) == [1, 2]


def test_by_the_example_a_lost_run_tells_for_all_of_it(alertmanager, fired):
    lost = on(
        fired, rule="run_lost", condition="run_lost", cause="run", kind=None, subject="", module=None, block=None,
        metric="",
    )  # fmt: skip

    assert await_suppressed(alertmanager, [lost, fired, on(fired, run="r2")], [1]) == [1]


def test_by_the_example_alerts_go_where_their_labels_say(alertmanager, fired):
    loud = on(fired, run="r2", project="production-7b")
    end = on(fired, rule="run_failed", condition="run_failed", cause="run", kind=None, subject="", run="r3")

    with pushing(alertmanager.address, lambda: [fired, loud, end, on(fired, run="r4", severity="info")]):
        found = alertmanager.await_alerts(lambda found: len(found) == 4, "four alerts")

    assert {one["labels"]["run"]: [to["name"] for to in one["receivers"]] for one in found} == {
        "r1": ["training"], "r2": ["on-call"], "r3": ["jobs"], "r4": ["nobody"],
    }  # fmt: skip


def test_the_example_matches_by_labels_that_alerts_have(fired):
    known = {*labels(replace(fired, index=1)), "parameter", "group", "note"}
    example = yaml.safe_load(EXAMPLE.read_text())
    matchers = [one for route in example["route"]["routes"] for one in route["matchers"]]
    matchers += [
        one for rule in example["inhibit_rules"] for side in ("source", "target") for one in rule[f"{side}_matchers"]
    ]
    equal = {name for rule in example["inhibit_rules"] for name in rule["equal"]}

    assert {one.split()[0] for one in matchers} | equal | set(example["route"]["group_by"]) <= known


def test_the_page_lists_every_label_and_annotation(fired):
    page = (EXAMPLE.parents[1] / "docs" / "alertmanager.md").read_text()
    told = {*labels(replace(fired, index=1)), "parameter", "group", "note"}

    assert [name for name in told if f"`{name}`" not in page] == []


def test_changes_are_told_without_waiting_for_the_next_refresh(alertmanager, fired):
    current = [fired]

    with pushing(alertmanager.address, lambda: list(current), refresh_s=3600.0) as pusher:
        alertmanager.await_alerts(lambda found: found, "an alert")
        current.clear()
        pusher.changed("another run")
        pusher.changed(fired.run)

        alertmanager.await_alerts(lambda found: not found, "its end")
