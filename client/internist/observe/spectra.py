"""Spectra of matrices and of their changes on matrix-heavy steps, each started from the last one's result."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from internist.measures import spectral, weights
from internist.measures.activations import NOT_MEASURED
from internist.model.outline import WatchedParameter, fans, matrix_view, resolve_view
from internist.record.recorder import Recorder, Spec


class SpectraCapture:
    """Measures matrices in turn."""

    def __init__(
        self,
        *,
        widths: Mapping[int, tuple[int | None, int | None]],
        spec: Callable[[WatchedParameter, str, str], Spec | None],
        fault: Callable[[str, str, BaseException], None],
    ) -> None:
        """Measure nothing yet.

        Args:
            widths: by module order, features of input and output, as they become known.
            spec: the series of a parameter's metric, measured by a method.
            fault: told of a parameter that cannot be measured.
        """
        self._widths, self._spec, self._fault = widths, spec, fault
        self._starts: dict[tuple[int, str], Tensor] = {}
        self._broken: set[int] = set()

    def record(self, chosen: Sequence[WatchedParameter], deltas: Mapping[int, Tensor], recorder: Recorder) -> None:
        """Record the spectra of these parameters and of their changes, by parameter order, where they are matrices."""
        for p in chosen:
            if p.view == "unknown":
                resolve_view(p, *self._widths.get(p.owner.order, (None, None)))
            if "matrix" not in p.roles or p.unsupported or p.order in self._broken:
                continue
            try:
                self._spectrum(p, deltas[p.order], recorder)
            except Exception as error:
                self._broken.add(p.order)
                self._fault("parameter", p.name, error)

    def _spectrum(self, p: WatchedParameter, delta: Tensor, recorder: Recorder) -> None:
        weight = matrix_view(p, p.tensor.detach())
        sigma, method = self._spectral_norm(p, "weight", weight)
        change, change_method = self._spectral_norm(p, "update", matrix_view(p, delta))
        fan_out, fan_in = fans(p)
        shape = torch.Size((fan_out, fan_in))
        groups = weight.shape[0] if weight.dim() == 3 else 1
        frobenius = weights.mean_squares([weight])[0] * (weight.numel() / groups)
        operator, change_operator = spectral.operator_norm(sigma, shape), spectral.operator_norm(change, shape)
        layout: list[Spec | None] = [
            self._spec(p, "weight.spectral_norm", method),
            self._spec(p, "weight.operator_norm", method),
            self._spec(p, "weight.stable_rank", method),
            self._spec(p, "update.spectral_norm", change_method),
            self._spec(p, "update.operator_norm", change_method),
            self._spec(p, "update.relative", change_method),
        ]
        relative = torch.where(operator == 0, NOT_MEASURED, change_operator / operator)
        rank = spectral.stable_rank(frobenius, sigma)
        recorder.add(
            layout, torch.stack([v.float() for v in (sigma, operator, rank, change, change_operator, relative)])
        )

    def _spectral_norm(self, p: WatchedParameter, kind: str, matrix: Tensor) -> tuple[Tensor, str]:
        """The largest singular value of a matrix, or the largest over the groups of a convolution."""
        if matrix.dim() == 3:
            found = [spectral.spectral_norm(part) for part in matrix]
            return torch.stack([f.norm for f in found]).amax(), found[0].method
        key = p.order, kind
        found_one = spectral.spectral_norm(matrix, start=self._starts.get(key))
        if found_one.right is not None and kind == "weight":
            self._starts[key] = found_one.right
        return found_one.norm, found_one.method
