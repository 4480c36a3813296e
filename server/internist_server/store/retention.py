"""What is old is told by spans alone: blocks go, oldest steps first, where there are spans of all their steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from internist_server.store.attempts import touch_run
from internist_server.store.judgements import load_judged_step
from internist_server.store.summaries import last_summarised
from internist_server.store.tables import AttemptRow, RunRow
from internist_server.store.tile_tables import BlockRow, JudgedBlockRow

_DAY_MS = 86_400_000
_ROWS = 1_000
_YOUNGEST_NEEDED = 4
"""A live judge looks back to a quarter of its steps: those are not taken from it."""


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days, and up to how many MiB of each project, every point is kept: of projects that are named, or
    of all others; None: for ever, and however many."""

    days: float | None = None
    days_of_project: Mapping[str, float] = field(default_factory=dict)
    mib: float | None = None
    mib_of_project: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_any(self) -> bool:
        """Whether anything is ever given up."""
        limits = (self.days, self.mib)
        return any(limit is not None for limit in limits) or bool(self.days_of_project or self.mib_of_project)

    def kept_since_ms(self, project: str, now_ms: int) -> int | None:
        """Frames that came before this are given up; None: none are."""
        days = self.days_of_project.get(project, self.days)
        return None if days is None else now_ms - int(days * _DAY_MS)

    def most_bytes(self, project: str) -> int | None:
        """How many bytes the tiles of a project may take; None: however many."""
        mib = self.mib_of_project.get(project, self.mib)
        return None if mib is None else int(mib * (1 << 20))


@dataclass(frozen=True, slots=True)
class Aged:
    """An attempt with blocks, the oldest of which may be given up."""

    attempt_id: int
    run: str
    project: str
    is_over: bool
    oldest_ms: int


def list_aged(session: Session) -> list[Aged]:
    """The attempts that have blocks."""
    is_over = AttemptRow.finished_at_ms.is_not(None)
    query = (
        select(AttemptRow.id, RunRow.id, RunRow.project, is_over, func.min(BlockRow.newest_ms))
        .join(RunRow, RunRow.id == AttemptRow.run_id)
        .join(BlockRow, BlockRow.attempt_id == AttemptRow.id)
        .group_by(AttemptRow.id, RunRow.id, RunRow.project)
    )
    return [Aged(row[0], row[1], row[2], bool(row[3]), row[4]) for row in session.execute(query)]


def fits_since_ms(session: Session, project: str, most_bytes: int) -> int:
    """The moment from which on the blocks of a project fit into so many bytes: blocks that are older do not."""
    blocks = (
        select(BlockRow.newest_ms, BlockRow.packed_bytes)
        .join(AttemptRow, AttemptRow.id == BlockRow.attempt_id)
        .join(RunRow, RunRow.id == AttemptRow.run_id)
        .where(RunRow.project == project)
    )
    total = session.scalar(select(func.sum(blocks.subquery().c.packed_bytes))) or 0
    if total <= most_bytes:
        return 0
    held = 0
    newest_first = blocks.order_by(BlockRow.newest_ms.desc()).execution_options(yield_per=_ROWS)
    for newest_ms, packed_bytes in session.execute(newest_first):
        held += packed_bytes
        if held > most_bytes:
            return int(newest_ms) + 1
    return 0


def give_up(session: Session, aged: Aged, *, kept_since_ms: int) -> int:
    """Give up the blocks of an attempt that are old, with the judgements of their steps; how many blocks of frames."""
    of_attempt = BlockRow.attempt_id == aged.attempt_id
    young = session.scalar(select(func.min(BlockRow.first_step)).where(of_attempt, BlockRow.newest_ms >= kept_since_ms))
    limit = last_summarised(session, aged.attempt_id) + 1
    if young is not None:
        limit = min(limit, young)
    if not aged.is_over:
        limit = min(limit, load_judged_step(session, aged.attempt_id) // _YOUNGEST_NEEDED)
    resumed = _resumed_at(session, aged)
    if resumed is not None:
        limit = min(limit, resumed)
    # spans end with blocks of judgements: a part of one would be shown twice, or not at all
    judged = JudgedBlockRow.attempt_id == aged.attempt_id
    last = session.scalar(select(func.max(JudgedBlockRow.last_step)).where(judged, JudgedBlockRow.last_step < limit))
    if last is None:
        return 0
    old = list(session.scalars(select(BlockRow.id).where(of_attempt, BlockRow.last_step <= last)))
    session.execute(delete(BlockRow).where(BlockRow.id.in_(old)))
    session.execute(delete(JudgedBlockRow).where(judged, JudgedBlockRow.last_step <= last))
    is_it = (AttemptRow.id == aged.attempt_id) & (AttemptRow.fine_from <= last)
    session.execute(update(AttemptRow).where(is_it).values(fine_from=last + 1))
    touch_run(session, aged.run)
    return len(old)


def _resumed_at(session: Session, aged: Aged) -> int | None:
    """The first step, of those whose points are kept, from which another attempt went on: what it continues ends within
    a span, of which a part cannot be shown. None: there is none."""
    fine_from = select(AttemptRow.fine_from).where(AttemptRow.id == aged.attempt_id).scalar_subquery()
    return session.scalar(
        select(func.min(AttemptRow.start_step)).where(
            AttemptRow.run_id == aged.run,
            AttemptRow.id != aged.attempt_id,
            AttemptRow.parent.is_not(None),
            AttemptRow.start_step > fine_from,
        )
    )
