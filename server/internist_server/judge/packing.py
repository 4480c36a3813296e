"""Packing: named arrays and numbers as one string of bytes, and back, exactly."""

import json
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from internist_server.judge.errors import JudgeStateError

MAGIC = b"IJ"
VERSION = 1
_HEAD = struct.Struct("<2sHI")
_ALIGN = 8


def pack(numbers: Mapping[str, object], arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Bytes that `unpack` turns into the same numbers (anything JSON has, NaN too) and arrays."""
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({"numbers": numbers, "arrays": described}, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + _HEAD.size) % _ALIGN)
    parts = [_HEAD.pack(MAGIC, VERSION, len(header)), header]
    for array in arrays.values():
        body = array.tobytes()
        parts += [body, b"\0" * (-len(body) % _ALIGN)]
    return b"".join(parts)


def unpack(packed: bytes) -> tuple[dict[str, object], dict[str, NDArray[np.generic]]]:
    """What was packed. The arrays own their memory.

    Raises:
        JudgeStateError: not what `pack` made, or made by another version.
    """
    if len(packed) < _HEAD.size:
        raise JudgeStateError(f"a judge's state has at least {_HEAD.size} bytes, got {len(packed)}")
    magic, version, length = _HEAD.unpack_from(packed)
    if magic != MAGIC or version != VERSION:
        raise JudgeStateError(f"expected a judge's state of version {VERSION}, got {magic!r} {version}")
    try:
        header = json.loads(packed[_HEAD.size : _HEAD.size + length])
        at, arrays = _HEAD.size + length, {}
        for name, dtype, shape in header["arrays"]:
            size = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(packed, np.dtype(dtype), count=size, offset=at).reshape(shape).copy()
            at += -(-arrays[name].nbytes // _ALIGN) * _ALIGN
        return header["numbers"], arrays
    except (ValueError, KeyError, TypeError) as error:
        raise JudgeStateError(f"a judge's state of {len(packed)} bytes is damaged: {error}") from error
