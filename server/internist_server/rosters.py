"""The rosters of the runs that were busy last, in memory, so that a request of one rank does not read all the others.

The database is what counts: a run's cursor rises with every change, and what was kept at another cursor (another server
has taken a request, a transaction was undone) is read anew.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.orm import Session

from internist_server.store.attempts import Attempt, newest_attempt
from internist_server.store.judgements import load_judged_step
from internist_server.store.roster import Roster, load_roster
from internist_server.store.standings import load_cursor

MAX_RANKS: Final = 200_000
"""Ranks that are kept in memory together, at some hundred bytes each."""


@dataclass(slots=True)
class _OfRun:
    """What is kept of a run: as of which cursor, and the rosters of its attempts."""

    cursor: int
    newest: int | None = None
    """Its newest attempt, where that was asked for."""
    rosters: dict[int, Roster] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """How many it holds."""
        return sum(len(roster) for roster in self.rosters.values())


class Rosters:
    """Rosters by run and attempt. Whoever asks for one holds the run's lock, and says afterwards what became of it."""

    def __init__(self, *, max_ranks: int = MAX_RANKS) -> None:
        self._max_ranks = max_ranks
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _OfRun] = OrderedDict()

    def get(self, session: Session, attempt: Attempt) -> Roster:
        """The roster of an attempt, as of the database."""
        cursor = load_cursor(session, attempt.run)
        with self._lock:
            kept = self._kept.get(attempt.run)
            if kept is None or kept.cursor != cursor:
                kept = self._kept[attempt.run] = _OfRun(cursor)
            self._kept.move_to_end(attempt.run)
        roster = kept.rosters.get(attempt.id)
        if roster is None:
            judged_step = load_judged_step(session, attempt.id)
            roster = kept.rosters[attempt.id] = load_roster(session, attempt.id, judged_step=judged_step)
            self._make_room()
        return roster

    def is_newest(self, session: Session, attempt: Attempt) -> bool:
        """Whether an attempt whose roster was asked for is the newest of its run."""
        kept = self._kept[attempt.run]
        if kept.newest is None:
            kept.newest = newest_attempt(session, attempt.run).id
        return kept.newest == attempt.id

    def advance(self, run: str) -> None:
        """The run's cursor has risen by one, and what was changed with it was put into the rosters, too."""
        with self._lock:
            if (kept := self._kept.get(run)) is not None:
                kept.cursor += 1

    def forget_run(self, run: str) -> None:
        """Drop what is kept of a run: a transaction was undone, or the run has another attempt."""
        with self._lock:
            self._kept.pop(run, None)

    def _make_room(self) -> None:
        """Drop the runs that were asked for longest ago, until the others fit; the newest stays."""
        with self._lock:
            held = sum(kept.ranks for kept in self._kept.values())
            while held > self._max_ranks and len(self._kept) > 1:
                held -= self._kept.popitem(last=False)[1].ranks
