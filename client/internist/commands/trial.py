"""A trial: a training script is run for a few steps, offline, to see what of its model is measured."""

import os
import runpy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import internist
from internist.monitor import watching
from internist.monitor.monitor import Monitor
from internist.schema.wire import CoverageEntry


class Enough(BaseException):
    """Leaves the script once it has made its steps. No `except Exception` of the script's stops it."""


@dataclass(slots=True)
class Watched:
    """One model that the script watched: its class, the optimizer steps seen, and what became of its parts."""

    model: str
    steps: int = 0
    coverage: tuple[CoverageEntry, ...] = ()


@dataclass(slots=True)
class Trial:
    """What the run of a script showed.

    Attributes:
        watched: by model, in the order of the calls of `watch`.
        error: why the script ended before it had made its steps; empty if it did not.
    """

    watched: list[Watched] = field(default_factory=list)
    error: str = ""


def run_script(script: Path, arguments: Sequence[str], *, steps: int) -> Trial:
    """Run a script as `python SCRIPT ARGUMENTS` would, until a model it watches has made `steps` optimizer steps.

    Nothing is sent to a server, and nothing is kept: the spool is a temporary one, whatever the script or the
    environment says. What else the script does, it does.
    """
    trial = Trial()
    monitors: list[tuple[Monitor, Watched]] = []
    models: list[nn.Module] = []  # a run ends with its model: held until it has been looked at

    def look() -> None:
        for monitor, watched in monitors:
            if not monitor.is_finished:
                watched.steps, watched.coverage = monitor.steps, monitor.coverage()

    def stop_if_enough(*_: Any) -> None:
        if any(monitor.steps >= steps for monitor, _ in monitors):
            raise Enough

    with tempfile.TemporaryDirectory(prefix="internist-doctor-") as spool:

        def watch(model: nn.Module, optimizer: Any = None, **options: Any) -> Monitor:
            monitor = watching.watch(model, optimizer, **{**options, **_offline(spool)})
            if all(monitor is not known for known, _ in monitors):
                watched = Watched(type(model).__name__)
                trial.watched.append(watched)
                monitors.append((monitor, watched))
                models.append(model)
                model.register_forward_pre_hook(stop_if_enough)  # a loop without a torch optimizer ends here
            return monitor

        handle = register_optimizer_step_post_hook(stop_if_enough)
        try:
            with _as_main(script, arguments, watch):
                runpy.run_path(str(script), run_name="__main__")
        except Enough:
            pass
        except SystemExit as stop:
            trial.error = f"it left by sys.exit({stop.code!r})" if stop.code else ""
        except KeyboardInterrupt:
            trial.error = "it was interrupted"
        except BaseException as error:  # the script's own trouble is what was asked for
            trial.error = f"{type(error).__name__}: {error}"
        finally:
            handle.remove()
            look()
            for monitor, _ in monitors:
                monitor.finish(timeout=1.0)
    return trial


def _offline(spool: str) -> dict[str, Any]:
    return {"mode": "offline", "directory": spool, "resume": "never"}


@contextmanager
def _as_main(script: Path, arguments: Sequence[str], watch: Any) -> Iterator[None]:
    """The process as a script finds it: its arguments, its folder on the path; and our `watch` in place of the real."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, os.fspath(script.resolve().parent))
    original = internist.watch
    internist.watch = watch
    try:
        yield
    finally:
        internist.watch = original
        sys.argv, sys.path[:] = argv, path
