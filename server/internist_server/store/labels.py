"""What people say of runs: names, tags and notes, what is pinned, what is archived. No start of a run changes it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from internist_server.store.dialects import upsert
from internist_server.store.tables import LabelRow, RunRow

_BETWEEN_TAGS = "\n"


@dataclass(frozen=True, slots=True)
class Labels:
    """What people say of one run."""

    name: str | None = None
    """In place of the one that its start gave it."""
    tags: tuple[str, ...] = ()
    notes: str = ""
    is_pinned: bool = False
    is_archived: bool = False


def read_labels(session: Session, run: str) -> Labels:
    """What people say of a run; of one that there is not, too, nothing."""
    row = session.scalar(select(LabelRow).where(LabelRow.run_id == run))
    return Labels() if row is None else Labels(row.name, tags_of(row.tags), row.notes, row.is_pinned, row.is_archived)


def change_labels(session: Session, run: str, changes: Mapping[str, Any]) -> Labels:
    """Change some of them, by the names of the fields of `Labels`."""
    labels = replace(read_labels(session, run), **changes)
    values = asdict(labels) | {"tags": _BETWEEN_TAGS.join(dict.fromkeys(labels.tags))}
    upsert(session, LabelRow, [{"run_id": run, **values}], key=["run_id"], update=list(values))
    if labels.name is not None:
        session.execute(update(RunRow).where(RunRow.id == run).values(name=labels.name))
    return labels


def tags_of(text: str | None) -> tuple[str, ...]:
    """Tags as they are stored, one a line."""
    return tuple(text.split(_BETWEEN_TAGS)) if text else ()
