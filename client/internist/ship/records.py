"""Records of the spool as bytes: `length (u32 LE) | CRC-32 of body (u32 LE) | body`, the body a msgpack `Record`."""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

import msgspec

from internist.schema.wire import MAX_RECORD_BYTES, Record

HEADER: Final = struct.Struct("<II")
SIGNATURE: Final = b"\xa8sequence"
"""How every body begins, after the byte that opens the map: the way out of a damaged place is found by it."""
SIGNATURE_OFFSET: Final = HEADER.size + 1

_ENCODER = msgspec.msgpack.Encoder()
_RECORD = msgspec.msgpack.Decoder(Record)


class _FrameHead(msgspec.Struct):
    """Of a frame, only what ordering needs."""

    step: int
    continued: bool = False


class _PlanHead(msgspec.Struct):
    """Of a plan, only its number."""

    number: int


class Glance(msgspec.Struct):
    """Of a record, only what ordering needs; everything else is skipped unread."""

    sequence: int
    frame: _FrameHead | None = None
    plan: _PlanHead | None = None

    @property
    def step(self) -> int | None:
        """The step of a frame."""
        return None if self.frame is None else self.frame.step

    @property
    def ends_frame(self) -> bool:
        """Whether it is a frame, and the last of its step."""
        return self.frame is not None and not self.frame.continued


_GLANCE = msgspec.msgpack.Decoder(Glance)


def encode(sequence: int, kind: str, content: object) -> bytes:
    """One record whose field `kind` of `Record` is `content`.

    Raises:
        ValueError: the record is larger than `MAX_RECORD_BYTES`, or holds text that is not valid Unicode.
        TypeError: msgpack cannot express the content.
        OverflowError: an integer has more than 64 bits.
    """
    body = _ENCODER.encode({"sequence": sequence, kind: content})
    if len(body) > MAX_RECORD_BYTES:
        raise ValueError(f"a {kind} record of {len(body)} bytes is over the limit of {MAX_RECORD_BYTES}")
    return HEADER.pack(len(body), zlib.crc32(body)) + body


def decode(body: bytes | memoryview) -> Record:
    """The record of a body.

    Raises:
        msgspec.DecodeError: the body is not a record that this version knows.
    """
    return _RECORD.decode(body)


def glance(body: bytes | memoryview) -> Glance:
    """What ordering needs of a record."""
    return _GLANCE.decode(body)


def sound_end(buffer: bytes | memoryview, at: int) -> int | None:
    """Where the record that begins at `at` ends; None unless it is there in whole and its checksum holds."""
    if at + HEADER.size > len(buffer):
        return None
    length, checksum = HEADER.unpack_from(buffer, at)
    end: int = at + HEADER.size + length
    if not 0 < length <= MAX_RECORD_BYTES or end > len(buffer):
        return None
    view = memoryview(buffer)
    signature = view[at + SIGNATURE_OFFSET : at + SIGNATURE_OFFSET + len(SIGNATURE)].tobytes()
    return end if signature == SIGNATURE and zlib.crc32(view[at + HEADER.size : end]) == checksum else None


def claimed_size(buffer: bytes | memoryview) -> int:
    """Bytes that the record at the start of `buffer` says it takes, header included; 0 if it says nothing credible."""
    if len(buffer) < HEADER.size:
        return 0
    length: int = HEADER.unpack_from(buffer)[0]
    return HEADER.size + length if 0 < length <= MAX_RECORD_BYTES else 0


def bodies(buffer: bytes | memoryview) -> Iterator[memoryview]:
    """Bodies of the sound records at the start of `buffer`, up to the first that is torn or corrupt."""
    view, at = memoryview(buffer), 0
    while (end := sound_end(view, at)) is not None:
        yield view[at + HEADER.size : end]
        at = end
