"""What is known of an attempt beside its points: whether its model is covered, and whether frames were refused."""

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from internist_server.judge.evidence import Evidence
from internist_server.store.judgements import Summary
from internist_server.store.roster import Roster
from internist_server.store.tables import CoverageRow

_COVERAGE = CoverageRow.__table__.c
_MEASURED = (
    select(_COVERAGE.subject)
    .where(_COVERAGE.attempt_id == bindparam("attempt"), _COVERAGE.state == "measured")
    .limit(1)
)


def read_evidence(session: Session, attempt_id: int, ranks: Roster, summary: Summary) -> Evidence:
    """The evidence of an attempt: its model is covered where a rank says that something of it is measured."""
    return evidence_of(ranks, summary, is_measured=is_measured(session, attempt_id))


def evidence_of(ranks: Roster, summary: Summary, *, is_measured: bool) -> Evidence:
    """The same where it is known whether a rank says that something is measured."""
    is_covered = summary.values.get("coverage", 0.0) > 0 or is_measured
    return Evidence(is_covered=is_covered, refusal=ranks.refusal, reference=summary.reference)


def is_measured(session: Session, attempt_id: int) -> bool:
    """Whether a rank says that something of the model of an attempt is measured."""
    return session.scalar(_MEASURED, {"attempt": attempt_id}) is not None
