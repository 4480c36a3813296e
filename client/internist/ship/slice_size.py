"""How many bytes of a spool one request carries: what has been learned of the way to the server."""

from typing import Final

from internist.schema.wire import PIECE_BYTES

SMALLEST: Final = 1 << 10
"""Whoever refuses even this refuses everything: it is not the fault of what is sent."""
_ALMOST: Final = 0.9
"""Slices end where a record ends, so two of one size are not of the same length."""
_SURELY_SMALL: Final = PIECE_BYTES + (PIECE_BYTES >> 4)


class SliceSize:
    """The size of the next slice.

    A 413 halves it for good. A connection that breaks, or an error page of a proxy, halves it for the time being: it
    doubles again while slices pass, up to where one has failed twice with smaller ones passing in between.

    Attributes:
        bytes: the most that the next slice should have.

    Args:
        widest: the size to begin with.
    """

    def __init__(self, widest: int) -> None:
        self.bytes = widest
        self._ceiling = widest
        self._suspected: int | None = None
        self._has_passed = False

    def passed(self, size: int) -> None:
        """A slice of this size got through."""
        self._has_passed = True
        if self._suspected is not None and size >= _ALMOST * self._suspected:
            self._suspected = None
        if 2 * size > self.bytes:
            self.bytes = min(self._ceiling, 2 * self.bytes)

    def too_large(self, size: int) -> None:
        """A slice of this size is refused for its size."""
        self.bytes = self._ceiling = max(SMALLEST, min(self.bytes, size // 2))

    def failed(self, size: int) -> bool:
        """A slice of this size failed, perhaps for its size; whether a smaller one is worth a try at once."""
        if size <= _SURELY_SMALL:
            return False
        self.bytes = max(PIECE_BYTES, min(self.bytes, size // 2))
        if self._suspected is not None and 2 * size > self._suspected and self._has_passed:
            self._ceiling = self.bytes
        self._suspected = size
        self._has_passed = False
        return True
