"""Silences: which alerts somebody has asked not to be told of; pure."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from internist.schema.alerts import Alert, Silence
from internist_server.alerts.labels import labels


def silenced(alerts: Iterable[Alert], silences: Iterable[Silence]) -> set[int]:
    """Ids of the alerts that one of these silences matches."""
    matchers = [silence.matchers for silence in silences]
    if not matchers:
        return set()
    return {alert.id for alert in alerts if any(matches(one, labels(alert)) for one in matchers)}


def matches(matchers: Mapping[str, str], of_labels: Mapping[str, str]) -> bool:
    """Whether every label is as its glob says. A label that an alert does not have is empty."""
    return all(fnmatchcase(of_labels.get(name, ""), glob) for name, glob in matchers.items())
