"""What every watched module's output and input look like on a sampled step: the taps of an eager model stand on sampled
steps only, and none keeps an activation alive past its own call."""

import time
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from internist.measures import activations as measure
from internist.measures.activations import Value
from internist.model.axes import Axes
from internist.model.outline import Outline, WatchedModule, multiplier
from internist.observe.calls import Call, CallSeries
from internist.observe.faults import Faults
from internist.observe.own import Probe, has_rule, probe_of
from internist.observe.proofs import Proofs
from internist.observe.root import under_transform
from internist.observe.sampling import Sampling
from internist.observe.taps import RAISED, Gate, Tap, Taps, can_tap
from internist.observe.tokens import (
    OWN_TOKENS,
    at_positions,
    first_tensor,
    outside_modes,
    owned,
    positions,
    version_of,
)
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook

WIDE_OUTPUT = 16_384
"""Modules with more output features than this are measured on the probe tokens only."""


@dataclass(slots=True)
class _Known:
    """What was measured of a tensor, as long as it is that object, unchanged."""

    of: "weakref.ref[Tensor]"
    version: int
    norms: Tensor | None = None
    """Token RMS."""
    rest: tuple[Value, Value] | None = None
    """Largest entry, number of non-finite ones."""
    distances: Tensor | None = None
    """Between its probe tokens."""


class ActivationCapture:
    """Measures calls while the gate is on, and hands a step's values to the recorder."""

    def __init__(
        self,
        outline: Outline,
        gate: Gate,
        *,
        book: SeriesBook,
        faults: Faults,
        sampling: Sampling,
        world_size: int,
    ) -> None:
        self._outline, self._gate, self._faults = outline, gate, faults
        self.series = CallSeries(outline, book=book, sampling=sampling, world_size=world_size)
        self._calls: dict[int, list[Call]] = {}
        self._known: dict[tuple[int, int], _Known] = {}
        """By tensor and feature dimension."""
        self._norm_outputs: dict[int, weakref.ref[Tensor]] = {}
        self._input_versions: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._axes = Axes()
        self.measured_now: set[int] = set()
        """Orders of modules that were measured in the step that is being closed."""
        self.probes: dict[int, Probe] = {}
        """By module order: what the module received at the probe tokens of the step's first micro-batch."""
        self._proofs = Proofs(faults)
        self.kept: dict[int, Tensor] = {}
        """By module order: outputs at the probe positions of a replay, for the subjects in `keep`."""
        self.keep: set[int] = set()
        self.seconds = 0.0
        """Host time spent in measuring calls since it was last set to zero."""
        self._records = True
        self._marked: dict[int, int] = {}
        """By module order: calls that were measured before the forward under way."""
        self._taps = Taps(
            Tap(module, partial(self._enter, watched), partial(self._leave, watched))
            for watched in outline.modules
            if (not watched.excluded or watched.role == "block") and can_tap(module := watched.module)
        )

    @property
    def installed(self) -> bool:
        """Whether the taps stand in front of their modules now."""
        return self._taps.installed

    def install(self) -> None:
        """Set every tap."""
        self._taps.install()

    def remove(self) -> None:
        """Take every tap away."""
        self._taps.remove()

    def reset(self) -> None:
        """Forget the step's measurements."""
        self._calls.clear()
        self._known.clear()
        self._norm_outputs.clear()
        self._input_versions.clear()
        self._gate.stack.clear()
        self.probes.clear()

    def mark(self) -> None:
        """A forward begins: `roll_back` forgets what is measured from here on."""
        self._marked = {order: len(calls) for order, calls in self._calls.items()}

    def roll_back(self) -> None:
        """The forward raised: its calls are none of the step's."""
        for order, calls in list(self._calls.items()):
            del calls[self._marked.get(order, 0) :]
            if not calls:
                del self._calls[order]
                self.probes.pop(order, None)

    def replay_records(self, records: bool, /) -> None:
        """Whether calls made in a replay are measured, or only their outputs kept."""
        self._records = records

    # ---- in a forward ----------------------------------------------------------------------------------------------

    def _enter(self, watched: WatchedModule, args: Any, kwargs: Any) -> None:
        if not self._gate.on:
            return
        self._gate.stack.append(watched)
        if watched.role != "block":
            return
        try:
            source = first_tensor(args, kwargs)
            if source is not None:
                self._input_versions[watched.order] = (weakref.ref(source), version_of(source))
        except Exception as error:
            self._faults.note("module", watched.name, error)

    def _leave(self, watched: WatchedModule, args: Any, kwargs: Any, output: Any) -> None:
        stack = self._gate.stack
        while stack and watched in stack and stack.pop() is not watched:
            pass
        if not self._gate.on or output is None or output is RAISED:
            return
        began = time.perf_counter()
        try:
            self._observe(watched, args, kwargs, output)
        except Exception as error:
            self._calls.pop(watched.order, None)
            self._faults.note("module", watched.name, error)
        self.seconds += time.perf_counter() - began

    def _observe(self, watched: WatchedModule, args: Any, kwargs: Any, output: Any) -> None:
        if watched.excluded or not self._gate.wants_activations or self._faults.is_given_up("module", watched.name):
            return
        if watched.order in self._gate.waiting:
            return
        if self._gate.replay and not self._records and watched.order not in self.keep:
            return
        if torch._C._current_graph_task_id() != -1 and not self._gate.replay:
            return  # a recomputation in backward (activation checkpointing): the first pass was measured
        module = watched.module
        if not self._gate.replay and not self._gate.in_root and not (module.training and torch.is_grad_enabled()):
            return
        if under_transform():
            return  # a call on batched or traced tensors is none of the step's
        if watched.role == "root" and self._outline.head is not None and not watched.parameters:
            return  # the model's f is its head's output; what the root returns may be a loss
        with torch.no_grad(), outside_modes():
            if self._gate.replay and not self._records:
                self._keep_output(watched, output)
            else:
                self._measure(watched, module, args, kwargs, output)
        self._faults.well("module", watched.name)

    def _measure(self, watched: WatchedModule, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        out = first_tensor((output,), {})
        if out is None or out.numel() == 0 or out.dim() == 0 or out.is_meta or out.layout != torch.strided:
            return
        source = first_tensor(args, kwargs)
        axis = self._axes.of(module, out)
        features = out.shape[axis]
        in_axis = self._axes.of(module, source) if source is not None else -1
        order, series = watched.order, self.series
        series.widths[order] = (source.shape[in_axis] if source is not None and source.dim() else None, features)
        tokens = at_positions(out, axis) if features > WIDE_OUTPUT else out
        norms, abs_max, nonfinite = self._extent(out, axis) if tokens is out else measure.extent(tokens)
        call = Call(norms, tokens.numel(), abs_max, nonfinite)
        if source is not None and source.numel() and source.dim() and not isinstance(module, nn.Embedding):
            known = self._known.get((id(source), in_axis))
            free = known is not None and known.of() is source and known.version == version_of(source)
            series.light_inputs.setdefault(order, free or watched.role == "block")
            if self._gate.heavy or free:
                call.input_norms = self._token_rms(source, in_axis)  # on light steps only where it costs nothing
            if order not in series.normalized:
                normed = self._norm_outputs.get(id(source))
                series.normalized[order] = normed is not None and normed() is source
        if watched.role == "norm":
            self._norm_outputs[id(out)] = weakref.ref(out)
        if watched.role == "block" and source is not None and self._is_residual(watched, source, out):
            call.input_norms = self._token_rms(source, in_axis)
            call.added, call.stream = measure.contribution(out, source, call.input_norms)
        if watched is self._outline.head:
            call.log_z = measure.log_z(tokens)
        if self._gate.heavy and watched.role != "embedding" and norms.numel() > 1:
            call.distances = self._distances(out, axis)
            if (
                source is not None
                and source.dim()
                and source.numel() // source.shape[in_axis] == out.numel() // out.shape[axis]
            ):
                call.input_distances = self._distances(source, in_axis)
        if order not in self._calls and watched.parameters:
            try:
                self._keep_probe(watched, module, source, args, in_axis, out)
            except Exception as error:
                self._faults.note("own update", watched.name, error)
        if self._gate.replay:
            self._keep_output(watched, output)
        self._calls.setdefault(order, []).append(call)

    def _keep_output(self, watched: WatchedModule, output: Any) -> None:
        out = first_tensor((output,), {}) if watched.order in self.keep else None
        if out is not None and out.dim():
            self.kept[watched.order] = owned(at_positions(out.detach(), self._axes.of(watched.module, out)))

    def _is_residual(self, watched: WatchedModule, source: Tensor, out: Tensor) -> bool:
        """Whether the block maps a tensor to one of its shape and has not written into its input."""
        before = self._input_versions.get(watched.order)
        return (
            before is not None
            and before[0]() is source
            and before[1] == version_of(source)
            and source.shape == out.shape
            and source is not out
        )

    def _keep_probe(
        self, watched: WatchedModule, module: nn.Module, source: Tensor | None, args: Any, in_axis: int, out: Tensor
    ) -> None:
        if not has_rule(module) or self._faults.is_given_up("own update", watched.name):
            return
        if isinstance(module, nn.Embedding):
            ids = next((a for a in args if isinstance(a, Tensor)), None)
            if ids is None or ids.is_floating_point() or not ids.numel():
                return
            tokens = ids.reshape(-1)[positions(ids.numel(), ids.device, OWN_TOKENS)]
        elif source is not None:
            kept = probe_of(module, source, in_axis)
            if kept is None:
                return
            tokens = kept
        else:
            return
        probe = Probe(tokens, multiplier(module))
        factor = self._proofs.factor(watched, module, probe, out)
        if factor is not None:
            # without what hooks say they multiply by: the rules of width and depth reckon with the layer itself
            self.probes[watched.order] = Probe(tokens, factor)

    def _token_rms(self, tensor: Tensor, axis: int) -> Tensor:
        """Token RMS of a tensor, once for all modules that see the same tensor object unchanged."""
        known = self._of(tensor, axis)
        if known.norms is None:
            known.norms = measure.token_rms(tensor, channel_dim=axis)
        return known.norms

    def _extent(self, tensor: Tensor, axis: int) -> tuple[Tensor, Value, Value]:
        """Token RMS, largest entry and number of non-finite ones, once for a tensor that several modules give back."""
        known = self._of(tensor, axis)
        if known.norms is None or known.rest is None:
            known.norms, *rest = measure.extent(tensor, channel_dim=axis)
            known.rest = rest[0], rest[1]
        return known.norms, *known.rest

    def _distances(self, tensor: Tensor, axis: int) -> Tensor:
        """Distances between a tensor's probe tokens, once for the module that gives it and those that take it."""
        known = self._of(tensor, axis)
        if known.distances is None:
            known.distances = measure.pair_distances(at_positions(tensor, axis))
        return known.distances

    def _of(self, tensor: Tensor, axis: int) -> _Known:
        key = id(tensor), axis
        known = self._known.get(key)
        version = version_of(tensor)
        if known is None or known.version != version or known.of() is not tensor:
            known = self._known[key] = _Known(weakref.ref(tensor), version)
        return known

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:
        """Hand the step's values to the recorder.

        Args:
            sampled: the values come from a replay of the probe, not from the training forward.
        """
        self.series.record(self._calls, recorder, sampled=sampled)
        self.measured_now = set(self._calls)
