"""Signals that end the process: the end is written down first, then the signal does what it would have done without us.

A handler in Python runs between two instructions of the main thread, which may be seconds inside one backward pass, or
for ever inside a collective. So the handler does nothing: a thread that waits on Python's wakeup pipe writes down the
end, then restores the default and sends the signal again. The process ends as by default, within `PATIENCE_S`.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

PATIENCE_S: Final = 0.8
"""Seconds for writing down the end; schedulers send SIGKILL a few seconds after SIGTERM."""
_DEADLY: Final = ("SIGTERM", "SIGHUP")
"""SIGINT is not among them: Python makes it a KeyboardInterrupt."""
_CLOSE: Final = 0


class DeadlySignals:
    """Handles signals that have no other handler. A handler that is installed later has its signal alone, even where it
    calls this one.

    Args:
        record: writes down that the process is killed, in at most the seconds it is given.
    """

    def __init__(self, record: Callable[[float], None]) -> None:
        self._record = record
        self._taken: set[int] = set()
        self._pipe: tuple[int, int] | None = None
        self._handler = self._handle  # one object: it is compared by identity
        self._forks_noted = False

    def install(self) -> None:
        """Take the signals that do the default now. Only in the main thread, where Python allows it; process 1 has no
        default that ends it."""
        if os.name != "posix" or os.getpid() == 1 or threading.current_thread() is not threading.main_thread():
            return
        for name in _DEADLY:
            number = int(getattr(signal, name))
            if signal.getsignal(number) is signal.SIG_DFL:
                if self._pipe is None:
                    self._pipe = self._begin()
                signal.signal(number, self._handler)
                self._taken.add(number)

    def uninstall(self) -> None:
        """Give the signals back that are still ours."""
        if threading.current_thread() is not threading.main_thread() or self._pipe is None:
            return
        for number in self._taken:
            if signal.getsignal(number) is self._handler:
                signal.signal(number, signal.SIG_DFL)
        self._taken.clear()
        _, write = self._pipe
        self._pipe = None
        self._leave_wakeup(write)
        os.write(write, bytes([_CLOSE]))
        os.close(write)

    def _begin(self) -> tuple[int, int]:
        """A pipe that signals write into, and the thread that reads it."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        threading.Thread(target=self._watch, args=(read,), name="internist-signals", daemon=True).start()
        previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if previous != -1:
            signal.set_wakeup_fd(previous)  # an event loop's: the handler wakes the thread a little later
        if not self._forks_noted:
            self._forks_noted = True
            os.register_at_fork(after_in_child=self._forget)
        return read, write

    def _leave_wakeup(self, write: int) -> None:
        previous = signal.set_wakeup_fd(-1)
        if previous not in (-1, write):
            signal.set_wakeup_fd(previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """What Python calls in the main thread, where no event loop has the wakeup pipe, for the second time."""
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):  # full: the thread has enough to read
                os.write(self._pipe[1], bytes([number]))

    def _watch(self, read: int) -> None:
        """Wait for a signal that is ours, write down the end, and let the signal do the rest."""
        while (byte := os.read(read, 1)) and byte[0] != _CLOSE:
            number = byte[0]
            # Signals of others wake the pipe too, and one of ours may have got another handler since.
            if signal.getsignal(number) is self._handler:
                self._end(number)
        os.close(read)

    def _end(self, number: int) -> None:
        recording = threading.Thread(target=self._record, args=(PATIENCE_S,), name="internist-end", daemon=True)
        try:
            recording.start()
            recording.join(PATIENCE_S)
        finally:
            restore = ctypes.pythonapi.PyOS_setsig  # signal.signal works in the main thread alone
            restore.argtypes, restore.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
            restore(number, None)
            os.kill(os.getpid(), number)

    def _forget(self) -> None:
        """In a forked copy: its signals are its own, and the pipe is its parent's."""
        if self._pipe is None:
            return
        for number in self._taken:
            if signal.getsignal(number) is self._handler:
                signal.signal(number, signal.SIG_DFL)
        self._taken.clear()
        self._leave_wakeup(self._pipe[1])
        for end in self._pipe:
            os.close(end)
        self._pipe = None
