"""What happens around one training step: wires the clock, the captures and the recorder. Nothing here raises into
training."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from internist.model.outline import Outline, WatchedParameter
from internist.observe.attention import AttentionCapture
from internist.observe.clipping import ClippingCapture
from internist.observe.clock import Clock
from internist.observe.coverage import coverage, coverage_share
from internist.observe.modules import ActivationCapture
from internist.observe.optimizers import OptimizerCapture
from internist.observe.parameters import ParameterCapture
from internist.observe.probe import ProbeReplay, replay_obstacle
from internist.observe.root import RootHooks, is_compiled
from internist.observe.sampling import HEAVY_EVERY, NOTHING, Due, Governor, due
from internist.observe.taps import Gate
from internist.record.recorder import Recorder, Spec
from internist.schema.wire import CoverageEntry, Directive, Facts

log = logging.getLogger("internist")

FAULTS_TOLERATED = 3
"""Exceptions in one of the observer's own callbacks before that callback is switched off."""

F = TypeVar("F", bound=Callable[..., Any])


class Observer:
    """Measures one model while it trains."""

    def __init__(
        self,
        model: nn.Module,
        outline: Outline,
        recorder: Recorder,
        *,
        optimizers: Sequence[Any],
        every: int,
        start_step: int,
        wanted: Callable[[str], bool],
        max_overhead: float,
        rank: int,
        world_size: int,
        on_coverage: Callable[[tuple[CoverageEntry, ...]], None],
    ) -> None:
        self._model, self._outline, self._recorder = model, outline, recorder
        self._every, self._wanted, self._rank = every, wanted, rank
        self._on_coverage = on_coverage
        self._governor = Governor(max_overhead)
        self._dense_until = -1
        self._due: Due = NOTHING
        self._faults: dict[str, int] = {}
        self._reasons: dict[tuple[str, str], str] = {}
        self._seconds = 0.0
        self._round_began = time.perf_counter()
        self._coverage_key: tuple[int, ...] = ()
        """What coverage depends on, as it was when it was last worked out."""
        self._coverage_share: float | None = None
        self._forward_seen = False
        self._auto_loss: Tensor | None = None
        self._auto_losses = 0
        self._places: dict[int, int] = {}
        self._sampled_steps = 0
        self._rounds = 0
        self._manual = False
        self.on_step: Callable[[], None] = _nothing
        """Called when a sampled step has been handed to the recorder."""
        self._replayed = False
        self.step_ended = time.monotonic()
        self._monitor_specs: dict[str, Spec] = {}

        self.gate = Gate()
        heavy_every = every * HEAVY_EVERY
        self._compiled = is_compiled(model, outline.root)
        self.activations = ActivationCapture(
            outline,
            self.gate,
            fault=self.fault,
            wanted=wanted,
            every=every,
            heavy_every=heavy_every,
            world_size=world_size,
        )
        self.attention = AttentionCapture(self.gate, fault=self.fault, wanted=wanted, heavy_every=heavy_every)
        self.parameters = ParameterCapture(
            outline,
            self.activations,
            fault=self.fault,
            wanted=wanted,
            every=every,
            heavy_every=heavy_every,
            reports_parameters=rank == 0,
        )
        self.optimizers = OptimizerCapture(
            outline,
            fault=self.fault,
            wanted=wanted,
            every=every,
            heavy_every=heavy_every,
            reports_routing=rank == 0,
        )
        self.probe = ProbeReplay(outline, self.gate, self.activations, heavy_every=heavy_every)
        self.probe.unsupported = replay_obstacle(outline.root)
        watched = {id(parameter.tensor) for parameter in outline.parameters}
        self._clipping = ClippingCapture(lambda tensor: id(tensor) in watched)
        self._root = RootHooks(
            model, outline.root, begins=self._guard(self._forward_begins), ends=self._guard(self._forward_ends)
        )
        self.clock = Clock(
            start=start_step,
            optimizers=optimizers,
            owns=lambda optimizer: bool(self.parameters.owned_by(optimizer)),
            before_update=self._guard(self._before_update),
            after_update=self._guard(self._after_update),
            round_ended=self._round_ended,
        )
        self.parameters.note_groups(optimizers)
        self.arm(start_step)

    # ---- what the monitor calls ------------------------------------------------------------------------------------

    @property
    def log_step(self) -> int:
        """The step that a scalar logged now belongs to: the round under way, or the last one if no forward has begun
        since."""
        under_way = self._forward_seen or self.clock.updating or not self._rounds
        return self.clock.step if under_way else self.clock.step - 1

    def manual_step(self, step: int | None) -> None:
        """The user's own step call: the round is over; updates are differences to the snapshot taken when its forward
        began."""
        self._manual = True
        self._guard(self._after_manual)()
        self.clock.end_round(step)

    def obey(self, directives: Sequence[Directive]) -> None:
        """Sample densely as the server wishes."""
        for directive in directives:
            if directive.until_step > self._dense_until:
                self._dense_until = directive.until_step

    def coverage(self) -> tuple[CoverageEntry, ...]:
        """What became of every watched module and parameter."""
        return coverage(
            self._outline,
            measured_modules=self.activations.measured,
            measured_parameters=self.parameters.measured,
            stepped=self.parameters.stepped,
            reasons=self._reasons,
            compiled=self._compiled or not self._root.seen,
            sampled=self._sampled_steps > 0,
            replay_obstacle=self.probe.unsupported,
        )

    def close(self) -> None:
        """Remove every hook and put everything back."""
        self.gate.on = False
        self.attention.remove()
        self.clock.close()
        self._root.remove()
        self._clipping.remove()
        self.activations.remove()

    def fault(self, kind: str, subject: str, error: BaseException) -> None:
        """Something could not be measured: say it once, remember why, go on."""
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        if (kind, subject) not in self._reasons:
            self._reasons[kind, subject] = reason
            log.warning(
                "internist: %s %s is not measured from here on: %s (training is not affected)", kind, subject, reason
            )

    # ---- forward ---------------------------------------------------------------------------------------------------

    def _forward_begins(self, args: Any, kwargs: Any) -> None:
        if self.probe.running:
            return
        root = self._outline.root
        training = root.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if not training:
            self.gate.on = False
            return
        self.clock.forward_begins()
        self._recorder.release()
        self._forward_seen = True
        if not self._due.light:
            return
        began = time.perf_counter()
        self.gate.in_root = True
        self.gate.on = not self._compiled
        if self._manual or not self.clock.seen:
            self._snapshot_manual()
        if (self._due.heavy or self._compiled) and not self.probe.ready:
            with torch.no_grad():
                self.probe.take(args, kwargs)
        self._seconds += time.perf_counter() - began

    def _forward_ends(self, output: Any) -> None:
        if self.probe.running:
            return
        was_training = self.gate.in_root or (self.gate.on or not self._due.light)
        self.gate.in_root = False
        self.gate.stack.clear()
        self.gate.on = self._due.light and not self._compiled
        root = self._outline.root
        if was_training and root.training and torch.is_grad_enabled():
            loss = loss_of(output)
            if loss is not None:
                value = loss.detach().float().reshape(-1)[0].clone()
                self._auto_loss = value if self._auto_loss is None else self._auto_loss + value
                self._auto_losses += 1

    # ---- optimizer -------------------------------------------------------------------------------------------------

    def _before_update(self, optimizer: Any, closure: bool) -> None:
        if not self._due.light:
            return
        began = time.perf_counter()
        with torch.no_grad():
            if not self.clock.updating and not self._replayed:
                self._replay_before()
            owned = self.parameters.owned_by(optimizer)
            if not closure:
                self.parameters.gradients(owned, optimizer, self._recorder)
            self.parameters.snapshot(owned, self.clock.step, self._due)
            if self._due.heavy:
                self.optimizers.request(optimizer)
        self._seconds += time.perf_counter() - began

    def _after_update(self, optimizer: Any, closure: bool) -> None:
        place = self._places.setdefault(id(optimizer), len(self._places))
        if not self._due.light:
            return
        began = time.perf_counter()
        with torch.no_grad():
            owned = self.parameters.owned_by(optimizer)
            if closure:
                self.parameters.gradients(owned, optimizer, self._recorder)
            self.parameters.updates(owned, self._recorder, self._due)
            self.parameters.groups(self._recorder, optimizer, place)
            self.optimizers.pull(optimizer, self._recorder, self._due)
        self._seconds += time.perf_counter() - began

    def _replay_before(self) -> None:
        self._replayed = True
        features = self._due.heavy and (self._wanted("update.feature") or self._wanted("update.feature_mean"))
        if not self.probe.ready or self.probe.unsupported or not (features or self._compiled):
            return
        try:
            if self._compiled and self._due.heavy:
                self.attention.install()
            self.probe.before(features=features, activations=self._compiled)
        except Exception as error:
            self.probe.reset()
            self.probe.unsupported = f"{type(error).__name__}: {error}"[:300]
            self.fault("model", "probe replay", error)
        finally:
            if self._compiled:
                self.attention.remove()

    def _snapshot_manual(self) -> None:
        with torch.no_grad():
            self.parameters.snapshot(self._outline.parameters, self.clock.step, self._due)

    def _after_manual(self) -> None:
        if not self._due.light:
            return
        owned: list[WatchedParameter] = [p for p in self._outline.parameters if not p.unsupported and not p.excluded]
        with torch.no_grad():
            self.parameters.gradients(owned, None, self._recorder)
            self.parameters.updates(owned, self._recorder, self._due)

    # ---- end of a round --------------------------------------------------------------------------------------------

    def _round_ended(self, step: int) -> None:
        self._guard(self._close_round)(step)
        self._guard(self.arm)(step + 1)

    def _close_round(self, step: int) -> None:
        began = time.perf_counter()
        self._rounds += 1
        self._recorder.release()
        self._forward_seen = False
        if self._auto_loss is not None:
            if not self._recorder.is_logged(step, "loss"):
                self._recorder.log(step, "loss", host_or_device(self._auto_loss / self._auto_losses))
            self._auto_loss, self._auto_losses = None, 0
        norm = self._clipping.take()
        if self._due.light:
            self.gate.on = False
            if norm is not None and self._rank == 0 and self._wanted("gradient.norm_before_clip"):
                self._recorder.add([self._monitor_spec("gradient.norm_before_clip")], norm)
            with torch.no_grad():
                self._collect(step, began)
        now = time.perf_counter()
        self._governor.observe(step, self._seconds + self.activations.seconds + (now - began), now - self._round_began)
        self._seconds = self.activations.seconds = 0.0
        self._round_began = now
        self.step_ended = time.monotonic()

    def _collect(self, step: int, began: float) -> None:
        self._sampled_steps += 1
        if self._due.heavy and not self.probe.unsupported:
            try:
                self.probe.after(self._recorder, self._wanted)
            except Exception as error:
                self.probe.unsupported = f"{type(error).__name__}: {error}"[:300]
                self.fault("model", "probe replay", error)
        self.parameters.finish(self._recorder)
        self.optimizers.finish(self._recorder, self._due)
        self.activations.collect(self._recorder, sampled=self._compiled)
        self.attention.collect(self._recorder, sampled=self._compiled)
        known = len(self.activations.measured), len(self.parameters.measured), len(self.parameters.stepped)
        if (*known, len(self._reasons), self._compiled, self._root.seen) != self._coverage_key:
            self._coverage_key = (*known, len(self._reasons), self._compiled, self._root.seen)
            entries = self.coverage()
            self._coverage_share = coverage_share(entries)
            self._on_coverage(entries)
        if self._rank == 0 and self._coverage_share is not None:
            self._add_host("monitor.coverage", self._coverage_share)
        self._add_host("monitor.dropped", float(self._recorder.dropped))
        spent = self._seconds + self.activations.seconds + (time.perf_counter() - began)
        self._add_host("monitor.overhead_ms", spent * 1e3)
        self._recorder.close_step(step)
        self.on_step()

    def arm(self, step: int, wish: Due | None = None) -> None:
        """Prepare for a step: from here to its end every hook sees the same decision (`wish`, or what the cadence
        says)."""
        self.activations.reset()
        self.attention.reset()
        self.parameters.reset()
        self.probe.reset()
        self._replayed = False
        self._due = wish or due(step, self._every, power=self._governor.power, dense_until=self._dense_until)
        if self._due.light:
            self._compiled = is_compiled(self._model, self._outline.root)
            self._root.refresh()
        if self._root.seen and not self._compiled:
            if self._due.light:
                self.activations.install()
            else:
                self.activations.remove()
        self.gate.heavy = self._due.heavy
        self.gate.on = self._due.light and not self._compiled
        self.gate.in_root = False
        if self._due.heavy and not self._compiled:
            self.attention.install()
        else:
            self.attention.remove()

    # ---- private ---------------------------------------------------------------------------------------------------

    def _add_host(self, metric: str, value: float) -> None:
        if self._wanted(metric):
            self._recorder.add_host(self._monitor_spec(metric), value)

    def _monitor_spec(self, metric: str) -> Spec:
        if metric not in self._monitor_specs:
            facts = Facts(method="as given", cadence=self._every)
            self._monitor_specs[metric] = Spec(metric, "model", "model", None, "exact", facts)
        return self._monitor_specs[metric]

    def _guard(self, function: F) -> F:
        """The function, never raising: a fault is logged, the step's measurements are dropped, training goes on."""
        name = function.__name__.strip("_")

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self._faults.get(name, 0) >= FAULTS_TOLERATED:
                return None
            try:
                return function(*args, **kwargs)
            except Exception as error:
                self._faults[name] = self._faults.get(name, 0) + 1
                log.debug("internist: fault in %s", name, exc_info=True)
                self.fault("monitor", name, error)
                return None

        return guarded  # type: ignore[return-value]


def _nothing() -> None:
    """Nobody listens yet."""


def loss_of(output: Any) -> Tensor | None:
    """The `loss` of what a root module returned, where it is a one-element floating tensor."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, Tensor) and loss.is_floating_point() and loss.numel() == 1:
        return loss
    return None


def host_or_device(value: Tensor) -> float | Tensor:
    """A one-element tensor as a number if that needs no waiting, else a copy that stays on its device."""
    value = value.detach()
    return float(value.item()) if value.device.type == "cpu" else value.reshape(-1)[0].float().clone()
