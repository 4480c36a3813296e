"""Sync: ship what jobs that have ended left in their spools."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from internist.errors import NotInternist, ServerBusy, ServerError, SpoolError, TokenRefused
from internist.schema.wire import RunStart
from internist.ship import records
from internist.ship.connection import Connection
from internist.ship.delivery import SLICE_BYTES, Delivery
from internist.ship.reader import SpoolReader
from internist.ship.segments import rank_directories, read_start
from internist.ship.spool import is_being_written

_BUSY_S = 600.0
"""How long a busy server is waited for."""
_RETRIES_S = (0.5, 1.0, 2.0, 4.0)
_SMALLEST_SLICE = 64 << 10
_ALL_RANKS_BYTES = 8 << 20

_Rank = tuple[Path, RunStart]
_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class SyncReport:
    """What a sync found and did.

    Attributes:
        runs: runs whose spools were shipped.
        attempts: number of their attempts.
        spools: number of their ranks' spools.
        records: records that were sent.
        stored: records that the server did not have.
        duplicates: records that were sent and that the server had already.
        refused: reasons for which records were refused, by the server or on the way to it, with their number.
        corrupt: damaged places in the files, which were skipped.
        live: directories that a job is still writing: what they get later is not shipped.
        unreadable: directories whose spool tells no start, and which were left out.
        missing: with `verify`, records that the server turned out not to have; None without.
        urls: addresses of the runs' pages.
    """

    runs: list[str] = field(default_factory=list)
    attempts: int = 0
    spools: int = 0
    records: int = 0
    stored: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    corrupt: int = 0
    live: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    missing: int | None = None
    urls: list[str] = field(default_factory=list)


Told = Callable[[int, int], None]
"""Is told how much of long work is done, and of how much."""


def say_nothing(done: int, of: int) -> None:
    """What is told of progress where nobody watches."""


def sync(
    directory: Path, *, server: str, token: str | None = None, verify: bool = False, told: Told = say_nothing
) -> SyncReport:
    """Ship every spool at or below a directory: the root's, a run's, an attempt's or one rank's.

    What the server has already is not sent, so a second sync changes nothing. Attempts go in order of their starts;
    the ranks of one go side by side by step, so that the server can complete its steps.

    Args:
        directory: where to look.
        server: address of the server.
        token: bearer token, where the server asks for one.
        verify: send every record once more, and count those that the server turns out to have lacked.
        told: is told how many attempts have been shipped, of how many.

    Raises:
        SpoolError: there are no spools.
        ServerError: the server cannot be used.
    """
    report = SyncReport()
    attempts = _attempts(directory, report)
    connection = Connection(server, token)
    try:
        for done, ranks in enumerate(attempts):
            told(done, len(attempts))
            _sync_attempt(ranks, connection, report, verify=verify)
        told(len(attempts), len(attempts))
    finally:
        connection.close()
    return report


def _attempts(directory: Path, report: SyncReport) -> list[list[_Rank]]:
    """The ranks of each attempt below a directory, attempts in order of their starts.

    Raises:
        SpoolError: there are none.
    """
    if not directory.is_dir():
        raise SpoolError(f"{directory} is not a directory")
    attempts: dict[tuple[str, str], list[_Rank]] = {}
    for path in rank_directories(directory):
        start = read_start(path)
        if start is None:
            report.unreadable.append(path)
            continue
        if is_being_written(path):
            report.live.append(path)
        attempts.setdefault((start.run, start.attempt), []).append((path, start))
    if not attempts and not report.unreadable:
        raise SpoolError(f"{directory} holds no spools: expected RUN/ATTEMPT/rank-00000/000001.spool below it")
    return sorted(attempts.values(), key=lambda ranks: min(start.started_at_ms for _, start in ranks))


def _sync_attempt(ranks: list[_Rank], connection: Connection, report: SyncReport, *, verify: bool) -> None:
    """Ship all ranks of one attempt, and add to the report what became of it."""
    deliveries = _deliveries(ranks, connection)
    for delivery in deliveries.values():
        _patiently(delivery.begin)
    report.records += _ship(deliveries.values(), resume=True)
    run = ranks[0][1].run
    report.runs += [run] if run not in report.runs else []
    report.attempts += 1
    report.spools += len(ranks)
    for delivery in deliveries.values():
        report.stored += delivery.stored
        report.duplicates += delivery.duplicates
        report.refused.update(delivery.refused)
        report.corrupt += delivery.corrupt
        report.urls += [delivery.url] if delivery.url and delivery.url not in report.urls else []
    if verify:
        again = _deliveries(ranks, connection)
        _ship(again.values(), resume=False)
        lacked = sum(delivery.stored for path, delivery in again.items() if path not in report.live)
        report.missing = (report.missing or 0) + lacked


def _deliveries(ranks: list[_Rank], connection: Connection) -> dict[Path, Delivery]:
    slice_bytes = min(SLICE_BYTES, max(_SMALLEST_SLICE, _ALL_RANKS_BYTES // len(ranks)))
    return {path: Delivery(SpoolReader(path), start, connection, slice_bytes=slice_bytes) for path, start in ranks}


def _patiently(ask: Callable[[], _Answer]) -> _Answer:
    """What a server answers that may be busy: it says when to come again.

    Raises:
        ServerError: it was busy for too long, or cannot be used.
    """
    waited_s = 0.0
    while True:
        try:
            return ask()
        except ServerBusy as error:
            if waited_s > _BUSY_S:
                raise
            time.sleep(error.wait_s)
            waited_s += error.wait_s


def _ship(deliveries: Iterable[Delivery], *, resume: bool) -> int:
    """Send all spools to their ends, always the one that is furthest behind; the number of records sent."""
    reached = dict.fromkeys(deliveries, -1)
    records_sent = failures = 0
    stale = False
    while reached:
        delivery = min(reached, key=lambda one: reached[one])
        try:
            if stale and resume:
                for one in reached:
                    _patiently(one.begin)
            stale = False
            body, last = delivery.read()
            if not body:
                del reached[delivery]
                continue
            if _patiently(partial(delivery.send, body, last)) is not None:
                sent = [records.glance(record) for record in records.bodies(body)]
                records_sent += len(sent)
                reached[delivery] = max([reached[delivery], *(one.step for one in sent if one.step is not None)])
            failures = 0
        except ServerError as error:
            if isinstance(error, TokenRefused | NotInternist) or failures == len(_RETRIES_S):
                raise
            time.sleep(_RETRIES_S[failures])
            failures += 1
            stale = True
    return records_sent
