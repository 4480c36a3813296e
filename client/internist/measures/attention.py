"""The logits that enter attention's softmax, seen from q and k: fused attention kernels never show them.

Shapes: B batch, H query heads, K key heads, G = H / K query heads per key head, T queries, S keys, D head features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from internist.measures.precision import full_precision

NOT_MEASURED = -torch.inf
"""The largest logit of a head in which no query sees a key: a maximum over nothing."""

HIDDEN_BELOW = -5e3
"""An additive mask at or under this hides its key, and so does what enters a softmax at or under this: in float32 the
softmax gives such a key exactly zero. Half of the -1e4 that is often written: rounded to bfloat16 that is -9984, and
added to a logit it is a little more."""

QUERIES_CPU, ENTRIES_CPU = 32, 2**19
"""Most queries and logits per piece: 2 MB stays near the cache, and short pieces skip more of the causal triangle."""

QUERIES_ACCELERATOR, ENTRIES_ACCELERATOR = 512, 2**26
"""The same elsewhere: 256 MB of logits at a time."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(B, H, T, S) logits and the indices of batch, head, query and key, which broadcast to that shape, to logits."""
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The same indices to bool, True where the query sees the key."""


@dataclass(frozen=True, slots=True)
class _Visibility:
    """What a query may see of the keys, besides a mask: a band around its own place, and functions of the indices."""

    left: int | None
    """Keys before its own place; None: all."""
    right: int | None
    offset: int
    """The own place of query i is key i + offset."""
    score_mod: ScoreMod | None = None
    mask_mod: MaskMod | None = None

    def keys(self, start: int, stop: int, keys: int) -> tuple[int, int]:
        """The keys that any query of a piece may see, from and to."""
        low = 0 if self.left is None else start + self.offset - self.left
        high = keys if self.right is None else stop + self.offset + self.right
        return max(0, low), min(keys, high)

    def outside(self, start: int, stop: int, low: int, high: int, device: torch.device) -> Tensor | None:
        """(queries, keys) True outside the band; None where all are inside."""
        left_holds = self.left is None or low >= stop - 1 + self.offset - self.left
        right_holds = self.right is None or high - 1 <= start + self.offset + self.right
        if left_holds and right_holds:
            return None
        own = torch.arange(start + self.offset, stop + self.offset, device=device).unsqueeze(1)
        key = torch.arange(low, high, device=device)
        hidden = torch.zeros(stop - start, high - low, dtype=torch.bool, device=device)
        if not left_holds and self.left is not None:
            hidden |= key < own - self.left
        if not right_holds and self.right is not None:
            hidden |= key > own + self.right
        return hidden


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

    Exact up to the rounding of float32 products: every visible logit is computed, in pieces. The arguments are those of
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
    G = H // K
    q_BKGTD = q_BHTD.reshape(B, K, G, T, D)
    mask_BKGTS = None if mask is None else _grouped(mask, q, K, S)
    left, right = (None if one is None or one < 0 else one for one in window)
    visible = _Visibility(left, 0 if is_causal else right, S - T if from_end else 0, score_mod, mask_mod)

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
                visible=visible,
                scale=1.0 / math.sqrt(D) if scale is None else scale,
                softcap=softcap or None,
                queries=queries,
                first=first,
            )
            for first in range(0, B, batch)
        ]
    return _merged(pieces)


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
    entries = ENTRIES_CPU if x.device.type == "cpu" else ENTRIES_ACCELERATOR
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


def _extremes(
    q_BKGTD: Tensor,
    k_BKSD: Tensor,
    mask_BKGTS: Tensor | None,
    *,
    visible: _Visibility,
    scale: float,
    softcap: float | None,
    queries: int,
    first: int,
) -> tuple[Tensor, Tensor]:
    """Largest and smallest visible logit of each query head, both (H,); minus and plus infinity if none is visible."""
    B, K, G, T, D = q_BKGTD.shape
    S = k_BKSD.shape[2]
    q_BKGTD = q_BKGTD.float() * scale
    k_NDS = k_BKSD.float().reshape(B * K, S, D).transpose(1, 2)
    nothing = q_BKGTD.new_full((B, K, G), NOT_MEASURED)
    pieces = [(nothing, -nothing)]
    for start in range(0, T, queries):
        stop = min(start + queries, T)
        low, high = visible.keys(start, stop, S)
        if low >= high:
            continue
        q_NRD = q_BKGTD[:, :, :, start:stop].reshape(B * K, G * (stop - start), D)
        logits = torch.bmm(q_NRD, k_NDS[:, :, low:high]).view(B, K, G, stop - start, high - low)
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        part = None if mask_BKGTS is None else mask_BKGTS[:, :, :, start:stop, low:high]
        floor, ceiling = _seen(logits, part, visible, (first, start, low))
        pieces.append((floor.amax(dim=(3, 4)), ceiling.amin(dim=(3, 4))))
    largest, smallest = zip(*pieces, strict=True)
    return torch.stack(largest).amax(dim=(0, 1)).flatten(), torch.stack(smallest).amin(dim=(0, 1)).flatten()


def _seen(
    logits: Tensor, mask: Tensor | None, visible: _Visibility, begins: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """A piece's logits twice: hidden entries minus infinity, and hidden entries plus infinity.

    Args:
        logits: (B, K, G, T, S) of the piece.
        mask: of the piece.
        begins: its first index of batch, query and key.
    """
    B, K, G, T, S = logits.shape
    first, start, low = begins
    outside = visible.outside(start, start + T, low, low + S, logits.device)
    plain = mask is None and visible.score_mod is None and visible.mask_mod is None
    if plain and outside is None:
        return logits, logits
    if plain and visible.left is None and visible.offset == 0 and outside is not None:
        # what lies after a query gives way to its first key, which it always sees
        late = logits[..., start:]
        torch.where(outside[:, start:], logits[..., :1], late, out=late)
        return logits, logits
    hidden = outside
    if visible.score_mod is not None or visible.mask_mod is not None:
        places = [
            torch.arange(begin, begin + size, device=logits.device)
            for begin, size in ((first, B), (0, K * G), (start, T), (low, S))
        ]
        b, h, query, key = (
            place.view([-1 if dim == own else 1 for dim in range(4)]) for own, place in enumerate(places)
        )
        if visible.score_mod is not None:
            scores = visible.score_mod(logits.view(B, K * G, T, S), b, h, query, key)
            logits = scores.to(torch.float32, copy=True).view(B, K, G, T, S)  # what it gave may be the user's own
            hidden = _either(hidden, logits <= HIDDEN_BELOW)
        if visible.mask_mod is not None:
            seen = visible.mask_mod(b, h, query, key).expand(B, K * G, T, S)
            hidden = _either(hidden, ~seen.reshape(B, K, G, T, S))
    floor = ceiling = logits
    if mask is not None:
        is_bias = mask.is_floating_point()
        bias = mask.float() if is_bias else torch.zeros_like(mask, dtype=torch.float32)
        veiled = mask <= HIDDEN_BELOW if is_bias else ~mask
        floor = logits + bias.masked_fill(veiled, NOT_MEASURED)
        ceiling = logits.add_(bias.masked_fill(veiled, -NOT_MEASURED))
        if hidden is not None:
            floor.masked_fill_(hidden, NOT_MEASURED)
            ceiling.masked_fill_(hidden, -NOT_MEASURED)
    elif hidden is not None:
        floor = logits.masked_fill(hidden, NOT_MEASURED)
        ceiling = logits.masked_fill_(hidden, -NOT_MEASURED)
    return floor, ceiling


def _either(hidden: Tensor | None, more: Tensor) -> Tensor:
    return more if hidden is None else hidden | more


def _merged(pieces: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(2, H) the largest signed and absolute logit, of pieces that each give the largest and the smallest."""
    largest = torch.stack([piece[0] for piece in pieces]).amax(dim=0)
    smallest = torch.stack([piece[1] for piece in pieces]).amin(dim=0)
    return torch.stack((largest, torch.maximum(largest, smallest.neg())))


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
    return q.expand(*batch, *q.shape[len(batch) :]), k.expand(*batch, *k.shape[len(batch) :])


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
