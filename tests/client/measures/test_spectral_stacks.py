"""Spectra of stacks: against singular values in float64 over many spectra, and against matrices measured alone."""

import pytest
import torch
from torch import Tensor

from internist.measures import spectral_stacks
from internist.measures.spectral import spectral_norm
from internist.measures.spectral_stacks import Spectra, method, reduce_, spectra
from tests.client.measures.test_spectral import ESTIMATE, EXACT, ROUNDING, SPECTRA, random, top, with_spectrum

FROBENIUS = 1e-4
"""A float32 sum of a few hundred thousand squares, one after the other on a CPU."""


def measured(stack: Tensor, start: Tensor | None = None) -> Spectra:
    return spectra([reduce_(stack.clone(), start=start)])[0]


def every_spectrum(*shape: int, seed: int = 0) -> Tensor:
    return torch.stack([with_spectrum(values(min(shape)), *shape, seed=seed)[0] for values in SPECTRA.values()])


def assert_from_below(found: Spectra, stack: Tensor, tolerance: float) -> None:
    for norm, matrix in zip(found.norms.tolist(), stack, strict=True):
        exact = top(matrix)
        assert exact * (1 - tolerance) <= norm <= exact * (1 + ROUNDING)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (200, 200), (120, 200)])
def test_small_matrices_are_exact(shape):
    stack = torch.stack([random(*shape, seed=seed) for seed in range(3)])

    found = measured(stack)
    assert found.norms.tolist() == pytest.approx([top(matrix) for matrix in stack], rel=EXACT)
    assert (found.method, found.right, found.norms.dtype) == ("gram", None, torch.float32)


@pytest.mark.parametrize("shape", [(300, 300), (300, 500), (500, 260)])
def test_powers_of_a_gram_matrix_are_within_one_percent_from_below_whatever_the_spectrum(shape):
    for seed in range(3):
        stack = every_spectrum(*shape, seed=seed)

        found = measured(stack)
        assert_from_below(found, stack, ESTIMATE)
        assert found.method == "gram-1024"


@pytest.mark.parametrize("shape", [(300, 300), (300, 500), (500, 260)])
def test_krylov_iterations_on_stacks_are_within_one_percent_from_below_whatever_the_spectrum(monkeypatch, shape):
    monkeypatch.setattr(spectral_stacks, "SQUARED_UP_TO", 0)
    for seed in range(3):
        stack = every_spectrum(*shape, seed=seed)

        cold = measured(stack)
        assert_from_below(cold, stack, ESTIMATE)
        warm = measured(stack, cold.right)
        assert_from_below(warm, stack, ESTIMATE)
        assert (cold.method, warm.method) == ("krylov-8x10", "krylov-8x9")


def test_large_matrices_are_measured_by_a_krylov_iteration():
    assert [method((1024, 5000)), method((1025, 5000)), method((5000, 1025), warm=True)] == [
        "gram-1024",
        "krylov-8x10",
        "krylov-8x9",
    ]


def test_a_long_matrix_is_not_copied_to_float64():
    assert [method((256, 2**13)), method((256, 2**13 + 1))] == ["gram", "gram-1024"]


@pytest.mark.parametrize("gap", [0.01, 0.05, 0.3])
def test_a_warm_start_on_what_is_now_the_second_vector_finds_the_first(monkeypatch, gap):
    monkeypatch.setattr(spectral_stacks, "SQUARED_UP_TO", 0)
    values = torch.cat((torch.tensor([1 + gap]), torch.linspace(1, 0, 299)))
    pairs = [with_spectrum(values, 300, 300, seed) for seed in range(5)]
    stack, start = torch.stack([matrix for matrix, _ in pairs]), torch.stack([right[:, 1] for _, right in pairs])

    assert_from_below(measured(stack, start), stack, ESTIMATE)


def test_a_warm_start_outside_the_row_space_or_broken_does_no_harm(monkeypatch):
    monkeypatch.setattr(spectral_stacks, "SQUARED_UP_TO", 0)
    stack = torch.stack([random(300, 300)] * 4)
    stack[0, :, 5:] = 0
    start = torch.stack((torch.eye(300)[299], torch.zeros(300), torch.full((300,), torch.nan), torch.ones(300)))

    assert_from_below(measured(stack, start), stack, ESTIMATE)


@pytest.mark.parametrize("most", [spectral_stacks.SQUARED_UP_TO, 0], ids=["powers", "krylov"])
@pytest.mark.parametrize("shape", [(20, 30), (300, 400)])
def test_what_is_not_a_number_stays_with_its_own_matrix(monkeypatch, shape, most):
    monkeypatch.setattr(spectral_stacks, "SQUARED_UP_TO", most)
    stack = torch.stack([random(*shape, seed=seed) for seed in range(5)])
    healthy = measured(stack)
    stack[1, 3, 4], stack[1, 5, 5] = torch.nan, torch.inf
    stack[2, 3, 4] = -torch.inf
    stack[3] = 0

    found = measured(stack)
    assert found.norms[1].isnan()
    assert found.norms[2:4].tolist() == [torch.inf, 0.0]
    for i in (0, 4):  # products of another stack may add up in another order
        assert found.norms[i].item() == pytest.approx(healthy.norms[i].item(), rel=ROUNDING)
        assert found.frobenius[i].item() == pytest.approx(stack[i].norm().item(), rel=FROBENIUS)


@pytest.mark.parametrize("shape", [(20, 30), (300, 400)])
def test_very_small_and_very_large_matrices_keep_their_digits(shape):
    matrix = random(*shape)

    norms = measured(torch.stack((matrix, matrix * 1e-30, matrix * 1e30))).norms.double()
    assert (norms / norms[0]).tolist() == pytest.approx([1, 1e-30, 1e30], rel=ROUNDING)


def test_stacks_of_all_kinds_are_measured_together_as_each_matrix_alone(monkeypatch):
    monkeypatch.setattr(spectral_stacks, "SQUARED_UP_TO", 400)
    shapes = [(300, 350), (350, 300), (20, 30), (500, 450), (300, 900)]
    stacks = [torch.stack([random(*shape, seed=seed) for seed in range(2)]) for shape in shapes]

    found = spectra([reduce_(stack.clone()) for stack in stacks])
    for stack, each in zip(stacks, found, strict=True):
        alone = [spectral_norm(matrix).norm.item() for matrix in stack]
        assert each.norms.tolist() == pytest.approx(alone, rel=ESTIMATE)
        assert each.frobenius.tolist() == pytest.approx([matrix.norm().item() for matrix in stack], rel=FROBENIUS)
    assert [each.method for each in found] == ["gram-1024", "gram-1024", "gram", "krylov-8x10", "gram-1024"]


def test_no_generator_is_touched_and_the_answer_is_repeatable(monkeypatch):
    monkeypatch.setattr(spectral_stacks, "SQUARED_UP_TO", 0)
    stack, state = random(2, 300, 300), torch.get_rng_state()

    assert torch.equal(measured(stack).norms, measured(stack).norms)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [torch.ones(3, 4), torch.ones(0, 3, 4), torch.ones(2, 3, 4).double()])
def test_what_is_no_stack_is_refused(bad):
    with pytest.raises(ValueError, match="expected float32"):
        reduce_(bad)


def test_a_start_of_another_size_is_refused():
    with pytest.raises(ValueError, match="expected a start of"):
        reduce_(torch.ones(2, 1030, 1040), start=torch.ones(2, 1040))
