"""Values that are measured now, and recorded once it is known that they hold."""

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor

from internist.record.series_book import Layout


class Takes(Protocol):
    """Takes values of series: a recorder, or what keeps them for one."""

    def add(
        self, layout: Layout, values: Tensor, counts: Sequence[int] | None = None, *, measured: Tensor | None = None
    ) -> None:
        """Take a tensor of values, one per entry of `layout`, as `Recorder.add` does."""


class Kept:
    """Keeps values, each of which stands for one entry."""

    def __init__(self) -> None:
        self._values: list[tuple[Layout, Tensor, Tensor | None]] = []

    def add(
        self,
        layout: Layout,
        values: Tensor,
        counts: Sequence[int] | None = None,  # noqa: ARG002
        *,
        measured: Tensor | None = None,
    ) -> None:
        """Keep a tensor of values, one per entry of `layout`."""
        self._values.append((layout, values, measured))

    def give(self, taker: Takes, subjects: Collection[str]) -> None:
        """Hand over what is kept of subjects of these names, and keep nothing."""
        for layout, values, measured in self._values:
            own = [series if series is not None and series.subject in subjects else None for series in layout]
            if any(series is not None for series in own):
                taker.add(own, values, measured=measured)
        self.clear()

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
