"""What optimizers tell of themselves is judged: the frozen pair, the gap, the removed share, and who steps what."""

import numpy as np
import pytest

from internist.schema.conditions import CONDITION
from tests.server.judged_runs import constant, series, tell

WEIGHT = "blocks.0.attn.qkv.weight"
RANK = 64


def told(metric, value, *, method="", **run):
    one = series(0, metric, WEIGHT, block="blocks.0", fan_in=RANK, fan_out=4 * RANK, method=method)
    return tell([(one, constant(value))], last=200, **run)


@pytest.mark.parametrize(
    ("metric", "value", "severity"),
    [
        ("optimizer.audit", 9e-4, None),
        ("optimizer.audit", 2e-3, "warning"),
        ("optimizer.audit", 2e-2, "critical"),
        ("optimizer.gap_use", 0.49, None),
        ("optimizer.gap_use", 0.6, "warning"),
        ("optimizer.gap_use", 1.2, "critical"),
        ("optimizer.removed_share", 3.9 / RANK**0.5, None),
        ("optimizer.removed_share", 4.1 / RANK**0.5, "warning"),
        ("optimizer.removed_share", 0.999, "warning"),
        ("optimizer.learned_norm", 0.83, None),
        ("optimizer.learned_norm", 0.48, "warning"),
        ("optimizer.learned_rms", 0.47, None),
        ("optimizer.learned_rms", 0.27, "warning"),
        ("optimizer.misrouted", 0.0, None),
        ("optimizer.misrouted", 1.0, "warning"),
    ],
)
def test_each_opens_one_alert_of_its_severity(metric, value, severity):
    fired = told(metric, value).fired()

    assert {change.severity for change in fired} == ({severity} if severity else set())
    assert {change.condition for change in fired} <= set(CONDITION)


@pytest.mark.parametrize("value", [0.004, 1.0])
def test_the_gap_itself_is_shown_and_not_judged(value):
    run = told("optimizer.gap", value)

    assert run.transitions == []
    assert {one.metric: one.condition for one in run.judge.verdicts("r", "a").members} == {"optimizer.gap": "numeric"}


@pytest.mark.parametrize("metric", ["optimizer.audit", "optimizer.gap_use", "optimizer.removed_share"])
def test_a_value_that_is_not_finite_is_violated(metric):
    (fired,) = told(metric, np.nan).fired()

    assert (fired.condition, fired.severity) == ("numeric", "critical")


@pytest.mark.parametrize(
    ("policy", "value", "severity"),
    [("retract", 0.02, None), ("retract", 0.05, "warning"), ("retract", 0.5, "critical"), ("cap", 2e-3, "warning")],
)
def test_a_pair_that_is_followed_may_be_off_by_what_following_promises(policy, value, severity):
    fired = told("optimizer.audit", value, method=f"told by MuonPlusPlus, policy {policy}").fired()

    assert {change.severity for change in fired} == ({severity} if severity else set())


def test_a_misrouted_matrix_is_said_in_words_at_its_first_point_and_resolves_when_it_is_routed():
    law = lambda steps: (steps < 300).astype(float)  # noqa: E731
    run = tell([(series(0, "optimizer.misrouted", WEIGHT, block="blocks.0"), law)], last=600)

    (fired,) = run.fired()
    assert (fired.step, fired.rule, fired.severity) == (0, "matrix_misrouted", "warning")
    assert fired.message == f"{WEIGHT}: a hidden matrix that another algorithm steps, since step 0"
    assert [change.step for change in run.resolved()] == [300]
    assert {v.reason for v in run.judge.verdicts("r", "a").members if v.condition == "routing"} == {
        "on the matrix optimizer"
    }


def test_the_board_shows_it_on_the_spectral_card_and_says_what_to_try():
    run = told("optimizer.misrouted", 1.0)

    board = run.judge.verdicts("run", "attempt")
    card = next(card for card in board.cards if card.name == "spectral")
    assert (card.state, card.drifting, card.title) == ("drifting", 1, "Spectral condition on weights")
    assert board.sentence.startswith(f"spectral - {WEIGHT} is a hidden matrix that another algorithm steps since step")
    assert "split_parameters" in board.sentence


def test_when_an_audit_that_grows_will_warn_is_foretold():
    law = lambda steps: 1e-6 * (steps + 1) ** 1.1  # noqa: E731

    run = tell([(series(0, "optimizer.audit", WEIGHT), law)], last=450)

    assert run.fired() == []
    (verdict,) = [v for v in run.judge.verdicts("r", "a").members if v.condition == "invariance"]
    assert verdict.state == "ok" and "leaves its band near step" in verdict.reason
