"""Series and plans: what is measured, under which number, in which order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Row, and_, bindparam, func, select
from sqlalchemy.orm import Session, aliased

from internist.schema.metrics import METRICS, RATIOS_OVER, Bound, Kind
from internist.schema.wire import Facts, Plan, Series
from internist_server.store.dialects import upsert
from internist_server.store.merge import Codes, Declared, Ids, codes_of
from internist_server.store.tables import NO_INDEX, DeclarationRow, PlanRow, SeriesRow

NO_SERIES = 0
"""Stands in a plan for a series that is not taken: its values are not read. Ids of series begin at 1."""

Key = tuple[str, str, str, int, str]
"""Metric, kind, subject, index and bound of a series."""
KnownSeries = tuple[int, dict[str, Any]]
"""The id of a series, and its facts as they are stored."""
_BATCH = 5_000
_LOGGED = "as given"
"""The method of scalars that the user's own code logs, whatever their names."""
_PLAN_NUMBERS = 1 << 31
"""Plans of a rank are numbered below this. One that is declared anew under a used number is another plan: it is stored
under that number plus a multiple of this."""
_PLANS = PlanRow.__table__.c
_LIST_PLANS = (
    select(_PLANS.rank, _PLANS.number, _PLANS.is_sampled, _PLANS.series, _PLANS.counts)
    .where(_PLANS.attempt_id == bindparam("attempt"))
    .order_by(_PLANS.rank, _PLANS.number)
)
_COUNT_PLANS = select(func.count()).select_from(PlanRow.__table__).where(_PLANS.attempt_id == bindparam("attempt"))
_FIND_PLAN = (
    select(PlanRow.__table__)
    .where(_PLANS.attempt_id == bindparam("attempt"), _PLANS.rank == bindparam("rank"))
    .where(_PLANS.number % _PLAN_NUMBERS == bindparam("number"))
    .order_by(_PLANS.number.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """One series of a run under its server id."""

    id: int
    metric: str
    kind: Kind
    subject: str
    index: int | None
    bound: Bound
    facts: Facts


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """Series ids (`NO_SERIES` where one is not taken) and counts of one plan of one rank."""

    rank: int
    number: int
    """As it is stored; `find_plan` knows the number that the rank gave it."""
    is_sampled: bool
    """Whether it holds what was measured, and not only logged scalars."""
    series: Ids
    counts: Ids | None


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a matrix: series ids, how their parts combine, and what their merged values are divided by."""

    ids: Ids
    codes: Codes
    over: Ids
    """Ids of the series of the denominators of ratios; `NO_SERIES` where a column is none, or has none."""


def count_series(session: Session, run: str) -> int:
    """Number of series of a run."""
    return session.scalar(select(func.count()).select_from(SeriesRow).where(SeriesRow.run_id == run)) or 0


def find_known(session: Session, run: str, series: Sequence[Series]) -> dict[Key, KnownSeries]:
    """Those of these series that the run has; a declaration is a small part of a large run."""
    columns = (SeriesRow.metric, SeriesRow.kind, SeriesRow.subject, SeriesRow.index, SeriesRow.bound)
    found: dict[Key, KnownSeries] = {}
    for begin in range(0, len(series), _BATCH):
        part = series[begin : begin + _BATCH]
        query = select(*columns, SeriesRow.id, SeriesRow.facts).where(
            SeriesRow.run_id == run,
            SeriesRow.metric.in_({one.metric for one in part}),
            SeriesRow.kind.in_({one.kind for one in part}),
            SeriesRow.subject.in_({one.subject for one in part}),
        )
        found.update({(row[0], row[1], row[2], row[3], row[4]): (row[5], row[6]) for row in session.execute(query)})
    return found


def orders_of(session: Session, ids: Sequence[int]) -> dict[int, int]:
    """Place in forward order of each of these series."""
    query = select(SeriesRow.id, SeriesRow.facts).where(SeriesRow.id.in_(ids))
    return {row.id: row.facts["order"] for row in session.execute(query)}


def key_of(series: Series) -> Key:
    """What a series is known by in its run."""
    index = NO_INDEX if series.index is None else series.index
    return series.metric, series.kind, series.subject, index, series.bound


def find_other_tensors(
    session: Session, attempt_id: int, rank: int, series: Sequence[Series], known: Mapping[Key, KnownSeries]
) -> dict[int, str]:
    """Which of these series of parameters another rank of the attempt has declared of another tensor, by their numbers,
    and why it is another.

    Two ranks have one tensor where both declare it replicated, or both a piece of one, and of one size. What one of
    them says is its own alone is not the other's.
    """
    suspects: dict[int, tuple[int, str]] = {}
    for one in series:
        stored, facts = known.get(key_of(one), (NO_SERIES, None))
        if one.kind == "parameter" and facts is not None and (why := _is_another(facts, one.facts)):
            suspects[one.number] = stored, why
    if not suspects:
        return {}
    query = select(DeclarationRow.series).where(DeclarationRow.attempt_id == attempt_id, DeclarationRow.rank != rank)
    declared_by_others: set[int] = set()
    for blob in session.scalars(query):
        declared_by_others.update(_ids(blob).tolist())
    return {number: why for number, (stored, why) in suspects.items() if stored in declared_by_others}


def declare(
    session: Session,
    run: str,
    attempt_id: int,
    rank: int,
    sequence: int,
    series: Sequence[Series],
    known: Mapping[Key, KnownSeries],
) -> dict[int, int]:
    """Store what a rank declares; the server ids by its numbers. Series that exist get the new facts, where these are
    others: ranks of one model mostly declare the same.

    Args:
        known: those of them that the run has.
    """
    news = _news(series, known)
    key = ["run_id", "metric", "kind", "subject", "index", "bound"]
    rows = [dict(zip(key, (run, *key_of(one)), strict=True)) | {"facts": facts} for one, facts in news]
    for begin in range(0, len(rows), _BATCH):
        upsert(session, SeriesRow, rows[begin : begin + _BATCH], key=key, update=["facts"])
    made = find_known(session, run, [one for one, _ in news if key_of(one) not in known])
    ids = {one.number: (known.get(key_of(one)) or made[key_of(one)])[0] for one in series}
    session.add(
        DeclarationRow(
            attempt_id=attempt_id,
            rank=rank,
            sequence=sequence,
            numbers=np.array(list(ids), dtype="<i8").tobytes(),
            series=np.array(list(ids.values()), dtype="<i8").tobytes(),
        )
    )
    session.flush()
    return ids


def declared(session: Session, attempt_id: int, rank: int) -> dict[int, int]:
    """Server ids by the numbers a rank gave its series."""
    query = select(DeclarationRow.numbers, DeclarationRow.series).order_by(DeclarationRow.sequence)
    found: dict[int, int] = {}
    for numbers, series in session.execute(
        query.where(DeclarationRow.attempt_id == attempt_id, DeclarationRow.rank == rank)
    ):
        found.update(zip(_ids(numbers).tolist(), _ids(series).tolist(), strict=True))
    return found


def add_plan(session: Session, attempt_id: int, rank: int, plan: Plan, ids: Sequence[int]) -> StoredPlan:
    """Store a plan whose series have these server ids; frames that follow and name its number are of this plan."""
    earlier = find_plan(session, attempt_id, rank, plan.number)
    stored = StoredPlan(
        rank=rank,
        number=plan.number if earlier is None else earlier.number + _PLAN_NUMBERS,
        is_sampled=_is_any_sampled(session, ids),
        series=np.array(ids, dtype="<i8"),
        counts=np.array(plan.counts, dtype="<i8") if plan.counts else None,
    )
    session.add(
        PlanRow(
            attempt_id=attempt_id,
            rank=rank,
            number=stored.number,
            is_sampled=stored.is_sampled,
            series=stored.series.tobytes(),
            counts=None if stored.counts is None else stored.counts.tobytes(),
        )
    )
    session.flush()
    return stored


def find_plan(session: Session, attempt_id: int, rank: int, number: int) -> StoredPlan | None:
    """The plan that a rank declared last under a number; None if it declared none."""
    row = session.execute(_FIND_PLAN, {"attempt": attempt_id, "rank": rank, "number": number}).first()
    return None if row is None else _plan(row)


def has_sampled_plan(session: Session, attempt_id: int, rank: int) -> bool:
    """Whether a rank has declared a plan that holds more than logged scalars."""
    query = select(PlanRow.number).where(PlanRow.attempt_id == attempt_id, PlanRow.rank == rank, PlanRow.is_sampled)
    return session.scalar(query.limit(1)) is not None


def is_sampled(metric: str) -> bool:
    """Whether the metric belongs to sampled frames; a logged scalar may come at any step."""
    known = METRICS.get(metric)
    return known is not None and known.cadence != "logged"


def list_plans(session: Session, attempt_id: int) -> list[StoredPlan]:
    """Plans of an attempt, those of the lowest rank first. Equal series, and counts, are one array: ranks of one model
    have the same."""
    shared: dict[bytes, Ids] = {}
    found: list[StoredPlan] = []
    for rank, number, sampled, series, counts in session.execute(_LIST_PLANS, {"attempt": attempt_id}):
        arrays = [blob if blob is None else shared.setdefault(blob, _ids(blob)) for blob in (series, counts)]
        assert arrays[0] is not None
        found.append(StoredPlan(rank, number, sampled, arrays[0], arrays[1]))
    return found


def count_plans(session: Session, attempt_id: int) -> int:
    """How many plans an attempt has; they are never changed, and only become more."""
    return session.scalar(_COUNT_PLANS, {"attempt": attempt_id}) or 0


def list_series(session: Session, ids: Ids) -> list[StoredSeries]:
    """Series by id, in the order asked for."""
    found: dict[int, StoredSeries] = {}
    wanted = ids.tolist()
    for begin in range(0, len(wanted), _BATCH):
        for row in session.execute(_OF_IDS, {"ids": wanted[begin : begin + _BATCH]}):
            found[row.id] = _series(row)
    return [found[one] for one in wanted]


def search_series(
    session: Session,
    run: str,
    *,
    ids: Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> list[StoredSeries]:
    """Series of a run in forward order: by id, or by metric; of these kinds."""
    if ids is not None:
        rows = session.execute(_OF_RUN_IDS, {"run": run, "ids": list(ids)})
    elif metrics is None:
        rows = session.execute(_OF_RUN, {"run": run})
    else:
        rows = session.execute(_OF_METRICS, {"run": run, "metrics": list(metrics)})
    found = (row for row in rows if metrics is None or row.metric in metrics)
    return sorted((_series(row) for row in found if kinds is None or row.kind in kinds), key=_forward_order)


def metrics_of_run(session: Session, run: str) -> list[str]:
    """Names of the metrics a run has series of."""
    return list(session.scalars(select(SeriesRow.metric).where(SeriesRow.run_id == run).distinct()))


def columns_of(session: Session, ids: Ids) -> Columns:
    """Columns for these series."""
    return columns_for(session, ids, list_series(session, ids))


def columns_for(session: Session, ids: Ids, series: Sequence[Declared]) -> Columns:
    """Columns for series of these ids, of which this is known."""
    over = np.full(len(ids), NO_SERIES, dtype=np.int64)
    names = [one.metric for one in series]
    ratios = {int(ids[place]): place for place, name in enumerate(names) if name in METRICS and METRICS[name].over}
    for numerator, denominator in _denominators(session, sorted(ratios)):
        over[ratios[numerator]] = denominator
    return Columns(ids, codes_of(series), over)


_SERIES = SeriesRow.__table__.c
_GET = select(_SERIES.id, _SERIES.metric, _SERIES.kind, _SERIES.subject, _SERIES["index"], _SERIES.bound, _SERIES.facts)
_OF_RUN = _GET.where(_SERIES.run_id == bindparam("run"))
_OF_RUN_IDS = _OF_RUN.where(_SERIES.id.in_(bindparam("ids", expanding=True)))
_OF_METRICS = _OF_RUN.where(_SERIES.metric.in_(bindparam("metrics", expanding=True)))
_OF_IDS = _GET.where(_SERIES.id.in_(bindparam("ids", expanding=True)))


def _denominators(session: Session, ratios: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Series of ratios, each with the series that its values are divided by, where there is one."""
    if not ratios:
        return
    under = aliased(SeriesRow)
    same = [
        getattr(under, name) == getattr(SeriesRow, name) for name in ("run_id", "kind", "subject", "index", "bound")
    ]
    for name, above in RATIOS_OVER.items():
        query = select(SeriesRow.id, under.id).join(under, and_(*same, under.metric == name))
        for begin in range(0, len(ratios), _BATCH):
            chosen = query.where(SeriesRow.metric.in_(above), SeriesRow.id.in_(ratios[begin : begin + _BATCH]))
            for row in session.execute(chosen):
                yield row[0], row[1]


def _forward_order(series: StoredSeries) -> tuple[int, str, str, int]:
    return series.facts.order, series.subject, series.metric, -1 if series.index is None else series.index


def _news(series: Sequence[Series], known: Mapping[Key, KnownSeries]) -> list[tuple[Series, dict[str, Any]]]:
    """The series of which something is new, with their facts as they are stored."""
    told = ((one, msgspec.json.decode(msgspec.json.encode(one.facts))) for one in series)
    return [(one, facts) for one, facts in told if known.get(key_of(one), (NO_SERIES, None))[1] != facts]


def _is_any_sampled(session: Session, ids: Sequence[int]) -> bool:
    """Whether one of these series is measured, and not logged by the user's own code."""
    method = SeriesRow.facts["method"].as_string()
    found: set[tuple[str, str | None]] = set()
    for begin in range(0, len(ids), _BATCH):
        query = select(SeriesRow.metric, method).where(SeriesRow.id.in_(ids[begin : begin + _BATCH])).distinct()
        found.update((row[0], row[1]) for row in session.execute(query))
    return any(is_sampled(metric) and how != _LOGGED for metric, how in found)


def _is_another(known: Mapping[str, Any], told: Facts) -> str:
    """Why two declarations are of two tensors; empty where they may be of one."""
    there, entries = known["placement"], known.get("parameters")
    placements = {there, told.placement}
    if "disjoint" in placements:
        return "one of them says that it is its own alone"
    if len(placements) > 1:
        return f"it is {there} there and {told.placement} here"
    if None not in (entries, told.parameters) and entries != told.parameters:
        return f"it has {entries} entries there and {told.parameters} here"
    return ""


def _series(row: Any) -> StoredSeries:
    return StoredSeries(
        id=row.id,
        metric=row.metric,
        kind=row.kind,
        subject=row.subject,
        index=None if row.index == NO_INDEX else row.index,
        bound=row.bound,
        facts=msgspec.convert(row.facts, Facts),
    )


def _plan(row: Row[Any]) -> StoredPlan:
    return StoredPlan(
        rank=row.rank,
        number=row.number,
        is_sampled=row.is_sampled,
        series=_ids(row.series),
        counts=None if row.counts is None else _ids(row.counts),
    )


def _ids(blob: bytes) -> Ids:
    return np.frombuffer(blob, dtype="<i8")
