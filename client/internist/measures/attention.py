"""The logits that enter attention's softmax, seen from q and k: fused attention kernels never show them.

Shapes: B batch, H query heads, K key heads, G = H / K query heads per key head, T queries, S keys, D head features.
"""

import math
from typing import Any

import torch
from torch import Tensor

from internist.measures.kernels import max_logits as kernels
from internist.measures.kernels.operators import usable
from internist.measures.logit_pieces import (
    HIDDEN_BELOW,
    NOT_MEASURED,
    MaskMod,
    ScoreMod,
    Visibility,
    by_pieces,
    entries_at_once,
)

__all__ = ["HIDDEN_BELOW", "NOT_MEASURED", "MaskMod", "ScoreMod", "max_entries", "max_logits"]


def max_logits(
    q: Tensor,
    k: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float | None = None,
    window: tuple[int | None, int | None] = (None, None),
    from_end: bool = False,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
) -> Tensor:
    """Largest attention logit of each head, signed and absolute, over batch, queries and the keys each query sees.

    Exact up to the rounding of float32 products: every visible logit is computed, in pieces, or by a kernel that keeps
    none of them where nothing but windows hides keys. The arguments are those of
    `torch.nn.functional.scaled_dot_product_attention`, and what other kernels add to it. In this order: scale, softcap,
    score_mod, mask.

    Args:
        q: (..., H, T, D), floating; (T, D) or (B, T, D) count as one head, and all leading dimensions as batch.
        k: (..., K, S, D), floating, with the batch of q or one that broadcasts with it.
        mask: bool, True where a key is seen, or floating, added to the logits (`HIDDEN_BELOW` and under hides the
            key); broadcast to (..., H, T, S).
        is_causal: query i sees keys 0 to i, whatever T and S are.
        scale: factor of q.k; None is 1 / sqrt(D).
        enable_gqa: H is a multiple of K, and neighbouring query heads share a key head. One key head is shared by
            all without it.
        softcap: logits become softcap tanh(logit / softcap); None or 0: they do not.
        window: how many keys before and after its own place a query sees; None or a negative number: all.
        from_end: the last query's own place is the last key (as in flash attention), not the first one's the first.
        score_mod: changes logits; what it makes `HIDDEN_BELOW` or less is hidden.
        mask_mod: says which keys are seen. Both get the index of the flattened batch.

    Returns:
        (2, H) float32: the largest logit, the largest absolute logit. A NaN logit gives NaN, as in the softmax,
        unless it lies outside of its query's window. A query that sees no key does not count, and a head in which none
        sees any gets `NOT_MEASURED` twice.

    Raises:
        ValueError: shapes do not fit, or a tensor is empty or not floating.

    Source: Kimi Team 2025, arXiv:2507.20534 (the signed maximum; the absolute one is the project's); the softcap is
    Gemma Team 2024, arXiv:2408.00118, section 2.
    """
    q, k = _one_batch(q, k)
    q_BHTD, k_BKSD = _heads(q), _heads(k)
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    if len(k_BKSD) != B:
        raise ValueError(f"expected q and k of one batch and head size, got {tuple(q.shape)} and {tuple(k.shape)}")
    if H % K or (H != K and K != 1 and not enable_gqa):
        raise ValueError(f"expected {H} key heads, or a divisor of it with enable_gqa, got {K}")
    mask_BKGTS = None if mask is None else _grouped(mask, q, K, S)
    left, right = (None if one is None or one < 0 else one for one in window)
    visible = Visibility(left, 0 if is_causal else right, S - T if from_end else 0, score_mod, mask_mod)
    scale = 1.0 / math.sqrt(D) if scale is None else scale
    only_a_band = mask is None and score_mod is None and mask_mod is None
    if only_a_band and q.device.type != "cpu" and usable(q.device):
        return kernels.max_logits(q_BHTD, k_BKSD, visible, scale=scale, softcap=softcap or None)
    return by_pieces(q_BHTD, k_BKSD, mask_BKGTS, visible, scale=scale, softcap=softcap or None)


def max_entries(logits_BHTS: Tensor) -> Tensor:
    """Largest entry of each head, signed and absolute, of what enters a softmax over the last dimension.

    Args:
        logits_BHTS: floating. Entries at `HIDDEN_BELOW` or less are hidden and do not count.

    Returns:
        (2, H) float32, as `max_logits` gives them. Where the largest entry of every query is exactly zero while others
        are not, each query's logits were shifted by their maximum before: the logits are not there to be seen, and all
        heads get `NOT_MEASURED`.

    Raises:
        ValueError: the tensor has other than four dimensions, is empty or not floating.
    """
    x = logits_BHTS
    if x.ndim != 4 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(f"expected a floating (batch, heads, queries, keys), got {x.dtype} of shape {tuple(x.shape)}")
    B, H, T, S = x.shape
    entries = entries_at_once(x.device)
    queries = max(1, min(T, entries // (H * S)))
    batch = max(1, entries // (H * S * queries))
    largest, smallest, shifted = [], [], []
    for first in range(0, B, batch):
        for start in range(0, T, queries):
            part = x[first : first + batch, :, start : start + queries].float()
            tops = part.amax(dim=3)
            hidden = part <= HIDDEN_BELOW
            shifted.append(((tops == 0) | (tops <= HIDDEN_BELOW)).all())
            largest.append(tops.amax(dim=(0, 2)))
            smallest.append(part.masked_fill(hidden, -NOT_MEASURED).amin(dim=(0, 2, 3)))
    top, bottom = torch.stack(largest).amax(dim=0), torch.stack(smallest).amin(dim=0)
    is_shifted = torch.stack(shifted).all() & ((bottom < 0) & (bottom > NOT_MEASURED)).any()
    nothing_seen = (top <= HIDDEN_BELOW) | is_shifted
    found = torch.stack((top, torch.maximum(top, bottom.neg())))
    return found.masked_fill(nothing_seen, NOT_MEASURED)


def _one_batch(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with the same leading dimensions and head size."""
    if min(q.ndim, k.ndim) < 2:
        return q, k
    broadcast: Any = torch.broadcast_shapes
    try:
        batch = broadcast(q.shape[: max(0, q.ndim - 3)], k.shape[: max(0, k.ndim - 3)])
    except RuntimeError:
        batch = None
    if batch is None or q.ndim != k.ndim or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"expected q and k of one batch and head size, got {tuple(q.shape)} and {tuple(k.shape)}")
    q_shape, k_shape = (torch.Size((*batch, *x.shape[len(batch) :])) for x in (q, k))
    return q if q.shape == q_shape else q.expand(q_shape), k if k.shape == k_shape else k.expand(k_shape)


def _heads(x: Tensor) -> Tensor:
    """(B, heads, tokens, D) of any layout that SDPA takes."""
    if x.ndim < 2 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(f"expected a floating (..., heads, tokens, features), got {x.dtype} of shape {tuple(x.shape)}")
    if x.ndim < 4:
        return x.unsqueeze(-3).reshape(-1, 1, *x.shape[-2:])
    return x if x.ndim == 4 else x.flatten(0, -4)


def _grouped(mask: Tensor, q: Tensor, key_heads: int, keys: int) -> Tensor:
    """The mask as (B, K, G, T, S), with K and G of 1 where one mask serves all heads."""
    shape = q.shape
    if len(shape) < 4:
        shape, mask = q.unsqueeze(-3).shape, mask.unsqueeze(-3) if mask.ndim > 2 else mask
    heads = mask.shape[-3] if mask.ndim > 2 else 1
    if heads not in (1, shape[-3]):
        raise ValueError(f"expected a mask for 1 or {shape[-3]} heads, got {tuple(mask.shape)}")
    try:
        full = mask.expand(*shape[:-3], heads, shape[-2], keys)
    except RuntimeError as error:
        raise ValueError(f"expected a mask for {(*shape[:-1], keys)}, got {tuple(mask.shape)}") from error
    groups = heads // key_heads if heads > 1 else 1
    return full.reshape(-1, heads // groups, groups, shape[-2], keys)
