"""Alerts: opened, moved and closed by the judge's transitions, read by people."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, case, func, or_, select, update
from sqlalchemy.orm import Session

from internist.schema.alerts import Alert, AlertsPage
from internist.schema.rules import RUN_RULES, RunRule, Severity
from internist.schema.wire import Note
from internist_server.alerts.rules import Terms
from internist_server.errors import AlertNotFound
from internist_server.judge.verdicts import Transition
from internist_server.store.attempts import Attempt, touch_run
from internist_server.store.numbers import number
from internist_server.store.tables import NO_INDEX, AlertRow, AttemptRow, RunRow, SeriesRow

OPEN = ("pending", "firing")
MOMENTS = ("user", *(rule.name for rule in RUN_RULES if rule.is_end))
"""Conditions whose alerts have a moment, and no duration."""
_SEVERITY: dict[str, Severity] = {"info": "info", "warning": "warning", "error": "critical"}
_ALERT = AlertRow.__table__.c
_FIRES = (_ALERT.run_id == bindparam("run")) & (_ALERT.state == "firing")
_RUN_ALERTS = select(_ALERT.rule, _ALERT.id).where(
    _FIRES, or_(*(_ALERT.rule == rule.name for rule in RUN_RULES if not rule.is_end))
)
"""Asked at every request, so nothing of it is made anew."""
_NEWEST_CRITICAL = select(func.max(_ALERT.opened_step)).where(
    _FIRES, _ALERT.series_id.is_not(None), _ALERT.severity == "critical"
)
_OPEN_ON = select(AlertRow).where(
    AlertRow.attempt_id == bindparam("attempt"),
    AlertRow.state.in_(OPEN),
    AlertRow.series_id.in_(bindparam("series", expanding=True)) | AlertRow.series_id.is_(None),
)
_SERIES_A_QUERY = 500


def apply_transitions(
    session: Session,
    attempt: Attempt,
    transitions: Sequence[Transition],
    *,
    at_ms: int,
    is_quiet: bool,
    terms: Callable[[Transition], Terms] = lambda _: Terms(),
) -> None:
    """Move alerts as the judge and the user's thresholds say. There is one open alert per series and rule.

    Args:
        at_ms: when the step was measured.
        is_quiet: record, and tell nobody.
        terms: what the user's rules say of an alert.
    """
    rows = _open_on(session, attempt, {transition.series for transition in transitions})
    for transition in transitions:
        key = (transition.series, transition.rule)
        row = rows.get(key)
        if transition.state in ("resolved", "superseded"):
            if row is not None:
                said = transition.message if transition.state == "resolved" else None
                _close(session, rows.pop(key), state=transition.state, step=transition.step, at_ms=at_ms, said=said)
            continue
        if row is None:
            row = AlertRow(run_id=attempt.run, attempt_id=attempt.id, series_id=key[0], rule=key[1], state="new")
            row.pending_step, row.quiet, row.notified = transition.pending_step, is_quiet, False
            rows[key] = row
            session.add(row)
        _move(row, transition, terms(transition), at_ms=at_ms, is_quiet=is_quiet)
    session.flush()


def open_run_alert(
    session: Session, attempt: Attempt, *, rule: RunRule, step: int | None, message: str, now_ms: int, terms: Terms
) -> int:
    """Open an alert on the run itself; its id."""
    return _add_plain(
        session, attempt, rule=rule.name, condition=rule.name, cause="run", severity=rule.severity, state="firing",
        step=step, message=message, advice=rule.advice, at_ms=now_ms, is_quiet=False, terms=terms,
    )  # fmt: skip


def add_end(
    session: Session,
    attempt: Attempt,
    *,
    rule: RunRule,
    step: int,
    message: str,
    at_ms: int,
    is_quiet: bool,
    terms: Terms,
) -> int | None:
    """Record how an attempt ended, once; its id if it is new. It has a moment, no duration."""
    query = select(AlertRow.id).where(AlertRow.attempt_id == attempt.id, AlertRow.rule == rule.name)
    if session.scalar(query.limit(1)) is not None:
        return None
    found = _add_plain(
        session, attempt, rule=rule.name, condition=rule.name, cause="run", severity=rule.severity, state="resolved",
        step=step, message=message, advice=rule.advice, at_ms=at_ms, is_quiet=is_quiet, terms=terms,
    )  # fmt: skip
    row = session.get_one(AlertRow, found)
    row.closed_step, row.closed_at_ms = step, at_ms
    session.flush()
    return found


def close_attempt(session: Session, attempt: Attempt, *, step: int | None, now_ms: int) -> None:
    """Resolve whatever is open of an attempt that has ended: nothing of it will be measured again."""
    query = select(AlertRow).where(AlertRow.attempt_id == attempt.id, AlertRow.state.in_(OPEN))
    for row in session.scalars(query).all():
        _close(session, row, state="resolved", step=step, at_ms=now_ms, said=f"{row.message}; the run has ended")
    session.flush()


def find_run_alerts(session: Session, run: str) -> dict[str, int]:
    """The ids of the open alerts on the run itself that last, by rule."""
    return {row[0]: row[1] for row in session.execute(_RUN_ALERTS, {"run": run})}


def close_run_alert(session: Session, alert: int, *, step: int | None, now_ms: int) -> None:
    """Resolve an alert on the run itself."""
    _close(session, session.get_one(AlertRow, alert), state="resolved", step=step, at_ms=now_ms)
    session.flush()


def add_note(session: Session, attempt: Attempt, note: Note, *, is_quiet: bool) -> int:
    """Record an alert that the user's own code raised: it has a moment, no duration."""
    found = _add_plain(
        session, attempt, rule="user", condition="user", cause="user", severity=_SEVERITY[note.level], state="resolved",
        step=note.step, message=f"{note.title}: {note.text}" if note.text else note.title, advice="",
        at_ms=note.noted_at_ms, is_quiet=is_quiet, terms=Terms(),
    )  # fmt: skip
    row = session.get_one(AlertRow, found)
    row.closed_step, row.closed_at_ms = note.step, note.noted_at_ms
    session.flush()
    return found


def supersede(session: Session, newest: Attempt, *, now_ms: int) -> None:
    """Close what other attempts of the run left open: the newest starts afresh."""
    query = select(AlertRow).where(AlertRow.run_id == newest.run, AlertRow.attempt_id != newest.id)
    for row in session.scalars(query.where(AlertRow.state.in_(OPEN))).all():
        _close(session, row, state="superseded", step=newest.start_step, at_ms=now_ms)
    session.flush()


def firing(session: Session, run: str, *, condition: str | None = None, quiet: bool | None = None) -> list[Alert]:
    """The alerts of a run that fire now, oldest first."""
    query = _query().where(AlertRow.run_id == run, AlertRow.state == "firing").order_by(AlertRow.id)
    if condition is not None:
        query = query.where(AlertRow.condition == condition)
    if quiet is not None:
        query = query.where(AlertRow.quiet == quiet)
    return [_alert(row) for row in session.execute(query)]


def fired_since(session: Session, run: str, *, group: str, first: int, limit: int = 1_000) -> list[int]:
    """Ids of the alerts of a condition, or of a rule of the user's own, from `first` on that have fired aloud."""
    is_of_group = (AlertRow.condition == group) | (AlertRow.rule == group)
    query = select(AlertRow.id).where(AlertRow.run_id == run, is_of_group, AlertRow.id >= first)
    query = query.where(
        AlertRow.opened_step.is_not(None) | AlertRow.opened_at_ms.is_not(None), AlertRow.quiet.is_(False)
    )
    return list(session.scalars(query.order_by(AlertRow.id).limit(limit)))


def current(session: Session, *, runs: Collection[str] | None, moments_since_ms: int) -> list[Alert]:
    """What is to be known aloud now, oldest first: what fires, and what had its moment since then.

    Args:
        runs: only of these; None: of all.
        moments_since_ms: moments before this are over.
    """
    is_moment = AlertRow.condition.in_(MOMENTS) & (AlertRow.opened_at_ms >= moments_since_ms)
    query = _query().where(AlertRow.quiet.is_(False), (AlertRow.state == "firing") | is_moment)
    if runs is not None:
        query = query.where(AlertRow.run_id.in_(runs))
    return [_alert(row) for row in session.execute(query.order_by(AlertRow.id))]


def closed_since(session: Session, since_ms: int) -> list[Alert]:
    """What fired aloud and was closed since then, oldest first."""
    query = _query().where(AlertRow.quiet.is_(False), AlertRow.state.not_in(OPEN), AlertRow.closed_at_ms >= since_ms)
    return [_alert(row) for row in session.execute(query.order_by(AlertRow.id))]


def count_firing(session: Session, run: str | None = None) -> int:
    """Number of alerts that fire now, of one run or of all."""
    query = select(func.count()).select_from(AlertRow).where(AlertRow.state == "firing")
    return session.scalar(query if run is None else query.where(AlertRow.run_id == run)) or 0


def counts_firing(session: Session, runs: Sequence[str]) -> dict[str, int]:
    """Number of alerts that fire now by run."""
    query = select(AlertRow.run_id, func.count()).where(AlertRow.run_id.in_(runs), AlertRow.state == "firing")
    return {row[0]: row[1] for row in session.execute(query.group_by(AlertRow.run_id))}


def newest_critical_step(session: Session, run: str) -> int | None:
    """Last step at which a critical alert that still fires was opened."""
    step: int | None = session.scalar(_NEWEST_CRITICAL, {"run": run})
    return step


def list_alerts(
    session: Session,
    *,
    run: str | None = None,
    project: str | None = None,
    states: Sequence[str] = (),
    condition: str | None = None,
    limit: int = 200,
    offset: int = 0,
) -> AlertsPage:
    """Alerts, open ones first, then newest first."""
    wanted: list[ColumnElement[bool]] = []
    if project is not None:
        wanted.append(AlertRow.run_id.in_(select(RunRow.id).where(RunRow.project == project)))
    if run is not None:
        wanted.append(AlertRow.run_id == run)
    if condition is not None:
        wanted.append(AlertRow.condition == condition)
    chosen = [*wanted, AlertRow.state.in_(states)] if states else wanted
    total = session.scalar(select(func.count()).select_from(AlertRow).where(*chosen)) or 0
    is_open = select(func.count()).select_from(AlertRow).where(*wanted, AlertRow.state == "firing")
    order = case((AlertRow.state == "firing", 0), (AlertRow.state == "pending", 1), else_=2)
    query = _query().where(*chosen).order_by(order, AlertRow.id.desc()).limit(limit).offset(offset)
    return AlertsPage(tuple(_alert(row) for row in session.execute(query)), total, session.scalar(is_open) or 0)


def get_alerts(session: Session, ids: Sequence[int]) -> list[Alert]:
    """Alerts by id, lowest first; those that are gone are left out."""
    return [_alert(row) for row in session.execute(_query().where(AlertRow.id.in_(ids)).order_by(AlertRow.id))]


def acknowledge(session: Session, alert: int, *, by: str, now_ms: int) -> Alert:
    """Say that a person has seen an alert; the first to say so stays.

    Raises:
        AlertNotFound: there is no such alert.
    """
    row = session.get(AlertRow, alert)
    if row is None:
        raise AlertNotFound(alert)
    if row.acknowledged_at_ms is None:
        row.acknowledged_by, row.acknowledged_at_ms = by, now_ms
        touch_run(session, row.run_id)
    session.flush()
    return get_alerts(session, [alert])[0]


def withdraw_acknowledgement(session: Session, alert: int) -> Alert:
    """Say that nobody has seen an alert after all: of what still fires receivers are told again.

    Raises:
        AlertNotFound: there is no such alert.
    """
    row = session.get(AlertRow, alert)
    if row is None:
        raise AlertNotFound(alert)
    if row.acknowledged_at_ms is not None:
        row.acknowledged_by = row.acknowledged_at_ms = None
        touch_run(session, row.run_id)
    session.flush()
    return get_alerts(session, [alert])[0]


def runs_firing(session: Session) -> list[str]:
    """Runs of which an alert fires aloud."""
    query = select(AlertRow.run_id).where(AlertRow.state == "firing", AlertRow.quiet.is_(False))
    return list(session.scalars(query.distinct()))


def mark_notified(session: Session, ids: Sequence[int]) -> None:
    """Say of alerts that receivers know of them."""
    session.execute(update(AlertRow).where(AlertRow.id.in_(ids)).values(notified=True))


def _open_on(
    session: Session, attempt: Attempt, series: Collection[int | None]
) -> dict[tuple[int | None, str], AlertRow]:
    """The open alerts of an attempt on these series, and on none, by series and rule."""
    wanted = sorted(one for one in series if one is not None)
    rows: dict[tuple[int | None, str], AlertRow] = {}
    for begin in range(0, max(len(wanted), 1), _SERIES_A_QUERY):
        asked = {"attempt": attempt.id, "series": wanted[begin : begin + _SERIES_A_QUERY]}
        rows.update(((row.series_id, row.rule), row) for row in session.scalars(_OPEN_ON, asked))
    return rows


def _move(row: AlertRow, transition: Transition, terms: Terms, *, at_ms: int, is_quiet: bool) -> None:
    if transition.state == "firing" and row.state != "firing":
        row.opened_step, row.opened_at_ms, row.quiet = transition.step, at_ms, is_quiet or terms.is_quiet
    for name in ("condition", "severity", "state", "cause", "value", "ratio", "basis", "band_low", "band_high"):
        setattr(row, name, getattr(transition, name))
    _dress(row, terms)
    row.message, row.advice = transition.message, transition.advice
    row.worst_ratio = max(transition.worst_ratio, row.worst_ratio or 0.0)


def _dress(row: AlertRow, terms: Terms) -> None:
    """Give an alert what the user's rules say of it."""
    row.severity = terms.severity or row.severity
    row.labels, row.annotations = terms.labels or None, terms.annotations or None
    row.receivers = list(terms.receivers) or None


def _close(
    session: Session, row: AlertRow, *, state: str, step: int | None, at_ms: int, said: str | None = None
) -> None:
    """Close an alert; `said`: how it ended, in words that replace those of its beginning."""
    if row.state == "pending":  # it never fired: there is nothing to tell of it
        session.delete(row)
    else:
        row.state, row.closed_step, row.closed_at_ms = state, step, at_ms
        row.message = row.message if said is None else said


def _add_plain(
    session: Session, attempt: Attempt, *, rule: str, condition: str, cause: str, severity: str, state: str,
    step: int | None, message: str, advice: str, at_ms: int, is_quiet: bool, terms: Terms,
) -> int:  # fmt: skip
    row = AlertRow(
        run_id=attempt.run, attempt_id=attempt.id, rule=rule, condition=condition, severity=severity, state=state,
        cause=cause, pending_step=step, opened_step=step, opened_at_ms=at_ms, message=message, advice=advice,
        quiet=is_quiet or terms.is_quiet, notified=False,
    )  # fmt: skip
    _dress(row, terms)
    session.add(row)
    session.flush()
    return row.id


def _query() -> Select[Any]:
    return (
        select(
            AlertRow, RunRow.name, RunRow.project, AttemptRow.name, SeriesRow.metric, SeriesRow.kind, SeriesRow.subject,
            SeriesRow.index, SeriesRow.facts, SeriesRow.bound,
        )
        .join(RunRow, RunRow.id == AlertRow.run_id)
        .join(AttemptRow, AttemptRow.id == AlertRow.attempt_id)
        .outerjoin(SeriesRow, SeriesRow.id == AlertRow.series_id)
    )  # fmt: skip


def _alert(found: Row[Any]) -> Alert:
    row, run_name, project, attempt, metric, kind, subject, index, facts, bound = tuple(found)
    return Alert(
        id=row.id,
        run=row.run_id,
        run_name=run_name,
        project=project,
        attempt=attempt,
        rule=row.rule,
        condition=row.condition,
        severity=row.severity,
        state=row.state,
        series=row.series_id,
        metric=metric or "",
        subject=subject or "",
        index=None if index is None or index == NO_INDEX else index,
        kind=kind,
        module=(facts or {}).get("module"),
        block=(facts or {}).get("block"),
        cause=row.cause,
        value=number(row.value),
        ratio=number(row.ratio),
        worst_ratio=number(row.worst_ratio),
        basis=row.basis,
        band_low=number(row.band_low),
        band_high=number(row.band_high),
        pending_step=row.pending_step,
        opened_step=row.opened_step,
        closed_step=row.closed_step,
        opened_at_ms=row.opened_at_ms,
        closed_at_ms=row.closed_at_ms,
        message=row.message,
        advice=row.advice,
        acknowledged_by=row.acknowledged_by,
        acknowledged_at_ms=row.acknowledged_at_ms,
        notified=row.notified,
        bound=bound,
        labels=dict(row.labels or {}),
        annotations=dict(row.annotations or {}),
        receivers=tuple(row.receivers or ()),
    )
