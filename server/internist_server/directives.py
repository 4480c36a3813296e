"""What the server wishes of the ranks of an attempt."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from sqlalchemy.orm import Session

from internist.schema.wire import Directive
from internist_server.store import alerts, attempts
from internist_server.store.attempts import Attempt, Rank
from internist_server.store.judgements import load_judged_step
from internist_server.store.standings import Newest

DENSE_STEPS: Final = 20
"""How long every step is wished for after a critical alert."""


def directives(session: Session, attempt: Attempt, newest: Newest) -> tuple[Directive, ...]:
    """What ranks should do: sample as rarely as the slowest of them, and at every step while a critical alert is
    fresh."""
    is_newest = newest.attempt.id == attempt.id
    ranks = newest.ranks if is_newest else attempts.list_ranks(session, attempt.id)
    judged_step = newest.judge.judged_step if is_newest else load_judged_step(session, attempt.id)
    return (*_slowest(ranks), *_dense(session, attempt, judged_step))


def _slowest(ranks: Sequence[Rank]) -> tuple[Directive, ...]:
    """The largest powers of several ranks that train, class by class: grids of the same powers hold the same steps."""
    told = [rank.powers for rank in ranks if rank.powers and rank.finished_at_ms is None]
    if len(told) < 2:
        return ()
    return (Directive(-1, "the slowest rank's sampling", tuple(map(max, zip_longest(*told, fillvalue=0)))),)


def _dense(session: Session, attempt: Attempt, judged_step: int) -> tuple[Directive, ...]:
    step = alerts.newest_critical_step(session, attempt.run)
    if step is None or step + DENSE_STEPS < judged_step:
        return ()
    return (Directive(step + DENSE_STEPS, f"a critical alert opened at step {step}"),)
