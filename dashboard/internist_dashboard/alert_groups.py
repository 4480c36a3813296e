"""Alerts that are one event: of one run and condition, opened one soon after the other, in however many series."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from internist.schema.alerts import Alert

OPEN: Final = ("pending", "firing")
SOON_STEPS: Final = 100
"""Openings at most this many steps apart are one event,"""
SOON_SHARE: Final = 0.05
"""or this share of the step at which the later one opened: samples lie further apart in long runs."""
_SEVERITIES: Final = ("critical", "warning", "info")


@dataclass(frozen=True, slots=True)
class Group:
    """One event, its alerts in the order in which they opened."""

    alerts: tuple[Alert, ...]

    @property
    def first(self) -> Alert:
        """The alert that opened first: the first cause that is known."""
        return self.alerts[0]

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return self.first.state in OPEN

    @property
    def is_critical(self) -> bool:
        """Whether any of it is critical."""
        return any(alert.severity == "critical" for alert in self.alerts)

    @property
    def severity(self) -> str:
        """The worst severity of its alerts."""
        return min((alert.severity for alert in self.alerts), key=_SEVERITIES.index)

    @property
    def blocks(self) -> list[str]:
        """The blocks it is in, in the order in which it reached them; modules outside blocks by their own name."""
        return list(dict.fromkeys(alert.block or alert.module or alert.subject for alert in self.alerts))

    @property
    def unseen(self) -> list[int]:
        """Ids of the alerts that go on and that nobody has acknowledged."""
        return [alert.id for alert in self.alerts if alert.state in OPEN and not alert.acknowledged_by]

    @property
    def closed_step(self) -> int | None:
        """The last step at which any of it ended."""
        return max((alert.closed_step for alert in self.alerts if alert.closed_step is not None), default=None)

    @property
    def at_ms(self) -> int | None:
        """When it began, if it goes on; else when it ended."""
        moments = [alert.opened_at_ms if self.is_open else alert.closed_at_ms for alert in self.alerts]
        known = [moment for moment in moments if moment is not None]
        return (min(known) if self.is_open else max(known)) if known else None


def grouped(alerts: Iterable[Alert]) -> list[Group]:
    """Groups: those that go on first, critical ones before others, the newest first."""
    by_event: dict[tuple[str, str, bool], list[Alert]] = {}
    for alert in alerts:
        by_event.setdefault((alert.run, alert.condition, alert.state in OPEN), []).append(alert)
    groups = [group for members in by_event.values() for group in _split(members)]
    return sorted(groups, key=lambda one: (not one.is_open, one.is_open and not one.is_critical, -(one.at_ms or 0)))


def _split(alerts: Sequence[Alert]) -> list[Group]:
    """The events among the alerts of one run and condition."""
    ordered = sorted(alerts, key=lambda alert: (_step(alert), alert.id))
    events: list[list[Alert]] = []
    for alert in ordered:
        if events and _step(alert) - _step(events[-1][-1]) <= max(SOON_STEPS, SOON_SHARE * _step(alert)):
            events[-1].append(alert)
        else:
            events.append([alert])
    return [Group(tuple(event)) for event in events]


def _step(alert: Alert) -> int:
    step = alert.pending_step if alert.pending_step is not None else alert.opened_step
    return -1 if step is None else step
