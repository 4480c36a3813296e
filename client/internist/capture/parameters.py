"""Parameters around an optimizer step: gradients as the optimizer receives them, weights, updates as stored,
spectra."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from internist.capture.cadence import MATRIX_ROTATION, Due
from internist.capture.clock import parameter_groups
from internist.capture.modules import ActivationCapture
from internist.capture.outline import Outline, WatchedParameter, fans, matrix_view, resolve_view
from internist.capture.own import own_update
from internist.capture.tokens import OWN_TOKENS
from internist.measures import spectral, updates, weights
from internist.measures.activations import NOT_MEASURED
from internist.recorder import Recorder, Spec
from internist.schema.wire import Facts

SNAPSHOT_BYTES = 256 << 20
"""Snapshots of all parameters while they fit in this; beyond, a share of the bytes in rotation of whole blocks."""
SNAPSHOT_SHARE = 0.05
CACHE_BYTES = 1 << 20
"""Bytes of parameters whose updates are measured together on the CPU."""
_MUON_BAND = (0.68, 1.134)
"""Singular values that five Newton-Schulz steps with torch.optim.Muon's default coefficients leave."""


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
        self._gradient_squares: list[Tensor] = []
        self._starts: dict[tuple[int, str], Tensor] = {}
        self._specs: dict[tuple[int, str], Spec] = {}
        self._host_specs: dict[tuple[str, str], Spec] = {}
        self._count_tensors: dict[tuple[int, ...], Tensor] = {}
        self._broken: set[tuple[int, str]] = set()
        self._update_promise: dict[int, tuple[float, tuple[float, float]]] = {}
        self._rotation = self._rotation_groups()
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
        torch._foreach_copy_(targets, [p.tensor.detach() for p in chosen])
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
            recorder.add([self._spec(p, "gradient.rms") for p in chosen], squares, counts)

    def updates(self, parameters: Sequence[WatchedParameter], recorder: Recorder, due: Due) -> None:
        """Record weights and updates of parameters that were snapshot before the step just made."""
        self.stepped.update(id(p.tensor) for p in parameters)
        chosen = [p for p in parameters if p.order in self._pending]
        if not chosen:
            return
        streamed = [p for p in chosen if self._can_stream(p, due)]
        changes: dict[int, Tensor] = {}
        for part in _cache_sized([p for p in chosen if p not in streamed]):
            after = [p.tensor.detach() for p in part]
            deltas, statistics = updates.stored_(after, [self._pending.pop(p.order) for p in part])
            by_order = dict(zip((p.order for p in part), deltas, strict=True))
            if self._reports:
                self._stored_updates(part, statistics, recorder)
                self._by_role(part, after, deltas, recorder)
            if self._wanted("update.own") or self._wanted("update.own_mean"):
                self._own_updates(by_order, recorder)
            if self._reports and due.matrices is not None:
                self._spectra([p for p in part if due.owns_matrix(p.turn)], by_order, recorder)
            changes.update((order, delta) for order, delta in by_order.items() if delta.dim() == 1)
        if streamed:
            self._stream(streamed, changes, recorder)
        if self._reports:
            self.measured.update(p.order for p in chosen)

    def _can_stream(self, p: WatchedParameter, due: Due) -> bool:
        """Whether nothing needs the difference of this weight but what one pass over it gives."""
        bias = [other for other in p.owner.parameters if other is not p]
        return (
            isinstance(p.owner.module, nn.Linear)
            and p.roles == {"matrix"}
            and not due.owns_matrix(p.turn)
            and updates.can_stream(p.tensor.detach(), self._pending[p.order])
            and p.owner.order in self._activations.probes
            and (p.owner.order, "own") not in self._broken
            and all(other.order in self._pending for other in bias)
            and self._wanted("update.own")
        )

    def _stream(self, streamed: Sequence[WatchedParameter], changes: Mapping[int, Tensor], recorder: Recorder) -> None:
        statistics, moved = [], []
        for p in streamed:
            bias = next((changes[other.order] for other in p.owner.parameters if other is not p), None)
            probe = self._activations.probes[p.owner.order]
            column, own = updates.streamed_linear(p.tensor.detach(), self._pending.pop(p.order), probe, bias)
            statistics.append(column)
            moved.append(own)
        if self._reports:
            self._stored_updates(streamed, torch.stack(statistics, dim=1), recorder)
        for p, own in zip(streamed, moved, strict=True):
            self._record_own(p.owner.order, own, recorder)

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
            recorder.add([self._spec(p, metric) for p in chosen], values, counts)

    def _by_role(
        self, chosen: Sequence[WatchedParameter], after: list[Tensor], deltas: list[Tensor], recorder: Recorder
    ) -> None:
        vectors = [i for i, p in enumerate(chosen) if "vector" in p.roles]
        if vectors:
            for metric, tensors in (("weight.abs_max", after), ("update.abs_max", deltas)):
                values = weights.vector_abs_max([tensors[i] for i in vectors])
                recorder.add([self._spec(chosen[i], metric) for i in vectors], values)
        for p, tensor, delta in zip(chosen, after, deltas, strict=True):
            for role, statistic, name in (
                ("embedding", weights.row_rms_max, "row_rms_max"),
                ("head", weights.head_norm, "head_norm"),
            ):
                if role in p.roles:
                    for kind, value in (("weight", tensor), ("update", delta)):
                        turned = value.t() if p.view == "transposed" else value
                        recorder.add([self._spec(p, f"{kind}.{name}")], statistic(turned))

    def _spectra(self, chosen: Sequence[WatchedParameter], deltas: Mapping[int, Tensor], recorder: Recorder) -> None:
        for p in chosen:
            if p.view == "unknown":
                resolve_view(p, *self._activations.widths.get(p.owner.order, (None, None)))
            if "matrix" not in p.roles or p.unsupported or (p.order, "spectrum") in self._broken:
                continue
            try:
                self._spectrum(p, deltas[p.order], recorder)
            except Exception as error:
                self._broken.add((p.order, "spectrum"))
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

    def _own_updates(self, deltas: Mapping[int, Tensor], recorder: Recorder) -> None:
        owners = {self._outline.parameters[order].owner.order for order in deltas}
        for order in sorted(owners & self._activations.probes.keys()):
            probe, watched = self._activations.probes[order], self._outline.modules[order]
            if (order, "own") in self._broken:
                continue
            changed = {p.attribute: deltas[p.order] for p in watched.parameters if p.order in deltas}
            if not changed or len(changed) < sum(p.tensor.requires_grad for p in watched.parameters):
                continue  # another optimizer steps the rest, or rotation left it out
            try:
                value = own_update(watched.module, probe, changed)
            except Exception as error:
                self._broken.add((order, "own"))
                self._fault("module", watched.name, error)
                continue
            if value is None:
                continue
            self._record_own(order, value, recorder)

    def _record_own(self, order: int, value: Tensor, recorder: Recorder) -> None:
        entries = self._activations.probes[order].shape[0] * (self._activations.widths[order][1] or 1)
        layout = [self._module_spec(order, "update.own"), self._module_spec(order, "update.own_mean")]
        recorder.add(layout, value, [1, entries])

    def note_groups(self, optimizers: Sequence[Any]) -> None:
        """Learn which parameter belongs to which group, and what its optimizer promises of its updates."""
        place = 0
        for optimizer in optimizers:
            for group in parameter_groups(optimizer):
                for tensor in group["params"]:
                    parameter = self._by_id.get(id(tensor))
                    if parameter is None:
                        continue
                    self._group_of[parameter.order] = place
                    if "matrix" in parameter.roles and type(optimizer).__name__ == "Muon":
                        scale = _muon_scale(group, *fans(parameter))
                        if scale is not None:
                            self._update_promise[parameter.order] = scale, _MUON_BAND
                place += 1

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
            facts = self._activations.facts(watched, probe=OWN_TOKENS)
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
    grad = grad.detach()
    return grad.coalesce().values() if grad.is_sparse else grad


def _muon_scale(group: Mapping[str, Any], fan_out: int, fan_in: int) -> float | None:
    """Spectral norm of torch.optim.Muon's update over its learning rate, by its `adjust_lr_fn`."""
    rule = group.get("adjust_lr_fn", "absent")
    if rule in (None, "original"):
        return math.sqrt(max(1.0, fan_out / fan_in))
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(fan_out, fan_in))
    return None
