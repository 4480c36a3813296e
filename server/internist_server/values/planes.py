"""Arrays as few bytes, exactly: the first bytes of all items, then the second ones, each such plane as it packs best.

The high bytes of numbers that are near one another are few and pack well; their low bytes are noise, and are kept as
they are. A plane is its mode, one byte, and what follows from it: one byte that all are; all of them; or their number
(two bytes, of the packed form) and the packed bytes.
"""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SAME, _PLAIN, _PACKED = range(3)
_LEVEL: Final = 6
_RAW: Final = -15
"""zlib without its header and checksum: the database's pages have theirs, and a tile is small."""
_KEPT: Final = 16_384
"""Arrays that stay unpacked in memory: of 256 floats 2 kB each, with their packed bytes."""
MAX_ITEMS: Final = 1 << 15
"""Of one array: the packed size of a plane is told in two bytes."""


def pack(items: NDArray[np.generic]) -> bytes:
    """The bytes of a one-dimensional array of at most `MAX_ITEMS` items."""
    if len(items) > MAX_ITEMS:
        raise ValueError(f"expected at most {MAX_ITEMS} items, got {len(items)}")
    little = items.astype(items.dtype.newbyteorder("<"), copy=False)
    planes = np.ascontiguousarray(little).view(np.uint8).reshape(len(items), items.itemsize).T
    return b"".join(_pack_plane(np.ascontiguousarray(plane)) for plane in planes)


def unpack(packed: Sequence[bytes], count: int, dtype: str) -> NDArray[np.generic]:
    """Arrays of `count` items each, as (arrays, count); they are unpacked together."""
    kind = np.dtype(dtype)
    pieces = [piece for one in packed for piece in _planes_of(one, count, kind.itemsize)]
    planes = np.frombuffer(b"".join(pieces), np.uint8).reshape(len(packed), kind.itemsize, count)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(kind).reshape(len(packed), count)


@lru_cache(maxsize=_KEPT)
def unpack_one(packed: bytes, count: int, dtype: str) -> NDArray[np.generic]:
    """One array of `count` items, which nobody changes: tiles do not either, so what was unpacked lately is known."""
    array: NDArray[np.generic] = unpack([packed], count, dtype)[0]
    array.flags.writeable = False
    return array


def _pack_plane(plane: NDArray[np.uint8]) -> bytes:
    if not len(plane) or (plane == plane[0]).all():
        return bytes([_SAME]) + plane[:1].tobytes().ljust(1, b"\0")
    plain = plane.tobytes()
    worker = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW)
    packed = worker.compress(plain) + worker.flush()
    if len(packed) + 2 >= len(plain):
        return bytes([_PLAIN]) + plain
    return bytes([_PACKED]) + len(packed).to_bytes(2, "little") + packed


def _planes_of(packed: bytes, count: int, width: int) -> list[bytes]:
    planes, at = [], 0
    for _ in range(width):
        mode, at = packed[at], at + 1
        if mode == _SAME:
            planes.append(packed[at : at + 1] * count)
            at += 1
        elif mode == _PLAIN:
            planes.append(packed[at : at + count])
            at += count
        else:
            size = int.from_bytes(packed[at : at + 2], "little")
            planes.append(zlib.decompress(packed[at + 2 : at + 2 + size], _RAW, count))
            at += 2 + size
    return planes
