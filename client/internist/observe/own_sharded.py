"""Own updates of sharded modules: what a module makes of its probe with the weights of one forward, and with those of
the next. In both it shows its whole weight, so that nothing has to be gathered."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, linalg

from internist.measures import updates
from internist.measures.precision import full_precision
from internist.model.outline import Outline, WatchedModule
from internist.observe.faults import Faults
from internist.observe.modules import ActivationCapture
from internist.observe.own import Probe, output_of
from internist.observe.stopwatch import Part, Stopwatch
from internist.observe.taps import RAISED, Tap, Taps, can_tap
from internist.observe.tokens import outside_modes
from internist.record.recorder import Recorder
from internist.record.series_book import Layout

HELD_FOR = "own updates"
"""What a closed step is held for, as the recorder knows it."""


@dataclass(slots=True)
class _Waiting:
    """A module's probe, and what it made of it with the weights from before the step."""

    probe: Probe
    before: Tensor
    change: Tensor | None = None
    """(tokens,) RMS of the change, once it is known."""


class ShardedOwn:
    """Measures own updates between a sampled step's forward and the next step's.

    Args:
        outline: the model as it is watched.
        activations: knows the probes.
        work: times the monitor's work.
        faults: told of a module that cannot be measured.
        parts: series, values and entries of modules' own updates, as `OwnUpdates` makes them.
    """

    def __init__(
        self,
        outline: Outline,
        activations: ActivationCapture,
        work: Stopwatch,
        faults: Faults,
        parts: Callable[[Sequence[int], Tensor, int], Iterable[tuple[Layout, Tensor, list[int]]]],
    ) -> None:
        self._outline, self._activations, self._work, self._faults = outline, activations, work, faults
        self._parts = parts
        self._waiting: dict[int, _Waiting] = {}
        self._step = -1
        self._measured: set[int] | None = None
        self._taps: Taps | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a step's own updates are still to come."""
        return bool(self._waiting)

    @property
    def measured_last(self) -> set[int]:
        """Orders of the modules that were measured last; of those that are waited for first, until that is known."""
        return set(self._waiting) if self._measured is None else self._measured

    def begin(self, step: int, stepped: Collection[int], recorder: Recorder) -> None:
        """The step was made: from here on the next forward is waited for.

        Args:
            step: its number.
            stepped: orders of the parameters that it has stepped.
            recorder: takes what becomes known.
        """
        self.forget(recorder)
        kept, probes = self._activations.outputs, self._activations.probes
        self._step = step
        for order, before in kept.items():
            if order in probes and any(p.order in stepped for p in self._outline.modules[order].parameters.values()):
                self._waiting[order] = _Waiting(probes[order], before)
        kept.clear()

    def forward_begins(self, step: int) -> None:
        """A training forward of a later step begins: look at the modules that are waited for."""
        if step <= self._step or not self._waiting or self._taps is not None:
            return
        modules = (self._outline.modules[order] for order in self._waiting)
        self._taps = Taps(
            Tap(watched.module, _look_away, partial(self._leave, watched))
            for watched in modules
            if can_tap(watched.module)
        )
        self._taps.install()

    @property
    def is_looking(self) -> bool:
        """Whether such a forward is under way."""
        return self._taps is not None

    def forward_ends(self, recorder: Recorder, *, is_whole: bool) -> None:
        """That forward is over: its values belong to the step before it. One that raised is made again."""
        self.stop()
        if not is_whole:
            return
        self._measured = {order for order, waiting in self._waiting.items() if waiting.change is not None}
        by_size: dict[int, list[int]] = {}
        for order, waiting in self._waiting.items():
            if waiting.change is not None:
                by_size.setdefault(waiting.change.numel(), []).append(order)
        for tokens, orders in by_size.items():
            changes = [change for order in orders if (change := self._waiting[order].change) is not None]
            for layout, values, entries in self._parts(orders, updates.moved(torch.stack(changes)), tokens):
                recorder.add_late(self._step, layout, values, entries)
        self.forget(recorder)

    def stop(self) -> None:
        """Look no more."""
        if self._taps is not None:
            self._taps.remove()
            self._taps = None

    def forget(self, recorder: Recorder) -> None:
        """Wait no more: what is not known by now will not be."""
        self.stop()
        if self._waiting:
            self._waiting = {}
            recorder.settle(self._step, HELD_FOR)

    # ---- private ---------------------------------------------------------------------------------------------------

    def _leave(self, watched: WatchedModule, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG002
        waiting = self._waiting.get(watched.order)
        if waiting is None or waiting.change is not None or output is RAISED:
            return
        if torch._C._current_graph_task_id() != -1:
            return  # a recomputation in backward
        began = time.perf_counter()
        try:
            module = watched.module
            if watched.is_at_rest:
                return
            with torch.no_grad(), outside_modes(), full_precision(waiting.probe.tokens):
                change = output_of(module, waiting.probe.tokens).sub_(waiting.before)
                waiting.change = linalg.vector_norm(change, dim=-1) * (
                    abs(waiting.probe.factor) / change.shape[-1] ** 0.5
                )
        except Exception as error:
            self._faults.note("own update", watched.name, error)
        self._work.add(Part.LIGHT, time.perf_counter() - began)


def _look_away(args: Any, kwargs: Any) -> None:
    """Nothing is to be seen at a call's beginning."""
