"""How a step of Muon++ gets into a bucket's weights: beside pairs that stay, or with a retraction after it."""

import torch
from torch import Tensor

from internist.optim import frozen_step, stack
from internist.optim.bucket import Bucket
from internist.optim.complement import add_step, complement_factors
from internist.optim.pair_state import Ready, States, step_of
from internist.optim.retraction import is_due, retraction


def write_retracted(
    states: States, ready: Ready, bucket: Bucket, d: Tensor, rate: float | Tensor, *, exact: bool
) -> None:
    """W <- W − η S₀ D, and every few steps W <- W S / ‖W‖₂.

    Args:
        states: the optimizer's.
        ready: the bucket's pairs.
        bucket: whose weights are written.
        d: (B, fan_out, fan_in) D.
        rate: η, a number or (B, 1, 1).
        exact: whether this step's round seeks the pair anew.
    """
    length = ready.unit_length * rate
    if min(bucket.fan_out, bucket.fan_in) == 1:  # all top pair: what is left of it is rounding, made long
        length = length * (ready.pairs.v.abs().sum(1) == 0).view(-1, 1, 1)
    if not (exact or is_due(bucket, step_of(states, bucket))):
        stack.step_along(bucket, d, length)
    elif bucket.stacked:
        weights = stack.weights_of(bucket)
        if isinstance(length, Tensor):
            weights.sub_(d * length)
        else:
            weights.add_(d, alpha=-length)
        factor = retraction(states, ready, bucket, weights, exact=exact)
        torch._foreach_copy_(bucket.weights, list(bucket.pieces(weights.mul_(factor))))
    else:
        stack.step_along(bucket, d, length)
        factor = retraction(states, ready, bucket, stack.weights_of(bucket), exact=exact)
        for weight, piece in zip(bucket.weights, bucket.pieces(factor), strict=True):
            weight.mul_(piece.to(weight.dtype))


def write_each(ready: Ready, bucket: Bucket, d: Tensor, rate: float | Tensor) -> None:
    """W <- S uvᵀ + (1 − decay) W⊥ − η S₀ P_u D P_v of the large matrices of one piece on a CPU, one by one."""
    rates = rate.flatten().tolist() if isinstance(rate, Tensor) else [rate] * len(d)
    for weight, step, pair, own in zip(bucket.weights[0], d, ready.single, rates, strict=True):
        length = own * ready.unit_length
        share = length / ready.shrink / pair.radius * _decay(bucket)
        frozen_step.write(weight, step, pair, length=length, decay=share)


def write_together(ready: Ready, bucket: Bucket, d: Tensor, rate: float | Tensor) -> None:
    """The same of all matrices of a bucket by batched products: the decay takes from S uvᵀ what they put back."""
    decay = _decay(bucket)
    left, right = complement_factors(d, ready.frozen, extra=decay / ready.shrink, stacked=bucket.stacked)
    length = ready.length * rate
    keep = 1.0 - length * (decay / ready.shrink) / ready.pairs.radius.view(-1, 1, 1) if decay else 1.0
    if bucket.stacked:
        stack.add(bucket, torch.baddbmm(d.to(left.dtype), left, right, beta=-1.0).mul_(length), keep)
        return
    left = left * length
    cut = 0
    for weight, step in zip(bucket.weights, bucket.pieces(d), strict=True):
        own = slice(cut, cut + weight.shape[0])
        cut = own.stop
        add_step(weight, left[own], right[own], step, length[own], keep if isinstance(keep, float) else keep[own])


def _decay(bucket: Bucket) -> float:
    """λ, or zero."""
    return float(bucket.group["decay"]) if bucket.group["policy"] == "decay" else 0.0
