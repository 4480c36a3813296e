"""The verdict board of an attempt, read from the judge's stored state and kept until that changes."""

import threading
from collections import OrderedDict
from typing import Final

from sqlalchemy.orm import Session

from internist.schema.views import Verdicts
from internist_server.progress import load_judge
from internist_server.store.attempts import Attempt
from internist_server.store.judgements import load_version

MAX_BOARDS: Final = 32


class Boards:
    """The boards that were asked for lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boards: OrderedDict[tuple[int, int, int | None], Verdicts] = OrderedDict()

    def read(self, session: Session, attempt: Attempt, *, limit: int | None) -> Verdicts:
        """The board as of the last judged step; its members cut to `limit`."""
        key = (attempt.id, load_version(session, attempt.id), limit)
        with self._lock:
            found = self._boards.get(key)
        if found is None:
            found = load_judge(session, attempt).verdicts(attempt.run, attempt.name, limit=limit)
            with self._lock:
                self._boards[key] = found
                while len(self._boards) > MAX_BOARDS:
                    self._boards.popitem(last=False)
        return found
