"""What the server tells of itself to Prometheus, and how it logs."""

import logging
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY: Final = CollectorRegistry()
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_FRAMES = Counter("internist_ingest_frames", "Frames stored.", registry=REGISTRY)
_POINTS = Counter("internist_ingest_points", "Points stored.", registry=REGISTRY)
_REFUSED = Counter("internist_ingest_refused", "Records refused.", registry=REGISTRY)
_OPEN_ALERTS = Gauge("internist_open_alerts", "Alerts that fire now.", registry=REGISTRY)
_DELIVERED = Counter(
    "internist_notifications_delivered", "Messages that a receiver took.", ["receiver"], registry=REGISTRY
)
_FAILED = Counter(
    "internist_notifications_failed", "Deliveries that a receiver did not take.", ["receiver"], registry=REGISTRY
)
_UNDELIVERED = Gauge(
    "internist_notifications_undelivered", "Messages by what becomes of them.", ["receiver", "state"], registry=REGISTRY
)
_REQUESTS = Histogram(
    "internist_request_duration_seconds",
    "Time from a request's first byte to its answer, by route.",
    ["method", "route", "status"],
    registry=REGISTRY,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


def count_ingest(*, frames: int, points: int, refused: int) -> None:
    """Count what one request brought."""
    _FRAMES.inc(frames)
    _POINTS.inc(points)
    _REFUSED.inc(refused)


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Record one answered request."""
    _REQUESTS.labels(method, route, str(status)).observe(seconds)


def count_delivery(receiver: str, *, is_taken: bool) -> None:
    """Count one try to deliver a message."""
    (_DELIVERED if is_taken else _FAILED).labels(receiver).inc()


def exposition(*, open_alerts: int, undelivered: Iterable[tuple[str, str, int]]) -> bytes:
    """Everything, in Prometheus' text format.

    Args:
        open_alerts: alerts that fire now.
        undelivered: receivers, states, and how many messages of each there are.
    """
    _OPEN_ALERTS.set(open_alerts)
    _UNDELIVERED.clear()
    for receiver, state, count in undelivered:
        _UNDELIVERED.labels(receiver, state).set(count)
    return generate_latest(REGISTRY)


def set_up_logging(level: str = "INFO") -> None:
    """One line per event on standard error."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("internist_server.auditing").setLevel("INFO")  # whatever else is quiet
