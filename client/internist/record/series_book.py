"""The series book: the only maker of series, so that two series of one identity cannot exist."""

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence

from internist.schema.metrics import METRICS, Bound, Kind
from internist.schema.wire import Facts, Series

LAYOUTS_KEPT = 256
"""Lists of series, each of as many as one call records, that are kept for steps to come."""
LOGGED = "logged/"
"""Stands before the name of a logged scalar that is a measured metric's: a metric never changes its meaning."""

Layout = Sequence[Series | None]
"""Which series each entry of a tensor belongs to; None: an entry that nobody asked for."""
Identity = tuple[str, Kind, str, int | None, Bound]
"""Metric, kind and name of the subject, head or expert, bound."""


class SeriesBook:
    """Makes every series once, by its identity, and numbers it.

    Any thread may call.

    Args:
        wants: whether a metric is measured at all.
    """

    def __init__(self, wants: Callable[[str], bool]) -> None:
        self._wants = wants
        self._series: dict[Identity, Series] = {}
        self._layouts: dict[Hashable, Layout] = {}
        self._next = 0
        self._lock = threading.Lock()

    def series(
        self,
        metric: str,
        kind: Kind,
        subject: str,
        facts: Callable[[], Facts],
        *,
        index: int | None = None,
        bound: Bound = "exact",
    ) -> Series | None:
        """The series of that identity; None if its metric is not wanted.

        Args:
            metric: a name of the catalogue.
            kind: what the subject is.
            subject: its name.
            facts: called once, when the series is made.
            index: head or expert.
            bound: what the value is to the true one.
        """
        found = self._series.get((metric, kind, subject, index, bound))
        if found is not None:
            return found
        return self._made((metric, kind, subject, index, bound), facts) if self._wants(metric) else None

    def logged(self, name: str, axis: str | None = None) -> Series:
        """The series of a scalar that the user logs.

        Args:
            name: as given; the name of a measured metric is set apart by `LOGGED`.
            axis: name of the scalar that tells where on its own axis this one was logged; None: the optimizer step.
        """
        known = METRICS.get(name)
        shown = LOGGED + name if known is not None and known.cadence != "logged" else name
        identity: Identity = (shown, "model", "model", None, "exact")
        found = self._series.get(identity)
        if found is not None and found.facts.axis != axis:
            self._series.pop(identity)  # declared anew: its first values may have looked like those of steps
        facts = Facts(method="as given", placement="data_parallel", axis=axis)
        return self._made(identity, lambda: facts)

    def layout(self, key: Hashable, make: Callable[[], Iterable[Series | None]]) -> Layout:
        """A list of series, made once for a key that names it."""
        found = self._layouts.get(key)
        if found is None:
            if len(self._layouts) >= LAYOUTS_KEPT:  # subjects that are measured in ever other combinations
                self._layouts.clear()
            found = self._layouts[key] = list(make())
        return found

    def forget_layouts(self) -> None:
        """The keys mean something else from here on: the model's outline was read anew."""
        self._layouts.clear()

    def __iter__(self) -> Iterable[Series]:
        """All series made so far, in order of their numbers."""
        return iter(list(self._series.values()))

    def __len__(self) -> int:
        return len(self._series)

    def _made(self, identity: Identity, facts: Callable[[], Facts]) -> Series:
        found = self._series.get(identity)
        if found is None:
            known = facts()  # outside the lock: it is the caller's code
            with self._lock:
                found = self._series.get(identity)
                if found is None:
                    found = self._series[identity] = Series(self._next, *identity, facts=known)
                    self._next += 1
        return found
