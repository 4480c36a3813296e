"""Alerts on the run itself: that it is lost or stalled, and how it ended."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy.orm import Session

from internist.schema.rules import QUIET_AFTER_S, RUN_RULES, RunRule
from internist.schema.wire import Finish
from internist_server.alerts.incidents import Policy
from internist_server.alerts.rules import Terms, terms_of
from internist_server.rulebook import RuleBook
from internist_server.store import alerts, notifications
from internist_server.store.attempts import Attempt
from internist_server.store.roster import Roster
from internist_server.store.runs import project_of
from internist_server.store.standings import Newest
from internist_server.telling import tell

_LASTING: Final = tuple(rule for rule in RUN_RULES if not rule.is_end)
_HOW: Final = {"failed": "ended by an error", "killed": "was killed by a signal"}
_ENDS: Final[dict[str, RunRule]] = {rule.state: rule for rule in RUN_RULES if rule.is_end}


class RunAlerts:
    """Opens and closes them, within the caller's transaction."""

    def __init__(self, book: RuleBook, policy: Policy | None) -> None:
        """By the rules of a book; `policy`: when receivers are told, None: nobody is."""
        self._book, self._policy = book, policy

    def watch(self, session: Session, attempt: Attempt, newest: Newest, *, now_ms: int, since_ms: int) -> bool:
        """Open and close those that last, by how the newest attempt of the run lives; whether a notification was
        queued. `since_ms`: since when the server listens."""
        if newest.attempt.id != attempt.id:
            return False
        vitals = newest.vitals(now_ms, since_ms=since_ms)
        opened = alerts.find_run_alerts(session, attempt.run)
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

    def end(self, session: Session, attempt: Attempt, roster: Roster, ends: Sequence[Finish], *, now_ms: int) -> bool:
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
