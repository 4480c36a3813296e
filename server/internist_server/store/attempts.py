"""Runs, attempts and ranks as ingest sees them: who is speaking, and what has come from them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, cast

from sqlalchemy import Row, Table, bindparam, func, select, update
from sqlalchemy.orm import Session

from internist.schema.wire import MAX_NAME_LENGTH, Finish, Heartbeat, Module, Outcome, Outline, Route, RunStart, Scalar
from internist_server.callers import EVERYONE, Caller
from internist_server.errors import AttemptNotFound, Conflict, RunNotFound
from internist_server.store.dialects import upsert
from internist_server.store.sequences import Intervals
from internist_server.store.tables import NEVER, AttemptRow, LabelRow, RankRow, RunRow, StandingRow

_GRAVITY: Final[tuple[Outcome, ...]] = ("finished", "killed", "failed")
"""Outcomes by how much they say: a rank that fails has the others killed, so that the failure is the cause."""

_OF_RANK: Final = tuple(column for column in RankRow.__table__.columns if column.name != "mesh")
"""What `Rank` is made of."""
_RANKS: Final = cast(Table, RankRow.__table__)
_SAVE_RANK: Final = _RANKS.update().where(
    _RANKS.c.attempt_id == bindparam("of_attempt"), _RANKS.c.rank == bindparam("of_rank")
)
"""Of the table, and made once: every request saves a rank."""
_ATTEMPT, _RUN, _RANK = AttemptRow.__table__.c, RunRow.__table__.c, RankRow.__table__.c
_OF_ATTEMPT = (
    _ATTEMPT.id, _ATTEMPT.run_id, _ATTEMPT.name, _ATTEMPT.number, _ATTEMPT.parent, _ATTEMPT.world_size, _ATTEMPT.every,
    _ATTEMPT.start_step, _ATTEMPT.received_at_ms, _ATTEMPT.finished_at_ms, _ATTEMPT.outcome, _RUN.parametrization,
    _RUN.optimizers, _RUN.reference,
)  # fmt: skip
"""What `Attempt` is made of: every request asks for one."""
_GET = select(*_OF_ATTEMPT).join_from(AttemptRow.__table__, RunRow.__table__)
_OF_RUN = _GET.where(_ATTEMPT.run_id == bindparam("run"))
_BY_ID = _GET.where(_ATTEMPT.id == bindparam("id"))
_BY_NAME = _OF_RUN.where(_ATTEMPT.name == bindparam("name"))
_NEWEST = _OF_RUN.order_by(_ATTEMPT.started_at_ms.desc(), _ATTEMPT.number.desc()).limit(1)
_IN_ORDER = _OF_RUN.order_by(_ATTEMPT.started_at_ms, _ATTEMPT.number)
_SEGMENT = select(_ATTEMPT.id, _ATTEMPT.parent, _ATTEMPT.start_step, _ATTEMPT.fine_from).where(
    _ATTEMPT.run_id == bindparam("run"), _ATTEMPT.name == bindparam("name")
)
_HAS_RUN = select(_RUN.id).where(_RUN.id == bindparam("run"))
_LOCK = select(_RUN.id).where(_RUN.id == bindparam("run")).with_for_update()
_FIND_RANK = select(*_OF_RANK).where(_RANK.attempt_id == bindparam("attempt"), _RANK.rank == bindparam("of_rank"))
_LIST_RANKS = select(*_OF_RANK).where(_RANK.attempt_id == bindparam("attempt")).order_by(_RANK.rank)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run."""

    id: int
    run: str
    name: str
    number: int
    parent: str | None
    world_size: int
    every: int
    start_step: int
    received_at_ms: int
    parametrization: str
    optimizers: tuple[str, ...]
    finished_at_ms: int | None
    outcome: Outcome | None
    reference: str | None = None
    """The run that it asks to be held to."""


@dataclass(slots=True)
class Rank:
    """One process of an attempt; ingest changes it and saves it."""

    rank: int
    received_at_ms: int
    delivered: Intervals = field(default_factory=list)
    last_step: int = NEVER
    sampled_step: int = NEVER
    plan_steps: dict[int, int] = field(default_factory=dict)
    """The newest step of the frames of each plan."""
    loose: int = 0
    """Frames that do not lie in tiles yet."""
    frame_at_ms: int | None = None
    heartbeat_at_ms: int | None = None
    heartbeat_step: int | None = None
    step_age_ms: int | None = None
    clock_offset_ms: int | None = None
    """How far the server's clock is ahead of its own; None: not known."""
    powers: tuple[int, ...] = ()
    """By how much its own costs ask to thin sampling; empty: it did not tell."""
    finished_at_ms: int | None = None
    refused: int = 0
    """Good frames that must come before what is known of it is whole again."""
    refusal: str | None = None
    pause: str = ""
    """What it says that it pauses for."""

    @property
    def told_step(self) -> int:
        """The step that its heartbeats, or its end, tell; `NEVER` without one."""
        return NEVER if self.heartbeat_step is None else self.heartbeat_step

    @property
    def reached(self) -> int:
        """The last step that it is known to have come to; `NEVER` if none."""
        return max(self.last_step, self.sampled_step, self.told_step)


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps of a history that one attempt tells: from `first` to `last`, both included."""

    attempt_id: int
    first: int
    last: int
    fine_from: int = 0
    """Of steps below this only spans are left."""


LAST_STEP = (1 << 53) - 1
"""Steps beyond this are refused: a float64 axis could not tell them apart."""
MAX_CONFIG_BYTES = 256 << 10
"""Of the names and values of a run's configuration."""
MAX_OUTLINE = 200_000
"""Modules, and routes, of one attempt that are kept."""


def lock_run(session: Session, run: str) -> None:
    """Make every other writer of this run wait until the transaction ends.

    Raises:
        RunNotFound: there is no such run.
    """
    if session.scalar(_LOCK, {"run": run}) is None:
        raise RunNotFound(run)


def require_run(session: Session, run: str) -> None:
    """Raises `RunNotFound` if there is no such run."""
    if session.scalar(_HAS_RUN, {"run": run}) is None:
        raise RunNotFound(run)


def touch_run(session: Session, run: str) -> None:
    """Let the run's cursor rise: something of it has changed."""
    session.execute(update(StandingRow).where(StandingRow.run_id == run).values(cursor=StandingRow.cursor + 1))


def register(
    session: Session, start: RunStart, *, now_ms: int, began_ms: int, by: Caller = EVERYONE
) -> tuple[Attempt, Rank, bool]:
    """The attempt and rank that a start declares, made where they are new, with whether the attempt is new.

    Args:
        began_ms: when the attempt began, by the server's clock.

    Raises:
        Conflict: another rank of this attempt declared another world size.
        Forbidden: the run is another's, or of another project than the caller's.
    """
    by.require_start(start.run, start.project)
    values = {
        "project": start.project,
        "name": start.name,
        "config": dict(start.config),
        "parametrization": start.parametrization,
        "optimizers": list(start.optimizers),
        "reference": start.reference,
    }
    new = {"id": start.run, "created_at_ms": now_ms, "owner": by.owner, **values}
    upsert(session, RunRow, [new], key=["id"], update=[])
    lock_run(session, start.run)
    held = session.execute(select(RunRow.project, RunRow.owner).where(RunRow.id == start.run)).one()
    by.require_start(start.run, held.project)
    by.require_own(start.run, held.owner)
    upsert(session, StandingRow, [{"run_id": start.run, "cursor": 0}], key=["run_id"], update=[])
    row = session.scalar(select(AttemptRow).where(AttemptRow.run_id == start.run, AttemptRow.name == start.attempt))
    is_new = row is None
    if row is None:
        given = session.scalar(select(LabelRow.name).where(LabelRow.run_id == start.run))
        session.execute(
            update(RunRow).where(RunRow.id == start.run).values(**values | ({"name": given} if given else {}))
        )
        number = session.scalar(select(func.max(AttemptRow.number)).where(AttemptRow.run_id == start.run)) or 0
        if start.thresholds:  # those that were set since an earlier start stay where a later one names none
            thresholds = [asdict(one) for one in start.thresholds]
            session.execute(update(RunRow).where(RunRow.id == start.run).values(thresholds=thresholds))
        row = AttemptRow(
            run_id=start.run,
            name=start.attempt,
            number=number + 1,
            parent=start.parent,
            world_size=start.world_size,
            every=start.every,
            started_at_ms=began_ms,
            received_at_ms=now_ms,
            start_step=start.start_step,
            client=start.client,
            modules=[asdict(module) for module in start.modules],
            routing=[asdict(route) for route in start.routing],
        )
        session.add(row)
    elif row.world_size != start.world_size:
        raise Conflict(f"attempt {start.attempt!r} has a world size of {row.world_size}, not {start.world_size}")
    else:
        _merge_outline(row, start.modules, start.routing)
    session.flush()
    rank = find_rank(session, row.id, start.rank)
    if rank is None:
        session.add(RankRow(attempt_id=row.id, rank=start.rank, mesh=start.mesh, delivered=[], received_at_ms=now_ms))
        rank = Rank(start.rank, now_ms)
        row.finished_at_ms = None  # a rank that comes late
    session.flush()
    return _get_attempt(session, row.id), rank, is_new


def fitting_config(config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The first entries of a configuration that fit into `MAX_CONFIG_BYTES` together."""
    kept: dict[str, Scalar] = {}
    size = 0
    for name, value in config.items():
        size += len(name.encode()) + len(str(value).encode())
        if size > MAX_CONFIG_BYTES:
            break
        kept[name] = value
    return kept


def has_outline(session: Session, attempt: Attempt) -> bool:
    """Whether a rank has told what the model is made of: then it is measured, and not only what the user logs."""
    return bool(session.scalar(select(AttemptRow.modules).where(AttemptRow.id == attempt.id)))


def add_outline(session: Session, attempt: Attempt, outline: Outline) -> Attempt:
    """The attempt with more of what its start tells. What is known already stays as it is."""
    row = session.get_one(AttemptRow, attempt.id)
    _merge_outline(row, outline.modules, outline.routing)
    run = session.get_one(RunRow, attempt.run)
    new = {name: value for name, value in outline.config.items() if name not in run.config}
    if new:
        run.config = fitting_config({**run.config, **new})
    session.flush()
    return _get_attempt(session, row.id)


def _merge_outline(row: AttemptRow, modules: Sequence[Module], routing: Sequence[Route]) -> None:
    """Add the modules and routes that are not known: ranks of a pipeline hold different ones, and a large outline comes
    in pieces, some of them more than once."""
    known = {module["name"] for module in row.modules}
    new = [asdict(one) for one in modules if one.name not in known]
    if new:
        row.modules = [*row.modules, *new][:MAX_OUTLINE]
    taken = {(route["parameter"], route["optimizer"], route["group"]) for route in row.routing or ()}
    new = [asdict(one) for one in routing if (one.parameter, one.optimizer, one.group) not in taken]
    if new:
        row.routing = [*(row.routing or ()), *new][:MAX_OUTLINE]


def find_attempt(session: Session, run: str, name: str) -> Attempt:
    """The attempt of that name.

    Raises:
        AttemptNotFound: the run has none.
    """
    row = session.execute(_BY_NAME, {"run": run, "name": name}).first()
    if row is None:
        raise AttemptNotFound(run, name)
    return _attempt(row)


def newest_attempt(session: Session, run: str) -> Attempt:
    """The attempt that began last, by the server's clock: one that is shipped belatedly is not newer.

    Raises:
        RunNotFound: there is no such run.
    """
    row = session.execute(_NEWEST, {"run": run}).first()
    if row is None:
        raise RunNotFound(run)
    return _attempt(row)


def list_attempts(session: Session, run: str) -> list[Attempt]:
    """The attempts of a run, in the order in which they started.

    Raises:
        RunNotFound: there is no such run.
    """
    require_run(session, run)
    return [_attempt(row) for row in session.execute(_IN_ORDER, {"run": run})]


def choose_attempt(session: Session, run: str, name: str | None) -> Attempt:
    """The attempt of that name, or the newest."""
    require_run(session, run)
    return newest_attempt(session, run) if name is None else find_attempt(session, run, name)


def lineage(session: Session, attempt: Attempt) -> list[Segment]:
    """The history that an attempt continues, newest first: its own steps, and its forebears' up to where it resumed."""
    return history(session, attempt.run, attempt.name)


def history(session: Session, run: str, attempt: str) -> list[Segment]:
    """The same by the names of run and attempt."""
    segments: list[Segment] = []
    seen: set[str] = set()
    last = LAST_STEP
    name: str | None = attempt
    while name is not None and name not in seen:
        seen.add(name)
        found = session.execute(_SEGMENT, {"run": run, "name": name}).first()
        if found is None:
            break
        first = found.start_step if found.parent is not None else 0
        if first <= last:
            segments.append(Segment(found.id, first, last, found.fine_from))
        last = min(last, found.start_step - 1)
        name = found.parent
    return segments


def find_rank(session: Session, attempt_id: int, rank: int) -> Rank | None:
    """What is known of a rank; None if it never spoke."""
    row = session.execute(_FIND_RANK, {"attempt": attempt_id, "of_rank": rank}).first()
    return None if row is None else _rank(row)


def list_ranks(session: Session, attempt_id: int) -> list[Rank]:
    """The ranks of an attempt that ever spoke, lowest first."""
    session.flush()
    return [_rank(row) for row in session.execute(_LIST_RANKS, {"attempt": attempt_id})]


def save_rank(session: Session, attempt_id: int, rank: Rank) -> None:
    """Keep what ingest has changed of a rank."""
    session.flush()
    values = {
        "delivered": [list(interval) for interval in rank.delivered],
        "last_step": rank.last_step,
        "sampled_step": rank.sampled_step,
        "plan_steps": {str(plan): step for plan, step in rank.plan_steps.items()},
        "received_at_ms": rank.received_at_ms,
        "loose": rank.loose,
        "frame_at_ms": rank.frame_at_ms,
        "finished_at_ms": rank.finished_at_ms,
        "heartbeat_step": rank.heartbeat_step,
        "clock_offset_ms": rank.clock_offset_ms,
        "refused": rank.refused,
        "refusal": rank.refusal,
    }
    session.execute(_SAVE_RANK, {"of_attempt": attempt_id, "of_rank": rank.rank, **values})


def save_heartbeat(session: Session, attempt: Attempt, heartbeat: Heartbeat, *, now_ms: int) -> Rank:
    """Keep a rank's sign of life; the rank as it is then."""
    row = session.get(RankRow, (attempt.id, heartbeat.rank))
    if row is None:
        raise AttemptNotFound(attempt.run, f"{attempt.name} rank {heartbeat.rank}")
    row.heartbeat_at_ms, row.heartbeat_step, row.step_age_ms = now_ms, heartbeat.step, heartbeat.step_age_ms
    row.pause = heartbeat.pause[:MAX_NAME_LENGTH] or None
    row.powers = list(heartbeat.powers) or None
    session.flush()
    return _rank(row)


def finish(session: Session, attempt: Attempt, finish: Finish) -> Attempt:
    """The attempt after a rank has ended: it has ended itself when every rank that ever spoke has, as the gravest of
    them did."""
    row = session.get_one(AttemptRow, attempt.id)
    row.outcome = max(_outcome(row) or "finished", finish.outcome, key=_GRAVITY.index)
    trains = select(RankRow.rank).where(RankRow.attempt_id == attempt.id, RankRow.finished_at_ms.is_(None))
    if session.scalar(trains.limit(1)) is None:
        row.finished_at_ms = finish.finished_at_ms
    session.flush()
    return _get_attempt(session, row.id)


def _get_attempt(session: Session, attempt_id: int) -> Attempt:
    return _attempt(session.execute(_BY_ID, {"id": attempt_id}).one())


def _attempt(row: Any) -> Attempt:
    return Attempt(
        id=row.id,
        run=row.run_id,
        name=row.name,
        number=row.number,
        parent=row.parent,
        world_size=row.world_size,
        every=row.every,
        start_step=row.start_step,
        received_at_ms=row.received_at_ms,
        parametrization=row.parametrization,
        reference=row.reference,
        optimizers=tuple(row.optimizers),
        finished_at_ms=row.finished_at_ms,
        outcome=_outcome(row),
    )


def _outcome(row: AttemptRow | Row[Any]) -> Outcome | None:
    return cast(Outcome | None, row.outcome)


def _rank(row: RankRow | Row[Any]) -> Rank:
    return Rank(
        rank=row.rank,
        received_at_ms=row.received_at_ms,
        delivered=[list(interval) for interval in row.delivered],
        last_step=row.last_step,
        sampled_step=row.sampled_step,
        plan_steps={int(plan): step for plan, step in (row.plan_steps or {}).items()},
        loose=row.loose,
        frame_at_ms=row.frame_at_ms,
        heartbeat_at_ms=row.heartbeat_at_ms,
        heartbeat_step=row.heartbeat_step,
        step_age_ms=row.step_age_ms,
        clock_offset_ms=row.clock_offset_ms,
        powers=tuple(row.powers or ()),
        finished_at_ms=row.finished_at_ms,
        refused=row.refused,
        refusal=row.refusal,
        pause=row.pause or "",
    )
