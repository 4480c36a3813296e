"""Runs and attempts as ingest sees them: who is speaking, and which history an attempt continues."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from sqlalchemy import Row, bindparam, func, select, update
from sqlalchemy.orm import Session

from internist.schema.wire import Finish, Module, Outcome, Outline, Route, RunStart, Scalar
from internist_server.callers import EVERYONE, Caller
from internist_server.errors import AttemptNotFound, Conflict, RunNotFound
from internist_server.store.dialects import upsert
from internist_server.store.ranks import Rank, find_rank
from internist_server.store.tables import AttemptRow, LabelRow, RankRow, RunRow, StandingRow

_GRAVITY: Final[tuple[Outcome, ...]] = ("finished", "killed", "failed")
"""Outcomes by how much they say: a rank that fails has the others killed, so that the failure is the cause."""

_ATTEMPT, _RUN, _STANDING = AttemptRow.__table__.c, RunRow.__table__.c, StandingRow.__table__.c
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
_LOCK = select(_STANDING.cursor).where(_STANDING.run_id == bindparam("run")).with_for_update()


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


def lock_run(session: Session, run: str) -> int:
    """Make every other writer of this run wait until the transaction ends; the run's cursor, by which whoever keeps
    what is known of it can tell whether that still holds.

    Raises:
        RunNotFound: there is no such run.
    """
    cursor: int | None = session.scalar(_LOCK, {"run": run})
    if cursor is None:
        raise RunNotFound(run)
    return cursor


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
    upsert(session, StandingRow, [{"run_id": start.run, "cursor": 0}], key=["run_id"], update=[])
    lock_run(session, start.run)
    held = session.execute(select(RunRow.project, RunRow.owner).where(RunRow.id == start.run)).one()
    by.require_start(start.run, held.project)
    by.require_own(start.run, held.owner)
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
