"""What is known of the runs that were busy last, in memory, so that a live frame reads little more than a cursor.

The database is what counts: a run's cursor rises with every change, and what was kept at another cursor (another server
has taken a request, a transaction was undone) is read anew.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.orm import Session

from internist_server.store import series as series_store
from internist_server.store.attempts import Attempt, find_attempt, newest_attempt
from internist_server.store.evidence import is_measured
from internist_server.store.frames import TIMES_LOOKED_AT, recent_times
from internist_server.store.judgements import JudgeState, load_state
from internist_server.store.ranks import Rank, find_rank
from internist_server.store.roster import Roster, load_roster
from internist_server.store.series import StoredPlan

MAX_RANKS: Final = 200_000
"""Ranks that rosters keep in memory together, at some hundred bytes each."""
MAX_SPEAKERS: Final = 256
"""Ranks of an attempt that are kept with all that they have delivered."""


@dataclass(slots=True)
class KnownAttempt:
    """What is known of an attempt, as of its run's cursor. Whoever changes something of it says so here, too."""

    attempt: Attempt
    roster: Roster
    judge: JudgeState
    next_check_ms: int | None = None
    """When time alone will bring something of its run, as it is stored; None: never, or it is not known."""
    _ranks: dict[int, Rank] = field(default_factory=dict)
    _plans: dict[tuple[int, int], StoredPlan | None] = field(default_factory=dict)
    _plan_count: int | None = None
    _is_measured: bool | None = None
    _times: list[tuple[int, int]] | None = None

    def rank(self, session: Session, number: int) -> Rank | None:
        """One of its ranks; None if it never spoke."""
        if number not in self._ranks and (found := find_rank(session, self.attempt.id, number)) is not None:
            self._keep(found)
        return self._ranks.get(number)

    def put(self, rank: Rank) -> None:
        """Take over what is known of a rank now."""
        self._keep(rank)
        self.roster.put(rank)

    def plan(self, session: Session, rank: int, number: int) -> StoredPlan | None:
        """The plan that a rank declared last under a number; None if it declared none."""
        if (rank, number) not in self._plans:
            self._plans[rank, number] = series_store.find_plan(session, self.attempt.id, rank, number)
        return self._plans[rank, number]

    def put_plan(self, rank: int, number: int, plan: StoredPlan) -> None:
        """Take over a plan that a rank has declared under a number."""
        self._plans[rank, number] = plan
        self._plan_count = None

    def count_plans(self, session: Session) -> int:
        """How many plans it has."""
        if self._plan_count is None:
            self._plan_count = series_store.count_plans(session, self.attempt.id)
        return self._plan_count

    def is_measured(self, session: Session) -> bool:
        """Whether a rank says that something of its model is measured."""
        if self._is_measured is None:
            self._is_measured = is_measured(session, self.attempt.id)
        return self._is_measured

    def forget_coverage(self) -> None:
        """A rank has told what is measured of its model."""
        self._is_measured = None

    def times(
        self, session: Session, *, up_to: int, added: Sequence[tuple[int, int]] | None = None
    ) -> list[tuple[int, int]]:
        """The newest (step, measured at) up to a step, newest first.

        Args:
            added: of all frames that came since this was asked last, all of steps up to `up_to`; None: not known.
        """
        known = self._times
        if known is None or added is None or any(step <= known[0][0] for step, _ in added if known):
            found = recent_times(session, self.attempt.id, up_to=up_to)
        else:
            found = [*sorted(added, reverse=True), *known][:TIMES_LOOKED_AT]
        self._times = None if added is None else found
        return found

    def forget_times(self) -> None:
        """Frames of earlier steps have come."""
        self._times = None

    def _keep(self, rank: Rank) -> None:
        if len(self._ranks) >= MAX_SPEAKERS:
            self._ranks.clear()
        self._ranks[rank.rank] = rank


@dataclass(slots=True)
class KnownRun:
    """What is known of a run: as of which cursor, which attempt is its newest, and its attempts by name."""

    cursor: int
    _newest: str | None = None
    _attempts: dict[str, KnownAttempt] = field(default_factory=dict)

    def find(self, session: Session, run: str, attempt: str) -> KnownAttempt:
        """The attempt of that name.

        Raises:
            AttemptNotFound: the run has none.
        """
        return self._attempts.get(attempt) or self.get(session, find_attempt(session, run, attempt))

    def newest(self, session: Session, run: str) -> KnownAttempt:
        """The newest attempt of the run.

        Raises:
            RunNotFound: it has none.
        """
        if self._newest is not None:
            return self.find(session, run, self._newest)
        attempt = newest_attempt(session, run)
        self._newest = attempt.name
        return self.get(session, attempt)

    def get(self, session: Session, attempt: Attempt) -> KnownAttempt:
        """What is known of an attempt, which is this now."""
        known = self._attempts.get(attempt.name)
        if known is None:
            judge = load_state(session, attempt.id)
            roster = load_roster(session, attempt.id, judged_step=judge.judged_step)
            known = self._attempts[attempt.name] = KnownAttempt(attempt, roster, judge)
        known.attempt = attempt
        return known

    @property
    def ranks(self) -> int:
        """How many its rosters hold."""
        return sum(len(known.roster) for known in self._attempts.values())


class KnownRuns:
    """What is known by run. Whoever looks holds the run's lock, and says which cursor the run is at."""

    def __init__(self, *, max_ranks: int = MAX_RANKS) -> None:
        self._max_ranks = max_ranks
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, KnownRun] = OrderedDict()

    def look(self, run: str, cursor: int) -> KnownRun:
        """What is known of a run that is at this cursor."""
        with self._lock:
            kept = self._kept.get(run)
            if kept is None or kept.cursor != cursor:
                kept = self._kept[run] = KnownRun(cursor)
                self._make_room()
            self._kept.move_to_end(run)
        return kept

    def advance(self, run: str) -> None:
        """The run's cursor has risen by one, and what was changed with it is known."""
        with self._lock:
            if (kept := self._kept.get(run)) is not None:
                kept.cursor += 1

    def forget_run(self, run: str) -> None:
        """Drop what is known of a run: a transaction was undone, or the run has another attempt."""
        with self._lock:
            self._kept.pop(run, None)

    def _make_room(self) -> None:
        """Drop the runs that were asked for longest ago, until the others fit; the newest stays."""
        held = sum(kept.ranks for kept in self._kept.values())
        while held > self._max_ranks and len(self._kept) > 1:
            held -= self._kept.popitem(last=False)[1].ranks
