"""A retraction's round: after a step, W <- W S / ‖W‖₂, by a norm that is followed and not sought.

A step inside the complement of a weight's top pair leaves ‖W‖₂ alone to first order, so one warm round every few
steps (`following`) holds it; at an audit the pair is sought by Krylov rounds, with random vectors among them. Derived
for this project.
"""

import torch
from torch import Tensor
from torch.nn import functional

from internist.optim import following
from internist.optim.bucket import Bucket, learning_rate
from internist.optim.constraints import spectral_radius
from internist.optim.pair_state import GROWTH, Followed, Ready, Seen, States, scatter, step_of
from internist.optim.top_pair import warm_pair

ROOM = 0.02
"""What steps may do to a norm between two rounds, by the triangle inequality, as a share of the radius;"""
MOST_STEPS = 4
"""and how many steps at most. Where the learning rate is on a device, and not read, every step ends with a round."""

TAKEN_BACK = 1.5
"""What is taken of a norm over what it passed its radius by: it goes on growing until the next round, and so stays as
much below as above. At an audit, no more than it passed it by."""

AT_RADIUS = 1e-5
"""A norm this near its radius, relative to it, is left alone: nearer than float32 finds it."""

ROUNDS = 4
"""Krylov rounds of an audit, from two vectors and a random one; each reads the matrices twice."""

FAR_OFF = 0.3
"""Distance of S over the norm that was found from one, beyond which the weight is another one than was left there: it
is let be until an audit has found its pair anew."""


def is_due(bucket: Bucket, step: int) -> bool:
    """Whether a step of a bucket ends with a round."""
    lr = learning_rate(bucket.group)
    if isinstance(lr, Tensor) or bucket.group["adaptive"]:
        return True
    steps = ROOM * bucket.group["radius"] / lr if lr > 0.0 else MOST_STEPS
    return step % max(1, min(MOST_STEPS, int(steps))) == 0


def retraction(states: States, ready: Ready, bucket: Bucket, weights: Tensor, *, exact: bool) -> Tensor:
    """What each matrix is to be multiplied by; its pair goes into the state as it then is.

    Args:
        states: the optimizer's.
        ready: the bucket's pairs.
        bucket: that was stepped.
        weights: (B, fan_out, fan_in) what the step made of its weights, float32 or float64.
        exact: whether the pair is sought.

    Returns:
        (B, 1, 1). One where the norm is at S, or below S while a matrix that began with zeros grows.
    """
    known, seen = ready.followed, ready.seen
    assert known is not None and seen is not None
    sigma, u, v, block = following.follow(weights, known.block, seen.share)
    if exact:
        seed = step_of(states, bucket)
        start = torch.cat([v, ready.pairs.second.unsqueeze(1)], dim=1)
        sought = warm_pair(weights, start, rounds=ROUNDS, seed=seed, batched=bucket.stacked)
        sigma, u, v = sought.sigma.view(-1, 1, 1), sought.u.unsqueeze(1), sought.v.unsqueeze(1)
        block = following.refreshed(block, v, seed=seed)
        scatter(states, bucket, "second", sought.beneath)
    found = following.Followed(sigma, u, v, block)
    factors = concluded(known, seen, found, bucket, exact=exact, may_grow=ready.may_grow)
    ready.was_written(states, bucket)
    return factors


def concluded(
    known: Followed, seen: Seen, found: following.Followed, bucket: Bucket, *, exact: bool, may_grow: bool
) -> Tensor:
    """What matrices of which a round found the norms are to be multiplied by, (B, 1, 1).

    Args:
        known, seen: what is known of them, which becomes what was found.
        found: by the round.
        bucket: of them.
        exact: whether the pair was sought.
        may_grow: whether one of them may have begun with zeros and be on its way to S.
    """
    sigma, u, v, block = found
    if bucket.group["drive"]:
        target = spectral_radius((bucket.fan_out, bucket.fan_in), bucket.group["radius"])
        known.radius.mul_((target / known.radius) ** bucket.group["drive"])
        seen.share.copy_(following.share_of(known.radius))
    more = seen.radius / sigma - 1.0
    other = more.abs() > FAR_OFF
    if may_grow:
        other = other & (seen.growth > 0)
    seen.found.masked_fill_(other, 1.0)
    more = torch.minimum(functional.hardshrink(more, AT_RADIUS), seen.growth)
    if not exact:
        more = functional.leaky_relu_(more, TAKEN_BACK)
    more.masked_fill_(seen.found > 0, 0.0)
    seen.firings.add_(more != 0)
    if may_grow:
        seen.growth.masked_fill_(more < 0, GROWTH)
        free = seen.growth == 0  # plain Muon until it reaches S: nothing is projected away
        u, v = u.masked_fill(free, 0.0), v.masked_fill(free, 0.0)
    torch._foreach_copy_([seen.u, seen.v, known.block], [u, v, block])
    return more.add_(1.0)
