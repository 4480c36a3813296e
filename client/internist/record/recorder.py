"""The recorder: what a step measured becomes one flat device buffer, one copy to the host, and frames in the spool."""

import ctypes
import math
import struct
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from internist.measures.activations import NOT_MEASURED
from internist.schema.metrics import Bound, Kind
from internist.schema.wire import Facts, Frame, Plan, Series
from internist.ship.spool import Spool

QUEUE_LENGTH = 8
"""Copies under way at most; beyond, frames are dropped and counted."""
HOLD_S = 0.5
"""A sampled frame waits this long for scalars logged after the optimizer step, unless the next step begins sooner."""
PLANS_KEPT = 64
LAYOUTS_KEPT = 64
"""Lists of series, each of as many as a step measures, that a capture keeps for steps to come."""
_NOT_MEASURED_BYTES = struct.pack("<f", NOT_MEASURED)


@dataclass(eq=False, slots=True)
class Spec:
    """One series as the client knows it. Identity is the object's."""

    metric: str
    kind: Kind
    subject: str
    index: int | None
    bound: Bound
    facts: Facts
    number: int = -1
    """Given when it is first recorded."""


Layout = Sequence[Spec | None]
"""Which series each entry of a tensor belongs to; None: an entry that is not kept."""


@dataclass(slots=True)
class _Copy:
    """A step's values on their way to the host."""

    step: int
    measured_at_ms: int
    closed_s: float
    layout: list[Spec | None]
    counts: list[int]
    host: Tensor | None
    event: "torch.cuda.Event | None"
    host_values: list[tuple[Spec, float]]
    flags: int
    """Number of leading entries that are `found_inf` flags of gradient scalers."""
    logged: dict[int, dict[str, float]] = field(default_factory=dict)


class Recorder:
    """Collects values of one step (training thread) and turns finished steps into spool records (sender thread)."""

    def __init__(self, spool: Spool, device: torch.device) -> None:
        self._spool = spool
        self._device = device
        self._lock = threading.Lock()
        self._drain_lock = threading.Lock()
        self._tensors: list[Tensor] = []
        self._layout: list[Spec | None] = []
        self._counts: list[int] = []
        self._host_values: list[tuple[Spec, float]] = []
        self._flags: list[Tensor] = []
        self._queue: deque[_Copy] = deque()
        self._open: _Copy | None = None
        self._logs: dict[int, dict[str, float | Tensor]] = {}
        self._log_copies: deque[tuple[list[tuple[int, str]], Tensor, torch.cuda.Event | None]] = deque()
        self._ready_logs: dict[int, dict[str, float]] = {}
        self._specs: list[Spec] = []
        self._log_specs: dict[str, Spec] = {}
        self._axes: dict[str, str] = {}
        """By scalar: the foreign axis it was last logged on."""
        self._plans: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self._next_plan = 0
        self._pinned: list[Tensor] = []
        self._buffer: Tensor | None = None
        self._dropped = 0
        self.points = 0

    # ---- training thread -------------------------------------------------------------------------------------------

    def add(self, layout: Layout, values: Tensor, counts: Sequence[int] | None = None) -> None:
        """Record a tensor of values, one per entry of `layout`."""
        self._tensors.append(values.reshape(-1))
        self._layout.extend(layout)
        self._counts.extend(counts if counts is not None else (1,) * len(layout))

    def add_host(self, spec: Spec, value: float) -> None:
        """Record a value that is already on the host."""
        self._host_values.append((spec, value))

    def add_flag(self, found_inf: Tensor) -> None:
        """Record a gradient scaler's flag: if it is not zero, this step was skipped."""
        self._flags.append(found_inf.reshape(-1)[:1])

    def log(self, step: int, name: str, value: float | Tensor, *, axis: str | None = None) -> None:
        """Record a scalar of a step; the last value of a name wins. A tensor stays on its device until the next
        shipment. With an axis, the scalar of that name says where the value was logged."""
        with self._lock:
            self._logs.setdefault(step, {})[name] = value
            if axis is not None:
                self._axes[name] = axis

    def is_logged(self, step: int, name: str) -> bool:
        """Whether a scalar of that name was logged for that step and is not shipped yet."""
        return name in self._logs.get(step, ())

    def close_step(self, step: int) -> None:
        """The step is over: start its one copy to the host."""
        tensors, layout, counts = self._flags + self._tensors, self._layout, self._counts
        host_values, flags = self._host_values, len(self._flags)
        self._tensors, self._layout, self._counts, self._host_values, self._flags = [], [], [], [], []
        copy = _Copy(
            step, time.time_ns() // 1_000_000, time.monotonic(), layout, counts, None, None, host_values, flags
        )
        if tensors:
            if len(self._queue) >= QUEUE_LENGTH:
                self._dropped += 1
                return
            copy.host, copy.event = self._to_host(tensors)
        with self._lock:
            if self._open is not None:
                self._queue.append(self._open)
            self._open = copy

    def release(self) -> bool:
        """The next step has begun: no more scalars belong to the step that was closed. True if there is something to
        ship."""
        with self._lock:
            if self._open is None:
                return False
            self._ship_logs()
            self._queue.append(self._open)
            self._open = None
            return True

    def flush_logs(self) -> None:
        """Start the copy of logged scalars although no sampled step closes (at the end of a run)."""
        with self._lock:
            self._ship_logs()
            if self._open is not None:
                self._queue.append(self._open)
                self._open = None

    @property
    def busy(self) -> bool:
        """Whether anything that was measured is not in the spool yet."""
        return self._open is not None or bool(self._queue) or bool(self._log_copies) or bool(self._ready_logs)

    @property
    def dropped(self) -> int:
        """Frames dropped so far: here because the host did not keep up, or in the spool."""
        return self._dropped + self._spool.dropped

    # ---- sender thread ---------------------------------------------------------------------------------------------

    def drain(self) -> bool:
        """Turn what has arrived on the host into spool records. True if something is still on its way."""
        with self._drain_lock:
            return self._drain()

    # ---- private ---------------------------------------------------------------------------------------------------

    def _drain(self) -> bool:
        with self._lock:
            if self._open is not None and time.monotonic() - self._open.closed_s > HOLD_S:
                self._ship_logs()
                self._queue.append(self._open)
                self._open = None
        self._take_logs()
        while self._queue and not self._log_copies:
            copy = self._queue[0]
            if not _arrived(copy.event):
                return True
            self._write(copy)
            with self._lock:
                self._queue.popleft()
        if not self._queue and not self._log_copies:
            self._write_logs(before=None)
        return bool(self._queue) or bool(self._log_copies) or self._open is not None

    def _to_host(self, tensors: list[Tensor]) -> tuple[Tensor, "torch.cuda.Event | None"]:
        home = self._device
        flat = [t if t.dtype == torch.float32 else t.float() for t in tensors]
        if home.type == "cpu":
            return torch.cat([t if t.device.type == "cpu" else t.cpu() for t in flat]), None
        flat = [t if t.device == home else t.to(home, non_blocking=True) for t in flat]
        size = sum(t.numel() for t in flat)
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(size + size // 4, dtype=torch.float32, device=home)
        buffer = torch.cat(flat, out=self._buffer[:size])
        pinned = self._pinned.pop() if self._pinned and self._pinned[-1].numel() >= size else None
        if pinned is None:
            pinned = torch.empty(size + size // 4, dtype=torch.float32, pin_memory=home.type == "cuda")
        host = pinned[:size]
        host.copy_(buffer, non_blocking=True)
        if home.type != "cuda":
            return host.clone(), None
        new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
        event = new_event()
        event.record()
        return host, event

    def _ship_logs(self) -> None:
        """Under the lock: start copying logged tensors; plain numbers are ready at once."""
        if not self._logs:
            return
        logs, self._logs = self._logs, {}
        keys: list[tuple[int, str]] = []
        tensors: list[Tensor] = []
        for step, values in logs.items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    keys.append((step, name))
                    tensors.append(value.reshape(-1)[:1])
                else:
                    self._ready_logs.setdefault(step, {})[name] = value
        if tensors:
            host, event = self._to_host(tensors)
            self._log_copies.append((keys, host, event))

    def _take_logs(self) -> None:
        while self._log_copies:
            keys, host, event = self._log_copies[0]
            if not _arrived(event):
                return
            values = host.tolist()
            with self._lock:
                for (step, name), value in zip(keys, values, strict=True):
                    self._ready_logs.setdefault(step, {})[name] = value
                self._log_copies.popleft()

    def _write_logs(self, before: int | None) -> None:
        with self._lock:
            steps = sorted(step for step in self._ready_logs if before is None or step < before)
            if self._open is not None:  # their step's own frame is still to come
                steps = [step for step in steps if step < self._open.step]
            logs = [(step, self._ready_logs.pop(step)) for step in steps]
        for step, values in logs:
            self._emit(step, time.time_ns() // 1_000_000, [(self._log_spec(n), v) for n, v in values.items()])

    def _write(self, copy: _Copy) -> None:
        self._write_logs(before=copy.step)
        with self._lock:
            logged = self._ready_logs.pop(copy.step, {})
        raw = b"" if copy.host is None else _bytes_of(copy.host)
        if copy.event is not None and copy.host is not None and len(self._pinned) < QUEUE_LENGTH:
            self._pinned.append(copy.host._base if copy.host._base is not None else copy.host)
        skipped = any(v != 0 for v in struct.unpack_from(f"<{copy.flags}f", raw))
        raw = raw[4 * copy.flags :]
        extra = copy.host_values + [(self._log_spec(name), value) for name, value in logged.items()]
        layout, counts = copy.layout, copy.counts
        if skipped or _NOT_MEASURED_BYTES in raw or None in layout:
            values = array("f", raw)
            keep = [
                i
                for i, s in enumerate(layout)
                if s is not None and not (skipped and s.metric.startswith("update.")) and values[i] != NOT_MEASURED
            ]
            raw = array("f", [values[i] for i in keep]).tobytes()
            layout, counts = [layout[i] for i in keep], [counts[i] for i in keep]
        specs = [spec for spec in layout if spec is not None] + [spec for spec, _ in extra]
        raw += struct.pack(f"<{len(extra)}f", *(_single(value) for _, value in extra))
        self._append(copy.step, copy.measured_at_ms, specs, tuple(counts) + (1,) * len(extra), raw, skipped=skipped)

    def _emit(self, step: int, at_ms: int, values: list[tuple[Spec, float]]) -> None:
        raw = struct.pack(f"<{len(values)}f", *(_single(value) for _, value in values))
        self._append(step, at_ms, [spec for spec, _ in values], (1,) * len(values), raw)

    def _append(
        self, step: int, at_ms: int, specs: list[Spec], counts: tuple[int, ...], raw: bytes, *, skipped: bool = False
    ) -> None:
        numbers = [spec.number for spec in specs]
        if -1 in numbers:
            new = [spec for spec in dict.fromkeys(specs) if spec.number < 0]
            for spec in new:
                spec.number = len(self._specs)
                self._specs.append(spec)
            self._spool.append(series=tuple(_declaration(spec) for spec in new))
            numbers = [spec.number for spec in specs]
        key = tuple(numbers), counts
        plan = self._plans.get(key)
        if plan is None:
            plan, self._next_plan = self._next_plan, self._next_plan + 1
            if len(self._plans) >= PLANS_KEPT:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
            self._spool.append(plan=Plan(plan, key[0], counts))
        if self._spool.append(frame=Frame(plan, step, at_ms, raw, skipped)):
            self.points += len(specs)

    def _log_spec(self, name: str) -> Spec:
        spec, axis = self._log_specs.get(name), self._axes.get(name)
        if spec is None or spec.facts.axis != axis:  # declared anew: the first logs may have looked like steps
            facts = Facts(method="as given", placement="data_parallel", axis=axis)
            spec = self._log_specs[name] = Spec(name, "model", "model", None, "exact", facts)
        return spec


def _arrived(event: "torch.cuda.Event | None") -> bool:
    query: Callable[[], bool] = bool if event is None else event.query
    return event is None or query()


def _declaration(spec: Spec) -> Series:
    return Series(spec.number, spec.metric, spec.kind, spec.subject, spec.index, spec.bound, replace(spec.facts))


def _bytes_of(host: Tensor) -> bytes:
    """The little-endian bytes of a contiguous float32 tensor on the host (torch does not bring numpy)."""
    return ctypes.string_at(host.data_ptr(), host.numel() * 4) if host.numel() else b""


def _single(value: float) -> float:
    """The value as float32 can hold it: what is too large becomes an infinity instead of an error."""
    if math.isfinite(value) and abs(value) > 3.4028235677973366e38:
        return math.copysign(math.inf, value)
    return value
