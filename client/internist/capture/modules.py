"""Forward hooks: what every watched module's output and input look like on a sampled step.

Hooks are installed once. On other steps a hook returns after one comparison; while a compiler traces it returns at
once, so
the user's graph does not contain it. No hook keeps an activation alive past its own call.
"""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internist.capture.outline import Outline, WatchedModule, is_linear
from internist.capture.taps import EnterTap, Gate, Tap
from internist.capture.tokens import (
    OWN_TOKENS,
    PROBE_TOKENS,
    at_positions,
    first_tensor,
    outside_modes,
    owned,
    positions,
    version_of,
)
from internist.measures import activations as measure
from internist.recorder import Recorder, Spec
from internist.schema.metrics import Bound
from internist.schema.wire import Facts

WIDE_OUTPUT = 16_384
"""Modules with more output features than this are measured on the probe tokens only."""


@dataclass(slots=True)
class _Call:
    """One measured call of one module."""

    norms: Tensor
    entries: int
    tokens: int
    abs_max: Tensor
    nonfinite: Tensor
    input_norms: Tensor | None
    contribution: Tensor | None
    log_z: Tensor | None
    spread: Tensor | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What was measured of a tensor, as long as it is that object, unchanged."""

    of: "weakref.ref[Tensor]"
    version: int
    norms: Tensor
    rest: tuple[Tensor, Tensor] | None = None
    """Largest entry, number of non-finite ones."""


class ActivationCapture:
    """Measures calls while the gate is on, and hands a step's values to the recorder."""

    def __init__(
        self,
        outline: Outline,
        gate: Gate,
        *,
        fault: Callable[[str, str, BaseException], None],
        wanted: Callable[[str], bool],
        every: int,
        heavy_every: int,
        world_size: int,
    ) -> None:
        self._outline, self._gate, self._fault, self._wanted = outline, gate, fault, wanted
        self._every, self._heavy_every, self._world = every, heavy_every, world_size
        self._calls: dict[int, list[_Call]] = {}
        self._known: dict[int, _Known] = {}
        self._norm_outputs: dict[int, weakref.ref[Tensor]] = {}
        self._specs: dict[tuple[int, str, str], Spec] = {}
        self._input_versions: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._broken: set[int] = set()
        self._has_convolutions = any(m.role == "convolution" for m in outline.modules)
        self.normalized: dict[int, bool] = {}
        self.widths: dict[int, tuple[int | None, int | None]] = {}
        """By module order: features of input and output, once seen."""
        self._light_inputs: dict[int, bool] = {}
        """By module order: whether its input is another watched module's output, whose token RMS is known."""
        self.measured: set[int] = set()
        self.probes: dict[int, Tensor] = {}
        """By module order: what the module received at the probe tokens of the step's first micro-batch."""
        self.kept: dict[int, Tensor] = {}
        """By module order: outputs at the probe positions of a replay, for the subjects in `keep`."""
        self.keep: set[int] = set()
        self.seconds = 0.0
        """Host time spent in measuring calls since it was last set to zero."""
        self._records = True
        self.handles: list[Any] = []
        self._install()

    def _install(self) -> None:
        for watched in self._outline.modules:
            if watched.excluded and watched.role != "block":
                continue
            tap = Tap(self._gate, watched, self._observe)
            self.handles.append(watched.module.register_forward_hook(tap, with_kwargs=True))
            if watched.role in ("block", "attention", "container", "root") or any(
                True for _ in watched.module.children()
            ):
                enter = EnterTap(self._gate, watched, self._enter)
                self.handles.append(watched.module.register_forward_pre_hook(enter, with_kwargs=True))

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def reset(self) -> None:
        """Forget the step's measurements."""
        self._calls.clear()
        self._known.clear()
        self._norm_outputs.clear()
        self._input_versions.clear()
        self._gate.stack.clear()
        self.probes.clear()

    def replay_records(self, records: bool, /) -> None:
        """Whether calls made in a replay are measured, or only their outputs kept."""
        self._records = records

    # ---- in a forward ----------------------------------------------------------------------------------------------

    def _enter(self, watched: WatchedModule, args: Any, kwargs: Any) -> None:
        self._gate.stack.append(watched)
        if watched.role == "block":
            source = first_tensor(args, kwargs)
            if source is not None:
                self._input_versions[watched.order] = (weakref.ref(source), version_of(source))

    def _observe(self, watched: WatchedModule, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        stack = self._gate.stack
        if stack and stack[-1] is watched:
            stack.pop()
        if watched.excluded or watched.order in self._broken or not self._gate.wants_activations:
            return
        if torch._C._current_graph_task_id() != -1:
            return  # a recomputation in backward (activation checkpointing): the first pass was measured
        if not self._gate.replay and not self._gate.in_root and not (module.training and torch.is_grad_enabled()):
            return
        if watched.role == "root" and self._outline.head is not None and not watched.parameters:
            return  # the model's f is its head's output; what the root returns may be a loss
        began = time.perf_counter()
        try:
            with torch.no_grad(), outside_modes():
                if self._gate.replay and not self._records:
                    self._keep_output(watched, output)
                else:
                    self._measure(watched, module, args, kwargs, output)
        except Exception as error:
            self._broken.add(watched.order)
            self._calls.pop(watched.order, None)
            self._fault("module", watched.name, error)
        self.seconds += time.perf_counter() - began

    def _measure(self, watched: WatchedModule, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        out = first_tensor((output,), {})
        if out is None or out.numel() == 0 or out.dim() == 0:
            return
        source = first_tensor(args, kwargs)
        axis = self._feature_axis(watched, out)
        features = out.shape[axis]
        in_axis = self._feature_axis(watched, source) if source is not None else -1
        self.widths[watched.order] = (source.shape[in_axis] if source is not None and source.dim() else None, features)
        tokens = at_positions(out.detach(), axis) if features > WIDE_OUTPUT else out.detach()
        norms, abs_max, nonfinite = self._extent(out, axis) if tokens.shape == out.shape else measure.extent(tokens)
        call = _Call(
            norms=norms,
            entries=tokens.numel(),
            tokens=norms.numel(),
            abs_max=abs_max,
            nonfinite=nonfinite,
            input_norms=None,
            contribution=None,
            log_z=None,
            spread=None,
        )
        if source is not None and source.numel() and source.dim() and not isinstance(module, nn.Embedding):
            known = self._known.get(id(source))
            free = known is not None and known.of() is source and known.version == version_of(source)
            self._light_inputs.setdefault(watched.order, free or watched.role == "block")
            if self._gate.heavy or free:
                call.input_norms = self._token_rms(source, in_axis)  # on light steps only where it costs nothing
            if watched.order not in self.normalized:
                normed = self._norm_outputs.get(id(source))
                self.normalized[watched.order] = normed is not None and normed() is source
        if watched.role == "norm":
            self._norm_outputs[id(out)] = weakref.ref(out)
        if watched.role == "block" and source is not None and self._is_residual(watched, source, out):
            call.input_norms = self._token_rms(source, in_axis)
            call.contribution = measure.contribution(out.detach(), source.detach(), call.input_norms)
        if watched is self._outline.head:
            call.log_z = measure.log_z(tokens)
        if self._gate.heavy and watched.role != "embedding" and call.tokens > 1:
            call.spread = self._spread(source, out, axis, in_axis)
        if not self._calls.get(watched.order) and (watched.parameters or watched.role == "embedding"):
            self._keep_probe(watched, module, source, args, in_axis)
        if self._gate.replay:
            self._keep_output(watched, output)
        self._calls.setdefault(watched.order, []).append(call)

    def _keep_output(self, watched: WatchedModule, output: Any) -> None:
        out = first_tensor((output,), {}) if watched.order in self.keep else None
        if out is not None and out.dim():
            self.kept[watched.order] = owned(at_positions(out.detach(), self._feature_axis(watched, out)))

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

    def _spread(self, source: Tensor | None, out: Tensor, axis: int, in_axis: int) -> Tensor:
        outputs = at_positions(out.detach(), axis)
        inputs: Tensor | None = None
        if (
            source is not None
            and source.dim()
            and source.numel() // source.shape[in_axis] == out.numel() // out.shape[axis]
        ):
            inputs = at_positions(source.detach(), in_axis)
        return measure.spread(outputs, inputs)

    def _keep_probe(
        self, watched: WatchedModule, module: nn.Module, source: Tensor | None, args: Any, in_axis: int
    ) -> None:
        if isinstance(module, nn.Embedding):
            ids = next((a for a in args if isinstance(a, Tensor)), None)
            if ids is not None and not ids.is_floating_point() and ids.numel():
                self.probes[watched.order] = ids.reshape(-1)[positions(ids.numel(), ids.device, OWN_TOKENS)]
        elif source is not None and (is_linear(module) or watched.role == "norm"):
            self.probes[watched.order] = owned(at_positions(source.detach(), in_axis, OWN_TOKENS))

    def _token_rms(self, tensor: Tensor, axis: int) -> Tensor:
        """Token RMS of a tensor, once for all modules that see the same tensor object unchanged."""
        known = self._known.get(id(tensor))
        if known is None or known.of() is not tensor or known.version != version_of(tensor):
            norms = measure.token_rms(tensor.detach(), channel_dim=axis)
            known = self._known[id(tensor)] = _Known(weakref.ref(tensor), version_of(tensor), norms)
        return known.norms

    def _extent(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token RMS, largest entry and number of non-finite ones, once for a tensor that several modules give back."""
        known = self._known.get(id(tensor))
        if known is None or known.of() is not tensor or known.version != version_of(tensor) or known.rest is None:
            norms, *rest = measure.extent(tensor.detach(), channel_dim=axis)
            known = self._known[id(tensor)] = _Known(weakref.ref(tensor), version_of(tensor), norms, (rest[0], rest[1]))
        assert known.rest is not None
        return known.norms, *known.rest

    def _feature_axis(self, watched: WatchedModule, tensor: Tensor) -> int:
        if watched.role == "convolution":
            dims = len(getattr(watched.module, "kernel_size", ())) or 1
            return tensor.dim() - 1 - dims
        return 1 if self._has_convolutions and tensor.dim() in (4, 5) else -1

    # ---- at the end of a step --------------------------------------------------------------------------------------

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:
        """Hand the step's values to the recorder: a few batched reductions over all modules.

        Args:
            sampled: the values come from a replay of the probe, not from the training forward.
        """
        bound: Bound = "sampled" if sampled else "exact"
        self._collect_outputs(recorder, bound)
        self._collect_inputs(recorder, bound)
        self._collect_scalars(recorder, bound)
        self.measured.update(self._calls)

    def _collect_outputs(self, recorder: Recorder, bound: Bound) -> None:
        for shape, members in _grouped(self._calls, lambda c: c.tokens).items():
            parts = [
                measure.rms_summary(torch.stack([self._calls[order][j].norms for order in members]))
                for j in range(len(shape))
            ]
            if len(parts) == 1:
                summary = parts[0]
            else:
                weights = [tokens / sum(shape) for tokens in shape]
                squares = sum(part[:, 0] * weight for part, weight in zip(parts, weights, strict=True))
                assert isinstance(squares, Tensor)
                summary = torch.stack(
                    (
                        squares,
                        torch.stack([p[:, 1] for p in parts]).amax(0),
                        torch.stack([p[:, 2] for p in parts]).amax(0),
                    ),
                    dim=1,
                )
            quantile_bound: Bound = "lower" if bound == "exact" and (len(shape) > 1 or self._world > 1) else bound
            layout: list[Spec | None] = []
            counts: list[int] = []
            for order in members:
                entries = sum(call.entries for call in self._calls[order])
                layout += [
                    self._spec(order, "activation.rms", bound),
                    self._spec(order, "activation.rms_max", bound),
                    self._spec(order, "activation.rms_q99", quantile_bound),
                ]
                counts += [entries, 1, 1]
            recorder.add(layout, summary, counts)

    def _collect_inputs(self, recorder: Recorder, bound: Bound) -> None:
        with_input = {o: [c for c in calls if c.input_norms is not None] for o, calls in self._calls.items()}
        rows: dict[int, list[tuple[int, Tensor]]] = {}
        for order, calls in with_input.items():
            for call in calls:
                assert call.input_norms is not None
                rows.setdefault(call.input_norms.numel(), []).append((order, call.input_norms))
        largest: dict[int, list[Tensor]] = {}
        for members in rows.values():
            top = torch.stack([norms for _, norms in members]).amax(dim=1)
            for i, (order, _) in enumerate(members):
                largest.setdefault(order, []).append(top[i])
        self._add_reduced(recorder, "activation.input_rms_max", bound, largest, torch.amax)

    def _collect_scalars(self, recorder: Recorder, bound: Bound) -> None:
        calls = self._calls
        self._add_reduced(
            recorder, "activation.abs_max", bound, {o: [c.abs_max for c in cs] for o, cs in calls.items()}, torch.amax
        )
        self._add_reduced(
            recorder,
            "activation.nonfinite",
            bound,
            {o: [c.nonfinite for c in cs] for o, cs in calls.items()},
            torch.sum,
        )
        self._add_reduced(
            recorder,
            "block.contribution",
            bound,
            {o: [c.contribution for c in cs if c.contribution is not None] for o, cs in calls.items()},
            torch.mean,
        )
        for order, own in calls.items():
            logs = [c.log_z for c in own if c.log_z is not None]
            if logs:
                stacked = torch.stack(logs)
                recorder.add(
                    [self._spec(order, "output.log_z", bound), self._spec(order, "output.log_z_max", bound)],
                    torch.stack((stacked[:, 0].mean(), stacked[:, 1].amax())),
                    [sum(c.tokens for c in own), 1],
                )
            spreads = [c.spread for c in own if c.spread is not None]
            if spreads:
                stacked = torch.stack(spreads)
                layout: list[Spec | None] = [
                    self._spec(order, "activation.spread", "lower"),
                    self._spec(order, "activation.spread_mean", "sampled"),
                    self._spec(order, "activation.lipschitz", "lower"),
                ]
                recorder.add(layout, torch.stack((stacked[:, 0].amax(), stacked[:, 1].mean(), stacked[:, 2].amax())))

    def _add_reduced(
        self,
        recorder: Recorder,
        metric: str,
        bound: Bound,
        values: Mapping[int, Sequence[Tensor]],
        reduce: Callable[..., Tensor],
    ) -> None:
        """Record one value per module: `reduce` over its calls, batched over modules with equally many."""
        by_calls: dict[int, list[int]] = {}
        for order, own in values.items():
            if own:
                by_calls.setdefault(len(own), []).append(order)
        for calls, members in by_calls.items():
            flat = torch.stack([value for order in members for value in values[order]])
            if calls > 1:
                flat = reduce(flat.view(len(members), calls), dim=1)
            counts = [sum(c.entries for c in self._calls[order]) for order in members]
            recorder.add([self._spec(order, metric, bound) for order in members], flat, counts)

    def _spec(self, order: int, metric: str, bound: Bound) -> Spec | None:
        if not self._wanted(metric):
            return None
        key = order, metric, bound
        spec = self._specs.get(key)
        if spec is None:
            watched = self._outline.modules[order]
            pairs = metric.startswith(("activation.spread", "activation.lipschitz"))
            heavy = pairs or (metric == "activation.input_rms_max" and not self._light_inputs.get(order, True))
            facts = self.facts(watched, heavy=heavy, probe=PROBE_TOKENS if pairs else None)
            spec = self._specs[key] = Spec(metric, "module", watched.name, None, bound, facts)
        return spec

    def facts(
        self, watched: WatchedModule, *, heavy: bool = False, probe: int | None = None, method: str = ""
    ) -> Facts:
        """Facts of a series of this module."""
        width_in, width_out = self.widths.get(watched.order, (None, None))
        return Facts(
            method=method,
            role=watched.role,
            block=watched.block,
            module=watched.name,
            order=watched.order,
            input_normalized=self.normalized.get(watched.order, False),
            fan_in=width_in,
            fan_out=width_out,
            probe=probe,
            cadence=self._heavy_every if heavy else self._every,
            placement="data_parallel",
        )


def _grouped(calls: Mapping[int, Sequence[_Call]], size: Callable[[_Call], int]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for order, own in calls.items():
        groups.setdefault(tuple(size(call) for call in own), []).append(order)
    return groups
