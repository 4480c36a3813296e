"""The thread that turns frames and judgements into tiles, a block a transaction, and gives up what is too old."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy.orm import Session

from internist_server import observability
from internist_server.errors import NotFound
from internist_server.store.attempts import lock_run
from internist_server.store.compaction import Loose, Sizes, list_loose, move_frames, move_judgements
from internist_server.store.database import Database
from internist_server.store.retention import Retention, fits_since_ms, give_up, list_aged

log = logging.getLogger(__name__)

EVERY_S: Final = 5.0
GIVEN_UP_EVERY_S: Final = 600.0


class Compactor(threading.Thread):
    """Moves what is settled into tiles. Ended at any statement it has done nothing, or a block."""

    def __init__(
        self,
        database: Database,
        *,
        retention: Retention | None = None,
        sizes: Sizes | None = None,
        every_s: float = EVERY_S,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """A compactor of a database.

        Args:
            retention: for how long points are kept; None: for ever.
            clock: ms since 1970.
        """
        super().__init__(name="internist-compactor", daemon=True)
        self._retention = retention or Retention()
        self._clock = clock
        self._database = database
        self._sizes = sizes or Sizes()
        self._every_s = every_s
        self._stopping = threading.Event()
        self._in_vain: dict[tuple[int, int], int] = {}
        """Loose frames of ranks of which none could be moved: nothing is tried until there are others."""

    def run(self) -> None:
        """Compact until stopped."""
        given_up_at = 0.0
        while not self._stopping.wait(self._every_s):
            try:
                with observability.compacting():
                    self.compact()
                if self._retention.is_any and time.monotonic() - given_up_at > GIVEN_UP_EVERY_S:
                    self.give_up_old()
                    given_up_at = time.monotonic()
            except Exception:
                log.exception("compacting failed; it is tried again in %s s", self._every_s)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()

    def compact(self) -> int:
        """Make every block that can be made now; how many were."""
        with self._database.read() as session:
            found = list_loose(session, self._sizes)
        found = [one for one in found if self._in_vain.get((one.attempt_id, one.rank)) != one.frames]
        kept = self._sizes.kept
        observability.tell_backlog(sum(one.frames - (0 if one.is_over else kept) for one in found))
        blocks = 0
        for loose in found:
            try:
                made = self._compact_rank(loose)
            except NotFound:
                log.info("run %s was deleted while it was compacted", loose.run)
                continue
            blocks += made
            observability.count_blocks(made)
            if not made:
                self._in_vain[loose.attempt_id, loose.rank] = loose.frames
            if self._stopping.is_set():
                break
        return blocks

    def give_up_old(self) -> int:
        """Give up every block that is older, or too much, by what its project keeps; how many of frames."""
        with self._database.read() as session:
            found = list_aged(session)
            kept_since = {one: self._kept_since_ms(session, one) for one in {aged.project for aged in found}}
        given_up = 0
        for aged in found:
            kept_since_ms = kept_since[aged.project]
            if aged.oldest_ms >= kept_since_ms:
                continue
            try:
                with self._database.write() as session:
                    lock_run(session, aged.run)
                    blocks = give_up(session, aged, kept_since_ms=kept_since_ms)
            except NotFound:
                continue
            if blocks:
                log.info("run %s: %d blocks of old points are told by spans alone from now on", aged.run, blocks)
            given_up += blocks
        return given_up

    def _kept_since_ms(self, session: Session, project: str) -> int:
        """What of a project came before this is given up: it is too old, or there is too much that is newer."""
        too_old_ms = self._retention.kept_since_ms(project, self._clock()) or 0
        most_bytes = self._retention.most_bytes(project)
        return too_old_ms if most_bytes is None else max(too_old_ms, fits_since_ms(session, project, most_bytes))

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
