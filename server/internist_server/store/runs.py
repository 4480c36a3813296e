"""Runs as the runs table and the run page show them."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from internist.schema.conditions import State
from internist.schema.views import Attempt as AttemptView
from internist.schema.views import Change, Run
from internist_server.errors import RunNotFound
from internist_server.store import alerts
from internist_server.store.attempts import Attempt, Rank, list_ranks, newest_attempt
from internist_server.store.evidence import read_evidence
from internist_server.store.judgements import Summary, load_summaries
from internist_server.store.numbers import number
from internist_server.store.series import count_series
from internist_server.store.tables import AttemptRow, RankRow, RunRow
from internist_server.store.vitals import Vitals, vitals_of


def project_of(session: Session, run: str) -> str:
    """The project of a run; empty where there is no such run."""
    return session.scalar(select(RunRow.project).where(RunRow.id == run)) or ""


def list_runs(
    session: Session, *, project: str | None = None, name: str | None = None, limit: int, offset: int = 0, now_ms: int
) -> list[Run]:
    """Runs, newest first; `name` is a part of the run's name or id."""
    query = select(RunRow).order_by(RunRow.created_at_ms.desc(), RunRow.id).limit(limit).offset(offset)
    if project is not None:
        query = query.where(RunRow.project == project)
    if name is not None:
        pattern = f"%{name.replace('~', '~~').replace('%', '~%').replace('_', '~_')}%"
        query = query.where(RunRow.name.ilike(pattern, escape="~") | RunRow.id.like(pattern, escape="~"))
    return [_run(session, row, now_ms=now_ms) for row in session.scalars(query).all()]


def read_run(session: Session, run: str, *, now_ms: int) -> Run:
    """One run.

    Raises:
        RunNotFound: there is no such run.
    """
    row = session.get(RunRow, run)
    if row is None:
        raise RunNotFound(run)
    return _run(session, row, now_ms=now_ms)


def read_change(session: Session, run: str, *, now_ms: int) -> Change:
    """What is new of a run, up to its present cursor.

    Raises:
        RunNotFound: there is no such run.
    """
    row = session.get(RunRow, run, populate_existing=True)
    if row is None:
        raise RunNotFound(run)
    attempt = newest_attempt(session, run)
    ranks = list_ranks(session, attempt.id)
    summary = load_summaries(session, [attempt.id]).get(attempt.id, Summary())
    return Change(
        run=run,
        cursor=row.cursor,
        step=_last_step(ranks),
        state=_vitals(attempt, ranks, summary, now_ms=now_ms).state,
        verdict=_verdict(session, attempt, ranks, summary)[0],
        open_alerts=alerts.count_firing(session, run),
        last_frame_at_ms=_latest([rank.frame_at_ms for rank in ranks]),
        heartbeat_at_ms=_latest([rank.heartbeat_at_ms for rank in ranks]),
        server_time_ms=now_ms,
    )


def read_cursor(session: Session, run: str) -> int:
    """The run's cursor.

    Raises:
        RunNotFound: there is no such run.
    """
    found = session.scalar(select(RunRow.cursor).where(RunRow.id == run))
    if found is None:
        raise RunNotFound(run)
    return found


def _run(session: Session, row: RunRow, *, now_ms: int) -> Run:
    attempt = newest_attempt(session, row.id)
    ranks = list_ranks(session, attempt.id)
    summary = load_summaries(session, [attempt.id]).get(attempt.id, Summary())
    vitals = _vitals(attempt, ranks, summary, now_ms=now_ms)
    verdict, sentence = _verdict(session, attempt, ranks, summary)
    values = summary.values
    return Run(
        id=row.id,
        project=row.project,
        name=row.name,
        state=vitals.state,
        state_reason=vitals.reason,
        created_at_ms=row.created_at_ms,
        last_step=_last_step(ranks),
        last_frame_at_ms=_latest([rank.frame_at_ms for rank in ranks]),
        heartbeat_at_ms=_latest([rank.heartbeat_at_ms for rank in ranks]),
        server_time_ms=now_ms,
        steps_per_second=1000 / summary.step_ms if summary.step_ms else None,
        loss=number(values.get("loss")),
        learning_rate=number(values.get("learning_rate")),
        verdict=verdict,
        sentence=sentence,
        violated=summary.violated,
        drifting=summary.drifting,
        open_alerts=alerts.count_firing(session, row.id),
        series=count_series(session, row.id),
        overhead=_finite(values.get("overhead")),
        coverage=_finite(values.get("coverage")),
        config=row.config,
        parametrization=row.parametrization,
        optimizers=tuple(row.optimizers),
        attempts=_attempts(session, row.id),
        cursor=row.cursor,
    )


def _attempts(session: Session, run: str) -> tuple[AttemptView, ...]:
    seen = select(RankRow.attempt_id, func.count().label("ranks"), func.max(RankRow.last_step).label("step"))
    counts = seen.group_by(RankRow.attempt_id).subquery()
    query = (
        select(AttemptRow, counts.c.ranks, counts.c.step)
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
        )
        for row, ranks, step in session.execute(query)
    )


def _vitals(attempt: Attempt, ranks: Sequence[Rank], summary: Summary, *, now_ms: int) -> Vitals:
    return vitals_of(attempt, ranks, step_ms=summary.step_ms, pause_ms=summary.pause_ms, now_ms=now_ms)


def _verdict(session: Session, attempt: Attempt, ranks: Sequence[Rank], summary: Summary) -> tuple[State, str]:
    """State and sentence of the run, by what was judged and by what is known beside it."""
    states: dict[str, State] = {"ok": "ok", "drifting": "drifting", "violated": "violated"}
    state = states.get(summary.state, "not measured")
    return read_evidence(session, attempt.id, ranks, summary).weigh(state, summary.sentence)


def _last_step(ranks: Sequence[Rank]) -> int | None:
    """The last step of which anything is known."""
    known = [rank.last_step for rank in ranks if rank.last_step >= 0]
    return max(known + [rank.heartbeat_step for rank in ranks if rank.heartbeat_step is not None], default=None)


def _latest(moments: Sequence[int | None]) -> int | None:
    return max((moment for moment in moments if moment is not None), default=None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
