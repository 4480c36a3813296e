"""Frames as they came: which there are, of which steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import Segment
from internist_server.store.blocks import list_blocks
from internist_server.store.merge import Ids
from internist_server.store.series import list_plans
from internist_server.store.tables import FrameRow, PlanRow

TIMES_LOOKED_AT: Final = 64
"""Frames by which it is told how long a step takes."""
_FRAME = FrameRow.__table__.c
_ADD = insert(FrameRow.__table__)  # type: ignore[arg-type]
_IS_OVER = (_FRAME.attempt_id == bindparam("attempt")) & (_FRAME.step > bindparam("after"))
_PENDING = (
    select(_FRAME.step)
    .where(_IS_OVER, _FRAME.step <= bindparam("up_to"))
    .distinct()
    .order_by(_FRAME.step)
    .limit(bindparam("limit"))
)
_PENDING_TIMELY = _PENDING.where(_FRAME.late.is_(False))
_FIRST_RECEIVED = (
    select(_FRAME.step, func.min(_FRAME.received_at_ms)).where(_IS_OVER).group_by(_FRAME.step).order_by(_FRAME.step)
).limit(1)
_NEWEST = select(func.max(_FRAME.step)).where(
    _IS_OVER, _FRAME.rank == bindparam("rank"), _FRAME.step <= bindparam("up_to")
)
_BETWEEN = (
    (_FRAME.attempt_id == bindparam("attempt"))
    & (_FRAME.step >= bindparam("first"))
    & (_FRAME.step <= bindparam("last"))
)
_STEPS = select(_FRAME.step).where(_BETWEEN).distinct()
_STEPS_AND_PLANS = select(_FRAME.step, _FRAME.plan).where(_BETWEEN).distinct()
_LOWEST = (
    select(func.min(_FRAME.rank + 0))  # not by the key, in whose order the lowest may come after all others
    .where(_FRAME.attempt_id == bindparam("attempt"), _FRAME.step == bindparam("up_to"))
    .scalar_subquery()
)
_RECENT = (
    select(_FRAME.step, _FRAME.measured_at_ms)
    .where(_FRAME.attempt_id == bindparam("attempt"), _FRAME.step <= bindparam("up_to"), _FRAME.rank == _LOWEST)
    .order_by(_FRAME.step.desc())
    .limit(bindparam("limit"))
)


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A frame that ingest has found good."""

    sequence: int
    step: int
    plan: int
    measured_at_ms: int
    skipped: bool
    late: bool
    values: bytes


def add_frames(session: Session, attempt_id: int, rank: int, frames: Sequence[NewFrame], *, now_ms: int) -> None:
    """Append frames of one rank."""
    if not frames:
        return
    rows = [
        {
            "attempt_id": attempt_id,
            "rank": rank,
            "sequence": frame.sequence,
            "step": frame.step,
            "plan": frame.plan,
            "measured_at_ms": frame.measured_at_ms,
            "received_at_ms": now_ms,
            "skipped": frame.skipped,
            "late": frame.late,
            "values": frame.values,
        }
        for frame in frames
    ]
    session.execute(_ADD, rows)


def pending_steps(
    session: Session, attempt_id: int, *, after: int, up_to: int, limit: int, is_timely: bool = False
) -> list[int]:
    """Steps that have frames, over `after`, in order; `is_timely`: frames that came before their step was judged."""
    query = _PENDING_TIMELY if is_timely else _PENDING
    return list(session.scalars(query, {"attempt": attempt_id, "after": after, "up_to": up_to, "limit": limit}))


def first_received(session: Session, attempt_id: int, *, after: int) -> tuple[int, int] | None:
    """The first step over `after` that has frames, and when the first of them came; None without one."""
    found = session.execute(_FIRST_RECEIVED, {"attempt": attempt_id, "after": after}).first()
    return None if found is None else (int(found[0]), int(found[1]))


def newest_step(session: Session, attempt_id: int, rank: int, *, after: int, up_to: int) -> int | None:
    """The newest step of a rank's frames in a range; None without one."""
    asked = {"attempt": attempt_id, "rank": rank, "after": after, "up_to": up_to}
    found: int | None = session.scalar(_NEWEST, asked)
    return found


def is_measured_between(session: Session, attempt_id: int, rank: int | None = None, *, first: int, last: int) -> bool:
    """Whether a rank (None: any) has sent a frame of one of these steps that holds more than logged scalars."""
    is_of_frame = (
        (PlanRow.attempt_id == FrameRow.attempt_id)
        & (PlanRow.rank == FrameRow.rank)
        & (PlanRow.number == FrameRow.plan)
    )
    found = select(FrameRow.step).join(PlanRow, is_of_frame).where(FrameRow.attempt_id == attempt_id)
    if rank is not None:
        found = found.where(FrameRow.rank == rank)
    found = found.where(FrameRow.step >= first, FrameRow.step <= last, PlanRow.is_sampled)
    if session.scalar(found.limit(1)) is not None:
        return True
    blocks = list_blocks(session, attempt_id, first=first, last=last)
    if not blocks:
        return False
    sampled = {(plan.rank, plan.number) for plan in list_plans(session, attempt_id) if plan.is_sampled}
    return any(
        ((block.steps >= first) & (block.steps <= last)).any()
        for block in blocks
        if (block.rank, block.plan) in sampled and rank in (None, block.rank)
    )


def recent_times(
    session: Session, attempt_id: int, *, up_to: int, limit: int = TIMES_LOOKED_AT
) -> list[tuple[int, int]]:
    """The newest (step, measured at) of an attempt up to a step, newest first: of the lowest rank that has measured it.

    All ranks measure about the same moments: those of as many frames of all of them would be those of a step or two.
    """
    asked = {"attempt": attempt_id, "up_to": up_to, "limit": limit}
    return [(row[0], row[1]) for row in session.execute(_RECENT, asked)]


def steps_between(
    session: Session, segment: Segment, *, first: int, last: int, plans: Sequence[int] | None = None
) -> Ids:
    """Steps of the frames of a segment in a window with their plans, (frames, 2), by step; of all plans or of these."""
    first, last = max(first, segment.first), min(last, segment.last)
    asked = {"attempt": segment.attempt_id, "first": first, "last": last}
    rows = session.execute(_STEPS_AND_PLANS, asked).all()
    loose = np.array([(row[0], row[1]) for row in rows if plans is None or row[1] in plans], np.int64).reshape(-1, 2)
    blocks = list_blocks(session, segment.attempt_id, first=first, last=last, plans=plans)
    pairs = [np.stack([block.steps, np.full_like(block.steps, block.plan)], axis=1) for block in blocks]
    found = np.concatenate([loose, *pairs])
    found = found[(found[:, 0] >= first) & (found[:, 0] <= last)]
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    is_new = np.ones(len(found), bool)
    is_new[1:] = (found[1:] != found[:-1]).any(axis=1)
    return found[is_new]


def loose_steps(session: Session, attempt_id: int, *, first: int, last: int) -> list[int]:
    """Steps of a window of which frames do not lie in tiles."""
    return list(session.scalars(_STEPS, {"attempt": attempt_id, "first": first, "last": last}))
