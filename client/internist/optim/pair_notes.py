"""What a step of Muon++ tells of itself where it is asked: of a direction beside its pair, and of weights it left."""

from collections.abc import Iterator

import torch
from torch import Tensor, linalg

from internist.optim import stack
from internist.optim.bucket import Bucket
from internist.optim.coefficients import norm_band
from internist.optim.complement import complement_residual
from internist.optim.pair_keeper import PairKeeper
from internist.optim.pair_state import Ready, States, gather, gather_pairs, step_of
from internist.optim.top_pair import pair_residual, warm_pair

NET_ROUNDS = 5
"""Krylov rounds of what is estimated; each reads the matrices twice."""

LEAST = ("optimizer.update_norm_low", "optimizer.gap", "optimizer.learned_norm", "optimizer.learned_rms")
"""Of several matrices of a parameter their least is told; of the others the greatest."""


def removed_share(removed: Tensor, kept: Tensor) -> Tensor:
    """(B,) the share of directions that a projection took away: (B,) norms of that, and what it left, (B, m, n)."""
    rest = linalg.vector_norm(kept, dim=(1, 2), dtype=removed.dtype)
    whole = torch.hypot(removed, rest)
    return torch.where(whole == 0, whole, removed / whole).to(torch.float32)


def of_direction(bucket: Bucket, d: Tensor, ready: Ready, length: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(metric, (B,) values) of D, and of the update it makes at that length."""
    residual = complement_residual(d, ready.pairs.u, ready.pairs.v).to(torch.float32)
    length = length.flatten().to(torch.float32)
    side = min(bucket.fan_out, bucket.fan_in)
    image = norm_band(bucket.group["coefficients"], bucket.group["steps"], side=side)
    yield "optimizer.effective_lr", length
    yield "optimizer.update_norm_low", length * image.low
    yield "optimizer.update_norm_high", length * image.high
    yield "optimizer.orthogonality", residual


def of_weights(states: States, keeper: PairKeeper, bucket: Bucket, before: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(metric, (B,) values) of what a step did to the weights. Nothing that later steps read is changed."""
    pairs, weights = gather_pairs(states, bucket), stack.weights_of(bucket)
    change = weights - before
    seed = step_of(states, bucket)
    net = warm_pair(change, pairs.second, rounds=NET_ROUNDS, seed=seed, batched=bucket.stacked).sigma
    beneath = keeper.below(bucket, pairs).sigma
    gap = 1.0 - beneath / pairs.radius
    audit = pair_residual(weights, pairs.u, pairs.v, pairs.radius)
    norm, rms = learned(weights, pairs.v, beneath)
    yield "optimizer.learned_norm", norm.to(torch.float32)
    yield "optimizer.learned_rms", rms.to(torch.float32)
    yield "optimizer.gap", gap.to(torch.float32)
    yield "optimizer.audit", audit.to(torch.float32)
    yield "optimizer.net_update", net.to(torch.float32)
    yield "optimizer.firings", gather(states, bucket, "firings").to(torch.float32)


def learned(weights: Tensor, v: Tensor, beneath: Tensor) -> tuple[Tensor, Tensor]:
    """σ₂ / σ₁ and, of all singular values but the first, RMS / σ₁: how much of a weight is not its top pair.

    Args:
        weights: (B, fan_out, fan_in) W.
        v: (B, fan_in) right top vectors; zero for a matrix that grows from zeros, of which all lies beneath.
        beneath: (B,) σ₂, or of such a matrix σ₁.

    Returns:
        (B,) each, in (0, 1]; one for a matrix of zeros, or of one row or column, which has nothing beneath.
    """
    along = torch.bmm(weights, v.unsqueeze(2)).square().sum((1, 2))
    rest = (weights.square().sum((1, 2)) - along).clamp(min=0.0)
    top = torch.maximum(along.sqrt(), beneath)
    others = min(weights.shape[1:]) - (v.abs().sum(1) > 0).to(rest.dtype)
    rms = (rest / others.clamp(min=1.0)).sqrt()
    is_all = (others == 0) | (top == 0)
    return torch.where(is_all, 1.0, beneath / top), torch.where(is_all, 1.0, rms / top)
