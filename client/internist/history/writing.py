"""Writes a history into a spool, from which it is shipped and judged like any run."""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from internist import __version__
from internist.history.curves import Curve, History
from internist.record.plans import Plans
from internist.record.series_book import SeriesBook
from internist.schema.metrics import METRICS, combine_of
from internist.schema.wire import MAX_NAME_LENGTH, VERSION, Facts, Finish, RunStart, Series
from internist.ship.spool import Spool

_ID_LENGTH: Final = 24


def write(history: History, directory: Path, *, project: str = "") -> str:
    """Write a history as the spool of one attempt of one rank.

    The run's id is made of its source and its id there, and records are in a fixed order: what is imported again is
    known to the server already.

    Args:
        history: what to write; its curves have points.
        directory: the directory of all runs.
        project: groups runs; empty: the name of the source.

    Returns:
        The run's id.

    Raises:
        SpoolError: the directory cannot be written.
    """
    run = hashlib.sha256(f"{history.source}\0{history.run}".encode()).hexdigest()[:_ID_LENGTH]
    by_step = _by_step(history)
    first, last = min(by_step, default=0), max(by_step, default=0)
    times = [time_ms for _, _, time_ms, _ in history.points()]
    start = RunStart(
        version=VERSION,
        run=run,
        attempt=run,
        rank=0,
        world_size=1,
        project=project[:MAX_NAME_LENGTH] or history.source,
        name=history.name[:MAX_NAME_LENGTH] or history.run,
        every=1,
        started_at_ms=min(times, default=0),
        start_step=first,
        config=dict(history.config),
        client=f"internist {__version__}, imported from {history.source}",
    )
    spool = Spool(directory, start)
    try:
        plans, book = Plans(spool), SeriesBook(lambda _: True)
        series = {id(curve): _series(book, curve) for curve in history.curves}
        for step in sorted(by_step):
            points = by_step[step]
            raw = struct.pack(f"<{len(points)}f", *(_single(_sent(curve, value)) for curve, _, value in points))
            own = [series[id(curve)] for curve, _, _ in points]
            plans.write(step, max(time_ms for _, time_ms, _ in points), own, (), raw)
        spool.append(finish=Finish(last, max(times, default=0), history.outcome))
    finally:
        spool.close()
    return run


def _by_step(history: History) -> Mapping[int, list[tuple[Curve, int, float]]]:
    by_step: dict[int, list[tuple[Curve, int, float]]] = {}
    for curve, step, time_ms, value in history.points():
        by_step.setdefault(step, []).append((curve, time_ms, value))
    return by_step


def _series(book: SeriesBook, curve: Curve) -> Series:
    known = METRICS.get(curve.metric)
    if known is None or known.cadence == "logged":
        return book.logged(curve.metric)
    facts = Facts(method="imported", module=curve.subject if curve.kind == "module" else None)
    made = book.series(curve.metric, curve.kind, curve.subject, lambda: facts, index=curve.index)
    assert made is not None, "the book was made to want every metric"
    return made


def _sent(curve: Curve, value: float) -> float:
    """A value as it travels: roots are taken where ranks have been merged."""
    return value * value if combine_of(curve.metric) in ("mean_square", "sum_square") else value


def _single(value: float) -> float:
    """A value in the range of float32: what is beyond it is infinite."""
    return value if abs(value) <= 3.4028234e38 or value != value else float("inf") if value > 0 else float("-inf")
