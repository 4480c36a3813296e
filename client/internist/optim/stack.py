"""Equal-shaped matrices as one stack: the passes over them by few operators, each of them over many matrices.

On an accelerator what the host launches costs more than what the device computes, so one operator takes all matrices
of a bucket, or of a group, where on a CPU each is passed over while it lies in the cache. The numbers are those of a
step matrix by matrix, to rounding. Derived for this project.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from internist.optim import passes
from internist.optim.bucket import Bucket


def accumulate(buckets: Sequence[Bucket]) -> None:
    """M <- μ M + (1 − μ) G of all matrices of stacked buckets of one group: one operator per dtype."""
    alike: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for bucket in buckets:
        gradients, momenta = alike.setdefault(bucket.momenta[0].dtype, ([], []))
        gradients += signed(bucket)
        momenta += bucket.momenta
    for gradients, momenta in alike.values():
        torch._foreach_lerp_(momenta, gradients, 1.0 - buckets[0].group["momentum"])
    for bucket in buckets:
        bucket.accumulated = True


def signed(bucket: Bucket) -> list[Tensor]:
    """What is to be descended, in the momenta's dtype: the gradients, or what a group that maximizes makes of them."""
    gradients = bucket.gradients
    if bucket.group["maximize"]:
        gradients = list(torch._foreach_neg(gradients))
    # a checkpoint's momentum may be wider than the gradient
    return [gradient.to(momentum.dtype) for gradient, momentum in zip(gradients, bucket.momenta, strict=True)]


def direction(bucket: Bucket) -> Tensor:
    """The directions of a bucket whose momenta are accumulated, in the arithmetic's dtype and memory of their own."""
    mu, momenta = bucket.group["momentum"], bucket.momenta
    ahead = list(torch._foreach_lerp(signed(bucket), momenta, mu)) if bucket.group["nesterov"] else momenta
    if ahead[0].dtype == bucket.dtype:
        return torch.stack(ahead) if bucket.is_flat else torch.cat(ahead)
    shape = ahead[0].shape if bucket.is_flat else ahead[0].shape[1:]
    made = torch.empty(sum(bucket.counts), *shape, dtype=bucket.dtype, device=bucket.device)
    torch._foreach_copy_(list(bucket.pieces(made)), ahead)
    return made


def decay(buckets: Sequence[Bucket], keep: float | Tensor) -> None:
    """W <- keep W of all matrices of stacked buckets of one group, by a number or a 0-d tensor."""
    alike: dict[torch.dtype, list[Tensor]] = {}
    for bucket in buckets:
        alike.setdefault(bucket.weights[0].dtype, []).extend(bucket.weights)
        bucket.decayed = True
    if isinstance(keep, Tensor):
        for dtype, weights in alike.items():
            torch._foreach_mul_(weights, keep.to(weights[0].device, dtype))
    elif keep != 1.0:
        for weights in alike.values():
            torch._foreach_mul_(weights, keep)


def subtract(bucket: Bucket, d: Tensor, length: float | Tensor) -> None:
    """W <- W − length D, by a number or a 0-d tensor."""
    wide = max(d.dtype, bucket.weights[0].dtype, key=lambda dtype: dtype.itemsize)  # no fast path takes two dtypes
    if isinstance(length, Tensor):
        parts = bucket.pieces(d.to(wide) * length.to(bucket.device, wide))
        torch._foreach_sub_(bucket.weights, list(parts))
    else:
        torch._foreach_add_(bucket.weights, list(bucket.pieces(d.to(wide))), alpha=-length)


def step_along(bucket: Bucket, d: Tensor, length: float | Tensor) -> None:
    """W <- W − length D of a bucket's matrices, stacked or not, by a number or (B, 1, 1)."""
    if isinstance(length, Tensor):
        parts = list(bucket.pieces(d.to(length.dtype) * length))
        torch._foreach_sub_(bucket.weights, [part.to(bucket.weights[0].dtype) for part in parts])
    elif bucket.stacked:
        subtract(bucket, d, length)
    else:
        for weight, part in zip(bucket.weights, bucket.pieces(d), strict=True):
            passes.write(weight, part, keep=1.0, length=length)


def add(bucket: Bucket, change: Tensor, keep: float | Tensor) -> None:
    """W <- keep W + change, (B, fan_out, fan_in) in no narrower dtype and overwritten; keep: a number or (B, 1, 1)."""
    if isinstance(keep, Tensor):
        torch._foreach_copy_(bucket.weights, list(bucket.pieces(change.addcmul_(weights_of(bucket), keep))))
        return
    if keep != 1.0:
        torch._foreach_mul_(bucket.weights, keep)
    torch._foreach_add_(bucket.weights, list(bucket.pieces(change.to(bucket.weights[0].dtype))))


def scale(bucket: Bucket, factors: Tensor) -> None:
    """W <- factor W, (B, 1, 1) of each."""
    torch._foreach_copy_(bucket.weights, list(bucket.pieces(weights_of(bucket) * factors)))


def weights_of(bucket: Bucket) -> Tensor:
    """(B, fan_out, fan_in) the weights of a bucket: themselves where there is one piece, else a copy."""
    return bucket.joined(bucket.weights)
