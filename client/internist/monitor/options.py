"""What `watch` was asked for: arguments over environment, checked, with errors that name the value and what was
expected."""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from internist.errors import ConfigurationError
from internist.monitor import reference as reference_of
from internist.monitor import schedule
from internist.monitor.limits import limits
from internist.observe.schedules import Schedule
from internist.schema.metrics import METRICS
from internist.schema.reference import TrajectoryPiece
from internist.schema.wire import MAX_NAME_LENGTH, Scalar, Threshold
from internist.ship.connection import DEFAULT_SERVER
from internist.ship.credentials import token_for
from internist.ship.segments import DEFAULT_DIRECTORY

Mode = Literal["auto", "online", "offline", "disabled"]
MODES: tuple[str, ...] = ("auto", "online", "offline", "disabled")
RESUME: tuple[str, ...] = ("auto", "never", "must")
MOST_OVERHEAD = 0.5
"""A monitor that may take more than half of the time bounds nothing; such a number is meant as per cent."""
PARAMETRIZATIONS: tuple[str, ...] = ("standard", "mup", "spectral")


@dataclass(frozen=True, slots=True)
class Options:
    """The settled options of one monitor."""

    project: str
    name: str | None
    config: dict[str, Scalar]
    parametrization: str
    every: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    metrics: frozenset[str] | None
    """Names of catalogue metrics that are measured; None: all."""
    resume: str
    step: int | None
    server: str
    token: str | None
    mode: Mode
    directory: Path
    max_overhead: float
    replay: bool
    thresholds: tuple[Threshold, ...]
    """Limits that the run sets for itself."""
    """Whether the model may be called with a probe of its own input, to see what an update changes."""
    compile: str | None
    reduces: bool
    """Whether ranks work out together what pieces of matrices do not tell."""
    reference: str | None
    """The run that this one is to be held to."""
    trajectory: tuple[TrajectoryPiece, ...]
    """The same, where it came from a file."""
    schedule: Schedule | None
    """What its learning rates are meant to do."""

    def wanted(self, metric: str) -> bool:
        """Whether a metric is measured."""
        return self.metrics is None or metric in self.metrics


def settle(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Options:
    """Check the arguments of `watch` and fill the gaps from the environment.

    Raises:
        ConfigurationError: a value is wrong.
    """
    _refuse_unknown(arguments)
    config = flatten(arguments["config"])
    parametrization = str(config.get("parametrization", "standard"))
    if parametrization not in PARAMETRIZATIONS:
        raise ConfigurationError(
            f"config['parametrization']={parametrization!r}: expected one of {', '.join(PARAMETRIZATIONS)}"
        )
    every = arguments["every"]
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigurationError(f"every={every!r}: expected a whole number of optimizer steps, 1 or more")
    overhead = arguments["max_overhead"]
    if isinstance(overhead, bool) or not isinstance(overhead, int | float) or not 0 <= overhead <= MOST_OVERHEAD:
        raise ConfigurationError(
            f"max_overhead={overhead!r}: expected a share of the run's time from 0 to {MOST_OVERHEAD}, such as 0.01 for"
            " 1 %; 0 switches the governor off"
        )
    reference, trajectory = reference_of.settled(arguments["reference"])
    server = _server(arguments["server"] or environ.get("INTERNIST_SERVER") or DEFAULT_SERVER)
    replay = arguments["replay"]
    if not isinstance(replay, bool):
        raise ConfigurationError(f"replay={replay!r}: expected True or False")
    return Options(
        project=_text(
            "project", arguments["project"] or environ.get("INTERNIST_PROJECT") or Path.cwd().name or "default"
        ),
        name=_optional_text("name", arguments["name"] or environ.get("INTERNIST_NAME")),
        config=config,
        parametrization=parametrization,
        every=every,
        include=_expressions("include", arguments["include"]),
        exclude=_expressions("exclude", arguments["exclude"]),
        metrics=choose_metrics(arguments["metrics"]),
        resume=_choice("resume", arguments["resume"], RESUME),
        step=_step(arguments["step"], environ),
        server=server,
        token=_optional_text("token", token_for(server, arguments["token"], environ=environ)),
        mode=_mode(arguments["mode"], environ),
        directory=_directory(arguments["directory"] or environ.get("INTERNIST_DIR") or DEFAULT_DIRECTORY),
        max_overhead=float(overhead),
        replay=replay,
        thresholds=limits(arguments["thresholds"]),
        compile=arguments["compile"],
        reduces=arguments["distributed"] == "reduce",
        reference=reference,
        trajectory=trajectory,
        schedule=schedule.settled(arguments["schedule"]),
    )


def choose_metrics(metrics: Any) -> frozenset[str] | None:
    """The catalogue's names that a choice stands for: names, or families such as `activation` or `weight.*`.

    Raises:
        ConfigurationError: a name is not in the catalogue; the nearest one is offered.
    """
    if metrics is None or metrics == "default":
        return None
    if isinstance(metrics, str):
        metrics = [metrics]
    if not isinstance(metrics, Sequence) or not all(isinstance(m, str) for m in metrics):
        raise ConfigurationError(
            f"metrics={metrics!r}: expected names from the catalogue, such as ['activation', 'update.own']"
        )
    families = {name.partition(".")[0] for name in METRICS}
    chosen: set[str] = set()
    for metric in metrics:
        family = metric.removesuffix(".*")
        found = {name for name in METRICS if name == metric or (family in families and name.startswith(f"{family}."))}
        if not found:
            near = difflib.get_close_matches(metric, [*METRICS, *families], n=1, cutoff=0.0)
            raise ConfigurationError(
                f"metrics names {metric!r}, which is not in the catalogue; did you mean {near[0]!r}?"
            )
        chosen |= found
    return frozenset(chosen | {name for name in METRICS if name.startswith("monitor.")})


def flatten(config: Any) -> dict[str, Scalar]:
    """A run's configuration as flat scalars: nested mappings get dotted names, anything else its text."""
    flat: dict[str, Scalar] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif value is None or isinstance(value, bool | int | str):
            flat[prefix] = value if not isinstance(value, int) or abs(value) < 1 << 63 else str(value)
        elif isinstance(value, float):
            flat[prefix] = value if value == value and abs(value) != float("inf") else str(value)
        else:
            flat[prefix] = str(value)[:MAX_NAME_LENGTH]

    walk("", attributes(config))
    return {key[:MAX_NAME_LENGTH]: (value[:4096] if isinstance(value, str) else value) for key, value in flat.items()}


def attributes(config: Any) -> Mapping[str, Any]:
    """A configuration as a mapping: itself, or the attributes of a namespace or a dataclass instance.

    Raises:
        ConfigurationError: it is neither.
    """
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    if not hasattr(config, "__dict__"):
        raise ConfigurationError(
            f"config={config!r}: expected a mapping or an object with attributes (argparse.Namespace, a dataclass)"
        )
    found: dict[str, Any] = vars(config)
    return found


def _refuse_unknown(arguments: Mapping[str, Any]) -> None:
    built: dict[str, tuple[Any, ...]] = {"compile": (None, "inline"), "distributed": ("merge", "reduce")}
    for name, accepted in built.items():
        value = arguments[name]
        if value not in accepted:
            raise ConfigurationError(f"{name}={value!r}: expected {' or '.join(map(repr, accepted))}")


def _choice(name: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ConfigurationError(f"{name}={value!r}: expected one of {', '.join(choices)}")
    return str(value)


def _mode(mode: Any, environ: Mapping[str, str]) -> Mode:
    if mode == "auto" and environ.get("INTERNIST_MODE"):
        mode = environ["INTERNIST_MODE"]
        if mode not in MODES:
            raise ConfigurationError(f"INTERNIST_MODE={mode!r}: expected one of {', '.join(MODES)}")
    return _choice("mode", mode, MODES)  # type: ignore[return-value]


def _step(step: Any, environ: Mapping[str, str]) -> int | None:
    name = "step"
    if step is None and environ.get("INTERNIST_STEP"):
        name, text = "INTERNIST_STEP", environ["INTERNIST_STEP"]
        step = int(text) if text.isdecimal() else text
    if step is None:
        return None
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ConfigurationError(f"{name}={step!r}: expected the number of optimizer steps already made, 0 or more")
    return step


def _server(server: Any) -> str:
    if not isinstance(server, str) or not server.startswith(("http://", "https://")) or len(server) < 10:
        raise ConfigurationError(f"server={server!r}: expected an address such as {DEFAULT_SERVER}")
    return server.rstrip("/")


def _directory(directory: Any) -> Path:
    if not isinstance(directory, str | os.PathLike):
        raise ConfigurationError(f"directory={directory!r}: expected a path")
    return Path(directory).expanduser()


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > MAX_NAME_LENGTH or not value.isprintable():
        raise ConfigurationError(f"{name}={value!r}: expected 1 to {MAX_NAME_LENGTH} printable characters")
    return value


def _optional_text(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _expressions(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise ConfigurationError(f"{name}={value!r}: expected a regular expression or a list of them")


Rename = Callable[[str], str] | Mapping[str, str] | None
