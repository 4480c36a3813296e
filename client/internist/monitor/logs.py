"""The user's scalars on their way to the recorder: names and values checked, each with the step it belongs to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from internist.monitor.axes import DEFAULT_AXIS, Place, place, whole_number
from internist.monitor.scalars import NotAScalar, checked_name, scalar
from internist.observe.observer import Observer
from internist.record.recorder import Recorder

_MOST_EARLY: Final = 100
"""Calls with a step of the user's own that wait for the first round to end; a loop with more has no rounds."""


@dataclass(frozen=True, slots=True)
class _Early:
    """Scalars that were logged before the first round had ended."""

    values: dict[str, float | Tensor]
    number: int
    axis: str | None


class Logs:
    """Hands scalars to the recorder.

    Which optimizer step is under way is known for sure once the first round has ended: an optimizer's state may be
    loaded until then. Scalars with a step of the user's own wait for that, since whether it counts optimizer steps is
    told by comparing the two.

    Args:
        observer: knows the step under way.
        recorder: takes the scalars.
        complain: says once, by a key, what was left out.
    """

    def __init__(self, observer: Observer, recorder: Recorder, complain: Callable[[str, str], None]) -> None:
        self._observer = observer
        self._recorder = recorder
        self._complain = complain
        self._early: list[_Early] = []
        self._waits = True

    def log(self, values: Any, named: Mapping[str, Any], *, step: Any, axis: Any) -> None:
        """Record scalars; see `Monitor.log`."""
        if not isinstance(values, Mapping | None):
            kind = type(values).__name__
            self._complain("log values", f"log({kind}): expected a mapping of names to numbers; nothing was recorded")
            return
        number = None if step is None else whole_number(step)
        if step is not None and number is None:
            self._complain("log step", f"log(step={step!r}): expected a whole number, 0 or more; nothing was recorded")
            return
        if self._waits and (self._observer.rounds or len(self._early) >= _MOST_EARLY):
            self._waits = False
            self.settle()
        scalars = self._scalars({**(values or {}), **named})
        if number is None:
            self._record(scalars, Place(self._observer.log_step))
        elif self._waits:
            self._early.append(_Early(scalars, number, self._axis(axis)))
        else:
            self._record(scalars, self._place(number, self._axis(axis), self._observer.log_step))

    def settle(self) -> None:
        """Record what has waited for the first round to end."""
        early, self._early = self._early, []
        first_step = self._observer.clock.step - self._observer.rounds
        for each in early:
            self._record(each.values, self._place(each.number, each.axis, first_step))

    def _place(self, number: int, axis: str | None, under_way: int) -> Place:
        return place(number, axis=axis, under_way=under_way, counted=self._observer.rounds > 0)

    def _record(self, scalars: Mapping[str, float | Tensor], at: Place) -> None:
        for name, value in scalars.items():
            self._recorder.log(at.step, name, value, axis=at.axis if name != at.axis else None)
        if scalars and at.axis is not None and at.position is not None and at.axis not in scalars:
            self._recorder.log(at.step, at.axis, at.position)

    def _scalars(self, values: Mapping[Any, Any]) -> dict[str, float | Tensor]:
        """What of this is scalars; the rest is left out and said once."""
        found: dict[str, float | Tensor] = {}
        for name, value in values.items():
            try:
                found[checked_name(name)] = scalar(value)
            except NotAScalar as problem:
                self._complain(f"log {name!r}", f"log({name!r}): {problem}; it was left out")
        return found

    def _axis(self, axis: Any) -> str | None:
        try:
            return None if axis is None else checked_name(axis)
        except NotAScalar as problem:
            self._complain("log axis", f"log(axis={axis!r}): {problem}; the axis is called {DEFAULT_AXIS!r}")
            return None
