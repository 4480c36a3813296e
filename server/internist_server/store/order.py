"""In which order runs are listed: pinned ones first, then by what was asked for."""

from typing import Any, Final, Literal

from sqlalchemy import Float, case, cast, func
from sqlalchemy.sql.elements import ColumnElement

from internist_server.store.tables import LabelRow, RunRow, StandingRow

Sort = Literal["newest", "name", "project", "verdict", "step", "loss"]
_WORST_FIRST: Final = ("violated", "drifting", "not measured", "ok")
_UNREAL: Final = (float("nan"), float("inf"), float("-inf"))


def order_of(sort: Sort, *, is_reversed: bool) -> list[ColumnElement[Any]]:
    """Columns to order by. What has no value comes last, whichever way; among equals the newest comes first."""
    key = _key(sort)
    is_descending = (sort in ("newest", "step")) != is_reversed
    pinned = func.coalesce(LabelRow.is_pinned, False)
    return [
        pinned.desc(),
        key.is_(None),
        key.desc() if is_descending else key.asc(),
        RunRow.created_at_ms.desc(),
        RunRow.id.asc(),
    ]


def _key(sort: Sort) -> ColumnElement[Any]:
    match sort:
        case "name":
            return func.lower(RunRow.name)
        case "project":
            return func.lower(RunRow.project)
        case "verdict":
            return case({state: place for place, state in enumerate(_WORST_FIRST)}, value=StandingRow.verdict)
        case "step":
            return StandingRow.last_step.expression
        case "loss":  # kept as text; one that is not finite is no number to be sorted by
            return case((StandingRow.loss.in_(_UNREAL), None), else_=cast(StandingRow.loss, Float))
        case "newest":
            return RunRow.created_at_ms.expression
