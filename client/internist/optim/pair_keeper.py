"""The keeper of the top pairs of an optimizer's matrices: finds them, audits them, and retracts where they are lost."""

import logging
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from internist.optim import stack
from internist.optim.arrivals import News, has_numbers
from internist.optim.bucket import Bucket
from internist.optim.constraints import retraction_factor
from internist.optim.pair_state import (
    Pairs,
    Ready,
    States,
    gather,
    gather_pairs,
    part,
    scatter,
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


Piece = tuple[Tensor, int]
"""A parameter, and the index of a piece's first matrix among its matrices."""


class PairKeeper:
    """Keeps the pairs in an optimizer's state, and remembers on the host what it would have to wait to read again."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._fallen: dict[Piece, list[bool]] = {}
        """Which matrices of a piece are retracted, once its pairs are found."""
        self._news: dict[Piece, tuple[News, int]] = {}
        """What its latest audit found, and where it stands in that."""
        self._ready: dict[tuple[Piece, ...], Ready] = {}

    def ready(self, bucket: Bucket, shrink: float) -> Ready:
        """The pairs of a bucket, as its directions need them: made once, and anew whenever the state was written to.

        Args:
            bucket: with its weights, which are read where a parameter is new.
            shrink: what its orthogonalised directions are multiplied by.

        Raises:
            ValueError: a new matrix is zero or not finite.
        """
        key = _pieces(bucket)
        ready = self._ready.get(key)
        if ready is None or not ready.is_current(self._states, bucket, shrink):
            self._find_pairs(bucket)
            ready = self._ready[key] = Ready(self._states, bucket, shrink)
        return ready

    def has_fallen(self, bucket: Bucket) -> bool:
        """Whether any matrix of a bucket is to be retracted, whatever the policy."""
        return any(any(self._fallen[piece]) for piece in _pieces(bucket))

    def retract(self, bucket: Bucket, pairs: Pairs) -> None:
        """W <- W S / ‖W‖₂, and the pair is what it then is: of all matrices of the bucket, or of the fallen ones."""
        weights, seed = stack.weights_of(bucket), step_of(self._states, bucket)
        start = torch.stack([pairs.v, pairs.second], dim=1)
        pair = warm_pair(weights, start, rounds=RETRACT_ROUNDS, seed=seed, enough=NEAR, batched=bucket.stacked)
        theirs = pair.sigma.isfinite()
        if bucket.group["policy"] != "retract":
            theirs = theirs & (gather(self._states, bucket, "fallen") > 0)
        off = theirs & ((pair.sigma / pairs.radius - 1.0).abs() > AT_RADIUS)
        factor = torch.where(off, retraction_factor(pair.sigma, pairs.radius), 1.0).view(-1, 1, 1)
        if bucket.stacked:
            stack.scale(bucket, factor)
        else:
            for weight, piece in zip(bucket.weights, bucket.pieces(factor), strict=True):
                weight.mul_(piece.to(weight.dtype))
        self.count(bucket, off)
        for name, old, new in (("u", pairs.u, pair.u), ("v", pairs.v, pair.v), ("second", pairs.second, pair.beneath)):
            scatter(self._states, bucket, name, torch.where(theirs.unsqueeze(1), new, old))

    def audit(self, bucket: Bucket) -> None:
        """Estimate σ₂ anew, and act on what the audit before this one found, or the first whose answer has arrived: on
        a CPU that is the one before, and an accelerator's is not waited for."""
        under_way = [index for index in range(len(bucket.params)) if not self._settle(bucket, index)]
        pairs = gather_pairs(self._states, bucket)
        below = self.below(bucket, pairs)
        found = (1.0 - below.sigma / pairs.radius < DEGENERATE).to(pairs.radius.dtype)
        scatter(self._states, bucket, "second", below.v)
        scatter(self._states, bucket, "found", found)
        self._send(bucket, found, [index for index in range(len(bucket.params)) if index not in under_way])

    def below(self, bucket: Bucket, pairs: Pairs, *, rounds: int = AUDIT_ROUNDS) -> TopPair:
        """An estimate of what lies beneath the pairs. Nothing is written."""
        weights, seed = stack.weights_of(bucket), step_of(self._states, bucket)
        frozen = pairs.u, pairs.v
        return warm_pair(weights, pairs.second, frozen=frozen, rounds=rounds, seed=seed, batched=bucket.stacked)

    def count(self, bucket: Bucket, fired: Tensor) -> None:
        """Count a firing of the policy for the matrices of a (B,) mask."""
        counts = [part(self._states, bucket, index, "firings") for index in range(len(bucket.params))]
        torch._foreach_add_(counts, list(torch.split(fired.to(counts[0].dtype), bucket.counts)))

    def _find_pairs(self, bucket: Bucket) -> None:
        """Find the pairs of a bucket's matrices where a parameter is new, and learn which are retracted.

        Once for each, and the host may wait. Where there are no numbers there is nothing to learn.
        """
        unknown = [index for index, piece in enumerate(_pieces(bucket)) if piece not in self._fallen]
        if not unknown:
            return
        if has_numbers(bucket.weights[0]):
            radii = self._read(bucket, unknown, "radius")
            self._start(bucket, [index for index, of in zip(unknown, radii, strict=True) if not min(of) > 0.0])
            fallen = self._read(bucket, unknown, "fallen")
        else:
            fallen = [[0.0] * bucket.counts[index] for index in unknown]
        for index, of in zip(unknown, fallen, strict=True):
            self._fallen[bucket.params[index], bucket.offsets[index]] = [number > 0.0 for number in of]
        self._send(bucket, gather(self._states, bucket, "found"), unknown)

    def _read(self, bucket: Bucket, indices: Sequence[int], name: str) -> list[list[float]]:
        """Numbers of some of a bucket's pieces, by piece. The host waits for them."""
        parts = [part(self._states, bucket, index, name) for index in indices]
        numbers = iter(torch.cat(parts).tolist())
        return [list(islice(numbers, len(of))) for of in parts]

    def _start(self, bucket: Bucket, indices: Sequence[int]) -> None:
        """Find the top pairs of some pieces and what lies beneath: once, at the first step, and the host may wait."""
        for together in [indices] if bucket.stacked and indices else [[index] for index in indices]:
            weights = [bucket.weights[index] for index in together]
            weights = [weight if weight.ndim == 3 else weight.unsqueeze(0) for weight in weights]
            # one alone stays where and how it lies: on a CPU its layout decides how its products are rounded
            matrices = weights[0] if len(weights) == 1 else torch.cat(weights)
            pair = top_pair(matrices, batched=bucket.stacked)
            if not bool(((pair.sigma > 0) & pair.sigma.isfinite()).all()):
                shape = (bucket.fan_out, bucket.fan_in)
                raise ValueError(f"a matrix of shape {shape} is zero or not finite, and has no top pair")
            below = top_pair(matrices, frozen=(pair.u, pair.v), batched=bucket.stacked)
            found = (1.0 - below.sigma / pair.sigma < DEGENERATE).to(pair.sigma.dtype)
            new = {"u": pair.u, "v": pair.v, "second": below.v, "radius": pair.sigma, "found": found}
            for name, value in new.items():
                scatter(self._states, bucket, name, value, together)
            for index, of in zip(together, self._read(bucket, together, "found"), strict=True):
                self._act_on(bucket, index, of, part(self._states, bucket, index, "found"))

    def _send(self, bucket: Bucket, found: Tensor, indices: Sequence[int]) -> None:
        """Ask for what was found of a bucket, (B,), to be told of these pieces when it has arrived."""
        news, pieces, counts = News(found), _pieces(bucket), bucket.counts
        for index in indices:
            self._news[pieces[index]] = news, sum(counts[:index])

    def _settle(self, bucket: Bucket, index: int) -> bool:
        """Act on what was found of a piece; False while that is still under way."""
        news, start = self._news[bucket.params[index], bucket.offsets[index]]
        found, count = news.arrived(), bucket.counts[index]
        if found is None:
            return False
        self._act_on(bucket, index, found[start : start + count], news.numbers.narrow(0, start, count))
        return True

    def _act_on(self, bucket: Bucket, index: int, found: Sequence[float], there: Tensor) -> None:
        """Retract from now on the matrices of a piece whose pair was found ill-defined; count and log them once.

        Args:
            bucket: of the piece.
            index: of the piece.
            found: 1 for each such matrix.
            there: the same where the state is.
        """
        if not any(found):
            return
        piece = bucket.params[index], bucket.offsets[index]
        known = self._fallen.get(piece, [False] * len(found))
        new = [bool(ill) and not old for ill, old in zip(found, known, strict=True)]
        if not any(new):
            return
        self._fallen[piece] = [old or fell for old, fell in zip(known, new, strict=True)]
        fallen = part(self._states, bucket, index, "fallen")
        now = (there > 0) & (fallen == 0)
        fallen.masked_fill_(now, 1.0)
        part(self._states, bucket, index, "firings").add_(now)
        policy = bucket.group["policy"]
        logger.warning(
            "Muon++: the top singular pair of %s is not unique (gap below %g, %d of %d matrices); %s",
            _name_of(bucket, index),
            DEGENERATE,
            sum(new),
            len(new),
            "nothing is done about it under the policy none" if policy == "none" else "retracted from now on",
        )


def _pieces(bucket: Bucket) -> tuple[Piece, ...]:
    return tuple(zip(bucket.params, bucket.offsets, strict=True))


def _name_of(bucket: Bucket, index: int) -> str:
    group, parameter = bucket.group, bucket.params[index]
    for name, known in zip(group.get("param_names", ()), group["params"], strict=False):
        if known is parameter:
            return f"parameter {name!r}"
    return f"a parameter of shape {tuple(parameter.shape)}"
