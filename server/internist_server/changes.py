"""Who waits for a run to change, and who says that it has: threads ring, coroutines listen."""

import asyncio
import threading
from collections.abc import Callable


class Changes:
    """A bell per run. Ringing costs nothing when nobody listens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Listener]] = {}
        self._followers: tuple[Callable[[str], None], ...] = ()

    def follow(self, follower: Callable[[str], None]) -> None:
        """Call this with every run that changes, from the thread that changed it: it must return at once."""
        with self._lock:
            self._followers = (*self._followers, follower)

    def ring(self, run: str) -> None:
        """Wake everyone who listens for this run; callable from any thread."""
        with self._lock:
            woken = self._listeners.pop(run, set())
        for listener in woken:
            listener.wake()
        for follower in self._followers:
            follower(run)

    def listen(self, run: str) -> "Listener":
        """Listen from now on, for one ring: call it before reading what the ring would announce."""
        listener = Listener(self, run)
        with self._lock:
            self._listeners.setdefault(run, set()).add(listener)
        return listener

    def leave(self, run: str, listener: "Listener") -> None:
        """Stop listening."""
        with self._lock:
            of_run = self._listeners.get(run)
            if of_run is not None:
                of_run.discard(listener)
                if not of_run:
                    del self._listeners[run]


class Listener:
    """One who listens for one ring, on the event loop that made it."""

    def __init__(self, changes: Changes, run: str) -> None:
        self._changes = changes
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def wake(self) -> None:
        """Let `wait` return; callable from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._rung.set)

    async def wait(self, *, timeout_s: float) -> bool:
        """Wait for the ring; whether it came in time."""
        try:
            await asyncio.wait_for(self._rung.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            self._changes.leave(self._run, self)
        return True
