"""Parameters around an optimizer step: gradients as the optimizer receives them, weights, updates as stored,
spectra."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from internist.measures import updates, weights
from internist.measures.activations import NOT_MEASURED
from internist.model.outline import Outline, WatchedParameter, fans
from internist.observe.clock import parameter_groups
from internist.observe.modules import ActivationCapture
from internist.observe.own import own_update
from internist.observe.routing import Promise, promises
from internist.observe.sampling import MATRIX_ROTATION, Due
from internist.observe.spectra import SpectraCapture
from internist.observe.tokens import OWN_TOKENS
from internist.record.recorder import LAYOUTS_KEPT, Layout, Recorder, Spec
from internist.schema.wire import Facts

SNAPSHOT_BYTES = 256 << 20
"""Snapshots of all parameters while they fit in this; beyond, a share of the bytes in rotation of whole blocks."""
SNAPSHOT_SHARE = 0.05
CACHE_BYTES = 1 << 20
"""Bytes of parameters whose updates are measured together on the CPU."""


class ParameterCapture:
    """Measures the parameters that an optimizer steps, on sampled steps."""

    def __init__(
        self,
        outline: Outline,
        activations: ActivationCapture,
        *,
        fault: Callable[[str, str, BaseException], None],
        wanted: Callable[[str], bool],
        every: int,
        heavy_every: int,
        reports_parameters: bool,
    ) -> None:
        self._outline, self._activations, self._fault, self._wanted = outline, activations, fault, wanted
        self._every, self._heavy_every, self._reports = every, heavy_every, reports_parameters
        self._by_id = {id(p.tensor): p for p in outline.parameters}
        self._group_of: dict[int, int] = {}
        self._snapshots: dict[int, Tensor] = {}
        self._pending: dict[int, Tensor] = {}
        self._moved: dict[int, Tensor] = {}
        """By module order: how far its own update moved each of its probe tokens."""
        self._gradient_squares: list[Tensor] = []
        self._specs: dict[tuple[int, str], Spec] = {}
        self._layouts: dict[tuple[str, tuple[int, ...]], Layout] = {}
        self._host_specs: dict[tuple[str, str], Spec] = {}
        self._count_tensors: dict[tuple[int, ...], Tensor] = {}
        self._broken: set[tuple[int, str]] = set()
        self._update_promise: dict[int, Promise] = {}
        self._rotation = self._rotation_groups()
        self._spectra = SpectraCapture(widths=activations.series.widths, spec=self._spec, fault=fault)
        self.measured: set[int] = set()
        self.stepped: set[int] = set()
        """Ids of parameters that some optimizer has stepped."""

    # ---- which parameters ------------------------------------------------------------------------------------------

    def owned_by(self, optimizer: Any) -> list[WatchedParameter]:
        """The watched parameters an optimizer steps, in outline order."""
        owned: list[WatchedParameter] = []
        for group in parameter_groups(optimizer):
            for tensor in group["params"]:
                parameter = self._by_id.get(id(tensor))
                if parameter is not None and not parameter.excluded and not parameter.unsupported:
                    owned.append(parameter)
        return sorted(owned, key=lambda p: p.order)

    def _rotation_groups(self) -> list[set[int]] | None:
        """None: everything is snapshot each time. Else sets of parameter orders, whole blocks, near 5 % of the bytes
        each."""
        sizes = {p.order: p.tensor.numel() * p.tensor.element_size() for p in self._outline.parameters}
        total = sum(sizes.values())
        if total <= SNAPSHOT_BYTES:
            return None
        blocks: dict[str, list[int]] = {}
        for p in self._outline.parameters:
            blocks.setdefault(p.owner.block or p.owner.name, []).append(p.order)
        groups: list[set[int]] = [set()]
        filled = 0
        for members in blocks.values():
            size = sum(sizes[order] for order in members)
            if groups[-1] and filled + size > total * SNAPSHOT_SHARE:
                groups.append(set())
                filled = 0
            groups[-1].update(members)
            filled += size
        return groups

    def _in_turn(self, parameter: WatchedParameter, step: int, due: Due) -> bool:
        if self._rotation is None:
            return True
        if due.matrices is not None and "matrix" in parameter.roles and due.owns_matrix(parameter.turn):
            return True
        return parameter.order in self._rotation[(step // self._every) % len(self._rotation)]

    # ---- around the step -------------------------------------------------------------------------------------------

    def snapshot(self, parameters: Sequence[WatchedParameter], step: int, due: Due) -> None:
        """Keep copies of parameters as they are before a step."""
        chosen = [p for p in parameters if p.tensor.requires_grad and self._in_turn(p, step, due)]
        if not chosen:
            return
        reuse = self._rotation is None
        targets = []
        for p in chosen:
            kept = self._snapshots.get(p.order) if reuse else None
            if (
                kept is None
                or kept.shape != p.tensor.shape
                or kept.dtype != p.tensor.dtype
                or kept.device != p.tensor.device
            ):
                kept = torch.empty_like(p.tensor, memory_format=torch.preserve_format, requires_grad=False)
                if reuse:
                    self._snapshots[p.order] = kept
            targets.append(kept)
        torch._foreach_copy_(targets, [p.tensor for p in chosen])
        self._pending.update({p.order: kept for p, kept in zip(chosen, targets, strict=True)})

    def gradients(self, parameters: Sequence[WatchedParameter], optimizer: Any, recorder: Recorder) -> None:
        """Record the RMS of each gradient the optimizer is about to use, and keep their squares for the global norm."""
        chosen = [p for p in parameters if p.tensor.grad is not None]
        if not chosen or not (self._wanted("gradient.rms") or self._wanted("gradient.global_norm")):
            return
        grads = [_dense(p.tensor.grad) for p in chosen]
        counts = [p.tensor.numel() for p in chosen]
        squares = weights.mean_squares(grads)
        scale = getattr(optimizer, "grad_scale", None)
        if isinstance(scale, Tensor):
            squares = squares / scale.to(squares.device, torch.float32).square()
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            recorder.add_flag(found_inf.detach().float())
        self._gradient_squares.append((squares * self._counts(chosen, counts, squares.device)).sum())
        if self._reports:
            recorder.add(self._layout(chosen, "gradient.rms"), squares, counts)

    def updates(self, parameters: Sequence[WatchedParameter], recorder: Recorder, due: Due) -> None:
        """Record weights and updates of parameters that were snapshot before the step just made."""
        self.stepped.update(id(p.tensor) for p in parameters)
        chosen = [p for p in parameters if p.order in self._pending]
        if not chosen:
            return
        streamed = [p for p in chosen if self._can_stream(p, due)]
        apart = {p.order for p in streamed}
        changes: dict[int, Tensor] = {}
        for part in _cache_sized([p for p in chosen if p.order not in apart]):
            after: list[Tensor] = [p.tensor for p in part]
            deltas, statistics = updates.stored_(after, [self._pending.pop(p.order) for p in part])
            by_order = dict(zip((p.order for p in part), deltas, strict=True))
            if self._reports:
                self._stored_updates(part, statistics, recorder)
                self._by_role(part, after, deltas, recorder)
            if self._wanted("update.own") or self._wanted("update.own_mean"):
                self._own_updates(by_order)
            if self._reports and due.matrices is not None:
                self._spectra.record([p for p in part if due.owns_matrix(p.turn)], by_order, recorder)
            changes.update((order, delta) for order, delta in by_order.items() if delta.dim() == 1)
        if streamed:
            self._stream(streamed, changes, recorder)
        self._record_moved(recorder)
        if self._reports:
            self.measured.update(p.order for p in chosen)

    def _can_stream(self, p: WatchedParameter, due: Due) -> bool:
        """Whether nothing needs the difference of this weight but what one pass over it gives."""
        bias = [other for other in p.owner.parameters if other is not p]
        return (
            isinstance(p.owner.module, nn.Linear)
            and p.roles == {"matrix"}
            and not due.owns_matrix(p.turn)
            and updates.can_stream(p.tensor, self._pending[p.order])
            and p.owner.order in self._activations.probes
            and (p.owner.order, "own") not in self._broken
            and all(other.order in self._pending for other in bias)
            and self._wanted("update.own")
        )

    def _stream(self, streamed: Sequence[WatchedParameter], changes: Mapping[int, Tensor], recorder: Recorder) -> None:
        statistics = []
        for p in streamed:
            bias = next((changes[other.order] for other in p.owner.parameters if other is not p), None)
            probe = self._activations.probes[p.owner.order]
            column, self._moved[p.owner.order] = updates.streamed_linear(
                p.tensor, self._pending.pop(p.order), probe, bias
            )
            statistics.append(column)
        if self._reports:
            self._stored_updates(streamed, torch.tensor(statistics).t(), recorder)

    def finish(self, recorder: Recorder) -> None:
        """Record what belongs to the whole round: the global gradient norm."""
        if self._gradient_squares:
            home = self._gradient_squares[0].device
            total = torch.stack([squares.to(home) for squares in self._gradient_squares]).sum()
            if self._reports:
                recorder.add([self._model_spec("gradient.global_norm")], total)
        self.reset()

    def reset(self) -> None:
        """Forget the step."""
        self._gradient_squares.clear()
        self._pending.clear()
        self._moved.clear()

    def groups(self, recorder: Recorder, optimizer: Any, place: int) -> None:
        """Record learning rate and weight decay of an optimizer's groups, as this step used them.

        Args:
            place: the optimizer's place among those that take part; the first one's groups are `0`, `1`, ..., the
                second's `1.0`, ...
        """
        if not self._reports:
            return
        for index, group in enumerate(parameter_groups(optimizer)):
            name = str(group.get("name") or index)
            subject = f"{place}.{name}" if place else name
            for metric, key in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
                value = group.get(key)
                spec = self._group_spec(metric, subject, index, group)
                if spec is None or isinstance(value, bool):
                    continue
                if isinstance(value, Tensor):
                    recorder.add([spec], value.detach().float())
                elif isinstance(value, int | float):
                    recorder.add_host(spec, float(value))

    # ---- private ---------------------------------------------------------------------------------------------------

    def _counts(self, chosen: Sequence[WatchedParameter], counts: Sequence[int], device: torch.device) -> Tensor:
        """Entries of each parameter, on its device; made once, since a copy to the device would wait."""
        key = tuple(p.order for p in chosen)
        if key not in self._count_tensors:
            self._count_tensors[key] = torch.tensor(counts, dtype=torch.float32, device=device)
        return self._count_tensors[key]

    def _stored_updates(self, chosen: Sequence[WatchedParameter], statistics: Tensor, recorder: Recorder) -> None:
        counts = [p.tensor.numel() for p in chosen]
        weight, update, unchanged = statistics.unbind()
        # a weight of zero has no relative update; an update from it is reported by update.rms
        relative = torch.where(weight == 0, NOT_MEASURED, update / weight)
        for metric, values in (
            ("weight.rms", weight),
            ("update.rms", update),
            ("update.relative_rms", relative),
            ("update.unchanged", unchanged),
        ):
            recorder.add(self._layout(chosen, metric), values, counts)

    def _by_role(
        self, chosen: Sequence[WatchedParameter], after: list[Tensor], deltas: list[Tensor], recorder: Recorder
    ) -> None:
        vectors = [i for i, p in enumerate(chosen) if "vector" in p.roles]
        if vectors:
            for metric, tensors in (("weight.abs_max", after), ("update.abs_max", deltas)):
                values = weights.vector_abs_max([tensors[i] for i in vectors])
                recorder.add(self._layout([chosen[i] for i in vectors], metric), values)
        for p, tensor, delta in zip(chosen, after, deltas, strict=True):
            for role, statistic, name in (
                ("embedding", weights.row_rms_max, "row_rms_max"),
                ("head", weights.head_norm, "head_norm"),
            ):
                if role in p.roles:
                    for kind, value in (("weight", tensor), ("update", delta)):
                        turned = value.t() if p.view == "transposed" else value
                        recorder.add([self._spec(p, f"{kind}.{name}")], statistic(turned))

    def _own_updates(self, deltas: Mapping[int, Tensor]) -> None:
        owners = {self._outline.parameters[order].owner.order for order in deltas}
        for order in sorted(owners & self._activations.probes.keys()):
            probe, watched = self._activations.probes[order], self._outline.modules[order]
            if (order, "own") in self._broken:
                continue
            changed = {p.attribute: deltas[p.order] for p in watched.parameters if p.order in deltas}
            if not changed or len(changed) < sum(p.tensor.requires_grad for p in watched.parameters):
                continue  # another optimizer steps the rest, or rotation left it out
            try:
                change = own_update(watched.module, probe, changed)
            except Exception as error:
                self._broken.add((order, "own"))
                self._fault("module", watched.name, error)
                continue
            if change is not None:
                self._moved[order] = change

    def _record_moved(self, recorder: Recorder) -> None:
        """Record what each module's own update did to its probe, in one reduction for all probes of one size."""
        by_size: dict[int, list[int]] = {}
        for order, change in self._moved.items():
            by_size.setdefault(change.numel(), []).append(order)
        for members in by_size.values():
            values = updates.moved(torch.stack([self._moved[order] for order in members]))
            layout: list[Spec | None] = []
            counts: list[int] = []
            for order in members:
                layout += [self._module_spec(order, "update.own"), self._module_spec(order, "update.own_mean")]
                tokens = self._activations.probes[order].shape[0]
                counts += [1, tokens * (self._activations.series.widths[order][1] or 1)]
            recorder.add(layout, values, counts)
        self._moved.clear()

    def note_groups(self, optimizers: Sequence[Any]) -> None:
        """Learn which parameter belongs to which group, and what its optimizer promises of its updates."""
        self._update_promise = promises(optimizers, self._outline)
        place = 0
        for optimizer in optimizers:
            for group in parameter_groups(optimizer):
                for tensor in group["params"]:
                    parameter = self._by_id.get(id(tensor))
                    if parameter is None:
                        continue
                    self._group_of[parameter.order] = place
                place += 1

    def _layout(self, chosen: Sequence[WatchedParameter], metric: str) -> Layout:
        """The series of a metric of several parameters."""
        key = metric, tuple(p.order for p in chosen)
        if key not in self._layouts:
            if len(self._layouts) >= LAYOUTS_KEPT:  # parameters that get gradients in ever other combinations
                self._layouts.clear()
            self._layouts[key] = [self._spec(p, metric) for p in chosen]
        return self._layouts[key]

    def _spec(self, p: WatchedParameter, metric: str, method: str = "") -> Spec | None:
        if not self._wanted(metric):
            return None
        spec = self._specs.get((p.order, metric))
        if spec is None:
            heavy = metric.endswith(("spectral_norm", "operator_norm", "stable_rank", "update.relative"))
            fan_out, fan_in = fans(p)
            promise = self._update_promise.get(p.order) if metric.startswith("update.") else None
            facts = Facts(
                method=method,
                role=p.owner.role,
                block=p.owner.block,
                module=p.owner.name,
                order=p.owner.order,
                fan_in=fan_in,
                fan_out=fan_out,
                dtype=str(p.tensor.dtype).removeprefix("torch."),
                group=self._group_of.get(p.order),
                parameters=p.tensor.numel(),
                view=p.view or None,
                cadence=self._heavy_every * MATRIX_ROTATION if heavy else self._light_cadence(),
                placement="replicated",
                aliases=tuple(p.aliases),
                update_scale=promise[0] if promise else None,
                update_band=promise[1] if promise else None,
            )
            bound = "lower" if method.startswith("lanczos") else "exact"
            spec = self._specs[p.order, metric] = Spec(metric, "parameter", p.name, None, bound, facts)  # type: ignore[arg-type]
        return spec

    def _light_cadence(self) -> int:
        return self._every * (len(self._rotation) if self._rotation else 1)

    def _module_spec(self, order: int, metric: str) -> Spec | None:
        if not self._wanted(metric):
            return None
        spec = self._specs.get((-1 - order, metric))
        if spec is None:
            watched = self._outline.modules[order]
            facts = self._activations.series.facts(watched, probe=OWN_TOKENS)
            spec = self._specs[-1 - order, metric] = Spec(metric, "module", watched.name, None, "exact", facts)
        return spec

    def _model_spec(self, metric: str) -> Spec | None:
        if not self._wanted(metric):
            return None
        key = metric, ""
        if key not in self._host_specs:
            self._host_specs[key] = Spec(metric, "model", "model", None, "exact", Facts(cadence=self._every))
        return self._host_specs[key]

    def _group_spec(self, metric: str, subject: str, index: int, group: dict[str, Any]) -> Spec | None:
        if not self._wanted(metric):
            return None
        key = metric, subject
        if key not in self._host_specs:
            entries = sum(t.numel() for t in group["params"])
            facts = Facts(method="as given", group=index, parameters=entries, cadence=self._every)
            self._host_specs[key] = Spec(metric, "group", subject, None, "exact", facts)
        return self._host_specs[key]


def _cache_sized(parameters: Sequence[WatchedParameter]) -> list[list[WatchedParameter]]:
    """On the CPU, runs of whole modules of about CACHE_BYTES, so that one pass over memory serves all measures;
    elsewhere all at once."""
    if parameters and parameters[0].tensor.device.type != "cpu":
        return [list(parameters)]
    parts: list[list[WatchedParameter]] = []
    filled = CACHE_BYTES
    for p in parameters:
        if filled >= CACHE_BYTES and not (parts and parts[-1][-1].owner is p.owner):
            parts.append([])
            filled = 0
        parts[-1].append(p)
        filled += p.tensor.numel() * p.tensor.element_size()
    return parts


def _dense(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad.coalesce().values() if grad.is_sparse else grad
