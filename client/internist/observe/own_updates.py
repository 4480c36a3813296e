"""What each module's own update did to its probe: found as soon as the last of its parameters has been stepped."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from internist.measures import many, updates
from internist.model.outline import Outline, WatchedModule
from internist.observe.calls import PAIR
from internist.observe.faults import Faults
from internist.observe.modules import ActivationCapture
from internist.observe.own import own_update
from internist.observe.own_batches import Moved, batches
from internist.observe.own_batches import own_updates as own_updates_of
from internist.observe.tokens import OWN_TOKENS
from internist.record.recorder import Recorder
from internist.record.series_book import Layout, SeriesBook
from internist.schema.metrics import Bound
from internist.schema.wire import Series


class OwnUpdates:
    """Measures own updates, on the CPU module by module, elsewhere all that are alike at once."""

    def __init__(self, outline: Outline, activations: ActivationCapture, *, book: SeriesBook, faults: Faults) -> None:
        self._outline, self._activations, self._book, self._faults = outline, activations, book, faults
        self._changed: dict[int, dict[str, Tensor]] = {}
        """By module order: changes of those of its parameters that have been stepped in this round."""
        self._alone: dict[int, Tensor] = {}
        """By module order: (tokens,) how far its own update moved each of its probe tokens."""
        self._batches: list[tuple[list[int], Tensor]] = []
        """The same of modules that were measured together: their orders, (modules, tokens)."""
        self.measured_now: set[int] = set()
        """Orders of modules whose own update was measured in the step that is being closed."""

    def take(self, deltas: Mapping[int, Tensor]) -> None:
        """Measure the modules of which these changes, by parameter order, are the last."""
        holders = {holder.order for order in deltas for holder in self._outline.parameters[order].holders}
        ready: list[Moved] = []
        for order in sorted((holders & self._activations.probes.keys()) - self._activations.outputs.keys()):
            probe, watched = self._activations.probes[order], self._outline.modules[order]
            if self._faults.is_given_up("own update", watched.name):
                continue
            changed = self._changed.setdefault(order, {})
            changed.update((name, deltas[p.order]) for name, p in watched.parameters.items() if p.order in deltas)
            if len(changed) < sum(p.tensor.requires_grad for p in watched.parameters.values()):
                continue  # another optimizer steps the rest, later in this round
            ready.append(Moved(watched, probe, self._changed.pop(order)))
        self._measure(ready)

    def take_rest(self, is_whole: Callable[[WatchedModule, set[str]], bool]) -> None:
        """Measure the modules of which some parameters were not stepped in this round: those did not move.

        Args:
            is_whole: whether the changes of these attributes are all that the round made to a module.
        """
        ready = [
            Moved(watched, self._activations.probes[order], changed)
            for order, changed in self._changed.items()
            if changed and is_whole(watched := self._outline.modules[order], set(changed))
        ]
        self._changed.clear()
        self._measure(ready)

    def put(self, order: int, token_rms: Tensor) -> None:
        """What a module's own update did to its probe was found elsewhere: (tokens,)."""
        self._alone[order] = token_rms

    def record(self, recorder: Recorder) -> None:
        """Record what was found, in one reduction for all probes of one size."""
        by_size: dict[int, list[int]] = {}
        for order, change in self._alone.items():
            by_size.setdefault(change.numel(), []).append(order)
        found = [(orders, torch.stack([self._alone[order] for order in orders])) for orders in by_size.values()]
        joined: dict[int, list[tuple[list[int], Tensor]]] = {}
        for orders, changes in [*found, *self._batches]:
            joined.setdefault(changes.shape[1], []).append((orders, changes))
        for tokens, parts in joined.items():
            members = [order for orders, _ in parts for order in orders]
            values = updates.moved(parts[0][1] if len(parts) == 1 else torch.cat([changes for _, changes in parts]))
            for layout, numbers, counts in self.parts(members, values, tokens):
                recorder.add(layout, numbers, counts)
            self.measured_now.update(members)
        self._alone.clear()
        self._batches.clear()

    def reset(self) -> None:
        """Forget the step."""
        self._changed.clear()
        self._alone.clear()
        self._batches.clear()
        self.measured_now = set()

    def parts(self, orders: Sequence[int], values: Tensor, tokens: int) -> Iterator[tuple[Layout, Tensor, list[int]]]:
        """Series, values and entries of modules' own updates.

        Of modules of whose features this rank has a piece a token's change lies between that of the piece and the root
        of the sum of all pieces' squares.

        Args:
            orders: of the modules.
            values: (modules, 2) float32, of the features that this rank has: the largest change, the mean square.
            tokens: of each probe.
        """
        pieces, widths = self._activations.series.pieces, self._activations.series.widths
        whole = [i for i, order in enumerate(orders) if order not in pieces]
        if whole:
            members = [orders[i] for i in whole]
            counts = [count for order in members for count in (1, tokens * (widths[order][1] or 1))]
            yield self._layout(members), values if len(whole) == len(orders) else values[whole], counts
        for order, (largest, mean) in zip(orders, values, strict=True):
            if order in pieces:
                share = pieces[order].share
                squares = largest.square() * share
                series = [self._series(order, "update.own", bound) for bound in PAIR]
                entries = max(1, round(tokens * (widths[order][1] or 1) * share))
                parts = torch.stack((squares.sqrt(), squares, mean))
                yield [*series, self._series(order, "update.own_mean")], parts, [1, 1, entries]

    # ---- private -----------------------------------------------------------------------------------------------------

    def _layout(self, orders: Sequence[int]) -> Layout:
        names = "update.own", "update.own_mean"
        return self._book.layout(
            ("own", tuple(orders)), lambda: [self._series(order, name) for order in orders for name in names]
        )

    def _measure(self, ready: Sequence[Moved]) -> None:
        apart = [moved for moved in ready if not many.pays(moved.probe.tokens.device)]
        for batch in batches([moved for moved in ready if many.pays(moved.probe.tokens.device)]):
            if len(batch) == 1 or not self._measure_batch(batch):
                apart += batch
        for moved in apart:
            self._measure_alone(moved)

    def _measure_batch(self, batch: Sequence[Moved]) -> bool:
        """Whether the modules could be measured together; each alone shows whose fault it is that they cannot."""
        try:
            self._batches.append(([moved.watched.order for moved in batch], own_updates_of(batch)))
        except Exception:
            return False
        return True

    def _measure_alone(self, moved: Moved) -> None:
        try:
            change = own_update(moved.watched.module, moved.probe, moved.changes)
        except Exception as error:
            self._faults.note("own update", moved.watched.name, error)
            return
        if change is not None:
            self.put(moved.watched.order, change)

    def _series(self, order: int, metric: str, bound: Bound = "exact") -> Series | None:
        watched = self._outline.modules[order]
        return self._book.series(
            metric,
            "module",
            watched.name,
            lambda: self._activations.series.facts(watched, metric, probe=OWN_TOKENS),
            bound=bound,
        )
