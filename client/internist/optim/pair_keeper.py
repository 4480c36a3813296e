"""The keeper of the top pairs of an optimizer's matrices: finds them, and anew where weights were replaced."""

import logging
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from internist.optim import following, stack
from internist.optim.arrivals import News, has_numbers
from internist.optim.bucket import Bucket
from internist.optim.constraints import spectral_radius
from internist.optim.pair_state import GROWTH, Pairs, Ready, States, gather, gather_pairs, part, scatter, step_of
from internist.optim.spectral_init import AT_TARGET
from internist.optim.top_pair import TopPair, pair_residual, top_pair, warm_pair

logger = logging.getLogger("internist")

FAR = 1.5
"""Factor between a weight's R(W) and c from which it is told that the weight keeps its own."""

REPLACED = 0.25
"""‖Wv − Su‖ / S of a frozen pair from which the weight is another one. What steps leave in bfloat16 weights over some
thousand steps is a tenth of that."""

AUDIT_ROUNDS = 6
"""Krylov rounds of what is estimated; each reads the matrices twice."""


Piece = tuple[Tensor, int]
"""A parameter, and the index of a piece's first matrix among its matrices."""


class PairKeeper:
    """Keeps the pairs in an optimizer's state, and remembers on the host what it would have to wait to read again."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._known: set[Piece] = set()
        """Pieces whose pairs are found."""
        self._growing: set[Piece] = set()
        """Pieces of which a matrix was below its radius when they were found: it may be there by now."""
        self._told: set[Piece] = set()
        """Pieces of which it was said that they were replaced."""
        self._news: dict[Piece, tuple[News, int]] = {}
        """What its latest audit found, and where it stands in that."""
        self._ready: dict[tuple[Piece, ...], Ready] = {}

    def ready(self, bucket: Bucket, shrink: float) -> Ready:
        """The pairs of a bucket, as its directions need them: made once, and anew whenever the state was written to.

        Args:
            bucket: with its weights, which are read where a parameter is new.
            shrink: what its orthogonalised directions are multiplied by.

        Raises:
            ValueError: a new matrix is not finite, or zero under a policy that cannot start from there.
        """
        key = _pieces(bucket)
        ready = self._ready.get(key)
        if ready is None or not ready.is_current(self._states, bucket, shrink):
            self._find_pairs(bucket)
            ready = self._ready[key] = Ready(self._states, bucket, shrink)
            ready.may_grow = any(piece in self._growing for piece in key)
        return ready

    def audit(self, bucket: Bucket) -> None:
        """Ask whether the weights are those that were left there, and find the pairs anew where the audit before this
        one saw others, or the first whose answer has arrived: on a CPU that is the one before, and an accelerator's is
        not waited for."""
        under_way = [index for index in range(len(bucket.params)) if not self._settle(bucket, index)]
        if bucket.group["policy"] == "retract":
            found = gather(self._states, bucket, "found")  # rounds see it on their way
        else:
            pairs = gather_pairs(self._states, bucket)
            missing = pair_residual(stack.weights_of(bucket), pairs.u, pairs.v, pairs.radius)
            found = (missing > REPLACED).to(pairs.radius.dtype)
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
        """Find the pairs of a bucket's matrices where a parameter is new.

        Once for each, and the host may wait. Where there are no numbers there is nothing to learn.
        """
        unknown = [index for index, piece in enumerate(_pieces(bucket)) if piece not in self._known]
        if not unknown:
            return
        if has_numbers(bucket.weights[0]):
            radii = self._read(bucket, unknown, "radius")
            new = [index for index, of in zip(unknown, radii, strict=True) if not min(of) > 0.0]
            self._start(bucket, new)
            if bucket.group["policy"] == "retract":
                self._start_blocks(bucket, [index for index in unknown if index not in new])
            growths = self._read(bucket, unknown, "growth")
            self._growing.update(
                _pieces(bucket)[index] for index, of in zip(unknown, growths, strict=True) if not min(of) > 0.0
            )
        self._known.update(_pieces(bucket)[index] for index in unknown)
        self._send(bucket, gather(self._states, bucket, "found"), unknown)

    def _read(self, bucket: Bucket, indices: Sequence[int], name: str) -> list[list[float]]:
        """Numbers of some of a bucket's pieces, by piece. The host waits for them."""
        if not indices:
            return []
        parts = [part(self._states, bucket, index, name) for index in indices]
        numbers = iter(torch.cat(parts).tolist())
        return [list(islice(numbers, len(of))) for of in parts]

    def _start(self, bucket: Bucket, indices: Sequence[int]) -> None:
        """Find the top pairs of some pieces, and their radii: once, at the first step, and the host may wait."""
        for together in [indices] if bucket.stacked and indices else [[index] for index in indices]:
            pair = self._search(bucket, together)
            empty = pair.sigma == 0
            may_be_empty = bucket.group["policy"] == "retract"
            if not bool((pair.sigma.isfinite() & (may_be_empty | ~empty)).all()):
                shape = (bucket.fan_out, bucket.fan_in)
                raise ValueError(f"a matrix of shape {shape} is zero or not finite, and has no top pair")
            target = spectral_radius((bucket.fan_out, bucket.fan_in), bucket.group["radius"])
            is_set = empty
            if may_be_empty:  # the radius itself: what estimates see of it may be a little off
                is_set = is_set | ((pair.sigma / target - 1.0).abs() <= AT_TARGET)
            radius = torch.where(is_set, target, pair.sigma)
            scatter(self._states, bucket, "radius", radius, together)
            scatter(self._states, bucket, "growth", torch.where(empty, 0.0, GROWTH).to(radius.dtype), together)
            self._tell_far(bucket, together, radius / target)

    def _search(self, bucket: Bucket, indices: Sequence[int]) -> TopPair:
        """The top pairs of some pieces, put into the state with what lies beneath and what follows them."""
        weights = [bucket.weights[index] for index in indices]
        weights = [weight if weight.ndim == 3 else weight.unsqueeze(0) for weight in weights]
        # one alone stays where and how it lies: on a CPU its layout decides how its products are rounded
        matrices = weights[0] if len(weights) == 1 else torch.cat(weights)
        pair = top_pair(matrices, batched=bucket.stacked)
        below = top_pair(matrices, frozen=(pair.u, pair.v), batched=bucket.stacked)
        for name, value in {"u": pair.u, "v": pair.v, "second": below.v}.items():
            scatter(self._states, bucket, name, value, indices)
        self._start_blocks(bucket, indices)
        return pair

    def _start_blocks(self, bucket: Bucket, indices: Sequence[int]) -> None:
        """Blocks that follow some pieces, from their pairs, where they have none yet."""
        for index in indices:
            block = part(self._states, bucket, index, "block")
            if block.shape[1] and not bool(block.any()):
                rows = [part(self._states, bucket, index, name).unsqueeze(1) for name in ("v", "second")]
                block.copy_(following.started(torch.cat(rows, dim=1), block.shape[1]))

    def _tell_far(self, bucket: Bucket, indices: Sequence[int], ratios: Tensor) -> None:
        """Say once which weights keep a norm far from the radius that their group asks for."""
        counts = [bucket.counts[index] for index in indices]
        c = bucket.group["radius"]
        for index, of in zip(indices, torch.split(ratios, counts), strict=True):
            least, most = float(of.min()), float(of.max())
            if most > FAR or least < 1.0 / FAR:
                logger.warning(
                    "Muon++: %s keeps the norm it has, R(W) from %.3g to %.3g, far from radius=%g: a learning rate "
                    "tuned there means another thing here; initialize=True sets fresh weights there, and drive=0.001 "
                    "takes trained ones there slowly (policy='retract')",
                    _name_of(bucket, index), least * c, most * c, c,
                )  # fmt: skip

    def _send(self, bucket: Bucket, found: Tensor, indices: Sequence[int]) -> None:
        """Ask for what was found of a bucket, (B,), to be told of these pieces when it has arrived."""
        news, pieces, counts = News(found), _pieces(bucket), bucket.counts
        for index in indices:
            self._news[pieces[index]] = news, sum(counts[:index])

    def _settle(self, bucket: Bucket, index: int) -> bool:
        """Act on what was found of a piece; False while that is still under way."""
        piece = bucket.params[index], bucket.offsets[index]
        news, start = self._news[piece]
        found, count = news.arrived(), bucket.counts[index]
        if found is None:
            return False
        if any(found[start : start + count]):
            self._find_anew(bucket, index)
        return True

    def _find_anew(self, bucket: Bucket, index: int) -> None:
        """Find the pairs of a piece whose weights were replaced, and their radii, and say so once. The host waits."""
        piece = bucket.params[index], bucket.offsets[index]
        for name in ("block", "found"):
            part(self._states, bucket, index, name).zero_()
        sigma = self._search(bucket, [index]).sigma
        radius = part(self._states, bucket, index, "radius")
        radius.copy_(torch.where(sigma > 0, sigma.nan_to_num(posinf=0.0), radius))
        if piece not in self._told:
            self._told.add(piece)
            logger.warning(
                "Muon++: %s is not the weight that the last step left (averaged, or loaded since): its top singular "
                "pair was found anew, and it keeps the norm it came with",
                _name_of(bucket, index),
            )


def _pieces(bucket: Bucket) -> tuple[Piece, ...]:
    return tuple(zip(bucket.params, bucket.offsets, strict=True))


def _name_of(bucket: Bucket, index: int) -> str:
    group, parameter = bucket.group, bucket.params[index]
    for name, known in zip(group.get("param_names", ()), group["params"], strict=False):
        if known is parameter:
            return f"parameter {name!r}"
    return f"a parameter of shape {tuple(parameter.shape)}"
