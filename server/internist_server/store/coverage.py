"""What of a model is measured, and what is not and why."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from internist.schema.views import Coverage
from internist.schema.wire import CoverageEntry, Module
from internist_server.store.attempts import Attempt
from internist_server.store.dialects import upsert
from internist_server.store.tables import AttemptRow, CoverageRow

_NOT_WATCHED = ("excluded",)


def save_coverage(session: Session, attempt_id: int, rank: int, entries: Sequence[CoverageEntry]) -> None:
    """Keep what a rank says; an entry replaces the one of the same subject."""
    rows = [
        {
            "attempt_id": attempt_id,
            "rank": rank,
            "kind": entry.kind,
            "subject": entry.subject,
            "state": entry.state,
            "reason": entry.reason,
        }
        for entry in entries
    ]
    upsert(session, CoverageRow, rows, key=["attempt_id", "rank", "kind", "subject"], update=["state", "reason"])


def read_coverage(session: Session, attempt: Attempt) -> Coverage:
    """The coverage of an attempt, merged over ranks: what one rank measures is measured."""
    query = select(CoverageRow).where(CoverageRow.attempt_id == attempt.id).order_by(CoverageRow.rank)
    merged: dict[tuple[str, str], CoverageEntry] = {}
    for row in session.scalars(query):
        key = (row.kind, row.subject)
        if key not in merged or (row.state == "measured" and merged[key].state != "measured"):
            raw = {"kind": row.kind, "subject": row.subject, "state": row.state, "reason": row.reason}
            merged[key] = msgspec.convert(raw, CoverageEntry)
    outline = session.scalar(select(AttemptRow.modules).where(AttemptRow.id == attempt.id)) or []
    modules = tuple(msgspec.convert(module, Module) for module in outline)
    order = {module.name: place for place, module in enumerate(modules)}
    entries = sorted(merged.values(), key=lambda entry: _place(order, entry))
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.state] = counts.get(entry.state, 0) + 1
    watched = sum(count for state, count in counts.items() if state not in _NOT_WATCHED)
    share = counts.get("measured", 0) / watched if watched else None
    return Coverage(attempt.run, share, counts, tuple(entries), modules)


def _place(order: dict[str, int], entry: CoverageEntry) -> tuple[int, int, str]:
    owner = entry.subject if entry.kind == "module" else entry.subject.rpartition(".")[0]
    return order.get(owner, len(order)), int(entry.kind != "module"), entry.subject
