"""Finishing: the stages in which a monitor ends, once, from whatever thread, whatever happens inside."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import dropwhile
from types import FrameType
from typing import Final

from internist.schema.wire import Outcome

_LOG = logging.getLogger("internist")
_ROOMS: Final = ("internist.monitor.", "internist.observe.", "internist.record.", "internist.ship.")
_AROUND: Final = "internist.observe.taps"
"""What the user's modules are called by: code of ours around code of theirs, with nothing half done in between."""

Stage = tuple[str, Callable[[Outcome, float], None]]
"""What a stage is called in a message, and what does it: with the outcome, and the moment on the monotonic clock after
which nothing is waited for."""


class Finishing:
    """Ends one monitor.

    The stages write down the end; `release` lets go of the model; `drop` lets go of everything once both are over. A
    stage that fails is said and costs itself alone. Nothing here raises, except a KeyboardInterrupt, after all stages.

    Args:
        stages: in order.
        release: takes everything out of the model, at any moment but inside code of ours.
        drop: called last.
    """

    def __init__(self, stages: Sequence[Stage], release: Callable[[], None], drop: Callable[[], None]) -> None:
        self._stages = stages
        self._release: Callable[[], None] | None = release
        self._drop = drop
        self._claim = threading.Lock()
        self._worker = -1
        self._done = threading.Event()
        self._interrupted = False

    @property
    def has_begun(self) -> bool:
        """Whether the monitor takes nothing more."""
        return self._claim.locked()

    @property
    def is_released(self) -> bool:
        """Whether nothing is left in the model."""
        return self._release is None

    def finish(self, outcome: Outcome, timeout: float) -> None:
        """Release the model and go through the stages; of two calls at once, one works and the other waits for it.

        A signal handler may interrupt this package while it holds a lock. Waiting for that lock in the handler would
        never end: the stages then run in a thread of their own, nobody waits for it here, and the model is released at
        a later call.
        """
        deadline = time.monotonic() + timeout
        if not self._claim.acquire(blocking=False):
            self._wait(deadline)
        elif interrupts_ours():
            worker = threading.Thread(target=self._work, args=(outcome, deadline), name="internist-end", daemon=True)
            self._guard("in a thread of its own", worker.start)  # an interpreter that shuts down starts none
        else:
            self.release()
            self._work(outcome, deadline)

    def record(self, outcome: Outcome, timeout: float) -> None:
        """Go through the stages and leave the model as it is: for a process that is about to die."""
        deadline = time.monotonic() + timeout
        if self._claim.acquire(blocking=False):
            self._work(outcome, deadline)
        else:
            self._wait(deadline)

    def release(self) -> None:
        """Let go of the model, once."""
        release, self._release = self._release, None
        if release is not None:
            self._guard("its taps", release)
            if self._done.is_set():
                self._drop()

    def abandon(self) -> None:
        """Let go without a word: this is a copy of the process, and the run is the original's."""
        if self._claim.acquire(blocking=False):
            self.release()
            self._drop()

    def _work(self, outcome: Outcome, deadline: float) -> None:
        self._worker = threading.get_ident()
        try:
            for name, stage in self._stages:
                until = time.monotonic() if self._interrupted else deadline
                self._guard(name, partial(stage, outcome, until))
        finally:
            self._done.set()
            if self.is_released:
                self._drop()
        if self._interrupted:
            raise KeyboardInterrupt

    def _wait(self, deadline: float) -> None:
        """Wait for the thread that works; not for this one, which a stage may have led here, nor where that thread may
        wait for a lock which this one was interrupted with."""
        if self._worker != threading.get_ident() and not interrupts_ours():
            self._done.wait(max(0.0, deadline - time.monotonic()))

    def _guard(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except KeyboardInterrupt:  # nobody wants to wait any longer; what needs no waiting is still done
            self._interrupted = True
        except Exception as error:
            _LOG.warning(
                "internist: finishing %s failed: %s: %s (training is not affected)", name, type(error).__name__, error
            )


def interrupts_ours() -> bool:
    """Whether the caller of this package has interrupted code of ours: a signal handler on top of it."""
    outside = dropwhile(lambda module: module.startswith(_ROOMS), _callers())
    return any(module.startswith(_ROOMS) and module != _AROUND for module in outside)


def _callers() -> Iterator[str]:
    """The modules of all frames of this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield str(frame.f_globals.get("__name__"))
        frame = frame.f_back
