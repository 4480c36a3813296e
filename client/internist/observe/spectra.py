"""Spectra of matrices and of their changes on matrix-heavy steps, each started from the last one's result."""

from collections.abc import Hashable, Mapping, Sequence

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
from internist.record.recorder import Recorder
from internist.record.series_book import Layout


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
        self._starts: dict[tuple[int, int], Tensor] = {}
        self._batches = SpectraBatches(series)
        self.measured_now: set[int] = set()
        """Orders of parameters measured in the step that is being closed."""

    def forget(self) -> None:
        """Keep no vector from which the next measurement would start."""
        self._starts.clear()
        self._batches.forget()

    def record(self, chosen: Sequence[WatchedParameter], deltas: Mapping[int, Tensor], recorder: Recorder) -> None:
        """Record the spectra of these parameters and of their changes, where they are matrices.

        Args:
            deltas: by parameter order; parameters without one have not been compared.
        """
        together: list[Matrices] = []
        for p in chosen:
            if p.view == "unknown":
                resolve_view(p, *self._widths.get(p.owner.order, (None, None)))
            if "matrix" not in p.roles or p.unsupported or self._faults.is_given_up("parameter", p.name):
                continue
            if "groups" in p.view and p.shard is not None and p.shard.cut:
                reason = "the groups of its convolution are cut over ranks: no piece is a piece of one matrix"
                self._faults.give_up("parameter", p.name, reason)
                continue
            try:
                found = self._matrices(p, deltas.get(p.order))
                if many.pays(found.weight.device):
                    together.append(found)
                    continue
                self._record_alone(found, recorder)
                self._is_measured(p)
            except Exception as error:
                self._faults.note("parameter", p.name, error)
        alike: dict[Hashable, list[Matrices]] = {}
        for each in together:
            alike.setdefault((each.weight.device, each.kinds, each.is_piece), []).append(each)
        for members in alike.values():
            self._record_together(members, recorder)

    # ---- private ---------------------------------------------------------------------------------------------------

    def _matrices(self, p: WatchedParameter, delta: Tensor | None) -> Matrices:
        change = matrix_view(p, delta) if delta is not None and self._wants_updates else None
        return Matrices(p, matrix_view(p, p.local), change, with_weight=self._wants_weights or change is None)

    def _is_measured(self, p: WatchedParameter) -> None:
        self.measured_now.add(p.order)
        self._faults.well("parameter", p.name)

    def _record_together(self, members: Sequence[Matrices], recorder: Recorder) -> None:
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
            self._is_measured(each.parameter)

    def _record_alone(self, found: Matrices, recorder: Recorder) -> None:
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
        recorder: Recorder,
        *,
        expert: int | None = None,
    ) -> None:
        p = found.parameter
        shape, is_oriented = torch.Size(fans(p)), UNORIENTED not in p.view
        sigma, method = self._weight_norm(p, weight, expert)
        if found.is_piece:
            change, change_method = (None, "") if delta is None else _largest(delta)
            record_pieces(
                self._series,
                [(p, expert, {"weight": method, "update": change_method})],
                ("weight",) if change is None else ("weight", "update"),
                torch.stack([norm.float() for norm in (sigma, change) if norm is not None]).unsqueeze(1),
                sigma.new_full((1,), spectral.operator_scale((shape[0], shape[1])), dtype=torch.float32),
                recorder,
            )
            return
        groups = weight.shape[0] if weight.dim() == 3 else 1
        frobenius = (weights.mean_squares([weight])[0] * (weight.numel() / groups)).sqrt()
        operator, rank = spectral.operator_norm(sigma, shape), spectral.stable_rank(frobenius, sigma)
        is_there, always = sigma != 0, torch.ones_like(sigma, dtype=torch.bool)
        layout: Layout = [
            self._series.of(p, "weight.spectral_norm", method, expert),
            self._series.of(p, "weight.operator_norm", method, expert) if is_oriented else None,
            self._series.of(p, "weight.stable_rank", method, expert),
        ]
        values, measured = [sigma, operator, rank], [always, always, is_there]
        if delta is not None:
            change, change_method = _largest(delta)
            change_operator = spectral.operator_norm(change, shape)
            layout = [
                *layout,
                self._series.of(p, "update.spectral_norm", change_method, expert),
                self._series.of(p, "update.operator_norm", change_method, expert) if is_oriented else None,
                self._series.of(p, "update.relative", change_method, expert),
            ]
            values += [change, change_operator, change_operator / operator]
            measured += [always, always, is_there]  # zeros have no rank, nothing relative
        recorder.add(layout, torch.stack([v.float() for v in values]), measured=torch.stack(measured))

    def _weight_norm(self, p: WatchedParameter, matrix: Tensor, expert: int | None) -> tuple[Tensor, str]:
        if matrix.dim() == 3:
            return _largest(matrix)
        key = p.order, -1 if expert is None else expert
        found = spectral.spectral_norm(matrix, start=self._starts.get(key))
        if found.right is not None:
            self._starts[key] = found.right
        return found.norm, found.method


def _largest(matrix: Tensor) -> tuple[Tensor, str]:
    """The largest singular value of a matrix, or the largest over the groups of a convolution."""
    found = [spectral.spectral_norm(part) for part in (matrix if matrix.dim() == 3 else [matrix])]
    return found[0].norm if len(found) == 1 else torch.stack([f.norm for f in found]).amax(), found[0].method
