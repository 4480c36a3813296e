"""The verdict board: roll-ups and sentences that a tired engineer can trust."""

import numpy as np
import pytest

from internist.schema.conditions import CARDS, CONDITION
from internist_server.judge import wording
from internist_server.judge.board import Summary
from internist_server.judge.verdicts import Judge
from tests.server.judged_runs import EVERY, Law, constant, series, tell
from tests.server.test_judge_healthy import SCHEDULES, SHAPES, healthy_run
from tests.server.test_judge_sick import while_wrong, with_law


def test_a_judge_that_has_seen_nothing_says_so():
    board = Judge([], mup=False, every=EVERY).verdicts("run", "attempt")

    assert (board.state, board.sentence, board.step) == ("not measured", "Nothing is judged yet: warming up.", None)
    assert [card.name for card in board.cards] == list(CARDS)
    assert {card.state for card in board.cards} == {"not measured"}
    assert board.members == () and board.blocks == ()


def test_a_young_run_names_what_holds_and_what_is_not_measured_yet():
    board = tell(healthy_run(SHAPES["still"], SCHEDULES["constant"]), last=100).judge.verdicts("run", "attempt")

    assert board.state == "not measured"
    assert board.sentence == (
        "Too little is judged to call it well. "
        "Two of six conditions hold (2 by target); not measured yet: forward, dependency, update, spectral."
    )
    reasons = {verdict.reason for verdict in board.members if verdict.metric == "update.own"}
    assert "warming up: too few points for a baseline" in reasons


def test_during_the_schedules_warm_up_only_what_is_divided_by_the_learning_rate_is_not_judged():
    board = tell(healthy_run(SHAPES["still"], SCHEDULES["long warm-up"]), last=700).judge.verdicts("run", "attempt")

    reasons = {v.metric: v.reason for v in board.members if v.condition in ("forward", "update")}
    assert reasons["update.own"] == "warming up: the learning rate still rises"
    assert reasons["activation.rms"] == "1.0x its baseline"


def test_a_violation_is_the_sentence_and_heads_the_members_and_the_blocks():
    laws = with_law(
        healthy_run(SHAPES["still"], SCHEDULES["constant"]),
        while_wrong(30.0, until=9999),
        metric="update.own",
        subject="blocks.2.attn",
    )

    board = tell(laws, last=450).judge.verdicts("run", "attempt", limit=5)

    assert board.sentence == "update - blocks.2.attn moved 30x its baseline since step 400. Try: its learning rate."
    assert len(board.members) == 5 and board.total > 100
    worst = board.members[0]
    assert (worst.state, worst.subject, worst.basis, worst.since_step) == (
        "violated",
        "blocks.2.attn",
        "baseline",
        400,
    )
    assert worst.ratio == pytest.approx(30, rel=1e-3)
    assert board.blocks[0].name == "blocks.2" and board.blocks[0].states["update"] == "violated"
    card = next(card for card in board.cards if card.name == "update")
    assert (card.state, card.violated, card.worst) == ("violated", 1, worst)


def test_counts_of_a_card_are_those_of_its_members():
    board = tell(healthy_run(SHAPES["still"], SCHEDULES["constant"]), last=1000).judge.verdicts("run", "attempt")

    for card in board.cards:
        total = card.ok + card.drifting + card.violated + card.not_measured
        expected = sum(1 for v in board.members if _card(v.condition) == card.name)
        assert total == expected


def _card(condition: str) -> str:
    return CONDITION[condition].card


def test_members_are_sorted_worst_first_with_own_causes_before_what_follows_from_them():
    laws = with_law(
        healthy_run(SHAPES["still"], SCHEDULES["constant"]), while_wrong(8.0, until=9999), metric="update.own"
    )
    laws = with_law(laws, while_wrong(50.0, until=9999), metric="activation.rms")

    board = tell(laws, last=450).judge.verdicts("run", "attempt")

    out = [v.condition for v in board.members if v.state == "violated"]
    assert out == ["update"] * 18 + ["forward"] * 6
    ranks = ["violated", "drifting", "ok", "not measured"]
    assert [v.state for v in board.members] == sorted((v.state for v in board.members), key=ranks.index)


def test_the_summary_agrees_with_the_board():
    laws = with_law(
        healthy_run(SHAPES["still"], SCHEDULES["constant"]), while_wrong(8.0, until=9999), metric="update.own"
    )
    judge = tell(laws, last=450).judge

    board, summary = judge.verdicts("run", "attempt"), judge.summary()

    assert (summary.state, summary.sentence) == (board.state, board.sentence)
    assert summary.violated == sum(card.violated for card in board.cards) == 18
    assert board.sentence.endswith("17 more violated.")


def test_a_run_is_ok_only_when_half_of_its_conditions_are_judged_and_its_steps_are():
    laws = healthy_run(SHAPES["still"], SCHEDULES["constant"])

    def without(*metrics: str) -> Summary:
        kept = [(one, law) for one, law in laws if not one.metric.startswith(metrics)]
        return tell(kept, last=1000).judge.summary()

    def state_without(*metrics: str) -> str:
        return without(*metrics).state

    assert without("attention").sentence.endswith("nothing to measure so far: attention.")
    assert state_without("nothing") == "ok"
    assert state_without("activation.spread", "attention") == "ok"
    assert state_without("update.") == "not measured"
    assert state_without("activation.") == "ok"
    assert state_without("activation.", "weight.", "attention", "update.operator", "update.abs") == "not measured"


def test_a_sparkline_keeps_the_last_points_of_the_worst_member():
    laws = [(series(0, "activation.rms", "blocks.0", role="block"), while_wrong(8.0, first=600, until=660))]

    cards = tell(laws, last=1200).judge.verdicts("run", "attempt").cards

    forward = next(card for card in cards if card.name == "forward")
    assert len(forward.steps) == len(forward.sparkline) == 64
    assert forward.steps == tuple(range(570, 1210, 10))
    assert dict(zip(forward.steps, forward.sparkline, strict=True))[630] == pytest.approx(3, abs=0.1)


def test_a_nan_is_the_worst_there_is():
    law: Law = lambda steps: np.where(steps < 400, 1.0, np.nan)  # noqa: E731
    laws = healthy_run(SHAPES["still"], SCHEDULES["constant"])
    laws = with_law(laws, while_wrong(30.0, until=9999), metric="update.own", block="blocks.2")

    board = tell([*laws, (series(len(laws), "loss", ""), law)], last=450).judge.verdicts("run", "attempt")

    assert board.sentence.startswith("numeric - model: loss is NaN since step 400.")
    assert board.members[0].value == "nan" and board.members[0].ratio == "inf"
    numeric = next(card for card in board.cards if card.name == "numeric")
    assert (numeric.state, numeric.violated, numeric.sparkline[-1]) == ("violated", 1, "inf")


def test_a_jump_of_the_learning_rate_is_said_in_words():
    laws = [(series(0, "learning_rate", "group 0", group=0), lambda s: 1e-3 * np.where(s < 700, 1, 10))]

    judge = tell(laws, last=720).judge

    assert judge.summary().sentence == (
        "update - learning rate of group 0: rose 10x between two samples since step 700. "
        "Try: the schedule, and what a resume restored."
    )


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (31.2, "31x its baseline"),
        (2.44, "2.4x its baseline"),
        (0.08, "1/12 of its baseline"),
        (0.0, "zero, its baseline is not"),
    ],
)
def test_distances_from_a_baseline_in_words(ratio, said):
    assert wording.standing(metric="update.own", basis="baseline", ratio=ratio, value=1.0, low=None, high=None) == said


@pytest.mark.parametrize(("factor", "first"), [(8.0, 420), (50.0, 410)])
def test_a_verdict_waits_for_its_points_as_its_alert_does_and_what_is_far_out_for_one_less(factor, first):
    laws = [(series(0, "activation.rms", "blocks.0", role="block"), while_wrong(factor, until=9999))]

    assert tell(laws, last=first - 10).judge.summary().state == "not measured"
    assert tell(laws, last=first).judge.summary().state == "violated"


def test_a_constant_run_has_ratios_of_one_and_their_basis():
    told = tell(
        [(series(0, "activation.rms", "b", role="block"), constant(2.0)), (series(1, "loss", ""), constant(3.0))]
    )

    last = told.judgements[-1]
    assert last.ratios.dtype == np.float16 and last.basis.dtype == np.uint8
    assert last.ratios.tolist() == [0, 0] and last.basis.tolist() == [3, 3]
