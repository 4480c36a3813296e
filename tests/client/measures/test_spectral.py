"""Spectral norms: by hand, against the singular values in float64 over many spectra, and what is not a number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from internist.measures import spectral
from internist.measures.spectral import operator_norm, spectral_norm, stable_rank

EXACT = 1e-6
"""The documented error of `gram`: float32 products and eigenvalues."""

ESTIMATE = 0.01
"""The documented error of Lanczos; it comes from below."""

ROUNDING = 1e-5
"""Float32 products over a few hundred entries."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def top(weight: Tensor) -> float:
    return torch.linalg.svdvals(weight.double())[0].item()


def with_spectrum(values: Tensor, fan_out: int, fan_in: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix with these singular values, and its right vectors as columns."""
    left, _ = torch.linalg.qr(random(fan_out, len(values), seed=seed))
    right, _ = torch.linalg.qr(random(fan_in, len(values), seed=seed + 1))
    return left * values @ right.t(), right


SPECTRA = {
    "gaussian": lambda size: torch.linalg.svdvals(random(size, size)),
    "power law": lambda size: torch.arange(1, size + 1) ** -0.5,
    "linear": lambda size: torch.linspace(1, 0, size),
    "flat": lambda size: torch.linspace(1.1, 0.9, size),
    "orthogonal": lambda size: torch.ones(size),
    "spiked": lambda size: torch.cat((torch.tensor([1.1]), random(size - 1).abs().clamp(max=1))),
    "near-degenerate top": lambda size: torch.cat((torch.tensor([1.02, 1.01, 1.0]), torch.linspace(0.99, 0, size - 3))),
    "rank one": lambda size: torch.cat((torch.ones(1), torch.zeros(size - 1))),
    "rank ten": lambda size: torch.cat((torch.linspace(1, 0.5, 10), torch.zeros(size - 10))),
}


def test_a_diagonal_by_hand():
    assert spectral_norm(torch.diag(torch.tensor([1.0, -3.0, 2.0]))).norm.item() == pytest.approx(3.0)
    assert spectral_norm(torch.diag(torch.linspace(-5, 4, 300))).norm.item() == pytest.approx(5.0, rel=ESTIMATE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (256, 256), (40, 700), (700, 40)])
def test_small_matrices_are_exact(shape):
    weight = random(*shape)

    found = spectral_norm(weight)
    assert found.norm.item() == pytest.approx(top(weight), rel=EXACT)
    assert (found.method, found.right) == ("gram", None)
    assert found.norm.dtype == torch.float32


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("shape", [(200, 200), (120, 200)])
def test_small_matrices_are_exact_whatever_their_spectrum(values, shape):
    weight, _ = with_spectrum(values(min(shape)), *shape)

    assert spectral_norm(weight).norm.item() == pytest.approx(top(weight), rel=EXACT)


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("shape", [(300, 300), (300, 500), (500, 260)])
def test_large_matrices_are_within_one_percent_from_below_whatever_their_spectrum(values, shape):
    for seed in range(3):
        weight, _ = with_spectrum(values(min(shape)), *shape, seed=seed)
        exact = top(weight)

        cold = spectral_norm(weight)
        assert exact * (1 - ESTIMATE) <= cold.norm.item() <= exact * (1 + ROUNDING)
        assert cold.method == "lanczos-32"
        warm = spectral_norm(weight, start=cold.right)
        assert exact * (1 - ESTIMATE) <= warm.norm.item() <= exact * (1 + ROUNDING)
        assert warm.method == "lanczos-20"


def test_many_cold_starts_stay_within_one_percent():
    for seed in range(40):
        weight = random(260, 260, seed=seed)

        assert spectral_norm(weight).norm.item() >= top(weight) * (1 - ESTIMATE)


def test_the_right_vector_is_the_singular_vector():
    weight, vectors = with_spectrum(torch.cat((torch.tensor([2.0]), torch.linspace(1, 0, 299))), 400, 300)

    right = spectral_norm(weight).right
    assert right is not None
    assert abs(torch.dot(right, vectors[:, 0]).item()) == pytest.approx(1.0, rel=ROUNDING)


@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
def test_a_drifting_matrix_is_followed_by_warm_starts(shape):
    weight, right = random(*shape), None

    for step in range(12):
        found = spectral_norm(weight, start=right)
        assert found.norm.item() == pytest.approx(top(weight), rel=ESTIMATE)
        right, weight = found.right, weight + 0.05 * random(*shape, seed=step + 1)


@pytest.mark.parametrize("gap", [0.01, 0.02, 0.05, 0.3])
def test_a_warm_start_on_what_is_now_the_second_vector_finds_the_first(gap):
    for seed in range(5):
        weight, vectors = with_spectrum(torch.cat((torch.tensor([1 + gap]), torch.linspace(1, 0, 299))), 300, 300, seed)

        assert spectral_norm(weight, start=vectors[:, 1]).norm.item() >= top(weight) * (1 - ESTIMATE)


def test_a_warm_start_outside_the_row_space_still_finds_the_matrix():
    weight = torch.zeros(300, 300)
    weight[:, :5] = random(300, 5)

    found = spectral_norm(weight, start=torch.eye(300)[299])
    assert found.norm.item() == pytest.approx(top(weight), rel=ESTIMATE)


@pytest.mark.parametrize("start", [torch.zeros(300), torch.full((300,), torch.nan), torch.full((300,), torch.inf)])
def test_a_start_left_by_a_broken_matrix_does_no_harm(start):
    weight = random(300, 300)

    assert spectral_norm(weight, start=start).norm.item() == pytest.approx(top(weight), rel=ESTIMATE)


@pytest.mark.parametrize("shape", [(20, 30), (300, 400)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_and_views_are_taken_as_they_are(shape, dtype):
    weight = random(*shape).to(dtype)

    assert spectral_norm(weight).norm.item() == pytest.approx(top(weight), rel=ESTIMATE)
    assert spectral_norm(weight.t()).norm.item() == pytest.approx(top(weight), rel=ESTIMATE)
    assert spectral_norm(weight[::2]).norm.item() == pytest.approx(top(weight[::2]), rel=ESTIMATE)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_spectral_norm_lies_between_its_bounds_and_turns_with_its_matrix(seed, fan_out, fan_in):
    weight = random(fan_out, fan_in, seed=seed)
    norm, frobenius = spectral_norm(weight).norm, weight.norm()

    assert frobenius / math.sqrt(min(fan_out, fan_in)) <= norm * (1 + ROUNDING)
    assert norm <= frobenius * (1 + ROUNDING)
    torch.testing.assert_close(spectral_norm(weight.t()).norm, norm)
    torch.testing.assert_close(spectral_norm(weight * -3).norm, norm * 3)
    assert 1 - ROUNDING <= stable_rank(frobenius, norm) <= min(fan_out, fan_in) * (1 + ROUNDING)


@pytest.mark.parametrize("shape", [(20, 30), (300, 400)])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_very_small_and_very_large_matrices_keep_their_digits(shape, factor):
    weight = random(*shape)

    found = spectral_norm(weight * factor).norm.double().item()
    assert found == pytest.approx(spectral_norm(weight).norm.double().item() * factor, rel=1e-4)


@pytest.mark.parametrize("shape", [(20, 30), (300, 400)])
def test_zeros_have_norm_zero(shape):
    found = spectral_norm(torch.zeros(shape))

    assert found.norm.item() == 0.0
    if found.right is not None:
        assert found.right.isfinite().all()


@pytest.mark.parametrize("shape", [(20, 30), (300, 400)])
def test_nan_gives_nan_and_infinity_infinity(shape):
    broken, infinite = random(*shape), random(*shape)
    infinite[3, 4] = -torch.inf
    broken[3, 4], broken[5, 5] = torch.nan, torch.inf

    assert spectral_norm(broken).norm.isnan()
    assert spectral_norm(infinite).norm.item() == torch.inf


def test_the_global_generator_is_left_alone_and_the_answer_is_repeatable():
    weight = random(300, 300)
    state = torch.get_rng_state()

    assert torch.equal(spectral_norm(weight).norm, spectral_norm(weight).norm)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(2, 3, 4), torch.empty(0, 3), torch.ones(2, 2).long()])
def test_what_is_no_matrix_is_refused(bad):
    with pytest.raises(ValueError, match="expected a floating"):
        spectral_norm(bad)


def test_a_start_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected a start of 300"):
        spectral_norm(random(300, 400), start=torch.ones(400))


def test_operator_norm_by_hand():
    assert operator_norm(torch.tensor(3.0), torch.Size((4, 16))).item() == pytest.approx(6.0)
    assert operator_norm(torch.tensor(torch.nan), (2, 2)).isnan()


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, 3, 4)])
def test_operator_norm_refuses_what_is_no_matrix(shape):
    with pytest.raises(ValueError, match="expected a"):
        operator_norm(torch.tensor(1.0), torch.Size(shape))


def test_stable_rank_by_hand():
    assert stable_rank(torch.tensor(6.0), torch.tensor(2.0)).item() == pytest.approx(9.0)
    assert stable_rank(torch.tensor(1e-30), torch.tensor(1e-30)).item() == pytest.approx(1.0)
    assert stable_rank(torch.tensor(torch.nan), torch.tensor(1.0)).isnan()


def test_a_matrix_of_zeros_has_no_stable_rank():
    assert stable_rank(torch.tensor(0.0), torch.tensor(0.0)).isnan()


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("size", [32, 250])
def test_squaring_finds_the_eigenvalue_that_eigh_finds(values, size):
    """What stands in for `eigh` off the CPU, run here on the CPU."""
    weight, _ = with_spectrum(values(size), size, size)
    gram = weight.double().t() @ weight.double()

    value, vector = spectral._top_by_squaring(gram)
    assert value.sqrt().item() == pytest.approx(torch.linalg.eigvalsh(gram)[-1].sqrt().item(), rel=1e-5)
    assert torch.linalg.vector_norm(gram @ vector).item() == pytest.approx(value.item(), rel=1e-4)


def test_squaring_keeps_zeros_and_shows_nan():
    assert spectral._top_by_squaring(torch.zeros(4, 4, dtype=torch.float64))[0].item() == 0.0
    assert spectral._top_by_squaring(torch.full((4, 4), torch.nan, dtype=torch.float64))[0].isnan()
