"""The largest attention logit of each head, where a band of keys is all that hides any: `internist::max_logits`."""

import torch
from torch import Tensor

from internist.measures.kernels.operators import define
from internist.measures.logit_pieces import Visibility, by_pieces

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernel multiplies; both tensors are of one of them."""


def max_logits(q_BHTD: Tensor, k_BKSD: Tensor, visible: Visibility, *, scale: float, softcap: float | None) -> Tensor:
    """Largest logit and largest absolute logit of each head, by one launch where there is a kernel.

    The matrix of logits is never written: a kernel keeps the extremes of what it has multiplied. Products of float32
    are those of IEEE, whatever the run allows, and those of 16 bits are exact; sums are float32.

    Args:
        q_BHTD: floating, not empty, of any strides.
        k_BKSD: the same, on the same device; K divides H, and neighbouring query heads share a key head.
        visible: a band of keys, and no function of indices.
        scale: factor of q.k.
        softcap: positive: logits become softcap tanh(logit / softcap).

    Returns:
        (2, H) float32. A NaN logit within its query's band gives NaN; no key in any query's band, minus infinity.

    Raises:
        ValueError: shapes or devices do not fit, or keys are hidden by a function.
    """
    if visible.score_mod is not None or visible.mask_mod is not None:
        raise ValueError("expected keys to be hidden by a band alone, got a function of indices")
    found: Tensor = _operator(q_BHTD, k_BKSD, visible.left, visible.right, visible.offset, scale, softcap)
    return found


def _takes(q: Tensor, k: Tensor, *_: float | None) -> bool:
    return q.dtype == k.dtype and q.dtype in TYPES


def _plain(
    q: Tensor, k: Tensor, left: int | None, right: int | None, offset: int, scale: float, softcap: float | None
) -> Tensor:
    return by_pieces(q, k, None, Visibility(left, right, offset), scale=scale, softcap=softcap)


def _check(q: Tensor, k: Tensor, *_: float | None) -> None:
    fits = q.ndim == k.ndim == 4 and len(q) == len(k) and q.shape[3] == k.shape[3] and min(*q.shape, *k.shape) > 0
    if not fits or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"expected (B, H, T, D) and (B, K, S, D), K a divisor of H, got {(*q.shape,)} and {(*k.shape,)}"
        )
    if not q.is_floating_point() or not k.is_floating_point() or q.device != k.device:
        raise ValueError(f"expected floating q and k on one device, got {q.dtype} {q.device} and {k.dtype} {k.device}")


def _fake(q: Tensor, *_: Tensor | float | None) -> Tensor:
    return q.new_empty(2, q.shape[1], dtype=torch.float32)


_operator = define(
    "max_logits(Tensor q, Tensor k, int? left, int? right, int offset, float scale, float? softcap) -> Tensor",
    kernel="internist.measures.kernels.max_logits_kernel",
    takes=_takes,
    plain=_plain,
    check=_check,
    fake=_fake,
)
