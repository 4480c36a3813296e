"""Plans and frames as a spool's file has them: wide ones in parts, each plan under a number that no other has there."""

from dataclasses import dataclass, replace

from internist.schema.wire import Frame, Plan
from internist.ship.pieces import cut_plan

_VALUE_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of a plan's series, and the number under which the file has it."""

    number: int
    begin: int
    end: int


class Plans:
    """The plans of one spool.

    A plan keeps its number, unless the file has that already, from an earlier process of the attempt or as a part of
    another plan.
    """

    def __init__(self) -> None:
        self._parts: dict[int, list[_Part]] = {}
        self._taken: set[int] = set()
        self._next = 0

    def take(self, number: int) -> None:
        """Note that the file has a plan of this number."""
        self._taken.add(number)
        self._next = max(self._next, number + 1)

    def declare(self, plan: Plan) -> list[Plan]:
        """The plan as records of the file."""
        parts, found = [], []
        for begin, end in cut_plan(plan):
            number = plan.number if plan.number not in self._taken else self._next
            self.take(number)
            parts.append(_Part(number, begin, end))
            found.append(Plan(number, plan.series[begin:end], plan.counts[begin:end]))
        self._parts[plan.number] = parts
        return found

    def frames(self, frame: Frame) -> list[Frame]:
        """The frame as records of the file.

        Of several, that of the first part comes last: what was measured precedes what was logged in a plan, so the
        frame that completes the step is a measured one.
        """
        parts = self._parts.get(frame.plan, [])
        if len(parts) < 2:
            return [replace(frame, plan=parts[0].number) if parts else frame]
        return [
            replace(
                frame,
                plan=part.number,
                values=frame.values[_VALUE_BYTES * part.begin : _VALUE_BYTES * part.end],
                continued=part is not parts[0] or frame.continued,
            )
            for part in (*parts[1:], parts[0])
        ]
