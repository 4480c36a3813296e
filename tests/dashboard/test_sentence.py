"""The sentence on top of a run's page, and the cards under it."""

from dataclasses import replace

import pytest

from internist.schema.views import Attempt, Card, Run, Verdict, Verdicts
from internist_dashboard import cards, components, sentence
from internist_dashboard.pages import detail

RUN = Run(
    id="r", project="p", name="n", state="live", state_reason="", created_at_ms=0, last_step=420, last_frame_at_ms=0,
    heartbeat_at_ms=0, server_time_ms=0, steps_per_second=7.0, loss=2.0, learning_rate=1e-3, verdict="drifting",
    sentence="", violated=0, drifting=1, open_alerts=0, series=9, overhead=None, coverage=1.0, config={},
    parametrization="", optimizers=(), attempts=(Attempt("a", 1, None, 1, 1, 0, 0, 420, None),), cursor=1,
)  # fmt: skip
WORST = Verdict(
    condition="attention", state="ok", basis="target", reason="60, at most 100, leaves its band near step 649 if this"
    " goes on", series=3, metric="attention.max_logit", kind="module", subject="blocks.2.attn", index=0, bound="exact",
    block="blocks.2", step=420, value=60.0, ratio=0.6, since_step=None, crossing_step=649,
)  # fmt: skip
SAID = "attention - blocks.2.attn [0] largest logit is 60, leaves its band near step 649 if this goes on. Try: QK-norm."
CARD = Card("attention", "Attention", "", "ok", "target", 8, 0, 0, 2, WORST, (410, 420), (0.1, 0.2))


def board(state="drifting", said=SAID):
    return Verdicts("r", "a", 420, state, said, (CARD,), (), (), 0)


def text(node):
    """All words of a component, in order."""
    if isinstance(node, str):
        return node
    if isinstance(node, (list, tuple)):
        return "".join(text(one) for one in node if one is not None)
    return text(getattr(node, "children", None) or "")


@pytest.mark.parametrize(
    ("state", "reason", "said"),
    [
        ("lost", "nothing has been heard of it for 70 s; its last step was 420", "lostNothing has been heard of it"),
        ("stalled", "step 420 has not moved for 3 min", "stalledStep 420 has not moved"),
        ("failed", "", "failedIt ended at step 420."),
        ("killed", "", "killedIt ended at step 420."),
    ],
)
def test_a_run_that_does_not_live_says_so_before_any_verdict(state, reason, said):
    shown = text(sentence.of_run(replace(RUN, state=state, state_reason=reason), board()))

    assert said in shown
    assert shown.index(said) < shown.index("Last judged at step 420")
    assert "Look at:" in shown


def test_a_finished_run_says_so_and_forecasts_nothing():
    shown = text(sentence.of_run(replace(RUN, state="finished"), board()))

    assert "Finished at step 420" in shown and "blocks.2.attn" in shown
    assert "if this goes on" not in shown and "Try:" not in shown


def test_a_card_that_is_well_says_how_many_of_its_members_are_judged():
    assert "8 of 10 members judged" in text(cards.card(CARD))
    assert "8 members, all judged" in text(cards.card(replace(CARD, not_measured=0)))


def test_a_forecast_is_shown_while_a_run_goes_on_and_the_value_is_in_its_band():
    out = replace(WORST, state="drifting")

    assert "near step 649 if this goes on" in text(cards.card(CARD))
    assert "if this goes on" not in text(cards.card(CARD, is_over=True))
    assert "if this goes on" not in text(cards.card(replace(CARD, state="drifting", drifting=1, worst=out)))


def test_a_card_that_is_not_measured_says_why():
    nothing = replace(CARD, name="dependency", state="not measured", ok=0, not_measured=0, worst=None)
    warming = replace(WORST, state="not measured", reason="warming up")

    assert "sends no activation.spread or activation.lipschitz" in text(cards.card(nothing))
    assert "2 members: warming up" in text(cards.card(replace(CARD, state="not measured", ok=0, worst=warming)))


def test_a_clock_that_is_off_is_told_on_the_badge_and_a_minute_is_not():
    attempt = Attempt("a", 1, None, 1, 1, 0, 0, 10, None)
    off = [replace(RUN, attempts=(replace(attempt, clock_skew_ms=ms),)) for ms in (-7_200_000, 900)]
    badges = [components.run_badge(run) for run in off]

    assert ["its clock is 2 h slow" in badge.title for badge in badges] == [True, False]


def test_a_series_verdict_is_explained_where_the_board_names_it():
    sure = replace(WORST, source="its own values", since_step=310, how_sure="97.6 %: 18 deviations from 41 values")
    told = replace(board(), cards=(replace(CARD, worst=sure),))

    said = text(detail.judged(detail.verdict_of(3, told)))

    assert "its own values" in said and "step 310" in said and "18 deviations from 41 values" in said
    assert detail.judged(detail.verdict_of(4, told)) is None
