"""What one Alertmanager is told: which alerts fire, which are over, which of them it has yet to take; pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from internist.schema.alerts import Alert
from internist_server.alerts.addresses import run_url
from internist_server.alerts.labels import annotations, fingerprint, labels, time

REFRESHES: Final = 4
"""An alert outlives this many refreshes that do not come, as with Prometheus."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One alert, by its labels. Alerts of the same labels are one."""

    fingerprint: str
    run: str
    labels: dict[str, str]
    annotations: dict[str, str]
    link: str
    """Where the run's board is."""
    started_at_ms: int
    ended_at_ms: int | None = None
    """When it was seen to be over; None while it fires."""


def entry_of(alert: Alert, *, external_url: str) -> Entry:
    """An alert as an Alertmanager is told of it: one that fires."""
    link, of_alert = run_url(alert.run, external_url=external_url), labels(alert)
    return Entry(
        fingerprint=fingerprint(of_alert),
        run=alert.run,
        labels=of_alert,
        annotations=annotations(alert, link),
        link=link,
        started_at_ms=max(0, alert.opened_at_ms or 0),
    )


def to_post(entry: Entry, *, now_ms: int, lifetime_ms: int) -> dict[str, object]:
    """An alert in the form of Alertmanager's API v2.

    One that fires ends after its lifetime, unless it is told again. One that is over ended when that was seen. No end
    lies before its beginning, whatever the clock of the machine that trains said: that would be refused.
    """
    ends_ms = now_ms + lifetime_ms if entry.ended_at_ms is None else entry.ended_at_ms
    return {
        "labels": entry.labels,
        "annotations": entry.annotations,
        "generatorURL": entry.link,
        "startsAt": time(min(entry.started_at_ms, now_ms, ends_ms)),
        "endsAt": time(ends_ms),
    }


class Outbox:
    """What one Alertmanager has been told, and what it has not taken yet."""

    def __init__(self, *, lifetime_ms: int) -> None:
        """Nothing fires, nothing is due.

        Args:
            lifetime_ms: after which an Alertmanager takes an alert that it is not told of for resolved.
        """
        self._lifetime_ms = lifetime_ms
        self._firing: dict[str, Entry] = {}
        self._due: dict[str, Entry] = {}

    def see(self, found: Iterable[Entry], *, runs: Collection[str] | None, now_ms: int) -> None:
        """Take what fires now: what is new is due, and so is the end of what fires no more.

        Args:
            found: all that fires of these runs.
            runs: those that were looked at; None: all.
            now_ms: the present, in ms since 1970.
        """
        seen: dict[str, Entry] = {}
        for entry in found:
            earlier = seen.get(entry.fingerprint, entry)
            seen[entry.fingerprint] = replace(entry, started_at_ms=min(entry.started_at_ms, earlier.started_at_ms))
        for key, entry in self._firing.items():
            if key not in seen and (runs is None or entry.run in runs):
                self._due[key] = replace(entry, ended_at_ms=now_ms)
        for key, entry in seen.items():
            if key not in self._firing:
                self._due[key] = entry
        kept = {} if runs is None else {key: one for key, one in self._firing.items() if one.run not in runs}
        self._firing = kept | seen

    def recall(self, ended: Iterable[Entry], *, now_ms: int) -> None:
        """Take what was over before anybody looked, such as while this server did not run: its end is due."""
        for entry in ended:
            if entry.fingerprint not in self._firing:
                self._due[entry.fingerprint] = replace(entry, ended_at_ms=now_ms)

    def refresh(self, *, now_ms: int) -> None:
        """All that fires is due again; ends that an Alertmanager has come to by itself are due no more."""
        ended = {key: one for key, one in self._due.items() if one.ended_at_ms is not None}
        fresh = {key: one for key, one in ended.items() if now_ms - (one.ended_at_ms or 0) < self._lifetime_ms}
        self._due = fresh | self._firing

    def due(self) -> list[Entry]:
        """What is to be told, ends too; the same until it is accepted."""
        return list(self._due.values())

    def accept(self, entries: Iterable[Entry]) -> None:
        """These have been taken."""
        for entry in entries:
            if self._due.get(entry.fingerprint) == entry:
                del self._due[entry.fingerprint]
