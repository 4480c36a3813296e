"""Attention's largest logits: by hand, against the materialised matrix, their ceiling, and what is hidden."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from internist.measures import logit_pieces
from internist.measures.attention import NOT_MEASURED, max_entries, max_logits

ROUNDING = 1e-5
"""A float32 product over at most 64 features, against float64."""

LOWEST = torch.finfo(torch.float32).min
"""What Hugging Face adds to hide a key."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(
    q: Tensor, k: Tensor, *, mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """The whole matrix in float64, every hidden entry struck out."""
    k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    logits = q.double() @ k.double().transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = torch.ones(logits.shape, dtype=torch.bool)
    if is_causal:
        seen &= torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        seen &= mask
    elif mask is not None:
        logits, seen = logits + mask.double(), seen & (mask > -1e4)
    others = [dim for dim in range(logits.ndim) if dim != logits.ndim - 3]
    signed = logits.masked_fill(~seen, -torch.inf).amax(others)
    return torch.stack((signed, logits.abs().masked_fill(~seen, -torch.inf).amax(others))).float()


def test_logits_by_hand():
    q = torch.tensor([[[[1.0, 0.0]], [[0.0, 3.0]]]])
    k = torch.tensor([[[[2.0, 5.0], [-4.0, 1.0]], [[1.0, 1.0], [0.0, -2.0]]]])

    assert max_logits(q, k, scale=1.0).tolist() == [[2.0, 3.0], [4.0, 6.0]]
    assert max_logits(q, k)[0].tolist() == pytest.approx([2 / math.sqrt(2), 3 / math.sqrt(2)])
    assert max_logits(q, k, scale=-1.0).tolist() == [[4.0, 6.0], [4.0, 6.0]]


MASKS = {
    "none": None,
    "bool, one for all heads": random(2, 1, 70, 90) > 0,
    "bool, each head its own": random(2, 8, 70, 90) > 0,
    "bool, one key padding": random(2, 1, 1, 90) > 0,
    "bias": random(70, 90) * 3,
    "bias by head": random(8, 70, 90) * 3,
    "bias that hides by infinity": torch.where(random(2, 1, 70, 90) > 0, 0.0, -torch.inf),
    "bias that hides by the lowest number": torch.where(random(2, 1, 70, 90) > 0, 0.5, LOWEST),
    "bias in bfloat16": torch.where(random(2, 1, 70, 90) > 0, 0.5, torch.finfo(torch.bfloat16).min).bfloat16(),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("key_heads", [8, 4, 1])
def test_logits_match_the_materialised_matrix(mask, is_causal, key_heads):
    q, k = random(2, 8, 70, 16), random(2, key_heads, 90, 16, seed=1)

    found = max_logits(q, k, mask=mask, is_causal=is_causal, enable_gqa=key_heads == 4)
    torch.testing.assert_close(found, reference(q, k, mask=mask, is_causal=is_causal), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 90), (90, 1), (33, 32), (64, 200), (200, 64)])
def test_causality_counts_from_the_first_key_whatever_the_lengths(queries, keys):
    q, k = random(1, 2, queries, 8), random(1, 2, keys, 8, seed=1)

    torch.testing.assert_close(max_logits(q, k, is_causal=True), reference(q, k, is_causal=True))


@pytest.mark.parametrize("entries", [1, 700, 10_000])
def test_the_size_of_the_pieces_changes_nothing(entries, monkeypatch):
    q, k = random(3, 4, 50, 8), random(3, 2, 50, 8, seed=1)
    mask = random(3, 1, 50, 50) > 0

    whole = max_logits(q, k, mask=mask, is_causal=True, enable_gqa=True)
    monkeypatch.setattr(logit_pieces, "ENTRIES_CPU", entries)
    torch.testing.assert_close(max_logits(q, k, mask=mask, is_causal=True, enable_gqa=True), whole)


def test_projections_as_views_and_in_bfloat16_are_taken_as_they_are():
    q, k = random(2, 40, 4, 8).bfloat16().transpose(1, 2), random(2, 40, 4, 8, seed=1).bfloat16().transpose(1, 2)

    torch.testing.assert_close(max_logits(q, k, is_causal=True), reference(q, k, is_causal=True))


def test_without_a_head_dimension_there_is_one_head():
    q, k, mask = random(3, 20, 8), random(3, 25, 8, seed=1), random(3, 20, 25) > 0

    expected = reference(q[:, None], k[:, None], mask=mask[:, None])
    torch.testing.assert_close(max_logits(q, k, mask=mask), expected)
    torch.testing.assert_close(max_logits(q[0], k[0], mask=mask[0]), reference(q[:1], k[:1], mask=mask[:1]))


def test_all_leading_dimensions_are_batch():
    q, k = random(2, 3, 4, 20, 8), random(2, 3, 4, 20, 8, seed=1)
    mask = random(3, 1, 20, 20) > 0

    torch.testing.assert_close(max_logits(q, k, mask=mask), reference(q, k, mask=mask))


def test_a_row_without_any_visible_key_does_not_count():
    q, k = random(1, 2, 2, 4), random(1, 2, 3, 4, seed=1)
    mask = torch.tensor([[True, True, True], [False, False, False]])

    torch.testing.assert_close(max_logits(q, k, mask=mask), reference(q[:, :, :1], k))


@pytest.mark.parametrize("mask", [torch.zeros(2, 3).bool(), torch.full((2, 3), LOWEST), torch.full((2, 3), -torch.inf)])
def test_a_head_without_any_visible_key_is_not_measured(mask):
    found = max_logits(random(1, 2, 2, 4), random(1, 2, 3, 4, seed=1), mask=mask)

    assert (found == NOT_MEASURED).all()


def test_nan_shows_in_its_own_head():
    q, k = random(2, 3, 40, 4), random(2, 3, 40, 4, seed=1)
    q[1, 2, 39, 0] = torch.nan

    for is_causal in (False, True):
        found = max_logits(q, k, is_causal=is_causal)
        assert found[:, 2].isnan().all()
        assert found[:, :2].isfinite().all()


def test_a_nan_key_after_every_query_is_not_seen():
    q, k = random(1, 1, 3, 4), random(1, 1, 5, 4, seed=1)
    k[0, 0, 4] = torch.nan

    assert max_logits(q, k).isnan().all()
    assert max_logits(q, k, is_causal=True).isfinite().all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(max_examples=40, deadline=None)
def test_logits_stay_under_the_product_of_the_norms(seed, queries, keys, is_causal):
    q, k = random(2, 3, queries, 5, seed=seed), random(2, 3, keys, 5, seed=seed + 1)

    signed, absolute = max_logits(q, k, is_causal=is_causal)
    ceiling = q.norm(dim=-1).amax(dim=(0, 2)) * k.norm(dim=-1).amax(dim=(0, 2)) / math.sqrt(5)
    assert (absolute <= ceiling * (1 + ROUNDING)).all()
    assert (signed <= absolute).all()


@given(st.integers(0, 2**32 - 1), st.floats(1e-2, 1e2))
@settings(max_examples=20, deadline=None)
def test_logits_scale_with_either_side(seed, factor):
    q, k = random(1, 2, 10, 4, seed=seed), random(1, 2, 10, 4, seed=seed + 1)

    torch.testing.assert_close(max_logits(q * factor, k), max_logits(q, k) * factor)
    torch.testing.assert_close(max_logits(q, k * factor), max_logits(q, k, scale=factor / 2))


@pytest.mark.parametrize(
    ("q", "k", "options"),
    [
        ((2, 4, 5, 8), (2, 4, 5, 7), {}),
        ((2, 4, 5, 8), (3, 4, 5, 8), {}),
        ((2, 4, 5, 8), (2, 2, 5, 8), {}),
        ((2, 4, 5, 8), (2, 3, 5, 8), {"enable_gqa": True}),
        ((2, 4, 5, 8), (5, 8), {}),
        ((2, 4, 0, 8), (2, 4, 5, 8), {}),
        ((2, 4, 5, 8), (2, 4, 0, 8), {}),
        ((8,), (8,), {}),
        ((2, 4, 5, 8), (2, 4, 6, 8), {"mask": torch.ones(5, 5).bool()}),
        ((2, 4, 5, 8), (2, 4, 6, 8), {"mask": torch.ones(3, 5, 6).bool()}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(q, k, options):
    with pytest.raises(ValueError, match="expected"):
        max_logits(torch.zeros(q), torch.zeros(k), **options)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="floating"):
        max_logits(torch.ones(1, 1, 2, 2).long(), torch.ones(1, 1, 2, 2))


# ---- what other kernels add ----------------------------------------------------------------------------------------


def full(q, k, *, mask=None, softcap=None, window=(None, None), causal=False, from_end=False):
    """(2, H) of the whole matrix in float64, in the order of the kernels: scale, softcap, mask, window."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    T, S = logits.shape[-2:]
    ahead = torch.arange(S) - torch.arange(T).unsqueeze(1) - (S - T if from_end else 0)
    left, right = window[0], 0 if causal else window[1]
    seen = torch.ones(logits.shape, dtype=torch.bool)
    if left is not None:
        seen &= ahead >= -left
    if right is not None:
        seen &= ahead <= right
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    elif mask is not None:
        logits, seen = logits + mask.double(), seen & (mask > -5e3)
    signed = logits.masked_fill(~seen, -torch.inf).amax((0, 2, 3))
    return torch.stack((signed, logits.abs().masked_fill(~seen, -torch.inf).amax((0, 2, 3)))).float()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("window", [(None, None), (7, None), (None, 3), (5, 2), (0, 0)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("causal", "from_end"), [(False, False), (True, False), (True, True), (False, True)])
def test_windows_softcaps_and_alignments_match_the_materialised_matrix(mask, window, softcap, causal, from_end):
    q, k = random(2, 8, 70, 16), random(2, 4, 90, 16, seed=1)

    found = max_logits(
        q, k, mask=mask, softcap=softcap, window=window, is_causal=causal, from_end=from_end, enable_gqa=True
    )
    expected = full(q, k, mask=mask, softcap=softcap, window=window, causal=causal, from_end=from_end)
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_computed_in_float32(dtype):
    q, k = random(2, 8, 70, 16).to(dtype), random(2, 2, 70, 16, seed=1).to(dtype)

    found = max_logits(q, k, softcap=2.0, window=(9, 0), enable_gqa=True)
    torch.testing.assert_close(found, full(q, k, softcap=2.0, window=(9, 0)), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("entries", [1, 700, 10_000])
def test_functions_of_indices_get_those_of_the_whole_whatever_the_pieces(entries, monkeypatch):
    q, k = random(3, 4, 50, 8), random(3, 2, 50, 8, seed=1)
    bias, seen = random(3, 4, 50, 50, seed=2), random(3, 4, 50, 50, seed=3) > 0
    monkeypatch.setattr(logit_pieces, "ENTRIES_CPU", entries)

    found = max_logits(
        q,
        k,
        enable_gqa=True,
        window=(30, 5),
        score_mod=lambda scores, b, h, query, key: scores + bias[b, h, query, key],
        mask_mod=lambda b, h, query, key: seen[b, h, query, key],
    )
    expected = full(q, k, mask=torch.where(seen, bias, -torch.inf), window=(30, 5))
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def test_memory_stays_bounded_by_the_pieces():
    q, k = random(1, 2, 4_000, 4), random(1, 2, 4_000, 4, seed=1)
    largest = []

    def noting(scores, *_):
        largest.append(scores.numel())
        return scores

    max_logits(q, k, score_mod=noting)
    assert max(largest) <= logit_pieces.ENTRIES_CPU


def test_a_key_of_one_batch_serves_all():
    q, k = random(3, 2, 5, 4), random(1, 2, 6, 4, seed=1)

    torch.testing.assert_close(max_logits(q, k), max_logits(q, k.expand(3, -1, -1, -1)))


# ---- what enters a softmax -----------------------------------------------------------------------------------------


def test_entries_by_hand():
    logits = torch.tensor([[[[1.0, -4.0], [2.0, -torch.inf]], [[-1e9, -3.0], [-1.0, -9_984.0]]]])

    assert max_entries(logits).tolist() == [[2.0, -1.0], [4.0, 3.0]]


@pytest.mark.parametrize("entries", [1, 50, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_match_the_logits_they_were_made_of(entries, dtype, monkeypatch):
    monkeypatch.setattr(logit_pieces, "ENTRIES_CPU", entries)
    logits = (random(3, 4, 20, 25) * 10).to(dtype)
    seen = random(3, 1, 20, 25, seed=1) > 0
    expected = torch.stack(
        (logits.float().masked_fill(~seen, -torch.inf), logits.float().abs().masked_fill(~seen, -torch.inf))
    ).amax((1, 3, 4))

    torch.testing.assert_close(max_entries(logits.masked_fill(~seen, torch.finfo(dtype).min)), expected)


def test_entries_that_were_shifted_by_their_maximum_are_not_measured_and_zeros_are():
    logits = random(2, 3, 8, 8)

    assert (max_entries(logits - logits.amax(-1, keepdim=True)) == NOT_MEASURED).all()
    assert (max_entries(torch.zeros(2, 3, 8, 8)) == 0).all()


def test_nan_and_hidden_heads_among_entries():
    logits = random(1, 3, 4, 4)
    logits[0, 1, 2, 2], logits[0, 2] = torch.nan, -torch.inf
    found = max_entries(logits)

    assert found[:, 0].isfinite().all()
    assert found[:, 1].isnan().all()
    assert (found[:, 2] == NOT_MEASURED).all()


@pytest.mark.parametrize("logits", [torch.ones(2, 3, 4), torch.ones(1, 0, 2, 2), torch.ones(1, 1, 2, 2).int()])
def test_entries_of_another_shape_are_refused(logits):
    with pytest.raises(ValueError, match="expected a floating"):
        max_entries(logits)
