"""Points as columns: one table for pandas, polars, Parquet, CSV and lines of JSON, by way of Arrow."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from internist.errors import ConfigurationError
from internist.history.curves import History

Library = Literal["pandas", "polars", "arrow"]
LIBRARIES: Final[tuple[Library, ...]] = ("pandas", "polars", "arrow")


@dataclass(frozen=True, slots=True)
class Frame:
    """A table of points: columns of equal length, a row a point."""

    run: list[str] = field(default_factory=list)
    metric: list[str] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    subject: list[str] = field(default_factory=list)
    index: list[int | None] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    time_ms: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, histories: Iterable[History]) -> "Frame":
        """The points of runs, run by run and curve by curve."""
        made = cls()
        for history in histories:
            for curve in history.curves:
                count = len(curve.steps)
                made.run.extend([history.run] * count)
                made.metric.extend([curve.metric] * count)
                made.kind.extend([curve.kind] * count)
                made.subject.extend([curve.subject] * count)
                made.index.extend([curve.index] * count)
                made.step.extend(curve.steps)
                made.time_ms.extend(curve.times_ms)
                made.value.extend(curve.values)
        return made


def table(frame: Frame) -> Any:
    """The columns as Arrow's table; names and subjects, which repeat, as dictionaries."""
    import pyarrow

    words = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    types = {
        "run": words,
        "metric": words,
        "kind": words,
        "subject": words,
        "index": pyarrow.int32(),
        "step": pyarrow.int64(),
        "time_ms": pyarrow.timestamp("ms", tz="UTC"),
        "value": pyarrow.float64(),
    }
    columns = {name: pyarrow.array(getattr(frame, name), type=kind) for name, kind in types.items()}
    return pyarrow.table(columns).rename_columns(["time" if name == "time_ms" else name for name in types])


def frame(columns: Frame, library: Library | None) -> Any:
    """The columns in a library's own table.

    Raises:
        ConfigurationError: the library is none of those that are known.
        ModuleNotFoundError: it is not installed.
    """
    chosen = library or next((one for one in LIBRARIES if one == "arrow" or importlib.util.find_spec(one)), "arrow")
    if chosen not in LIBRARIES:
        raise ConfigurationError(f"library={library!r}: expected one of {', '.join(LIBRARIES)}")
    made = table(columns)
    if chosen == "pandas":
        return made.to_pandas()
    if chosen == "polars":
        import polars

        return polars.from_arrow(made)
    return made
