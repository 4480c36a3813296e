"""Exports histories to files that other tools read."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from internist.errors import ConfigurationError
from internist.history.curves import Curve, History
from internist.history.frames import Frame, table

Format = Literal["parquet", "csv", "jsonl", "openmetrics", "tensorboard"]
_COLUMNS: Final = ("run", "metric", "kind", "subject", "index", "step", "time_ms", "value")
_NO_LETTER: Final = re.compile(r"[^a-zA-Z0-9_]")


def export(histories: Sequence[History], path: Path, *, format: Format) -> int:
    """Write the points of runs to a file; for `tensorboard` to a directory, one below it for each run.

    Returns:
        How many points were written.

    Raises:
        ConfigurationError: the format is none of those that are known.
        OSError: the path cannot be written.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    FORMATS[format](histories, path)
    return sum(len(curve.steps) for history in histories for curve in history.curves)


def _parquet(histories: Sequence[History], path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(table(Frame.of(histories)), path)


def _csv(histories: Sequence[History], path: Path) -> None:
    """NaN and infinities as Python and C write them: `nan`, `inf`, `-inf`."""
    columns = Frame.of(histories)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(zip(*(getattr(columns, name) for name in _COLUMNS), strict=True))


def _jsonl(histories: Sequence[History], path: Path) -> None:
    """A line a point; numbers that JSON has not are strings, as in the API. `internist import jsonl` reads it."""
    with path.open("w", encoding="utf-8") as file:
        for history in histories:
            for curve, step, time_ms, value in history.points():
                point = {
                    "run": history.run, "tag": curve.tag, "metric": curve.metric, "kind": curve.kind,
                    "subject": curve.subject, "index": curve.index, "step": step, "time": time_ms / 1e3,
                    "value": value if math.isfinite(value) else repr(value),
                }  # fmt: skip
                file.write(json.dumps(point) + "\n")


def _openmetrics(histories: Sequence[History], path: Path) -> None:
    """OpenMetrics' text, with times: what `promtool tsdb create-blocks-from openmetrics` takes in."""
    families: dict[str, list[str]] = {}
    for history in histories:
        for curve in history.curves:
            family = "internist_" + _NO_LETTER.sub("_", curve.metric)
            own = families.setdefault(family, [])
            labels = _labels(history, curve)
            for time_ms, value in _by_time(curve):
                own.append(f"{family}{{{labels}}} {_number(value)} {time_ms / 1e3:.3f}")
    with path.open("w", encoding="utf-8") as file:
        for family, lines in families.items():
            file.write(f"# TYPE {family} gauge\n" + "".join(line + "\n" for line in lines))
        file.write("# EOF\n")


def _by_time(curve: Curve) -> Iterable[tuple[int, float]]:
    """Values at rising times: where two points share one, the later step stays."""
    return sorted(dict(zip(curve.times_ms, curve.values, strict=True)).items())


def _labels(history: History, curve: Curve) -> str:
    labels = {"run": history.run, "metric": curve.metric, "kind": curve.kind, "subject": curve.subject}
    if curve.index is not None:
        labels["index"] = str(curve.index)
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(value).replace("inf", "Inf") if math.isinf(value) else repr(value)


def _tensorboard(histories: Sequence[History], path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for history in histories:
        writer: Any = EventFileWriter(str(path / (_NO_LETTER.sub("_", history.name) + f"-{history.run[:6]}")))
        for curve, step, time_ms, value in history.points():
            summary = Summary(value=[Summary.Value(tag=curve.tag, simple_value=value)])
            writer.add_event(Event(wall_time=time_ms / 1e3, step=step, summary=summary))
        writer.close()


FORMATS: Final[Mapping[str, Callable[[Sequence[History], Path], None]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
    "openmetrics": _openmetrics,
    "tensorboard": _tensorboard,
}
