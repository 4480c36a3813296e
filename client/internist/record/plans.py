"""Plans: which series a frame carries. Declares series and plans when they are first needed."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Protocol

from internist.schema.wire import Frame, Plan, Series

PLANS_KEPT = 64


class Sink(Protocol):
    """Where records go: the spool."""

    @property
    def dropped(self) -> int:
        """Records that were lost so far."""
        ...

    def append(
        self, *, series: tuple[Series, ...] | None = None, plan: Plan | None = None, frame: Frame | None = None
    ) -> bool:
        """Write what is given; whether all of it is written. Never raises."""
        ...


class Plans:
    """Writes frames, each after the declarations that it needs. No frame carries a series twice."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._declared: set[int] = set()
        self._plans: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self._next = 0
        self.points = 0

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Numbers of the series, and counts, of the plans that are remembered."""
        return iter(list(self._plans))

    @property
    def dropped(self) -> int:
        """Records that the sink lost."""
        return self._sink.dropped

    def write(
        self,
        step: int,
        at_ms: int,
        series: Sequence[Series],
        counts: tuple[int, ...],
        raw: bytes,
        *,
        skipped: bool = False,
    ) -> None:
        """Write one frame.

        Args:
            series: of each value; of a series that stands there twice the first value counts.
            counts: entries each part stands for.
            raw: the values, little-endian float32.
        """
        if not series:
            return
        key = tuple(each.number for each in series), counts
        plan = self._plans.get(key)
        if plan is None:
            if len(set(key[0])) < len(key[0]):
                kept = list({number: i for i, number in reversed(list(enumerate(key[0])))}.values())[::-1]
                values = array("f", raw)
                self.write(
                    step, at_ms, [series[i] for i in kept], tuple(counts[i] for i in kept),
                    array("f", [values[i] for i in kept]).tobytes(), skipped=skipped,
                )  # fmt: skip
                return
            new = tuple(each for each in series if each.number not in self._declared)
            if new:
                self._sink.append(series=new)
                self._declared.update(each.number for each in new)
            plan, self._next = self._next, self._next + 1
            if len(self._plans) >= PLANS_KEPT:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
            self._sink.append(plan=Plan(plan, key[0], counts))
        if self._sink.append(frame=Frame(plan, step, at_ms, raw, skipped)):
            self.points += len(series)
