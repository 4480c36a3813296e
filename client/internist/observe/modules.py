"""What every watched module's output and input look like on a sampled step: the taps of an eager model stand on sampled
steps only, and none keeps an activation alive past its own call."""

import time
import weakref
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from internist.measures.precision import full_precision
from internist.model.axes import Axes, told_axis
from internist.model.outline import Outline, WatchedModule, multiplier
from internist.model.plain import PLAIN
from internist.observe.calls import CallSeries
from internist.observe.device_calls import DeviceCalls
from internist.observe.faults import Faults
from internist.observe.host_calls import HostCalls
from internist.observe.inline_calls import InlineCalls
from internist.observe.own import (
    BATCH_NORMS,
    CONVOLUTIONS,
    Probe,
    has_rule,
    output_of,
    probe_of,
    shows_all,
)
from internist.observe.pieces import Piece, held, piece_of_input, piece_of_output
from internist.observe.proofs import Proofs
from internist.observe.root import is_training_call, under_transform
from internist.observe.router_calls import RouterCalls
from internist.observe.sampling import Sampling
from internist.observe.seen import Seen, Wanted
from internist.observe.stopwatch import Part
from internist.observe.streams import is_recorded
from internist.observe.taps import RAISED, Gate, Tap, Taps, can_tap
from internist.observe.tokens import OWN_TOKENS, PROBE_TOKENS, first_tensor, outside_modes, positions, version_of
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook

HOST = "cpu"
NOTHING_AROUND = nullcontext()
PARTS_OF_SUMS = "its input is cut over ranks: what leaves it is a sum over ranks of which this one knows its own part"
GATHERS = "it gives other tokens than it receives: what enters it is gathered, or chosen, before it computes"
NEVER_WHOLE = "its weight is cut over ranks, and no rank shows more of it outside of its own forward"
AXES_KEPT = 4096
"""Shapes of modules' inputs and outputs whose feature dimension is remembered."""


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
        self._outline, self._gate, self._faults, self._sampling = outline, gate, faults, sampling
        self._wanted = Wanted.of(sampling)
        self._wants_own = sampling.wants("update.own", "update.own_mean")
        self.series = CallSeries(outline, book=book, sampling=sampling, world_size=world_size)
        self.routers = RouterCalls(outline, self.series, book=book, faults=faults, sampling=sampling)
        self._on_host = HostCalls(self.series, self._wanted)
        self._on_devices: dict[torch.device, DeviceCalls] = {}
        self.inline: InlineCalls | None = None
        """Calls inside compiled code, where they are measured there."""
        if sampling.inline:
            self.inline = InlineCalls(
                outline,
                self.series,
                self._wanted,
                wants_own=self._wants_own,
                faults=faults,
                kept=self._note_inline,
                ended=self._end_inline,
            )
        self._world_size = world_size
        self.measures_on_devices = False
        """Measure on the host too as on an accelerator: by another way to the same values."""
        self._calls: dict[int, int] = {}
        """By module order: calls seen in this step."""
        self._norm_outputs: dict[int, weakref.ref[Tensor]] = {}
        self._input_versions: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._axes = Axes()
        self._known_axes: dict[tuple[int, torch.Size], int] = {}
        """By module order and shape."""
        self.measured_now: set[int] = set()
        """Orders of modules that were measured in the step that is being closed."""
        self.probes: dict[int, Probe] = {}
        """By module order: what the module received at the probe tokens of the step's first micro-batch."""
        self.outputs: dict[int, Tensor] = {}
        """By module order, of sharded modules: (tokens, features) what their rule makes of their probe."""
        self._proofs = Proofs(faults)
        self.kept: dict[int, Tensor] = {}
        """By module order: outputs at the probe positions of a replay, for the subjects in `keep`."""
        self.keep: set[int] = set()
        self._records = True
        self._marked: dict[int, int] = {}
        """By module order: calls that were seen before the forward under way."""
        self._taps = Taps(
            Tap(module, partial(self._enter, watched), partial(self._leave, watched))
            for watched in outline.modules
            if self._needs(watched) and can_tap(module := watched.module)
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
        self._norm_outputs.clear()
        self._input_versions.clear()
        self._gate.stack.clear()
        self.probes.clear()
        self.outputs.clear()
        for calls in self._told:
            calls.reset()

    def forget(self) -> None:
        """Keep no memory for steps to come."""
        for calls in self._ways:
            calls.forget()
        self._on_devices.clear()

    @property
    def wants_calls(self) -> bool:
        """Whether anything that is asked for is measured in calls."""
        return self._wants_own or self._wanted.any or bool(self.routers.orders)

    def mark(self) -> None:
        """A forward begins: `roll_back` forgets what is measured from here on."""
        self._marked = dict(self._calls)
        for calls in self._told:
            calls.mark()

    def roll_back(self) -> None:
        """The forward raised: its calls are none of the step's."""
        for order in self._calls.keys() - self._marked.keys():
            self.probes.pop(order, None)
            self.outputs.pop(order, None)
        self._calls = dict(self._marked)
        for calls in self._told:
            calls.roll_back()

    def replay_records(self, records: bool, /) -> None:
        """Whether calls made in a replay are measured, or only their outputs kept."""
        self._records = records
        beside = self.inline is not None and self.inline.has_measured
        self._on_host.wanted = self._wanted.dependency_alone() if beside else self._wanted
        for calls in self._on_devices.values():
            calls.wanted = self._on_host.wanted

    def _needs(self, watched: WatchedModule) -> bool:
        """Whether anything that is asked for is known from this module's calls."""
        wants = self._sampling.wants
        if wants("attention.max_logit", "attention.max_abs_logit"):  # whose logits they are is told by who is called
            return not watched.excluded or watched.role == "block"
        if watched.excluded:
            return False
        if wants("update.feature", "update.feature_mean"):
            return True
        return (
            self._wanted.measures(watched, is_head=watched is self._outline.head)
            or self.routers.knows(watched)
            or (self._wants_own and bool(watched.parameters))
            or any(
                p.view == "unknown" for p in watched.parameters.values()
            )  # its matrix is told by what goes in and out
        )

    @property
    def _ways(self) -> "list[HostCalls | DeviceCalls | InlineCalls]":
        inline = [] if self.inline is None else [self.inline]
        return [self._on_host, *self._on_devices.values(), *inline]

    @property
    def _told(self) -> "list[HostCalls | DeviceCalls | InlineCalls | RouterCalls]":
        return [*self._ways, self.routers]

    def _way_of(self, tensor: Tensor, other: Tensor | None = None) -> "HostCalls | DeviceCalls":
        """Where calls with these tensors are measured."""
        device = tensor.device
        if device.type == HOST and not self.measures_on_devices:
            return self._on_host
        if type(tensor) not in PLAIN or (other is not None and type(other) not in PLAIN):
            return self._on_host  # other classes of tensor are read by torch's operators alone
        found = self._on_devices.get(device)
        if found is None:
            found = DeviceCalls(self.series, self._on_host.wanted, world_size=self._world_size)
            self._on_devices[device] = found
            found.mark()
        return found

    def _axis_of(self, order: int, module: nn.Module, tensor: Tensor) -> int:
        """The feature dimension of a module's input or output."""
        key = order, tensor.shape
        found = self._known_axes.get(key)
        if found is None:
            found = self._axes.of(module, tensor)
            if told_axis(module, tensor) is not None:  # what a container has may be told by what is inside it, later
                if len(self._known_axes) >= AXES_KEPT:
                    self._known_axes.clear()
                self._known_axes[key] = found
        return found

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
            self._drop(watched.order)
            self._faults.note("module", watched.name, error)
        self._gate.work.add(Part.LIGHT, time.perf_counter() - began)

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
        if not self._gate.replay and not self._gate.in_root and not is_training_call(module):
            return
        if under_transform():
            return  # a call on batched or traced tensors is none of the step's
        if watched.role == "root" and self._outline.head is not None and not watched.parameters:
            return  # the model's f is its head's output; what the root returns may be a loss
        keeps_only = self._gate.replay and not self._records
        grad_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # a tenth of what a context costs, and there are many calls
        try:
            with outside_modes() if torch._C._len_torch_dispatch_stack() else NOTHING_AROUND:
                if keeps_only:
                    self._keep_output(watched, output)
                else:
                    self._measure(watched, module, args, kwargs, output)
        finally:
            torch._C._set_grad_enabled(grad_enabled)
        self._faults.well("module", watched.name)

    def _measure(self, watched: WatchedModule, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = first_tensor((output,), {})
        out = None if given is None else held(given)
        if (
            given is None
            or out is None
            or out.numel() == 0
            or out.dim() == 0
            or out.is_meta
            or out.layout != torch.strided
        ):
            return
        if is_recorded(out.device):
            return
        entering = first_tensor(args, kwargs)
        source = None if entering is None else held(entering)
        axis = self._axis_of(watched.order, module, out)
        in_axis = self._axis_of(watched.order, module, source) if source is not None else -1
        order, series = watched.order, self.series
        piece = in_piece = None
        if given is not out or (self._outline.resting and watched.is_sharded):
            piece = piece_of_output(module, given, out, axis)
            if entering is not None and source is not None and source.dim():
                in_piece = piece_of_input(module, entering, source, in_axis)
        if piece is not None:
            series.pieces[order] = piece
        width_in = _whole_width(source.shape[in_axis], in_piece) if source is not None and source.dim() else None
        series.widths[order] = (width_in, _whole_width(out.shape[axis], piece))
        series.dtypes[order] = out.dtype
        entered = source
        if source is None or not source.numel() or not source.dim() or isinstance(module, nn.Embedding):
            entered = None
        is_head = watched is self._outline.head
        if self._wanted.measures(watched, is_head=is_head):
            way = self._way_of(out, entered) if piece is in_piece is None else self._on_host
            if entered is not None:
                if order not in series.light_inputs:
                    series.light_inputs[order] = watched.role == "block" or way.knows(entered, in_axis)
                self._note_normalized(order, entered)
            residual = watched.role == "block" and entered is not None and self._is_residual(watched, entered, out)
            heavy = self._gate.heavy
            way.measure(Seen(watched, out, axis, entered, in_axis, residual, is_head, heavy, piece, in_piece))
        elif entered is not None:
            self._note_normalized(order, entered)
        if self._gate.heavy and piece is in_piece is None and self.routers.knows(watched):
            self.routers.measure(watched, output, source)
        if watched.role == "norm":
            self._norm_outputs[id(out)] = weakref.ref(out)
        if order not in self._calls and watched.parameters and self._wants_own:
            try:
                self._keep_probe(watched, module, source, args, in_axis, out, axis, in_piece)
            except Exception as error:
                self._faults.note("own update", watched.name, error)
        if self._gate.replay:
            self._keep_output(watched, output)
        self._calls[order] = self._calls.get(order, 0) + 1

    def _note_inline(self, order: int, probe: Probe | None) -> None:
        if order not in self._calls and probe is not None:
            self.probes[order] = probe
        self._calls[order] = self._calls.get(order, 0) + 1

    def _end_inline(self) -> None:
        self.inline = None

    def _note_normalized(self, order: int, source: Tensor) -> None:
        if order not in self.series.normalized:
            normed = self._norm_outputs.get(id(source))
            self.series.normalized[order] = normed is not None and normed() is source

    def _drop(self, order: int) -> None:
        self._calls.pop(order, None)
        for calls in self._ways:
            calls.drop(order)

    def _keep_output(self, watched: WatchedModule, output: Any) -> None:
        out = first_tensor((output,), {}) if watched.order in self.keep else None
        if out is not None and out.dim():
            self.kept[watched.order] = self._way_of(out).pick(out, self._axes.of(watched.module, out), PROBE_TOKENS)

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
        self,
        watched: WatchedModule,
        module: nn.Module,
        source: Tensor | None,
        args: Any,
        in_axis: int,
        out: Tensor,
        axis: int,
        in_piece: Piece | None,
    ) -> None:
        if not has_rule(module) or self._faults.is_given_up("own update", watched.name):
            return
        is_gathered = bool(self._outline.resting) and watched.is_sharded and not watched.is_at_rest
        if in_piece is not None:
            self._faults.give_up("own update", watched.name, PARTS_OF_SUMS)
            return
        if watched.order not in self.series.pieces and not shows_all(module):
            self._faults.give_up("own update", watched.name, NEVER_WHOLE)
            return
        if isinstance(module, nn.Embedding):
            ids = next((a for a in args if isinstance(a, Tensor)), None)
            if ids is None or ids.is_floating_point() or not ids.numel():
                return
            tokens = ids.reshape(-1)[positions(ids.numel(), ids.device, OWN_TOKENS)]
        elif source is not None and isinstance(module, CONVOLUTIONS + BATCH_NORMS):
            kept = probe_of(module, source, in_axis)
            if kept is None:
                return
            tokens = kept
        elif source is not None and source.numel() * out.shape[axis] != out.numel() * source.shape[in_axis]:
            self._faults.give_up("own update", watched.name, GATHERS)
            return
        elif source is not None:
            tokens = self._way_of(source).keep(source, in_axis, OWN_TOKENS)
        else:
            return
        probe = Probe(tokens, multiplier(module))
        factor = self._proofs.factor(watched, module, probe, out)
        if factor is not None:
            # without what hooks say they multiply by: the rules of width and depth reckon with the layer itself
            self.probes[watched.order] = probe if factor == probe.factor else Probe(tokens, factor)
            if is_gathered:
                with full_precision(tokens):
                    self.outputs[watched.order] = output_of(module, tokens)

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:
        """Hand the step's values to the recorder.

        Args:
            sampled: the values come from a replay of the probe, not from the training forward.
        """
        for calls in self._told:
            calls.collect(recorder, sampled=sampled)
        self.measured_now = set(self._calls)


def _whole_width(width: int, piece: Piece | None) -> int:
    """Features of which this rank has so many."""
    return width if piece is None else round(width / piece.share)
