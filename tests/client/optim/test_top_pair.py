import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internist.optim.top_pair import TOLERANCE, _top_by_squaring, pair_residual, top_pair, warm_pair

ROUNDING = 3e-6
"""Relative, of a float32 singular value against one in float64."""

SHAPES = [(1, 40, 40), (3, 96, 32), (2, 32, 200), (2, 300, 260), (2, 1, 7), (2, 7, 1), (4, 5, 3)]


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def singular_values(matrices):
    return torch.linalg.svdvals(matrices.double())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pair_is_that_of_the_svd(shape):
    matrices = gaussian(*shape)
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)

    pair = top_pair(matrices)

    torch.testing.assert_close(pair.sigma.double(), s[:, 0], rtol=ROUNDING, atol=0)
    assert pair.residual.max() <= TOLERANCE
    same_sign = (pair.u * u[:, :, 0]).sum(1).sign()
    gap = (1 - (s[:, 1] / s[:, 0]).max()).item() if s.shape[1] > 1 else 1.0
    for found, expected in ((pair.u, u[:, :, 0]), (pair.v, vh[:, 0])):
        assert (same_sign.unsqueeze(1) * found - expected).norm(dim=1).max() < TOLERANCE / gap


@pytest.mark.parametrize("shape", [(3, 96, 32), (2, 32, 200), (2, 300, 260)])
def test_what_lies_beneath_is_the_second_singular_value(shape):
    matrices = gaussian(*shape)
    pair = top_pair(matrices)

    below = top_pair(matrices, frozen=(pair.u, pair.v))

    torch.testing.assert_close(below.sigma.double(), singular_values(matrices)[:, 1], rtol=1e-5, atol=0)
    assert (below.v * pair.v).sum(1).abs().max() < 1e-5


@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([1e-12, 1.0, 1e8])
)
@settings(max_examples=40, deadline=None)
def test_it_is_an_estimate_from_below_that_scales(batch, rows, columns, seed, size):
    matrices = gaussian(batch, rows, columns, seed=seed) * size

    pair = top_pair(matrices)

    exact = singular_values(matrices)[:, 0]
    assert (pair.sigma <= exact * (1 + ROUNDING)).all()
    assert (pair.sigma >= exact * (1 - TOLERANCE)).all()
    transposed = top_pair(matrices.mT)
    torch.testing.assert_close(transposed.sigma, pair.sigma, rtol=2 * TOLERANCE, atol=0)


def test_a_narrow_gap_is_resolved():
    q, _ = torch.linalg.qr(gaussian(200, 200, dtype=torch.float64))
    p, _ = torch.linalg.qr(gaussian(200, 200, seed=1, dtype=torch.float64))
    values = torch.linspace(0.99, 0.1, 200, dtype=torch.float64)
    values[0] = 1.0
    matrix = (q @ torch.diag(values) @ p.T).float().unsqueeze(0)

    pair = top_pair(matrix)

    assert pair.residual.item() <= TOLERANCE
    assert abs(pair.sigma.item() - 1.0) < 1e-6
    assert (pair.v[0].double() @ p[:, 0]).abs().item() > 1 - 1e-4


def test_a_warm_start_follows_a_slow_change():
    matrix = gaussian(1, 128, 128) / math.sqrt(128)
    pair = top_pair(matrix)
    below = top_pair(matrix, frozen=(pair.u, pair.v))
    worst, second = 0.0, below.v
    for step in range(20):
        matrix = matrix + 0.01 * gaussian(1, 128, 128, seed=step) / math.sqrt(128)
        exact = top_pair(matrix)
        below = warm_pair(matrix, second, frozen=(exact.u, exact.v), seed=step)
        second = below.v
        worst = max(worst, 1 - (below.sigma.double() / singular_values(matrix)[:, 1]).item())

    assert -ROUNDING < worst < 0.01


def test_a_start_that_is_orthogonal_to_the_top_finds_it():
    matrix = torch.diag(torch.linspace(2.0, 0.5, 8)).unsqueeze(0)
    start = torch.zeros(1, 8)
    start[0, 3] = 1.0

    assert abs(warm_pair(matrix, start, rounds=4).sigma.item() - 2.0) < 2e-3


def test_the_same_call_gives_the_same_bits_and_leaves_the_global_generator_alone():
    matrices = gaussian(2, 40, 30)
    state = torch.get_rng_state()

    assert torch.equal(top_pair(matrices).v, top_pair(matrices).v)
    first, again = (warm_pair(matrices, torch.zeros(2, 30), seed=3).v for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


def test_a_bad_matrix_spoils_only_itself():
    matrices = gaussian(4, 12, 9)
    matrices[0], matrices[1, 0, 0], matrices[2, 3, 3] = 0.0, math.nan, math.inf

    for pair in (top_pair(matrices), warm_pair(matrices, torch.zeros(4, 9), rounds=9)):
        assert pair.sigma[0] == 0 and pair.residual[0] == 0
        assert pair.sigma[1:3].isnan().all() and pair.v[1:3].isnan().all()
        torch.testing.assert_close(pair.sigma[3].double(), singular_values(matrices[3])[0], rtol=ROUNDING, atol=0)


def test_rank_one_has_nothing_beneath():
    matrix = torch.outer(gaussian(9), gaussian(5, seed=1)).unsqueeze(0)
    pair = top_pair(matrix)

    assert top_pair(matrix, frozen=(pair.u, pair.v)).sigma.item() < 1e-6 * pair.sigma.item()


def test_equal_top_values_give_the_value_and_some_vector_of_the_plane():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 0.5, 0.2])).unsqueeze(0)
    pair = top_pair(matrix)

    assert abs(pair.sigma.item() - 1) < ROUNDING and pair.residual.item() < TOLERANCE
    assert abs(top_pair(matrix, frozen=(pair.u, pair.v)).sigma.item() - 1) < ROUNDING


def test_the_residual_is_zero_for_the_pair_and_grows_with_a_turn():
    matrix = torch.diag(torch.tensor([2.0, 1.0])).unsqueeze(0).double()
    right = torch.tensor([[1.0, 0.0]]).double()
    turned = torch.tensor([[math.cos(0.1), math.sin(0.1)]]).double()

    assert pair_residual(matrix, right, right, torch.tensor([2.0])).item() == 0
    by_hand = math.hypot(2 * math.cos(0.1) - 2 * math.cos(0.1), math.sin(0.1) - 2 * math.sin(0.1)) / 2
    assert pair_residual(matrix, turned, turned, torch.tensor([2.0])).item() == pytest.approx(by_hand)


def test_squaring_finds_what_the_eigenvalue_routine_does():
    half = gaussian(3, 20, 8, dtype=torch.float64)
    gram = half.mT @ half

    top = _top_by_squaring(gram)

    expected = torch.linalg.eigh(gram).eigenvectors[:, :, -1]
    assert ((top * expected).sum(1).abs() - 1).abs().max() < 1e-9


@pytest.mark.parametrize("bad", [torch.ones(3, 3), torch.ones(0, 3, 3), torch.ones(1, 2, 2, dtype=torch.int64)])
def test_other_things_are_refused(bad):
    with pytest.raises(ValueError, match="expected a batch"):
        top_pair(bad)


def test_a_start_of_another_shape_and_no_rounds_are_refused():
    with pytest.raises(ValueError, match="expected start vectors"):
        top_pair(torch.ones(1, 2, 3), start=torch.ones(1, 2))
    with pytest.raises(ValueError, match="at least one round"):
        warm_pair(torch.ones(1, 2, 3), torch.ones(1, 3), rounds=0)


def test_a_warm_start_of_what_is_not_finite_or_zero_says_so():
    broken = torch.ones(1, 20, 20)
    broken[0, 3, 3] = torch.nan
    assert warm_pair(broken, torch.ones(1, 2, 20)).sigma.isnan().all()
    assert warm_pair(torch.zeros(1, 20, 20), torch.ones(1, 2, 20)).sigma.item() == 0.0
