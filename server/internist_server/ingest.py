"""One request of a client, taken in one transaction: checked, stored, judged, and only then acknowledged."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.orm import Session

from internist.schema.alerts import Alert
from internist.schema.views import Usage
from internist.schema.wire import (
    VERSION,
    Directive,
    FramesReply,
    Heartbeat,
    HeartbeatReply,
    RunStart,
    RunStarted,
)
from internist_server import admission, observability
from internist_server.alerts.incidents import Policy
from internist_server.callers import EVERYONE, Caller
from internist_server.changes import Changes
from internist_server.clocks import ServerClock, as_server_clock, began_at_ms
from internist_server.cursor import advance_cursor
from internist_server.directives import directives
from internist_server.envelope import Contents, require_version
from internist_server.errors import AlertNotFound, AttemptNotFound, NotFound
from internist_server.intake import Intake
from internist_server.known import KnownAttempt, KnownRun, KnownRuns
from internist_server.progress import Arrived, Progress, waits_until_ms
from internist_server.rank_clocks import offset_of, read_clock
from internist_server.rulebook import RuleBook
from internist_server.run_alerts import RunAlerts
from internist_server.store import alerts, attempts, incidents, removal, sequences
from internist_server.store.database import Database
from internist_server.store.ranks import Rank, save_heartbeat, save_rank
from internist_server.store.series import count_series
from internist_server.store.silences import has_expired_between
from internist_server.store.standings import NOTHING_DUE, Newest, due_runs, look_at_all, save_standing
from internist_server.store.starts import correct_start
from internist_server.telling import moves

log = logging.getLogger(__name__)

RUNS_A_TICK: Final = 100
"""Runs that one tick looks after at most: when a thousand are lost at once, frames come in between."""


class Ingest:
    """Takes what clients send. One object serves all threads of a process."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        *,
        max_series: int,
        book: RuleBook | None = None,
        policy: Policy | None = None,
        on_queued: Callable[[], None] = lambda: None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """Ingest into a database.

        Args:
            max_series: series of one run beyond this are refused.
            book: the user's own rules; without, there are none.
            policy: when receivers are told; None: there are none, and alerts are only recorded.
            on_queued: called after a commit that queued a notification.
            clock: ms since 1970; None: the machine's.
        """
        self._database = database
        self._changes = changes
        self._max_series = max_series
        self._book, self._policy = book or RuleBook(), policy
        self._on_queued = on_queued
        self._clock = ServerClock() if clock is None else as_server_clock(clock)
        self._listening_since_ms = self._clock.listening_since_ms
        self._progress = Progress(self._book, policy)
        self._known = KnownRuns()
        self._run_alerts = RunAlerts(self._book, policy)
        self._told_ms = 0
        """Up to when silences that expired have been looked at."""

    def start(self, start: RunStart, *, sent_at_ms: int | None = None, by: Caller = EVERYONE) -> RunStarted:
        """Register a run, an attempt and a rank; calling it again changes nothing but a first step that is larger.

        Args:
            start: who speaks.
            sent_at_ms: when they say so, by the client's clock; None: it does not tell, here and below.

        Raises:
            Refused: the start cannot be, or contradicts what is stored.
        """
        admission.require_start(start)
        now_ms = self._clock()
        with self.transaction(start.run, is_known=False) as session:
            run, known, rank, is_queued = self._register(session, start, now_ms=now_ms, sent_at_ms=sent_at_ms, by=by)
            read_clock(rank, sent_at_ms, now_ms=now_ms, since_ms=self._clock.listening_since_ms)
            save_rank(session, known.attempt.id, rank)
            known.put(rank)
            self._settle(session, run.newest(session, start.run), now_ms=now_ms, has_new_series=True)
        self.announce(start.run, is_queued=is_queued)
        highest = sequences.highest(rank.delivered)
        return RunStarted(start.run, start.attempt, known.attempt.number, highest, f"/runs/{start.run}")

    def take(
        self, run: str, contents: Contents, *, size: int = 0, sent_at_ms: int | None = None, by: Caller = EVERYONE
    ) -> FramesReply:
        """Store and judge the records of one rank, sent in so many bytes; durable when this returns.

        Raises:
            NotFound: the run, attempt or rank was never registered, nor do the records begin with a start.
            Refused: the request as a whole cannot be taken.
        """
        admission.require_speaker(contents.attempt, contents.rank)
        now_ms = self._clock()
        with self.transaction(run, is_known=False) as session:
            known_run, known, rank = self._speaker(session, run, contents, sent_at_ms=sent_at_ms, by=by)
            since_ms = self._clock.listening_since_ms
            read_clock(rank, sent_at_ms, now_ms=now_ms, since_ms=since_ms)
            intake = Intake(
                session,
                known,
                rank,
                now_ms=now_ms,
                max_series=self._max_series,
                notify=self._policy is not None,
                clock_offset_ms=offset_of(rank, contents, now_ms=now_ms, since_ms=since_ms),
            )
            if any(record.series is not None for record in contents.records):
                self._progress.keep(session, known)
            has_waited = known.roster.waiting is not None
            for record in contents.records:
                intake.take(record)
            for one in contents.refused:
                intake.pass_over(one.sequence)
            attempt = intake.close()
            if intake.has_new_facts:
                self._progress.forget(attempt.id)
            newest, arrived = known_run.newest(session, run), None if has_waited else Arrived(rank.rank, intake.frames)
            is_queued = intake.is_queued | self._progress.advance(
                session, known, newest.attempt, now_ms=now_ms, since_ms=since_ms, arrived=arrived
            )
            is_queued |= self._watch(session, known, newest, now_ms=now_ms)
            is_queued |= self._run_alerts.end(session, attempt, known.roster, intake.ends, now_ms=now_ms)
            self._settle(session, newest, now_ms=now_ms, has_new_series=intake.has_new_facts)
            wishes = self._wishes(session, known)
        refused = (*contents.refused, *intake.refused)
        observability.count_ingest(
            frames=len(intake.frames), points=intake.points, size=size, refused=len(refused), lag_s=intake.lag_s
        )
        for one in refused:
            log.warning("run %s rank %d: record %d refused: %s", run, contents.rank, one.sequence, one.reason)
        self.announce(run, is_queued=is_queued)
        acknowledged = sequences.highest(rank.delivered)
        return FramesReply(acknowledged, intake.stored, intake.duplicates, refused, wishes)

    def heartbeat(self, run: str, heartbeat: Heartbeat, *, sent_at_ms: int | None = None) -> HeartbeatReply:
        """Keep a rank's sign of life.

        Raises:
            NotFound: the run, attempt or rank was never registered.
        """
        admission.require_heartbeat(heartbeat)
        now_ms = self._clock()
        with self.transaction(run, is_known=False) as session:
            known_run = self._look(session, run)
            known = known_run.find(session, run, heartbeat.attempt)
            rank = save_heartbeat(session, known.attempt.id, heartbeat, now_ms=now_ms)
            if rank is None:
                raise AttemptNotFound(run, f"{heartbeat.attempt} rank {heartbeat.rank}")
            read_clock(rank, sent_at_ms, now_ms=now_ms, since_ms=self._clock.listening_since_ms)
            advance_cursor(session, known.attempt, rank)
            save_rank(session, known.attempt.id, rank)
            known.put(rank)
            newest = known_run.newest(session, run)
            is_queued = self._watch(session, known, newest, now_ms=now_ms)
            self._settle(session, newest, now_ms=now_ms)
            reply = HeartbeatReply(self._wishes(session, known))
        self.announce(run, is_queued=is_queued)
        return reply

    def acknowledge(self, alert: int, *, by: str, is_new_normal: bool) -> Alert:
        """A person has seen an alert, and perhaps calls what it tells of the new normal.

        Raises:
            AlertNotFound: there is no such alert.
            Invalid: what it tells of is judged by no baseline, or is over: there is no new normal to take.
        """
        now_ms = self._clock()
        is_queued = False
        run = self.run_of(alert)
        with self.transaction(run, is_known=False) as session:
            known_run = self._look(session, run)
            seen = alerts.acknowledge(session, alert, by=by, now_ms=now_ms)
            if is_new_normal:
                newest = known_run.newest(session, run)
                known = known_run.find(session, run, seen.attempt)
                is_queued = self._progress.accept(session, known, newest.attempt, seen, now_ms=now_ms)
                self._settle(session, newest, now_ms=now_ms)
                (seen,) = alerts.get_alerts(session, [alert])
        self.announce(run, is_queued=is_queued)
        return seen

    def delete(self, run: str) -> Usage:
        """Delete a run; what it took. Its tiles go in pieces, and it last: cut short, this is begun again.

        Raises:
            RunNotFound: there is no such run.
        """
        with self._database.read() as session:
            took = removal.read_usage(session, run)
        is_left = True
        while is_left:
            with self.transaction(run) as session:
                is_left = removal.delete_blocks(session, run) > 0
                if not is_left:
                    removal.delete_run(session, run)
        self._forget(run)
        log.info("run %s was deleted: %d bytes", run, took.total)
        self.announce(run, is_queued=False)
        return took

    def run_of(self, alert: int) -> str:
        """The run of an alert.

        Raises:
            AlertNotFound: there is no such alert.
        """
        with self._database.read() as session:
            found = alerts.get_alerts(session, [alert])
        if not found:
            raise AlertNotFound(alert)
        return found[0].run

    def tick(self) -> None:
        """Do what time alone brings: judge what waited for silent ranks, notice lost runs."""
        now_ms = self._clock()
        if self._listening_since_ms != self._clock.listening_since_ms:
            with self._database.write() as session:
                look_at_all(session)
            self._listening_since_ms = self._clock.listening_since_ms
        with self._database.read() as session:
            due = due_runs(session, now_ms=now_ms, limit=RUNS_A_TICK)
        for run in due:
            try:
                self._check(run, now_ms=now_ms)
            except NotFound:
                log.info("run %s was deleted before it was looked after", run)
            except Exception:  # the clocks of the other runs go on
                log.exception("run %s could not be looked after; it is tried again", run)
        self._tell_due(now_ms)

    def _check(self, run: str, *, now_ms: int) -> None:
        """Do what time alone has brought of one run."""
        with self.transaction(run, is_known=False) as session:
            newest, since_ms = self._look(session, run).newest(session, run), self._clock.listening_since_ms
            is_queued = self._progress.advance(session, newest, newest.attempt, now_ms=now_ms, since_ms=since_ms)
            is_queued |= self._watch(session, newest, newest, now_ms=now_ms)
            newest.next_check_ms = None  # this was that look
            self._settle(session, newest, now_ms=now_ms, has_new_series=True)
        self.announce(run, is_queued=is_queued)

    def _tell_due(self, now_ms: int) -> None:
        """Tell what is over for long enough, what still fires after long enough, and what nobody silences any more."""
        if self._policy is None:
            return
        with self._database.read() as session:
            runs = set(incidents.runs_with_incidents(session))
            if has_expired_between(session, self._told_ms, now_ms):
                runs |= set(alerts.runs_firing(session))
            due = sorted(run for run in runs if moves(session, run, self._policy, now_ms=now_ms))
        self._told_ms = now_ms
        for run in due:
            try:
                with self.transaction(run) as session:
                    is_queued = self.tell(session, run, now_ms=now_ms)
            except NotFound:
                continue
            self.announce(run, is_queued=is_queued)

    @contextmanager
    def transaction(self, run: str, *, is_known: bool = True) -> Iterator[Session]:
        """A transaction that holds the run's lock. When it is undone, so is what is known in memory.

        Args:
            is_known: whether the run exists; else the caller locks it when it does.
        """
        try:
            with self._database.write() as session:
                try:
                    if is_known:
                        attempts.lock_run(session, run)
                    yield session
                except BaseException:
                    self._forget(run)  # before the lock is another's
                    raise
        except BaseException:
            self._forget(run)
            raise

    def _forget(self, run: str) -> None:
        """What is known in memory of a run may not be what is stored."""
        self._progress.forget_run(run)
        self._known.forget_run(run)

    def _look(self, session: Session, run: str) -> KnownRun:
        """Lock a run; what is known of it.

        Raises:
            RunNotFound: there is no such run.
        """
        return self._known.look(run, attempts.lock_run(session, run))

    def _wishes(self, session: Session, known: KnownAttempt) -> tuple[Directive, ...]:
        """What the ranks of an attempt should do."""
        return directives(session, known.attempt, known.roster, judged_step=known.judge.judged_step)

    def _register(
        self, session: Session, start: RunStart, *, now_ms: int, sent_at_ms: int | None, by: Caller
    ) -> tuple[KnownRun, KnownAttempt, Rank, bool]:
        """What is known of the run, the attempt and the rank of a start, and whether a notification was queued."""
        tidy, reasons = admission.tidy_start(start)
        if reasons:
            log.warning("run %s: of its start is left out: %s", start.run, admission.one_reason(reasons))
        began_ms = began_at_ms(start.started_at_ms, sent_at_ms, now_ms=now_ms)
        attempt, rank, is_new = attempts.register(session, tidy, now_ms=now_ms, began_ms=began_ms, by=by)
        is_queued = False
        if is_new:
            self._known.forget_run(start.run)
            alerts.supersede(session, attempts.newest_attempt(session, start.run), now_ms=now_ms)
            is_queued = self.tell(session, start.run, now_ms=now_ms, is_over=True)
        else:
            attempt = correct_start(session, attempt, tidy.start_step)
        run = self._look(session, start.run)
        return run, run.get(session, attempt), rank, is_queued

    def _speaker(
        self, session: Session, run: str, contents: Contents, *, sent_at_ms: int | None, by: Caller
    ) -> tuple[KnownRun, KnownAttempt, Rank]:
        """Who sent the request: registered before, or by the start among its records."""
        named = run, contents.attempt, contents.rank
        starts = [record.start for record in contents.records if record.start is not None]
        start = next((one for one in starts if (one.run, one.attempt, one.rank) == named), None)
        if start is not None and start.version > VERSION:
            require_version(start.version)
        try:
            known_run = self._look(session, run)
            known = known_run.find(session, run, contents.attempt)
            found = known.rank(session, contents.rank) if contents.rank >= 0 else None
            if found is None:
                raise AttemptNotFound(run, f"{contents.attempt}, rank {contents.rank}")
        except NotFound:
            if start is None:
                raise
            admission.require_start(start)
            known_run, known, found, _ = self._register(
                session, start, now_ms=self._clock(), sent_at_ms=sent_at_ms, by=by
            )
            known.put(found)
        return known_run, known, found

    def _watch(self, session: Session, known: KnownAttempt, newest: KnownAttempt, *, now_ms: int) -> bool:
        """Open and close the alerts on the run itself; whether a notification was queued."""
        since_ms = self._clock.listening_since_ms
        return self._run_alerts.watch(session, known.attempt, _standing(newest), now_ms=now_ms, since_ms=since_ms)

    def _settle(self, session: Session, known: KnownAttempt, *, now_ms: int, has_new_series: bool = False) -> None:
        """Keep how the run stands now by its newest attempt, and when time alone will bring more of it."""
        attempt, newest, since_ms = known.attempt, _standing(known), self._clock.listening_since_ms
        waits = waits_until_ms(attempt, known.roster, now_ms=now_ms, since_ms=since_ms)
        moments = [moment for moment in (waits, newest.lost_at_ms(now_ms, since_ms=since_ms)) if moment is not None]
        due_ms, kept_ms = min(moments, default=None), known.next_check_ms
        if kept_ms is not None and due_ms is not None and now_ms < kept_ms <= due_ms:
            due_ms = None  # to look once too early costs less than an index that changes with every frame
        else:
            known.next_check_ms = due_ms
            due_ms = NOTHING_DUE if due_ms is None else due_ms
        save_standing(
            session, attempt.run, newest.standing(is_measured=known.is_measured(session)), next_check_ms=due_ms,
            series=count_series(session, attempt.run) if has_new_series else None,
        )  # fmt: skip
        self._known.advance(attempt.run)

    def tell(self, session: Session, run: str, *, now_ms: int, is_over: bool = False) -> bool:
        """Queue what receivers are to be told of a run; whether anything was queued."""
        return self._run_alerts.tell(session, run, now_ms=now_ms, is_over=is_over)

    def announce(self, run: str, *, is_queued: bool) -> None:
        """After a commit: tell those who wait."""
        self._changes.ring(run)
        if is_queued:
            self._on_queued()


def _standing(known: KnownAttempt) -> Newest:
    """The newest attempt of a run, with what its standing follows from."""
    return Newest(known.attempt, known.roster, known.judge)
