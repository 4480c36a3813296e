"""Reader of one rank's spool: slices of whole records, verbatim, in order, while its writer may still be appending."""

import os
from pathlib import Path

from internist.ship import files, records
from internist.ship.segments import read_head, segment_numbers, segment_path

_WINDOW = 4 << 20


class SpoolReader:
    """Reads a rank's spool from any sequence number on.

    It remembers where the last slice ended, so following a growing spool costs one read of what is new. No file stays
    open between calls, and none is ever changed.

    Attributes:
        directory: the rank's directory.
        corrupt: damaged places that were skipped because sound records follow them.
        number: the segment that is being read; 0 before the first.
        offset: where the last slice ended in it, in bytes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.corrupt = 0
        self._sequence: int | None = None
        self.number = 0
        self.offset = 0

    def read(self, after_sequence: int, max_bytes: int) -> tuple[bytes, int]:
        """The records that follow `after_sequence`, and the sequence number of the last of them.

        At most `max_bytes`, but at least one record. Without any, no bytes and `after_sequence`. A torn record at the
        end is not read; it may still be in the making.
        """
        if after_sequence != self._sequence:
            self._seek(after_sequence, max_bytes)
        data = self._next(max_bytes)
        if not data:
            return b"", after_sequence
        self._sequence = _last_sequence(data)
        return data, self._sequence

    def _seek(self, after_sequence: int, max_bytes: int) -> None:
        """Place the reader before the first record whose sequence number is over `after_sequence`."""
        self._sequence, self.number, self.offset = after_sequence, 0, 0
        for number in reversed(segment_numbers(self.directory)):
            head = read_head(self.directory, number)
            if head is not None and head.sequence <= after_sequence + 1:
                self.number = number
                break
        while data := self._next(max_bytes):
            if _last_sequence(data) > after_sequence:
                self.offset -= len(data) - _end_of_known(data, after_sequence)
                break

    def _next(self, max_bytes: int) -> bytes:
        """The slice at the present place, skipping what is damaged; moves behind it. Empty at the end."""
        while True:
            # Looked up before reading: if a later segment is there by now, this one does not grow any more.
            later = next((n for n in segment_numbers(self.directory) if n > self.number), None)
            data, damage_end = _slice(segment_path(self.directory, self.number), self.offset, max_bytes)
            if damage_end is not None:
                self.corrupt += 1
                self.offset = damage_end
            elif data or later is None:
                self.offset += len(data)
                return data
            else:
                self.number, self.offset = later, 0


def _slice(path: Path, offset: int, max_bytes: int) -> tuple[bytes, int | None]:
    """The sound records at an offset of a segment; if damaged ones lie there, the offset of the next sound one."""
    try:
        file = files.open_for_reading(path)
    except FileNotFoundError:  # dropped for the budget, or there is no segment yet
        return b"", None
    try:
        data = files.read_at(file, max_bytes, offset)
        if len(data) == max_bytes:  # the first record may be larger than the slice
            data += files.read_at(file, max(0, _size_at(file, offset) - max_bytes), offset + max_bytes)
        end = 0
        while (behind := records.sound_end(data, end)) is not None:
            end = behind
        if end == 0 and data:
            return b"", _next_sound(file, offset)
        return data[:end], None
    finally:
        os.close(file)


def _next_sound(file: int, offset: int) -> int | None:
    """Offset of the first sound record behind `offset`; None if there is none: a torn tail, perhaps in the making."""
    at = offset + 1
    while True:
        window = files.read_at(file, _WINDOW, at)
        found = window.find(records.SIGNATURE)
        while found >= 0:
            candidate = at + found - records.SIGNATURE_OFFSET
            if candidate > offset:
                record = files.read_at(file, _size_at(file, candidate), candidate)
                if records.sound_end(record, 0) is not None:
                    return candidate
            found = window.find(records.SIGNATURE, found + 1)
        if len(window) < _WINDOW:
            return None
        at += len(window) - len(records.SIGNATURE) + 1


def _size_at(file: int, offset: int) -> int:
    return records.claimed_size(files.read_at(file, records.HEADER.size, offset))


def _last_sequence(data: bytes) -> int:
    """Sequence number of the last of whole, sound records; the lengths alone lead there."""
    at, view = 0, memoryview(data)
    while (end := at + records.claimed_size(view[at : at + records.HEADER.size])) < len(data):
        at = end
    return records.glance(view[at + records.HEADER.size :]).sequence


def _end_of_known(data: bytes, sequence: int) -> int:
    """Where the records up to `sequence` end in a slice."""
    end = 0
    for body in records.bodies(data):
        if records.glance(body).sequence > sequence:
            break
        end += records.HEADER.size + len(body)
    return end
