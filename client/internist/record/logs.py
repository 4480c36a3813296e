"""Logged scalars that wait for their step's frame, or to travel alone."""

import struct
import threading
import time
from dataclasses import dataclass, field

from torch import Tensor

from internist.record.transfer import Transfer, Transfers
from internist.schema.wire import Series

Logged = list[tuple[int, list[tuple[Series, float]]]]
"""By step, in order: scalars and their values."""


@dataclass(slots=True)
class _Step:
    """Scalars of one step."""

    since_s: float
    values: dict[int, tuple[Series, float | Tensor]] = field(default_factory=dict)


class Logs:
    """Scalars by step. The training thread puts them, the sender's takes them."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._lock = threading.Lock()
        self._steps: dict[int, _Step] = {}
        self._under_way: tuple[Transfer, list[tuple[int, Series]]] | None = None
        self._copying: Logged = []
        """What the copy under way was taken together with."""

    @property
    def waiting(self) -> bool:
        """Whether anything has not been taken yet."""
        return bool(self._steps) or self._under_way is not None

    def put(self, step: int, series: Series, value: float | Tensor) -> None:
        """Keep a scalar; the last value of a series wins."""
        with self._lock:
            kept = self._steps.get(step)
            if kept is None:
                kept = self._steps[step] = _Step(time.monotonic())
            kept.values[series.number] = series, value

    def has(self, step: int, series: Series) -> bool:
        """Whether a scalar of that series waits for that step."""
        kept = self._steps.get(step)
        return kept is not None and series.number in kept.values

    def take(self, *, upto: int | None = None, older_than: float = 0.0) -> Logged | None:
        """Scalars that need not wait any longer; None while a copy of them is still under way.

        Args:
            upto: of this step and earlier ones, whatever their age; None: of any.
            older_than: seconds since the first scalar of any step was put: then all go together.
        """
        taken: Logged = []
        while True:
            fresh = self._under_way is None
            if fresh:
                self._begin(self._chosen(upto, older_than))
            if not self._finish():
                return None
            taken, self._copying = taken + self._copying, []
            if fresh:
                return taken

    def _finish(self) -> bool:
        """Fill in the numbers of the copy under way; whether they have arrived."""
        if self._under_way is None:
            return True
        transfer, keys = self._under_way
        if not transfer.arrived():
            return False
        by_step = dict(self._copying)
        for (step, series), number in zip(keys, struct.unpack(f"<{len(keys)}f", transfer.take()), strict=True):
            by_step[step].append((series, number))
        self._under_way = None
        return True

    def _chosen(self, upto: int | None, older_than: float) -> list[tuple[int, _Step]]:
        now = time.monotonic()
        with self._lock:
            oldest = min((kept.since_s for kept in self._steps.values()), default=now)
            if upto is None and now - oldest < older_than:
                return []
            steps = sorted(step for step in self._steps if upto is None or step <= upto)
            return [(step, self._steps.pop(step)) for step in steps]

    def _begin(self, chosen: list[tuple[int, _Step]]) -> None:
        keys: list[tuple[int, Series]] = []
        tensors: list[Tensor] = []
        for step, kept in chosen:
            ready: list[tuple[Series, float]] = []
            for series, value in kept.values.values():
                if isinstance(value, Tensor):
                    keys.append((step, series))
                    tensors.append(value.reshape(-1)[:1])
                else:
                    ready.append((series, value))
            self._copying.append((step, ready))
        if tensors:
            self._under_way = self._transfers.begin(tensors), keys
