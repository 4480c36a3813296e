"""Whole matrices that an optimizer has during its step, of parameters that ranks hold pieces of: their owner measures
them there, and tells exact spectra where pieces would tell bounds."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from internist.model.outline import WatchedParameter
from internist.observe.faults import Faults
from internist.observe.optimizer_facts import unwrap_optimizer
from internist.observe.spectra import SpectraCapture
from internist.observe.stopwatch import Stopwatch
from internist.record.kept import Kept, Takes


class WholeMatrices:
    """Asks optimizers that offer it (`request_whole`, `shown_whole`) to show what they have whole.

    What is seen is measured at once, since it does not outlast the step, and recorded after it, unless the parameter
    was written to in between.
    """

    def __init__(self, spectra: SpectraCapture, faults: Faults, work: Stopwatch) -> None:
        self._spectra, self._work = spectra, work
        self._kept = Kept()
        self._asked: dict[int, WatchedParameter] = {}
        self._look_safely = faults.guard(self._look_at_whole_matrices)

    def request(self, optimizer: Any, parameters: Sequence[WatchedParameter]) -> None:
        """Before a step: ask for these parameters, whose spectra are due."""
        ask = getattr(unwrap_optimizer(optimizer), "request_whole", None)
        if not callable(ask):
            return
        self._asked = {id(p.tensor): p for p in parameters if _is_cut_matrix(p)}
        if self._asked:
            ask([p.tensor for p in self._asked.values()], self._look_safely)

    def pull(self, optimizer: Any, taker: Takes) -> Mapping[int, Collection[str]]:
        """After the step: record what was seen here. By order of a parameter, what is told of it by its owner, which
        may be another rank: weight, update."""
        if not self._asked:
            return {}
        shown = unwrap_optimizer(optimizer).shown_whole()
        told = {p: sides for tensor, sides in shown.items() if (p := self._asked.get(id(tensor))) is not None}
        self._kept.give(taker, {p.name for p in told})
        for p in told:
            self._spectra.is_measured(p)
        self._asked = {}
        return {p.order: sides for p, sides in told.items()}

    def reset(self) -> None:
        """Forget the step."""
        self._kept.clear()
        self._asked = {}

    # ---- private ---------------------------------------------------------------------------------------------------

    def _look_at_whole_matrices(self, seen: Sequence[tuple[Tensor, Tensor | None, Tensor]]) -> None:
        """In the middle of the step: measure what this rank owns."""
        with self._work.matrices, torch.no_grad():
            own = [(self._asked[id(parameter)], weight, update) for parameter, weight, update in seen]
            self._spectra.record_whole(own, self._kept)


def _is_cut_matrix(p: WatchedParameter) -> bool:
    may_be_matrix = "matrix" in p.roles or p.view == "unknown"
    return may_be_matrix and not p.excluded and not p.unsupported and p.shard is not None and bool(p.shard.cut)
