"""A run as scripts for other tools begin it: `init` first, its model later. What is said between the two is kept."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self

from internist.errors import ConfigurationError
from internist.monitor.ending import outcome_of
from internist.monitor.monitor import Monitor
from internist.monitor.options import MODES, RESUME, attributes
from internist.monitor.scalars import NotAScalar, scalar
from internist.schema.wire import Outcome

_LOG = logging.getLogger("internist")
SUMMARY: Final = "summary/"
"""Stands before the name of a scalar that was set in `summary`: the curve of that name goes on by itself."""
MOST_HELD: Final = 1_000
"""Calls of `log` that wait for a model; a script with more never watches one."""
_FACTS: Final = ("group", "job_type", "tags", "notes", "entity")
"""What wandb keeps beside a run's configuration, and we in it."""
_WITHOUT_EFFECT: Final = (
    "settings",
    "save_code",
    "sync_tensorboard",
    "monitor_gym",
    "force",
    "anonymous",
    "tensorboard",
)
_RESUME: Final = {"allow": "auto", True: "auto", None: "auto", False: "never"}
_MODE: Final = {None: "auto", "online": "auto", "shared": "auto"}
"""wandb trains on where its server is away: that is what `auto` does here."""


class AlertLevel(StrEnum):
    """How grave an alert of one's own is."""

    INFO = "info"
    WARN = "warning"
    ERROR = "error"


class Config(dict[str, Any]):
    """A run's hyper-parameters: items and attributes are the same; what is added later is told as well."""

    def __init__(self, values: Any, changed: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(attributes(values))
        self.__dict__["_changed"] = changed

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the run's config has no {name!r}; it has {', '.join(self) or 'nothing'}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def update(self, values: Any = (), /, allow_val_change: bool = True, **named: Any) -> None:  # noqa: ARG002
        """Add values, or change them: a mapping, a namespace or a dataclass instance."""
        new = {**attributes(values or {}), **named}
        super().update(new)
        self.__dict__["_changed"](new)

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (dict(self),)  # copies and pickles take the values, and belong to no run

    def setdefaults(self, values: Any) -> None:
        """Add the values of names that there are not yet."""
        self.update({name: value for name, value in attributes(values).items() if name not in self})

    def as_dict(self) -> dict[str, Any]:
        """A copy as a plain dict."""
        return dict(self)


class Summary(MutableMapping[str, Any]):
    """Numbers that stand for the whole run: each that is set is logged, under `summary/NAME`."""

    def __init__(self, log: Callable[[Mapping[str, Any]], None]) -> None:
        self._values: dict[str, Any] = {}
        self._log = log

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value
        self._log({SUMMARY + name: value})

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Run:
    """What `init` returns: the run that the next watched model belongs to.

    Attributes:
        config: its hyper-parameters.
        summary: numbers that stand for the whole of it.
        project: as given; None: the default of `watch`.
        name: as given; None: the default of `watch`.

    Args:
        watch: `internist.watch`.
        ended: called when it is over.
        settings: arguments of `watch` that `init` was given.
        config: its hyper-parameters.
    """

    def __init__(
        self,
        watch: Callable[..., Monitor],
        ended: Callable[["Run"], None],
        settings: Mapping[str, Any],
        config: Any,
    ) -> None:
        self._watch = watch
        self._ended = ended
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._monitor: Monitor | None = None
        self._held: list[tuple[dict[str, Any], Any, str | None]] = []
        self._left_out = 0
        self._alerted: dict[str, float] = {}
        self._told: dict[str, Any] = {}
        self.config = Config(config, self._configure)
        self.summary = Summary(self.log)
        self.project: str | None = self._settings.get("project")
        self.name: str | None = self._settings.get("name")

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of its model; None before one is watched."""
        return self._monitor

    @property
    def id(self) -> str:
        """Its id; empty before a model is watched, unless it was given."""
        return self._monitor.run if self._monitor is not None else str(self._settings.get("id", ""))

    @property
    def url(self) -> str | None:
        """Address of its page on the board; None before a model is watched, and offline."""
        return None if self._monitor is None else self._monitor.url

    @property
    def step(self) -> int:
        """How many optimizer steps were seen."""
        return 0 if self._monitor is None else self._monitor.steps

    def arguments(self) -> dict[str, Any]:
        """The arguments of `watch` that were given to `init`."""
        return {**self._settings, "config": dict(self.config)}

    def attach(self, monitor: Monitor) -> None:
        """Its model is watched: what was logged until now goes to the monitor."""
        self._monitor = monitor
        self._told = dict(self.config)
        held, self._held = self._held, []
        for values, step, axis in held:
            monitor.log(values, step=step, axis=axis)

    def watch(self, model: Any, criterion: Any = None, **options: Any) -> Monitor:
        """`internist.watch`, for this run."""
        return self._watch(model, criterion, **options)

    def log(
        self,
        values: Mapping[str, Any] | None = None,
        step: Any = None,
        commit: bool | None = None,  # noqa: ARG002
        *,
        axis: str | None = None,
        **named: Any,
    ) -> None:
        """Record scalars; before a model is watched they wait for it. See `Monitor.log`."""
        if self._monitor is not None:
            self._monitor.log(values, step=step, axis=axis, **named)
        elif len(self._held) < MOST_HELD and isinstance(values, Mapping | None):
            self._held.append(({name: _kept(value) for name, value in {**(values or {}), **named}.items()}, step, axis))
        else:
            self._left_out += 1

    def alert(
        self, title: str, text: str = "", level: str = "warning", wait_duration: float | timedelta | None = None
    ) -> None:
        """Raise an alert of one's own; one of the same title is not raised again within `wait_duration` seconds."""
        wait = wait_duration.total_seconds() if isinstance(wait_duration, timedelta) else wait_duration or 0.0
        now = time.monotonic()
        if now - self._alerted.get(title, -float("inf")) < wait:
            return
        self._alerted[title] = now
        if self._monitor is not None:
            self._monitor.alert(title, text, level)
        else:
            _LOG.warning(
                "internist: the alert %r was raised before a model was watched: it is in this log alone", title
            )

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:  # noqa: ARG002
        """The run is over; with an exit code other than 0 it failed."""
        self.end("failed" if exit_code else "finished")

    def end(self, outcome: Outcome) -> None:
        """The run is over."""
        if self._monitor is not None:
            self._monitor.finish(outcome)
        elif self._held or self._left_out:
            _LOG.warning(
                "internist: no model was watched, so the %d calls of log() are not recorded: call"
                " internist.watch(model, optimizer) after init()",
                len(self._held) + self._left_out,
            )
        self._held, self._left_out = [], 0
        self._ended(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(outcome_of(error))

    def _configure(self, values: Mapping[str, Any]) -> None:
        if self._monitor is None:
            return
        changed = [name for name, value in values.items() if name in self._told and self._told[name] is not value]
        if changed:
            _LOG.warning(
                "internist: the run keeps %s as it was when its model was first watched: what is known of a run's"
                " configuration stays",
                ", ".join(f"{name}={self._told[name]!r}" for name in changed),
            )
        new = {name: value for name, value in values.items() if name not in self._told}
        self._told |= new
        self._monitor.configure(new)


def settings(arguments: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `init` was given, as arguments of `watch`, and as facts that go into the configuration.

    Raises:
        ConfigurationError: a value is none of those that are understood.
        TypeError: an argument is unknown to wandb as well.
    """
    unknown = [name for name in others if name not in (*_FACTS, *_WITHOUT_EFFECT)]
    if unknown:
        raise TypeError(f"init() has no argument {unknown[0]!r}")
    unused = [name for name in _WITHOUT_EFFECT if others.get(name) is not None]
    if unused:
        _LOG.info("internist: init() does nothing with %s", ", ".join(unused))
    resume, mode = arguments["resume"], arguments["mode"]
    resume, mode = _RESUME.get(resume, resume), _MODE.get(mode, mode)
    if resume not in RESUME:
        raise ConfigurationError(f"resume={resume!r}: expected one of allow, {', '.join(RESUME)}")
    if mode not in MODES:
        raise ConfigurationError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    facts = {name: others[name] for name in _FACTS if others.get(name) is not None}
    return {**arguments, "resume": resume, "mode": mode}, facts


def _detached(values: Mapping[str, Any]) -> Config:
    """A configuration that belongs to no run."""
    return Config(values, lambda _: None)


def _kept(value: Any) -> Any:
    """A value that waits for the model: a number of its own, no tensor of the user's that may change."""
    try:
        return scalar(value)
    except NotAScalar:
        return value  # the monitor says what is wrong with it
