"""The thread that turns frames and judgements into tiles, a block a transaction, while others go on."""

import logging
import threading
from typing import Final

from internist_server.errors import NotFound
from internist_server.store.attempts import lock_run
from internist_server.store.compaction import Loose, Sizes, list_loose, move_frames, move_judgements
from internist_server.store.database import Database

log = logging.getLogger(__name__)

EVERY_S: Final = 5.0


class Compactor(threading.Thread):
    """Moves what is settled into tiles. Ended at any statement it has done nothing, or a block."""

    def __init__(self, database: Database, *, sizes: Sizes | None = None, every_s: float = EVERY_S) -> None:
        super().__init__(name="internist-compactor", daemon=True)
        self._database = database
        self._sizes = sizes or Sizes()
        self._every_s = every_s
        self._stopping = threading.Event()
        self._in_vain: dict[tuple[int, int], int] = {}
        """Loose frames of ranks of which none could be moved: nothing is tried until there are others."""

    def run(self) -> None:
        """Compact until stopped."""
        while not self._stopping.wait(self._every_s):
            try:
                self.compact()
            except Exception:
                log.exception("compacting failed; it is tried again in %s s", self._every_s)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()

    def compact(self) -> int:
        """Make every block that can be made now; how many were."""
        with self._database.read() as session:
            found = list_loose(session, self._sizes)
        blocks = 0
        for loose in found:
            key = (loose.attempt_id, loose.rank)
            if self._in_vain.get(key) == loose.frames:
                continue
            try:
                made = self._compact_rank(loose)
            except NotFound:
                log.info("run %s was deleted while it was compacted", loose.run)
                continue
            blocks += made
            if not made:
                self._in_vain[key] = loose.frames
            if self._stopping.is_set():
                break
        return blocks

    def _compact_rank(self, loose: Loose) -> int:
        """Make blocks of a rank's frames, and of its attempt's judgements; how many."""
        made = 0
        while not self._stopping.is_set():
            with self._database.write() as session:
                lock_run(session, loose.run)
                moved = move_frames(session, loose, self._sizes)
                moved += move_judgements(session, loose.attempt_id, self._sizes, is_over=loose.is_over)
            if not moved:
                break
            made += 1
        return made
