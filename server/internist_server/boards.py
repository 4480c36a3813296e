"""The verdict board of an attempt, read from the judge's stored state and kept until that changes."""

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Final

from sqlalchemy.orm import Session

from internist.schema.views import Verdicts
from internist_server.judges import restore
from internist_server.store.attempts import Attempt
from internist_server.store.evidence import read_evidence
from internist_server.store.judgements import Summary, load_summaries, load_version
from internist_server.store.ranks import list_ranks
from internist_server.store.roster import Roster

MAX_BOARDS: Final = 32


class Boards:
    """The boards that were asked for lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boards: OrderedDict[tuple[str, str, int, int, int | None, bool], Verdicts] = OrderedDict()

    def read(self, session: Session, attempt: Attempt, *, limit: int | None) -> Verdicts:
        """The board as of the last judged step, weighed by what is known beside; its members cut to `limit`."""
        board = self._judged(session, attempt, limit=limit)
        summary = load_summaries(session, [attempt.id]).get(attempt.id, Summary())
        evidence = read_evidence(session, attempt.id, Roster(list_ranks(session, attempt.id)), summary)
        state, sentence = evidence.weigh(board.state, board.sentence)
        return (
            board
            if (state, sentence) == (board.state, board.sentence)
            else replace(board, state=state, sentence=sentence)
        )

    def _judged(self, session: Session, attempt: Attempt, *, limit: int | None) -> Verdicts:
        is_over = attempt.finished_at_ms is not None
        # by name, too: SQLite gives the id of a deleted attempt to another
        key = (attempt.run, attempt.name, attempt.id, load_version(session, attempt.id), limit, is_over)
        with self._lock:
            found = self._boards.get(key)
        if found is None:
            judge = restore(session, attempt).judge
            found = judge.verdicts(attempt.run, attempt.name, limit=limit, is_over=is_over)
            with self._lock:
                self._boards[key] = found
                while len(self._boards) > MAX_BOARDS:
                    self._boards.popitem(last=False)
        return found
