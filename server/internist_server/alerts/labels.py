"""What Prometheus' tools read of an alert: labels, that say which one it is, and annotations, that tell of it; pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal

from internist.schema.alerts import Alert
from internist.schema.conditions import CONDITION
from internist.schema.rules import ABSENT, RUN_RULE, THRESHOLD
from internist.schema.views import Number
from internist_server.judge import wording

Level = Literal["run", "model", "block", "module", "parameter", "group"]
"""What an alert is on. A parameter lies in a module, that in a block, that in the model; a group is an optimizer's."""

MODEL: Final = "model"
"""How the whole model is called as a subject."""
LONGEST_NOTE: Final = 200
"""Characters of a user's own alert that its label keeps."""
NEVER: Final = "0001-01-01T00:00:00Z"
_USER: Final = "An alert of the user's code"
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3
_SEPARATOR: Final = 0xFF
"""Ends each name and each value: no UTF-8 text holds this byte."""


LABELS: Final = frozenset({
    "alertname", "severity", "condition", "cause", "project", "run", "run_name", "attempt", "level", "metric", "block",
    "module", "parameter", "group", "index", "bound", "note",
})  # fmt: skip
"""Those that say which alert it is; a rule may add others."""


def labels(alert: Alert) -> dict[str, str]:
    """The labels of an alert; what it does not have is left out.

    They are the same as long as it is the same alert: a warning that becomes critical is another one.
    """
    level = level_of(alert)
    found = {
        "alertname": alert.rule,
        "severity": alert.severity,
        "condition": alert.condition,
        "cause": alert.cause,
        "project": alert.project,
        "run": alert.run,
        "run_name": alert.run_name,
        "attempt": alert.attempt,
        "level": level,
        "metric": alert.metric,
        "block": alert.block,
        "module": alert.subject if alert.kind == "module" else alert.module,
        "parameter": alert.subject if level == "parameter" else None,
        "group": alert.subject if level == "group" else None,
        "index": None if alert.index is None else str(alert.index),
        "bound": None if alert.bound == "exact" else alert.bound,
        "note": alert.message[:LONGEST_NOTE] if alert.condition == "user" else None,
    }
    return {name: value for name, value in (alert.labels | found).items() if value}


def level_of(alert: Alert) -> Level:
    """What an alert is on."""
    if alert.kind is None:
        return "run"
    if alert.kind == "model" or alert.subject == MODEL:
        return "model"
    if alert.kind == "module" and alert.subject == alert.block:
        return "block"
    return alert.kind


def fingerprint(of_labels: Mapping[str, str]) -> str:
    """Which alert it is: the hash of its labels, the one that Prometheus and Alertmanager show.

    FNV-1a of 64 bits over names in order, each with its value; as in `LabelSet.Fingerprint` of
    github.com/prometheus/common/model.
    """
    value = _FNV_OFFSET
    for name in sorted(of_labels):
        for text in (name, of_labels[name]):
            for byte in (*text.encode(), _SEPARATOR):
                value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def annotations(alert: Alert, link: str) -> dict[str, str]:
    """What is told of an alert; what is not known is left out."""
    found = {
        "summary": summary(alert),
        "description": alert.message,
        "advice": alert.advice,
        "value": _number(alert.value),
        "ratio": _number(alert.ratio),
        "worst_ratio": _number(alert.worst_ratio),
        "basis": alert.basis or "",
        "band": wording.band(_edge(alert.band_low), _edge(alert.band_high)),
        "band_low": _number(alert.band_low),
        "band_high": _number(alert.band_high),
        "since_step": "" if alert.pending_step is None else str(alert.pending_step),
        "dashboard": link,
    }
    return {name: value for name, value in (found | alert.annotations).items() if value}


def summary(alert: Alert) -> str:
    """An alert in one line: what is wrong, in which run, and what was seen."""
    return f"{fault(group_of(alert))} in {alert.run_name or alert.run}: {alert.message}"


def group_of(alert: Alert) -> str:
    """What an alert is told together with: all of a condition, or all of a rule of the user's own."""
    return alert.rule if alert.condition in (THRESHOLD, ABSENT) else alert.condition


def fault(condition: str) -> str:
    """What is wrong where a condition does not hold, or a rule of the user's own fires."""
    known = CONDITION.get(condition) or RUN_RULE.get(condition)
    if known:
        return known.fault
    return _USER if condition == "user" else f"Rule {condition} fires"


def time(milliseconds: int | None) -> str:
    """A moment as RFC 3339 has it; None is what Go has for no moment."""
    if milliseconds is None:
        return NEVER
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _edge(value: Number) -> float | None:
    return None if value is None else float(value)


def _number(value: Number) -> str:
    return "" if value is None else f"{float(value):.6g}"
