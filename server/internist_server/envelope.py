"""What a request of frames holds: its records one by one, so that a bad one does not spoil its neighbours."""

import logging
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from internist.schema.wire import (
    MAX_RECORD_BYTES,
    MSGPACK_CONTENT_TYPE,
    SPOOL_CONTENT_TYPE,
    VERSION,
    Heartbeat,
    Record,
    Refused,
    RunStart,
)
from internist_server.errors import Invalid, Malformed, NewerVersion, UnsupportedContent
from internist_server.salvage import UNREADABLE, salvage_record, salvage_start

log = logging.getLogger(__name__)

JSON_CONTENT_TYPE: Final = "application/json"
UNKNOWN_SEQUENCE: Final = -1
"""Stands for the sequence number of a record that could not be read far enough to know it."""
_T = TypeVar("_T")
_Decoder = msgspec.msgpack.Decoder[_T] | msgspec.json.Decoder[_T]
_HEADER: Final = struct.Struct("<II")
_RECORD = msgspec.msgpack.Decoder(Record)
_JSON_RECORD = msgspec.json.Decoder(Record)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a request brings: the readable records of one rank, in order, and what was refused."""

    attempt: str
    rank: int
    records: tuple[Record, ...]
    refused: tuple[Refused, ...]


class _Envelope(msgspec.Struct):
    """A `FramesRequest` whose records are still bytes."""

    version: int
    attempt: str
    rank: int
    records: list[msgspec.Raw]


class _Numbered(msgspec.Struct):
    sequence: int


_ENVELOPE = msgspec.msgpack.Decoder(_Envelope)
_JSON_ENVELOPE = msgspec.json.Decoder(_Envelope)
_NUMBERED = msgspec.msgpack.Decoder(_Numbered)
_JSON_NUMBERED = msgspec.json.Decoder(_Numbered)
_PLAIN = msgspec.msgpack.Decoder()
_JSON_PLAIN = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class _Format:
    """How records are read: as such, only their number, and as plain objects."""

    record: _Decoder[Record]
    numbered: _Decoder[_Numbered]
    plain: _Decoder[Any]


_MSGPACK = _Format(_RECORD, _NUMBERED, _PLAIN)
_JSON = _Format(_JSON_RECORD, _JSON_NUMBERED, _JSON_PLAIN)
_START = msgspec.msgpack.Decoder(RunStart)
_JSON_START = msgspec.json.Decoder(RunStart)
_HEARTBEAT = msgspec.msgpack.Decoder(Heartbeat)
_JSON_HEARTBEAT = msgspec.json.Decoder(Heartbeat)


def open_contents(body: bytes, content_type: str, *, attempt: str | None, rank: int | None) -> Contents:
    """The records of a request.

    Args:
        body: as it was sent.
        content_type: without parameters.
        attempt: who sends a spool slice, from the query; its first record may say so instead.
        rank: likewise.

    Raises:
        UnsupportedContent: neither a spool slice nor msgpack nor JSON.
        Malformed: the envelope cannot be read.
        NewerVersion: a newer major version wrote it.
        Invalid: a spool slice, and nobody says whose.
    """
    if content_type == SPOOL_CONTENT_TYPE:
        return _open_spool(body, attempt, rank)
    if content_type == MSGPACK_CONTENT_TYPE:
        return _open_request(body, _ENVELOPE, _MSGPACK)
    if content_type == JSON_CONTENT_TYPE:
        return _open_request(body, _JSON_ENVELOPE, _JSON)
    raise _unsupported(content_type, f"{SPOOL_CONTENT_TYPE}, {MSGPACK_CONTENT_TYPE} or {JSON_CONTENT_TYPE}")


def open_start(body: bytes, content_type: str) -> RunStart:
    """The start that a request holds, in msgpack or JSON, without lines that cannot be read."""
    try:
        return _decode(body, content_type, _START, _JSON_START)
    except Invalid:
        saved = salvage_start(body, _PLAIN if content_type == MSGPACK_CONTENT_TYPE else _JSON_PLAIN)
        if saved is None:
            raise
        log.warning("run %s: of its start is left out: %s", saved[0].run, saved[1])
        return saved[0]


def open_heartbeat(body: bytes, content_type: str) -> Heartbeat:
    """The heartbeat that a request holds, in msgpack or JSON."""
    return _decode(body, content_type, _HEARTBEAT, _JSON_HEARTBEAT)


def require_version(version: int) -> None:
    """Raises if the version is not one this server reads."""
    if version > VERSION:
        raise NewerVersion(f"this server reads version {VERSION} of the format, not {version}: update the server")
    if version < 1:
        raise Invalid(f"versions of the format count from 1, got {version}")


def said_at_ms(record: Record) -> int | None:
    """When a client says that it made a record; None where it does not say."""
    if record.frame is not None:
        return record.frame.measured_at_ms
    if record.note is not None:
        return record.note.noted_at_ms
    return None if record.finish is None else record.finish.finished_at_ms


def _decode(body: bytes, content_type: str, msgpack: msgspec.msgpack.Decoder[_T], json: msgspec.json.Decoder[_T]) -> _T:
    if content_type not in (MSGPACK_CONTENT_TYPE, JSON_CONTENT_TYPE):
        raise _unsupported(content_type, f"{MSGPACK_CONTENT_TYPE} or {JSON_CONTENT_TYPE}")
    try:
        return (msgpack if content_type == MSGPACK_CONTENT_TYPE else json).decode(body)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from error
    except UNREADABLE as error:
        raise Malformed(f"the body cannot be read: {error}") from error


def _open_request(body: bytes, envelopes: _Decoder[_Envelope], form: _Format) -> Contents:
    try:
        envelope = envelopes.decode(body)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from error
    except UNREADABLE as error:
        raise Malformed(f"the body cannot be read: {error}") from error
    require_version(envelope.version)
    gathered = _Gathered()
    for raw in envelope.records:
        gathered.take(raw, form)
    return Contents(envelope.attempt, envelope.rank, tuple(gathered.records), tuple(gathered.refused))


def _open_spool(body: bytes, attempt: str | None, rank: int | None) -> Contents:
    view, at = memoryview(body), 0
    gathered = _Gathered()
    while at < len(view):
        if at + _HEADER.size > len(view):
            gathered.refuse(f"torn: the slice ends {len(view) - at} bytes into a record's header")
            break
        length, checksum = _HEADER.unpack_from(view, at)
        begin, end = at + _HEADER.size, at + _HEADER.size + length
        if length > MAX_RECORD_BYTES:
            gathered.refuse(f"oversized: a record of {length} bytes is over the limit of {MAX_RECORD_BYTES}")
        elif end > len(view):
            gathered.refuse(f"torn: a record of {length} bytes, of which {len(view) - begin} have come")
        elif zlib.crc32(view[begin:end]) != checksum:
            gathered.refuse("its checksum does not match its content")
        else:
            gathered.take(view[begin:end], _MSGPACK)
        at = end
    start = next((record.start for record in gathered.records if record.start is not None), None)
    attempt = start.attempt if attempt is None and start is not None else attempt
    rank = start.rank if rank is None and start is not None else rank
    if attempt is None or rank is None:
        raise Invalid("a spool slice needs the query parameters `attempt` and `rank`, for its records do not name them")
    return Contents(attempt, rank, tuple(gathered.records), tuple(gathered.refused))


class _Gathered:
    """Records and refusals while a body is read."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.refused: list[Refused] = []

    def take(self, body: memoryview | msgspec.Raw, form: _Format) -> None:
        if len(memoryview(body)) > MAX_RECORD_BYTES:
            self.refuse(f"oversized: over the limit of {MAX_RECORD_BYTES} bytes")
            return
        try:
            self.records.append(form.record.decode(body))
        except UNREADABLE as error:
            saved = salvage_record(body, form.plain)
            if saved is None:
                self.refuse(f"it cannot be read: {error}", _sequence_of(body, form.numbered))
            else:
                self.records.append(saved[0])
                self.refuse(saved[1], saved[0].sequence)

    def refuse(self, reason: str, sequence: int = UNKNOWN_SEQUENCE) -> None:
        self.refused.append(Refused(sequence, reason))


def _sequence_of(body: memoryview | msgspec.Raw, numbered: _Decoder[_Numbered]) -> int:
    try:
        return numbered.decode(body).sequence
    except UNREADABLE:
        return UNKNOWN_SEQUENCE


def _unsupported(content_type: str, expected: str) -> UnsupportedContent:
    return UnsupportedContent(f"expected a content type of {expected}, got {content_type or 'none'!r}")
