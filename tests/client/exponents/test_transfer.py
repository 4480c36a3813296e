import math

import pytest

from internist.scaling.transfer import Sizes, Transfer

ADAM, MUON = Transfer("adam", "adam", declared=True), Transfer("matrix", "adam", declared=True)
UNDECLARED = Transfer("adam", "adam", declared=False)
SIZES = Sizes(width=4.0, depth=8.0, head_width=1.0)


@pytest.mark.parametrize("transfer", [ADAM, MUON])
@pytest.mark.parametrize("metric", ["activation.rms_max", "update.own", "update.operator_norm", "weight.operator_norm"])
def test_under_mup_nothing_of_a_hidden_layer_may_grow_with_width_or_depth(transfer, metric):
    low, high = transfer.reach(metric, "hidden", SIZES)

    assert high == pytest.approx(0.0) and low <= 0.0


def test_a_branch_contributes_the_inverse_of_the_depth():
    assert ADAM.reach("block.contribution", "residual", SIZES) == pytest.approx((-3.0, -3.0))


def test_logits_may_be_smaller_by_the_root_of_the_width_and_never_larger():
    assert ADAM.reach("activation.rms", "head", SIZES) == pytest.approx((-1.0, 0.0))


def test_attention_logits_follow_the_width_of_a_head_and_not_that_of_the_model():
    wider_heads = Sizes(width=4.0, depth=1.0, head_width=4.0)

    assert ADAM.reach("attention.max_abs_logit", "attention", SIZES) == pytest.approx((0.0, 0.0))
    assert ADAM.reach("attention.max_abs_logit", "attention", wider_heads) == pytest.approx((-1.0, 0.0))


def test_a_run_that_declares_nothing_may_grow_as_power_counting_says():
    low, high = UNDECLARED.reach("update.own", "hidden", Sizes(4.0, 1.0, 1.0))

    assert low <= 0.0 and high == pytest.approx(math.log2(4.0))


def test_two_models_of_one_size_may_differ_by_nothing():
    for metric, role in (("update.feature", "residual"), ("weight.head_norm", "head"), ("activation.rms", "head")):
        assert UNDECLARED.reach(metric, role, Sizes(1.0, 1.0, 1.0)) == (0.0, 0.0)
