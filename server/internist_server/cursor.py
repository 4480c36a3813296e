"""How far a rank has come. Measured frames and heartbeats say so; logged scalars only follow.

Whoever logs a scalar chooses its step, and some choose another axis (tokens seen, epochs) or a far number by mistake.
Judging goes by steps and never back, so one far step that is believed would end it for the run.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy.orm import Session

from internist_server.store import frames
from internist_server.store.attempts import LAST_STEP, Attempt, has_outline
from internist_server.store.ranks import Rank
from internist_server.store.series import has_sampled_plan
from internist_server.store.tables import NEVER

FAR: Final = 1_000_000
"""Steps between two measured frames that are not believed until a third one, or a heartbeat, is there too."""


def advance_cursor(session: Session, attempt: Attempt, rank: Rank, *, measured: Collection[int] = ()) -> None:
    """Bring a rank's steps up to date after its frames were stored, or a heartbeat came.

    Args:
        measured: steps that the rank has now delivered in measured frames.
    """
    rank.sampled_step = max(rank.sampled_step, _newest_credible(session, attempt, rank, measured))
    rank.last_step = max(rank.last_step, rank.sampled_step, _newest_logged(session, attempt, rank))


def note_end(rank: Rank, step: int) -> None:
    """Note the step at which a rank says that it ended, unless that is far beyond all that is known."""
    known = rank.reached
    if known == NEVER or step <= known + FAR:
        rank.heartbeat_step = max(rank.told_step, step)


def _newest_credible(session: Session, attempt: Attempt, rank: Rank, measured: Collection[int]) -> int:
    """The newest of these steps, unless it stands alone far beyond all that is known."""
    known = max(rank.sampled_step, rank.told_step)
    far = {step for step in measured if step > known + FAR} if known > NEVER else set()
    if len(far) == 1 and not _is_confirmed(session, attempt, rank, step=next(iter(far)), known=known):
        return max(set(measured) - far, default=NEVER)
    return max(measured, default=NEVER)


def _is_confirmed(session: Session, attempt: Attempt, rank: Rank, *, step: int, known: int) -> bool:
    """Whether the rank has sent another measured frame far beyond what is known."""
    others = (
        frames.is_measured_between(session, attempt.id, rank.rank, first=known + FAR + 1, last=step - 1),
        frames.is_measured_between(session, attempt.id, rank.rank, first=step + 1, last=LAST_STEP),
    )
    return any(others)


def _newest_logged(session: Session, attempt: Attempt, rank: Rank) -> int:
    """The newest step of the rank's frames, logged scalars too; `NEVER` where no frame moves it."""
    newest = max(rank.plan_steps.values(), default=NEVER)
    if newest <= rank.last_step:
        return NEVER
    farthest = _farthest_logged(session, attempt, rank)
    if newest <= farthest:
        return newest
    found = frames.newest_step(session, attempt.id, rank.rank, after=rank.last_step, up_to=farthest)
    return NEVER if found is None else found


def _farthest_logged(session: Session, attempt: Attempt, rank: Rank) -> int:
    """The last step of which a logged scalar can be: behind the next measured frame there is nothing yet.

    A rank that measures nothing and sends no heartbeats only logs: its scalars are all there is to go by.
    """
    told = rank.told_step
    if rank.sampled_step > NEVER or told > NEVER:
        return max(rank.sampled_step + attempt.every if rank.sampled_step > NEVER else NEVER, told + 1)
    if has_outline(session, attempt) or has_sampled_plan(session, attempt.id, rank.rank):
        return attempt.start_step + attempt.every
    return LAST_STEP
