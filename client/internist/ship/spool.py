"""The spool: an append-only, checksummed file of everything one rank has to say. The queue *is* the file."""

import errno
import fcntl
import logging
import os
import threading
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from internist.errors import SpoolError
from internist.schema.wire import CoverageEntry, Finish, Frame, Note, Plan, RunStart, Series
from internist.ship import records
from internist.ship.reader import SpoolReader
from internist.ship.segments import rank_directory, segment_numbers, segment_path

_LOG = logging.getLogger(__name__)
_SEGMENTS = 8
_SERIES_PER_RECORD = 1_000
_SCAN_BYTES = 1 << 20
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LOSSES = (OSError, TypeError, ValueError, OverflowError, msgspec.MsgspecError)


@dataclass(slots=True)
class _Segment:
    """One file of the spool: its size in bytes, its sequence numbers, and which of them are no frames."""

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

    Attributes:
        directory: the rank's directory.
        dropped: records that were lost: not written because the disk was full, or deleted for the budget before the
            server had them.
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
        self._start = start
        self._declared: list[tuple[str, object]] = []
        self._owed: list[tuple[str, object]] = []
        self._segments: list[_Segment] = []
        self._preamble = 0
        self._file = -1
        self._process = os.getpid()
        self._complained = False
        self._mutex = threading.Lock()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.directory)
        except BlockingIOError:
            raise SpoolError(
                f"{self.directory} has a writer already: every start needs an INTERNIST_ATTEMPT of its own"
            ) from None
        except OSError as error:
            raise SpoolError(f"cannot keep a spool in {self.directory}: {_reason(error)}") from error
        try:
            self._recover()
            self._begin_segment()
        except _LOSSES as error:
            os.close(self._lock)
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
    ) -> bool:
        """Write what is given, one record each; whether it is in the file now. Never raises; any thread may call.

        Series and plans are never lost: what cannot be written now is written before the next record. Anything else
        that cannot be written is counted in `dropped`.
        """
        with self._mutex:
            if self._file < 0 or os.getpid() != self._process:
                return False
            for at in range(0, len(series or ()), _SERIES_PER_RECORD):
                self._owed.append(("series", (series or ())[at : at + _SERIES_PER_RECORD]))
            if plan is not None:
                self._owed.append(("plan", plan))
            contents = [("coverage", coverage), ("frame", frame), ("note", note), ("finish", finish)]
            given = [(kind, content) for kind, content in contents if content is not None]
            try:
                self._settle()
                while given:
                    self._write(*given[0])
                    del given[0]
            except _LOSSES as error:
                self.dropped += len(given)
                self._complain(error)
                return False
            return True

    def restart(self, start_step: int) -> RunStart:
        """Correct the first step of the run: a new segment begins with the corrected start. Never raises."""
        with self._mutex:
            self._start = replace(self._start, start_step=start_step)
            if self._file >= 0 and os.getpid() == self._process:
                try:
                    self._begin_segment()
                except _LOSSES as error:
                    self._complain(error)
            return self._start

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
                _sync(segment_path(self.directory, segment.number))
            _sync(self.directory)
            os.close(self._lock)

    def _settle(self) -> None:
        """Write the declarations that are owed."""
        while self._owed:
            self._write(*self._owed[0])
            self._declared.append(self._owed.pop(0))

    def _write(self, kind: str, content: object) -> None:
        deleted = os.fstat(self._file).st_nlink == 0  # by someone else, while we write it
        if deleted or self._segments[-1].size >= max(self._budget // _SEGMENTS, 2 * self._preamble):
            self._begin_segment()
        if deleted:
            self._forget_deleted()
        segment = self._segments[-1]
        data = records.encode(self.last_sequence + 1, kind, content)
        self._make_room(len(data))
        _write_at(self._file, data, segment.size)
        self.last_sequence += 1
        segment.size += len(data)
        segment.last = self.last_sequence
        if kind != "frame":
            segment.others.append(self.last_sequence)

    def _begin_segment(self) -> None:
        """Go on in a new file, which repeats the start and all declarations, so that it can be understood by itself."""
        segment = _Segment(self._segments[-1].number + 1 if self._segments else 1, first=self.last_sequence + 1)
        contents = [("start", self._start), *self._declared]
        parts = [records.encode(segment.first + index, *content) for index, content in enumerate(contents)]
        data = b"".join(parts)
        self._make_room(len(data))
        path = segment_path(self.directory, segment.number)
        unfinished = path.with_suffix(".new")
        self.directory.mkdir(parents=True, exist_ok=True)
        file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write_at(file, data, 0)
            unfinished.rename(path)  # readers never see half a beginning
        except OSError:
            os.close(file)
            unfinished.unlink(missing_ok=True)
            raise
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
            segment_path(self.directory, oldest.number).unlink(missing_ok=True)
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
            outlines = [records.outline(body) for body in records.bodies(data)]
            segment.first = outlines[0][0] if segment.last < 0 else segment.first
            segment.last = self.last_sequence = last
            segment.others.extend(sequence for sequence, step in outlines if step is None)
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
                self._start.run, self.directory, _reason(error),
            )  # fmt: skip


def is_being_written(directory: Path) -> bool:
    """Whether a process has a rank's spool open for writing."""
    try:
        file = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _lock(directory: Path) -> int:
    """An open, locked file that says this directory has a writer.

    Raises:
        BlockingIOError: another writer holds it.
    """
    file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some network file systems have no locks
            os.close(file)
            raise
    return file


def _write_at(file: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`, or nothing."""
    done = 0
    try:
        while done < len(data):
            done += os.pwrite(file, memoryview(data)[done:] if done else data, offset + done)
    except OSError:
        os.ftruncate(file, offset)
        raise


def _sync(path: Path) -> None:
    """Put a file or directory on the disk; a failure is the disk's last word and no loss for the caller."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        _LOG.warning("%s is gone: %s", path, _reason(error))
        return
    try:
        os.fsync(file)
    except OSError as error:
        _LOG.warning("%s may not be on the disk: %s", path, _reason(error))
    finally:
        os.close(file)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
