"""What an Alertmanager is told: by differences, until it is taken, and again before it would expire."""

from dataclasses import replace
from datetime import datetime

import pytest

from internist_server.alerts.labels import fingerprint, labels, level_of
from internist_server.alerts.outbox import Outbox, entry_of, to_post
from tests.server.test_notify import ALERT

LIFETIME_MS = 240_000
NOW_MS = 1_760_000_100_000


def entry(**changes):
    return entry_of(replace(ALERT, **changes), external_url="http://host:8237")


@pytest.fixture
def outbox():
    return Outbox(lifetime_ms=LIFETIME_MS)


def told(outbox):
    """What is due, as (module, whether it fires), and takes it."""
    due = outbox.due()
    outbox.accept(due)
    return [(one.labels.get("module"), one.ended_at_ms is None) for one in due]


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"subject": "blocks.2"}, "block"),
        ({}, "module"),
        ({"subject": "blocks.2.attn.weight", "kind": "parameter"}, "parameter"),
        ({"subject": "model", "kind": "model", "block": None, "module": None}, "model"),
        ({"subject": "model", "block": None, "module": None}, "model"),
        ({"subject": "group 0", "kind": "group", "block": None, "module": None}, "group"),
        ({"subject": "", "kind": None, "metric": "", "block": None, "module": None}, "run"),
    ],
)
def test_an_alert_says_what_it_is_on(changes, level):
    alert = replace(ALERT, **changes)

    found = labels(alert)

    assert found["level"] == level_of(alert) == level
    assert all(found.values())


def test_a_parameter_is_told_with_its_module_and_its_block():
    found = labels(replace(ALERT, subject="blocks.2.attn.weight", kind="parameter"))

    assert (found["parameter"], found["module"], found["block"]) == (
        "blocks.2.attn.weight", "blocks.2.attn", "blocks.2",
    )  # fmt: skip


def test_a_fingerprint_depends_on_the_labels_alone():
    again = replace(ALERT, id=99, value=3.0, message="worse", closed_step=7)

    assert fingerprint(labels(ALERT)) == fingerprint(labels(again))
    assert fingerprint(labels(ALERT)) != fingerprint(labels(replace(ALERT, subject="blocks.3.attn")))
    assert fingerprint({"a": "bc"}) != fingerprint({"ab": "c"})


def test_the_fingerprint_of_no_labels_is_that_of_prometheus():
    assert fingerprint({}) == "cbf29ce484222325"  # emptyLabelSignature, the offset of FNV-1a


def test_two_alerts_of_the_runs_own_code_are_two():
    notes = [labels(replace(ALERT, condition="user", rule="user", message=said)) for said in ("spike", "disk")]

    assert fingerprint(notes[0]) != fingerprint(notes[1])


def test_what_fires_is_due_until_it_is_taken_and_then_no_more(outbox):
    outbox.see([entry()], runs=None, now_ms=NOW_MS)
    assert outbox.due() == outbox.due() == [entry()]

    assert told(outbox) == [("blocks.2.attn", True)]
    outbox.see([entry()], runs=None, now_ms=NOW_MS + 1)

    assert told(outbox) == []


def test_what_fires_no_more_is_due_as_over_until_it_is_taken(outbox):
    outbox.see([entry()], runs=None, now_ms=NOW_MS)
    told(outbox)

    outbox.see([], runs=None, now_ms=NOW_MS + 5)

    assert [one.ended_at_ms for one in outbox.due()] == [NOW_MS + 5]
    outbox.refresh(now_ms=NOW_MS + 10)
    assert told(outbox) == [("blocks.2.attn", False)]
    outbox.refresh(now_ms=NOW_MS + 20)
    assert told(outbox) == []


def test_an_alert_that_comes_back_before_its_end_was_taken_fires(outbox):
    outbox.see([entry()], runs=None, now_ms=NOW_MS)
    told(outbox)
    outbox.see([], runs=None, now_ms=NOW_MS + 5)

    outbox.see([entry(opened_at_ms=NOW_MS + 6)], runs=None, now_ms=NOW_MS + 6)

    assert told(outbox) == [("blocks.2.attn", True)]


def test_only_the_runs_that_were_looked_at_can_end(outbox):
    outbox.see([entry(), entry(run="r2")], runs=None, now_ms=NOW_MS)
    told(outbox)

    outbox.see([], runs={"r2"}, now_ms=NOW_MS)

    assert [(one.run, one.ended_at_ms) for one in outbox.due()] == [("r2", NOW_MS)]
    told(outbox)
    outbox.refresh(now_ms=NOW_MS)
    assert [one.run for one in outbox.due()] == ["r1"]


def test_a_warning_that_becomes_critical_ends_as_a_warning(outbox):
    outbox.see([entry(severity="warning")], runs={"r1"}, now_ms=NOW_MS)
    told(outbox)

    outbox.see([entry()], runs={"r1"}, now_ms=NOW_MS)

    assert {(one.labels["severity"], one.ended_at_ms) for one in outbox.due()} == {
        ("warning", NOW_MS), ("critical", None),
    }  # fmt: skip


def test_alerts_of_the_same_labels_are_one_since_the_first(outbox):
    outbox.see([entry(opened_at_ms=7, id=2), entry(opened_at_ms=5, id=1)], runs=None, now_ms=NOW_MS)
    (one,) = outbox.due()
    assert one.started_at_ms == 5

    outbox.see([entry(opened_at_ms=7)], runs=None, now_ms=NOW_MS)

    assert [one.ended_at_ms for one in outbox.due()] == [None]


def test_an_end_that_an_alertmanager_has_come_to_by_itself_is_told_no_more(outbox):
    outbox.see([entry()], runs=None, now_ms=NOW_MS)
    outbox.see([], runs=None, now_ms=NOW_MS)

    outbox.refresh(now_ms=NOW_MS + LIFETIME_MS)

    assert outbox.due() == []


def test_what_ended_unseen_is_told_as_over_unless_it_fires_again(outbox):
    outbox.see([entry()], runs=None, now_ms=NOW_MS)

    outbox.recall([entry(), entry(subject="blocks.3.attn")], now_ms=NOW_MS)

    assert told(outbox) == [("blocks.2.attn", True), ("blocks.3.attn", False)]


@pytest.mark.parametrize("skew_ms", [-3_600_000, 0, 3_600_000])
@pytest.mark.parametrize("ended_at_ms", [None, NOW_MS - 10])
def test_no_end_lies_before_its_beginning_whatever_the_clock_of_the_run_said(skew_ms, ended_at_ms):
    one = replace(entry(opened_at_ms=NOW_MS + skew_ms), ended_at_ms=ended_at_ms)

    posted = to_post(one, now_ms=NOW_MS, lifetime_ms=LIFETIME_MS)

    starts, ends = (datetime.fromisoformat(str(posted[name])) for name in ("startsAt", "endsAt"))
    assert starts <= ends
    assert ends.timestamp() * 1000 == (NOW_MS + LIFETIME_MS if ended_at_ms is None else ended_at_ms)


def test_the_band_is_told_in_words_and_numbers():
    told_of = entry(severity="critical").annotations

    assert (told_of["band"], told_of["band_low"], told_of["band_high"]) == ("band 0.002 to 0.01", "0.002", "0.01")
    assert told_of["advice"] == ALERT.advice and told_of["summary"].endswith(ALERT.message)
