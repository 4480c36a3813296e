"""The ranks of an attempt as ingest sees them: what each has delivered, and its last sign of life."""

from dataclasses import dataclass, field
from typing import Any, Final, cast

from sqlalchemy import Row, Table, bindparam, select
from sqlalchemy.orm import Session

from internist.schema.wire import MAX_NAME_LENGTH, Heartbeat
from internist_server.store.sequences import Intervals
from internist_server.store.tables import NEVER, RankRow

_NOT_KNOWN: Final = ("mesh", "loose")
"""What ingest does not look at."""
_OF_RANK: Final = tuple(column for column in RankRow.__table__.columns if column.name not in _NOT_KNOWN)
"""What `Rank` is made of."""
_RANKS: Final = cast(Table, RankRow.__table__)
_RANK: Final = _RANKS.c
_SAVE: Final = (
    _RANKS.update()
    .where(_RANK.attempt_id == bindparam("of_attempt"), _RANK.rank == bindparam("of_rank"))
    .values(loose=_RANK.loose + bindparam("added"))
)
"""Of the table, and made once: every request saves a rank. Loose frames are counted up and down by those who add and
who move them."""
_FIND: Final = select(*_OF_RANK).where(_RANK.attempt_id == bindparam("attempt"), _RANK.rank == bindparam("of_rank"))
_LIST: Final = select(*_OF_RANK).where(_RANK.attempt_id == bindparam("attempt")).order_by(_RANK.rank)


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


def find_rank(session: Session, attempt_id: int, rank: int) -> Rank | None:
    """What is known of a rank; None if it never spoke."""
    row = session.execute(_FIND, {"attempt": attempt_id, "of_rank": rank}).first()
    return None if row is None else _rank(row)


def list_ranks(session: Session, attempt_id: int) -> list[Rank]:
    """The ranks of an attempt that ever spoke, lowest first."""
    session.flush()
    return [_rank(row) for row in session.execute(_LIST, {"attempt": attempt_id})]


def save_rank(session: Session, attempt_id: int, rank: Rank, *, added: int = 0) -> None:
    """Keep what ingest has changed of a rank, of which so many frames were added."""
    session.flush()
    values = {
        "delivered": [list(interval) for interval in rank.delivered],
        "last_step": rank.last_step,
        "sampled_step": rank.sampled_step,
        "plan_steps": {str(plan): step for plan, step in rank.plan_steps.items()},
        "received_at_ms": rank.received_at_ms,
        "frame_at_ms": rank.frame_at_ms,
        "finished_at_ms": rank.finished_at_ms,
        "heartbeat_step": rank.heartbeat_step,
        "clock_offset_ms": rank.clock_offset_ms,
        "refused": rank.refused,
        "refusal": rank.refusal,
    }
    session.execute(_SAVE, {"of_attempt": attempt_id, "of_rank": rank.rank, "added": added, **values})


def save_heartbeat(session: Session, attempt_id: int, heartbeat: Heartbeat, *, now_ms: int) -> Rank | None:
    """Keep a rank's sign of life; the rank as it is then, None if it never spoke before."""
    row = session.get(RankRow, (attempt_id, heartbeat.rank))
    if row is None:
        return None
    row.heartbeat_at_ms, row.heartbeat_step, row.step_age_ms = now_ms, heartbeat.step, heartbeat.step_age_ms
    row.pause = heartbeat.pause[:MAX_NAME_LENGTH] or None
    row.powers = list(heartbeat.powers) or None
    session.flush()
    return _rank(row)


def _rank(row: RankRow | Row[Any]) -> Rank:
    return Rank(
        rank=row.rank,
        received_at_ms=row.received_at_ms,
        delivered=[list(interval) for interval in row.delivered],
        last_step=row.last_step,
        sampled_step=row.sampled_step,
        plan_steps={int(plan): step for plan, step in (row.plan_steps or {}).items()},
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
