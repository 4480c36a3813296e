"""Measures of activations: by hand, against float64, their bounds, and what is not a number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from internist.measures import activations
from internist.measures.activations import (
    abs_max,
    extent,
    log_z,
    nonfinite,
    rms_summary,
    token_rms,
)
from internist.measures.spectral import operator_norm, spectral_norm


def contribution(*args):
    """The ratio of the two sums."""
    added, stream = map(torch.as_tensor, activations.contribution(*args))
    return added / stream


def spread(outputs, inputs=None):
    return spread_and_mask(outputs, inputs)[0]


def spread_and_mask(outputs, inputs=None):
    apart = None if inputs is None else activations.pair_distances(inputs)
    return activations.spread(activations.pair_distances(outputs), apart)


ROUNDING = 1e-5
"""Float32 sums over a few thousand entries, and the float32 matrix product that made them."""

BF16_ROUNDING = 5e-3
"""A bfloat16 keeps 8 bits: half a unit in the last place is 2**-9, for each of two operands."""

SEEDS = st.integers(0, 2**32 - 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_pairs(tokens: Tensor) -> list[float]:
    exact = tokens.double()
    rows = range(len(exact))
    return [float((exact[i] - exact[j]).square().mean().sqrt()) for i in rows for j in rows if i < j]


def test_token_rms_by_hand():
    assert token_rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == pytest.approx([math.sqrt(12.5), 0.0])


def test_token_rms_flattens_every_dimension_but_the_features():
    x = random(2, 3, 5, 7)

    torch.testing.assert_close(token_rms(x), x.double().square().mean(-1).sqrt().flatten().float())


def test_a_pixel_is_a_token_of_a_convolution_in_either_memory_format():
    x = random(2, 8, 5, 3)
    expected = x.double().square().mean(1).sqrt().flatten().float()

    torch.testing.assert_close(token_rms(x, channel_dim=1), expected)
    torch.testing.assert_close(token_rms(x.contiguous(memory_format=torch.channels_last), channel_dim=1), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_token_rms_of_any_precision_is_summed_in_float32(dtype):
    x = random(4, 300).to(dtype)

    torch.testing.assert_close(token_rms(x), x.double().square().mean(-1).sqrt().float())
    torch.testing.assert_close(token_rms(x.t(), channel_dim=0), token_rms(x))


def test_fp16_tokens_whose_squares_overflow_fp16_are_measured():
    assert token_rms(torch.full((1, 16), 6e4, dtype=torch.float16)).item() == pytest.approx(6e4, rel=1e-3)


def test_token_rms_of_a_non_contiguous_view_equals_that_of_its_copy():
    x = random(6, 5, 8).transpose(0, 1)

    torch.testing.assert_close(token_rms(x), token_rms(x.contiguous()))


def test_one_bad_entry_spoils_its_own_token_only():
    x = random(3, 4)
    x[0, 1], x[2, 0] = torch.nan, -torch.inf

    values = token_rms(x)
    assert values[0].isnan()
    assert values[1].isfinite()
    assert values[2] == torch.inf


@pytest.mark.parametrize("bad", [torch.empty(0, 4), torch.empty(3, 0), torch.tensor(1.0), torch.zeros(2, 2).long()])
def test_an_activation_must_be_floating_and_filled(bad):
    with pytest.raises(ValueError, match="expected"):
        token_rms(bad)
    with pytest.raises(ValueError, match="expected"):
        log_z(bad)


@given(SEEDS, st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_token_rms_scales_with_its_tokens(seed, factor):
    x = random(5, 6, seed=seed)

    torch.testing.assert_close(token_rms(x * factor), token_rms(x) * factor)


def test_summary_by_hand():
    mean_square, maximum, quantile = rms_summary(torch.tensor([1.0, 3.0, 2.0])).tolist()

    assert mean_square == pytest.approx(14 / 3)
    assert maximum == quantile == 3.0


@pytest.mark.parametrize(("tokens", "rank"), [(1, 1), (99, 99), (100, 99), (101, 100), (200, 198), (1000, 990)])
def test_quantile_is_the_smallest_value_that_99_percent_do_not_exceed(tokens, rank):
    values = torch.randperm(tokens, generator=torch.Generator().manual_seed(1)).float() + 1

    assert rms_summary(values)[2].item() == rank == math.ceil(tokens * 99 / 100)


def test_summaries_of_several_modules_are_each_their_own():
    values = random(4, 250).abs()

    torch.testing.assert_close(rms_summary(values), torch.stack([rms_summary(row) for row in values]))


@given(SEEDS, st.integers(1, 400))
@settings(max_examples=25, deadline=None)
def test_quantile_and_mean_never_exceed_the_maximum(seed, tokens):
    mean_square, maximum, quantile = rms_summary(random(tokens, seed=seed).abs())

    assert quantile <= maximum
    assert mean_square.sqrt() <= maximum * (1 + ROUNDING)


def test_a_nan_token_makes_the_whole_summary_nan():
    values = random(300).abs()
    values[7] = torch.nan

    assert rms_summary(values).isnan().all()


def test_an_infinite_token_leaves_the_quantile():
    values = torch.ones(300)
    values[7] = torch.inf

    assert rms_summary(values).tolist() == [torch.inf, torch.inf, 1.0]


@pytest.mark.parametrize("bad", [torch.empty(0), torch.empty(3, 0), torch.tensor(1.0)])
def test_a_summary_needs_a_token(bad):
    with pytest.raises(ValueError, match="at least one token"):
        rms_summary(bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_abs_max_finds_either_sign(dtype):
    assert abs_max(torch.tensor([[1.0, -8.0], [4.0, 0.5]], dtype=dtype)).item() == 8.0
    assert abs_max(torch.tensor([[1.0, -2.0], [4.0, 0.5]], dtype=dtype).t()).item() == 4.0
    assert abs_max(torch.zeros((), dtype=dtype)).dtype == torch.float32


def test_abs_max_of_nan_is_nan_and_of_infinity_infinity():
    assert abs_max(torch.tensor([1.0, torch.nan, torch.inf])).isnan()
    assert abs_max(torch.tensor([1.0, -torch.inf])).item() == torch.inf


@pytest.mark.parametrize("measure", [abs_max, lambda x: nonfinite(x, torch.zeros(())), lambda x: contribution(x, x)])
def test_an_empty_activation_is_refused(measure):
    with pytest.raises(ValueError, match="non-empty floating"):
        measure(torch.empty(0, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nonfinite_counts_nan_and_both_infinities(dtype):
    x = random(8, 16).to(dtype)
    assert nonfinite(x, abs_max(x)).item() == 0.0

    x[0, :3] = torch.nan
    x[5, 1], x[6, 2] = torch.inf, -torch.inf
    assert nonfinite(x, abs_max(x)).item() == 5.0


def test_finite_entries_whose_squares_overflow_are_not_counted():
    x = torch.full((2, 3), 3e38)

    assert token_rms(x).isinf().all()
    assert nonfinite(x, abs_max(x)).item() == 0.0


def test_contribution_by_hand_is_a_ratio_of_mean_squares():
    assert contribution(torch.tensor([[2.0, 2.0]]), torch.tensor([[2.0, 1.0]])).item() == pytest.approx(1 / 5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, ROUNDING), (torch.bfloat16, BF16_ROUNDING)])
def test_contribution_matches_float64(dtype, tolerance):
    stream = random(30, 64).to(dtype)
    output = (stream + random(30, 64, seed=1).to(dtype) * 0.3).transpose(0, 1)
    stream = stream.transpose(0, 1)
    expected = (output.double() - stream.double()).square().mean() / stream.double().square().mean()

    assert contribution(output, stream).item() == pytest.approx(expected.item(), rel=tolerance)


def test_contribution_of_calls_adds_up_to_that_of_all_tokens_together():
    outputs, inputs = [random(n, 8, seed=n) for n in (3, 30)], [random(n, 8, seed=n + 1) * n for n in (3, 30)]
    sums = [activations.contribution(y, x) for y, x in zip(outputs, inputs, strict=True)]
    together = contribution(torch.cat(outputs), torch.cat(inputs)).item()

    assert sum(a for a, _ in sums) / sum(s for _, s in sums) == pytest.approx(together, rel=ROUNDING)


def test_an_empty_stream_is_zero_and_nan_shows():
    assert activations.contribution(torch.ones(2, 2), torch.zeros(2, 2)) == (4.0, 0.0)
    assert contribution(torch.tensor([1.0]), torch.tensor([torch.nan])).isnan()


def test_contribution_refuses_another_shape():
    with pytest.raises(ValueError, match="one shape"):
        contribution(torch.ones(2, 3), torch.ones(3))


def test_spread_by_hand():
    outputs = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, 4.0]])
    inputs = torch.tensor([[0.0], [1.0], [4.0]])

    largest, mean, ratio = spread(outputs, inputs).tolist()
    assert largest == pytest.approx(math.sqrt(8))
    assert mean == pytest.approx((2 + 2 + math.sqrt(8)) / 3)
    assert ratio == pytest.approx(2.0)


@pytest.mark.parametrize("features", [1, 7, 64, 300])
def test_spread_matches_explicit_differences_in_float64(features):
    outputs, inputs = random(20, features), random(20, 33, seed=1)
    between, apart = reference_pairs(outputs), reference_pairs(inputs)

    expected = [max(between), sum(between) / len(between), max(b / a for b, a in zip(between, apart, strict=True))]
    assert spread(outputs, inputs).tolist() == pytest.approx(expected, rel=ROUNDING)


def test_equal_tokens_neither_hide_nor_invent_a_ratio():
    inputs = random(64, 16).repeat_interleave(2, dim=0)[:64]
    weight = random(8, 16, seed=1)
    outputs = inputs @ weight.t()
    unique = inputs[::2]

    assert spread(outputs, inputs)[2].isfinite()
    torch.testing.assert_close(spread(outputs, inputs)[2], spread(unique @ weight.t(), unique)[2])


def test_near_equal_tokens_far_from_the_origin_keep_their_distance():
    inputs = 1000.0 + torch.tensor([[0.0, 0.0], [0.25, 0.25], [0.5, 0.5]])

    assert spread(inputs, inputs).tolist() == [0.5, pytest.approx(1 / 3), 1.0]


def test_pairs_under_a_thousandth_of_the_largest_distance_are_left_out():
    inputs = torch.tensor([[0.0], [1e-4], [1.0]])
    outputs = torch.tensor([[0.0], [5.0], [1.0]])

    largest, mean, ratio = spread(outputs, inputs).tolist()
    assert (largest, mean) == (4.0, 2.5)
    assert ratio == pytest.approx(4 / (1 - 1e-4))


def test_no_pair_left_is_not_measured():
    for pair in ((random(5, 3), torch.ones(5, 3)), (random(1, 3), random(1, 3)), (random(1, 3), None)):
        assert not spread_and_mask(*pair)[1].any()


def test_without_inputs_every_pair_counts_and_the_ratio_is_not_measured():
    outputs = torch.tensor([[0.0], [0.0], [3.0]])

    values, measured = spread_and_mask(outputs)
    assert values[:2].tolist() == [3.0, 2.0]
    assert measured.tolist() == [True, True, False]


def test_a_module_that_ignores_its_input_has_no_spread():
    assert spread(torch.ones(4, 3), random(4, 3)).tolist() == [0.0, 0.0, 0.0]


def test_nan_outputs_and_nan_inputs_show():
    outputs, inputs = random(4, 3), random(4, 3, seed=1)
    broken = outputs.clone()
    broken[1, 1] = torch.nan

    assert spread(broken, inputs).isnan().all()
    assert spread(broken)[:2].isnan().all()
    assert spread(outputs, broken)[2].isnan()


def test_spread_reads_bfloat16_and_views_as_they_are():
    outputs, inputs = random(16, 9).bfloat16(), random(12, 9, seed=1).bfloat16()

    torch.testing.assert_close(
        spread(outputs.t(), inputs.t()), spread(outputs.t().float(), inputs.t().contiguous().float())
    )


@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [
        (torch.empty(0, 3), None),
        (torch.ones(3), None),
        (torch.ones(3, 2), torch.ones(4, 2)),
        (torch.ones(3, 2), torch.ones(3)),
        (torch.ones(3, 2).long(), None),
    ],
)
def test_spread_refuses_what_are_no_pairs_of_tokens(outputs, inputs):
    with pytest.raises(ValueError, match="expected"):
        spread(outputs, inputs)


@given(SEEDS, st.integers(1, 40), st.integers(1, 40), st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_a_linear_layer_stays_under_its_ceilings(seed, fan_out, fan_in, tokens):
    weight, bias = random(fan_out, fan_in, seed=seed), random(fan_out, seed=seed + 1)
    inputs = random(tokens, fan_in, seed=seed + 2)
    outputs = inputs @ weight.t() + bias
    operator = operator_norm(spectral_norm(weight).norm, weight.shape)
    largest_input = token_rms(inputs).amax()

    assert token_rms(outputs).amax() <= (operator * largest_input + token_rms(bias)) * (1 + ROUNDING)
    largest, mean, ratio = spread(outputs, inputs)
    assert mean <= largest * (1 + ROUNDING)
    assert largest <= 2 * operator * largest_input * (1 + ROUNDING)
    assert ratio <= operator * (1 + 1e-3)  # the differences of two rounded outputs, over distances down to 1e-3


def test_log_z_by_hand():
    mean, maximum = log_z(torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])).tolist()

    assert mean == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert maximum == pytest.approx(math.log(4))


@pytest.mark.parametrize("shape", [(5, 11), (2, 40, 30_000), (3, 300_000)])
def test_log_z_is_the_same_in_pieces(shape):
    logits = random(*shape) * 3
    expected = logits.double().logsumexp(-1)

    assert log_z(logits).tolist() == pytest.approx([expected.mean().item(), expected.max().item()], rel=ROUNDING)


def test_log_z_of_bfloat16_is_computed_in_float32():
    logits = (random(6, 5000) * 10).bfloat16().t()

    torch.testing.assert_close(log_z(logits), log_z(logits.float().contiguous()))


def test_log_z_survives_huge_logits_and_shows_nan():
    assert log_z(torch.tensor([[1e30, 0.0]])).tolist() == pytest.approx([1e30, 1e30])
    assert log_z(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])).isnan().all()


@given(SEEDS, st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_log_z_moves_with_its_logits(seed, shift):
    logits = random(4, 9, seed=seed)

    torch.testing.assert_close(log_z(logits + shift), log_z(logits) + shift, rtol=ROUNDING, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (2, 700, 512), (1500, 1000)])
@pytest.mark.parametrize("poison", [None, math.nan, math.inf])
def test_extent_is_its_three_measures_also_where_it_works_in_pieces(shape, poison):
    x = random(*shape)
    if poison is not None:
        x.view(-1)[[1, -1]] = poison

    norms, largest, count = extent(x)
    torch.testing.assert_close(norms, token_rms(x), equal_nan=True)
    torch.testing.assert_close(torch.tensor(largest), abs_max(x), equal_nan=True)
    assert count == (0 if poison is None else 2)


def test_contribution_is_the_same_with_known_token_rms():
    x, y = random(40, 16), random(40, 16, seed=1)

    torch.testing.assert_close(contribution(y, x, token_rms(x)), contribution(y, x))


def test_spreads_of_many_modules_are_those_of_each():
    outputs = torch.stack([activations.pair_distances(random(9, 4, seed=seed)) for seed in range(3)])
    inputs = torch.stack([activations.pair_distances(random(9, 6, seed=seed + 9)) for seed in range(3)])
    inputs[1, :5] = 0.0  # other pairs are left out in each

    for place in (0, 1):  # values, and whether they were measured
        together = activations.spread(outputs, inputs)[place]
        each = [activations.spread(*row)[place] for row in zip(outputs, inputs, strict=True)]
        torch.testing.assert_close(together, torch.stack(each))
        alone = [activations.spread(row)[place] for row in outputs]
        torch.testing.assert_close(activations.spread(outputs)[place], torch.stack(alone))
