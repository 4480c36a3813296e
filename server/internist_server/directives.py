"""What the server wishes of the ranks of an attempt."""

from typing import Final

from sqlalchemy.orm import Session

from internist.schema.wire import Directive
from internist_server.store import alerts
from internist_server.store.attempts import Attempt
from internist_server.store.roster import Roster

DENSE_STEPS: Final = 20
"""How long every step is wished for after a critical alert."""


def directives(session: Session, attempt: Attempt, roster: Roster, *, judged_step: int) -> tuple[Directive, ...]:
    """What ranks should do: sample as rarely as the slowest of them, and at every step while a critical alert is
    fresh."""
    return (*_slowest(roster), *_dense(session, attempt, judged_step))


def _slowest(roster: Roster) -> tuple[Directive, ...]:
    """The largest powers of several ranks that train, class by class: grids of the same powers hold the same steps."""
    powers = roster.powers
    return (Directive(-1, "the slowest rank's sampling", powers),) if powers else ()


def _dense(session: Session, attempt: Attempt, judged_step: int) -> tuple[Directive, ...]:
    step = alerts.newest_critical_step(session, attempt.run)
    if step is None or step + DENSE_STEPS < judged_step:
        return ()
    return (Directive(step + DENSE_STEPS, f"a critical alert opened at step {step}"),)
