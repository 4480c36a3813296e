"""One request of a client, taken in one transaction: checked, stored, judged, and only then acknowledged."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from sqlalchemy.orm import Session

from internist.schema.alerts import Alert
from internist.schema.rules import QUIET_AFTER_S, RUN_RULES, RunRule
from internist.schema.views import Usage
from internist.schema.wire import (
    VERSION,
    Directive,
    Finish,
    FramesReply,
    Heartbeat,
    HeartbeatReply,
    RunStart,
    RunStarted,
)
from internist_server import admission, observability
from internist_server.alerts.incidents import Policy
from internist_server.alerts.rules import Terms, terms_of
from internist_server.callers import EVERYONE, Caller
from internist_server.changes import Changes
from internist_server.clocks import ServerClock, as_server_clock, began_at_ms
from internist_server.cursor import advance_cursor
from internist_server.directives import directives
from internist_server.envelope import Contents, require_version
from internist_server.errors import AlertNotFound, AttemptNotFound, NotFound
from internist_server.intake import Intake
from internist_server.progress import Progress, waits_until_ms
from internist_server.rank_clocks import offset_of, read_clock
from internist_server.rosters import Rosters
from internist_server.rulebook import RuleBook
from internist_server.store import alerts, attempts, incidents, notifications, removal, sequences
from internist_server.store.attempts import Attempt, Rank
from internist_server.store.database import Database
from internist_server.store.judgements import load_judged_step, load_state
from internist_server.store.roster import Roster
from internist_server.store.runs import project_of
from internist_server.store.series import count_series
from internist_server.store.silences import has_expired_between
from internist_server.store.standings import Newest, due_runs, look_at_all, save_standing
from internist_server.store.starts import correct_start
from internist_server.telling import moves, tell

log = logging.getLogger(__name__)

RUNS_A_TICK: Final = 100
"""Runs that one tick looks after at most: when a thousand are lost at once, frames come in between."""
_LASTING: Final = tuple(rule for rule in RUN_RULES if not rule.is_end)
_HOW: Final = {"failed": "ended by an error", "killed": "was killed by a signal"}
_ENDS: Final[dict[str, RunRule]] = {rule.state: rule for rule in RUN_RULES if rule.is_end}


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
        self._rosters = Rosters()
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
            attempt, rank, is_queued = self._register(session, start, now_ms=now_ms, sent_at_ms=sent_at_ms, by=by)
            read_clock(rank, sent_at_ms, now_ms=now_ms, since_ms=self._clock.listening_since_ms)
            attempts.save_rank(session, attempt.id, rank)
            roster = self._rosters.get(session, attempt)
            roster.put(rank)
            self._settle(session, self._newest(session, attempt, roster), now_ms=now_ms, has_new_series=True)
        self.announce(start.run, is_queued=is_queued)
        highest = sequences.highest(rank.delivered)
        return RunStarted(start.run, start.attempt, attempt.number, highest, f"/runs/{start.run}")

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
            attempt, rank = self._speaker(session, run, contents, sent_at_ms=sent_at_ms, by=by)
            read_clock(rank, sent_at_ms, now_ms=now_ms, since_ms=self._clock.listening_since_ms)
            roster = self._rosters.get(session, attempt)
            intake = Intake(
                session,
                attempt,
                rank,
                roster,
                judged_step=load_judged_step(session, attempt.id),
                now_ms=now_ms,
                max_series=self._max_series,
                notify=self._policy is not None,
                clock_offset_ms=offset_of(rank, contents, now_ms=now_ms, since_ms=self._clock.listening_since_ms),
            )
            if any(record.series is not None for record in contents.records):
                self._progress.keep(session, attempt)
            for record in contents.records:
                intake.take(record)
            for one in contents.refused:
                intake.pass_over(one.sequence)
            attempt = intake.close()
            if intake.has_new_facts:
                self._progress.forget(attempt.id)
            since_ms = self._clock.listening_since_ms
            is_queued = (
                self._progress.advance(session, attempt, roster, now_ms=now_ms, since_ms=since_ms) or intake.is_queued
            )
            newest = self._newest(session, attempt, roster)
            is_queued = self._watch(session, attempt, newest, now_ms=now_ms) or is_queued
            is_queued = self._end(session, attempt, roster, intake.ends, now_ms=now_ms) or is_queued
            self._settle(session, newest, now_ms=now_ms, has_new_series=intake.has_new_facts)
            wishes = self._wishes(session, attempt, roster, newest)
        refused = (*contents.refused, *intake.refused)
        observability.count_ingest(
            frames=intake.frames, points=intake.points, size=size, refused=len(refused), lag_s=intake.lag_s
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
        with self.transaction(run) as session:
            attempt = attempts.find_attempt(session, run, heartbeat.attempt)
            rank = attempts.save_heartbeat(session, attempt, heartbeat, now_ms=now_ms)
            read_clock(rank, sent_at_ms, now_ms=now_ms, since_ms=self._clock.listening_since_ms)
            advance_cursor(session, attempt, rank)
            attempts.save_rank(session, attempt.id, rank)
            roster = self._rosters.get(session, attempt)
            roster.put(rank)
            newest = self._newest(session, attempt, roster)
            is_queued = self._watch(session, attempt, newest, now_ms=now_ms)
            self._settle(session, newest, now_ms=now_ms)
            reply = HeartbeatReply(self._wishes(session, attempt, roster, newest))
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
        with self.transaction(run) as session:
            seen = alerts.acknowledge(session, alert, by=by, now_ms=now_ms)
            if is_new_normal:
                attempt = attempts.find_attempt(session, seen.run, seen.attempt)
                is_queued = self._progress.accept(session, attempt, seen, now_ms=now_ms)
                newest = self._newest(session, attempt, self._rosters.get(session, attempt))
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
        self._progress.forget_run(run)
        self._rosters.forget_run(run)
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
        with self.transaction(run) as session:
            attempt = attempts.newest_attempt(session, run)
            roster, since_ms = self._rosters.get(session, attempt), self._clock.listening_since_ms
            is_queued = self._progress.advance(session, attempt, roster, now_ms=now_ms, since_ms=since_ms)
            newest = self._newest(session, attempt, roster)
            is_queued = self._watch(session, attempt, newest, now_ms=now_ms) or is_queued
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
                if is_known:
                    attempts.lock_run(session, run)
                yield session
        except BaseException:
            self._progress.forget_run(run)
            self._rosters.forget_run(run)
            raise

    def _newest(self, session: Session, attempt: Attempt, roster: Roster) -> Newest:
        """The newest attempt of the run of an attempt, which mostly is that one."""
        if not self._rosters.is_newest(session, attempt):
            attempt = attempts.newest_attempt(session, attempt.run)
            roster = self._rosters.get(session, attempt)
        return Newest(attempt, roster, load_state(session, attempt.id))

    def _wishes(self, session: Session, attempt: Attempt, roster: Roster, newest: Newest) -> tuple[Directive, ...]:
        """What the ranks of an attempt should do."""
        is_newest = newest.attempt.id == attempt.id
        judged_step = newest.judge.judged_step if is_newest else load_judged_step(session, attempt.id)
        return directives(session, attempt, roster, judged_step=judged_step)

    def _register(
        self, session: Session, start: RunStart, *, now_ms: int, sent_at_ms: int | None, by: Caller
    ) -> tuple[Attempt, Rank, bool]:
        """The attempt and rank of a start, and whether a notification was queued."""
        tidy, reasons = admission.tidy_start(start)
        if reasons:
            log.warning("run %s: of its start is left out: %s", start.run, admission.one_reason(reasons))
        began_ms = began_at_ms(start.started_at_ms, sent_at_ms, now_ms=now_ms)
        attempt, rank, is_new = attempts.register(session, tidy, now_ms=now_ms, began_ms=began_ms, by=by)
        if not is_new:
            return correct_start(session, attempt, tidy.start_step), rank, False
        self._rosters.forget_run(start.run)
        alerts.supersede(session, attempts.newest_attempt(session, start.run), now_ms=now_ms)
        return attempt, rank, self.tell(session, start.run, now_ms=now_ms, is_over=True)

    def _speaker(
        self, session: Session, run: str, contents: Contents, *, sent_at_ms: int | None, by: Caller
    ) -> tuple[Attempt, Rank]:
        """Who sent the request: registered before, or by the start among its records."""
        starts = [record.start for record in contents.records if record.start is not None]
        start = next((one for one in starts if _names(one) == (run, contents.attempt, contents.rank)), None)
        if start is not None and start.version > VERSION:
            require_version(start.version)
        try:
            attempts.lock_run(session, run)
            attempt = attempts.find_attempt(session, run, contents.attempt)
            found = attempts.find_rank(session, attempt.id, contents.rank) if contents.rank >= 0 else None
            if found is None:
                raise AttemptNotFound(run, f"{contents.attempt}, rank {contents.rank}")
        except NotFound:
            if start is None:
                raise
            admission.require_start(start)
            attempt, found, _ = self._register(session, start, now_ms=self._clock(), sent_at_ms=sent_at_ms, by=by)
        return attempt, found

    def _watch(self, session: Session, attempt: Attempt, newest: Newest, *, now_ms: int) -> bool:
        """Open and close the alerts on the run itself; whether a notification was queued."""
        if newest.attempt.id != attempt.id:
            return False
        vitals = newest.vitals(now_ms, since_ms=self._clock.listening_since_ms)
        opened = alerts.find_run_alerts(session, attempt.run, rules=[rule.name for rule in _LASTING])
        has_news = False
        for rule in _LASTING:
            is_open = rule.name in opened
            if is_open and vitals.state != rule.state:
                alerts.close_run_alert(session, opened[rule.name], step=None, now_ms=now_ms)
                has_news = True
            elif not is_open and vitals.state == rule.state and newest.is_live:
                message, terms = f"the run is {rule.state}: {vitals.reason}", self._terms(session, attempt, rule)
                alerts.open_run_alert(
                    session, attempt, rule=rule, step=None, message=message, now_ms=now_ms, terms=terms
                )
                has_news = True
        return has_news and self.tell(session, attempt.run, now_ms=now_ms)

    def _settle(self, session: Session, newest: Newest, *, now_ms: int, has_new_series: bool = False) -> None:
        """Keep how the run stands now, and when time alone will bring more of it."""
        attempt, since_ms = newest.attempt, self._clock.listening_since_ms
        waits = waits_until_ms(attempt, newest.ranks, now_ms=now_ms, since_ms=since_ms)
        moments = [moment for moment in (waits, newest.lost_at_ms(now_ms, since_ms=since_ms)) if moment is not None]
        save_standing(
            session, attempt.run, newest.standing(session), next_check_ms=min(moments, default=None),
            series=count_series(session, attempt.run) if has_new_series else None,
        )  # fmt: skip
        self._rosters.advance(attempt.run)

    def _end(self, session: Session, attempt: Attempt, roster: Roster, ends: Sequence[Finish], *, now_ms: int) -> bool:
        """Tell how ranks ended that did not end well, and close what is open of an attempt that is over; whether a
        notification was queued."""
        is_queued = False
        for end in ends:
            rule = _ENDS.get(end.outcome)
            if rule is None:
                continue
            is_quiet = now_ms - end.finished_at_ms > QUIET_AFTER_S * 1000
            found = alerts.add_end(
                session, attempt, rule=rule, step=end.step, message=f"the run {_HOW[end.outcome]} at step {end.step}",
                at_ms=end.finished_at_ms, is_quiet=is_quiet, terms=(terms := self._terms(session, attempt, rule)),
            )  # fmt: skip
            if found is not None and self._policy is not None and not (is_quiet or terms.is_quiet):
                notifications.queue_moment(session, attempt.run, rule.name, found, now_ms=now_ms)
                is_queued = True
        if attempt.finished_at_ms is None:
            return is_queued
        alerts.close_attempt(session, attempt, step=roster.reached if len(roster) else None, now_ms=now_ms)
        return self.tell(session, attempt.run, now_ms=now_ms, is_over=True) or is_queued

    def _terms(self, session: Session, attempt: Attempt, rule: RunRule) -> Terms:
        """What the user's rules say of an alert on the run itself."""
        rules = self._book.rules(session, attempt.run, project_of(session, attempt.run))
        return terms_of(rules, name=rule.name, condition=rule.name, metric="", subject="")

    def tell(self, session: Session, run: str, *, now_ms: int, is_over: bool = False) -> bool:
        """Queue what receivers are to be told of a run; whether anything was queued."""
        return self._policy is not None and tell(session, run, self._policy, now_ms=now_ms, is_over=is_over)

    def announce(self, run: str, *, is_queued: bool) -> None:
        """After a commit: tell those who wait."""
        self._changes.ring(run)
        if is_queued:
            self._on_queued()


def _names(start: RunStart) -> tuple[str, str, int]:
    """Whom a start names."""
    return start.run, start.attempt, start.rank
