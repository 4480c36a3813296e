"""Rules that were set through the API, those of single runs, and what is remembered of them."""

from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from internist_server.store.tables import RuleSetRow, RuleStateRow, RunRow

Rules = list[dict[str, Any]]
"""Rules as JSON has them."""
_RUN = RunRow.__table__.c
_VERSION = select(func.max(RuleSetRow.__table__.c.id))
_THRESHOLDS = select(_RUN.thresholds).where(_RUN.id == bindparam("run"))
_VERSION_OF_RUN = select(_VERSION.scalar_subquery(), _THRESHOLDS.scalar_subquery())


def read_rules(session: Session) -> tuple[int, Rules]:
    """The newest set of rules, with its number; 0 and none where none was ever set."""
    row = session.scalar(select(RuleSetRow).order_by(RuleSetRow.id.desc()).limit(1))
    return (0, []) if row is None else (row.id, row.rules)


def rules_version(session: Session) -> int:
    """The number of the newest set of rules."""
    return session.scalar(_VERSION) or 0


def version_of_run(session: Session, run: str) -> tuple[int, Rules]:
    """The number of the newest set of rules, and the thresholds of a run."""
    row = session.execute(_VERSION_OF_RUN, {"run": run}).one()
    return row[0] or 0, row[1] or []


def add_rules(session: Session, rules: Rules, *, now_ms: int) -> None:
    """Set the rules; earlier sets are kept."""
    session.add(RuleSetRow(rules=rules, set_at_ms=now_ms))
    session.flush()


def run_thresholds(session: Session, run: str) -> Rules:
    """The thresholds of a run, as it was started with or as they were set since."""
    return session.scalar(_THRESHOLDS, {"run": run}) or []


def set_run_thresholds(session: Session, run: str, thresholds: Rules) -> None:
    """Set the thresholds of a run."""
    row = session.get_one(RunRow, run)
    row.thresholds = thresholds
    session.flush()


def load_rule_state(session: Session, attempt_id: int) -> bytes | None:
    """What is remembered of the thresholds of an attempt; None: nothing yet."""
    return session.scalar(select(RuleStateRow.state).where(RuleStateRow.attempt_id == attempt_id))


def save_rule_state(session: Session, attempt_id: int, state: bytes) -> None:
    """Remember it."""
    row = session.get(RuleStateRow, attempt_id)
    if row is None:
        session.add(RuleStateRow(attempt_id=attempt_id, state=state))
    else:
        row.state = state
    session.flush()
