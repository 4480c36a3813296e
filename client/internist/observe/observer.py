"""What happens around one training step: the clock's rounds and the root's forwards drive captures and recorder.
Nothing here raises into training."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from internist.model.outline import Outline, WatchedParameter
from internist.observe.captures import Captures
from internist.observe.clock import Clock
from internist.observe.faults import Faults
from internist.observe.groups import reference_to
from internist.observe.inline_calls import InlineCalls
from internist.observe.loss import wants_gradient
from internist.observe.mode import TrainingMode
from internist.observe.model_values import ModelValues
from internist.observe.optimizer_facts import step_of_state
from internist.observe.pacing import Pacing
from internist.observe.patience import Patience
from internist.observe.probe import ProbeReplay
from internist.observe.reduction import Reduction
from internist.observe.replays import Replays
from internist.observe.reporting import CoverageReport, Seen
from internist.observe.root import RootCalls, is_rehearsal, under_transform
from internist.observe.sampling import NOTHING, Due, Sampling
from internist.observe.speaker import Speaker
from internist.observe.taps import RAISED, Gate
from internist.observe.turns import Turns
from internist.record.recorder import Recorder
from internist.schema.wire import CoverageEntry, Directive, Series


class Observer:
    """Measures one model while it trains.

    Args:
        model: as it was watched, wrappers included; weakly held, like everything of the user's.
        read: reads the outline of the model's root.
        recorder: takes what is measured.
        optimizers: those that were named.
        sampling: what is measured, and how often.
        start_step: rounds made already.
        reads_step: whether a larger step that the optimizers' state tells when the first round begins counts instead.
        speaker: who this rank is.
        on_coverage: receives the coverage when it has changed.
        on_start: receives the first step, where the optimizers' state told a larger one.
        reduction: joins other ranks to work out what pieces do not tell; None: nothing does.
    """

    def __init__(
        self,
        model: nn.Module,
        outline: Outline,
        recorder: Recorder,
        *,
        read: Callable[[nn.Module], Outline],
        optimizers: Sequence[Any],
        sampling: Sampling,
        start_step: int,
        reads_step: bool,
        speaker: Speaker,
        on_coverage: Callable[[tuple[CoverageEntry, ...]], None],
        on_start: Callable[[int], None],
        reduction: Reduction | None = None,
    ) -> None:
        self._read, self._recorder, self._sampling, self._speaker = read, recorder, sampling, speaker
        self._on_start, self._reads_step, self._reduction = on_start, reads_step, reduction
        self._outline = outline
        self._pacing = Pacing(sampling, modules=len(outline.modules))
        self._turns = Turns(outline)
        self._faults, self._mode, self._patience = Faults(), TrainingMode(), Patience()
        self._values = ModelValues(recorder, sampling, speaker, is_watched=self._is_watched)
        self._replays = Replays(sampling)
        self._report = CoverageReport(self._faults, sampling, speaker, on_coverage)
        self.gate = Gate(work=self._pacing.work)
        self._due: Due = NOTHING
        self._compiled = False
        self._is_closed = self._is_manual = self._is_tentative = False
        self._has_forward = self._has_followed = self._took_probe = False
        self._rounds = 0
        self._rates: list[tuple[Series, float]] = []
        """Learning rates of the round under way, where it is not sampled."""
        self._entered: Captures | None = None
        """Whose attention the forward under way has entered."""
        self.on_step: Callable[[], None] = _nothing
        """Called when the recorder has something that waits."""
        self.step_ended = time.monotonic()
        self.evaluated = self.step_ended
        """When the model was last run without being trained."""

        guard = self._faults.guard
        self.before_update, self.after_update = guard(self._before_update), guard(self._after_update)
        self._begin_safely, self._end_safely = guard(self._forward_begins), guard(self._forward_ends)
        self._close_safely, self._arm_safely = guard(self._close_round), guard(self.arm)
        self._instead_safely = guard(InlineCalls.instead)
        self._close_manual_safely = guard(self._after_manual)
        self._captures = self._captured(outline)
        self._root = RootCalls(model, outline.root, begins=self._begin_safely, ends=self._end_safely)
        guard(self._root.refresh)()
        self.clock = Clock(
            start=start_step, optimizers=optimizers, owns=self._owns, told=self, ignores=self._is_replaying
        )
        self._captures.parameters.note_groups(optimizers)
        self._optimizers = [reference_to(optimizer) for optimizer in optimizers]
        self._arm_safely(start_step)

    # ---- what the monitor calls ------------------------------------------------------------------------------------

    @property
    def log_step(self) -> int:
        """The step that a scalar logged now belongs to: the round under way, or the last one if no forward has begun
        since."""
        under_way = self._has_forward or self.clock.updating or not self._rounds
        return self.clock.step if under_way else self.clock.step - 1

    @property
    def has_model(self) -> bool:
        """Whether the model is still there: its user may have let go of it."""
        return self._outline.reference() is not None

    @property
    def probe(self) -> ProbeReplay:
        """The replay of the probe."""
        return self._captures.probe

    def count_work(self, seconds: Callable[[], float]) -> None:
        """Have what the monitor's other threads have worked so far count as spent."""
        self._pacing.behind_s = seconds

    @property
    def rounds(self) -> int:
        """How many rounds of optimizer steps have ended since it was made."""
        return self._rounds

    @property
    def powers(self) -> tuple[int, ...]:
        """By how much this rank's own costs ask to thin sampling, in powers of two."""
        return self._pacing.powers

    def add_optimizers(self, optimizers: Sequence[Any]) -> None:
        """Optimizers that were named later."""
        self.clock.add(optimizers)
        self._optimizers += [reference_to(optimizer) for optimizer in optimizers]
        self._captures.parameters.note_groups(self._named())

    def manual_step(self, step: int | None) -> None:
        """The user's own step call: the round is over; updates are differences to the snapshot taken when its forward
        began."""
        self._is_manual = True
        self._close_manual_safely()
        self.clock.end_round(step)

    def take_directives(self, directives: Sequence[Directive]) -> None:
        """Sample as the server wishes."""
        self._pacing.take_directives(directives)

    def pause_begins(self) -> None:
        """The round under way holds something else than training: how long it takes says nothing of its sample."""
        self._pacing.work.interrupt()

    def coverage(self) -> tuple[CoverageEntry, ...]:
        """What became of every metric family of every watched module and parameter."""
        return self._report.entries(self._outline, self._captures, self._seen())

    def close(self) -> None:
        """Take every tap away, put everything back, and keep nothing of the user's. At any moment, also in the middle
        of a forward or of an optimizer's step. A round that waited for the next forward to end it has ended."""
        if self.clock.updating and not self._is_closed and not self.clock.in_step:
            self._captures.probe.reset()  # nothing runs the model again now
            self.clock.end_round()
        self._is_closed = True
        self._due = NOTHING
        self.gate.on = False
        self.clock.close()
        self._optimizers.clear()
        self._root.remove()
        self._values.remove()
        self._captures.remove()
        self._captures.parameters.later.forget(self._recorder)
        self._captures.reset()
        self._captures.forget()
        if self._reduction is not None:
            self._reduction.close()
        self._recorder.discard_step()

    # ---- forward ---------------------------------------------------------------------------------------------------

    def _forward_begins(self, args: Any, kwargs: Any) -> None:
        if self.gate.heavy and self._captures.attention.installed:
            self._captures.attention.enter()
            self._entered = self._captures
        if self._captures.probe.running or self._is_closed or under_transform():
            return
        root = self._outline.root
        gradients = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        trains = gradients and not is_rehearsal()
        answer = self._mode.begins(in_training_mode=root.training, gradients=trains)
        self._is_tentative = answer == "perhaps"
        if answer == "no":
            self.gate.on = False
            self.evaluated = time.monotonic()
            self.pause_begins()
            return
        if self._mode.mistaken:
            self._captures.activations.reset()
            self._captures.probe.reset()
        self._patience.forward_begins(self.clock.step, is_updating=self.clock.updating)
        self.clock.forward_begins()
        self._recorder.step_under_way = self.clock.step
        self._has_forward = True
        if self._recorder.holds_step:
            self.on_step()
        self._captures.parameters.later.forward_begins(self.clock.step)
        if not self._due.light:
            return
        with self._pacing.work.light:
            self._follow()
            self.gate.in_root = True
            self.gate.on = not self._compiled
            if self._lacks_optimizer():
                self._snapshot_manual()
            self._captures.activations.mark()
            self._captures.attention.mark()
            if self._wants_replay() and not self._captures.probe.ready:
                self._took_probe = True
                with torch.no_grad():
                    self._captures.probe.take(args, kwargs)
            if self.clock.in_step:  # a closure: what it begins with are the weights before the step
                self._replay_before()

    def _forward_ends(self, output: Any) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            entered.attention.leave()
        if self._captures.probe.running or self._is_closed or under_transform():
            return
        later = self._captures.parameters.later
        if later.is_looking:
            with self._pacing.work.light:
                later.forward_ends(self._recorder, is_whole=output is not RAISED)
            self.on_step()
        was_training = self.gate.in_root or (not self._due.light and torch.is_grad_enabled() and self._has_forward)
        self.gate.in_root = False
        self.gate.stack.clear()
        self.gate.on = self._due.light and not self._compiled
        took, self._took_probe = self._took_probe, False
        if output is RAISED and was_training and self._due.light:
            self._captures.activations.roll_back()
            self._captures.attention.roll_back()
            if took and not self._replays.has_run:
                self._captures.probe.reset()
        if not was_training or output is None or output is RAISED:
            return
        if self._due.light and self._lacks_optimizer():
            with self._pacing.work.light:
                self._replay_before()  # there may be no later moment at which the weights are those before the step
        if self._is_tentative and not wants_gradient(output):
            self._captures.activations.reset()
            return
        self._values.take(output)

    # ---- optimizer -------------------------------------------------------------------------------------------------

    def round_ended(self, step: int) -> None:
        """The round is over: its frame is closed, and the next step prepared."""
        self._close_safely(step)
        self._arm_safely(self.clock.step)

    def _before_update(self, optimizer: Any, *, closure: bool) -> None:
        if self._reads_step and not self._rounds and not self.clock.updating:
            self._read_step(optimizer)
        if not self._due.light:
            return
        captures = self._captures
        with self._pacing.work.light, torch.no_grad():
            if not self.clock.updating:
                self._replay_before()
            owned = captures.parameters.owned_by(optimizer)
            if not closure:
                captures.parameters.gradients(owned, optimizer, self._recorder, self._due)
            captures.parameters.snapshot(self._in_turn(owned), self.clock.step, self._due)
            captures.parameters.request_whole(owned, optimizer, self._due)
            if self._due.heavy:
                captures.optimizers.request(optimizer)

    def _after_update(self, optimizer: Any, *, closure: bool) -> None:
        if not self._due.light:
            waited = self._recorder.busy
            self._rates += self._captures.parameters.rates(optimizer, self._recorder)
            if self._recorder.busy and not waited:
                self.on_step()
            return
        captures = self._captures
        with self._pacing.work.light, torch.no_grad():
            owned = captures.parameters.owned_by(optimizer)
            if closure:
                captures.parameters.gradients(owned, optimizer, self._recorder, self._due)
            captures.parameters.updates(owned, self._recorder, self._due, optimizer)
            captures.parameters.groups(self._recorder, optimizer)
            captures.optimizers.pull(optimizer, self._recorder, self._due)

    def _read_step(self, optimizer: Any) -> None:
        """A state that was loaded after the model was watched knows how many steps were made."""
        found = step_of_state([optimizer, *self._named()])
        if found is not None and found > self.clock.step:
            self.clock.step = found
            self._recorder.step_under_way = found
            self._on_start(found)

    def _replay_before(self) -> None:
        work = self._pacing.work
        with work.heavy if self._due.heavy else work.light:
            self._replays.run(self._captures, self._due, is_compiled=self._compiled)

    def _wants_replay(self) -> bool:
        return any(self._replays.wanted(self._captures, self._due, is_compiled=self._compiled))

    def _call_of(self, module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        """What makes a call of a compiled model: a graph that measures, in the training forwards of a sampled step."""
        inline = self._captures.activations.inline
        if inline is None or not self.gate.in_root or self._captures.probe.running or self._is_closed:
            return call
        found: Callable[..., Any] | None = self._instead_safely(inline, module, call)
        return call if found is None else found

    def _lacks_optimizer(self) -> bool:
        """Whether the run's updates may be made without an optimizer that is known here."""
        return self._is_manual or not (self._optimizers or self._rounds)

    def _snapshot_manual(self) -> None:
        with torch.no_grad():
            parameters = self._captures.parameters
            parameters.snapshot(self._in_turn(parameters.all()), self.clock.step, self._due)

    def _after_manual(self) -> None:
        if not self._due.light:
            return
        parameters = self._captures.parameters
        owned: list[WatchedParameter] = parameters.all()
        with self._pacing.work.light, torch.no_grad():
            parameters.gradients(owned, None, self._recorder, self._due)
            parameters.updates(owned, self._recorder, self._due)

    # ---- end of a round --------------------------------------------------------------------------------------------

    def _close_round(self, step: int) -> None:
        with self._pacing.work.light:
            self._rounds += 1
            self._patience.round_ended()
            self._has_forward = False
            self._mode.round_ended()
            if self._values.round_ended(step, is_sampled=self._due.light):
                self.on_step()
            if self._due.light:
                self.gate.on = False
                with torch.no_grad():
                    self._collect(step)
            else:
                self._values.leave_trail(step, self._rates)
            self._captures.parameters.join_ranks(step, self._recorder)
            self._rates = []
            if not self._root.seen:
                self._root.search()
        self._pacing.round_ended(self._due)
        self.step_ended = time.monotonic()

    def _collect(self, step: int) -> None:
        captures, recorder = self._captures, self._recorder
        if self._due.heavy and not captures.probe.unsupported:
            with self._pacing.work.heavy:
                captures.probe.after(recorder)
        captures.parameters.finish(recorder, step)
        if self._due.heavy:
            with self._pacing.work.heavy:
                captures.replicas.record(captures.parameters.all, recorder)
        captures.optimizers.finish(recorder, self._due, grouped=captures.parameters.grouped)
        captures.activations.collect(recorder, sampled=self._compiled)
        captures.attention.collect(recorder, sampled=self._compiled)
        self._report.step_ended(self._outline, captures, self._due, self._seen())
        of_monitor = *self._pacing.values(step), ("monitor.overhead_ms", self._pacing.work.host.total * 1e3)
        self._values.record(of_monitor, coverage=self._report.share)
        derive = [
            captures.branches.derive() if self._due.matrices is not None else None,
            captures.parameters.epsilons.derive() if self._due.heavy else None,
        ]
        recorder.close_step(step, [one for one in derive if one is not None], more=captures.parameters.to_come)
        self.on_step()

    def arm(self, step: int, wish: Due | None = None) -> None:
        """Prepare for a step: from here to its end every tap sees the same decision (`wish`, or what the cadence
        says)."""
        if self._is_closed:
            return
        self._captures.reset()
        self._captures.parameters.begin(step)
        self._recorder.discard_step()
        self._replays.has_run = False
        self._due = self._pacing.decide(step) if wish is None else wish
        self.gate.waiting = self._turns.waiting(self._due)
        self._values.arm(is_sampled=self._due.light)
        self._has_followed = False
        if self._due.light:
            self._root.instead = self._call_of if self._sampling.inline else None
            self._root.refresh()
            self._compiled = self._root.is_compiled()
            if not self._root.seen:  # else its next forward looks, which comes later
                self._follow()
                self._has_followed = False
            first = next((p.present() for p in self._outline.parameters), None)
            self._pacing.on_device = first is not None and first.is_cuda
        if self._due.light and not self._compiled:
            self._captures.activations.install()
        else:
            self._captures.activations.remove()
        self.gate.heavy = self._due.heavy
        self.gate.on = self._due.light and not self._compiled
        self.gate.in_root = False
        if self._due.heavy and not self._compiled:
            self._captures.attention.install()
        else:
            self._captures.attention.remove()
        self._pacing.begin_round(self._due)

    # ---- private ---------------------------------------------------------------------------------------------------

    def _in_turn(self, parameters: Sequence[WatchedParameter]) -> Sequence[WatchedParameter]:
        """Those whose modules do not wait for their turn, or whose spectrum is due."""
        waiting, sample = self.gate.waiting, self._due
        if not waiting:
            return parameters
        return [p for p in parameters if p.owner.order not in waiting or sample.owns_matrix(p.turn)]

    def _captured(self, outline: Outline) -> Captures:
        return Captures(
            outline,
            self.gate,
            book=self._recorder.book,
            faults=self._faults,
            sampling=self._sampling,
            speaker=self._speaker,
            reduction=self._reduction,
        )

    def _follow(self) -> None:
        """The model may have changed since the last sample: blocks appended, heads swapped, parameters replaced by
        others of another kind."""
        if self._has_followed:
            return
        self._has_followed = True
        root = self._outline.root
        if self._outline.is_current:
            self._captures.parameters.refresh()
            return
        were_installed = self._captures.activations.installed, self._captures.attention.installed
        self._captures.parameters.later.forget(self._recorder)
        self._captures.remove()
        self._outline = self._read(root)
        self._turns = Turns(self._outline)
        self.gate.waiting = self._turns.waiting(self._due)
        self._report.outlined()
        self._recorder.book.forget_layouts()
        self._captures = self._captured(self._outline)
        self._captures.parameters.begin(self.clock.step)
        self._captures.parameters.note_groups(self._named())
        self.clock.outlined()
        if were_installed[0]:
            self._captures.activations.install()
        if were_installed[1]:
            self._captures.attention.install()
            if self._entered is not None:
                self._entered.attention.leave()
                self._captures.attention.enter()
                self._entered = self._captures

    def _named(self) -> list[Any]:
        """The optimizers that were named and are still there."""
        return [found for reference in self._optimizers if (found := reference()) is not None]

    def _is_replaying(self) -> bool:
        return self._captures.probe.running

    def _is_watched(self, tensor: Tensor) -> bool:
        return self._captures.parameters.is_watched(tensor)

    def _owns(self, optimizer: Any) -> bool:
        return bool(self._captures.parameters.owned_by(optimizer))

    def _seen(self) -> Seen:
        has_loss = self._values.has_loss
        return Seen(self._rounds, self._compiled, self._root.seen, has_loss, self._pacing.in_words())


def _nothing() -> None:
    """Nobody listens yet."""
