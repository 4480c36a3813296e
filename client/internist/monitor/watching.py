"""The public face: `watch` a model, `log` scalars, raise an `alert`, `finish`, all on the current monitor.

Scripts written for wandb find here what they call, with its arguments: `import internist as wandb`.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch import nn

from internist.model.roles import unwrap
from internist.monitor.beginning import AlertLevel, Run, settings
from internist.monitor.monitor import Monitor
from internist.monitor.options import attributes, settle
from internist.monitor.refusals import check_model, checked_optimizers, note_oddities
from internist.monitor.registry import Registry

_LOG = logging.getLogger("internist")

_monitors = Registry()
_begun: list[Run] = []
"""The run that `init` began and that is not over: none or one."""


def init(
    project: str | None = None,
    config: Any = None,
    name: str | None = None,
    *,
    id: str | None = None,
    resume: str | bool | None = "auto",
    mode: str | None = "auto",
    dir: str | os.PathLike[str] | None = None,
    reinit: bool | str | None = None,
    **others: Any,
) -> Run:
    """Begin a run whose model is watched later: for scripts that were written for wandb. `watch` alone does as well.

    Args:
        project: see `watch`, as for the arguments that follow.
        config: hyper-parameters; `internist.config` has them, and takes more.
        name: the run's name for people.
        id: the run's id.
        resume: `allow` and True are `auto`.
        mode: `online` is `auto`: the run goes on where the server is away.
        dir: what `watch` calls `directory`.
        reinit: True or `finish_previous`: a run that is not over is finished first; else it is returned.
        others: `group`, `job_type`, `tags`, `notes` and `entity` are kept with the configuration; other arguments of
            wandb.init have no effect here.

    Returns:
        The run, with `config`, `summary`, `log`, `watch`, `alert`, `finish`.

    Raises:
        ConfigurationError: an argument has a value that is not understood.
    """
    arguments = {"project": project, "name": name, "id": id, "resume": resume, "mode": mode, "directory": dir}
    chosen, facts = settings(arguments, others)
    if _begun and reinit in (True, "finish_previous", "create_new"):
        _begun[0].finish()
    if not _begun:
        _begun.append(Run(watch, _begun.remove, chosen, {**facts, **attributes(config)}))
    elif config is not None:
        _begun[0].config.update(config)
    return _begun[0]


def current_run() -> Run | None:
    """The run that `init` began and that is not over."""
    return _begun[0] if _begun else None


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
    reference: str | os.PathLike[str] | None = None,
    schedule: Any = None,
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
    replay: bool = True,
    thresholds: Mapping[str, float | tuple[float | None, float | None]] | None = None,
    criterion: Any = None,
    log: str | None = None,
    log_freq: int | None = None,
    idx: int | None = None,
    log_graph: bool = False,
) -> Monitor:
    """Watch a model while it trains. No other call is needed: the optimizer's steps are the clock.

    Args:
        model: the module that is trained; inside DistributedDataParallel or torch.compile if it is trained so.
        optimizer: its optimizer, or a list or dict of them; None: any torch optimizer that steps parameters of it.
        project: groups runs; default: INTERNIST_PROJECT, else the working directory's name.
        name: the run's name for people; default: INTERNIST_NAME, else the model's class and the run's id.
        config: hyper-parameters to keep with the run: a mapping, a dataclass instance or a namespace.
            `parametrization` in it
            (`standard`, `mup`, `spectral`) tells the judge which targets apply.
        every: steps between light samples; heavy ones are ten times rarer.
        include: regular expressions of module names to watch, each of which must match some; default: all.
        exclude: regular expressions of module names to leave out.
        metrics: names or families of the catalogue to measure; default: all.
        output: name of the module whose output is the model's f; default: the output head.
        rename: how module names are shown: a function or a table.
        reference: a run to be held to, such as a small muP proxy that was well: its id or its name at the server, or a
            file that `internist check RUN --save FILE` wrote. Every metric is then held to the same place, relative
            depth and step of that run, moved by what muP says of width and depth: what is wrong from the first step is
            seen. A server that does not know it says so, and the run is told as not measured.
        schedule: what the learning rates are meant to do, so that decays and restarts are expected and a warm-up is
            known to be over: the torch scheduler, a function of the step that returns the multiplier of the rates, or a
            mapping such as `{"kind": "cosine", "steps": 10000, "warmup": 500, "floor": 0.1}` (`constant`, `linear`,
            `cosine`, `wsd` with its `decay`).
        id: the run's id, to continue it; default: INTERNIST_RUN_ID, torchelastic's, or a new one.
        resume: `auto` continues an earlier attempt of that id if there is one, `never` does not, `must` insists.
        step: optimizer steps already made; default: INTERNIST_STEP, else what the optimizer's state says, else 0.
        server: address of the server; default: INTERNIST_SERVER, else http://127.0.0.1:8237.
        token: the server's token; default: INTERNIST_TOKEN, else what `internist login` kept for it.
        mode: `auto` ships when the server can be reached, `online` insists on it at the start, `offline` only keeps
            the spool,
            `disabled` does nothing at all. INTERNIST_MODE where this is `auto`.
        directory: where frames wait and are kept; default: INTERNIST_DIR, else ./internist-runs.
        compile: how compiled models are measured. None: a probe is replayed through the uncompiled model. `inline`: on
            sampled steps a second graph runs that also computes what each call says, exact over the whole batch, for
            one more compilation; results are those of another graph, within rounding. It needs a model that is
            compiled as a whole; others are measured as with None.
        distributed: how ranks are combined. `merge`: each ships its parts, the server merges them, and spectra of
            sharded matrices are bounds. `reduce`: these are worked out by the ranks together, on a thread and process
            groups of the monitor's own (gloo, over the host), at steps that follow from their numbers alone. A rank
            that does not come costs the others nothing but a warning, and from there on they tell bounds.
        max_overhead: share of the run's time the monitor may take before it samples more rarely, at most 0.5; 0: no
            limit.
        replay: whether a few tokens may be run through the model once more on heavy steps, before and after an update,
            to measure how far the update moves what its modules return; False: the model is called by nobody but you.
        thresholds: limits of this run, by metric of the catalogue: a number that it must not be over, or (lowest,
            highest) with None for no edge, such as `{"gradient.global_norm": 5.0}`. The server alerts where a series of
            the metric is beyond.
        criterion: wandb's, and so are `log`, `log_freq`, `idx` and `log_graph`: scripts written for it may pass them,
            and they have no effect. After `init`, a loss in the optimizer's place is taken for the criterion.

    Returns:
        The monitor. Watching a model again returns the monitor it has, which then follows the optimizer as well. In a
        notebook, a monitor whose cell is executed again, or whose model no variable holds any more, is finished first.

    Raises:
        ConfigurationError: an argument or environment variable is wrong; what was
            handed over is no model or no optimizer.
        NothingToWatch: the model has no parameters.
        SpoolError: the directory cannot be written.
        ServerError: `mode="online"` and the server cannot be used.
    """
    run = current_run()
    arguments = _over(run, dict(locals()))
    check_model(model)
    optimizers = checked_optimizers(None if run is not None and isinstance(optimizer, nn.Module) else optimizer)
    root = unwrap(model)
    known = _monitors.of(root)
    if known is not None:
        known.add_optimizers(optimizers)
        _LOG.warning(
            "internist: this model is watched already; the monitor it has stays%s, other arguments were not used",
            " and follows the optimizer" if optimizers else "",
        )
        return known
    _monitors.finish_superseded(root)
    options = settle(arguments, os.environ)
    if options.mode != "disabled":
        note_oddities(model, optimizers)
    monitor = Monitor(model, optimizers, options, rename, output, arguments["id"])
    _monitors.add(monitor, root)
    if run is not None and run.monitor is None:
        run.attach(monitor)
    return monitor


def unwatch(model: nn.Module | None = None) -> None:
    """Stop watching a model (default: the current one): nothing is left in it, and the run is finished."""
    monitor = _monitors.current if model is None else _monitors.of(unwrap(model))
    if monitor is not None:
        monitor.finish()


def log(
    values: Mapping[str, Any] | None = None,
    /,
    step: Any = None,
    commit: bool | None = None,  # noqa: ARG001
    *,
    axis: str | None = None,
    **named: Any,
) -> None:
    """Record scalars on the current monitor, or keep them for the model of the run that `init` began; does nothing
    without either. `commit` is wandb's: scalars of one step are together without it. See `Monitor.log`."""
    monitor = _monitors.current
    if monitor is not None:
        monitor.log(values, step=step, axis=axis, **named)
    elif _begun:
        _begun[0].log(values, step, axis=axis, **named)


def alert(title: str, text: str = "", level: str = "warning", wait_duration: float | timedelta | None = None) -> None:
    """Raise an alert on the current monitor. See `Monitor.alert`, and `wait_duration` of a run's."""
    monitor = _monitors.current
    if _begun:
        _begun[0].alert(title, text, level, wait_duration)
    elif monitor is not None:
        monitor.alert(title, text, level)


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """Finish the run that `init` began, else the current monitor: as failed with an exit code other than 0. See
    `Monitor.finish`."""
    monitor = _monitors.current
    if _begun:
        _begun[0].finish(exit_code, quiet)
    elif monitor is not None:
        monitor.finish("failed" if exit_code else "finished")


def _over(run: Run | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `watch`, with those of `init` where they were left at their defaults."""
    if run is None or run.monitor is not None:
        return arguments
    begun = run.arguments()
    own = {name: value for name, value in arguments.items() if name not in begun or value not in (None, "auto")}
    return {**arguments, **begun, **own, "config": {**begun["config"], **attributes(arguments["config"])}}


__all__ = ["AlertLevel", "Monitor", "Run", "alert", "current_run", "finish", "init", "log", "unwatch", "watch"]
