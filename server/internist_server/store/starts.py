"""The first step of an attempt, corrected: a client may learn it only after it has introduced itself."""

from dataclasses import replace

from sqlalchemy.orm import Session

from internist_server.store.attempts import LAST_STEP, Attempt
from internist_server.store.frames import is_measured_between
from internist_server.store.tables import AttemptRow


def correct_start(session: Session, attempt: Attempt, start_step: int) -> Attempt:
    """The attempt with a first step that its client tells later, where it is larger than the one that is known.

    An optimizer's state that is loaded after the model was watched says how many steps were made before. A step that
    was measured is a part of the attempt: with a measured frame below `start_step` nothing changes.
    """
    if not attempt.start_step < start_step <= LAST_STEP:
        return attempt
    if is_measured_between(session, attempt.id, first=0, last=start_step - 1):
        return attempt
    session.get_one(AttemptRow, attempt.id).start_step = start_step
    session.flush()
    return replace(attempt, start_step=start_step)
