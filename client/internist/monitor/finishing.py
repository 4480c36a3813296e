"""Finishing: the stages in which a monitor ends, once, from whatever thread, whatever happens inside."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import dropwhile
from types import FrameType
from typing import Final, Literal

from internist.schema.wire import Outcome

_LOG = logging.getLogger("internist")
_ROOMS: Final = ("internist.monitor.", "internist.observe.", "internist.record.", "internist.ship.")
_LOOPS: Final = ("torch.nn.modules.module", "torch.optim.optimizer")

Stage = tuple[str, Callable[[Outcome, float], None]]
"""What a stage is called in a message, and what does it: with the outcome, and the moment on the monotonic clock after
which nothing is waited for."""


class Finishing:
    """Ends one monitor.

    The stages write down the end; `release` takes the hooks out of the model; `drop` lets go of everything once both
    are over. A stage that fails is said and costs itself alone. Nothing here raises, except a KeyboardInterrupt, after
    all stages.

    Args:
        stages: in order.
        release: removes hooks, so it must not run inside torch's loops over hooks or inside code of ours.
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
        """Whether no hook is left in the model."""
        return self._release is None

    def finish(self, outcome: Outcome, timeout: float) -> None:
        """Release the model if this is a moment for it, and go through the stages; of two calls at once, one works and
        the other waits for it.

        A signal handler may interrupt this package while it holds a lock. Waiting for that lock in the handler would
        never end: the stages then run in a thread of their own, and nobody waits for it here.
        """
        deadline = time.monotonic() + timeout
        busy = busy_with()
        if not self._claim.acquire(blocking=False):
            self._wait(deadline)
        elif busy == "ours":
            threading.Thread(target=self._work, args=(outcome, deadline), name="internist-end", daemon=True).start()
        else:
            if busy == "nothing":
                self.release()
            self._work(outcome, deadline)

    def record(self, outcome: Outcome, timeout: float) -> None:
        """Go through the stages and leave the hooks where they are: for a process that is about to die, or a thread
        that does not know what the training's is doing."""
        deadline = time.monotonic() + timeout
        if self._claim.acquire(blocking=False):
            self._work(outcome, deadline)
        else:
            self._wait(deadline)

    def release(self) -> None:
        """Take the hooks out, once."""
        release, self._release = self._release, None
        if release is not None:
            self._guard("its hooks", release)
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
        """Wait for the thread that works; not for this one, which a stage may have led here."""
        if self._worker != threading.get_ident():
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


def busy_with() -> Literal["nothing", "hooks", "ours"]:
    """What the caller of this package is in the middle of, seen from here: code of ours that it interrupted (a signal
    handler on top of it), one of torch's loops over hooks, or nothing that matters."""
    modules = _callers()
    outside = dropwhile(lambda module: module.startswith(_ROOMS), modules)
    found: Literal["nothing", "hooks"] = "nothing"
    for module in outside:
        if module.startswith(_ROOMS):
            return "ours"
        if module in _LOOPS:
            found = "hooks"
    return found


def _callers() -> Iterator[str]:
    """The modules of all frames of this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield str(frame.f_globals.get("__name__"))
        frame = frame.f_back
