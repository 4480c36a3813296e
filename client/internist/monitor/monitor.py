"""The monitor of one model: wires the observer, the recorder, the spool and the sender, and takes the user's calls.
None of these raises into training."""

import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
from torch import nn

import internist
from internist.errors import ConfigurationError
from internist.model.outline import outline
from internist.model.roles import unwrap
from internist.monitor.apart import apart
from internist.monitor.axes import whole_number
from internist.monitor.ending import outcome_of
from internist.monitor.finishing import Finishing, Stage
from internist.monitor.identity import identify, own_store
from internist.monitor.logs import Logs
from internist.monitor.options import Options, flatten
from internist.monitor.pauses import Pause, Pauses
from internist.monitor.refusals import check_choice
from internist.observe.coverage import departed
from internist.observe.observer import Observer
from internist.observe.optimizer_facts import step_of_state
from internist.observe.reduction import Reduction
from internist.observe.routing import routing
from internist.observe.sampling import Sampling
from internist.observe.speaker import Speaker
from internist.record.recorder import POLL_S, Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import (
    MAX_NAME_LENGTH,
    MAX_TEXT_LENGTH,
    VERSION,
    CoverageEntry,
    Directive,
    Finish,
    Note,
    Outcome,
    Outline,
    RunStart,
)
from internist.ship.connection import Connection
from internist.ship.moments import now_ms
from internist.ship.sender import Sender
from internist.ship.spool import Spool

_WATCHED = itertools.count()
"""Models that this process has watched: ranks watch them in the same order."""
_LOG = logging.getLogger("internist")

FINISH_TIMEOUT_S = 10.0
"""How long `finish` waits for the server to take the last frames; what is left stays in the spool."""

Level = Literal["info", "warning", "error"]
T = TypeVar("T")
_MOST_COMPLAINTS = 100
_LEVELS: dict[str, Level] = {"info": "info", "warn": "warning", "warning": "warning", "error": "error"}


class Monitor:
    """A model being watched. Made by `internist.watch`."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any],
        options: Options,
        rename: Any,
        output: str | None,
        run: str | None,
    ) -> None:
        self._options = options
        root = unwrap(model)
        self._complained: set[str] = set()
        self._observer: Observer | None = None
        self._spool: Spool | None = None
        self._sender: Sender | None = None
        self._recorder: Recorder | None = None
        self._logs: Logs | None = None
        self._last_coverage: tuple[CoverageEntry, ...] | None = None
        self._told: tuple[CoverageEntry, ...] = ()
        self._pauses = Pauses()
        self._finishing = Finishing(self._stages(), self._release, self._drop)
        self.on_finish: Callable[[Monitor], None] = _nothing
        """Called once, when the monitor is finished."""
        self.run = ""
        """The run's id; empty if disabled."""
        if options.mode == "disabled":
            return

        who = identify(id=run, resume=options.resume, directory=options.directory, environ=os.environ)
        turn = next(_WATCHED)
        own = apart(model, root, who, turn, rename)
        read = partial(
            outline,
            include=options.include,
            exclude=options.exclude,
            output=output,
            rename=own.renamed(rename),
            first_place=own.place,
        )
        start_step = options.step if options.step is not None else (step_of_state(optimizers) or 0)
        try:
            plan = read(root)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        check_choice(plan, include=options.include, exclude=options.exclude)
        name = options.name or f"{type(root).__name__}-{who.run[:6]}"
        start = RunStart(
            version=VERSION,
            run=who.run,
            attempt=who.attempt,
            rank=who.rank,
            world_size=who.world_size,
            project=options.project,
            name=name,
            every=options.every,
            started_at_ms=now_ms(),
            start_step=start_step,
            parent=who.parent,
            mesh=dict(who.mesh),
            config=options.config,
            parametrization=options.parametrization,
            optimizers=tuple(type(optimizer).__name__ for optimizer in optimizers),
            routing=routing(optimizers, plan),
            modules=plan.describe(),
            reference=options.reference,
            trajectory=options.trajectory,
            client=f"internist {internist.__version__}, torch {torch.__version__}",
            thresholds=options.thresholds,
        )
        self.run = who.run
        connection = None if options.mode == "offline" else Connection(options.server, options.token)
        if connection is not None and options.mode == "online":
            connection.start_run(start)
        self._spool = Spool(options.directory, start)
        sampling = Sampling(
            options.every,
            options.metrics,
            options.max_overhead,
            options.replay,
            options.compile == "inline",
            options.schedule,
        )
        self._recorder = Recorder(self._spool, SeriesBook(sampling.wants))
        meeting = f"internist/spectra/{who.run}/{who.attempt}/{turn}"
        reduction = Reduction(own_store, meeting, who.rank) if options.reduces and who.world_size > 1 else None
        self._observer = Observer(
            model,
            plan,
            self._recorder,
            read=read,
            optimizers=optimizers,
            sampling=sampling,
            start_step=start_step,
            reads_step=options.step is None,
            speaker=Speaker(
                who.rank,
                who.world_size,
                reports_replicated=own.is_first,
                apart=own.modules,
                are_replicas=who.world_size > 1 and isinstance(model, nn.parallel.DistributedDataParallel),
                stage=own.stage,
            ),
            on_coverage=self._send_coverage,
            on_start=self._restart,
            reduction=reduction,
        )
        self._tells_coverage = own.is_first or bool(own.modules)
        self._sender = sender = Sender(
            self._spool,
            start,
            connection,
            drain=self._drain,
            progress=self._progress,
            pause=lambda: self._pauses.reason(steps=self.steps),
            on_directives=self._direct,
            powers=self._powers,
        )
        self._logs = Logs(self._observer, self._recorder, self._complain)
        sender.start()
        self._observer.on_step = sender.wake
        self._observer.count_work(lambda: sender.worked_s + (reduction.worked_s if reduction is not None else 0.0))

    # ---- the user's calls ------------------------------------------------------------------------------------------

    def log(
        self, values: Mapping[str, Any] | None = None, /, *, step: Any = None, axis: str | None = None, **named: Any
    ) -> None:
        """Record scalars: `log(loss=loss)` or `log({"val/loss": 2.1})`.

        Tensors stay on their device until the next shipment. Without `step` they belong to the step under way, or to
        the one just made if no forward has begun since. What is no number is left out and said once.

        Args:
            values: scalars by name.
            step: the optimizer step they belong to, if it is at most one away from the step under way; any other number
                is a position on an axis of its own: it is recorded as a scalar beside them, and they belong to the step
                under way.
            axis: what `step` counts, if not optimizer steps: `tokens`, `epoch`, any name. The position is the scalar of
                that name, else `step`.
            named: more scalars.
        """
        if self._logs is not None and not self.is_finished:
            waits = self._recorder is not None and self._recorder.busy
            self._quietly("log", lambda logs: logs.log(values, named, step=step, axis=axis), self._logs)
            if self._sender is not None and not waits:
                self._sender.wake()

    def step(self, n: Any = None) -> None:
        """The step is over: for loops without a torch optimizer. With a number, that step's number."""
        if self._observer is not None and not self.is_finished:
            self._quietly("step", lambda observer: self._step(observer, n), self._observer)

    def alert(self, title: str, text: str = "", level: str = "warning") -> None:
        """Raise an alert of one's own. A level other than info, warning, error is said once: a warning."""
        if self._spool is not None and not self.is_finished:
            self._quietly("alert", lambda spool: self._note(spool, title, text, level), self._spool)

    def configure(self, values: Any) -> None:
        """Add to the run's configuration: a mapping, a namespace or a dataclass instance. What is known of it stays."""
        if self._spool is not None and not self.is_finished:
            self._quietly("config", lambda spool: self._configure(spool, values), self._spool)

    def pause(self, reason: str = "") -> Pause:
        """Say that no step is made for a while: a long checkpoint, a rollout, a wait for data. Until the `with` block
        that it is used in ends, or the next step is made, the run is not called stalled. Evaluation of the watched
        model needs no word: it is seen.

            with monitor.pause("checkpoint"):
                save(model)

        Args:
            reason: what for, as the board shows it.
        """
        pause = self._pauses.begin(reason, steps=self.steps)
        if self._observer is not None:
            self._observer.pause_begins()
        if self._sender is not None and not self.is_finished:
            self._sender.tell_life()
        return pause

    def add_optimizers(self, optimizers: Sequence[Any]) -> None:
        """Follow optimizers that were made after the model was watched."""
        if self._observer is not None and not self.is_finished:
            self._quietly("watch", lambda observer: observer.add_optimizers(list(optimizers)), self._observer)

    def coverage(self) -> tuple[CoverageEntry, ...]:
        """What became of every metric family of every watched module and parameter, and of the run: measured, silent,
        idle, frozen, not captured, unsupported, excluded. Of a finished monitor: as it was at the end."""
        if self._last_coverage is not None:
            return self._last_coverage
        if self._observer is None:
            return ()
        return self._observer.coverage() if self._observer.has_model else self._told

    @property
    def is_finished(self) -> bool:
        """Whether the monitor has ended, or is about to: it takes nothing more."""
        return self._finishing.has_begun

    @property
    def steps(self) -> int:
        """How many optimizer steps it has seen."""
        return 0 if self._observer is None else self._observer.rounds

    @property
    def is_released(self) -> bool:
        """Whether nothing of it is left in the model."""
        return self._finishing.is_released

    @property
    def url(self) -> str | None:
        """Address of the run's page on the board; None if offline or disabled."""
        if self._options.mode in ("offline", "disabled"):
            return None
        known = self._sender.url if self._sender is not None else None
        return known or f"{self._options.server}/runs/{self.run}"

    def reader(self) -> Connection | None:
        """A connection of its own to the run's server, for another thread; None if offline or disabled."""
        if self._options.mode in ("offline", "disabled"):
            return None
        return Connection(self._options.server, self._options.token)

    @property
    def directory(self) -> Path | None:
        """Where this rank's frames are kept; None if disabled."""
        return None if self._spool is None else self._spool.directory

    def finish(self, outcome: Outcome = "finished", *, timeout: float = FINISH_TIMEOUT_S) -> None:
        """Let go of the model, ship what is left, and say how the run ended. Never raises; a second call does nothing
        but wait for the first, where that is under way in another thread."""
        self._finishing.finish(outcome, timeout)

    def record_end(self, outcome: Outcome, timeout: float) -> None:
        """Ship what is left and say how the run ended; the model is let go of by `release`."""
        self._finishing.record(outcome, timeout)

    def release(self) -> None:
        """Take everything out of the model."""
        self._finishing.release()

    def abandon(self) -> None:
        """Let go of the model without a word, in a forked copy of the process."""
        self._finishing.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(outcome_of(error))

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _stages(self) -> tuple[Stage, ...]:
        return (
            ("its place among the monitors", lambda outcome, until: self.on_finish(self)),  # noqa: ARG005
            ("the last measurements", self._end_of_measurements),
            ("the trail of the last steps", self._end_of_trail),
            ("the coverage", self._end_of_coverage),
            ("the run", self._end_of_run),
            ("the delivery", self._end_of_delivery),
        )

    def _end_of_measurements(self, outcome: Outcome, until: float) -> None:  # noqa: ARG002
        if self._logs is not None:
            self._logs.settle()
        if self._recorder is not None:
            while self._recorder.drain(everything=True) is not None and time.monotonic() < until:
                time.sleep(POLL_S)

    def _end_of_trail(self, outcome: Outcome, until: float) -> None:
        """What is known of the steps before an end that is not well."""
        if self._recorder is not None and outcome != "finished":
            self._recorder.ship_trail()
            self._end_of_measurements(outcome, until)

    def _end_of_coverage(self, outcome: Outcome, until: float) -> None:  # noqa: ARG002
        self._last_coverage = self.coverage()
        if self._observer is not None and self._observer.has_model:
            self._send_coverage(self._last_coverage)

    def _end_of_run(self, outcome: Outcome, until: float) -> None:  # noqa: ARG002
        if self._spool is not None:
            self._spool.append(finish=Finish(self._progress()[0], now_ms(), outcome))

    def _end_of_delivery(self, outcome: Outcome, until: float) -> None:  # noqa: ARG002
        if self._sender is None or self._spool is None:
            return
        delivered = self._sender.close(max(0.0, until - time.monotonic()))
        self._spool.close()
        if not delivered and self._options.mode != "offline":
            _LOG.warning(
                "internist: not everything was delivered; it is safe in %s. Once the server runs: internist sync %s",
                self._spool.directory,
                self._options.directory,
            )

    def _release(self) -> None:
        if self._observer is not None:
            self._observer.close()

    def _drop(self) -> None:
        """Let go of the model and of all that was measured; what is left is where it was written."""
        self._recorder = self._sender = self._logs = None

    # ---- private ---------------------------------------------------------------------------------------------------

    def _drain(self) -> float | None:
        recorder = self._recorder
        return None if recorder is None else recorder.drain()

    def _restart(self, step: int) -> None:
        """The optimizers' state, loaded after the model was watched, tells a later first step."""
        if self._sender is not None:
            self._sender.restart(step)

    def _progress(self) -> tuple[int, int]:
        observer = self._observer
        if observer is None:
            return 0, 0
        moved = max(observer.step_ended, observer.evaluated)
        return max(observer.clock.step - 1, 0), int((time.monotonic() - moved) * 1e3)

    def _powers(self) -> tuple[int, ...]:
        return () if self._observer is None else self._observer.powers

    def _direct(self, directives: Sequence[Directive]) -> None:
        if self._observer is not None:
            self._observer.take_directives(directives)

    def _step(self, observer: Observer, n: Any) -> None:
        number = whole_number(n)
        if n is not None and number is None:
            self._complain("step", f"step({n!r}): expected a whole number, 0 or more; the step was counted without it")
        observer.manual_step(number)

    def _configure(self, spool: Spool, values: Any) -> None:
        spool.append(outline=Outline(config=flatten(values)))

    def _note(self, spool: Spool, title: str, text: str, level: str) -> None:
        level = str(level).lower()
        if level not in _LEVELS:
            self._complain(
                "level", f"level={level!r}: expected info, warning or error; the alert is taken for a warning"
            )
        step = self._observer.log_step if self._observer is not None else 0
        kind = _LEVELS.get(level, "warning")
        spool.append(note=Note(str(title)[:MAX_NAME_LENGTH], str(text)[:MAX_TEXT_LENGTH], kind, step, now_ms()))
        if self._sender is not None:
            self._sender.wake()

    def _quietly(self, name: str, act: Callable[[T], None], part: T) -> None:
        """Do what the user's training asks for; whatever goes wrong is said once and costs that call alone."""
        try:
            act(part)
        except Exception as error:
            self._complain(name, f"{name}(): {type(error).__name__}: {error}; nothing was recorded")

    def _send_coverage(self, entries: tuple[CoverageEntry, ...]) -> None:
        if self._spool is not None and self._tells_coverage:
            self._spool.append(coverage=(*entries, *departed(self._told, entries)))
        self._told = entries

    def _complain(self, key: str, message: str) -> None:
        if key not in self._complained and len(self._complained) < _MOST_COMPLAINTS:
            self._complained.add(key)
            _LOG.warning("internist: %s", message)

    _tells_coverage = False


def _nothing(_: Monitor) -> None:
    """Nobody keeps a list."""
