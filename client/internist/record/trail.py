"""The trail: what the host knows anyway of the last steps, kept without a look at it.

It is written down when a run dies or its loss is no number any more, so that the steps before are told one by one.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from internist.schema.wire import Series

STEPS = 64
"""Steps that are kept."""

Value = float | Tensor
Scalars = Sequence[tuple[Series, Value]]


@dataclass(frozen=True, slots=True)
class _Kept:
    """One scalar. A tensor is the user's own memory, not a copy: it counts only as long as nobody has written to it."""

    step: int
    series: Series
    value: Value
    version: int
    address: int


class Trail:
    """Scalars of the last steps that were not sampled. The training thread notes them; any thread may take them."""

    def __init__(self) -> None:
        self._steps: deque[list[_Kept]] = deque(maxlen=STEPS)

    def note(self, step: int, scalars: Scalars) -> None:
        """Keep the scalars of a step. No device is asked for anything."""
        if scalars:
            self._steps.append([_kept(step, series, value) for series, value in scalars])

    def take(self) -> list[tuple[int, Series, Value]]:
        """Everything that is kept and is still what it was, oldest first; nothing is kept afterwards."""
        found: list[_Kept] = []
        while self._steps:
            found += self._steps.popleft()
        # A graph that is replayed writes its results into the same memory every time, and tells nobody.
        places = Counter((one.series.number, one.address) for one in found if one.address)
        return [
            (one.step, one.series, one.value)
            for one in found
            if not isinstance(one.value, Tensor)
            or (one.value._version == one.version and places[one.series.number, one.address] == 1)
        ]


def _kept(step: int, series: Series, value: Value) -> _Kept:
    if isinstance(value, Tensor):
        own = value.detach()
        return _Kept(step, series, own, own._version, own.data_ptr())
    return _Kept(step, series, value, 0, 0)
