"""How routers share a step's tokens among experts: measured in their calls, on model-heavy steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from internist.measures.precision import full_precision
from internist.measures.routing import entropy, largest_logits, loads
from internist.model.outline import Outline, WatchedModule
from internist.model.plain import PLAIN
from internist.model.routers import Router, routers
from internist.observe.calls import CallSeries
from internist.observe.faults import Faults
from internist.observe.sampling import Sampling
from internist.record.recorder import Recorder
from internist.record.series_book import Layout, SeriesBook
from internist.schema.metrics import Bound
from internist.schema.wire import Series

METRICS = ("router.load", "router.entropy")
UNTOLD = "its model does not say to how many experts a token is sent (top_k), and it returns no choice"


@dataclass(slots=True)
class _Call:
    tokens: int
    load: Tensor | None
    """(E,) share of the tokens that goes to each expert; None where the choice is not known."""
    entropy: Tensor | None


class RouterCalls:
    """The step's calls of all routers of a model."""

    def __init__(
        self, outline: Outline, series: CallSeries, *, book: SeriesBook, faults: Faults, sampling: Sampling
    ) -> None:
        self._series, self._book, self._faults, self._sampling = series, book, faults, sampling
        self._modules = outline.modules
        found = {id(router.module): router for router in routers(outline.root)} if sampling.wants(*METRICS) else {}
        self._routers = {m.order: found[id(m.module)] for m in outline.modules if id(m.module) in found}
        self._calls: dict[int, list[_Call]] = {}
        self._marked: dict[int, int] = {}
        self.measured_now: set[int] = set()
        """Orders of routers of which this step knows the load."""

    @property
    def orders(self) -> frozenset[int]:
        """Orders of the modules that are routers."""
        return frozenset(self._routers)

    def knows(self, watched: WatchedModule) -> bool:
        """Whether a module is a router."""
        return watched.order in self._routers

    def measure(self, watched: WatchedModule, output: Any, source: Tensor | None) -> None:
        """Measure a call that has just ended."""
        router = self._routers[watched.order]
        if self._faults.is_given_up("router", watched.name):
            return
        try:
            call = self._measured(router, watched, output, source)
            if call is not None:
                self._calls.setdefault(watched.order, []).append(call)
            self._faults.well("router", watched.name)
        except Exception as error:
            self._faults.note("router", watched.name, error)

    def mark(self) -> None:
        """A forward begins: `roll_back` forgets what is measured from here on."""
        self._marked = {order: len(calls) for order, calls in self._calls.items()}

    def roll_back(self) -> None:
        """Forget what was measured since `mark`."""
        self._calls = {order: calls[: self._marked.get(order, 0)] for order, calls in self._calls.items()}

    def reset(self) -> None:
        """Forget the step's calls."""
        self._calls.clear()

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:
        """Hand the step's values to the recorder.

        Args:
            sampled: the values come from a replay of the probe, not from the training forward.
        """
        bound: Bound = "sampled" if sampled else "exact"
        self.measured_now = set()
        for order, calls in self._calls.items():
            shares = [(call.load, call.tokens) for call in calls if call.load is not None]
            if shares:
                self.measured_now.add(order)
                self._record(recorder, self._layout(order, bound), shares)
            entropies = [(call.entropy, call.tokens) for call in calls if call.entropy is not None]
            if entropies:
                self._record(recorder, [self._of(order, "router.entropy", bound)], entropies)

    def _measured(self, router: Router, watched: WatchedModule, output: Any, source: Tensor | None) -> _Call | None:
        anywhere = source if source is not None else output
        if not isinstance(anywhere, Tensor):
            return None
        with full_precision(anywhere):
            logits = router.logits(output, source)
            if logits is not None and type(logits) not in PLAIN:
                return None
            tokens = anywhere.numel() // anywhere.shape[-1] if logits is None else len(logits)
            chosen = router.chosen(output, tokens)
            if chosen is None and logits is not None:
                chosen = self._largest(router, watched, logits)
            if not tokens or (chosen is None and logits is None):
                return None
            return _Call(
                tokens,
                None if chosen is None else loads(chosen, router.experts),
                None if logits is None else entropy(logits),
            )

    def _largest(self, router: Router, watched: WatchedModule, logits: Tensor) -> Tensor | None:
        """The experts of the largest logits, where these decide."""
        per_token, corrected = router.per_token, router.corrected
        if per_token is None or corrected:
            reason = f"{corrected} takes part in its choice, which it does not return" if corrected else UNTOLD
            self._faults.give_up("router load", watched.name, reason)
            return None
        return largest_logits(logits, per_token)

    def _record(self, recorder: Recorder, layout: Layout, parts: list[tuple[Tensor, int]]) -> None:
        tokens = sum(number for _, number in parts)
        mean = parts[0][0] if len(parts) == 1 else torch.stack([v * (n / tokens) for v, n in parts]).sum(0)
        recorder.add(layout, mean, [tokens] * len(layout))

    def _layout(self, order: int, bound: Bound) -> Layout:
        experts = range(self._routers[order].experts)
        key = "router.load", order, bound
        return self._book.layout(key, lambda: [self._of(order, "router.load", bound, index) for index in experts])

    def _of(self, order: int, metric: str, bound: Bound, index: int | None = None) -> Series | None:
        watched = self._modules[order]
        return self._book.series(
            metric, "module", watched.name, lambda: self._series.facts(watched, metric), index=index, bound=bound
        )
