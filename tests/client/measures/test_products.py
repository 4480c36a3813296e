"""Products of norms along a branch, worked by hand."""

import math

import pytest

from internist.measures.products import branch_product, first_order, largest, second_order


def test_two_stages_are_held_against_one_over_the_depth():
    assert branch_product([2.0, 3.0], alpha=0.25, depth=4) == 6.0
    assert first_order([2.0, 3.0], 0, 0.5, alpha=0.25, depth=4) == 0.5 * 3.0
    assert first_order([2.0, 3.0], 1, 0.5, alpha=0.25, depth=4) == 2.0 * 0.5
    assert second_order([2.0, 3.0], [0.5, 0.1], alpha=0.25, depth=4) == pytest.approx(0.05)


def test_one_stage_is_held_against_the_root_of_the_depth_and_its_update_against_the_depth():
    assert branch_product([2.0], alpha=0.5, depth=4) == 2.0
    assert first_order([2.0], 0, 0.1, alpha=0.5, depth=4) == pytest.approx(0.2)
    assert second_order([2.0], [0.1], alpha=0.5, depth=4) is None


def test_of_three_stages_the_two_updates_count_that_weigh_most():
    # pairs: 0.1 * 0.2 * 5, 0.1 * 3 * 0.4, 2 * 0.2 * 0.4
    assert second_order([2.0, 3.0, 5.0], [0.1, 0.2, 0.4], alpha=1.0, depth=1) == pytest.approx(0.16)


def test_nan_is_a_value():
    assert math.isnan(largest([1.0, math.nan]))
    assert math.isnan(largest([math.nan, 1.0]))
    assert math.isnan(branch_product([math.nan, 1.0], alpha=1.0, depth=2))
