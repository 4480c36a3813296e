"""A step of large matrices on a CPU whose top pairs stay as they are, with few passes over memory.

Compiled passes do what can be done in one (`passes`). Without them: skinny products with bfloat16 matrices are slow on
a CPU, so P_u N P_v is computed in float32 and rounded once, with uᵀN and Nv taken while N lies in the cache, and so is
P_u D P_v, part by part on its way into the weight. Derived for this project.
"""

from collections.abc import Callable, Iterator
from ctypes import c_float
from typing import NamedTuple

import torch
from torch import Tensor

from internist.optim import passes
from internist.optim.bucket import Bucket
from internist.optim.parts import CACHED_ENTRIES

SMALLEST = 2**14
"""Entries of a matrix from which this pays; smaller ones are stepped in batches."""

PART = 2 * CACHED_ENTRIES
"""Entries of a part. From half to four times as many took the same time."""


Factors = Callable[[], tuple[Tensor, Tensor]]


class FrozenPair(NamedTuple):
    """What a step knows of one matrix: views of the state, in the weight's dtype."""

    u: Tensor
    """(fan_out,)"""
    v: Tensor
    """(fan_in,)"""
    radius: float
    """S."""


def is_large(bucket: Bucket) -> bool:
    """Whether the bucket is one to step here: a piece of its own on a CPU, whole and in full precision throughout."""
    if type(bucket) is not Bucket or bucket.stacked or len(bucket.gradients) != 1 or torch.compiler.is_compiling():
        return False
    weight = bucket.weights[0]
    return (
        weight.is_cpu
        and weight.dtype in (torch.float32, torch.float64)
        and bucket.gradients[0].dtype == bucket.momenta[0].dtype == weight.dtype
        and min(bucket.fan_out, bucket.fan_in) > 1  # else there is no complement, and D is what was rounded
        and bucket.fan_out * bucket.fan_in >= SMALLEST
    )


def projected_direction(
    gradient: Tensor, momentum: Tensor, pair: FrozenPair, out: Tensor, *, mu: float, nesterov: bool
) -> Factors:
    """Update one matrix's momentum, and write P_u N P_v of its direction N.

    Args:
        gradient, momentum: (fan_out, fan_in); the latter is overwritten.
        pair: u and v.
        out: (fan_out, fan_in) in the arithmetic's dtype.
        mu: of the momentum.
        nesterov: whether N looks ahead.

    Returns:
        What gives (fan_out, 2) L and (2, fan_in) R with LR = N − P_u N P_v. NaN in, NaN out.
    """
    if not passes.suits(out, gradient, momentum, pair.u, pair.v):
        return _by_operators(gradient, momentum, pair, out, mu, nesterov)
    return passes.advance_projected(gradient, momentum, out, pair.u, pair.v, mu=mu, nesterov=nesterov).factors


def _by_operators(
    gradient: Tensor, momentum: Tensor, pair: FrozenPair, out: Tensor, mu: float, nesterov: bool
) -> Factors:
    u, v = pair.u, pair.v
    a, left = torch.zeros_like(v), torch.stack([u, u])
    b = left[1]
    n = out if out.dtype == gradient.dtype else torch.empty_like(gradient)
    for part, moment, direction, rows, image in _cut(gradient, momentum, n, u, b):
        passes.advance_by_operators(part, moment, direction, mu=mu, nesterov=nesterov)
        torch.mv(direction, v, out=image)
        a.addmv_(direction.t(), rows)
    b.addcmul_(u, u.dot(b), value=-1.0)
    left, right = left.t(), torch.stack([a, v])
    for direction, rows, done in _cut(n, left, out):
        direction.addmm_(rows, right, alpha=-1.0)
        if direction.dtype != done.dtype:
            done.copy_(direction)
    return lambda: (left, right)


def write(weight: Tensor, d: Tensor, pair: FrozenPair, *, length: float, decay: float) -> None:
    """W <- S uvᵀ + (1 − decay) (W − S uvᵀ) − length P_u D P_v.

    Args:
        weight: (fan_out, fan_in) W, overwritten.
        d: (fan_out, fan_in) D, in the arithmetic's dtype.
        pair: of W.
        length: what D is multiplied by.
        decay: share of the complement that goes.
    """
    u, v, radius = pair
    keep = 1.0 - decay if weight.dtype == torch.float64 else c_float(1.0 - decay).value
    put_back = radius * (1.0 - keep) / length if length else 0.0  # what the decay takes from S
    if passes.suits(d, weight, u, v):
        passes.write_projected(weight, d, u, v, keep=keep, length=length, back=put_back)
        return
    spare = weight.new_empty(_tall(weight), weight.shape[1])
    a, left = torch.zeros_like(v), torch.stack([u, u])
    b = left[1]
    for step, rows, image in _cut(d, u, b):
        wide = step if step.dtype == weight.dtype else spare[: len(step)].copy_(step)
        torch.mv(wide, v, out=image)
        a.addmv_(wide.t(), rows)
    a.sub_(v, alpha=float(u.dot(b)) - put_back)
    right = torch.stack([a, v]).mul_(length)
    for part, step, rows in _cut(weight, d, left.t()):
        if step.dtype == part.dtype:
            change = torch.addmm(step, rows, right, beta=-length)
        else:
            change = spare[: len(part)].copy_(step).addmm_(rows, right, beta=-length)
        torch.add(change, part, alpha=keep, out=part)


def _tall(matrix: Tensor) -> int:
    return max(1, PART // matrix.shape[1])


def _cut(matrix: Tensor, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of as many rows, cut alike, to parts of the matrix that a cache holds."""
    parts = -(-len(matrix) // _tall(matrix))
    return zip(*(tensor.chunk(parts) for tensor in (matrix, *more)), strict=True)
