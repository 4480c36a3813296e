"""How parameters and their gradients lie in the range of their number formats, on model-heavy steps, from a sample of
their entries."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from internist.measures import formats
from internist.model.outline import WatchedParameter
from internist.model.plain import PLAIN
from internist.observe.parameter_series import ParameterSeries
from internist.observe.stored_updates import Wants
from internist.record.recorder import Recorder
from internist.record.series_book import Layout

SHARES = ("underflow", "narrow_underflow", "saturation", "narrow_saturation")
"""In the order of `measures.formats.shares`."""


class ParameterRanges:
    """Records the ranges of many parameters in few launches."""

    def __init__(self, series: ParameterSeries, wants: Wants) -> None:
        self._series, self._wants = series, wants

    def record(
        self,
        kind: Literal["weight", "gradient"],
        chosen: Sequence[WatchedParameter],
        tensors: Sequence[Tensor],
        recorder: Recorder,
    ) -> None:
        """Record the ranges of these weights, or of these gradients as they are stored: with the scale that a gradient
        scaler has put on them, since that is what their format has to hold."""
        if not self._wants(*(f"{kind}.{share}" for share in SHARES)):
            return
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[WatchedParameter, Tensor]]] = {}
        for p, tensor in zip(chosen, tensors, strict=True):
            is_read = type(tensor.data) in PLAIN and tensor.layout == torch.strided and formats.is_known(tensor.dtype)
            if is_read and tensor.numel() and not tensor.is_meta and self._series.is_reported(p):
                groups.setdefault((tensor.device, tensor.dtype), []).append((p, formats.sample(tensor)))
        for (_, dtype), members in groups.items():
            found = formats.ragged_shares([sample for _, sample in members], is_gradient=kind == "gradient")
            recorder.add(self._layout(kind, dtype, [p for p, _ in members]), found, [len(s) for _, s in members] * 4)

    def _layout(self, kind: str, dtype: torch.dtype, members: Sequence[WatchedParameter]) -> Layout:
        pair = formats.pair_of(dtype, is_gradient=kind == "gradient")
        return self._series.listed(
            (kind, "ranges", dtype, tuple(p.order for p in members)),
            lambda: [self._series.of(p, f"{kind}.{s}", pair, bound="sampled") for s in SHARES for p in members],
        )
