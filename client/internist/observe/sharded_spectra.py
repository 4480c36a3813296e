"""Exact spectra of sharded matrices, which ranks work out together (`watch(distributed="reduce")`)."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from internist.measures import sharded_spectra, spectral
from internist.measures.sharded_spectra import Found, Pieces
from internist.model.outline import Outline, WatchedParameter
from internist.model.shards import is_in_one_box, ranks_of_replica
from internist.model.views import UNORIENTED, fans, matrix_view
from internist.observe.collective import Ranks
from internist.observe.parameter_series import ParameterSeries
from internist.observe.reduction import Reduction
from internist.record.recorder import Recorder
from internist.schema.wire import Series

BASIS_BYTES = 64 << 20
"""What the vectors of matrices that are iterated at once may take on each rank."""
HELD_FOR = "ranks"
"""What a closed step is held for, as the recorder knows it."""

Kind = Literal["weight", "update"]
KINDS: tuple[Kind, Kind] = ("weight", "update")


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A parameter's matrices, or those of its change, as this rank holds pieces of them."""

    name: str
    kind: Kind
    pieces: Pieces
    series: Sequence[Mapping[str, Series | None]]
    """Of each of the matrices: by metric."""
    scale: float
    """What a spectral norm is multiplied by to become an operator norm."""


@dataclass(slots=True)
class _Part:
    """What this rank brings to a step."""

    step: int
    recorder: Recorder
    reports: bool
    """Whether this rank tells what all of them know then."""
    matrices: list[_Matrix] = field(default_factory=list)

    @property
    def mark(self) -> int:
        """A digest of the matrices, which all ranks must bring in the same order."""
        told = [(m.name, m.kind, m.pieces.columns, m.pieces.rows) for m in self.matrices]
        return int.from_bytes(hashlib.blake2b(repr(told).encode(), digest_size=7).digest(), "big")

    def work_out(self, ranks: Ranks) -> None:
        """Work the spectra out, batch by batch."""
        for matrices in _batches(self.matrices):
            found = sharded_spectra.spectra([m.pieces for m in matrices], total=ranks.total, largest=ranks.largest)
            if self.reports:
                self._record(matrices, found)

    def _record(self, matrices: Sequence[_Matrix], found: Sequence[Found]) -> None:
        layout: list[Series | None] = []
        values: list[Tensor] = []
        weights = {m.name: spectrum for m, spectrum in zip(matrices, found, strict=True) if m.kind == "weight"}
        for matrix, spectrum in zip(matrices, found, strict=True):
            kind, weight = matrix.kind, weights.get(matrix.name)
            for place, series in enumerate(matrix.series):
                norm = spectrum.norms[place]
                told = {f"{kind}.spectral_norm": norm, f"{kind}.operator_norm": norm * matrix.scale}
                if weight is not None and weight.norms[place] != 0:  # zeros have no rank, nothing relative
                    told["weight.stable_rank"] = spectral.stable_rank(weight.frobenius[place], weight.norms[place])
                    told["update.relative"] = norm / weight.norms[place]
                known = [(each, told[metric]) for metric, each in series.items() if metric in told]
                layout += [each for each, _ in known]
                values += [value for _, value in known]
        if values:
            self.recorder.add_late(self.step, layout, torch.stack(values), (1,) * len(values))


class ShardedSpectra:
    """Takes pieces of matrices on sampled steps, and has the ranks work out the spectra of the whole.

    Args:
        outline: the model.
        series: makes series.
        reduction: joins the other ranks.
        joins_at: whether ranks join at a step: a function of its number alone.
        rank: this one.
        wanted: what is measured of matrices.
    """

    def __init__(
        self,
        outline: Outline,
        series: ParameterSeries,
        reduction: Reduction,
        *,
        joins_at: Callable[[int], bool],
        rank: int,
        wanted: Sequence[Kind],
    ) -> None:
        self._outline, self._series, self._reduction = outline, series, reduction
        self._joins_at, self._rank, self._wanted = joins_at, rank, wanted
        self._kept: dict[tuple[int, Kind], _Matrix] = {}
        self._joins = self._takes = False
        self._sets: list[tuple[int, ...]] | None = None

    @property
    def brings(self) -> bool:
        """Whether this rank has something for the step under way."""
        return bool(self._kept)

    def begin(self, step: int) -> None:
        """A step begins."""
        self._kept.clear()
        self._joins = self._is_open and self._joins_at(step)
        self._takes = self._joins and not self._reduction.is_behind

    def takes(self, p: WatchedParameter) -> bool:
        """Whether a parameter's spectra are worked out by the ranks together at the step under way. Where one of them
        brings nothing, nothing is known of that step."""
        return self._joins and _cut(p) is not None

    def keep(self, p: WatchedParameter, change: Tensor | None) -> None:
        """Copy what this rank holds of a parameter, as the step left it, and of its change."""
        shard = p.shard
        if not self._takes or shard is None or not shard.is_first_of_all:
            return
        sides: dict[Kind, Tensor | None] = {"weight": p.local, "update": change}
        for kind in self._wanted:
            if (tensor := sides[kind]) is not None:
                self._kept[p.order, kind] = self._matrix(p, kind, tensor)

    def join(self, step: int, recorder: Recorder) -> None:
        """A step is over: join the other ranks, if they join at this one. Never waits."""
        kept, self._kept = self._kept, {}
        if not self._is_open or not self._joins_at(step):
            return
        sets = self._of_ranks()
        parts: dict[tuple[int, ...], _Part] = {}
        by_order = {p.order: p for p in self._outline.parameters}
        for order, kind in sorted(kept, key=lambda key: (key[0], KINDS.index(key[1]))):
            ranks = ranks_of_replica(by_order[order].tensor)
            part = parts.setdefault(ranks, _Part(step, recorder, reports=self._rank == min(ranks)))
            part.matrices.append(kept[order, kind])
        self._reduction.join(step, sets, parts, partial(recorder.settle, step, HELD_FOR))

    # ---- private ---------------------------------------------------------------------------------------------------

    @property
    def _is_open(self) -> bool:
        return not self._reduction.is_over

    def _of_ranks(self) -> list[tuple[int, ...]]:
        """The sets of ranks that this one is of: of all matrices, whichever are due."""
        if self._sets is None:
            own = [
                p
                for p in self._outline.parameters
                if not p.unsupported and (shard := p.shard) and shard.is_first_of_all
            ]
            cut = [p for p in own if _cut(p) is not None]
            self._sets = sorted({ranks_of_replica(p.tensor) for p in cut})
        return self._sets

    def _matrix(self, p: WatchedParameter, kind: Kind, tensor: Tensor) -> _Matrix:
        pieces = _pieces(p, tensor)
        metrics = [f"{kind}.spectral_norm", "weight.stable_rank" if kind == "weight" else "update.relative"]
        if is_oriented := UNORIENTED not in p.view:
            metrics.append(f"{kind}.operator_norm")
        indices: list[int | None] = list(range(pieces.held.shape[0])) if "experts" in p.view else [None]
        series = [{metric: self._series.of(p, metric, pieces.method, index) for metric in metrics} for index in indices]
        return _Matrix(p.name, kind, pieces, series, spectral.operator_scale(fans(p)) if is_oriented else 1.0)


def _cut(p: WatchedParameter) -> tuple[bool, bool] | None:
    """Whether rows and whether columns of a parameter's matrices are cut over ranks, in a way that is known here; None:
    it is no matrix, or not cut so."""
    shard = p.shard
    if shard is None or not shard.cut or not ("matrix" in p.roles or p.view == "unknown") or "groups" in p.view:
        return None
    first = 1 if "experts" in p.view else 0
    if first and 0 in shard.cut:
        return None  # ranks hold other experts
    is_turned = "transposed" in p.view
    if p.view.startswith("convolution"):
        is_turned = bool(getattr(p.owner.module, "transposed", False))
    elif len(shard.shape) != first + 2:
        return None
    row = first + 1 if is_turned else first
    cut = row in shard.cut, bool(shard.cut - {row})
    if all(cut) and (p.view.startswith("convolution") or not is_in_one_box(p.tensor)):
        return None
    return cut


def _pieces(p: WatchedParameter, tensor: Tensor) -> Pieces:
    """A float32 copy of what this rank holds of a cut parameter, or of its change."""
    cut, shard = _cut(p), p.shard
    assert cut is not None and shard is not None
    view = matrix_view(p, tensor.detach())
    held = view.to(torch.float32, copy=True)
    held = held.unsqueeze(0) if held.dim() == 2 else held
    if cut == (True, True):
        rows, columns = p.tensor.shape[-2:]
        at = shard.offset[-2:]
        if "transposed" in p.view:
            rows, columns, at = columns, rows, at[::-1]
        return Pieces(held.contiguous(), columns, rows, (at[0], at[1]))
    if cut[1]:
        held = held.mT
    return Pieces(held.contiguous(), held.shape[2])


def _batches(matrices: Sequence[_Matrix]) -> Iterator[list[_Matrix]]:
    """Runs of matrices whose vectors fit the budget; a weight and its change stay together."""
    run: list[_Matrix] = []
    filled = 0
    for matrix in matrices:
        count, _, _ = matrix.pieces.held.shape
        size = 2 * sharded_spectra.STEPS * count * matrix.pieces.columns * 4
        if run and filled + size > BASIS_BYTES and matrix.name != run[-1].name:
            yield run
            run, filled = [], 0
        run.append(matrix)
        filled += size
    if run:
        yield run
