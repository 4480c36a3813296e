"""MLflow's own stores, read without it: a directory `mlruns` of text files, or its SQLite database.

A metric's file has a line a point, `TIMESTAMP VALUE STEP`; the database keeps NaN as a flag, and infinities as the
largest numbers there are.
"""

import math
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from internist.errors import ConfigurationError
from internist.history.curves import CurveBuilder, History
from internist.schema.wire import Outcome, Scalar

_DATABASE: Final = b"SQLite format 3\0"
_OUTCOMES: Final[Mapping[str, Outcome]] = {"FINISHED": "finished", "3": "finished", "FAILED": "failed", "4": "failed"}
"""By the status of a run, in words or as the number that its text files keep; any other was killed."""


def read(path: Path, names: Mapping[str, str]) -> list[History]:
    """The histories of every run of a store.

    Raises:
        ConfigurationError: the path is no store of MLflow's.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_DATABASE)) != _DATABASE:
                raise ConfigurationError(f"{path} is no SQLite database of MLflow's")
        return list(_of_database(path, names))
    runs = sorted(meta.parent for meta in path.rglob("meta.yaml") if (meta.parent / "metrics").is_dir())
    if not runs:
        raise ConfigurationError(f"{path} holds no runs of MLflow: expected EXPERIMENT/RUN/meta.yaml, or mlflow.db")
    return [_of_directory(run, names) for run in runs]


def _of_database(path: Path, names: Mapping[str, str]) -> Iterator[History]:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        try:
            runs = database.execute(
                "SELECT r.run_uuid, r.name, r.status, e.name FROM runs r JOIN experiments e"
                " ON e.experiment_id = r.experiment_id ORDER BY r.start_time, r.run_uuid"
            ).fetchall()
            for run, name, status, project in runs:
                built = CurveBuilder(names)
                points = database.execute(
                    "SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ?"
                    " ORDER BY key, timestamp",
                    (run,),
                )
                for key, step, time_ms, value, is_nan in points:
                    built.add(key, step, time_ms, math.nan if is_nan else _infinite(value))
                config: dict[str, Scalar] = dict(
                    database.execute("SELECT key, value FROM params WHERE run_uuid = ? ORDER BY key", (run,))
                )
                outcome = _OUTCOMES.get(status, "killed")
                yield History(run, name or run, project, config, built.curves(), outcome, "mlflow")
        except sqlite3.DatabaseError as error:
            raise ConfigurationError(f"{path} is no database of MLflow's: {error}") from error


def _of_directory(run: Path, names: Mapping[str, str]) -> History:
    meta, experiment = _meta(run / "meta.yaml"), _meta(run.parent / "meta.yaml")
    built = CurveBuilder(names)
    metrics = run / "metrics"
    for file in sorted(one for one in metrics.rglob("*") if one.is_file()):
        for place, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            fields = line.split()
            try:
                time_ms, value, step = int(fields[0]), float(fields[1]), int(fields[2])
            except (ValueError, IndexError) as error:
                raise ConfigurationError(f"{file}:{place}: expected TIMESTAMP VALUE STEP, got {line[:60]!r}") from error
            built.add(file.relative_to(metrics).as_posix(), step, time_ms, _infinite(value))
    parameters = run / "params"
    config: dict[str, Scalar] = {
        file.relative_to(parameters).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(parameters.rglob("*"))
        if file.is_file()
    }
    name = meta.get("run_name") or run.name
    outcome = _OUTCOMES.get(meta.get("status", ""), "killed")
    return History(run.name, name, experiment.get("name", ""), config, built.curves(), outcome, "mlflow")


def _meta(file: Path) -> dict[str, str]:
    """The plain entries of a file that MLflow writes: a key and a scalar on a line."""
    if not file.is_file():
        return {}
    pairs = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs if value.strip()}


def _infinite(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value
