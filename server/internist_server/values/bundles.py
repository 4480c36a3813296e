"""Several tiles as one string of bytes, and the ids of the series that they are of.

A bundle is the number of its tiles (two bytes), the size of each (four), and the tiles.
"""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_COUNT, _SIZE = 2, 4
_KEPT: Final = 4_096
"""Lists of ids that stay unpacked in memory; blocks of one plan have the same."""


def bundle(tiles: Sequence[bytes]) -> bytes:
    """Tiles as one."""
    sizes = np.fromiter(map(len, tiles), "<u4", len(tiles)).tobytes()
    return b"".join([len(tiles).to_bytes(_COUNT, "little"), sizes, *tiles])


def unbundle(bundled: bytes) -> list[bytes]:
    """The tiles of a bundle."""
    count = int.from_bytes(bundled[:_COUNT], "little")
    begin = _COUNT + _SIZE * count
    ends = np.cumsum(np.frombuffer(bundled, "<u4", count, _COUNT), dtype=np.int64) + begin
    return [bundled[at:end] for at, end in zip([begin, *ends[:-1].tolist()], ends.tolist(), strict=True)]


def pack_ids(ids: NDArray[np.int64]) -> bytes:
    """Ids as `unpack_ids` reads them."""
    return zlib.compress(np.diff(ids, prepend=np.int64(0)).astype("<i8").tobytes())


@lru_cache(maxsize=_KEPT)
def unpack_ids(packed: bytes) -> NDArray[np.int64]:
    """The ids. Of equal bytes it is one array, which nobody changes."""
    ids: NDArray[np.int64] = np.frombuffer(zlib.decompress(packed), "<i8").cumsum()
    ids.flags.writeable = False
    return ids
