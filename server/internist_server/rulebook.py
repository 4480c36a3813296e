"""The rules in force: those of the file, those that were set through the API, and a run's own thresholds."""

import threading
from collections.abc import Hashable, Sequence
from fnmatch import fnmatchcase

import msgspec
from sqlalchemy.orm import Session

from internist.schema.wire import Threshold
from internist_server.alerts.rules import Receiver, Rule, RuleFile, RuleSet, require_known, rule_of
from internist_server.errors import Conflict, Invalid
from internist_server.store import rules as store


class RuleBook:
    """Reads the rules in force for a run. One object serves all threads; what was set last is in the database."""

    def __init__(self, file: RuleFile | None = None) -> None:
        """A book that begins with the rules of a file."""
        self.file = file or RuleFile()
        self._lock = threading.Lock()
        self._parsed: tuple[int, tuple[Rule, ...]] = (0, ())

    @property
    def receivers(self) -> tuple[Receiver, ...]:
        """Whom rules may name."""
        return self.file.receiver

    def set_rules(self, session: Session) -> RuleSet:
        """The rules that were set through the API."""
        return RuleSet(rules=self._set(session))

    def in_force(self, session: Session) -> tuple[Rule, ...]:
        """The rules on all runs, in the order in which they are asked: a later one wins."""
        return (*self.file.rule, *self._set(session))

    def replace(self, session: Session, rules: RuleSet, *, now_ms: int) -> RuleSet:
        """Set the rules of the API.

        Raises:
            Conflict: a rule of the file has the name of one of them.
            Invalid: a rule names a receiver that there is not.
        """
        taken = {rule.name for rule in self.file.rule}
        twice = next((rule.name for rule in rules.rules if rule.name in taken), None)
        if twice is not None:
            raise Conflict(f"the file of rules has a rule named {twice!r} already")
        try:
            require_known(rules.rules, [receiver.name for receiver in self.receivers])
        except ValueError as error:
            raise Invalid(str(error)) from error
        store.add_rules(session, _plain(rules.rules), now_ms=now_ms)
        return rules

    def version(self, session: Session, run: str) -> Hashable:
        """Another one whenever the rules on a run have changed."""
        number, thresholds = store.version_of_run(session, run)
        return number, msgspec.json.encode(thresholds)

    def rules(self, session: Session, run: str, project: str) -> tuple[Rule, ...]:
        """The rules on a run."""
        own = tuple(rule_of(threshold) for threshold in self.thresholds(session, run))
        return (*(rule for rule in self.in_force(session) if fnmatchcase(project, rule.project)), *own)

    def thresholds(self, session: Session, run: str) -> tuple[Threshold, ...]:
        """A run's own thresholds."""
        return tuple(msgspec.convert(one, Threshold) for one in store.run_thresholds(session, run))

    def _set(self, session: Session) -> tuple[Rule, ...]:
        version = store.rules_version(session)
        with self._lock:
            if self._parsed[0] == version:
                return self._parsed[1]
        number, plain = store.read_rules(session)
        rules = RuleSet.model_validate({"rules": plain}).rules
        with self._lock:
            self._parsed = (number, rules)
        return rules


def _plain(rules: Sequence[Rule]) -> store.Rules:
    return [rule.model_dump(mode="json", by_alias=True, exclude_defaults=True) for rule in rules]
