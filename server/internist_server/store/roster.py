"""The ranks of an attempt side by side, and what follows from all of them together.

Each thing that is known of ranks is a column, so that what concerns all of them is a few array operations, however many
they are: every request of every rank asks for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from internist_server.store.frames import first_received
from internist_server.store.merge import Ids, Mask
from internist_server.store.ranks import Rank, list_ranks
from internist_server.store.tables import NEVER

MAX_POWERS: Final = 16
"""Numbers that a rank may tell of its sampling."""
_NO_MOMENT: Final = -1
_FIRST_ROWS: Final = 8
_COLUMNS: Final = np.dtype(
    [
        ("received_ms", np.int64),
        ("heartbeat_ms", np.int64),
        ("frame_ms", np.int64),
        ("still_ms", np.int64),
        ("last_step", np.int64),
        ("known_step", np.int64),
        ("reached", np.int64),
        ("delivered", np.int64),
        ("has_finished", np.bool_),
        ("powers_told", np.int8),
        ("powers", np.int8, (MAX_POWERS,)),
    ]
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The first step that has frames and is not judged."""

    step: int
    since_ms: int
    """When the first of its frames came."""


class Roster:
    """What is known of the ranks of one attempt. A rank is put in anew whenever anything of it has changed."""

    def __init__(self, ranks: Iterable[Rank] = (), *, waiting: Waiting | None = None) -> None:
        self.waiting = waiting
        self._places: dict[int, int] = {}
        self._table = np.zeros(_FIRST_ROWS, _COLUMNS)
        self._pauses: dict[int, str] = {}
        self._refusals: dict[int, str] = {}
        for rank in ranks:
            self.put(rank)

    def __len__(self) -> int:
        return len(self._places)

    def put(self, rank: Rank) -> None:
        """Take over what is known of a rank now."""
        place = self._places.setdefault(rank.rank, len(self._places))
        if place == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        powers = (*rank.powers, *(0,) * (MAX_POWERS - len(rank.powers)))
        self._table[place] = (
            rank.received_at_ms,
            _moment(rank.heartbeat_at_ms),
            _moment(rank.frame_at_ms),
            still_ms(rank),
            rank.last_step,
            max(rank.last_step, rank.told_step),
            rank.reached,
            max(rank.last_step - 1, rank.sampled_step),
            rank.finished_at_ms is not None,
            len(rank.powers),
            powers,
        )
        _keep(self._pauses, rank.rank, rank.pause)
        _keep(self._refusals, rank.rank, (rank.refusal or "no reason is known") if rank.refused else "")

    def wait_for(self, step: int, *, now_ms: int) -> None:
        """A frame of a step that is not judged has come."""
        if self.waiting is None or step < self.waiting.step:
            self.waiting = Waiting(step, now_ms)

    @property
    def contact_ms(self) -> int | None:
        """When anything was heard of any rank last; None without ranks."""
        return _latest(np.maximum(self._column("received_ms"), self._column("heartbeat_ms")))

    @property
    def heartbeat_ms(self) -> int | None:
        """When a heartbeat came last; None: none ever did."""
        return _latest(self._column("heartbeat_ms"))

    @property
    def frame_ms(self) -> int | None:
        """When a frame came last; None: none ever did."""
        return _latest(self._column("frame_ms"))

    @property
    def last_step(self) -> int | None:
        """The last step of which anything is known; None: nothing is."""
        return _latest(self._column("known_step"))

    @property
    def reached(self) -> int:
        """The last step that any rank is known to have come to; `NEVER` if none."""
        return int(self._column("reached").max(initial=NEVER))

    @property
    def was_live(self) -> bool:
        """Whether a rank ever said that it lives."""
        return bool((self._column("heartbeat_ms") != _NO_MOMENT).any())

    @property
    def still_ms(self) -> int | None:
        """How long the step of no rank that lives had moved when each said so last; None: none lives."""
        still = self._column("still_ms")[self._lives()]
        return int(still.min()) if still.size else None

    @property
    def pause(self) -> str:
        """What the lowest rank that lives and pauses says that it pauses for; empty: none does."""
        if not self._pauses:
            return ""
        lives = self._lives()
        pausing = [rank for rank in self._pauses if lives[self._places[rank]]]
        return self._pauses[min(pausing)] if pausing else ""

    @property
    def refusal(self) -> str | None:
        """Why frames of the lowest rank of which some are missing were refused; None: none are missing."""
        return self._refusals[min(self._refusals)] if self._refusals else None

    @property
    def powers(self) -> tuple[int, ...]:
        """The largest powers of the ranks that train, class by class; empty where fewer than two have told."""
        told = self._column("powers_told")
        trains = (told > 0) & ~self._column("has_finished")
        if trains.sum() < 2:
            return ()
        largest = self._column("powers")[trains].max(axis=0)
        return tuple(largest[: int(told[trains].max())].tolist())

    def training(self) -> tuple[Ids, Ids]:
        """Of the ranks that have not finished: when anything but a heartbeat came last, and the last step of which all
        of their measured values have come."""
        trains = ~self._column("has_finished")
        return self._column("received_ms")[trains], self._column("delivered")[trains]

    def count_from(self, step: int) -> int:
        """How many ranks have sent frames of a step, or of a later one."""
        return int((self._column("last_step") >= step).sum())

    def _lives(self) -> Mask:
        lives: Mask = (self._column("heartbeat_ms") != _NO_MOMENT) & ~self._column("has_finished")
        return lives

    def _column(self, name: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = self._table[name][: len(self._places)]
        return column


def load_roster(session: Session, attempt_id: int, *, judged_step: int) -> Roster:
    """The roster of an attempt, as it is stored."""
    return Roster(list_ranks(session, attempt_id), waiting=load_waiting(session, attempt_id, after=judged_step))


def load_waiting(session: Session, attempt_id: int, *, after: int) -> Waiting | None:
    """The first step that waits, as it is stored; `after`: the last that is judged."""
    found = first_received(session, attempt_id, after=after)
    return None if found is None else Waiting(*found)


def still_ms(rank: Rank) -> int:
    """How long a rank's step had not moved when it last said that it lives; a frame of a later step has moved it."""
    said_at_ms = rank.heartbeat_at_ms or 0
    moved_at_ms = said_at_ms - (rank.step_age_ms or 0)
    if rank.last_step > (rank.heartbeat_step or 0):
        moved_at_ms = max(moved_at_ms, rank.frame_at_ms or 0)
    return said_at_ms - moved_at_ms


def _keep(texts: dict[int, str], rank: int, text: str) -> None:
    """Keep what a rank says, or that it says nothing."""
    if text:
        texts[rank] = text
    else:
        texts.pop(rank, None)


def _moment(moment_ms: int | None) -> int:
    return _NO_MOMENT if moment_ms is None else moment_ms


def _latest(column: NDArray[np.int64]) -> int | None:
    """The largest number of a column; None where it is below zero, as what is not known is, or there are no ranks."""
    largest = int(column.max(initial=_NO_MOMENT))
    return None if largest < 0 else largest
