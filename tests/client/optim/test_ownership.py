"""Owners by load, and regions as products of runs: pure functions, no processes."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internist.optim.ownership import Region, balanced_owners, newton_schulz_cost, replicated_region


def greatest_load(costs: list[int], owners: list[int] | tuple[int, ...], ranks: int) -> int:
    return max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks))


def test_the_cost_of_an_iteration_is_that_of_its_three_products():
    gram, square, product_ = 2 * 4 * 4 * 6, 2 * 4 * 4 * 4, 2 * 4 * 4 * 6

    assert newton_schulz_cost(4, 6) == newton_schulz_cost(6, 4) == gram + square + product_
    assert newton_schulz_cost(0, 6) == 0


@given(st.lists(st.integers(0, 50), max_size=7), st.integers(1, 3))
def test_the_greatest_load_is_within_four_thirds_of_the_least_possible(costs, ranks):
    best = min(greatest_load(costs, owners, ranks) for owners in product(range(ranks), repeat=len(costs)))

    assert 3 * greatest_load(costs, balanced_owners(costs, ranks), ranks) <= 4 * best


def test_equal_matrices_are_dealt_out_in_order():
    assert balanced_owners([5, 5, 5, 5, 5], 2) == [0, 1, 0, 1, 0]


def test_one_dear_matrix_is_alone_with_its_owner():
    assert balanced_owners([1, 9, 1, 1, 1], 2) == [1, 0, 1, 1, 1]


def test_there_is_no_owner_without_a_rank():
    with pytest.raises(ValueError, match="at least one rank, got 0"):
        balanced_owners([1], 0)


def test_a_region_of_several_boxes_is_cut_and_placed_back():
    whole = torch.arange(12.0).view(6, 2)
    region = Region(
        (3, 2),
        (
            ((slice(0, 2), slice(0, 2)), (slice(0, 2), slice(0, 2))),
            ((slice(5, 6), slice(0, 2)), (slice(2, 3), slice(0, 2))),
        ),
    )
    filled = torch.zeros(6, 2)
    region.place(region.cut(whole), filled)

    assert region.cut(whole).tolist() == [[0, 1], [2, 3], [10, 11]]
    assert filled.tolist() == [[0, 1], [2, 3], [0, 0], [0, 0], [0, 0], [10, 11]]


@pytest.mark.parametrize("shape", [(3, 4), (2, 0), (2, 3, 4)])
def test_a_replicated_region_is_the_whole(shape):
    region = replicated_region(shape)

    assert region.size == torch.Size(shape).numel()
    assert region.cut(torch.ones(shape)).shape == shape
