"""Inhibition: which alerts need no message of their own, because another one explains them; pure."""

from collections.abc import Mapping, Sequence
from typing import Final

from internist.schema.alerts import Alert
from internist.schema.rules import ABSENT, THRESHOLD
from internist_server.alerts.labels import level_of

_OWN: Final = frozenset({"own", "weight", "learning_rate"})
_STANDING: Final = frozenset({"run_lost", "run_stalled"})
_LOUDNESS: Final = {"info": 0, "warning": 1, "critical": 2}
_STEPS: Final = frozenset({"update", "spectral_update"})
"""Two views of one matter: how far steps move outputs, and how large they are."""
_MOVES: Final = _STEPS | {"weight_jump"}
"""What moves features."""
TAKEN_IN_STEPS: Final = 500
"""As far apart as a heavy sample and what it is a sample of may lie: what begins later is something new."""
_ASKED_FOR: Final = frozenset({THRESHOLD, ABSENT, "user"})
"""Who asks to be told of something is told of it."""


def explained(alerts: Sequence[Alert], *, orders: Mapping[int, int]) -> set[int]:
    """Ids of the alerts of one run that another of them explains.

    No two explain each other, and each chain of explanations ends at one that nothing explains.

    Args:
        alerts: those that fire, and those that have just fired.
        orders: place of each series in forward order.
    """
    judged = [alert for alert in alerts if alert.condition not in _ASKED_FOR]
    return {one.id for one in judged if any(_explains(cause, one, orders) for cause in judged)}


def takes_in(incident: Sequence[Alert], alert: Alert) -> bool:
    """Whether an incident that receivers know of takes in what else has begun to fire: what leaves its band within
    TAKEN_IN_STEPS of an incident's beginning, and is no louder, goes with it. A step moves the whole model.

    Args:
        incident: its alerts, those among them that fire no more, too.
        alert: of another group.
    """
    judged = [one for one in (*incident, alert) if one.kind is not None and one.condition not in _ASKED_FOR]
    if len(judged) < 2 or judged[-1] is not alert:
        return False
    *of_incident, _ = judged
    began = min(one.pending_step or 0 for one in of_incident)
    is_near = abs((alert.pending_step or 0) - began) <= TAKEN_IN_STEPS
    return is_near and any(_LOUDNESS[alert.severity] <= _LOUDNESS[one.severity] for one in of_incident)


def in_order(alerts: Sequence[Alert]) -> list[Alert]:
    """What explains before what is explained."""
    return sorted(alerts, key=_rank)


def _explains(cause: Alert, effect: Alert, orders: Mapping[int, int]) -> bool:
    """Whether one explains the other. What is louder is never explained by what is not."""
    if _rank(cause) >= _rank(effect) or _LOUDNESS[effect.severity] > _LOUDNESS[cause.severity]:
        return False
    if cause.condition in _STANDING:
        return effect.kind is not None
    if cause.condition == "numeric":  # whatever a NaN reaches
        return effect.kind is not None
    if effect.cause == "model":  # what the whole model shows, some module of it began
        return cause.kind is not None
    if effect.cause == "feature":  # features move because some layer's own update, or a rate, did
        here = orders.get(effect.series or 0, 0)
        is_before = cause.block == effect.block or orders.get(cause.series or 0, -1) <= here
        return cause.condition in _MOVES and cause.cause in _OWN and is_before
    if cause.cause == "learning_rate":
        return effect.condition in _STEPS
    if cause.condition in _STEPS and effect.condition in _STEPS:
        return cause.cause in _OWN
    return cause.cause in _OWN and _contains(cause, effect)


def _rank(alert: Alert) -> tuple[int, int, int, int]:
    """Causes before what they explain: by kind, by the step they began at, wider places first."""
    kind = 0 if alert.condition in _STANDING else 1 if alert.cause == "learning_rate" else 2
    if alert.cause in ("feature", "model"):
        kind = 3 if alert.cause == "feature" else 4
    return kind, alert.pending_step or 0, _WIDTH.index(level_of(alert)), alert.id


_WIDTH: Final = ("run", "model", "block", "module", "parameter", "group")


def _contains(wide: Alert, narrow: Alert) -> bool:
    """Whether the place of one alert lies in that of another: layers in their block, blocks in the model."""
    level = level_of(wide)
    if level == "model":
        return narrow.kind is not None
    if level == "block":
        return narrow.block == wide.subject
    if level == "module":
        return narrow.subject == wide.subject or narrow.module == wide.subject
    return level == "parameter" and narrow.subject == wide.subject and narrow.kind == wide.kind
