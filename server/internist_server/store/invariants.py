"""What must be true of a store whatever has happened to it: each claim with how often it is not so."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import LAST_STEP
from internist_server.store.blocks import list_blocks, list_judged_blocks, read_tiles
from internist_server.store.delivery_tables import DeliveryRow
from internist_server.store.tables import (
    NEVER,
    AlertRow,
    AttemptRow,
    FrameRow,
    JudgeStateRow,
    PlanRow,
    RankRow,
    RunRow,
    StandingRow,
)
from internist_server.store.tile_tables import BlockRow, BundleRow

_ID_BYTES, _VALUE_BYTES = 8, 4
_OPEN: Final = ("pending", "firing")


@dataclass(frozen=True, slots=True)
class Invariant:
    """One claim."""

    claim: str
    breaches: Callable[[Session], int]


def _count(query: Callable[[], Select[Any]]) -> Callable[[Session], int]:
    def count(session: Session) -> int:
        return session.scalar(select(func.count()).select_from(query().subquery())) or 0

    return count


def _plan_of(row: Any) -> Any:
    return (PlanRow.attempt_id == row.attempt_id) & (PlanRow.rank == row.rank) & (PlanRow.number == row.plan)


def _frames_without_plan() -> Select[Any]:
    return select(FrameRow.sequence).outerjoin(PlanRow, _plan_of(FrameRow)).where(PlanRow.number.is_(None))


def _frames_of_another_width() -> Select[Any]:
    wanted = func.length(PlanRow.series) * _VALUE_BYTES / _ID_BYTES
    return select(FrameRow.sequence).join(PlanRow, _plan_of(FrameRow)).where(func.length(FrameRow.values) != wanted)


def _loose_that_are_not_counted() -> Select[Any]:
    of_rank = (FrameRow.attempt_id == RankRow.attempt_id) & (FrameRow.rank == RankRow.rank)
    held = select(func.count()).where(of_rank).correlate(RankRow).scalar_subquery()
    return select(RankRow.rank).where(held != RankRow.loose)


def _blocks_without_tiles() -> Select[Any]:
    return (
        select(BlockRow.id).outerjoin(BundleRow, BundleRow.block_id == BlockRow.id)
        .where(BlockRow.count > 0, BundleRow.block_id.is_(None))
    )  # fmt: skip


def _runs_that_stand_nowhere() -> Select[Any]:
    return select(RunRow.id).outerjoin(StandingRow).where(StandingRow.run_id.is_(None))


def _alerts_that_are_open_twice() -> Select[Any]:
    query = select(AlertRow.rule).where(AlertRow.state.in_(_OPEN), AlertRow.condition != "user")
    query = query.group_by(AlertRow.attempt_id, AlertRow.series_id, AlertRow.rule)
    return query.having(func.count() > 1)


def _alerts_of_what_has_ended() -> Select[Any]:
    query = select(AlertRow.id).join(AttemptRow, AttemptRow.id == AlertRow.attempt_id)
    return query.where(AlertRow.state.in_(_OPEN), AttemptRow.finished_at_ms.is_not(None))


def _judged_beyond_what_came() -> Select[Any]:
    last = select(func.max(RankRow.last_step)).where(RankRow.attempt_id == JudgeStateRow.attempt_id)
    reached = last.correlate(JudgeStateRow).scalar_subquery()
    return select(JudgeStateRow.attempt_id).where(JudgeStateRow.judged_step > func.coalesce(reached, NEVER))


def _ends_that_contradict() -> Select[Any]:
    return select(DeliveryRow.notification_id).where(
        DeliveryRow.delivered_at_ms.is_not(None), DeliveryRow.given_up_at_ms.is_not(None)
    )


def _frames_that_were_not_acknowledged(session: Session) -> int:
    """Frames whose numbers are not among those that their ranks were told of: they would be stored once more."""
    found = 0
    for rank in session.scalars(select(RankRow)).all():
        is_told = or_(*(FrameRow.sequence.between(first, last) for first, last in rank.delivered))
        query = select(func.count()).select_from(FrameRow)
        query = query.where(FrameRow.attempt_id == rank.attempt_id, FrameRow.rank == rank.rank)
        found += session.scalar(query.where(~is_told) if rank.delivered else query) or 0
    return found


def _tiles_that_cannot_be_read(session: Session) -> int:
    """Blocks of which the heads, or a tile, are not what their count says."""
    found = 0
    for attempt_id in session.scalars(select(AttemptRow.id)).all():
        for block in list_blocks(session, attempt_id, first=0, last=LAST_STEP):
            try:
                series, _ = read_tiles(session, [block], block.series.tolist())[block.id]
                found += len(series) != len(block.series)
            except (ValueError, LookupError, OSError, zlib.error):
                found += 1
        list_judged_blocks(session, attempt_id, first=0, last=LAST_STEP)
    return found


INVARIANTS: Final = (
    Invariant("every frame has its plan", _count(_frames_without_plan)),
    Invariant("every frame is as wide as its plan", _count(_frames_of_another_width)),
    Invariant("every stored frame was acknowledged", _frames_that_were_not_acknowledged),
    Invariant("frames that lie in no tile are counted", _count(_loose_that_are_not_counted)),
    Invariant("every block has its tiles", _count(_blocks_without_tiles)),
    Invariant("every tile can be read", _tiles_that_cannot_be_read),
    Invariant("nothing is judged beyond what came", _count(_judged_beyond_what_came)),
    Invariant("it is known how every run stands", _count(_runs_that_stand_nowhere)),
    Invariant("of a series and a rule one alert is open", _count(_alerts_that_are_open_twice)),
    Invariant("nothing fires of what has ended", _count(_alerts_of_what_has_ended)),
    Invariant("no message was delivered and given up", _count(_ends_that_contradict)),
)
