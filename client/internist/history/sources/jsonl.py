"""Lines of JSON, one object a step: `{"step": 10, "loss": 2.1, "lr": 0.001, "time": 1733000000.0}`.

Also the lines that `internist export --format jsonl` writes, one object a point.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from internist.errors import ConfigurationError
from internist.history.curves import CurveBuilder, History

_STEPS: Final = ("step", "_step", "global_step", "iteration", "iter")
_TIMES: Final = ("time", "_timestamp", "timestamp", "wall_time")
_NONFINITE: Final = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}


def read(path: Path, names: Mapping[str, str]) -> list[History]:
    """The history of one file; of a file of exported points, that of each run in it.

    Raises:
        ConfigurationError: the file is none, or a line is no JSON object with a step.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path} is no file: expected lines of JSON objects")
    runs: dict[str, CurveBuilder] = {}
    with path.open(encoding="utf-8") as lines:
        for place, line in enumerate(lines, start=1):
            if line.strip():
                _take(runs, names, line, f"{path}:{place}")
    return [
        History(run=f"{run}\0{path.resolve()}", name=run or path.stem, curves=built.curves(), source="jsonl")
        for run, built in runs.items()
    ]


def _take(runs: dict[str, CurveBuilder], names: Mapping[str, str], line: str, where: str) -> None:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where} is no JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ConfigurationError(f'{where}: expected an object such as {{"step": 10, "loss": 2.1}}, got {line[:40]!r}')
    step = next((entry[name] for name in _STEPS if name in entry), None)
    if isinstance(step, bool) or not isinstance(step, int | float) or step != int(step):
        raise ConfigurationError(f"{where}: expected a whole number under one of {', '.join(_STEPS)}, got {step!r}")
    time_ms = _time_ms(entry)
    run = ""
    if "tag" in entry and "value" in entry:
        run, entry = str(entry.get("run", "")), {str(entry["tag"]): entry["value"]}
    built = runs.setdefault(run, CurveBuilder(names))
    for name, value in entry.items():
        scalar = _scalar(value)
        if scalar is not None and name not in (*_STEPS, *_TIMES):
            built.add(name, int(step), time_ms, scalar)


def _time_ms(entry: Mapping[str, Any]) -> int:
    found = next((entry[name] for name in _TIMES if isinstance(entry.get(name), int | float)), 0.0)
    return int(found * 1e3)


def _scalar(value: Any) -> float | None:
    if isinstance(value, str):
        return _NONFINITE.get(value.lower())
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
