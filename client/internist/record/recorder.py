"""The recorder: what a step measured becomes one flat device buffer, one copy to the host, and one frame.

The training thread adds values and, when a round ends, closes the step: that is the only place where a frame ends. The
sender's thread writes a closed step once its copy has arrived and the next step is under way (or `HOLD_S` are over),
with the scalars that were logged for it until then. Scalars that come later travel alone.
"""

import logging
import math
import struct
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterable, Sequence

from torch import Tensor

from internist.record.closed_step import Also, ClosedStep, Derive, Late, single
from internist.record.logs import Logs
from internist.record.plans import Plans, Sink
from internist.record.series_book import Layout, SeriesBook
from internist.record.trail import Trail
from internist.record.transfer import Transfers
from internist.schema.wire import Series
from internist.ship.moments import now_ms

log = logging.getLogger("internist")

QUEUE_LENGTH = 8
"""Copies under way at most; beyond, frames are dropped and counted."""
HOLD_S = 0.5
"""A closed step waits this long for scalars logged after the optimizer step, unless the next step begins sooner."""
TRAVEL_S = 1.0
"""Scalars of steps without a frame travel together, a second's at most: a request takes milliseconds of a processor."""

LATE_S = 120.0
"""A closed step waits this long for values that the next forward gives. All ranks of a step wait alike."""
POLL_S = 0.01
"""Between two looks at a copy that is under way."""


class Recorder:
    """Collects values of one step (training thread) and turns closed steps into records (sender's thread)."""

    def __init__(self, sink: Sink, book: SeriesBook) -> None:
        self.book = book
        self.step_under_way = -1
        """The newest step whose forward has begun."""
        self._transfers = Transfers()
        self._logs = Logs(self._transfers)
        self._plans = Plans(sink)
        self._drain_lock = threading.Lock()
        self._queue: deque[ClosedStep] = deque()
        self._refused: set[str] = set()
        self.logged: set[str] = set()
        """Names of all scalars that were ever logged."""
        self.trail = Trail()
        self._loss_is_lost = False
        self._dropped = 0
        self._clear()

    # ---- training thread -------------------------------------------------------------------------------------------

    def add(
        self,
        layout: Layout,
        values: Tensor,
        counts: Sequence[int] | None = None,
        *,
        measured: Tensor | None = None,
        also: Sequence[Also] = (),
        in_parts: bool = False,
    ) -> None:
        """Record a tensor of values, one per entry of `layout`.

        Args:
            layout: the series of each entry, in the order of the flattened values.
            values: of any shape; they stay on their device until the step is closed.
            counts: entries each part stands for; None: one each.
            measured: of the shape of `values`, False where there was nothing to measure; None: all were.
            also: further series of some of the values, by their places.
            in_parts: a series may come again in this step: its values are parts, which become one by the rule of its
                metric.

        A length that does not fit is a fault of the caller's: the part is left out, counted and said once.
        """
        flat = values if values.dim() == 1 else values.reshape(-1)
        wrong = flat.numel() != len(layout) or (counts is not None and len(counts) != len(layout))
        if wrong or (measured is not None and measured.numel() != flat.numel()):
            self._refuse(layout, flat.numel(), None if counts is None else len(counts))
            return
        if measured is not None:
            start = len(self._layout)
            self._mask_tensors.append(measured.reshape(-1))
            self._masks.append((start, start + flat.numel()))
        start = len(self._layout)
        self._also += [(start + place, series, count) for place, series, count in also]
        self._in_parts |= in_parts
        self._tensors.append(flat)
        self._layout.extend(layout)
        self._counts.extend(counts if counts is not None else (1,) * len(layout))

    def add_host(self, series: Series | None, value: float) -> None:
        """Record a value that is already on the host."""
        if series is not None:
            self._host_values.append((series, value))

    def add_flag(self, found_inf: Tensor) -> None:
        """Record a gradient scaler's flag: if it is not zero, this step was skipped."""
        self._flags.append(found_inf.reshape(-1)[:1])

    def log(self, step: int, name: str, value: float | Tensor, axis: str | None = None) -> None:
        """Record a scalar of a step; the last value of a name wins. A tensor stays on its device until it is taken."""
        self.logged.add(name)
        self._logs.put(step, self.book.logged(name, axis), value)

    def is_logged(self, step: int, name: str) -> bool:
        """Whether a scalar of that name was logged for that step and is not shipped yet."""
        return self._logs.has(step, self.book.logged(name))

    def log_measured(self, step: int, series: Series | None, value: float) -> None:
        """Record a measured value of a step that is not sampled: it travels like a scalar."""
        if series is not None:
            self._logs.put(step, series, value)

    def close_step(self, step: int, derive: Sequence[Derive] = (), *, more: Iterable[str] = ()) -> None:
        """The step is over: start its one copy to the host.

        Args:
            step: its number.
            derive: each works more values out of the frame's, on the host; they travel with it.
            more: names of what values of it are still to come from: it is not written before each has settled, for
                `LATE_S` at most.
        """
        tensors = self._flags + self._tensors + self._mask_tensors
        layout, counts, masks = self._layout, self._counts, self._masks
        host_values, flags, also, in_parts = self._host_values, len(self._flags), self._also, self._in_parts
        self._clear()
        if len(self._queue) >= QUEUE_LENGTH:
            self._dropped += 1
            return
        transfer = self._transfers.begin(tensors) if tensors else None
        self._queue.append(
            ClosedStep(
                step,
                now_ms(),
                time.monotonic(),
                layout,
                counts,
                transfer,
                host_values,
                flags,
                masks,
                also,
                in_parts,
                derive,
                set(more),
            )
        )

    def ship_trail(self) -> None:
        """Have what is known of the last steps written down. Any thread may call."""
        for step, series, value in self.trail.take():
            self._logs.put(step, series, value)

    def add_late(self, step: int, layout: Layout, values: Tensor, counts: Sequence[int]) -> None:
        """Record values of a step that was closed with more to come; they go alone if that could not wait for them. Any
        thread may call."""
        late = Late(layout, counts, self._transfers.begin([values]))
        closed = next((each for each in self._queue.copy() if each.step == step and each.more), None)
        if closed is not None:
            closed.late.append(late)
        elif len(self._queue) < QUEUE_LENGTH:
            now, at_ms = time.monotonic(), now_ms()
            self._queue.append(ClosedStep(step, at_ms, now, [], [], None, [], 0, [], [], in_parts=False, late=[late]))
        else:
            self._dropped += 1

    def settle(self, step: int, source: str) -> None:
        """Nothing of a closed step is still to come from this source. Any thread may call."""
        for closed in self._queue.copy():
            if closed.step == step:
                closed.more.discard(source)

    def discard_step(self) -> None:
        """Forget what was added since the last step was closed."""
        self._clear()

    @property
    def holds_step(self) -> bool:
        """Whether a closed step is not written yet: it waits for the next one to begin."""
        return bool(self._queue)

    @property
    def busy(self) -> bool:
        """Whether anything that was measured or logged is not written yet."""
        return bool(self._queue) or self._logs.waiting

    @property
    def dropped(self) -> int:
        """Frames dropped so far: here because the host did not keep up, or by the sink."""
        return self._dropped + self._plans.dropped

    @property
    def points(self) -> int:
        """Points written so far."""
        return self._plans.points

    # ---- sender's thread -------------------------------------------------------------------------------------------

    def drain(self, *, everything: bool = False) -> float | None:
        """Write what has arrived on the host; seconds until it is worth another try, None if nothing waits.

        Args:
            everything: hold nothing back for scalars to come.
        """
        with self._drain_lock:
            return self._drain(everything)

    # ---- private ---------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._tensors: list[Tensor] = []
        self._layout: list[Series | None] = []
        self._counts: list[int] = []
        self._host_values: list[tuple[Series, float]] = []
        self._flags: list[Tensor] = []
        self._mask_tensors: list[Tensor] = []
        self._masks: list[tuple[int, int]] = []
        self._also: list[Also] = []
        self._in_parts = False

    def _refuse(self, layout: Layout, values: int, counts: int | None) -> None:
        self._dropped += 1
        metric = next((series.metric for series in layout if series is not None), "a metric")
        if metric not in self._refused:
            self._refused.add(metric)
            log.warning(
                "internist: %s: %d values, %s counts, %d series; this part is left out (training is not affected)",
                metric, values, "no" if counts is None else counts, len(layout),
            )  # fmt: skip

    def _derived(
        self, derive: Derive, series: Sequence[Series], raw: bytes, counts: Sequence[int]
    ) -> list[tuple[Series, float, int]]:
        """What is worked out of a frame's values. A fault there costs these alone, and is said once."""
        try:
            return list(derive(series, array("f", raw), counts))
        except Exception as error:
            if "derived" not in self._refused:
                self._refused.add("derived")
                log.warning(
                    "internist: %s: %s; what is worked out of it is left out (training is not affected)",
                    type(error).__name__, error,
                )  # fmt: skip
            return []

    def _drain(self, everything: bool) -> float | None:
        now = time.monotonic()
        while self._queue:
            closed = self._queue[0]
            age = now - closed.closed_s
            held = (closed.step >= self.step_under_way and age < HOLD_S) or (closed.more and age < LATE_S)
            if (held and not everything) or not closed.has_arrived:
                break
            closed.more.clear()
            logged = self._logs.take(upto=closed.step)
            if logged is None:
                break  # a scalar of this step is still on its way
            for step, values in logged:
                if step != closed.step:
                    self._write_logs(step, values)
            self._write(closed, [pair for step, values in logged if step == closed.step for pair in values])
            self._queue.popleft()
        if not self._queue:
            age = 0.0 if everything else TRAVEL_S
            for step, values in self._logs.take(older_than=age) or ():
                self._write_logs(step, values)
        if self._queue:
            return POLL_S
        return (POLL_S if everything else TRAVEL_S) if self._logs.waiting else None

    def _watch_loss(self, values: list[tuple[Series, float]]) -> None:
        """Once the loss is no number, the steps before are wanted."""
        for series, value in values:
            if series.metric == "loss":
                is_lost = not math.isfinite(value)
                if is_lost and not self._loss_is_lost:
                    self.ship_trail()
                self._loss_is_lost = is_lost

    def _write_logs(self, step: int, values: list[tuple[Series, float]]) -> None:
        self._watch_loss(values)
        raw = struct.pack(f"<{len(values)}f", *(single(value) for _, value in values))
        self._plans.write(step, now_ms(), [s for s, _ in values], (1,) * len(values), raw)

    def _write(self, closed: ClosedStep, logged: list[tuple[Series, float]]) -> None:
        layout, counts, raw, skipped = closed.take()
        self._watch_loss(logged)
        series = [each for each in layout if each is not None]
        extra = [(each, value, 1) for each, value in closed.host_values + logged]
        extra += [one for derive in closed.derive for one in self._derived(derive, series, raw, counts)]
        series += [each for each, *_ in extra]
        raw += struct.pack(f"<{len(extra)}f", *(single(value) for _, value, _ in extra))
        counts = [*counts, *(count for *_, count in extra)]
        self._plans.write(closed.step, closed.measured_at_ms, series, tuple(counts), raw, skipped=skipped)
