"""The registry: which monitors are under way in this process, and what becomes of them when it ends or their model is
gone."""

import _thread
import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import nn

from internist.monitor.ending import Ending
from internist.monitor.finishing import interrupts_ours
from internist.monitor.monitor import FINISH_TIMEOUT_S, Monitor
from internist.monitor.notebook import Origin, is_superseded, origin
from internist.schema.wire import Outcome

_SHARE: Final = 0.8
"""Share of a killed process' time in which the server is waited for; the rest is for the disk."""


@dataclass(frozen=True, slots=True)
class _Entry:
    monitor: Monitor
    root: "weakref.ref[nn.Module]"
    origin: Origin | None


class Registry:
    """The monitors that are under way, oldest first."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._orphans: list[Monitor] = []
        """Monitors whose model is gone, and whose end is being written down in another thread."""
        self._unreleased: list[Monitor] = []
        self._ending = Ending(self.finish_all, self._kill_all, self._forget_all)

    @property
    def current(self) -> Monitor | None:
        """The monitor that was made last."""
        self.sweep()
        return self._entries[-1].monitor if self._entries else None

    def of(self, root: nn.Module) -> Monitor | None:
        """The monitor of a model."""
        return next((entry.monitor for entry in self._entries if entry.root() is root), None)

    def add(self, monitor: Monitor, root: nn.Module) -> None:
        """Keep a monitor until it is finished; it ends with its model, or with the process."""
        monitor.on_finish = self._remove
        self._entries.append(_Entry(monitor, weakref.ref(root, self._abandoned(monitor)), origin(root)))
        if monitor.run:  # a disabled one has no end that could be told
            self._ending.watch()

    def finish_superseded(self, root: nn.Module) -> None:
        """In a notebook: finish the monitors whose place a model takes that is watched now."""
        self.sweep()
        here = origin(root)
        if here is not None:
            for entry in list(self._entries):
                if entry.origin is not None and is_superseded(entry.origin, here):
                    entry.monitor.finish()

    def finish_all(self, outcome: Outcome, timeout: float) -> None:
        """Finish every monitor, newest first, and wait for those that are ending; the time is for all of them
        together."""
        deadline = time.monotonic() + timeout
        for monitor in reversed(self._under_way()):
            monitor.finish(outcome, timeout=max(0.0, deadline - time.monotonic()))
        self.sweep()

    def sweep(self) -> None:
        """Let go of the models of monitors that ended in a signal handler, now that nothing of ours is interrupted."""
        if self._unreleased and not interrupts_ours():
            monitors, self._unreleased = self._unreleased, []
            for monitor in monitors:
                monitor.release()

    def _remove(self, monitor: Monitor) -> None:
        self._entries = [entry for entry in self._entries if entry.monitor is not monitor]
        if not monitor.is_released:
            self._unreleased.append(monitor)
        if not self._entries:
            self._ending.unwatch()

    def _abandoned(self, monitor: Monitor) -> Callable[[object], None]:
        """What happens when a monitor's model is gone: its run has ended. Objects may die at any instruction of any
        thread, so the end is written down in a thread of its own; the end of the process waits for it."""

        def end(_: object) -> None:
            self._orphans.append(monitor)
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down: the end is told at exit
                _thread.start_new_thread(self._end_orphan, (monitor, self._ending.outcome()))

        return end

    def _end_orphan(self, monitor: Monitor, outcome: Outcome) -> None:
        monitor.finish(outcome, timeout=FINISH_TIMEOUT_S)
        self._orphans.remove(monitor)

    def _under_way(self) -> list[Monitor]:
        """Every monitor whose end is not written down, oldest first."""
        monitors = [entry.monitor for entry in self._entries]
        return [monitor for monitor in self._orphans if monitor not in monitors] + monitors

    def _kill_all(self, seconds: float) -> None:
        """Write down that every run is killed, at once and side by side: a server that hangs must not cost the others
        their end."""
        deadline = time.monotonic() + seconds
        threads = [
            threading.Thread(target=monitor.record_end, args=("killed", seconds * _SHARE), daemon=True)
            for monitor in self._under_way()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _forget_all(self) -> None:
        """In a forked copy of the process: the runs are the original's."""
        monitors = self._under_way()
        self._entries, self._orphans, self._unreleased = [], [], []
        for monitor in monitors:
            monitor.abandon()
