"""Parameters around an optimizer step: gradients, weights, updates as stored, and what a module's own update does."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from internist.measures import many, updates
from internist.model.outline import Outline, WatchedModule, WatchedParameter
from internist.observe.epsilon import Epsilons, eps_of
from internist.observe.faults import Faults
from internist.observe.gradients import GradientCapture, gradient_of
from internist.observe.groups import Groups
from internist.observe.modules import ActivationCapture
from internist.observe.optimizer_facts import parameter_groups, parameters_of
from internist.observe.own_sharded import HELD_FOR as NEXT_FORWARD
from internist.observe.own_sharded import ShardedOwn
from internist.observe.own_updates import OwnUpdates
from internist.observe.parameter_ranges import ParameterRanges
from internist.observe.parameter_series import ParameterSeries
from internist.observe.reduction import Reduction
from internist.observe.sampling import Due, Sampling, due
from internist.observe.sharded_spectra import HELD_FOR as RANKS
from internist.observe.sharded_spectra import Kind, ShardedSpectra
from internist.observe.snapshots import UPDATE_SPECTRA, WEIGHT_SPECTRA, Snapshots
from internist.observe.speaker import Speaker
from internist.observe.spectra import SpectraCapture
from internist.observe.stopwatch import Stopwatch
from internist.observe.stored_updates import StoredUpdates
from internist.observe.whole_matrices import WholeMatrices
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import Facts, Series

CACHE_BYTES = 1 << 20
"""Bytes of parameters whose updates are measured together on the CPU."""


class ParameterCapture:
    """Measures the parameters that an optimizer steps, on sampled steps."""

    def __init__(
        self,
        outline: Outline,
        activations: ActivationCapture,
        work: Stopwatch,
        *,
        book: SeriesBook,
        faults: Faults,
        sampling: Sampling,
        speaker: Speaker,
        reduction: Reduction | None = None,
    ) -> None:
        self._outline, self._activations, self._work, self._speaker = outline, activations, work, speaker
        self._book, self._faults, self._sampling = book, faults, sampling
        self._gradients = GradientCapture(sampling.wants)
        self._snapshots = Snapshots(outline, sampling)
        self._series = ParameterSeries(
            outline, book=book, sampling=sampling, speaker=speaker, turns=lambda: self._snapshots.turns
        )
        self._stored = StoredUpdates(self._series, sampling.wants)
        self._ranges = ParameterRanges(self._series, sampling.wants)
        self._own = OwnUpdates(outline, activations, book=book, faults=faults)
        self.later = ShardedOwn(outline, activations, work, faults, self._own.parts)
        """Own updates that are known in the next forward."""
        self.epsilons = Epsilons(self._series.of)
        self._groups = Groups(book=book, sampling=sampling, stage=speaker.stage)
        self._by_id: dict[int, WatchedParameter] = {}
        self._stepped_now: set[int] = set()
        self.spectra = SpectraCapture(
            widths=activations.series.widths, series=self._series, faults=faults, wants=sampling.wants
        )
        self._whole = WholeMatrices(self.spectra, faults, work)
        self._together = self._worked_out_by(reduction)
        self._told_whole: Mapping[int, Collection[str]] = {}
        """By parameter order: what its owner tells of its spectra in the step under way."""
        self.stepped: set[int] = set()
        """Orders of parameters that some optimizer has stepped."""
        self.updated_now: set[int] = set()
        """Orders of parameters whose update was measured in the step that is being closed."""
        self.refresh()

    @property
    def turns(self) -> int:
        """Samples in which every parameter has its turn."""
        return self._snapshots.turns

    @property
    def moved_now(self) -> set[int]:
        """Orders of modules whose own update was measured in the step that is being closed."""
        return self._own.measured_now | self.later.measured_last

    @property
    def grouped(self) -> Collection[int]:
        """Orders of parameters that are in an optimizer, whether it has stepped or not."""
        return self._series.group_of.keys() | self.stepped

    @property
    def with_gradient_now(self) -> set[int]:
        """Orders of parameters whose gradient was read in the step that is being closed."""
        return self._gradients.measured_now

    @property
    def unread_gradients(self) -> dict[int, str]:
        """By parameter order: why a gradient could not be read."""
        return self._gradients.unread

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

    def remove(self) -> None:
        """Listen to schedulers no longer."""
        self._groups.remove()

    def note_groups(self, optimizers: Sequence[Any]) -> None:
        """Learn which parameter belongs to which group, and what its optimizer promises of its updates."""
        self._series.note_promises(optimizers)
        for optimizer in optimizers:
            self._note_groups(optimizer)

    # ---- around the step -------------------------------------------------------------------------------------------

    def snapshot(self, parameters: Sequence[WatchedParameter], step: int, due: Due) -> None:
        """Keep copies of parameters as they are before a step."""
        self._snapshots.take([p for p in parameters if not p.unsupported and not p.excluded], step, due)

    def begin(self, step: int) -> None:
        """A step begins."""
        if self._together is not None:
            self._together.begin(step)

    def request_whole(self, parameters: Sequence[WatchedParameter], optimizer: Any, due: Due) -> None:
        """Ask an optimizer for the matrices that are due and that it has whole during its step."""
        if due.matrices is not None and self._sampling.wants(*WEIGHT_SPECTRA, *UPDATE_SPECTRA):
            self._whole.request(optimizer, [p for p in parameters if due.owns_matrix(p.turn)])

    def gradients(self, parameters: Sequence[WatchedParameter], optimizer: Any, recorder: Recorder, due: Due) -> None:
        """Record the RMS of each gradient the optimizer is about to use, and keep their squares for the global norm; on
        model-heavy steps also their range."""
        if due.heavy:
            held = ((p, gradient_of(p)) for p in parameters if not p.unsupported and not p.excluded)
            given = [(p, grad) for p, grad in held if grad is not None]
            with self._work.heavy:
                self._ranges.record("gradient", [p for p, _ in given], [grad for _, grad in given], recorder)
        if not self._sampling.wants("gradient.rms", "gradient.global_norm"):
            return
        found = self._gradients.read([p for p in parameters if self._series.is_reported(p)], optimizer, recorder)
        if found is not None and self._sampling.wants("gradient.rms"):
            chosen, squares, counts = found
            recorder.add(self._series.layout(chosen, "gradient.rms"), squares, counts)

    def updates(
        self, parameters: Sequence[WatchedParameter], recorder: Recorder, due: Due, optimizer: Any = None
    ) -> None:
        """Record weights and updates of parameters that were snapshot before the step just made."""
        self._told_whole = self._whole.pull(optimizer, recorder)
        self._stepped_now.update(p.order for p in parameters)
        self.stepped |= self._stepped_now
        if due.heavy:
            supported = [p for p in parameters if not p.unsupported and not p.excluded]
            with self._work.heavy:
                self._ranges.record("weight", supported, [p.local for p in supported], recorder)
        pending, alone = self._snapshots.pending, self._snapshots.uncompared
        chosen = [p for p in parameters if p.order in pending]
        uncompared = [p for p in parameters if p.order in alone]
        if chosen:
            self._updates(chosen, recorder, due)
        self._keep_empty(parameters, due)
        for part in _by_device(uncompared).values():
            self._stored.record_at_once(part, [p.local for p in part], None, recorder)
            self._record_spectra(part, {}, recorder, due)
        self._own.record(recorder)
        self.updated_now.update(p.order for p in [*chosen, *uncompared])
        alone.difference_update(p.order for p in uncompared)

    def groups(self, recorder: Recorder, optimizer: Any) -> None:
        """Record learning rate and weight decay of an optimizer's groups, as this step used them."""
        self._note_groups(optimizer)
        if self._speaker.reports_replicated:
            self._groups.record(optimizer, recorder)

    def rates(self, optimizer: Any, recorder: Recorder) -> list[tuple[Series, float]]:
        """Learning rates of an optimizer in a step that is not sampled, as far as they are numbers; recorded where one
        has leapt."""
        return self._groups.rates(optimizer, recorder)

    def finish(self, recorder: Recorder, step: int) -> None:
        """Record what belongs to the whole round that made a step: the global gradient norm."""
        self._own.take_rest(self._is_whole)
        self._own.record(recorder)
        self.later.begin(step, self._stepped_now, recorder)
        total = self._gradients.global_norm_squared()
        if total is not None:
            facts = Facts(cadence=self._sampling.cadence("gradient.global_norm"))
            series = self._book.series("gradient.global_norm", "model", "model", lambda: facts)
            recorder.add([series], total)

    def forget(self) -> None:
        """Keep no copy of a parameter any more."""
        self._snapshots.forget()
        self.spectra.forget()

    @property
    def to_come(self) -> list[str]:
        """What values of the step that is closed are still to come from."""
        comes = [RANKS] if self._together is not None and self._together.brings else []
        return comes + [NEXT_FORWARD] * self.later.is_waiting

    def join_ranks(self, step: int, recorder: Recorder) -> None:
        """A step is over, sampled or not, and its frame closed: join the other ranks, where they join at this one."""
        if self._together is not None:
            self._together.join(step, recorder)

    def reset(self) -> None:
        """Forget the step."""
        self._gradients.reset()
        self._snapshots.reset()
        self.spectra.measured_now.clear()
        self._whole.reset()
        self._told_whole = {}
        self._own.reset()
        self._stepped_now.clear()
        self.updated_now = set()

    # ---- private ---------------------------------------------------------------------------------------------------

    def _note_groups(self, optimizer: Any) -> None:
        for index, group in enumerate(parameter_groups(optimizer)):
            number, eps = self._groups.number(optimizer, index), eps_of(optimizer, group)
            for tensor in group["params"]:
                parameter = self._by_id.get(id(tensor))
                if parameter is not None:
                    self._series.group_of[parameter.order] = number
                    self.epsilons.note(parameter, eps)

    def _updates(self, chosen: Sequence[WatchedParameter], recorder: Recorder, due: Due) -> None:
        on_host: list[WatchedParameter] = []
        for device, members in _by_device(chosen).items():
            if not many.pays(device):
                on_host = members
                continue
            after: list[Tensor] = [p.local for p in members]
            deltas = many.differences_(after, [self._snapshots.pending.pop(p.order) for p in members])
            self._stored.record_at_once(members, after, deltas, recorder)
            self._follow_up(members, deltas, recorder, due)
        tensors = {p.order: p.local.detach() for p in on_host}
        streamed = [p for p in on_host if self._can_stream(p, tensors[p.order], due)]
        apart = {p.order for p in streamed}
        changes: dict[int, Tensor] = {}
        for part in _cache_sized([p for p in on_host if p.order not in apart], tensors):
            after = [tensors[p.order] for p in part]
            deltas, statistics = updates.stored_(after, [self._snapshots.pending.pop(p.order) for p in part])
            self._stored.record(part, statistics, recorder)
            self._stored.record_by_role(part, after, deltas, recorder)
            self._follow_up(part, deltas, recorder, due)
            changes.update((p.order, delta) for p, delta in zip(part, deltas, strict=True) if delta.dim() == 1)
        self._stream(streamed, tensors, changes, recorder)

    def _follow_up(
        self, part: Sequence[WatchedParameter], deltas: Sequence[Tensor], recorder: Recorder, due: Due
    ) -> None:
        """What is measured of changes besides their own statistics."""
        by_order = dict(zip((p.order for p in part), deltas, strict=True))
        if self._sampling.wants("update.own", "update.own_mean"):
            self._own.take(by_order)
        self._record_spectra(part, by_order, recorder, due)

    def _record_spectra(
        self, part: Sequence[WatchedParameter], deltas: Mapping[int, Tensor], recorder: Recorder, due: Due
    ) -> None:
        if due.matrices is not None and self._sampling.wants(*WEIGHT_SPECTRA, *UPDATE_SPECTRA):
            turns = [p for p in part if due.owns_matrix(p.turn)]
            with self._work.matrices:
                turns = [p for p in turns if not self._is_kept(p, deltas.get(p.order)) and self._series.is_reported(p)]
                self.spectra.record(turns, deltas, recorder, without=self._told_whole)

    def _worked_out_by(self, reduction: Reduction | None) -> ShardedSpectra | None:
        """What works spectra of sharded matrices out with the other ranks, if anything does."""
        sides: tuple[tuple[Kind, tuple[str, ...]], ...] = (
            ("weight", (*WEIGHT_SPECTRA, "update.relative")),
            ("update", UPDATE_SPECTRA),
        )
        wanted = [kind for kind, metrics in sides if self._sampling.wants(*metrics)]
        if reduction is None or not wanted:
            return None
        every = self._sampling.every
        return ShardedSpectra(
            self._outline,
            self._series,
            reduction,
            joins_at=lambda step: due(step, every).matrices is not None,
            rank=self._speaker.rank,
            wanted=wanted,
        )

    def _is_kept(self, p: WatchedParameter, change: Tensor | None) -> bool:
        """Whether the ranks work the spectra of a parameter out together; then what this one holds of it is kept."""
        if self._together is None or p.order in self._told_whole:
            return False
        if not self.spectra.is_matrix(p) or not self._together.takes(p):
            return False
        self._together.keep(p, change)
        self.spectra.is_measured(p)
        return True

    def _keep_empty(self, parameters: Sequence[WatchedParameter], due: Due) -> None:
        """Of matrices that other ranks hold all of, this one brings that it holds nothing."""
        if self._together is None or due.matrices is None:
            return
        for p in parameters:
            is_due = not p.unsupported and not p.excluded and p.tensor.requires_grad and due.owns_matrix(p.turn)
            if is_due and p.shard is not None and p.shard.is_empty:
                self._is_kept(p, p.local.detach())

    def _can_stream(self, p: WatchedParameter, tensor: Tensor, due: Due) -> bool:
        """Whether nothing needs the difference of this weight but what one pass over it gives."""
        bias = [other for other in p.owner.parameters.values() if other is not p]
        return (
            isinstance(p.owner.module, nn.Linear)
            and p.roles == {"matrix"}
            and len(p.holders) == 1
            and p.owner.order not in self._activations.outputs
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
            bias = next((changes[other.order] for other in p.owner.parameters.values() if other is not p), None)
            probe = self._activations.probes[p.owner.order]
            column, moved = updates.streamed_linear(
                tensors[p.order], self._snapshots.pending.pop(p.order), probe.tokens, bias
            )
            self._own.put(p.owner.order, moved * probe.factor)
            statistics.append(column)
        if streamed:
            self._stored.record(streamed, torch.tensor(statistics, dtype=torch.float32, device="cpu").t(), recorder)

    def _is_whole(self, watched: WatchedModule, changed: set[str]) -> bool:
        """Whether the changes of these of its parameters are all that the round made to a module."""
        others = [p for name, p in watched.parameters.items() if name not in changed and p.tensor.requires_grad]
        return not any(p.order in self._stepped_now and p.order not in self._snapshots.pending for p in others)


def _by_device(parameters: Sequence[WatchedParameter]) -> dict[torch.device, list[WatchedParameter]]:
    found: dict[torch.device, list[WatchedParameter]] = {}
    for p in parameters:
        found.setdefault(p.local.device, []).append(p)
    return found


def _cache_sized(parameters: Sequence[WatchedParameter], tensors: Mapping[int, Tensor]) -> list[list[WatchedParameter]]:
    """Runs of whole modules of about CACHE_BYTES, so that one pass over memory serves all measures."""
    parts: list[list[WatchedParameter]] = []
    filled = CACHE_BYTES
    for p in parameters:
        if filled >= CACHE_BYTES and not (parts and parts[-1][-1].owner is p.owner):
            parts.append([])
            filled = 0
        parts[-1].append(p)
        filled += tensors[p.order].numel() * tensors[p.order].element_size()
    return parts
