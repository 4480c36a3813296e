"""The public face: `watch` a model, `log` scalars, raise an `alert`, `finish`, all on the current monitor."""

import atexit
import logging
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from internist.errors import ConfigurationError, NothingToWatch
from internist.model.roles import unwrap
from internist.monitor.monitor import Monitor
from internist.monitor.options import settle
from internist.observe.optimizer_facts import parameter_groups

_LOG = logging.getLogger("internist")

_watched: "weakref.WeakKeyDictionary[nn.Module, Monitor]" = weakref.WeakKeyDictionary()
_current: list[Monitor] = []


def watch(
    model: nn.Module,
    optimizer: Any = None,
    *,
    project: str | None = None,
    name: str | None = None,
    config: Any = None,
    every: int = 10,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    output: str | None = None,
    rename: Callable[[str], str] | Mapping[str, str] | None = None,
    reference: str | None = None,
    id: str | None = None,
    resume: str = "auto",
    step: int | None = None,
    server: str | None = None,
    token: str | None = None,
    mode: str = "auto",
    directory: str | os.PathLike[str] | None = None,
    compile: str | None = None,
    distributed: str = "merge",
    max_overhead: float = 0.01,
) -> Monitor:
    """Watch a model while it trains. No other call is needed: the optimizer's steps are the clock.

    Args:
        model: the module that is trained; inside DistributedDataParallel or torch.compile if it is trained so.
        optimizer: its optimizer, or a list of them; None: any torch optimizer that steps parameters of the model.
        project: groups runs; default: INTERNIST_PROJECT, else the working directory's name.
        name: the run's name for people; default: INTERNIST_NAME, else the model's class and the run's id.
        config: hyper-parameters to keep with the run: a mapping, a dataclass instance or a namespace.
            `parametrization` in it
            (`standard`, `mup`, `spectral`) tells the judge which targets apply.
        every: steps between light samples; heavy ones are ten times rarer.
        include: regular expressions of module names to watch; default: all.
        exclude: regular expressions of module names to leave out.
        metrics: names or families of the catalogue to measure; default: all.
        output: name of the module whose output is the model's f; default: the output head.
        rename: how module names are shown: a function or a table.
        reference: a run to be judged against. Not built yet: refused.
        id: the run's id, to continue it; default: INTERNIST_RUN_ID, torchelastic's, or a new one.
        resume: `auto` continues an earlier attempt of that id if there is one, `never` does not, `must` insists.
        step: optimizer steps already made; default: INTERNIST_STEP, else what the optimizer's state says, else 0.
        server: address of the server; default: INTERNIST_SERVER, else http://127.0.0.1:8237.
        token: the server's token; default: INTERNIST_TOKEN.
        mode: `auto` ships when the server can be reached, `online` insists on it at the start, `offline` only keeps
            the spool,
            `disabled` does nothing at all. INTERNIST_MODE where this is `auto`.
        directory: where frames wait and are kept; default: INTERNIST_DIR, else ./internist-runs.
        compile: how compiled models are measured. Only None (replay of a probe) is built.
        distributed: how ranks are combined. Only `merge` (parts are shipped, the server merges) is built.
        max_overhead: share of the run's time the monitor may take before it samples more rarely; 0: no limit.

    Returns:
        The monitor. Watching a model again returns the monitor it has.

    Raises:
        ConfigurationError: an argument or environment variable is wrong, or asks for what is not built yet.
        NothingToWatch: the model has no parameters.
        SpoolError: the directory cannot be written.
        ServerError: `mode="online"` and the server cannot be used.
    """
    arguments = dict(locals())
    _check_model(model)
    optimizers = _optimizers(optimizer)
    known = _watched.get(unwrap(model))
    if known is not None and not known.is_finished:
        _LOG.warning(
            "internist: this model is watched already; the monitor it has stays, other arguments were not used"
        )
        return known
    options = settle(arguments, os.environ)
    if options.mode != "disabled":
        _check_ownership(model, optimizers)
    monitor = Monitor(model, optimizers, options, rename, output, id)
    monitor.on_finish = _forget
    _watched[unwrap(model)] = monitor
    _current.append(monitor)
    return monitor


def unwatch(model: nn.Module | None = None) -> None:
    """Stop watching a model (default: the current one): every hook is removed and the run is finished."""
    monitor = _watched.get(unwrap(model)) if model is not None else (_current[-1] if _current else None)
    if monitor is not None:
        monitor.finish()


def log(values: Mapping[str, Any] | None = None, /, *, step: int | None = None, **named: Any) -> None:
    """Record scalars on the current monitor; does nothing if no model is watched. See `Monitor.log`."""
    if _current:
        _current[-1].log(values, step=step, **named)


def alert(title: str, text: str = "", level: str = "warning") -> None:
    """Raise an alert on the current monitor. See `Monitor.alert`."""
    if _current:
        _current[-1].alert(title, text, level)


def finish() -> None:
    """Finish the current monitor. See `Monitor.finish`."""
    if _current:
        _current[-1].finish()


def _forget(monitor: Monitor) -> None:
    if monitor in _current:
        _current.remove(monitor)
    for root, known in list(_watched.items()):
        if known is monitor:
            del _watched[root]


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"watch(model): expected a torch.nn.Module, got {type(model).__name__}")
    if next(model.parameters(), None) is None:
        raise NothingToWatch(
            f"watch(model): {type(model).__name__} has no parameters; build its layers before watching it"
        )


def _optimizers(optimizer: Any) -> list[Any]:
    if optimizer is None:
        return []
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for each in given:
        if not callable(getattr(each, "step", None)):
            raise ConfigurationError(
                f"watch(model, optimizer): expected an optimizer with a step() method, got {type(each).__name__}"
            )
    return given


def _check_ownership(model: nn.Module, optimizers: Sequence[Any]) -> None:
    """An optimizer of other tensors (master copies) is a good clock, but its updates cannot be seen: say so once."""
    if not optimizers:
        return
    mine = {id(parameter) for parameter in model.parameters()}
    owned = any(id(t) in mine for o in optimizers for group in parameter_groups(o) for t in group["params"])
    if not owned and any(parameter_groups(o) for o in optimizers):
        names = ", ".join(type(o).__name__ for o in optimizers)
        _LOG.warning(
            "internist: %s owns none of %s's %d parameters (another model's optimizer, or master copies?); it is used "
            "as the clock, but updates and gradients cannot be measured",
            names,
            type(model).__name__,
            len(mine),
        )


@atexit.register
def _finish_all() -> None:
    failed = getattr(sys, "last_value", None) is not None or getattr(sys, "last_exc", None) is not None
    for monitor in list(_current):
        monitor.finish("failed" if failed else "finished")


__all__ = ["Monitor", "alert", "finish", "log", "unwatch", "watch"]
