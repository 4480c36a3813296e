"""Incidents: what receivers are told of what fires. One message that it began, one that it is over; pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from internist.schema.alerts import Alert
from internist.schema.rules import REPEAT_AFTER_S, RESOLVE_AFTER_S
from internist_server.alerts.inhibition import explained, in_order, takes_in
from internist_server.alerts.labels import group_of

LONGEST_WAIT_MS: Final = 600_000
"""However often something comes and goes, its end is told after this long without it."""
FLAPPING_MS: Final = 3_600_000
"""Ends told within this long count: each doubles the wait for the next one."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When receivers are told of an end, and when once more of what goes on."""

    resolve_after_ms: int = int(RESOLVE_AFTER_S * 1000)
    repeat_after_ms: int = int(REPEAT_AFTER_S * 1000)

    def wait_ms(self, ends: int) -> int:
        """How long nothing must fire before an end is told, after so many ends of late."""
        return min(self.resolve_after_ms << min(ends, 16), max(LONGEST_WAIT_MS, self.resolve_after_ms))


@dataclass(frozen=True, slots=True)
class Incident:
    """One that receivers know of and that is not over for them."""

    id: int
    group: str
    told_at_ms: int
    calm_since_ms: int | None = None
    """Since when nothing of it fires; None while something does."""
    ends: int = 0
    """How many of the same group have ended of late."""


@dataclass(frozen=True, slots=True)
class Move:
    """What is to be done about one incident: `open` and `repeat` tell that it fires, `close` that it is over; `calm`
    and `stir` only note that nothing of it fires, or that something does again."""

    kind: Literal["open", "repeat", "calm", "stir", "close"]
    group: str
    incident: int | None = None
    """None: a new one."""
    alerts: tuple[int, ...] = ()
    """Of those that fire."""


def decide(
    incidents: Iterable[Incident],
    firing: Sequence[Alert],
    *,
    recent: Sequence[Alert] = (),
    orders: Mapping[int, int],
    silenced: Collection[int],
    policy: Policy,
    now_ms: int,
    is_over: bool,
) -> list[Move]:
    """What to do about the incidents of one run. Asked again with what it led to, it finds nothing to do.

    A group opens with its first alert that is not silenced, not acknowledged, not explained by another one, and not
    taken in by an incident that is open and that somebody hears. What fires while it is open joins it silently. When
    nothing of it and nothing that it took in has fired for a while it closes, at once if the run is over; the wait
    grows with every end of late, so that what comes and goes is one incident.

    Args:
        incidents: those that are open, at most one of each group.
        firing: the alerts of the run that fire aloud.
        recent: those of open incidents that fire no more: they still explain.
        orders: place of each series in forward order.
        silenced: ids of alerts that somebody has silenced.
        policy: how long is waited.
        now_ms: the present; it may jump in both directions.
        is_over: nothing of the run that does not fire now will fire again: it ended, or began anew.
    """
    opened = {incident.group: incident for incident in incidents}
    by_group: dict[str, list[Alert]] = {}
    for alert in firing:
        by_group.setdefault(group_of(alert), []).append(alert)
    unheard = {alert.id for alert in firing if alert.id in silenced or alert.acknowledged_at_ms is not None}
    alerts_of = _heard(opened, by_group, recent, unheard)
    taken: dict[str, list[Alert]] = {group: [] for group in opened}
    opens = []
    quiet = unheard | explained([*firing, *recent], orders=orders)
    for first in in_order([alert for alert in firing if group_of(alert) not in opened]):
        group = group_of(first)
        if group in alerts_of:  # it opens now
            continue
        home = next((name for name, known in alerts_of.items() if takes_in(known, first)), None)
        if home is not None:
            taken.setdefault(home, []).append(first)
        elif first.id not in quiet:
            alerts_of[group] = by_group[group]
            opens.append(Move("open", group, None, tuple(sorted(alert.id for alert in by_group[group]))))
    moves = []
    for group, incident in opened.items():
        moves += _go_on(
            incident, by_group.get(group, []), bool(taken[group]), silenced, policy, now_ms=now_ms, is_over=is_over
        )
    return moves + opens


def _heard(
    opened: Collection[str], by_group: Mapping[str, Sequence[Alert]], recent: Sequence[Alert], unheard: set[int]
) -> dict[str, list[Alert]]:
    """The alerts of the open incidents that somebody hears: where all that fires of one is silenced or acknowledged,
    it takes nothing in."""
    found: dict[str, list[Alert]] = {}
    for group in opened:
        firing = by_group.get(group, ())
        if not firing or any(alert.id not in unheard for alert in firing):
            found[group] = [*firing, *(alert for alert in recent if group_of(alert) == group)]
    return found


def _go_on(
    incident: Incident,
    members: Sequence[Alert],
    goes_on: bool,
    silenced: Collection[int],
    policy: Policy,
    *,
    now_ms: int,
    is_over: bool,
) -> list[Move]:
    """What to do about an incident that is open; `goes_on`: something that it took in still fires."""
    group, number = incident.group, incident.id
    if not members and not goes_on:
        since = incident.calm_since_ms
        has_waited = since is not None and now_ms - since >= policy.wait_ms(incident.ends)
        if is_over or has_waited or policy.wait_ms(incident.ends) == 0:
            return [Move("close", group, number)]
        return [Move("calm", group, number)] if since is None or since > now_ms else []
    moves = [Move("stir", group, number)] if incident.calm_since_ms is not None else []
    is_heard = any(one.id not in silenced and one.acknowledged_at_ms is None for one in members)
    if is_heard and now_ms - incident.told_at_ms >= policy.repeat_after_ms:
        moves.append(Move("repeat", group, number, tuple(sorted(one.id for one in members))))
    return moves
