"""Spectra of many matrices together: stacks of one shape under a byte budget, and one record for all."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from internist.measures import spectral, spectral_stacks
from internist.measures.spectral_stacks import Reduced, Spectra
from internist.model.outline import WatchedParameter
from internist.model.views import UNORIENTED, fans
from internist.observe.parameter_series import ParameterSeries
from internist.record.kept import Takes
from internist.schema.metrics import Bound
from internist.schema.wire import Series

STACK_BYTES = 256 << 20
"""Matrices that are copied into one stack at once."""
SMALL_BYTES = 64 << 20
"""Gram matrices whose spectra wait for more of them. While they are squared, three of each are held."""
ESTIMATE = 1.01
"""What an iterated norm, which is never above the true one, is multiplied by before it may stand in an upper bound: no
reading of a few hundred was short by a percent."""
LISTS_KEPT = 64
"""Lists of matrices whose scales are kept on their device."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """A parameter as one matrix, (fan_out, fan_in), or as several, (parts, fan_out, fan_in); its change likewise."""

    parameter: WatchedParameter
    weight: Tensor
    change: Tensor | None
    with_weight: bool = True
    """Whether the spectrum of the weight itself is wanted."""
    is_whole: bool = False
    """Whether these are whole matrices although ranks hold pieces of them: an optimizer had them for its step."""

    @property
    def is_stack_of_experts(self) -> bool:
        """Whether each part has series of its own; of a grouped convolution the largest value counts."""
        return "experts" in self.parameter.view

    @property
    def is_piece(self) -> bool:
        """Whether this rank holds a piece of each matrix, and others the rest."""
        shard = None if self.is_whole else self.parameter.shard
        return shard is not None and bool(shard.cut - ({0} if self.is_stack_of_experts else set()))

    @property
    def indices(self) -> list[int | None]:
        """The index of each of its series, counted over all ranks."""
        if not self.is_stack_of_experts:
            return [None]
        shard = None if self.is_whole else self.parameter.shard
        first = 0 if shard is None else shard.offset[0]
        return [first + expert for expert in range(self.weight.shape[0])]

    @property
    def key(self) -> tuple[int, bool]:
        """What tells it from other matrices, and the whole of one from a piece."""
        return self.parameter.order, self.is_whole

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is measured of it."""
        return ("weight",) * self.with_weight + ("update",) * (self.change is not None)

    def side(self, kind: str) -> Tensor:
        """The weight, or its change."""
        found = self.weight if kind == "weight" else self.change
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class _Found:
    """The spectra of one stack's matrices: by kind, a norm of each series, with its method."""

    members: Sequence[Matrices]
    norms: dict[str, Tensor]
    frobenius: dict[str, Tensor]
    methods: dict[str, str]


class SpectraBatches:
    """Measures matrices on one device after another, and records them."""

    def __init__(self, series: ParameterSeries) -> None:
        self._series = series
        self._starts: dict[tuple[tuple[int, bool], ...], Tensor] = {}
        """By the matrices of a stack: right vectors of its weights."""
        self._scales: dict[Hashable, Tensor] = {}

    def forget(self) -> None:
        """Keep no vector from which the next measurement would start."""
        self._starts.clear()
        self._scales.clear()

    def record(self, members: Sequence[Matrices], recorder: Takes) -> None:
        """Record the spectra of matrices on one device, of which the same is wanted: of all, or raise."""
        self._record(self._measured(members), recorder)

    # ---- private ---------------------------------------------------------------------------------------------------

    def _measured(self, members: Sequence[Matrices]) -> list[_Found]:
        found: list[_Found] = []
        waiting: list[tuple[list[Matrices], list[Reduced]]] = []
        held = 0
        for stack in _stacks(members):
            reduced = self._reduced(stack)
            waiting.append((stack, reduced))
            held += sum(part.small.numel() * part.small.element_size() for part in reduced)
            if held > SMALL_BYTES:
                found += self._finished(waiting)
                waiting, held = [], 0
        return found + self._finished(waiting)

    def _reduced(self, stack: Sequence[Matrices]) -> list[Reduced]:
        """Of matrices whose Gram matrices are squared, one part for weights and changes together; else one of each: the
        weights have vectors to start from."""
        kinds = stack[0].kinds
        sides = [[each.side(kind) for each in stack] for kind in kinds]
        if spectral_stacks.takes_start(stack[0].weight.shape):
            known = self._starts.get(tuple(each.key for each in stack))
            starts = [known if kind == "weight" else None for kind in kinds]
            return [
                spectral_stacks.reduce_(_stacked([side]), start=start)
                for side, start in zip(sides, starts, strict=True)
            ]
        return [spectral_stacks.reduce_(_stacked(sides))]

    def _finished(self, waiting: Sequence[tuple[list[Matrices], list[Reduced]]]) -> list[_Found]:
        spectra = iter(spectral_stacks.spectra([part for _, parts in waiting for part in parts]))
        found = []
        for stack, parts in waiting:
            kinds, own = stack[0].kinds, [next(spectra) for _ in parts]
            if own[0].right is not None and kinds[0] == "weight":
                self._starts[tuple(each.key for each in stack)] = own[0].right
            if len(own) < len(kinds):
                own = _halves(own[0], len(kinds))
            groups = stack[0].weight.shape[0] if stack[0].weight.dim() == 3 else 1
            if groups > 1 and not stack[0].is_stack_of_experts:
                own = [_over_groups(each, groups) for each in own]
            found.append(
                _Found(
                    stack,
                    {kind: each.norms for kind, each in zip(kinds, own, strict=True)},
                    {kind: each.frobenius for kind, each in zip(kinds, own, strict=True)},
                    {kind: each.method for kind, each in zip(kinds, own, strict=True)},
                )
            )
        return found

    def _record(self, parts: Sequence[_Found], recorder: Takes) -> None:
        kinds = parts[0].members[0].kinds
        subjects = [
            (each.parameter, index, part.methods) for part in parts for each in part.members for index in each.indices
        ]
        norms = torch.cat([part.norms[kind] for kind in kinds for part in parts]).view(len(kinds), -1)
        scales = self._scales_of([each for part in parts for each in part.members], norms.device)
        operators = norms * scales
        if parts[0].members[0].is_piece:
            record_pieces(self._series, subjects, kinds, norms, scales, recorder)
            return
        key = tuple((p.order, index, *methods.values()) for p, index, methods in subjects)

        def series(*names: str) -> list[Series | None]:
            return [
                self._series.of(p, name, methods[name.partition(".")[0]], index)
                if "operator" not in name or UNORIENTED not in p.view
                else None
                for name in names
                for p, index, methods in subjects
            ]

        names = tuple(f"{kind}.{norm}" for norm in ("spectral_norm", "operator_norm") for kind in kinds)
        layout = self._series.listed((*names, key), lambda: series(*names))
        if "weight" in kinds:
            frobenius = torch.cat([part.frobenius["weight"] for part in parts])
            values, relative = [spectral.stable_rank(frobenius, norms[0])], ["weight.stable_rank"]
            if "update" in kinds:
                values.append(operators[1] / operators[0])
                relative.append("update.relative")
            is_there = (norms[0] != 0).expand(len(values), -1)  # zeros have no rank, nothing relative
            ratios = self._series.listed((*relative, key), lambda: series(*relative))
            recorder.add(ratios, torch.stack(values), measured=is_there)
        recorder.add(layout, torch.stack((norms, operators)))

    def _scales_of(self, members: Sequence[Matrices], device: torch.device) -> Tensor:
        """(series,) what turns spectral norms to operator norms; made once, since a copy to the device would wait."""
        key = device, tuple(each.key for each in members)
        known = self._scales.get(key)
        if known is None:
            if len(self._scales) >= LISTS_KEPT:
                self._scales.clear()
            scales = [spectral.operator_scale(fans(each.parameter)) for each in members for _ in each.indices]
            known = self._scales[key] = torch.tensor(scales, dtype=torch.float32, device="cpu").to(device)
        return known


def record_pieces(
    series: ParameterSeries,
    subjects: Sequence[tuple[WatchedParameter, int | None, Mapping[str, str]]],
    kinds: Sequence[str],
    norms: Tensor,
    scales: Tensor,
    recorder: Takes,
) -> None:
    """Record what this rank's pieces of matrices say of the spectral norms of the whole: the largest norm of a piece is
    never above it, the root of the sum of all squares never below.

    Args:
        series: makes series.
        subjects: parameters, with the index of a series and by kind how the norm was computed.
        kinds: what there are norms of: weights, updates.
        norms: (kinds, subjects) float32.
        scales: (subjects,) what turns spectral norms to operator norms.
        recorder: takes them.
    """
    key = "pieces", tuple(kinds), tuple((p.order, index, *methods.values()) for p, index, methods in subjects)
    bounds: tuple[Bound, ...] = "lower", "upper"

    def listed() -> list[Series | None]:
        return [
            series.of(p, f"{kind}.{norm}", methods[kind], index, bound=bound)
            if norm == "spectral_norm" or UNORIENTED not in p.view
            else None
            for bound in bounds
            for norm in ("spectral_norm", "operator_norm")
            for kind in kinds
            for p, index, methods in subjects
        ]

    exact = all(methods[kind] == "gram" for _, _, methods in subjects for kind in kinds)
    lower = torch.stack((norms, norms * scales))
    upper = (lower if exact else lower * ESTIMATE).square()
    recorder.add(series.listed(key, listed), torch.stack((lower, upper)))


def _stacks(members: Sequence[Matrices]) -> Iterator[list[Matrices]]:
    """The matrices in lists of one shape each, that fit the budget."""
    groups: dict[Hashable, list[Matrices]] = {}
    for each in members:
        key = each.weight.shape, each.weight.dtype, each.is_stack_of_experts
        groups.setdefault(key, []).append(each)
    for alike in groups.values():
        size = _bytes(alike[0].weight) * len(alike[0].kinds)
        most = max(1, STACK_BYTES // size)
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def _bytes(matrix: Tensor) -> int:
    """What a float32 copy takes, with one in float64 where the exact value is computed."""
    return (12 if spectral_stacks.method(matrix.shape) == "gram" else 4) * matrix.numel()


def _stacked(sides: Sequence[Sequence[Tensor]]) -> Tensor:
    """(k, fan_out, fan_in) float32 copies of matrices, or of several of each."""
    join = torch.stack if sides[0][0].dim() == 2 else torch.cat
    if len({side[0].dtype for side in sides}) == 1:
        return join([matrix for side in sides for matrix in side]).float()
    return torch.cat([join(list(side)).float() for side in sides])


def _halves(both: Spectra, kinds: int) -> list[Spectra]:
    parts = zip(both.norms.chunk(kinds), both.frobenius.chunk(kinds), strict=True)
    return [Spectra(norms, frobenius, None, both.method) for norms, frobenius in parts]


def _over_groups(each: Spectra, groups: int) -> Spectra:
    """The largest norm over the groups of each convolution, and the root mean square of their Frobenius norms."""
    frobenius = linalg.vector_norm(each.frobenius.view(-1, groups), dim=1) / groups**0.5
    return Spectra(each.norms.view(-1, groups).amax(1), frobenius, None, each.method)
