"""Spectra of matrices and of their changes on matrix-heavy steps, each started from the last one's result."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from internist.measures import many, spectral, weights
from internist.model.outline import WatchedParameter
from internist.model.views import UNORIENTED, fans, matrix_view, resolve_view
from internist.observe.faults import Faults
from internist.observe.parameter_series import ParameterSeries
from internist.observe.snapshots import UPDATE_SPECTRA, WEIGHT_SPECTRA
from internist.observe.spectra_batches import Matrices, SpectraBatches, record_pieces
from internist.observe.stored_updates import Wants
from internist.record.kept import Takes
from internist.schema.wire import Series

_Found = tuple[WatchedParameter, Tensor, Tensor | None, bool]
"""A parameter, what is there of its weight and of its change, and whether the spectrum of the weight is wanted."""


class SpectraCapture:
    """Measures matrices in turn: on the CPU one by one, elsewhere all together.

    Args:
        widths: by module order, features of input and output, as they become known.
        series: makes series.
        faults: told of a parameter that cannot be measured.
        wants: whether any of some metrics is measured.
    """

    def __init__(
        self,
        *,
        widths: Mapping[int, tuple[int | None, int | None]],
        series: ParameterSeries,
        faults: Faults,
        wants: Wants,
    ) -> None:
        self._widths, self._series, self._faults = widths, series, faults
        self._wants_weights = wants(*WEIGHT_SPECTRA, "update.relative")
        self._wants_updates = wants(*UPDATE_SPECTRA)
        self._starts: dict[tuple[int, bool, int | None], Tensor] = {}
        self._batches = SpectraBatches(series)
        self.measured_now: set[int] = set()
        """Orders of parameters measured in the step that is being closed."""

    def forget(self) -> None:
        """Keep no vector from which the next measurement would start."""
        self._starts.clear()
        self._batches.forget()

    def record(
        self,
        chosen: Sequence[WatchedParameter],
        deltas: Mapping[int, Tensor],
        recorder: Takes,
        *,
        without: Mapping[int, Collection[str]] = MappingProxyType({}),
    ) -> None:
        """Record the spectra of these parameters and of their changes, where they are matrices.

        Args:
            deltas: by parameter order; parameters without one have not been compared.
            without: by parameter order, what is known of it already: its weight, its update.
        """
        found = []
        for p in chosen:
            known = without.get(p.order, ())
            delta = deltas.get(p.order) if self._wants_updates and "update" not in known else None
            with_weight = "weight" not in known and (self._wants_weights or (delta is None and not known))
            if self.is_matrix(p) and (with_weight or delta is not None):
                found.append((p, p.local, delta, with_weight))
        self._record(found, recorder)

    def record_whole(self, seen: Sequence[tuple[WatchedParameter, Tensor | None, Tensor]], recorder: Takes) -> None:
        """Record the spectra of parameters of which this rank has all for a moment: the weight, where that is seen as
        well, and its change."""
        found = []
        for p, weight, change in seen:
            delta = change if self._wants_updates else None
            with_weight = weight is not None and self._wants_weights
            if self.is_matrix(p) and (with_weight or delta is not None):
                found.append((p, change if weight is None else weight, delta, with_weight))
        self._record(found, recorder, is_whole=True)

    def is_matrix(self, p: WatchedParameter) -> bool:
        """Whether a parameter has a spectrum that can be measured."""
        if p.view == "unknown":
            resolve_view(p, *self._widths.get(p.owner.order, (None, None)))
        if "matrix" not in p.roles or p.unsupported or self._faults.is_given_up("parameter", p.name):
            return False
        if "groups" in p.view and p.shard is not None and p.shard.cut:
            reason = "the groups of its convolution are cut over ranks: no piece is a piece of one matrix"
            self._faults.give_up("parameter", p.name, reason)
            return False
        return True

    def is_measured(self, p: WatchedParameter) -> None:
        """The spectrum of a parameter is known, here or on another rank."""
        self.measured_now.add(p.order)
        self._faults.well("parameter", p.name)

    # ---- private ---------------------------------------------------------------------------------------------------

    def _record(self, found: Sequence[_Found], recorder: Takes, *, is_whole: bool = False) -> None:
        together: list[Matrices] = []
        for p, weight, change, with_weight in found:
            try:
                delta = None if change is None else matrix_view(p, change)
                each = Matrices(p, matrix_view(p, weight), delta, with_weight=with_weight, is_whole=is_whole)
                if many.pays(each.weight.device):
                    together.append(each)
                    continue
                self._record_alone(each, recorder)
                self.is_measured(p)
            except Exception as error:
                self._faults.note("parameter", p.name, error)
        alike: dict[Hashable, list[Matrices]] = {}
        for each in together:
            alike.setdefault((each.weight.device, each.kinds, each.is_piece), []).append(each)
        for members in alike.values():
            self._record_together(members, recorder)

    def _record_together(self, members: Sequence[Matrices], recorder: Takes) -> None:
        try:
            self._batches.record(members, recorder)
        except Exception as error:
            if len(members) > 1:  # each alone: the faulty one costs itself
                for each in members:
                    self._record_together([each], recorder)
            else:
                self._faults.note("parameter", members[0].parameter.name, error)
            return
        for each in members:
            self.is_measured(each.parameter)

    def _record_alone(self, found: Matrices, recorder: Takes) -> None:
        if not found.is_stack_of_experts:
            self._spectrum(found, found.weight, found.change, recorder)
            return
        for place, expert in enumerate(found.indices):
            change = None if found.change is None else found.change[place]
            self._spectrum(found, found.weight[place], change, recorder, expert=expert)

    def _spectrum(
        self,
        found: Matrices,
        weight: Tensor,
        delta: Tensor | None,
        recorder: Takes,
        *,
        expert: int | None = None,
    ) -> None:
        p = found.parameter
        shape, is_oriented = torch.Size(fans(p)), UNORIENTED not in p.view
        measured: dict[str, tuple[Tensor, str]] = {}
        if found.with_weight:
            measured["weight"] = self._weight_norm(found, weight, expert)
        if delta is not None:
            measured["update"] = _largest(delta)
        if found.is_piece:
            norms = torch.stack([norm.float() for norm, _ in measured.values()])
            record_pieces(
                self._series,
                [(p, expert, {kind: method for kind, (_, method) in measured.items()})],
                tuple(measured),
                norms.unsqueeze(1),
                norms.new_full((1,), spectral.operator_scale((shape[0], shape[1]))),
                recorder,
            )
            return
        layout: list[Series | None] = []
        values: list[Tensor] = []
        for kind, (norm, method) in measured.items():
            layout += [
                self._series.of(p, f"{kind}.spectral_norm", method, expert),
                self._series.of(p, f"{kind}.operator_norm", method, expert) if is_oriented else None,
            ]
            values += [norm, spectral.operator_norm(norm, shape)]
        always = torch.ones_like(values[0], dtype=torch.bool)
        there = [always] * len(values)
        if found.with_weight:
            sigma, method = measured["weight"]
            groups = weight.shape[0] if weight.dim() == 3 else 1
            frobenius = (weights.mean_squares([weight])[0] * (weight.numel() / groups)).sqrt()
            layout.append(self._series.of(p, "weight.stable_rank", method, expert))
            values.append(spectral.stable_rank(frobenius, sigma))
            if "update" in measured:
                change, change_method = measured["update"]
                layout.append(self._series.of(p, "update.relative", change_method, expert))
                values.append(spectral.operator_norm(change, shape) / spectral.operator_norm(sigma, shape))
            there += [sigma != 0] * (len(values) - len(there))  # zeros have no rank, nothing relative
        recorder.add(layout, torch.stack([v.float() for v in values]), measured=torch.stack(there))

    def _weight_norm(self, found: Matrices, matrix: Tensor, expert: int | None) -> tuple[Tensor, str]:
        if matrix.dim() == 3:
            return _largest(matrix)
        key = *found.key, expert
        norm = spectral.spectral_norm(matrix, start=self._starts.get(key))
        if norm.right is not None:
            self._starts[key] = norm.right
        return norm.norm, norm.method


def _largest(matrix: Tensor) -> tuple[Tensor, str]:
    """The largest singular value of a matrix, or the largest over the groups of a convolution."""
    found = [spectral.spectral_norm(part) for part in (matrix if matrix.dim() == 3 else [matrix])]
    return found[0].norm if len(found) == 1 else torch.stack([f.norm for f in found]).amax(), found[0].method
