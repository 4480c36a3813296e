"""What Muon++ keeps of each matrix beside its momentum: a top pair and a few numbers, by parameter and by bucket.

A parameter of k matrices has, in float32 (float64 for a float64 parameter):

    u        (rows of all k,)  left top vectors, one matrix after the other
    v        (k, fan_in)       right top vectors
    second   (k, fan_in)       right vectors of what lies beneath, where an estimate of σ₂ starts
    block    (k, w, fan_in)    right vectors that follow the top (`following`); w is 0 but under `retract`
    radius   (k,)              S; 0 until the first step
    growth   (k,)              by how much of itself a round may raise the norm; 0 while a matrix of zeros grows to S
    found    (k,)              1 where the weight was found to be another than the one that was left there
    firings  (k,)              how often the policy fired
    factor   (k,)              adaptive factor of the learning rate
    rate     (k,)              learning rate of the latest update, where it is adaptive
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from internist.optim.arrivals import has_numbers
from internist.optim.bucket import Bucket, Group
from internist.optim.complement import Frozen, frozen
from internist.optim.constraints import spectral_radius
from internist.optim.following import share_of, width
from internist.optim.frozen_step import FrozenPair, is_large
from internist.optim.matrices import matrix_views

ROWS = "row_squares"
"""What NorMuon keeps of each row, in the parameters' states of `Muon`."""
OF_ROWS = ("u", ROWS)
OF_COLUMNS = ("v", "second")
NUMBERS = ("radius", "growth", "found", "firings", "factor", "rate")

GROWTH = 0.02
"""What a round of retraction raises a norm by at most. An estimate comes from below, and one that is far off would blow
weights up."""

States = Mapping[Tensor, MutableMapping[str, Any]]


class Pairs(NamedTuple):
    """The pairs of a bucket's matrices, gathered."""

    u: Tensor
    """(B, fan_out) left top vectors."""
    v: Tensor
    """(B, fan_in) right top vectors."""
    second: Tensor
    """(B, fan_in) right vectors of what lies beneath."""
    radius: Tensor
    """(B,) S."""


def new_state(parameter: Tensor, group: Group) -> dict[str, Tensor]:
    """An empty state, by the parameter's (global) shape."""
    shape = torch.empty(parameter.shape, device="meta")
    views = matrix_views(shape, shape, group)
    count, fan_in = sum(view.shape[0] for view in views), views[0].shape[2]
    rows = sum(view.shape[0] * view.shape[1] for view in views)
    followed = min(width(*view.shape[1:]) for view in views) if group["policy"] == "retract" else 0
    sizes = (
        {"u": (rows,), "block": (count, followed, fan_in)}
        | dict.fromkeys(OF_COLUMNS, (count, fan_in))
        | dict.fromkeys(NUMBERS, (count,))
    )
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    state = {name: torch.zeros(size, dtype=dtype, device=parameter.device) for name, size in sizes.items()}
    state["factor"].fill_(1.0)
    state["growth"].fill_(GROWTH)
    return state


def part(states: States, bucket: Bucket, index: int, name: str) -> Tensor:
    """A piece's part of its parameter's state: a view of (count, ...), or of what has an entry for each row, which is
    flat, of (count * fan_out,)."""
    value: Tensor = states[bucket.params[index]][name]
    count, fan_out, offset = bucket.counts[index], bucket.fan_out, bucket.offsets[index]
    size = count
    if name in OF_ROWS:
        blocks = bucket.group["row_blocks"]
        offset, size = offset * fan_out, count * fan_out  # those before are of this shape unless blocks are unequal
        if blocks is not None and not isinstance(blocks, int):
            offset = count * sum(blocks[: bucket.offsets[index] // count])
    return value if size == value.shape[0] else value.narrow(0, offset, size)


def gather(states: States, bucket: Bucket, name: str) -> Tensor:
    """(B, ...) of a bucket's matrices: a view where there is one piece, else a copy."""
    parts = [part(states, bucket, index, name) for index in range(len(bucket.params))]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.view(-1, bucket.fan_out) if name in OF_ROWS else whole


def scatter(states: States, bucket: Bucket, name: str, values: Tensor, indices: Sequence[int] | None = None) -> None:
    """Write (B, ...) back to where `gather` took it from: of all pieces, or of these."""
    indices = range(len(bucket.params)) if indices is None else indices
    parts = [part(states, bucket, index, name) for index in indices]
    given = values.reshape(-1) if name in OF_ROWS else values
    torch._foreach_copy_(parts, list(torch.split(given, [own.shape[0] for own in parts])))


def gather_pairs(states: States, bucket: Bucket) -> Pairs:
    """The pairs of a bucket."""
    return Pairs(*(gather(states, bucket, name) for name in Pairs._fields))


def step_of(states: States, bucket: Bucket) -> int:
    """The step a bucket is at: 1 for ever where nothing is counted, as its tensors have no numbers."""
    step: Tensor = states[bucket.params[0]]["step"]
    return int(step) if has_numbers(step) else 1


class Followed(NamedTuple):
    """The state of a retracted bucket, gathered: what a round reads and writes."""

    u: Tensor
    v: Tensor
    block: Tensor
    radius: Tensor
    growth: Tensor
    found: Tensor
    firings: Tensor


def gather_followed(states: States, bucket: Bucket) -> tuple[Followed, bool]:
    """What a round needs, and whether it is the state itself.

    Where every piece is a whole parameter, the states of all become parts of one tensor each, so that a round reads and
    writes them by one operator and not by copies to and fro.
    """
    gathered = Followed(*(gather(states, bucket, name) for name in Followed._fields))
    if len(bucket.params) == 1:
        return gathered, True
    lengths = (states[parameter]["v"].shape[0] for parameter in bucket.params)
    if any(bucket.offsets) or any(own != count for own, count in zip(lengths, bucket.counts, strict=True)):
        return gathered, False
    for name, whole in zip(Followed._fields, gathered, strict=True):
        for parameter, own in zip(bucket.params, torch.split(whole, bucket.counts), strict=True):
            states[parameter][name] = own.view(-1) if name == "u" else own
    return gathered, True


def scatter_followed(states: States, bucket: Bucket, known: Followed) -> None:
    """Write back what a round wrote."""
    for name, value in zip(Followed._fields, known, strict=True):
        scatter(states, bucket, name, value)


class Seen(NamedTuple):
    """What a round reads and writes, as its products have it: views of a `Followed`."""

    u: Tensor
    """(B, 1, fan_out)"""
    v: Tensor
    """(B, 1, fan_in)"""
    radius: Tensor
    """(B, 1, 1), as are those below."""
    growth: Tensor
    found: Tensor
    firings: Tensor
    share: Tensor
    """`following.share_of` of the radius: no view."""


def seen(known: Followed) -> Seen:
    """The state of a retracted bucket as a round's products have it."""
    radius, growth, found, firings = (
        number.view(-1, 1, 1) for number in (known.radius, known.growth, known.found, known.firings)
    )
    share = share_of(known.radius)
    return Seen(known.u.unsqueeze(1), known.v.unsqueeze(1), radius, growth, found, firings, share)


class Ready:
    """A bucket's pairs, gathered and made ready for its arithmetic."""

    __slots__ = (
        "_dtype",
        "_frozen",
        "_made_of",
        "_radii",
        "followed",
        "is_state",
        "may_grow",
        "pairs",
        "seen",
        "shrink",
        "single",
        "unit_length",
    )

    def __init__(self, states: States, bucket: Bucket, shrink: float) -> None:
        self.followed: Followed | None = None
        """What a round of retraction reads and writes;"""
        self.may_grow = True
        """Whether a matrix may have begun with zeros and be on its way to S;"""
        self.is_state = False
        """whether it is the state itself, else it is to be scattered."""
        if bucket.group["policy"] == "retract":
            self.followed, self.is_state = gather_followed(states, bucket)
        self.seen = None if self.followed is None else seen(self.followed)
        self.pairs = gather_pairs(states, bucket) if self.followed is None else self._of_followed(states, bucket)
        self._dtype = bucket.dtype
        self._frozen: Frozen | None = None
        self.shrink = shrink
        self.unit_length = spectral_radius((bucket.fan_out, bucket.fan_in)) * shrink
        """What one unit of learning rate is of the orthogonalised direction."""
        self.single: list[FrozenPair] = []
        """What `frozen_step` knows of each matrix, where it steps them."""
        if is_large(bucket):
            self._radii = self.pairs.radius.tolist()
            self.single = [FrozenPair(*own) for own in zip(self.pairs.u, self.pairs.v, self._radii, strict=True)]
        self._made_of = self._read(states, bucket, shrink)

    def _of_followed(self, states: States, bucket: Bucket) -> Pairs:
        followed = self.followed
        assert followed is not None
        return Pairs(followed.u, followed.v, gather(states, bucket, "second"), followed.radius)

    def was_written(self, states: States, bucket: Bucket) -> None:
        """Take note that a round wrote what it followed: nothing is gathered anew where that is the state itself."""
        if self.followed is None:
            return
        if not self.is_state:
            scatter_followed(states, bucket, self.followed)
        if self._frozen is not None:
            self._frozen = self._made()
        if self.single:
            self.single = [FrozenPair(*own) for own in zip(self.pairs.u, self.pairs.v, self._radii, strict=True)]
        self._made_of = self._read(states, bucket, self.shrink)

    @property
    def length(self) -> Tensor:
        """(B, 1, 1) the same of each matrix."""
        return torch.full_like(self.pairs.radius, self.unit_length).view(-1, 1, 1)

    @property
    def frozen(self) -> Frozen:
        """The pairs in the arithmetic's dtype: made when first asked for."""
        if self._frozen is None:
            self._frozen = self._made()
        return self._frozen

    def _made(self) -> Frozen:
        return frozen(self.pairs.u, self.pairs.v, self._dtype, in_parts=self.followed is None)

    def is_current(self, states: States, bucket: Bucket, shrink: float) -> bool:
        """Whether no pair was written to since, and the arithmetic is the same."""
        return self._made_of == self._read(states, bucket, shrink)

    @staticmethod
    def _read(states: States, bucket: Bucket, shrink: float) -> list[object]:
        """Which tensors hold the pairs, how often they have been written to, and what they are made ready for."""
        versions: list[object] = [shrink, bucket.dtype]
        for parameter in bucket.params:
            state = states[parameter]
            versions.append((id(state["v"]), state["v"]._version, state["second"]._version))
        return versions
