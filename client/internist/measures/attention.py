"""The logits that enter attention's softmax, seen from q and k: fused attention kernels never show them.

Shapes: B batch, H query heads, K key heads, G = H / K query heads per key head, T queries, S keys, D head features.
"""

import math

import torch
from torch import Tensor

from internist.measures.precision import full_precision

NOT_MEASURED = -torch.inf
"""The largest logit of a head in which no query sees a key: a maximum over nothing."""

HIDDEN_BELOW = -1e4
"""An additive mask at or under this hides its key: in float32 the softmax gives such a key exactly zero."""

QUERIES_CPU, ENTRIES_CPU = 32, 2**19
"""Most queries and logits per piece: 2 MB stays near the cache, and short pieces skip more of the causal triangle."""

QUERIES_ACCELERATOR, ENTRIES_ACCELERATOR = 512, 2**26
"""The same elsewhere: 256 MB of logits at a time."""


def max_logits(
    q: Tensor,
    k: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Largest attention logit of each head, signed and absolute, over batch, queries and the keys each query sees.

    Exact up to the rounding of float32 products: every visible logit is computed, in pieces. The arguments are those of
    `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        q: (..., H, T, D), floating; (T, D) or (B, T, D) count as one head, and all leading dimensions as batch.
        k: (..., K, S, D), floating, with the batch of q.
        mask: bool, True where a key is seen, or floating, added to the logits (`HIDDEN_BELOW` and under hides the
            key); broadcast to (..., H, T, S).
        is_causal: query i sees keys 0 to i, whatever T and S are.
        scale: factor of q.k; None is 1 / sqrt(D).
        enable_gqa: H is a multiple of K, and neighbouring query heads share a key head. One key head is shared by
            all without it.

    Returns:
        (2, H) float32: the largest logit, the largest absolute logit. A NaN logit gives NaN, as in the softmax,
        unless it lies after its query. A query that sees no key does not count, and a head in which none sees any
        gets `NOT_MEASURED` twice.

    Raises:
        ValueError: shapes do not fit, or a tensor is empty or not floating.

    Source: Kimi Team 2025, arXiv:2507.20534 (the signed maximum; the absolute one is the project's).
    """
    q_BHTD, k_BKSD = _heads(q), _heads(k)
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    if q.shape[: max(0, q.ndim - 3)] != k.shape[: max(0, k.ndim - 3)] or len(k_BKSD) != B or k_BKSD.shape[3] != D:
        raise ValueError(f"expected q and k of one batch and head size, got {tuple(q.shape)} and {tuple(k.shape)}")
    if H % K or (H != K and K != 1 and not enable_gqa):
        raise ValueError(f"expected {H} key heads, or a divisor of it with enable_gqa, got {K}")
    G = H // K
    q_BKGTD = q_BHTD.view(B, K, G, T, D)
    mask_BKGTS = None if mask is None else _grouped(mask, q, K, S)

    on_cpu = q.device.type == "cpu"
    queries, entries = (QUERIES_CPU, ENTRIES_CPU) if on_cpu else (QUERIES_ACCELERATOR, ENTRIES_ACCELERATOR)
    queries = max(1, min(queries, T, entries // (H * S)))
    batch = max(1, entries // (H * S * queries))
    with full_precision(q):
        pieces = [
            _extremes(
                q_BKGTD[first : first + batch],
                k_BKSD[first : first + batch],
                None if mask_BKGTS is None else mask_BKGTS[first : first + batch],
                is_causal=is_causal,
                scale=1.0 / math.sqrt(D) if scale is None else scale,
                queries=queries,
            )
            for first in range(0, B, batch)
        ]
    largest = torch.stack([piece[0] for piece in pieces]).amax(dim=0)
    smallest = torch.stack([piece[1] for piece in pieces]).amin(dim=0)
    return torch.stack((largest, torch.maximum(largest, smallest.neg())))


def _extremes(
    q_BKGTD: Tensor, k_BKSD: Tensor, mask_BKGTS: Tensor | None, *, is_causal: bool, scale: float, queries: int
) -> tuple[Tensor, Tensor]:
    """Largest and smallest visible logit of each query head, both (H,); minus and plus infinity if none is visible."""
    B, K, G, T, D = q_BKGTD.shape
    S = k_BKSD.shape[2]
    q_BKGTD = q_BKGTD.float() * scale
    k_NDS = k_BKSD.float().reshape(B * K, S, D).transpose(1, 2)
    later = torch.ones(queries, queries, dtype=torch.bool, device=q_BKGTD.device).triu_(1) if is_causal else None
    largest, smallest = [], []
    for start in range(0, T, queries):
        stop = min(start + queries, T)
        keys = min(stop, S) if is_causal else S
        q_NRD = q_BKGTD[:, :, :, start:stop].reshape(B * K, G * (stop - start), D)
        logits = torch.bmm(q_NRD, k_NDS[:, :, :keys]).view(B, K, G, stop - start, keys)
        triangle = later[: stop - start, : keys - start] if later is not None and start < keys else None
        if mask_BKGTS is None:
            if triangle is not None:  # what lies after a query gives way to its first key, which it always sees
                late = logits[..., start:]
                torch.where(triangle, logits[..., :1], late, out=late)
            floor = ceiling = logits
        else:
            part = mask_BKGTS[:, :, :, start:stop, :keys]
            is_bias = part.is_floating_point()
            hidden = part <= HIDDEN_BELOW if is_bias else ~part
            bias = part.float() if is_bias else torch.zeros_like(part, dtype=torch.float32)
            floor = logits + bias.masked_fill(hidden, NOT_MEASURED)
            ceiling = logits.add_(bias.masked_fill(hidden, -NOT_MEASURED))
            if triangle is not None:
                floor[..., start:].masked_fill_(triangle, NOT_MEASURED)
                ceiling[..., start:].masked_fill_(triangle, -NOT_MEASURED)
        largest.append(floor.amax(dim=(3, 4)))
        smallest.append(ceiling.amin(dim=(3, 4)))
    return torch.stack(largest).amax(dim=(0, 1)).flatten(), torch.stack(smallest).amin(dim=(0, 1)).flatten()


def _heads(x: Tensor) -> Tensor:
    """(B, heads, tokens, D) of any layout that SDPA takes."""
    if x.ndim < 2 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(f"expected a floating (..., heads, tokens, features), got {x.dtype} of shape {tuple(x.shape)}")
    if x.ndim < 4:
        return x.unsqueeze(-3).reshape(-1, 1, *x.shape[-2:])
    return x.flatten(0, -4)


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
