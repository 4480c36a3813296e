"""How often an address may be wrong about a token: guessing is slow, and one program with an old token hurts nobody."""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MOST: Final = 10
"""Different wrong tokens of one address within the window; the same one again is no guess."""
WINDOW_S: Final = 60.0
MAX_ADDRESSES: Final = 4_096


class Throttle:
    """Counts wrong tokens by address. One object serves all threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, dict[str, float]] = OrderedDict()
        """When each wrong token was presented last, by its hash, by address."""
        self._right: OrderedDict[tuple[str, str], None] = OrderedDict()

    def wait_s(self, address: str, key: str | None) -> float:
        """Seconds until the address may present a token; 0: it may now, as ever with one that was right before.

        Args:
            address: of the network.
            key: the token's hash; None: it presents none.
        """
        place = _place(address)
        with self._lock:
            if key is None or (place, key) in self._right:
                return 0.0
            recent = self._recent(place)
            return 0.0 if len(recent) < MOST else max(0.0, min(recent.values()) + WINDOW_S - self._clock())

    def trust(self, address: str, key: str) -> None:
        """A token was right: whatever else comes from its address, it is taken from there."""
        with self._lock:
            self._right[_place(address), key] = None
            self._right.move_to_end((_place(address), key))
            while len(self._right) > MAX_ADDRESSES:
                self._right.popitem(last=False)

    def note(self, address: str, key: str) -> None:
        """A token that is none was presented; `key` is its hash."""
        with self._lock:
            place = _place(address)
            recent = self._recent(place)
            if key in recent or len(recent) < MOST:
                recent[key] = self._clock()
            self._wrong[place] = recent
            self._wrong.move_to_end(place)
            while len(self._wrong) > MAX_ADDRESSES:
                self._wrong.popitem(last=False)

    def _recent(self, place: str) -> dict[str, float]:
        oldest = self._clock() - WINDOW_S
        return {key: at for key, at in self._wrong.get(place, {}).items() if at > oldest}


def _place(address: str) -> str:
    """An address; of IPv6 the network, of which whoever has one address has all."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
