"""The spool: an append-only, checksummed file of everything one rank has to say. The queue *is* the file."""

import logging
import os
import threading
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from internist.errors import SpoolError
from internist.schema.wire import CoverageEntry, Finish, Frame, Note, Outline, Plan, RunStart, Series
from internist.ship import files, records
from internist.ship.locks import FileLock, is_held
from internist.ship.pieces import cut, cut_outline, cut_start
from internist.ship.plans import Plans
from internist.ship.reader import SpoolReader
from internist.ship.segments import rank_directory, segment_numbers, segment_path

_LOG = logging.getLogger(__name__)
_SEGMENTS = 8
_SCAN_BYTES = 1 << 20
_LOCK = "lock"
_INEXPRESSIBLE = (TypeError, ValueError, OverflowError, msgspec.MsgspecError)
_LOSSES = (OSError, *_INEXPRESSIBLE)

_Content = tuple[str, object]
"""A field of `Record`, and what it holds."""
_T = TypeVar("_T")


@dataclass(slots=True)
class _Segment:
    """One file of the spool: its size in bytes, its sequence numbers, and which of them end no frame."""

    number: int
    size: int = 0
    first: int = 0
    last: int = -1
    others: list[int] = field(default_factory=list)

    def frames_after(self, sequence: int) -> int:
        """Number of its frames with a higher sequence number."""
        total = self.last - max(sequence, self.first - 1)
        return max(0, total) - (len(self.others) - bisect_right(self.others, sequence))


class Spool:
    """Writer of one rank's spool.

    Records are numbered from 0, the run's start, without gaps. An existing spool of the same attempt is continued: its
    torn tail is cut, its numbers go on, and a new segment begins with the new start. Over the budget the oldest segment
    is deleted: an eighth of the budget, or twice the declarations that every segment repeats if those are more.

    What is too large for one record of `PIECE_BYTES` is written as several: a start's outline, series, plans, frames
    and coverage.

    Attributes:
        directory: the rank's directory.
        dropped: what was lost: not written because the disk was full or because msgpack cannot express it, deleted for
            the budget before the server had it, or too large for whatever lies between here and the server.
        acknowledged: highest sequence number the server has, as far as is known here; -1: none.
        last_sequence: sequence number of the newest record.

    Args:
        root: the directory of all runs.
        start: who is speaking.
        budget: bytes that this rank's spool may take on the disk.

    Raises:
        SpoolError: the directory cannot be made or written, or another process writes this spool.
    """

    def __init__(self, root: Path, start: RunStart, *, budget: int = 1 << 30) -> None:
        self.directory = rank_directory(root, start.run, start.attempt, start.rank)
        self.dropped = 0
        self.acknowledged = -1
        self.last_sequence = -1
        self._budget = budget
        self._run = start.run
        self._plans = Plans()
        self._declared: list[_Content] = []
        self._owed: list[_Content] = []
        self._segments: list[_Segment] = []
        self._preamble = 0
        self._file = -1
        self._process = os.getpid()
        self._complained = False
        self._mutex = threading.Lock()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.directory / _LOCK)
        except BlockingIOError:
            raise SpoolError(
                f"{self.directory} has a writer already: every start needs an INTERNIST_ATTEMPT of its own"
            ) from None
        except OSError as error:
            raise SpoolError(f"cannot keep a spool in {self.directory}: {_reason(error)}") from error
        try:
            head, outlines = cut_start(start)
            self._declared = [("start", head), *(("outline", outline) for outline in outlines)]
            self._recover()
            self._begin_segment()
        except _LOSSES as error:
            self._lock.release()
            raise SpoolError(f"cannot keep a spool in {self.directory}: {_reason(error)}") from error

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    def append(
        self,
        *,
        series: tuple[Series, ...] | None = None,
        plan: Plan | None = None,
        frame: Frame | None = None,
        coverage: tuple[CoverageEntry, ...] | None = None,
        note: Note | None = None,
        finish: Finish | None = None,
        outline: Outline | None = None,
    ) -> bool:
        """Write what is given; whether all of it is in the file now. Never raises; any thread may call.

        Series, plans and outlines are never lost for want of room: what cannot be written now is written before the
        next record. Anything else that cannot be written is counted in `dropped`.
        """
        with self._mutex:
            if self._file < 0 or os.getpid() != self._process:
                return False
            is_whole = self._owe(series or (), plan, outline)
            others: list[list[_Content]] = []
            if coverage is not None:
                others.append([("coverage", piece) for piece in self._cut(coverage) or [()]])
            if frame is not None:
                others.append([("frame", part) for part in self._plans.frames(frame)])
            others += [[(kind, one)] for kind, one in (("note", note), ("finish", finish)) if one is not None]
            try:
                is_whole &= self._settle()
                while others:
                    for kind, content in others[0]:
                        self._write(kind, content)
                    del others[0]
            except _LOSSES as error:
                self.dropped += len(others)
                self._complain(error)
                return False
            return is_whole

    def lose(self, count: int) -> None:
        """Count records in `dropped` that never got through to the server."""
        with self._mutex:
            self.dropped += count

    def restart(self, start_step: int) -> None:
        """Correct the first step of the run: a new segment begins with the corrected start. Never raises."""
        with self._mutex:
            kind, head = self._declared[0]
            assert isinstance(head, RunStart)
            self._declared[0] = (kind, replace(head, start_step=start_step))
            if self._file >= 0 and os.getpid() == self._process:
                try:
                    self._begin_segment()
                except _LOSSES as error:
                    self._complain(error)

    def acknowledge(self, sequence: int) -> None:
        """Note that the server has every record up to `sequence`: they are no loss when the budget deletes them."""
        with self._mutex:
            self.acknowledged = min(sequence, self.last_sequence)

    def close(self) -> None:
        """Put everything on the disk and let go of the directory. Further records are refused."""
        with self._mutex:
            if self._file < 0 or os.getpid() != self._process:
                return
            os.close(self._file)
            self._file = -1
            for segment in self._segments:
                files.sync(segment_path(self.directory, segment.number))
            files.sync(self.directory)
            self._lock.release()

    def _owe(self, series: tuple[Series, ...], plan: Plan | None, outline: Outline | None) -> bool:
        """Note the declarations that have to be written next; whether all of them can be."""
        before = self.dropped
        self._owed += [("series", piece) for piece in self._cut(series)]
        if plan is not None:
            self._owed += [("plan", part) for part in self._plans.declare(plan)]
        if outline is not None:
            pieces, errors = cut_outline(outline)
            self._owed += [("outline", piece) for piece in pieces]
            self.dropped += len(errors)
        return self.dropped == before

    def _cut(self, items: tuple[_T, ...]) -> list[tuple[_T, ...]]:
        """Items in pieces that each fit a record; those that cannot be expressed are lost alone."""
        pieces, errors = cut(items)
        self.dropped += len(errors)
        for error in errors[:1]:
            self._complain(error)
        return pieces

    def _settle(self) -> bool:
        """Write the declarations that are owed; False where one was lost because it cannot be expressed."""
        is_whole = True
        while self._owed:
            try:
                self._write(*self._owed[0])
            except _INEXPRESSIBLE as error:  # kept, it would hold up everything that follows for ever
                self._owed.pop(0)
                self.dropped += 1
                self._complain(error)
                is_whole = False
            else:
                self._declared.append(self._owed.pop(0))
        return is_whole

    def _write(self, kind: str, content: object) -> None:
        deleted = files.is_deleted(self._file)  # by someone else, while we write it
        if deleted or self._segments[-1].size >= max(self._budget // _SEGMENTS, 2 * self._preamble):
            self._begin_segment()
        if deleted:
            self._forget_deleted()
        segment = self._segments[-1]
        data = records.encode(self.last_sequence + 1, kind, content)
        self._make_room(len(data))
        files.write_at(self._file, data, segment.size)
        self.last_sequence += 1
        segment.size += len(data)
        segment.last = self.last_sequence
        if not (isinstance(content, Frame) and not content.continued):
            segment.others.append(self.last_sequence)

    def _begin_segment(self) -> None:
        """Go on in a new file, which repeats the start and all declarations, so that it can be understood by itself."""
        segment = _Segment(self._segments[-1].number + 1 if self._segments else 1, first=self.last_sequence + 1)
        parts = [records.encode(segment.first + index, *content) for index, content in enumerate(self._declared)]
        data = b"".join(parts)
        self._make_room(len(data))
        path = segment_path(self.directory, segment.number)
        unfinished = path.with_suffix(".new")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            _write_whole(unfinished, data)
            unfinished.replace(path)  # readers never see half a beginning
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        file = files.open_for_writing(path, create=False)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._preamble = file, len(data)
        self.last_sequence = segment.last = segment.first + len(parts) - 1
        segment.size, segment.others = len(data), list(range(segment.first, segment.last + 1))
        self._segments.append(segment)

    def _make_room(self, size: int) -> None:
        """Delete the oldest segments until `size` more bytes are within the budget. The newest always stays."""
        while len(self._segments) > 1 and self.size + size > self._budget:
            oldest = self._segments[0]
            if not files.delete(segment_path(self.directory, oldest.number)):
                return  # a reader has it open: next time
            self.dropped += oldest.frames_after(self.acknowledged)
            del self._segments[0]

    def _forget_deleted(self) -> None:
        gone = [s for s in self._segments if not segment_path(self.directory, s.number).exists()]
        self.dropped += sum(segment.frames_after(self.acknowledged) for segment in gone)
        self._segments = [segment for segment in self._segments if segment not in gone]

    def _recover(self) -> None:
        """Learn what an earlier process of this attempt wrote, and cut its torn tail."""
        for unfinished in self.directory.glob("*.new"):
            unfinished.unlink()
        self._segments = [_Segment(number) for number in segment_numbers(self.directory)]
        by_number = {segment.number: segment for segment in self._segments}
        reader = SpoolReader(self.directory)
        data, last = reader.read(-1, _SCAN_BYTES)
        while data:
            segment = by_number[reader.number]
            found = [records.glance(body) for body in records.bodies(data)]
            segment.first = found[0].sequence if segment.last < 0 else segment.first
            segment.last = self.last_sequence = last
            segment.others.extend(one.sequence for one in found if not one.ends_frame)
            for one in found:
                if one.plan is not None:
                    self._plans.take(one.plan.number)
            data, last = reader.read(last, _SCAN_BYTES)
        if reader.number in by_number:
            os.truncate(segment_path(self.directory, reader.number), reader.offset)
        for segment in self._segments:
            segment.size = segment_path(self.directory, segment.number).stat().st_size

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            _LOG.warning(
                "run %s: a record could not be written to %s: %s. Training goes on; what is lost is counted.",
                self._run, self.directory, _reason(error),
            )  # fmt: skip


def is_being_written(directory: Path) -> bool:
    """Whether a process has a rank's spool open for writing; False where that cannot be known."""
    return is_held(directory / _LOCK)


def _write_whole(path: Path, data: bytes) -> None:
    file = files.open_for_writing(path, empty=True)
    try:
        files.write_at(file, data, 0)
    finally:
        os.close(file)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
