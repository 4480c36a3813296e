"""Measures of parameters: by hand, against float64, their bounds, and what is not a number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from internist.measures.activations import token_rms
from internist.measures.weights import bit_sum, head_norm, mean_squares, row_rms_max, vector_abs_max

ROUNDING = 1e-5
"""Float32 sums over a few thousand entries."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mean_squares_by_hand():
    values = mean_squares([torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 1.0], [1.0, 5.0]]), torch.tensor(2.0)])

    assert values.tolist() == pytest.approx([12.5, 7.0, 4.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_mean_squares_match_float64(dtype):
    tensors = [random(1000, 33).to(dtype), random(7, seed=1).to(dtype), random(9, 40, seed=2).to(dtype).t()]
    expected = [tensor.double().square().mean().item() for tensor in tensors]

    assert mean_squares(tensors).tolist() == pytest.approx(expected, rel=ROUNDING)


def test_a_long_bfloat16_tensor_does_not_lose_its_tail():
    assert mean_squares([torch.full((2**20,), 0.5, dtype=torch.bfloat16)]).item() == pytest.approx(0.25)


def test_mean_squares_leave_their_tensors_alone():
    tensor = random(10)
    before = tensor.clone()

    mean_squares([tensor])
    assert torch.equal(tensor, before)


def test_nan_stays_with_its_own_tensor():
    values = mean_squares([torch.tensor([1.0, torch.nan]), torch.ones(3), torch.tensor([torch.inf])])

    assert values[0].isnan()
    assert values[1:].tolist() == pytest.approx([1.0, torch.inf])


@pytest.mark.parametrize("measure", [mean_squares, vector_abs_max])
@pytest.mark.parametrize("bad", [[], [torch.empty(0)], [torch.ones(2), torch.empty(0, 3)], [torch.ones(2).long()]])
def test_no_tensor_or_an_empty_one_is_refused(measure, bad):
    with pytest.raises(ValueError, match="expected"):
        measure(bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_vector_abs_max_finds_either_sign(dtype):
    tensors = [torch.tensor([1.0, -3.0], dtype=dtype), torch.tensor([2.0, 0.0, -1.0], dtype=dtype)]

    values = vector_abs_max(tensors)
    assert values.tolist() == [3.0, 2.0]
    assert values.dtype == torch.float32


def test_vector_abs_max_of_nan_is_nan_and_of_infinity_infinity():
    values = vector_abs_max([torch.tensor([1.0, torch.nan, 2.0]), torch.tensor([-torch.inf, 0.0])])

    assert values[0].isnan()
    assert values[1] == torch.inf


def test_row_rms_max_by_hand():
    assert row_rms_max(torch.tensor([[1.0, 1.0], [3.0, 4.0]])).item() == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_row_rms_max_matches_float64_also_of_a_view(dtype):
    weight = random(24, 50).to(dtype)

    assert row_rms_max(weight).item() == pytest.approx(
        weight.double().square().mean(1).sqrt().max().item(), rel=ROUNDING
    )
    torch.testing.assert_close(row_rms_max(weight.t()), row_rms_max(weight.t().contiguous()))


def test_head_norm_by_hand():
    assert head_norm(torch.tensor([[1.0, 1.0], [3.0, 4.0]])).item() == pytest.approx(2 * math.sqrt(12.5))


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_no_output_exceeds_what_an_embedding_or_a_head_can_give(seed, rows, features):
    weight = random(rows, features, seed=seed)
    ids = torch.randint(0, rows, (20,), generator=torch.Generator().manual_seed(seed))
    inputs = random(20, features, seed=seed + 1)
    inputs /= token_rms(inputs)[:, None]

    assert token_rms(weight[ids]).amax() <= row_rms_max(weight) * (1 + ROUNDING)
    assert (inputs @ weight.t()).abs().amax() <= head_norm(weight) * (1 + ROUNDING)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_norms_scale_with_their_weight(seed, factor):
    weight = random(6, 5, seed=seed)

    torch.testing.assert_close(head_norm(weight * factor), head_norm(weight) * factor)
    torch.testing.assert_close(mean_squares([weight * factor]), mean_squares([weight]) * factor**2)


def test_one_nan_row_makes_the_norm_nan():
    weight = random(4, 4)
    weight[2, 1] = torch.nan

    assert row_rms_max(weight).isnan()
    assert head_norm(weight).isnan()


@pytest.mark.parametrize("measure", [row_rms_max, head_norm])
@pytest.mark.parametrize(
    "bad", [torch.ones(3), torch.ones(2, 3, 4), torch.empty(0, 3), torch.empty(3, 0), torch.tensor(1.0)]
)
def test_what_is_no_matrix_is_refused(measure, bad):
    with pytest.raises(ValueError, match="expected"):
        measure(bad)


def test_a_checksum_of_bits_is_worked_by_hand_and_shows_one_bit():
    tensors = [torch.tensor([1.0, 2.0]), torch.zeros(2, 3, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64)]
    sums = 0x3F800000 + 0x40000000 + 0x3FF0000000000000

    assert bit_sum(tensors).item() == sums % 2**24
    before = bit_sum(tensors).item()
    tensors[0].view(torch.int32)[1] ^= 1
    assert bit_sum(tensors).item() != before
    assert not math.isnan(bit_sum([torch.tensor([math.nan])]).item())


def test_a_checksum_of_nothing_is_refused():
    with pytest.raises(ValueError, match="none"):
        bit_sum([])
