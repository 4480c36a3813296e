"""Attention's logits piece by piece, in float32: exact whatever hides keys or changes logits, and the reference of the
kernel that is faster where nothing but a band of keys does.

Shapes: B batch, H query heads, K key heads, G = H / K query heads per key head, T queries, S keys, D head features.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
class Visibility:
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


def by_pieces(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    mask_BKGTS: Tensor | None,
    visible: Visibility,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Largest logit and largest absolute logit of each head, (2, H) float32, as `attention.max_logits` gives them.

    Args:
        q_BHTD: floating, not empty.
        k_BKSD: the same; K divides H.
        mask_BKGTS: bool or floating, with K and G of 1 where it serves all heads.
        visible: what hides keys or changes logits besides.
        scale: factor of q.k.
        softcap: logits become softcap tanh(logit / softcap).
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    q_BKGTD = q_BHTD.reshape(B, K, H // K, T, D)
    device = q_BHTD.device
    entries = entries_at_once(device)
    queries = max(1, min(QUERIES_CPU if device.type == "cpu" else QUERIES_ACCELERATOR, T, entries // (H * S)))
    batch = max(1, entries // (H * S * queries))
    with full_precision(q_BHTD):
        pieces = [
            _extremes(
                q_BKGTD[first : first + batch],
                k_BKSD[first : first + batch],
                None if mask_BKGTS is None else mask_BKGTS[first : first + batch],
                visible=visible,
                scale=scale,
                softcap=softcap,
                queries=queries,
                first=first,
            )
            for first in range(0, B, batch)
        ]
    return _merged(pieces)


def entries_at_once(device: torch.device) -> int:
    """How many logits a piece holds at most."""
    return ENTRIES_CPU if device.type == "cpu" else ENTRIES_ACCELERATOR


def _extremes(
    q_BKGTD: Tensor,
    k_BKSD: Tensor,
    mask_BKGTS: Tensor | None,
    *,
    visible: Visibility,
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
    logits: Tensor, mask: Tensor | None, visible: Visibility, begins: tuple[int, int, int]
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
