"""What the server tells of itself to Prometheus: what its process has counted, and how it stands when it is asked."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for
REGISTRY: Final = CollectorRegistry()
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SHORT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_S: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 86_400.0)


def _counter(name: str, summary: str, *labels: str) -> Counter:
    return Counter(name, summary, labels, registry=REGISTRY)


def _gauge(name: str, summary: str, *labels: str) -> Gauge:
    return Gauge(name, summary, labels, registry=REGISTRY)


def _histogram(name: str, summary: str, *labels: str, buckets: tuple[float, ...] = _SHORT_S) -> Histogram:
    return Histogram(name, summary, labels, registry=REGISTRY, buckets=buckets)


_FRAMES = _counter("internist_ingest_frames", "Frames stored.")
_POINTS = _counter("internist_ingest_points", "Points stored.")
_BYTES = _counter("internist_ingest_bytes", "Bytes of the requests whose records were stored.")
_REFUSED = _counter("internist_ingest_refused", "Records refused.")
_LAG = _histogram(
    "internist_ingest_lag_seconds", "From when the newest frame of a request was measured until it was stored.",
    buckets=_LONG_S,
)  # fmt: skip
_REQUESTS = _histogram(
    "internist_request_duration_seconds", "Time until the answer to a request began, by route.",
    "method", "route", "status",
)  # fmt: skip
_ACTIVE = _gauge("internist_requests_active", "Requests that are worked on, by lane.", "lane")
_WAITING = _gauge("internist_requests_waiting", "Requests that wait for their turn, by lane.", "lane")
_TURNED_AWAY = _counter("internist_requests_turned_away", "Requests that there was no room for (503), by lane.", "lane")
_WAITED = _histogram("internist_request_wait_seconds", "How long a request waited for its turn, by lane.", "lane")
_JUDGE = _histogram("internist_judge_duration_seconds", "Time to judge the steps that one request or tick completed.")
_JUDGED = _counter("internist_judged_steps", "Steps judged.")
_TICK = _histogram("internist_tick_duration_seconds", "Time of one look at what time alone has brought.")
_TICKED_AT = _gauge("internist_tick_last_success_timestamp_seconds", "When the last such look came to its end.")
_COMPACTION = _histogram(
    "internist_compaction_duration_seconds", "Time of one round of compacting all that can be compacted.",
    buckets=_LONG_S,
)  # fmt: skip
_COMPACTED_AT = _gauge("internist_compaction_last_success_timestamp_seconds", "When the last round came to its end.")
_BLOCKS = _counter("internist_compaction_blocks", "Blocks of frames made into tiles.")
_BACKLOG = _gauge("internist_compaction_backlog_frames", "Frames that wait to become tiles, as of the last round.")
_RUNS = _gauge("internist_runs", "Runs by how they stand.", "state")
_OPEN_ALERTS = _gauge("internist_open_alerts", "Alerts that fire now.")
_DELIVERED = _counter("internist_notifications_delivered", "Messages that a receiver took.", "receiver")
_FAILED = _counter("internist_notifications_failed", "Deliveries that a receiver did not take.", "receiver")
_UNDELIVERED = _gauge(
    "internist_notifications_undelivered", "Messages by what becomes of them.", "receiver", "state"
)  # fmt: skip
_DATABASE = _gauge("internist_database_bytes", "What the database takes on its disk.")
_gauge("internist_build_info", "1, and which version this is.", "version").labels(version("internist")).set(1)
_asked = threading.Lock()
"""Held while somebody is answered: what stands is written as a whole."""
for _collector in (ProcessCollector, PlatformCollector, GCCollector):
    _collector(registry=REGISTRY)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is true of a server at the moment when somebody looks."""

    runs: Mapping[str, int]
    """By state."""
    open_alerts: int
    undelivered: Mapping[tuple[str, str], int]
    """Messages by receiver and state."""
    lanes: Mapping[str, tuple[int, int]]
    """By lane, how many requests are worked on, and how many wait."""
    database_bytes: int


def exposition(standing: Standing) -> bytes:
    """Everything, in Prometheus' text format."""
    with _asked:
        _show(standing)
        return generate_latest(REGISTRY)


def _show(standing: Standing) -> None:
    _OPEN_ALERTS.set(standing.open_alerts)
    _DATABASE.set(standing.database_bytes)
    for gauge in (_RUNS, _UNDELIVERED, _ACTIVE, _WAITING):
        gauge.clear()
    for state, count in standing.runs.items():
        _RUNS.labels(state).set(count)
    for (receiver, state), count in standing.undelivered.items():
        _UNDELIVERED.labels(receiver, state).set(count)
    for lane, (active, waiting) in standing.lanes.items():
        _ACTIVE.labels(lane).set(active)
        _WAITING.labels(lane).set(waiting)
        _TURNED_AWAY.labels(lane)  # there from the start: what was never 0 has no rate
        _WAITED.labels(lane)


def count_ingest(*, frames: int, points: int, size: int, refused: int, lag_s: float | None) -> None:
    """Count what one request brought.

    Args:
        size: bytes of its body.
        lag_s: how old its newest frame was; None: it brought none.
    """
    _FRAMES.inc(frames)
    _POINTS.inc(points)
    _BYTES.inc(size)
    _REFUSED.inc(refused)
    if lag_s is not None:
        _LAG.observe(max(0.0, lag_s))


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Record one answered request."""
    _REQUESTS.labels(method, route, str(status)).observe(seconds)


def observe_wait(lane: str, seconds: float) -> None:
    """Record how long a request waited for its turn."""
    _WAITED.labels(lane).observe(seconds)


def count_turned_away(lane: str) -> None:
    """Count a request that there was no room for."""
    _TURNED_AWAY.labels(lane).inc()


def count_delivery(receiver: str, *, is_taken: bool) -> None:
    """Count one try to deliver a message."""
    (_DELIVERED if is_taken else _FAILED).labels(receiver).inc()


@contextmanager
def judging(steps: int) -> Iterator[None]:
    """Time the judging of some steps."""
    with _JUDGE.time():
        yield
    _JUDGED.inc(steps)


@contextmanager
def ticking() -> Iterator[None]:
    """Time a tick, and note when it came to its end."""
    with _TICK.time():
        yield
    _TICKED_AT.set(time.time())


@contextmanager
def compacting() -> Iterator[None]:
    """Time a round of compacting, and note when it came to its end."""
    with _COMPACTION.time():
        yield
    _COMPACTED_AT.set(time.time())


def count_blocks(blocks: int) -> None:
    """Count blocks that were made."""
    _BLOCKS.inc(blocks)


def tell_backlog(frames: int) -> None:
    """Say how many frames wait to become tiles."""
    _BACKLOG.set(frames)
