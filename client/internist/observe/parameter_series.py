"""The series of parameters: who reports them, and what is known of each."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from internist.model.outline import Outline, WatchedParameter
from internist.model.views import facts_of
from internist.observe.routing import Promise, promises
from internist.observe.sampling import Sampling
from internist.observe.speaker import Speaker
from internist.record.series_book import Layout, SeriesBook
from internist.schema.metrics import METRICS, Bound, Placement
from internist.schema.wire import Facts, Series


class ParameterSeries:
    """Makes the series of parameters.

    Args:
        turns: samples in which every parameter has its turn.
    """

    def __init__(
        self,
        outline: Outline,
        *,
        book: SeriesBook,
        sampling: Sampling,
        speaker: Speaker,
        turns: Callable[[], int],
    ) -> None:
        self._outline, self._turns = outline, turns
        self._book, self._sampling, self._speaker = book, sampling, speaker
        self._promised: dict[int, Promise] = {}
        self.group_of: dict[int, int] = {}
        """By parameter order: the number of the group it is in."""

    def note_promises(self, optimizers: Sequence[Any]) -> None:
        """Learn what optimizers promise of their updates."""
        self._promised = promises(optimizers, self._outline)

    def is_reported(self, parameter: WatchedParameter) -> bool:
        """Whether this rank reports it: what several ranks have alike is reported by one of them."""
        shard = parameter.shard
        if shard is None:
            return self._speaker.reports_replicated or parameter.owner.name in self._speaker.apart
        return not shard.is_empty and (shard.is_first if self._speaker.reports_replicated else shard.is_first_of_all)

    def layout(self, chosen: Sequence[WatchedParameter], *metrics: str) -> Layout:
        """The series of metrics of several parameters, metric by metric."""
        key = "parameters", metrics, tuple(p.order for p in chosen)
        return self._book.layout(key, lambda: [self.of(p, metric) for metric in metrics for p in chosen])

    def listed(self, key: tuple[Any, ...], make: Callable[[], Iterable[Series | None]]) -> Layout:
        """A list of series of parameters, made once for a key that names it."""
        return self._book.layout(("parameters", *key), make)

    def of(
        self,
        p: WatchedParameter,
        metric: str,
        method: str = "",
        index: int | None = None,
        *,
        bound: Bound | None = None,
    ) -> Series | None:
        """The series of a parameter's metric, measured by a method, of an expert or of the whole.

        Args:
            bound: what a piece says of the whole; None: what the method does.
        """

        def facts() -> Facts:
            known = METRICS.get(metric)
            promise = self._promised.get(p.order) if known is not None and known.family == "update" else None
            turns = 1 if metric.startswith("gradient.") else self._turns()
            return facts_of(
                p,
                method=method,
                group=self.group_of.get(p.order),
                placement=self._placement(p),
                cadence=self._sampling.cadence(metric) * turns,
                update_scale=promise[0] if promise else None,
                update_band=promise[1] if promise else None,
            )

        told: Bound = bound or ("exact" if method in ("", "gram") else "lower")
        return self._book.series(metric, "parameter", p.name, facts, index=index, bound=told)

    def pair(self, p: WatchedParameter, metric: str, method: str = "") -> list[Series | None]:
        """The series of the lower and of the upper bound of a norm that the ranks' pieces give together."""
        return [self.of(p, metric, method, bound="lower"), self.of(p, metric, method, bound="upper")]

    def _placement(self, p: WatchedParameter) -> Placement:
        if p.shard is not None:
            return "sharded_matrix"
        return "disjoint" if p.owner.name in self._speaker.apart else "replicated"
