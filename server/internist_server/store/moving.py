"""One run moved from database to database: everything that belongs to it, which foreign keys tell.

A run that comes into a database gets other numbers for what that one counts (attempts, series, blocks, alerts), since
others may have taken its own. All numbers of a table move by one distance, so that their order stays.
"""

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
from sqlalchemy import ColumnElement, Connection, Integer, Table, func, select, text
from sqlalchemy.types import BigInteger

from internist_server.errors import Conflict, Invalid
from internist_server.judge import packing
from internist_server.store.blocks import ARRAYS, JUDGED_ARRAYS, end_of_arrays, pack_heads, unpack_heads
from internist_server.store.copying import ROWS, count_on
from internist_server.store.judgements import deflated, inflated
from internist_server.store.metadata import METADATA
from internist_server.values.bundles import pack_ids, unpack_ids

_RUNS: Final = METADATA.tables["runs"]
_UNBOUND: Final = {
    ("standings", "attempt_id"): "attempts",
    ("incidents", "first_alert"): "alerts",
}
"""Columns that name rows without a foreign key, and of which table."""
Row = dict[str, Any]


def copy_out(reader: Connection, writer: Connection, run: str) -> int:
    """Copy a run into an empty database of the same form; the number of rows."""
    count = 0
    for table in METADATA.sorted_tables:
        mine = _of_run(table, run)
        if mine is not None:
            count += _copy(table, reader, writer, mine, lambda row: row)
    return count


def copy_in(reader: Connection, writer: Connection) -> str:
    """Copy the run of a database that holds one into another; its id.

    Raises:
        Invalid: the database holds no run, or several.
        Conflict: the other one has a run of that id.
    """
    runs: list[str] = list(reader.scalars(select(_RUNS.c.id)))
    if len(runs) != 1:
        raise Invalid(f"expected a database of one run, got one of {len(runs)}")
    if writer.scalar(select(_RUNS.c.id).where(_RUNS.c.id == runs[0])) is not None:
        raise Conflict(f"there is a run {runs[0]!r} already")
    tables = [table for table in METADATA.sorted_tables if _of_run(table, runs[0]) is not None]
    distances = {table.name: _distance(table, reader, writer) for table in tables if _counted(table) is not None}
    for table in tables:
        _copy(table, reader, writer, None, _mover(table, distances))
    return runs[0]


def _of_run(table: Table, run: str) -> ColumnElement[bool] | None:
    """Which rows of a table belong to a run, whatever lies between; None: none ever do."""
    if table is _RUNS:
        return _RUNS.c.id == run
    for key in sorted(table.foreign_keys, key=lambda one: one.column.table is not _RUNS):
        of_parent = _of_run(key.column.table, run)
        if of_parent is not None:
            return key.parent.in_(select(key.column).where(of_parent))
    return None


def _counted(table: Table) -> str | None:
    """The column whose numbers the database gives; None where there is none."""
    column = table.autoincrement_column
    is_own = column is not None and not column.foreign_keys and isinstance(column.type, BigInteger | Integer)
    return column.name if column is not None and is_own else None


def _distance(table: Table, reader: Connection, writer: Connection) -> int:
    """How far the numbers of a table move, so that all lie behind those that are taken."""
    name = _counted(table)
    assert name is not None
    if writer.dialect.name == "postgresql":
        writer.execute(text(f'LOCK TABLE "{table.name}" IN SHARE ROW EXCLUSIVE MODE'))  # nobody else counts on
    least, taken = reader.scalar(select(func.min(table.c[name]))), writer.scalar(select(func.max(table.c[name])))
    return 0 if least is None else (taken or 0) + 1 - least


def _copy(
    table: Table,
    reader: Connection,
    writer: Connection,
    wanted: ColumnElement[bool] | None,
    move: Callable[[Row], Row],
) -> int:
    query = select(table) if wanted is None else select(table).where(wanted)
    count = 0
    for some in reader.execution_options(yield_per=ROWS).execute(query).mappings().partitions():
        writer.execute(table.insert(), [move(dict(row)) for row in some])
        count += len(some)
    if count and writer.dialect.name == "postgresql":
        count_on(table, writer)
    return count


def _mover(table: Table, distances: Mapping[str, int]) -> Callable[[Row], Row]:
    """What gives a row of a table its new numbers."""
    by_column = {name: distances[parent] for (of, name), parent in _UNBOUND.items() if of == table.name}
    for key in table.foreign_keys:
        if key.column.table.name in distances:
            by_column[key.parent.name] = distances[key.column.table.name]
    own = _counted(table)
    if own is not None:
        by_column[own] = distances[table.name]
    rest = _REST.get(table.name)

    def move(row: Row) -> Row:
        for name, distance in by_column.items():
            if row[name] is not None:
                row[name] += distance
        if rest is not None:
            rest(row, distances)
        return row

    return move


def _ids(ids: bytes, distances: Mapping[str, int]) -> bytes:
    """Ids of series, 0 where there is none."""
    numbers = np.frombuffer(ids, "<i8")
    return np.where(numbers > 0, numbers + distances["series"], numbers).astype("<i8").tobytes()


def _plan(row: Row, distances: Mapping[str, int]) -> None:
    row["series"] = _ids(row["series"], distances)


def _checkpoint(row: Row, distances: Mapping[str, int]) -> None:
    row["order"] = _ids(row["order"], distances)
    if row["state"] is not None:
        numbers, arrays = packing.unpack(inflated(row["state"]))
        row["state"] = deflated(packing.pack(numbers, arrays | {"order": arrays["order"] + distances["series"]}))


def _block(row: Row, distances: Mapping[str, int], *, arrays: int) -> None:
    end = end_of_arrays(row["heads"], arrays)
    row["heads"] = row["heads"][:end] + pack_ids(unpack_ids(row["heads"][end:]) + distances["series"])


def _summary(row: Row, distances: Mapping[str, int]) -> None:
    (ids,) = unpack_heads([row["series"]], [row["width"]], 1, [])[0]
    row["series"] = pack_heads([ids.astype(np.int64) + distances["series"]], [])


def _rule_state(row: Row, distances: Mapping[str, int]) -> None:
    kept = msgspec.msgpack.decode(row["state"])
    moved = {
        one: one + distances["series"] * (one > 0) for one in (*kept["seen"], *(o["series"] for o in kept["open"]))
    }
    kept["open"] = [one | {"series": moved[one["series"]]} for one in kept["open"]]
    kept["seen"] = {moved[one]: step for one, step in kept["seen"].items()}
    row["state"] = msgspec.msgpack.encode(kept)


def _notification(row: Row, distances: Mapping[str, int]) -> None:
    row["alerts"] = [alert + distances["alerts"] for alert in row["alerts"]]


def _judge_state(row: Row, _: Mapping[str, int]) -> None:
    row["version"] += secrets.randbelow(1 << 40)  # judges in memory are of what was here before


def _standing(row: Row, _: Mapping[str, int]) -> None:
    row["cursor"] += 1  # what else is in memory, too


_REST: Final[Mapping[str, Callable[[Row, Mapping[str, int]], None]]] = {
    "plans": _plan,
    "declarations": _plan,
    "judge_checkpoints": _checkpoint,
    "summaries": _summary,
    "blocks": partial(_block, arrays=ARRAYS),
    "judged_blocks": partial(_block, arrays=JUDGED_ARRAYS),
    "rule_states": _rule_state,
    "notifications": _notification,
    "judge_states": _judge_state,
    "standings": _standing,
}
"""What numbers stand in packed bytes and in lists, by table, and what must not look as it did."""
