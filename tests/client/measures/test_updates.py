"""Measures of updates: by hand, against a second forward, under their ceilings, and what is not a number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from internist.measures import updates
from internist.measures.activations import token_rms
from internist.measures.spectral import operator_norm, spectral_norm
from internist.measures.updates import (
    differences,
    differences_,
    stored_,
    streamed_linear,
    unchanged,
)
from internist.measures.weights import row_rms_max, vector_abs_max


def summarised(measure):
    """What is kept of a measure: the largest token and the mean square."""
    return lambda *args, **options: updates.moved(measure(*args, **options))


feature_change, own_convolution = summarised(updates.feature_change), summarised(updates.own_convolution)
own_embedding, own_gain = summarised(updates.own_embedding), summarised(updates.own_gain)
own_linear = summarised(updates.own_linear)

ROUNDING = 1e-5
"""Float32 sums over a few thousand entries, and the float32 matrix product that made them."""

TWO_FORWARDS = 1e-3
"""The difference of two float32 forwards, of which the update is about a hundredth."""

SEEDS = st.integers(0, 2**32 - 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(change: Tensor) -> list[float]:
    """The obvious version of what every `own_*` returns, of a (..., features) change."""
    exact = change.double()
    return [exact.square().mean(-1).sqrt().max().item(), exact.square().mean().item()]


def changed(module: nn.Module, seed: int = 5) -> dict[str, Tensor]:
    """Move every parameter a little, and tell by how much."""
    deltas = {}
    with torch.no_grad():
        for index, (name, parameter) in enumerate(module.named_parameters()):
            before = parameter.clone()
            parameter += 0.01 * random(*parameter.shape, seed=seed + index)
            deltas[name] = parameter - before
    return deltas


def test_differences_by_hand():
    assert differences([torch.tensor([3.0, 1.0])], [torch.tensor([1.0, 1.0])])[0].tolist() == [2.0, 0.0]


@pytest.mark.parametrize("measure", [differences, differences_])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_differences_are_taken_in_float32(measure, dtype):
    before = [random(5, 6).to(dtype), random(7, seed=1).to(dtype)]
    after = [(b.float() * 1.1).to(dtype) for b in before]
    expected = [(a.double() - b.double()).float() for a, b in zip(after, before, strict=True)]

    found = measure(after, before)
    assert all(difference.dtype == torch.float32 for difference in found)
    torch.testing.assert_close(found, expected)


def test_differences_leave_both_sides_alone():
    after, before = random(4), random(4, seed=1)
    copies = after.clone(), before.clone()

    differences([after], [before])
    assert torch.equal(after, copies[0])
    assert torch.equal(before, copies[1])


def test_the_in_place_form_reuses_a_float32_snapshot():
    snapshot = random(4, 4)
    weight = nn.Parameter(random(4, 4, seed=1))

    with torch.no_grad():
        found = differences_([weight], [snapshot])
    assert found[0].data_ptr() == snapshot.data_ptr()
    assert not found[0].requires_grad


@pytest.mark.parametrize("measure", [differences, differences_])
@pytest.mark.parametrize(("after", "before"), [([torch.ones(2)], []), ([torch.ones(2)], [torch.ones(3)])])
def test_differences_of_what_does_not_match_are_refused(measure, after, before):
    with pytest.raises(ValueError, match="expected pairs"):
        measure(after, before)


def test_unchanged_by_hand():
    assert unchanged([torch.tensor([0.0, 1.0, -0.0, 2.0]), torch.zeros(3), torch.ones(2, 2)]).tolist() == [
        0.5,
        1.0,
        0.0,
    ]


@pytest.mark.parametrize("shape", [(1,), (300, 500), (2**17 + 3,), (700, 800)])
def test_unchanged_matches_a_count_whatever_the_size(shape):
    difference = random(*shape) * (random(*shape, seed=1) > 0.3)

    assert unchanged([difference]).item() == pytest.approx((difference == 0).double().mean().item(), rel=ROUNDING)
    assert unchanged([difference.t()]).item() == unchanged([difference]).item()


def test_a_bfloat16_update_under_half_a_unit_in_the_last_place_moves_nothing():
    before = torch.ones(100, dtype=torch.bfloat16)
    after = before + torch.cat((torch.full((60,), 1e-3), torch.full((40,), 0.1))).bfloat16()

    assert unchanged(differences([after], [before])).item() == pytest.approx(0.6)


def test_a_nan_entry_has_moved():
    assert unchanged([torch.tensor([torch.nan, 0.0])]).item() == 0.5


@pytest.mark.parametrize("bad", [[], [torch.empty(0)]])
def test_unchanged_of_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        unchanged(bad)


def test_own_linear_by_hand():
    probe, delta = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [4.0, 1.0]])

    assert own_linear(probe, delta).tolist() == pytest.approx([math.sqrt(12.5), (9 + 16 + 0 + 4) / 4])
    assert own_linear(probe, delta, torch.tensor([0.0, -2.0])).tolist() == pytest.approx([math.sqrt(6.5), 13 / 4])


def test_own_linear_is_what_a_second_forward_shows():
    layer, probe = nn.Linear(24, 40), random(2, 8, 24)
    with torch.no_grad():
        before = layer(probe)
        deltas = changed(layer)
        after = layer(probe)

    expected = moved(after - before)
    assert own_linear(probe, deltas["weight"], deltas["bias"]).tolist() == pytest.approx(expected, rel=TWO_FORWARDS)


def test_own_embedding_is_what_a_second_lookup_shows():
    layer, ids = nn.Embedding(30, 16), torch.tensor([[3, 3, 0], [29, 7, 1]])
    with torch.no_grad():
        before = layer(ids)
        deltas = changed(layer)
        after = layer(ids)

    found = own_embedding(ids, deltas["weight"])
    assert found.tolist() == pytest.approx(moved(after - before), rel=TWO_FORWARDS)
    assert found[0] <= row_rms_max(deltas["weight"]) * (1 + ROUNDING)


@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.LayerNorm(24, bias=False), nn.RMSNorm(24, eps=1e-6)])
def test_own_gain_is_what_a_second_forward_shows(norm):
    probe = random(2, 8, 24)
    if isinstance(norm, nn.LayerNorm):
        normalized = functional.layer_norm(probe, (24,), eps=norm.eps)
    else:
        normalized = functional.rms_norm(probe, (24,), eps=norm.eps)
    with torch.no_grad():
        before = norm(probe)
        deltas = changed(norm)
        after = norm(probe)

    found = own_gain(normalized, deltas["weight"], deltas.get("bias"))
    assert found.tolist() == pytest.approx(moved(after - before), rel=TWO_FORWARDS)


def test_own_gain_with_a_bias_alone_is_the_bias():
    assert own_gain(random(5, 2), None, torch.tensor([3.0, 4.0])).tolist() == pytest.approx([math.sqrt(12.5), 12.5])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(6, 8, 3, stride=2, padding=1), (2, 6, 11)),
        (nn.Conv2d(6, 9, (3, 2), dilation=2, groups=3, padding="same"), (2, 6, 7, 5)),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), (1, 4, 6, 6)),
        (nn.Conv3d(2, 3, 2), (2, 2, 4, 3, 3)),
    ],
)
def test_own_convolution_is_what_a_second_forward_shows(layer, shape):
    probe = random(*shape)
    with torch.no_grad():
        before = layer(probe)
        deltas = changed(layer)
        after = layer(probe)

    found = own_convolution(
        probe,
        deltas["weight"],
        deltas.get("bias"),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    assert found.tolist() == pytest.approx(moved((after - before).movedim(1, -1)), rel=TWO_FORWARDS)


def test_feature_change_by_hand():
    after, before = torch.tensor([[4.0, 4.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])

    assert feature_change(after, before).tolist() == pytest.approx([math.sqrt(12.5), 6.25])


def test_feature_change_matches_float64_in_any_precision_and_layout():
    after, before = random(3, 20, 16), random(3, 20, 16, seed=1)

    assert feature_change(after, before).tolist() == pytest.approx(moved(after - before), rel=ROUNDING)
    low = after.bfloat16().transpose(0, 1), before.bfloat16().transpose(0, 1)
    assert feature_change(*low).tolist() == pytest.approx(moved(low[0].float() - low[1].float()), rel=ROUNDING)


@given(SEEDS, st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_own_updates_stay_under_their_ceilings(seed, fan_out, fan_in, tokens):
    probe = random(tokens, fan_in, seed=seed)
    delta, bias = random(fan_out, fan_in, seed=seed + 1), random(fan_out, seed=seed + 2)
    gain, shift = random(fan_in, seed=seed + 3), random(fan_in, seed=seed + 4)
    largest_input = token_rms(probe).amax()
    operator = operator_norm(spectral_norm(delta).norm, delta.shape)

    largest, mean_square = own_linear(probe, delta, bias)
    assert largest <= (operator * largest_input + token_rms(bias)[0]) * (1 + ROUNDING)
    assert mean_square.sqrt() <= largest * (1 + ROUNDING)
    ceiling = vector_abs_max([gain])[0] * largest_input + token_rms(shift)[0]
    assert own_gain(probe, gain, shift)[0] <= ceiling * (1 + ROUNDING)


@given(SEEDS, st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_own_updates_scale_with_the_change(seed, factor):
    probe, delta = random(5, 6, seed=seed), random(4, 6, seed=seed + 1)

    expected = own_linear(probe, delta) * torch.tensor([factor, factor**2])
    torch.testing.assert_close(own_linear(probe, delta * factor), expected)


def test_low_precision_probes_and_views_are_taken_as_they_are():
    probe, delta = random(6, 5).bfloat16().t(), random(6, 4, seed=1).t()

    torch.testing.assert_close(own_linear(probe, delta), own_linear(probe.float().contiguous(), delta.contiguous()))


def test_nan_in_a_change_or_a_probe_shows():
    probe, delta = random(3, 4), random(5, 4, seed=1)
    broken = delta.clone()
    broken[0, 0] = torch.nan

    assert own_linear(probe, broken).isnan().all()
    assert own_linear(broken, delta).isnan().all()
    assert own_embedding(torch.tensor([0, 1]), broken).isnan().all()
    assert own_gain(probe, broken[0]).isnan().all()
    assert feature_change(delta, broken).isnan().all()
    assert not own_embedding(torch.tensor([1, 2]), broken).isnan().any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: own_linear(torch.ones(3, 4), torch.ones(5, 3)),
        lambda: own_linear(torch.ones(3, 4), torch.ones(4)),
        lambda: own_linear(torch.empty(0, 4), torch.ones(5, 4)),
        lambda: own_linear(torch.ones(3, 4), torch.ones(5, 4), torch.ones(4)),
        lambda: own_embedding(torch.tensor([1.0]), torch.ones(5, 4)),
        lambda: own_embedding(torch.tensor([1]), torch.ones(5)),
        lambda: own_embedding(torch.empty(0).long(), torch.ones(5, 4)),
        lambda: own_gain(torch.ones(3, 4), None),
        lambda: own_gain(torch.ones(3, 4), torch.ones(3)),
        lambda: own_gain(torch.empty(0, 4), torch.ones(4)),
        lambda: own_convolution(torch.ones(3, 4), torch.ones(5, 4), stride=(1,), padding=(0,), dilation=(1,), groups=1),
        lambda: own_convolution(
            torch.ones(1, 4, 5), torch.ones(6, 3, 1), stride=(1,), padding=(0,), dilation=(1,), groups=1
        ),
        lambda: feature_change(torch.ones(3, 4), torch.ones(4)),
        lambda: feature_change(torch.empty(0, 4), torch.empty(0, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_updates_are_differences_and_their_statistics_whatever_the_sizes(dtype):
    shapes = [(7,), (600, 500), (3, 5), (512, 1024)]  # two of them are worked through in pieces
    before = [random(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    after = [b.clone() for b in before]
    for tensor in after:
        tensor.view(-1)[::3] += 0.25
    expected = [a.double() - b.double() for a, b in zip(after, before, strict=True)]

    deltas, (weight, update, still) = stored_(after, [b.clone() for b in before])
    for i, exact in enumerate(expected):
        torch.testing.assert_close(deltas[i].double(), exact, rtol=0, atol=1e-6)
        assert weight[i].item() == pytest.approx(after[i].double().square().mean().item(), rel=1e-4)
        assert update[i].item() == pytest.approx(exact.square().mean().item(), rel=1e-4)
        assert still[i].item() == pytest.approx((exact == 0).double().mean().item(), abs=1e-6)


def test_stored_updates_refuse_pairs_that_do_not_match():
    with pytest.raises(ValueError):
        stored_([torch.ones(2)], [torch.ones(3)])
    with pytest.raises(ValueError):
        stored_([torch.ones(0)], [torch.ones(0)])


@pytest.mark.parametrize("bias", [True, False])
def test_a_streamed_weight_gives_what_the_two_measures_give(bias):
    before, probe = random(700, 300), random(32, 300, seed=1)
    after = before + 0.01 * random(700, 300, seed=2)
    after[::7] = before[::7]
    delta_bias = random(700, seed=3) if bias else None
    kept = before.clone()

    statistics, own = streamed_linear(after, before, probe, delta_bias)
    deltas, expected = stored_([after], [before.clone()])
    torch.testing.assert_close(torch.tensor(statistics), expected[:, 0], rtol=1e-5, atol=0)
    torch.testing.assert_close(own, updates.own_linear(probe, deltas[0], delta_bias), rtol=1e-4, atol=0)
    assert torch.equal(before, kept)


def test_streaming_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError):
        streamed_linear(random(4, 3), random(4, 3), random(2, 4))
    with pytest.raises(ValueError):
        streamed_linear(random(4, 3), random(3, 4), random(2, 3))


def test_a_bias_alone_moves_an_output_whatever_the_input_holds():
    normalized = torch.full((3, 4), torch.nan)
    assert updates.own_gain(normalized, None, torch.full((4,), 0.5)).tolist() == [0.5] * 3
