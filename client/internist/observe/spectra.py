"""Spectra of matrices and of their changes on matrix-heavy steps, each started from the last one's result."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from internist.measures import spectral, weights
from internist.model.outline import WatchedParameter
from internist.model.views import UNORIENTED, fans, matrix_view, resolve_view
from internist.observe.faults import Faults
from internist.record.recorder import Recorder
from internist.schema.wire import Series

SeriesOf = Callable[[WatchedParameter, str, str, int | None], Series | None]
"""The series of a parameter's metric, measured by a method, of an expert or of the whole."""


class SpectraCapture:
    """Measures matrices in turn.

    Args:
        widths: by module order, features of input and output, as they become known.
        series: makes series.
        faults: told of a parameter that cannot be measured.
    """

    def __init__(
        self, *, widths: Mapping[int, tuple[int | None, int | None]], series: SeriesOf, faults: Faults
    ) -> None:
        self._widths, self._series, self._faults = widths, series, faults
        self._starts: dict[tuple[int, str, int], Tensor] = {}
        self.measured_now: set[int] = set()
        """Orders of parameters measured in the step that is being closed."""

    def forget(self) -> None:
        """Keep no vector from which the next measurement would start."""
        self._starts.clear()

    def record(self, chosen: Sequence[WatchedParameter], deltas: Mapping[int, Tensor], recorder: Recorder) -> None:
        """Record the spectra of these parameters and of their changes, by parameter order, where they are matrices."""
        for p in chosen:
            if p.view == "unknown":
                resolve_view(p, *self._widths.get(p.owner.order, (None, None)))
            if "matrix" not in p.roles or p.unsupported or self._faults.is_given_up("parameter", p.name):
                continue
            try:
                weight, delta = matrix_view(p, p.tensor.detach()), matrix_view(p, deltas[p.order])
                if "experts" in p.view:
                    for expert, (each, change) in enumerate(zip(weight, delta, strict=True)):
                        self._spectrum(p, each, change, recorder, expert=expert)
                else:
                    self._spectrum(p, weight, delta, recorder)
                self.measured_now.add(p.order)
                self._faults.well("parameter", p.name)
            except Exception as error:
                self._faults.note("parameter", p.name, error)

    def _spectrum(
        self, p: WatchedParameter, weight: Tensor, delta: Tensor, recorder: Recorder, *, expert: int | None = None
    ) -> None:
        sigma, method = self._spectral_norm(p, "weight", weight, expert)
        change, change_method = self._spectral_norm(p, "update", delta, expert)
        shape = torch.Size(fans(p))
        groups = weight.shape[0] if weight.dim() == 3 else 1
        frobenius = weights.mean_squares([weight])[0] * (weight.numel() / groups)
        operator, change_operator = spectral.operator_norm(sigma, shape), spectral.operator_norm(change, shape)
        is_oriented = UNORIENTED not in p.view
        layout = [
            self._series(p, "weight.spectral_norm", method, expert),
            self._series(p, "weight.operator_norm", method, expert) if is_oriented else None,
            self._series(p, "weight.stable_rank", method, expert),
            self._series(p, "update.spectral_norm", change_method, expert),
            self._series(p, "update.operator_norm", change_method, expert) if is_oriented else None,
            self._series(p, "update.relative", change_method, expert),
        ]
        rank, relative = spectral.stable_rank(frobenius, sigma), change_operator / operator
        values = torch.stack([v.float() for v in (sigma, operator, rank, change, change_operator, relative)])
        is_there, always = sigma != 0, torch.ones_like(sigma, dtype=torch.bool)
        measured = torch.stack(
            [always, always, is_there, always, always, is_there]
        )  # zeros have no rank, nothing relative
        recorder.add(layout, values, measured=measured)

    def _spectral_norm(self, p: WatchedParameter, kind: str, matrix: Tensor, expert: int | None) -> tuple[Tensor, str]:
        """The largest singular value of a matrix, or the largest over the groups of a convolution."""
        if matrix.dim() == 3:
            found = [spectral.spectral_norm(part) for part in matrix]
            return torch.stack([f.norm for f in found]).amax(), found[0].method
        key = p.order, kind, -1 if expert is None else expert
        found_one = spectral.spectral_norm(matrix, start=self._starts.get(key))
        if found_one.right is not None and kind == "weight":
            self._starts[key] = found_one.right
        return found_one.norm, found_one.method
