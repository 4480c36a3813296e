"""Statistics of many parameters at once are those of each alone."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from internist.measures import many, updates, weights

ROUNDING = 1e-5
"""Float32 sums over a few thousand entries, in another order."""

SHAPES = [(7,), (300, 50), (3, 5), (2, 3, 4)]
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def copied(tensor: Tensor) -> Tensor:
    """A snapshot: float32 where that holds the tensor without loss."""
    return tensor.clone() if tensor.dtype == torch.float64 else tensor.to(torch.float32, copy=True)


@pytest.mark.parametrize("dtype", TYPES)
def test_differences_are_those_of_each_pair_written_over_float32_copies(dtype):
    before = [random(*shape, seed=i).to(dtype) for i, shape in enumerate(SHAPES)]
    after = [(tensor.float() * 1.1).to(dtype) for tensor in before]
    copies = [copied(tensor) for tensor in before]
    kept = [copy.data_ptr() for copy in copies]

    found = many.differences_(after, copies)
    for a, b, each in zip(after, before, found, strict=True):
        assert torch.equal(each, a.float() - b.float())
    assert dtype == torch.float64 or [each.data_ptr() for each in found] == kept


def test_differences_of_mixed_types_are_each_their_own():
    before = [random(4).to(dtype) for dtype in TYPES]
    after = [(tensor.float() + 1).to(tensor.dtype) for tensor in before]

    found = many.differences_(after, [copied(tensor) for tensor in before])
    assert all(torch.equal(d, a.float() - b.float()) for d, a, b in zip(found, after, before, strict=True))


@pytest.mark.parametrize(("after", "before"), [([torch.ones(2)], []), ([torch.ones(2)], [torch.ones(3)])])
def test_differences_of_what_does_not_match_are_refused(after, before):
    with pytest.raises(ValueError, match="expected pairs"):
        many.differences_(after, before)


def test_shares_of_what_did_not_move_match_a_count_and_a_nan_has_moved():
    differences = [random(*shape, seed=i) * (random(*shape, seed=i + 9) > 0.3) for i, shape in enumerate(SHAPES)]
    differences += [torch.tensor([torch.nan, 0.0]), torch.zeros(5), torch.ones(5)]

    expected = [(difference == 0).double().mean().item() for difference in differences]
    assert many.unchanged(differences).tolist() == pytest.approx(expected, abs=ROUNDING)


def test_norms_of_mixed_types_keep_their_order():
    tensors = [random(5, seed=i).to(dtype) for i, dtype in enumerate([*TYPES, *TYPES])]

    found = torch.stack(many.norms(tensors, 2))
    assert found.tolist() == pytest.approx([tensor.double().norm().item() for tensor in tensors], rel=1e-4)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("dtype", TYPES)
def test_row_norms_are_those_of_each_embedding_and_head(dtype):
    embedding, head = random(20, 6).to(dtype), random(30, 6, seed=1).to(dtype).t()
    expected = [weights.row_rms_max(embedding).item(), weights.head_norm(head).item()]

    assert many.row_norm_maxima([embedding, head], [6**-0.5, 30**0.5]).tolist() == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_own_updates_of_linear_layers_are_those_of_each(dtype, with_bias):
    probes, deltas = random(3, 8, 6).to(dtype), random(3, 5, 6, seed=1)
    biases = random(3, 5, seed=2) if with_bias else None

    found = many.own_linears(probes, deltas, biases)
    for i, each in enumerate(found):
        alone = updates.own_linear(probes[i], deltas[i], None if biases is None else biases[i])
        torch.testing.assert_close(each, alone)


@pytest.mark.parametrize("with_bias", [True, False])
def test_own_updates_of_normalisation_layers_are_those_of_each(with_bias):
    normalized, gains = functional.layer_norm(random(3, 8, 6), (6,)), random(3, 6, seed=1)
    biases = random(3, 6, seed=2) if with_bias else None

    found = many.own_gains(normalized, gains, biases)
    for i, each in enumerate(found):
        alone = updates.own_gain(normalized[i], gains[i], None if biases is None else biases[i])
        torch.testing.assert_close(each, alone)


def test_nan_stays_with_its_own_layer():
    deltas = random(3, 5, 6)
    deltas[1, 0, 0] = math.nan

    found = many.own_linears(random(3, 8, 6, seed=1), deltas, None)
    assert found[1].isnan().all()
    assert found[::2].isfinite().all()
