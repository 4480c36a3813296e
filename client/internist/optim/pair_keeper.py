"""The keeper of the top pairs of an optimizer's matrices: finds them, audits them, and retracts where they are lost."""

import logging

import torch
from torch import Tensor

from internist.optim.bucket import Bucket
from internist.optim.constraints import retraction_factor
from internist.optim.pair_state import (
    News,
    Pairs,
    Ready,
    States,
    gather,
    gather_pairs,
    part,
    scatter,
    stacked,
    step_of,
)
from internist.optim.top_pair import TopPair, top_pair, warm_pair

logger = logging.getLogger("internist")

DEGENERATE = 1e-3
"""A relative gap below which the top pair is ill-defined. Derived for this project."""

AT_RADIUS = 1e-5
"""A norm this near its radius, relative to it, is left alone: nearer than float32 finds it."""

NEAR = 1e-4
"""A pair's residual, relative to its value, at which the value is known far better than `AT_RADIUS`."""

RETRACT_ROUNDS = 8
AUDIT_ROUNDS = 6
"""Krylov rounds of what is estimated; each reads the matrices twice."""


class PairKeeper:
    """Keeps the pairs in an optimizer's state, and remembers on the host what it would have to wait to read again."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._retracted: dict[tuple[Tensor, int], bool] = {}  # by parameter and offset, once the pairs are found
        self._news: dict[tuple[Tensor, int], News] = {}
        self._ready: dict[tuple[tuple[Tensor, int], ...], Ready] = {}

    def ready(self, bucket: Bucket, shrink: float) -> Ready:
        """The pairs of a bucket, as its directions need them: made once, and anew whenever the state was written to.

        Args:
            bucket: with its weights, which are read where a parameter is new.
            shrink: what its orthogonalised directions are multiplied by.

        Raises:
            ValueError: a new matrix is zero or not finite.
        """
        key = tuple(zip(bucket.params, bucket.offsets, strict=True))
        ready = self._ready.get(key)
        if ready is None or not ready.is_current(self._states, bucket, shrink):
            self._find_pairs(bucket)
            ready = self._ready[key] = Ready(self._states, bucket, shrink)
        return ready

    def has_fallen(self, bucket: Bucket) -> bool:
        """Whether any matrix of a bucket is to be retracted, whatever the policy."""
        return any(self._retracted[piece] for piece in zip(bucket.params, bucket.offsets, strict=True))

    def retract(self, bucket: Bucket, pairs: Pairs) -> None:
        """W <- W S / ‖W‖₂, and the pair is what it then is: of all matrices of the bucket, or of the fallen ones."""
        weights, seed = stacked(bucket), step_of(self._states, bucket)
        start = torch.stack([pairs.v, pairs.second], dim=1)
        pair = warm_pair(weights, start, rounds=RETRACT_ROUNDS, seed=seed, enough=NEAR)
        theirs = gather(self._states, bucket, "fallen") > 0
        if bucket.group["policy"] == "retract":
            theirs = torch.ones_like(theirs)
        theirs = theirs & pair.sigma.isfinite()
        off = theirs & ((pair.sigma / pairs.radius - 1.0).abs() > AT_RADIUS)
        factor = torch.where(off, retraction_factor(pair.sigma, pairs.radius), 1.0).view(-1, 1, 1)
        for weight, piece in zip(bucket.weights, bucket.pieces(factor), strict=True):
            weight.mul_(piece.to(weight.dtype))
        self.count(bucket, off)
        for name, old, new in (("u", pairs.u, pair.u), ("v", pairs.v, pair.v), ("second", pairs.second, pair.beneath)):
            scatter(self._states, bucket, name, torch.where(theirs.unsqueeze(1), new, old))

    def audit(self, bucket: Bucket) -> None:
        """Estimate σ₂ anew, and act on what the audit before this one found: its answer has arrived by now."""
        for index, piece in enumerate(zip(bucket.params, bucket.offsets, strict=True)):
            known = self._news.pop(piece, None)
            found = part(self._states, bucket, index, "found") if known is None else known.arrived()
            self._act_on(bucket, index, found.tolist())
        pairs = gather_pairs(self._states, bucket)
        below = self.below(bucket, pairs)
        ill = 1.0 - below.sigma / pairs.radius < DEGENERATE
        scatter(self._states, bucket, "second", below.v)
        scatter(self._states, bucket, "found", ill.to(pairs.radius.dtype))
        for index, piece in enumerate(zip(bucket.params, bucket.offsets, strict=True)):
            self._news[piece] = News(part(self._states, bucket, index, "found"))

    def below(self, bucket: Bucket, pairs: Pairs, *, rounds: int = AUDIT_ROUNDS) -> TopPair:
        """An estimate of what lies beneath the pairs. Nothing is written."""
        frozen, seed = (pairs.u, pairs.v), step_of(self._states, bucket)
        return warm_pair(stacked(bucket), pairs.second, frozen=frozen, rounds=rounds, seed=seed)

    def count(self, bucket: Bucket, fired: Tensor) -> None:
        """Count a firing of the policy for the matrices of a (B,) mask."""
        start = 0
        for index, count in enumerate(bucket.counts):
            part(self._states, bucket, index, "firings").add_(fired[start : start + count])
            start += count

    def _find_pairs(self, bucket: Bucket) -> None:
        """Find the pairs of a bucket's matrices where a parameter is new, and learn which are retracted."""
        for index, parameter in enumerate(bucket.params):
            piece = (parameter, bucket.offsets[index])
            if piece not in self._retracted:
                if not bool((part(self._states, bucket, index, "radius") > 0).all()):
                    self._start(bucket, index)
                self._retracted[piece] = bool(part(self._states, bucket, index, "fallen").any())

    def _start(self, bucket: Bucket, index: int) -> None:
        """Find the top pairs of a piece and what lies beneath: once, at the first step, and the host may wait."""
        weight = bucket.weights[index]
        pair = top_pair(weight)
        if not bool(((pair.sigma > 0) & pair.sigma.isfinite()).all()):
            raise ValueError(f"a matrix of shape {tuple(weight.shape[1:])} is zero or not finite, and has no top pair")
        below = top_pair(weight, frozen=(pair.u, pair.v))
        found = (1.0 - below.sigma / pair.sigma < DEGENERATE).to(pair.sigma.dtype)
        new = {"u": pair.u, "v": pair.v, "second": below.v, "radius": pair.sigma, "found": found}
        for name, value in new.items():
            part(self._states, bucket, index, name).copy_(value)
        self._act_on(bucket, index, found.tolist())

    def _act_on(self, bucket: Bucket, index: int, found: list[float]) -> None:
        """Retract from now on the matrices of a piece whose pair was found ill-defined; count and log them once."""
        fallen = part(self._states, bucket, index, "fallen")
        if not any(found):
            return
        new = [bool(ill) and not old for ill, old in zip(found, fallen.tolist(), strict=True)]
        if not any(new):
            return
        now = torch.tensor(new, device=fallen.device)
        fallen.masked_fill_(now, 1.0)
        part(self._states, bucket, index, "firings").add_(now)
        self._retracted[bucket.params[index], bucket.offsets[index]] = True
        policy = bucket.group["policy"]
        logger.warning(
            "Muon++: the top singular pair of %s is not unique (gap below %g, %d of %d matrices); %s",
            _name_of(bucket, index),
            DEGENERATE,
            sum(new),
            len(new),
            "nothing is done about it under the policy none" if policy == "none" else "retracted from now on",
        )


def _name_of(bucket: Bucket, index: int) -> str:
    group, parameter = bucket.group, bucket.params[index]
    for name, known in zip(group.get("param_names", ()), group["params"], strict=False):
        if known is parameter:
            return f"parameter {name!r}"
    return f"a parameter of shape {tuple(parameter.shape)}"
