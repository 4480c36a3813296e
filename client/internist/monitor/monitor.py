"""The public face: `watch` a model, `log` scalars, raise an `alert`, `finish`. Only these calls raise, never the
training loop."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

import internist
from internist.errors import ConfigurationError
from internist.model.outline import outline
from internist.model.roles import unwrap
from internist.monitor.identity import identify
from internist.monitor.options import Options
from internist.observe.captures import Speaker
from internist.observe.loss import host_or_device
from internist.observe.observer import Observer
from internist.observe.optimizer_facts import step_of_state
from internist.observe.routing import routing
from internist.observe.sampling import Sampling
from internist.record.recorder import POLL_S, Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import MAX_NAME_LENGTH, MAX_TEXT_LENGTH, VERSION, CoverageEntry, Finish, Note, RunStart
from internist.ship.connection import Connection
from internist.ship.sender import Sender
from internist.ship.spool import Spool

_LOG = logging.getLogger("internist")

FINISH_TIMEOUT_S = 10.0
"""How long `finish` waits for the server to take the last frames; what is left stays in the spool."""

Level = Literal["info", "warning", "error"]
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
        self._root = unwrap(model)
        self.is_finished = False
        self._lock = threading.Lock()
        self._complained: set[str] = set()
        self._observer: Observer | None = None
        self._spool: Spool | None = None
        self._sender: Sender | None = None
        self._recorder: Recorder | None = None
        self.on_finish: Callable[[Monitor], None] = _nothing
        """Called once, when the monitor is finished."""
        self.run = ""
        """The run's id; empty if disabled."""
        if options.mode == "disabled":
            return

        self._read = partial(outline, include=options.include, exclude=options.exclude, output=output, rename=rename)
        start_step = options.step if options.step is not None else (step_of_state(optimizers) or 0)
        try:
            plan = self._read(self._root)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        who = identify(id=run, resume=options.resume, directory=options.directory, environ=os.environ)
        name = options.name or f"{type(self._root).__name__}-{who.run[:6]}"
        start = RunStart(
            version=VERSION,
            run=who.run,
            attempt=who.attempt,
            rank=who.rank,
            world_size=who.world_size,
            project=options.project,
            name=name,
            every=options.every,
            started_at_ms=time.time_ns() // 1_000_000,
            start_step=start_step,
            parent=who.parent,
            mesh=dict(who.mesh),
            config=options.config,
            parametrization=options.parametrization,
            optimizers=tuple(type(optimizer).__name__ for optimizer in optimizers),
            routing=routing(optimizers, plan),
            modules=plan.describe(),
            client=f"internist {internist.__version__}, torch {torch.__version__}",
        )
        self.run = who.run
        connection = None if options.mode == "offline" else Connection(options.server, options.token)
        if connection is not None and options.mode == "online":
            connection.start_run(start)
        self._spool = Spool(options.directory, start)
        sampling = Sampling(options.every, options.metrics, options.max_overhead)
        device = next((p.tensor.device for p in plan.parameters), torch.device("cpu"))
        self._recorder = Recorder(self._spool, device, SeriesBook(sampling.wants))
        self._observer = Observer(
            model,
            plan,
            self._recorder,
            read=self._read,
            optimizers=optimizers,
            sampling=sampling,
            start_step=start_step,
            reads_step=options.step is None,
            speaker=Speaker(who.rank, who.world_size, who.rank == 0),
            on_coverage=self._send_coverage,
            on_start=self._restart,
        )
        self._rank = who.rank
        self._sender = Sender(
            self._spool,
            start,
            connection,
            drain=self._drain,
            progress=self._progress,
            on_directives=self._observer.take_directives,
        )
        self._sender.start()
        self._observer.on_step = self._sender.wake

    # ---- the user's calls ------------------------------------------------------------------------------------------

    def log(self, values: Mapping[str, Any] | None = None, /, *, step: int | None = None, **named: Any) -> None:
        """Record scalars: `log(loss=loss)` or `log({"val/loss": 2.1})`.

        Tensors stay on their device until the next shipment. Without `step` they belong to the step under way, or to
        the one
        just made if no forward has begun since. A value that is no number is reported once and left out.
        """
        if self._observer is None or self._recorder is None or self.is_finished:
            return
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
            self._complain(f"log(step={step!r}): expected a whole number, 0 or more; nothing was recorded")
            return
        at = self._observer.log_step if step is None else step
        for name, value in {**(values or {}), **named}.items():
            problem = _name_problem(name)
            number = None if problem else _scalar(value)
            if number is None:
                self._complain(
                    f"log({name!r}): {problem or f'{type(value).__name__} is no single number'}; it was left out"
                )
                continue
            waits = self._recorder.busy
            self._recorder.log(at, name, number)
            if self._sender is not None and not waits:
                self._sender.wake()

    def step(self, n: int | None = None) -> None:
        """The step is over: for loops without a torch optimizer. With a number, that step's number."""
        if self._observer is not None and not self.is_finished:
            self._observer.manual_step(n)

    def alert(self, title: str, text: str = "", level: str = "warning") -> None:
        """Raise an alert of one's own.

        Raises:
            ConfigurationError: the level is none of info, warning, error.
        """
        if level not in _LEVELS:
            raise ConfigurationError(f"level={level!r}: expected info, warning or error")
        if self._spool is None or self._observer is None or self.is_finished:
            return
        note = Note(
            str(title)[:MAX_NAME_LENGTH],
            str(text)[:MAX_TEXT_LENGTH],
            _LEVELS[level],
            self._observer.log_step,
            time.time_ns() // 1_000_000,
        )
        self._spool.append(note=note)
        if self._sender is not None:
            self._sender.wake()

    def coverage(self) -> tuple[CoverageEntry, ...]:
        """What became of every watched module and parameter: measured, silent, frozen, not captured, unsupported,
        excluded."""
        return () if self._observer is None else self._observer.coverage()

    @property
    def url(self) -> str | None:
        """Address of the run's page on the board; None if offline or disabled."""
        if self._options.mode in ("offline", "disabled"):
            return None
        known = self._sender.url if self._sender is not None else None
        return known or f"{self._options.server}/runs/{self.run}"

    @property
    def directory(self) -> Path | None:
        """Where this rank's frames are kept; None if disabled."""
        return None if self._spool is None else self._spool.directory

    def finish(self, outcome: Literal["finished", "failed"] = "finished", *, timeout: float = FINISH_TIMEOUT_S) -> None:
        """Remove every hook, ship what is left, and say that the run ended. A second call does nothing."""
        with self._lock:
            if self.is_finished:
                return
            self.is_finished = True
        self.on_finish(self)
        if self._observer is None or self._recorder is None or self._spool is None or self._sender is None:
            return
        self._observer.close()
        deadline = time.monotonic() + timeout
        while self._recorder.drain(everything=True) is not None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._send_coverage(self._observer.coverage())
        self._spool.append(finish=Finish(max(self._observer.clock.step - 1, 0), time.time_ns() // 1_000_000, outcome))
        delivered = self._sender.close(max(0.0, deadline - time.monotonic()))
        self._spool.close()
        if not delivered and self._options.mode != "offline":
            _LOG.warning(
                "internist: not everything was delivered; it is safe in %s. Once the server runs: internist sync %s",
                self._spool.directory,
                self._options.directory,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("finished" if kind is None else "failed")

    # ---- private ---------------------------------------------------------------------------------------------------

    def _drain(self) -> float | None:
        assert self._recorder is not None
        return self._recorder.drain()

    def _restart(self, step: int) -> None:
        """The optimizers' state, loaded after the model was watched, tells a later first step."""
        if self._spool is not None and self._sender is not None:
            self._sender.restart(self._spool.restart(step))

    def _progress(self) -> tuple[int, int]:
        assert self._observer is not None
        return max(self._observer.clock.step - 1, 0), int((time.monotonic() - self._observer.step_ended) * 1e3)

    def _send_coverage(self, entries: tuple[CoverageEntry, ...]) -> None:
        if self._spool is not None and self._rank == 0:
            self._spool.append(coverage=entries)

    def _complain(self, message: str) -> None:
        if message not in self._complained:
            self._complained.add(message)
            _LOG.warning("internist: %s", message)

    _rank = 0


def _name_problem(name: Any) -> str:
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        return f"expected a name of 1 to {MAX_NAME_LENGTH} printable characters"
    return ""


def _scalar(value: Any) -> float | Tensor | None:
    if isinstance(value, Tensor):
        return host_or_device(value) if value.numel() == 1 and not value.is_complex() else None
    if isinstance(value, bool | int | float):
        return float(value) if not isinstance(value, int) or abs(value) < 1 << 1000 else math.inf
    try:
        return float(value) if hasattr(value, "__float__") else None
    except (TypeError, ValueError):
        return None


def _nothing(_: Monitor) -> None:
    """Nobody keeps a list."""
