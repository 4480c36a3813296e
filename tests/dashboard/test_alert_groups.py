"""Alerts that are one event are one line."""

import time
from dataclasses import replace

from internist.schema.alerts import AlertsPage, Delivery
from internist_dashboard.alert_groups import grouped
from internist_dashboard.pages import alerts
from tests.dashboard.test_figures import alert
from tests.dashboard.test_sentence import text

MOST_S = 3.0
"""A thousand alerts are drawn within this, on a machine that is shared; it takes a tenth of it alone."""


def opened(number, *, step, block, state="firing", condition="numeric", run="r"):
    known = replace(alert(step=step), id=number, run=run, condition=condition, block=block, subject=f"{block}.mlp.down")
    return replace(known, state=state, pending_step=step, closed_step=None if state == "firing" else step + 5)


def divergence(size):
    """NaN that begins in the last of 24 blocks and reaches the others within hundreds of steps."""
    return [opened(i, step=2_800 + i * 700 // size, block=f"layers.{23 - i % 24}") for i in range(size)]


def test_one_divergence_is_one_line_that_names_where_it_began():
    (event,) = grouped(reversed(divergence(2_641)))

    assert event.first.subject == "layers.23.mlp.down"
    assert len(event.blocks) == 24
    page = text(alerts.listing(AlertsPage((*event.alerts,), 2_641, 2_641), alerts.Asked()))
    assert "1 open alert" in page
    assert "24 blocks · 2641 series · first layers.23.mlp.down at step 2\u2009800" in page


def test_what_opens_much_later_is_another_event_and_so_is_what_is_over_or_of_another_run():
    early, late = opened(1, step=300, block="a"), opened(2, step=3_000, block="a")
    over, other = opened(3, step=310, block="b", state="resolved"), opened(4, step=300, block="a", run="q")

    assert [[one.id for one in group.alerts] for group in grouped([early, late, over, other])] == [[1], [2], [4], [3]]


def test_what_goes_on_and_is_critical_comes_first():
    mild = replace(opened(1, step=300, block="a"), severity="warning", opened_at_ms=9)
    grave = replace(opened(2, step=300, block="a", condition="update"), opened_at_ms=5)

    assert [group.first.id for group in grouped([mild, grave])] == [2, 1]


def test_an_event_is_acknowledged_as_a_whole_and_says_by_whom():
    seen = replace(opened(1, step=300, block="a"), acknowledged_by="ada")
    (event,) = grouped([seen, opened(2, step=310, block="b")])
    assert event.unseen == [2]

    page = text(alerts.listing(AlertsPage((seen,), 1, 1), alerts.Asked()))
    assert "acknowledged by ada" in page


def test_a_thousand_alerts_are_drawn_in_a_moment():
    many = divergence(1_000)
    began = time.perf_counter()

    alerts.listing(AlertsPage((*many,), 1_000, 1_000), alerts.Asked())

    assert time.perf_counter() - began < MOST_S


def test_a_receiver_that_does_not_listen_is_named_with_what_it_answered():
    failing = Delivery(1, "r", "update", "firing", "http://pager", "failing", 3, 0, 9, None, None, "answered 503")
    lost = replace(failing, notification=2, state="given up", given_up_at_ms=5)

    shown = AlertsPage((opened(1, step=300, block="a"),), 1, 1)
    page = text(alerts.listing(shown, alerts.Asked(), (), [failing, lost]))

    assert "http://pager 2 messages not delivered, 1 given up" in page and "answered 503" in page


def test_an_event_says_its_subject_and_its_step_once():
    one = replace(alert(step=300), subject="blocks.2.attn", index=0)
    said = "blocks.2.attn [0]: attention.max_logit is 166, over 100, since step 300"

    page = text(alerts.listing(AlertsPage((replace(one, message=said),), 1, 1), alerts.Asked()))

    assert "attention.max_logit is 166, over 100" in page
    assert page.count("300") == 1 and page.count("blocks.2.attn") == 1
