"""Work that ranks do together behind the training: on a thread and on process groups of the monitor's own, joined by
step number alone.

Every rank joins at the same steps and says whether it has brought its part; where all have, they work it out. A rank
that brings nothing (its governor left the step out, it is behind with the one before) costs that step's values. One
that does not come, or comes with another step, ends it: what it was for is then done by each rank alone, for good.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from internist.observe.collective import PATIENCE_S, Ranks

log = logging.getLogger("internist")

MOST_WAITING = 2
"""Steps of which the parts are kept at once; further ones are joined with nothing."""
TOLERATED = 3
"""Steps in a row to which ranks may bring unlike parts."""
LAST_S = 5.0
"""How long the steps that are under way may take when the training is over."""


class Part(Protocol):
    """What a rank brings to a step of one set of ranks."""

    @property
    def mark(self) -> int:
        """What must be alike on all ranks: a digest of what they are about to do, under 2**62."""

    def work_out(self, ranks: Ranks) -> None:
        """Do it, and hand over what becomes known. Issues collectives."""


Parts = Mapping[tuple[int, ...], Part]
"""By the ranks that work it out."""


class Reduction:
    """Joins the other ranks on a thread.

    Args:
        store: gives a store of the thread's own; None where ranks cannot find each other.
        key: what the ranks call it, alike.
        rank: this one, of all.
        patience_s: how long a rank is waited for.
    """

    def __init__(self, store: Callable[[], Any | None], key: str, rank: int, *, patience_s: float = PATIENCE_S) -> None:
        self._store, self._key, self._rank, self._patience_s = store, key, rank, patience_s
        self._steps: queue.SimpleQueue[tuple[int, Sequence[tuple[int, ...]], Parts, Callable[[], None]] | None]
        self._steps = queue.SimpleQueue()
        self._groups: dict[tuple[int, ...], Ranks] = {}
        self._unlike = 0
        self._joined = self._ended = 0
        self._counting = threading.Lock()
        self.is_idle = threading.Event()
        """Set while no step is under way."""
        self.is_idle.set()
        self._thread: threading.Thread | None = None
        self.is_over = False
        """Whether a rank did not join: nothing is worked out together from here on."""
        self.worked_s = 0.0
        """Processor time of the thread so far,"""
        self.operations = self.bytes = 0
        """its collectives, and what this rank has put into them, in steps that are over."""

    @property
    def is_behind(self) -> bool:
        """Whether as many steps are under way as may be."""
        return self._joined - self._ended >= MOST_WAITING

    def join(self, step: int, sets: Sequence[tuple[int, ...]], parts: Parts, done: Callable[[], None]) -> None:
        """Join a step. Never waits.

        Args:
            step: its number: every rank of a set joins the same steps.
            sets: of ranks, all that this rank is of.
            parts: what it brings; nothing for a set: the step is given up there.
            done: called on the thread when nothing more comes of it.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="internist-ranks", daemon=True)
            self._thread.start()
        with self._counting:
            self._joined += 1
            self.is_idle.clear()
        self._steps.put((step, sorted(sets), parts, done))

    def close(self) -> None:
        """The training is over: what is under way has `LAST_S` to end."""
        if self._thread is not None and self._thread.is_alive():
            self._steps.put(None)
            self._thread.join(LAST_S)
        self.is_over = True

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.no_grad():
            while (taken := self._steps.get()) is not None:
                began = time.thread_time()
                step, sets, parts, done = taken
                try:
                    for ranks in sets:
                        if not self.is_over:
                            self._work_out(step, ranks, parts.get(ranks))
                except Exception as error:
                    self._give_up(step, _in_short(error))
                self._count()
                done()
                self.worked_s += time.thread_time() - began
                with self._counting:
                    self._ended += 1
                    if self._ended == self._joined:
                        self.is_idle.set()
        self._groups.clear()  # who waits for this rank learns that it has gone

    def _work_out(self, step: int, ranks: tuple[int, ...], part: Part | None) -> None:
        group = self._group(ranks)
        (least, most), (has_all, _), (mark, other) = group.agree([step, part is not None, part.mark if part else 0])
        if least != most:
            self._give_up(step, f"ranks come with steps from {least} to {most}")
        elif has_all and part is not None:
            self._unlike = 0 if mark == other else self._unlike + 1
            if mark == other:
                part.work_out(group)
            elif self._unlike >= TOLERATED:
                self._give_up(step, "ranks bring unlike matrices")

    def _group(self, ranks: tuple[int, ...]) -> Ranks:
        found = self._groups.get(ranks)
        if found is None:
            store = self._store()
            if store is None:
                raise RuntimeError("torch.distributed has no default process group")
            found = self._groups[ranks] = Ranks(store, self._key, ranks, self._rank, self._patience_s)
        return found

    def _count(self) -> None:
        if self._groups:
            self.operations = sum(ranks.operations for ranks in self._groups.values())
            self.bytes = sum(ranks.bytes for ranks in self._groups.values())
        if self.is_over:
            self._groups.clear()

    def _give_up(self, step: int, reason: str) -> None:
        self.is_over = True
        log.warning(
            "internist: rank %d works nothing out with other ranks from step %d on: %s; spectra of sharded matrices "
            "are told as bounds (training is not affected)",
            self._rank, step, reason,
        )  # fmt: skip


def _in_short(error: BaseException) -> str:
    """An error's first sentence: what comes after it is advice for the training's own groups."""
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line.partition('. ')[0]}"[:200]
