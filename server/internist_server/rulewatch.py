"""The user's rules on one live attempt: its thresholds, and what rules say of its alerts."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from internist_server.alerts.rules import Rule, Terms, terms_of
from internist_server.alerts.thresholds import Thresholds
from internist_server.judge.series import JudgedSeries
from internist_server.judge.transitions import Transition
from internist_server.rulebook import RuleBook
from internist_server.store.attempts import Attempt
from internist_server.store.rules import load_rule_state, save_rule_state
from internist_server.store.runs import project_of
from internist_server.store.series import StoredSeries


@dataclass(slots=True)
class RuleWatch:
    """The rules on an attempt, and its thresholds as of the last judged step."""

    version: Hashable
    rules: tuple[Rule, ...]
    thresholds: Thresholds
    saved: bytes | None
    """The state as it is stored."""

    @classmethod
    def load(cls, session: Session, attempt: Attempt, series: Sequence[JudgedSeries], book: RuleBook) -> "RuleWatch":
        """The watch of an attempt as of the database."""
        rules = book.rules(session, attempt.run, project_of(session, attempt.run))
        state = load_rule_state(session, attempt.id)
        return cls(book.version(session, attempt.run), rules, Thresholds(rules, series, state=state), state)

    def update(self, session: Session, attempt: Attempt, book: RuleBook) -> None:
        """Take the rules that are in force now."""
        version = book.version(session, attempt.run)
        if version != self.version:
            self.version = version
            self.rules = book.rules(session, attempt.run, project_of(session, attempt.run))
            self.thresholds.change_rules(self.rules)

    def add_series(self, series: Sequence[JudgedSeries]) -> None:
        """Watch these too."""
        self.thresholds.add_series(series)

    def judge(
        self, step: int, values: NDArray[np.float32], present: NDArray[np.bool_], *, skipped: bool
    ) -> list[Transition]:
        """Which thresholds are passed at a step, and which are no more."""
        return self.thresholds.judge(step, values, present, skipped=skipped)

    def save(self, session: Session, attempt: Attempt) -> None:
        """Keep what is remembered, where it has changed."""
        state = self.thresholds.state()
        if state != self.saved and (self.rules or self.saved is not None):
            save_rule_state(session, attempt.id, state)
            self.saved = state

    def terms(self, series: Sequence[StoredSeries]) -> Callable[[Transition], Terms]:
        """What the rules say of each transition."""
        if not self.rules:
            return lambda _: Terms()
        by_id = {one.id: one for one in series}

        def of(change: Transition) -> Terms:
            one = None if change.series is None else by_id.get(change.series)
            metric, subject = ("", "") if one is None else (one.metric, one.subject)
            return terms_of(self.rules, name=change.rule, condition=change.condition, metric=metric, subject=subject)

        return of
