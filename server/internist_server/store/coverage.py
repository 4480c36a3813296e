"""What of a model is measured, and what is not and why."""

from collections import Counter
from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from internist.schema.coverage import is_missing, share
from internist.schema.views import Coverage
from internist.schema.wire import CoverageEntry, CoverageState, Module
from internist_server.store.attempts import Attempt
from internist_server.store.dialects import upsert
from internist_server.store.tables import AttemptRow, CoverageRow


def save_coverage(session: Session, attempt_id: int, rank: int, entries: Sequence[CoverageEntry]) -> None:
    """Keep what a rank says; an entry replaces the one of the same subject and family."""
    rows = [
        {
            "attempt_id": attempt_id,
            "rank": rank,
            "kind": entry.kind,
            "subject": entry.subject,
            "family": entry.family,
            "state": entry.state,
            "reason": entry.reason,
        }
        for entry in entries
    ]
    key = ["attempt_id", "rank", "kind", "subject", "family"]
    upsert(session, CoverageRow, rows, key=key, update=["state", "reason"])


def read_coverage(session: Session, attempt: Attempt) -> Coverage:
    """The coverage of an attempt, merged over ranks: what one rank measures is measured, and what one rank misses is
    missing where no other measures it."""
    merged: dict[tuple[str, str, str], CoverageEntry] = {}
    query = select(CoverageRow).where(CoverageRow.attempt_id == attempt.id).order_by(CoverageRow.rank)
    for row in session.scalars(query):
        entry = _entry(row)
        key = (entry.kind, entry.subject, entry.family)
        if key not in merged or _says_more(entry.state, than=merged[key].state):
            merged[key] = entry
    outline = session.scalar(select(AttemptRow.modules).where(AttemptRow.id == attempt.id)) or []
    modules = tuple(msgspec.convert(module, Module) for module in outline)
    order = {module.name: place for place, module in enumerate(modules)}
    entries = tuple(sorted(merged.values(), key=lambda entry: _place(order, entry)))
    counts = dict(Counter[str](entry.state for entry in entries))
    return Coverage(attempt.run, share(entries), counts, entries, modules)


def why_not(session: Session, attempt_id: int, subject: str, metric: str) -> str:
    """Why something that was measured no longer is, as its client told last, such as `frozen, it wants no gradient`;
    empty where it told of nothing that fits."""
    query = (
        select(CoverageRow.family, CoverageRow.state, CoverageRow.reason)
        .where(CoverageRow.attempt_id == attempt_id, CoverageRow.subject == subject, CoverageRow.state != "measured")
        .order_by(CoverageRow.rank, CoverageRow.family)
    )
    found = session.execute(query).all()
    of_family = [row for row in found if row.family and metric.startswith(row.family)]
    return next((f"{row.state}, {row.reason}" if row.reason else row.state for row in of_family or found), "")


def _says_more(state: CoverageState, *, than: CoverageState) -> bool:
    return (state == "measured", is_missing(state)) > (than == "measured", is_missing(than))


def _entry(row: CoverageRow) -> CoverageEntry:
    raw = {"kind": row.kind, "subject": row.subject, "state": row.state, "reason": row.reason, "family": row.family}
    return msgspec.convert(raw, CoverageEntry)


def _place(order: dict[str, int], entry: CoverageEntry) -> tuple[int, int, str]:
    owner = entry.subject if entry.kind == "module" else entry.subject.rpartition(".")[0]
    return order.get(owner, len(order)), int(entry.kind != "module"), entry.subject
