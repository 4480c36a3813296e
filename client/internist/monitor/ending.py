"""The end of the process: how it ends, seen from inside it, and told to whoever wants to know before it is over.

What is seen, and where:

- an error that leaves the program: Python calls `sys.excepthook`, where ours comes after the one that stood there; if
  a later hook does not call ours, Python still keeps the error in `sys.last_value`, which is read at exit;
- `sys.exit(code)`, `exit(code)` and `quit(code)`: Python throws the code away before anything at exit runs, so these
  note it on its way. A SystemExit that was caught does not count: the outermost frame then goes on and returns;
- `raise SystemExit(code)` in the program's own module: the instruction that it was left at tells, see `departure`;
- SIGTERM and SIGHUP: see `signals`; SIGINT is a KeyboardInterrupt, and that an error;
- a process of `multiprocessing`'s: it runs its own list of finalizers, with the error that ends it at hand;
- `raise SystemExit(code)` in a function, or with what a call returns, is recorded as `finished`. Python clears the
  error before anything at exit runs and calls no hook for it; what could see it on its way (tracing, `sys.monitoring`'s
  events of all raises, another class in the place of the builtin one) would cost or change programs that end well.
  That it came by can be seen and not with which code, and `raise SystemExit(main())` is an ordinary end;
- `os._exit`, SIGKILL and crashes leave no time: the server notices that the run is lost.

In a notebook or an interactive session errors end nothing, and are not looked at.
"""

import atexit
import builtins
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final

from internist.monitor.departure import has_returned, is_under_way, outermost_frame, program_frame, raised_exit
from internist.monitor.notebook import is_interactive
from internist.monitor.signals import DeadlySignals
from internist.schema.wire import Outcome

EXIT_TIMEOUT_S: Final = 10.0
"""How long the end of the process may wait for the server to take the last frames."""
_SIGNALLED: Final = frozenset(
    128 + number for name in ("SIGHUP", "SIGINT", "SIGTERM") if (number := getattr(signal, name, 0))
)
"""What a shell shows for a process that a signal ended, and what handlers of signals exit with."""
_BEFORE_OTHERS: Final = 100
"""Finalizers of `multiprocessing` run from high to low; those of its own queues and pools are at 0 to 16."""


def outcome_of(error: BaseException | None) -> Outcome:
    """How a run ended that this error ended."""
    if error is None:
        return "finished"
    if isinstance(error, KeyboardInterrupt):
        return "killed"
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or (isinstance(code, int) and code == 0):
            return "finished"
        return "killed" if isinstance(code, int) and code in _SIGNALLED else "failed"
    return "failed"


class Ending:
    """Tells how the process ends.

    Args:
        finish: finishes what is under way; called in the main thread, or at exit.
        kill: writes down that the process is killed, within the seconds given; called in another thread.
        forget: lets go of what is under way, in a forked copy of the process.
    """

    def __init__(
        self,
        finish: Callable[[Outcome, float], None],
        kill: Callable[[float], None],
        forget: Callable[[], None],
    ) -> None:
        self._finish = finish
        self._forget = forget
        self._signals = DeadlySignals(kill)
        self._process = -1
        self._noted: tuple[SystemExit, FrameType] | None = None
        self._program: tuple[FrameType, FrameType] | None = None
        """The frame of the program's own module, and the outermost one."""
        self._known_error = 0
        """Identity of the error that had left the program before. `sys.last_value` keeps it: no other error has it."""
        self._restore: list[Callable[[], None]] = []

    def watch(self) -> None:
        """Begin to look, or look again whether signals are free. Nothing that others installed is replaced."""
        if self._process != os.getpid():
            self._register()
        self._signals.install()
        if not self._restore and not is_interactive():
            self._known_error = id(_last_error())
            own = program_frame()
            self._program = None if own is None else (own, outermost_frame())
            self._restore = [
                self._stand_in(sys, "excepthook", self._excepthook),
                self._stand_in(sys, "exit", self._exit),
            ]
            quitter = type(getattr(builtins, "exit", None))
            if quitter.__module__ == "_sitebuiltins":  # that of `exit` and `quit`
                self._restore.append(self._stand_in(quitter, "__call__", self._quit))

    def outcome(self) -> Outcome:
        """How a run has ended that ends now, with its model, and not by a call: as the program does, where that is over
        already. The variables of a program that has called `sys.exit` are gone before anything at exit runs."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self._noted is None or not in_main_thread or is_under_way(self._noted[1]):
            return "finished"
        return outcome_of(self._error_at_exit())

    def unwatch(self) -> None:
        """Nothing is under way any more: put everything back that is still ours."""
        self._signals.uninstall()
        for restore in self._restore:
            restore()
        self._restore = []
        self._noted = self._program = None

    def _register(self) -> None:
        """Have this process call when it ends; what a forked copy has inherited calls for nobody."""
        if self._process == -1:
            atexit.register(self._at_exit)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._in_child)
        self._process = os.getpid()
        if multiprocessing.parent_process() is not None:  # if it was forked, it ends without `atexit`
            multiprocessing.util.Finalize(None, self._at_exit, exitpriority=_BEFORE_OTHERS)

    def _stand_in(self, owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], None]:
        """Put something of ours in front of what stands there; what puts it back if ours still stands."""
        original = getattr(owner, name)
        ours = make(original)
        setattr(owner, name, ours)

        def restore() -> None:
            if getattr(owner, name) is ours:
                setattr(owner, name, original)

        return restore

    def _excepthook(self, previous: Callable[..., Any]) -> Callable[..., None]:
        def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            try:
                previous(kind, error, trace)  # first, since finishing may wait and the traceback should not
            finally:
                if os.getpid() == self._process:
                    self._finish(outcome_of(error), EXIT_TIMEOUT_S)

        return excepthook

    def _exit(self, previous: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(previous)
        def note(status: Any = None, /) -> Any:
            self._note(status)
            return previous(status)

        return note

    def _quit(self, previous: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(previous)
        def note(quitter: Any, code: Any = None) -> Any:
            self._note(code)
            return previous(quitter, code)

        return note

    def _note(self, status: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._noted = SystemExit(status), outermost_frame()

    def _at_exit(self) -> None:
        if os.getpid() == self._process:
            self._finish(outcome_of(self._error_at_exit()), EXIT_TIMEOUT_S)
            self.unwatch()

    def _error_at_exit(self) -> BaseException | None:
        """What ends the process, as far as can be seen when it is over; None: it came to its end."""
        under_way = sys.exception()
        if under_way is not None:
            return under_way
        last = _last_error()
        if last is not None and id(last) != self._known_error and not is_interactive():
            return last
        if self._program is not None and not has_returned(self._program[1]):
            raised = raised_exit(self._program[0])
            if raised is not None:
                return raised
        if self._noted is not None and not has_returned(self._noted[1]):
            return self._noted[0]
        return None

    def _in_child(self) -> None:
        self._forget()
        for restore in self._restore:
            restore()
        self._restore = []


def _last_error() -> BaseException | None:
    """The error that has last left the program, which Python keeps until the next."""
    error: BaseException | None = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error
