"""The trail: what the host knows anyway of the last steps, kept without a look at it.

It is written down when a run dies or its loss is no number any more, so that the steps before are told one by one.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from internist.model.plain import PLAIN
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
        kept = [_kept(step, series, value) for series, value in scalars if _is_plain(value)]
        if kept:
            self._steps.append(kept)

    def take(self) -> list[tuple[int, Series, Value]]:
        """Everything that is kept and is still what it was, oldest first; nothing is kept afterwards."""
        found: list[_Kept] = []
        with contextlib.suppress(IndexError):  # empty, perhaps because another thread takes as well
            while True:
                found += self._steps.popleft()
        # A graph that is replayed writes its results into the same memory every time, and tells nobody.
        places = Counter((one.series.number, one.address) for one in found if one.address)
        return [
            (one.step, one.series, one.value)
            for one in found
            if not isinstance(one.value, Tensor) or (places[one.series.number, one.address] == 1 and _is_as_it_was(one))
        ]


def _is_plain(value: Value) -> bool:
    """A tensor of another class may do anything when it is looked at."""
    return not isinstance(value, Tensor) or type(value) in PLAIN


def _is_as_it_was(one: _Kept) -> bool:
    """Whether a tensor still has its memory, and nobody has written to it."""
    value = one.value
    assert isinstance(value, Tensor)
    try:
        return value._version == one.version and value.data_ptr() == one.address
    except RuntimeError:  # whoever replays graphs takes the memory of earlier results away
        return False


def _kept(step: int, series: Series, value: Value) -> _Kept:
    if isinstance(value, Tensor):
        own = value.detach()
        return _Kept(step, series, own, own._version, own.data_ptr())
    return _Kept(step, series, value, 0, 0)
