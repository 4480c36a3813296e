"""What people do about alerts: silence them, take back what they said, and set the rules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from internist.schema.alerts import Alert, Silence
from internist.schema.wire import Threshold
from internist_server.alerts.rule_files import require_thresholds
from internist_server.alerts.rules import RuleSet
from internist_server.ingest import Ingest
from internist_server.rulebook import RuleBook
from internist_server.store import alerts
from internist_server.store.attempts import touch_run
from internist_server.store.database import Database
from internist_server.store.labels import change_labels
from internist_server.store.rules import set_run_thresholds
from internist_server.store.silences import add_silence, end_silence


class Handling:
    """Does what people ask for, each in one transaction. One object serves all threads."""

    def __init__(self, database: Database, ingest: Ingest, book: RuleBook, *, clock: Callable[[], int]) -> None:
        self._database, self._ingest, self._book, self._clock = database, ingest, book, clock

    def silence(self, *, matchers: Mapping[str, str], author: str, reason: str, seconds: float) -> Silence:
        """A person asks not to be told of what matches for a while."""
        now_ms = self._clock()
        until_ms = now_ms + int(seconds * 1000)
        with self._database.write() as session:
            return add_silence(
                session, matchers=matchers, author=author, reason=reason, now_ms=now_ms, expires_at_ms=until_ms
            )

    def end_silence(self, silence: int) -> Silence:
        """A person takes a silence back: what still fires is told at the next tick.

        Raises:
            SilenceNotFound: there is no such silence.
        """
        with self._database.write() as session:
            return end_silence(session, silence, now_ms=self._clock())

    def withdraw(self, alert: int) -> Alert:
        """A person takes the acknowledgement of an alert back.

        Raises:
            AlertNotFound: there is no such alert.
        """
        run = self._ingest.run_of(alert)
        with self._ingest.transaction(run) as session:
            seen = alerts.withdraw_acknowledgement(session, alert)
            is_queued = self._ingest.tell(session, run, now_ms=self._clock())
        self._ingest.announce(run, is_queued=is_queued)
        return seen

    def label(self, run: str, changes: Mapping[str, Any]) -> None:
        """A person names, tags, notes, pins or archives a run.

        Raises:
            RunNotFound: there is no such run.
        """
        with self._ingest.transaction(run) as session:
            change_labels(session, run, changes)
            touch_run(session, run)
        self._ingest.announce(run, is_queued=False)

    def set_rules(self, rules: RuleSet) -> RuleSet:
        """Set the rules of the API; live runs are judged by them from their next step on.

        Raises:
            Conflict: a rule of the file has the name of one of them.
            Invalid: a rule names a receiver that there is not.
        """
        with self._database.write() as session:
            return self._book.replace(session, rules, now_ms=self._clock())

    def set_thresholds(self, run: str, thresholds: Sequence[Threshold]) -> tuple[Threshold, ...]:
        """Set the thresholds of one run; it is judged by them from its next step on.

        Raises:
            RunNotFound: there is no such run.
            Invalid: a threshold cannot be.
        """
        require_thresholds(thresholds)
        with self._ingest.transaction(run) as session:
            set_run_thresholds(session, run, [asdict(one) for one in thresholds])
            return self._book.thresholds(session, run)
