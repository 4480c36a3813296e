"""What time it is for what is sent: the machine's clock as it was when the process began, carried on by one that nobody
sets. So a clock that is set while a run trains moves none of its moments, and the server, which is told of this clock
with every request, knows by how much they are off."""

import time

_BEGAN_MS = time.time_ns() // 1_000_000
_BEGAN = time.monotonic_ns()


def now_ms() -> int:
    """Ms since 1970, which never go back."""
    return _BEGAN_MS + (time.monotonic_ns() - _BEGAN) // 1_000_000
