"""Forwards what the judge says, and headline scalars, to the tool that a team keeps: wandb, TensorBoard, MLflow.

    monitor = internist.watch(model, optimizer)
    forward(monitor, ToWandb(wandb.run))

A thread of its own asks the server every half minute; training waits for nothing, and what goes wrong is said once.
"""

import atexit
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from internist.errors import ConfigurationError, InternistError
from internist.monitor.monitor import Monitor
from internist.schema.conditions import STATES
from internist.schema.views import Number, Run
from internist.ship.connection import Connection

_LOG = logging.getLogger("internist")
EVERY_S: Final = 30.0
PREFIX: Final = "internist/"
"""Stands before every name, so that no scalar of the user's is touched."""
_HEADLINES: Final = ("loss", "learning_rate", "violated", "drifting", "open_alerts", "coverage", "overhead")


class Target(Protocol):
    """A tool that is told."""

    def write(self, values: Mapping[str, float], sentence: str, step: int) -> None:
        """Keep numbers by name, and the verdict in words, at an optimizer step."""

    def close(self) -> None:
        """Nothing follows."""


class ToWandb:
    """A run of wandb's: the numbers join what the user logs next, so that its own step does not move.

    Args:
        run: `wandb.run`, or what `wandb.init` returned.
    """

    def __init__(self, run: Any) -> None:
        if not callable(getattr(run, "log", None)) or not hasattr(run, "summary"):
            raise ConfigurationError(f"expected a run of wandb's, got {type(run).__name__}: call wandb.init() first")
        self._run = run

    def write(self, values: Mapping[str, float], sentence: str, step: int) -> None:
        """Log without ending wandb's step, and keep the sentence in the run's summary."""
        self._run.log({**values, f"{PREFIX}step": step}, commit=False)
        self._run.summary[f"{PREFIX}sentence"] = sentence

    def close(self) -> None:
        """The run is its user's, and stays as it is."""


class ToTensorBoard:
    """A directory of TensorBoard's.

    Args:
        directory: where its event files are.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(Path(directory).absolute()), filename_suffix=".internist")  # type: ignore[no-untyped-call, unused-ignore]
        self._sentence = ""

    def write(self, values: Mapping[str, float], sentence: str, step: int) -> None:
        """Add scalars, and the sentence as text where it is another than before."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if sentence != self._sentence:
            self._writer.add_text(f"{PREFIX}sentence", sentence, step)
            self._sentence = sentence
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class ToMlflow:
    """A run of MLflow's.

    Args:
        run: its id; None: the run that is active now.
    """

    def __init__(self, run: str | None = None) -> None:
        import mlflow

        active = mlflow.active_run()
        if run is None and active is None:
            raise ConfigurationError("no run of MLflow's is active: call mlflow.start_run() first, or pass a run's id")
        self._client = mlflow.MlflowClient()
        self._run = run or active.info.run_id

    def write(self, values: Mapping[str, float], sentence: str, step: int) -> None:
        """Log metrics, and keep the sentence in a tag."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)
        self._client.set_tag(self._run, "internist.sentence", sentence[:5_000])

    def close(self) -> None:
        """The run is its user's, and stays as it is."""


class Forwarding:
    """What is under way for one monitor. Made by `forward`."""

    def __init__(self, monitor: Monitor, connection: Connection, targets: tuple[Target, ...], every_s: float) -> None:
        self._monitor = monitor
        self._connection = connection
        self._targets = targets
        self._every_s = every_s
        self._ended = threading.Event()
        self._told = -1
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="internist-forwarding", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Tell what holds now, and end. A second call does nothing."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._tell()
            for target in self._targets:
                self._quietly(target.close)
            self._connection.close()
            atexit.unregister(self.close)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._tell()
            if self._monitor.is_finished:
                return

    def _tell(self) -> None:
        self._quietly(self._ask)

    def _ask(self) -> None:
        run = self._connection.read(f"runs/{quote(self._monitor.run, safe='')}", Run)
        if run.cursor != self._told and run.last_step is not None:
            for target in self._targets:
                target.write(scalars(run), run.sentence, run.last_step)
            self._told = run.cursor

    def _quietly(self, act: Callable[[], None]) -> None:
        try:
            act()
        except InternistError as error:  # the server may be away for a while
            self._complain(str(error))
        except Exception as error:  # whatever another tool raises must not end up in training
            self._complain(f"{type(error).__name__}: {error}")

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            _LOG.warning("internist: verdicts are not forwarded at the moment: %s", reason)


def forward(monitor: Monitor, *targets: Target, every_s: float = EVERY_S) -> Forwarding:
    """Tell other tools of a run's verdict, of how many series are violated and drifting, of open alerts, and of its
    loss and learning rate, until the process ends or the answer's `close` is called.

    Args:
        monitor: what `internist.watch` returned.
        targets: `ToWandb(run)`, `ToTensorBoard(directory)`, `ToMlflow()`, or anything with such a `write`.
        every_s: seconds between questions to the server.

    Raises:
        ConfigurationError: there is no target, or the run has no server.
    """
    if not targets:
        raise ConfigurationError("forward(monitor): expected at least one target, such as ToWandb(wandb.run)")
    connection = monitor.reader()
    if connection is None:
        raise ConfigurationError(
            "forward(monitor): the run has no server that could judge it: mode is not auto or online"
        )
    return Forwarding(monitor, connection, targets, every_s)


def scalars(run: Run) -> dict[str, float]:
    """What is forwarded of a run: its verdict as a number (0 ok, 1 drifting, 2 violated, 3 not measured) and its
    headline numbers; what is not known is left out."""
    numbers: dict[str, Number] = {name: getattr(run, name) for name in _HEADLINES}
    found = {PREFIX + name: float(value) for name, value in numbers.items() if value is not None}
    return {f"{PREFIX}verdict": float(STATES.index(run.verdict)), **found}
