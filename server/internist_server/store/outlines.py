"""Series by what chooses among very many of them: their facts are left where they are, which costs most to read."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from internist.schema.metrics import Bound
from internist.schema.wire import Facts
from internist_server.store.tables import SeriesRow


class Outline(NamedTuple):
    """One series of a run."""

    id: int
    metric: str
    subject: str
    bound: Bound
    facts: Facts
    """Of which the placement alone is known: it says how parts of ranks combine."""


def outline_series(
    session: Session, run: str, *, metrics: Sequence[str] | None = None, kind: str | None = None
) -> list[Outline]:
    """Series of a run by metric and kind, in the order in which they were declared."""
    query = _OF_RUN.where(_SERIES.run_id == run).order_by(_SERIES.id)
    if metrics is not None:
        query = query.where(_SERIES.metric.in_(metrics))
    if kind is not None:
        query = query.where(_SERIES.kind == kind)
    rows = session.execute(query).all()
    facts = {row[4]: Facts() if row[4] is None else Facts(placement=row[4]) for row in rows}
    return [Outline(number, metric, subject, bound, facts[of]) for number, metric, subject, bound, of in rows]


_SERIES = SeriesRow.__table__.c
_OF_RUN: Final[Select[Any]] = select(
    _SERIES.id, _SERIES.metric, _SERIES.subject, _SERIES.bound, _SERIES.facts["placement"].as_string()
)
