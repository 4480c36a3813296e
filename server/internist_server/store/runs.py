"""Runs as the runs table and the run page show them."""

from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from internist.schema.views import Attempt as AttemptView
from internist.schema.views import Change, Run
from internist_server.errors import RunNotFound
from internist_server.store import alerts
from internist_server.store.labels import Labels, read_labels, tags_of
from internist_server.store.numbers import number
from internist_server.store.order import Sort, order_of
from internist_server.store.series import count_series
from internist_server.store.standings import Standing, load_standing
from internist_server.store.tables import AlertRow, AttemptRow, LabelRow, RankRow, RunRow, StandingRow

_RUN = (RunRow.id, RunRow.project, RunRow.name, RunRow.created_at_ms, RunRow.parametrization, RunRow.optimizers)
_LABELS = (LabelRow.tags, LabelRow.is_pinned, LabelRow.is_archived)
_STANDING = tuple(getattr(StandingRow, one.name) for one in fields(Standing))


def project_of(session: Session, run: str) -> str:
    """The project of a run; empty where there is no such run."""
    return session.scalar(select(RunRow.project).where(RunRow.id == run)) or ""


def owner_of(session: Session, run: str) -> tuple[str, str | None] | None:
    """The project of a run, and the name of the token that started it, where it was one; None: there is no such run."""
    found = session.execute(select(RunRow.project, RunRow.owner).where(RunRow.id == run)).first()
    return None if found is None else (found.project, found.owner)


@dataclass(frozen=True, slots=True)
class Listing:
    """Which runs are listed, and in which order."""

    project: str | None = None
    name: str | None = None
    """A part of the run's name, project or id, or of one of its tags."""
    is_archived: bool = False
    sort: Sort = "newest"
    is_reversed: bool = False


def list_runs(
    session: Session, wanted: Listing, *, limit: int, offset: int = 0, now_ms: int, since_ms: int = 0
) -> list[Run]:
    """Runs, pinned ones first, without their configurations, attempts and notes."""
    firing = (
        select(func.count())
        .where(AlertRow.run_id == RunRow.id, AlertRow.state == "firing")
        .correlate(RunRow)
        .scalar_subquery()
        .label("firing")
    )
    query = select(
        *_RUN, *_STANDING, StandingRow.series, StandingRow.cursor, StandingRow.next_check_ms, firing, *_LABELS
    )
    query = query.join(StandingRow, StandingRow.run_id == RunRow.id)
    query = query.outerjoin(LabelRow, LabelRow.run_id == RunRow.id)
    query = query.where(func.coalesce(LabelRow.is_archived, False).is_(wanted.is_archived))
    query = query.order_by(*order_of(wanted.sort, is_reversed=wanted.is_reversed)).limit(limit).offset(offset)
    if wanted.project is not None:
        query = query.where(RunRow.project == wanted.project)
    if wanted.name is not None:
        pattern = f"%{wanted.name.replace('~', '~~').replace('%', '~%').replace('_', '~_')}%"
        query = query.where(
            RunRow.name.ilike(pattern, escape="~")
            | RunRow.project.ilike(pattern, escape="~")
            | RunRow.id.like(pattern, escape="~")
            | LabelRow.tags.ilike(pattern, escape="~")
        )
    return [_listed(session, row, now_ms=now_ms, since_ms=since_ms) for row in session.execute(query).all()]


def read_run(session: Session, run: str, *, now_ms: int, since_ms: int = 0) -> Run:
    """One run, whole; `since_ms`: since when the server listens.

    Raises:
        RunNotFound: there is no such run.
    """
    query = select(*_RUN, RunRow.config, StandingRow.cursor, StandingRow.next_check_ms).join(
        StandingRow, StandingRow.run_id == RunRow.id
    )
    row = session.execute(query.where(RunRow.id == run)).first()
    if row is None:
        raise RunNotFound(run)
    return _run(
        row, load_standing(session, run), firing=alerts.count_firing(session, run),
        series=count_series(session, run), labels=read_labels(session, run), config=row.config,
        attempts=_attempts(session, run), now_ms=now_ms, since_ms=since_ms,
    )  # fmt: skip


def read_change(session: Session, run: str, *, now_ms: int, since_ms: int = 0) -> Change:
    """What is new of a run, up to its present cursor.

    Raises:
        RunNotFound: there is no such run.
    """
    row = session.execute(
        select(StandingRow.cursor, StandingRow.next_check_ms).where(StandingRow.run_id == run)
    ).first()
    if row is None:
        raise RunNotFound(run)
    standing = load_standing(session, run)
    return Change(
        run=run,
        cursor=row.cursor,
        step=standing.last_step,
        state=standing.vitals(now_ms, since_ms=_since_ms(row.next_check_ms, since_ms)).state,
        verdict=standing.verdict,
        open_alerts=alerts.count_firing(session, run),
        last_frame_at_ms=standing.last_frame_at_ms,
        heartbeat_at_ms=standing.heartbeat_at_ms,
        server_time_ms=now_ms,
    )


def read_cursor(session: Session, run: str) -> int:
    """The run's cursor.

    Raises:
        RunNotFound: there is no such run.
    """
    found = session.scalar(select(StandingRow.cursor).where(StandingRow.run_id == run))
    if found is None:
        raise RunNotFound(run)
    return found


def _listed(session: Session, row: Row[Any], *, now_ms: int, since_ms: int) -> Run:
    """A run of a list; one of which nothing is known yet, as after an upgrade, is looked at anew."""
    if row.attempt_id is None:
        standing, series = load_standing(session, row.id), count_series(session, row.id)
    else:
        standing, series = Standing(*row[len(_RUN) : len(_RUN) + len(_STANDING)]), row.series or 0
    labels = Labels(None, tags_of(row.tags), "", bool(row.is_pinned), bool(row.is_archived))
    return _run(
        row, standing, firing=row.firing, series=series, labels=labels, config={}, attempts=(), now_ms=now_ms,
        since_ms=since_ms,
    )  # fmt: skip


def _run(
    row: Row[Any],
    standing: Standing,
    *,
    firing: int,
    series: int,
    labels: Labels,
    config: dict[str, Any],
    attempts: tuple[AttemptView, ...],
    now_ms: int,
    since_ms: int,
) -> Run:
    vitals = standing.vitals(now_ms, since_ms=_since_ms(row.next_check_ms, since_ms))
    return Run(
        id=row.id,
        project=row.project,
        name=row.name,
        state=vitals.state,
        state_reason=vitals.reason,
        created_at_ms=row.created_at_ms,
        last_step=standing.last_step,
        last_frame_at_ms=standing.last_frame_at_ms,
        heartbeat_at_ms=standing.heartbeat_at_ms,
        server_time_ms=now_ms,
        steps_per_second=1000 / standing.step_ms if standing.step_ms else None,
        loss=number(standing.loss),
        learning_rate=number(standing.learning_rate),
        verdict=standing.verdict,
        sentence=standing.sentence,
        violated=standing.violated,
        drifting=standing.drifting,
        open_alerts=firing,
        series=series,
        overhead=_finite(standing.overhead),
        coverage=_finite(standing.coverage),
        config=config,
        parametrization=row.parametrization,
        optimizers=tuple(row.optimizers),
        attempts=attempts,
        cursor=row.cursor,
        tags=labels.tags,
        notes=labels.notes,
        pinned=labels.is_pinned,
        archived=labels.is_archived,
    )


def _attempts(session: Session, run: str) -> tuple[AttemptView, ...]:
    seen = select(RankRow.attempt_id, func.count().label("ranks"), func.max(RankRow.last_step).label("step"),
        func.min(RankRow.clock_offset_ms).label("least"), func.max(RankRow.clock_offset_ms).label("most"),
    )  # fmt: skip
    counts = seen.group_by(RankRow.attempt_id).subquery()
    query = (
        select(AttemptRow, counts.c.ranks, counts.c.step, counts.c.least, counts.c.most)
        .outerjoin(counts, counts.c.attempt_id == AttemptRow.id)
        .where(AttemptRow.run_id == run)
        .order_by(AttemptRow.number)
    )
    return tuple(
        AttemptView(
            id=row.name,
            number=row.number,
            parent=row.parent,
            world_size=row.world_size,
            ranks_seen=ranks or 0,
            started_at_ms=row.started_at_ms,
            start_step=row.start_step,
            last_step=step if step is not None and step >= 0 else None,
            finished_at_ms=row.finished_at_ms,
            clock_skew_ms=None if least is None else -max(least, most, key=abs),
        )
        for row, ranks, step, least, most in session.execute(query)
    )


def _since_ms(next_check_ms: int | None, since_ms: int) -> int:
    """Since when the silence of a run counts: a run that waits for no time was lost before the server listened."""
    return 0 if next_check_ms is None else since_ms


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
