"""Parameters around an optimizer step: gradients, weights, updates as stored, and what a module's own update does."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from internist.measures import updates, weights
from internist.model.outline import Outline, WatchedModule, WatchedParameter
from internist.model.views import facts_of
from internist.observe.faults import Faults
from internist.observe.gradients import GradientCapture
from internist.observe.groups import Groups
from internist.observe.modules import ActivationCapture
from internist.observe.optimizer_facts import parameter_groups, parameters_of
from internist.observe.own import Probe, own_update
from internist.observe.routing import Promise, promises
from internist.observe.sampling import Due, Sampling
from internist.observe.snapshots import Snapshots
from internist.observe.speaker import Speaker
from internist.observe.spectra import SpectraCapture
from internist.observe.tokens import OWN_TOKENS
from internist.record.recorder import Recorder
from internist.record.series_book import Layout, SeriesBook
from internist.schema.metrics import CATALOGUE
from internist.schema.wire import Facts, Series

CACHE_BYTES = 1 << 20
"""Bytes of parameters whose updates are measured together on the CPU."""


class ParameterCapture:
    """Measures the parameters that an optimizer steps, on sampled steps."""

    def __init__(
        self,
        outline: Outline,
        activations: ActivationCapture,
        *,
        book: SeriesBook,
        faults: Faults,
        sampling: Sampling,
        speaker: Speaker,
    ) -> None:
        self._outline, self._activations, self._speaker = outline, activations, speaker
        self._book, self._faults, self._sampling = book, faults, sampling
        self._gradients = GradientCapture()
        self._snapshots = Snapshots(outline, sampling.every)
        self._groups = Groups(book=book, sampling=sampling)
        self._by_id: dict[int, WatchedParameter] = {}
        self._group_of: dict[int, int] = {}
        self._promised: dict[int, Promise] = {}
        self._moved: dict[int, Tensor] = {}
        """By module order: how far its own update moved each of its probe tokens."""
        self._changed: dict[int, dict[str, Tensor]] = {}
        """By module order: changes of those of its parameters that have been stepped in this round."""
        self._stepped_now: set[int] = set()
        self.spectra = SpectraCapture(widths=activations.series.widths, series=self._series, faults=faults)
        self.stepped: set[int] = set()
        """Orders of parameters that some optimizer has stepped."""
        self.moved_now: set[int] = set()
        """Orders of modules whose own update was measured in the step that is being closed,"""
        self.updated_now: set[int] = set()
        """and of parameters whose update was."""
        self.refresh()

    @property
    def turns(self) -> int:
        """Samples in which every parameter has its turn."""
        return self._snapshots.turns

    @property
    def with_gradient_now(self) -> set[int]:
        """Orders of parameters whose gradient was read in the step that is being closed."""
        return self._gradients.measured_now

    # ---- which parameters ------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look the parameters up in their modules again: they may have been replaced by others of the same shape."""
        found: dict[int, WatchedParameter] = {}
        for parameter in self._outline.parameters:
            tensor = parameter.present()
            if tensor is not None:
                found[id(tensor)] = parameter
        self._by_id = found

    def is_watched(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter of the model."""
        return id(tensor) in self._by_id

    def all(self) -> list[WatchedParameter]:
        """Every parameter that can be measured."""
        return [p for p in self._by_id.values() if not p.unsupported and not p.excluded]

    def owned_by(self, optimizer: Any) -> list[WatchedParameter]:
        """The watched parameters an optimizer steps, in outline order; all of them where it does not say which."""
        if not parameter_groups(optimizer):
            return sorted(self._by_id.values(), key=lambda p: p.order)
        given = list(parameters_of(optimizer))
        owned = [parameter for tensor in given if (parameter := self._by_id.get(id(tensor))) is not None]
        if len(owned) < len(given):
            self.refresh()  # some may be new
            owned = [parameter for tensor in given if (parameter := self._by_id.get(id(tensor))) is not None]
        return sorted(dict.fromkeys(owned), key=lambda p: p.order)

    def note_groups(self, optimizers: Sequence[Any]) -> None:
        """Learn which parameter belongs to which group, and what its optimizer promises of its updates."""
        self._promised = promises(optimizers, self._outline)
        for optimizer in optimizers:
            self._note_groups(optimizer)

    # ---- around the step -------------------------------------------------------------------------------------------

    def snapshot(self, parameters: Sequence[WatchedParameter], step: int, due: Due) -> None:
        """Keep copies of parameters as they are before a step."""
        if self._sampling.wants(*UPDATE_METRICS):
            self._snapshots.take([p for p in parameters if not p.unsupported and not p.excluded], step, due)

    def gradients(self, parameters: Sequence[WatchedParameter], optimizer: Any, recorder: Recorder) -> None:
        """Record the RMS of each gradient the optimizer is about to use, and keep their squares for the global norm."""
        if not self._sampling.wants("gradient.rms", "gradient.global_norm"):
            return
        found = self._gradients.read([p for p in parameters if self._is_reported(p)], optimizer, recorder)
        if found is not None:
            chosen, squares, counts = found
            recorder.add(self._layout(chosen, "gradient.rms"), squares, counts)

    def updates(self, parameters: Sequence[WatchedParameter], recorder: Recorder, due: Due) -> None:
        """Record weights and updates of parameters that were snapshot before the step just made."""
        self._stepped_now.update(p.order for p in parameters)
        self.stepped |= self._stepped_now
        pending = self._snapshots.pending
        chosen = [p for p in parameters if p.order in pending]
        if not chosen:
            return
        tensors = {p.order: p.tensor.detach() for p in chosen}
        streamed = [p for p in chosen if self._can_stream(p, tensors[p.order], due)]
        apart = {p.order for p in streamed}
        changes: dict[int, Tensor] = {}
        for part in _cache_sized([p for p in chosen if p.order not in apart], tensors):
            after = [tensors[p.order] for p in part]
            deltas, statistics = updates.stored_(after, [pending.pop(p.order) for p in part])
            by_order = dict(zip((p.order for p in part), deltas, strict=True))
            self._stored_updates(part, statistics, recorder)
            self._by_role(part, after, deltas, recorder)
            if self._sampling.wants("update.own", "update.own_mean"):
                self._own_updates(by_order)
            if due.matrices is not None:
                turns = [p for p in part if due.owns_matrix(p.turn) and self._is_reported(p)]
                self.spectra.record(turns, by_order, recorder)
            changes.update((order, delta) for order, delta in by_order.items() if delta.dim() == 1)
        if streamed:
            self._stream(streamed, tensors, changes, recorder)
        self._record_moved(recorder)
        self.updated_now.update(p.order for p in chosen)

    def groups(self, recorder: Recorder, optimizer: Any) -> None:
        """Record learning rate and weight decay of an optimizer's groups, as this step used them."""
        self._note_groups(optimizer)
        if self._speaker.reports_replicated:
            self._groups.record(optimizer, recorder)

    def finish(self, recorder: Recorder) -> None:
        """Record what belongs to the whole round: the global gradient norm."""
        self._rest_of_own_updates()
        self._record_moved(recorder)
        total = self._gradients.global_norm_squared()
        if total is not None:
            facts = Facts(cadence=self._sampling.cadence("gradient.global_norm"))
            series = self._book.series("gradient.global_norm", "model", "model", lambda: facts)
            recorder.add([series], total)

    def forget(self) -> None:
        """Keep no copy of a parameter any more."""
        self._snapshots.forget()
        self.spectra.forget()

    def reset(self) -> None:
        """Forget the step."""
        self._gradients.reset()
        self._snapshots.reset()
        self.spectra.measured_now.clear()
        self._moved.clear()
        self._changed.clear()
        self._stepped_now.clear()
        self.moved_now, self.updated_now = set(), set()

    # ---- private ---------------------------------------------------------------------------------------------------

    def _is_reported(self, parameter: WatchedParameter) -> bool:
        """Whether this rank reports it: one that all ranks have alike is reported by one of them."""
        return self._speaker.reports_replicated or parameter.owner.name in self._speaker.apart

    def _note_groups(self, optimizer: Any) -> None:
        for index, group in enumerate(parameter_groups(optimizer)):
            number = self._groups.number(optimizer, index)
            for tensor in group["params"]:
                parameter = self._by_id.get(id(tensor))
                if parameter is not None:
                    self._group_of[parameter.order] = number

    def _can_stream(self, p: WatchedParameter, tensor: Tensor, due: Due) -> bool:
        """Whether nothing needs the difference of this weight but what one pass over it gives."""
        bias = [other for other in p.owner.parameters if other is not p]
        return (
            isinstance(p.owner.module, nn.Linear)
            and p.roles == {"matrix"}
            and not due.owns_matrix(p.turn)
            and updates.can_stream(tensor, self._snapshots.pending[p.order])
            and p.owner.order in self._activations.probes
            and not self._faults.is_given_up("own update", p.owner.name)
            and all(other.order in self._snapshots.pending for other in bias)
            and self._sampling.wants("update.own")
        )

    def _stream(
        self,
        streamed: Sequence[WatchedParameter],
        tensors: Mapping[int, Tensor],
        changes: Mapping[int, Tensor],
        recorder: Recorder,
    ) -> None:
        statistics = []
        for p in streamed:
            bias = next((changes[other.order] for other in p.owner.parameters if other is not p), None)
            probe = self._activations.probes[p.owner.order]
            column, moved = updates.streamed_linear(
                tensors[p.order], self._snapshots.pending.pop(p.order), probe.tokens, bias
            )
            self._moved[p.owner.order] = moved * probe.factor
            statistics.append(column)
        if streamed:
            self._stored_updates(streamed, torch.tensor(statistics, dtype=torch.float32, device="cpu").t(), recorder)

    def _stored_updates(self, chosen: Sequence[WatchedParameter], statistics: Tensor, recorder: Recorder) -> None:
        kept = [i for i, p in enumerate(chosen) if self._is_reported(p)]
        if not kept:
            return
        if len(kept) < len(chosen):
            chosen, statistics = [chosen[i] for i in kept], statistics[:, kept]
        counts = [p.tensor.numel() for p in chosen]
        weight, update, unchanged = statistics.unbind()
        for metric, values in (("weight.rms", weight), ("update.rms", update), ("update.unchanged", unchanged)):
            recorder.add(self._layout(chosen, metric), values, counts)
        # a weight of zero has no relative update; an update from it is reported by update.rms
        layout = self._layout(chosen, "update.relative_rms")
        recorder.add(layout, update / weight, counts, measured=weight != 0)

    def _by_role(
        self, chosen: Sequence[WatchedParameter], after: list[Tensor], deltas: list[Tensor], recorder: Recorder
    ) -> None:
        vectors = [i for i, p in enumerate(chosen) if "vector" in p.roles and self._is_reported(p)]
        if vectors:
            for metric, tensors in (("weight.abs_max", after), ("update.abs_max", deltas)):
                values = weights.vector_abs_max([tensors[i] for i in vectors])
                recorder.add(self._layout([chosen[i] for i in vectors], metric), values)
        for p, tensor, delta in zip(chosen, after, deltas, strict=True):
            if not self._is_reported(p):
                continue
            for role, statistic, name in (
                ("embedding", weights.row_rms_max, "row_rms_max"),
                ("head", weights.head_norm, "head_norm"),
            ):
                if role in p.roles:
                    for kind, value in (("weight", tensor), ("update", delta)):
                        turned = value.t() if p.view == "transposed" else value
                        recorder.add([self._series(p, f"{kind}.{name}")], statistic(turned))

    def _own_updates(self, deltas: Mapping[int, Tensor]) -> None:
        owners = {self._outline.parameters[order].owner.order for order in deltas}
        for order in sorted(owners & self._activations.probes.keys()):
            probe, watched = self._activations.probes[order], self._outline.modules[order]
            if self._faults.is_given_up("own update", watched.name):
                continue
            changed = self._changed.setdefault(order, {})
            changed.update((p.attribute, deltas[p.order]) for p in watched.parameters if p.order in deltas)
            if len(changed) < sum(p.tensor.requires_grad for p in watched.parameters):
                continue  # another optimizer steps the rest, later in this round
            self._own_update(watched, probe, self._changed.pop(order))

    def _own_update(self, watched: WatchedModule, probe: Probe, changed: Mapping[str, Tensor]) -> None:
        try:
            change = own_update(watched.module, probe, changed)
        except Exception as error:
            self._faults.note("own update", watched.name, error)
            return
        if change is not None:
            self._moved[watched.order] = change

    def _rest_of_own_updates(self) -> None:
        """Modules of which some parameters were not stepped in this round: those did not move."""
        pending = self._snapshots.pending
        for order, changed in self._changed.items():
            watched = self._outline.modules[order]
            others = [p for p in watched.parameters if p.attribute not in changed and p.tensor.requires_grad]
            if changed and not any(p.order in self._stepped_now and p.order not in pending for p in others):
                self._own_update(watched, self._activations.probes[order], changed)
        self._changed.clear()

    def _record_moved(self, recorder: Recorder) -> None:
        """Record what each module's own update did to its probe, in one reduction for all probes of one size."""
        by_size: dict[int, list[int]] = {}
        for order, change in self._moved.items():
            by_size.setdefault(change.numel(), []).append(order)
        for tokens, members in by_size.items():
            values = updates.moved(torch.stack([self._moved[order] for order in members]))
            counts: list[int] = []
            for order in members:
                counts += [1, tokens * (self._activations.series.widths[order][1] or 1)]
            recorder.add(self._moved_layout(members), values, counts)
        self.moved_now.update(self._moved)
        self._moved.clear()

    def _moved_layout(self, orders: Sequence[int]) -> Layout:
        names = "update.own", "update.own_mean"
        return self._book.layout(
            ("own", tuple(orders)), lambda: [self._own_series(order, name) for order in orders for name in names]
        )

    def _own_series(self, order: int, metric: str) -> Series | None:
        watched = self._outline.modules[order]
        return self._book.series(
            metric,
            "module",
            watched.name,
            lambda: self._activations.series.facts(watched, metric, probe=OWN_TOKENS),
        )

    def _layout(self, chosen: Sequence[WatchedParameter], metric: str) -> Layout:
        """The series of a metric of several parameters."""
        key = metric, tuple(p.order for p in chosen)
        return self._book.layout(key, lambda: [self._series(p, metric) for p in chosen])

    def _series(self, p: WatchedParameter, metric: str, method: str = "", index: int | None = None) -> Series | None:
        def facts() -> Facts:
            promise = self._promised.get(p.order) if metric.startswith("update.") else None
            turns = 1 if metric.startswith("gradient.") else self._snapshots.turns
            return facts_of(
                p,
                method=method,
                group=self._group_of.get(p.order),
                placement="disjoint" if p.owner.name in self._speaker.apart else "replicated",
                cadence=self._sampling.cadence(metric) * turns,
                update_scale=promise[0] if promise else None,
                update_band=promise[1] if promise else None,
            )

        bound = "lower" if method.startswith("lanczos") else "exact"
        return self._book.series(metric, "parameter", p.name, facts, index=index, bound=bound)  # type: ignore[arg-type]


UPDATE_METRICS = tuple(
    metric.name
    for metric in CATALOGUE
    if metric.family == "weight" or (metric.family == "update" and not metric.name.startswith("update.feature"))
)
"""What a snapshot is taken for."""


def _cache_sized(parameters: Sequence[WatchedParameter], tensors: Mapping[int, Tensor]) -> list[list[WatchedParameter]]:
    """On the CPU, runs of whole modules of about CACHE_BYTES, so that one pass over memory serves all measures;
    elsewhere all of a device at once."""
    by_device: dict[torch.device, list[WatchedParameter]] = {}
    for p in parameters:
        by_device.setdefault(tensors[p.order].device, []).append(p)
    parts: list[list[WatchedParameter]] = []
    for device, members in by_device.items():
        if device.type != "cpu":
            parts.append(members)
            continue
        filled, first = CACHE_BYTES, len(parts)
        for p in members:
            if filled >= CACHE_BYTES and not (len(parts) > first and parts[-1][-1].owner is p.owner):
                parts.append([])
                filled = 0
            parts[-1].append(p)
            filled += tensors[p.order].numel() * tensors[p.order].element_size()
    return parts
