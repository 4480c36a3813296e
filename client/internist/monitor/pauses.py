"""Pauses: what the user says keeps the run from stepping for a while, so that nobody calls it stalled."""

import threading
from types import TracebackType
from typing import Final, Self

from internist.schema.wire import MAX_NAME_LENGTH

UNNAMED: Final = "a pause"


class Pause:
    """One pause, from when it was made until its `with` block ends, `end` is called, or the next step is made."""

    def __init__(self, pauses: "Pauses", reason: str, steps: int) -> None:
        self.reason = reason
        self.steps = steps
        """Steps made when it began."""
        self._pauses = pauses

    def end(self) -> None:
        """The run goes on. Ending a pause twice does nothing."""
        self._pauses.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Pauses:
    """The pauses that are open; heartbeats read them in another thread."""

    def __init__(self) -> None:
        self._open: list[Pause] = []
        self._lock = threading.Lock()

    def begin(self, reason: object, *, steps: int) -> Pause:
        """A pause that begins now, when so many steps were made."""
        pause = Pause(self, str(reason)[:MAX_NAME_LENGTH].strip() or UNNAMED, steps)
        with self._lock:
            self._open.append(pause)
        return pause

    def leave(self, pause: Pause) -> None:
        """This one is over."""
        with self._lock:
            self._open = [one for one in self._open if one is not pause]

    def reason(self, *, steps: int) -> str:
        """What the run pauses for after so many steps; empty: it does not. A step ends every pause from before it."""
        with self._lock:
            self._open = [one for one in self._open if one.steps == steps]
            return self._open[-1].reason if self._open else ""
