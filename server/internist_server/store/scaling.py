"""Runs as the scaling check sees them: what each declared, and its few metrics at the few steps that count."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from internist.scaling.description import Description, describe
from internist.scaling.members import METRICS_USED, Member
from internist.scaling.summary import LATE_SHARE, needed_steps, summarise
from internist.schema.metrics import PIECEWISE, Bound
from internist.schema.wire import Facts, Module, Route, Scalar
from internist_server.errors import Invalid, RunNotFound
from internist_server.store.attempts import LAST_STEP, Segment, history
from internist_server.store.frames import steps_between
from internist_server.store.matrices import read_matrix
from internist_server.store.merge import Floats, Ids
from internist_server.store.series import Columns, columns_for, list_plans
from internist_server.store.tables import NO_INDEX, AttemptRow, RunRow, SeriesRow, StandingRow

METRICS_OF_SHAPE: Final = ("activation.rms", "attention.max_abs_logit", "weight.rms")
"""Of the metrics that the check uses, those whose series tell the shape of a model."""
RARE_STEPS: Final = 4
"""Late steps that are read of every plan, so that metrics of a rare cadence are not stepped over."""
_NEAR: Final = 0.6


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that may belong to a family, with its newest attempt."""

    run: str
    name: str
    project: str
    parametrization: str
    config: dict[str, Scalar]
    created_at_ms: int
    cursor: int
    """Rises with every change of the run."""
    attempt_id: int
    attempt: str

    @property
    def seed(self) -> int | None:
        """The seed in the run's configuration: the first entry whose name ends in `seed`; None without one."""
        seeds = (value for key, value in self.config.items() if is_seed(key))
        return next((value for value in seeds if isinstance(value, int)), None)


@dataclass(slots=True)  # not frozen: ten thousand are made for every run
class SeriesOfRun:
    """One declared series, as `internist.scaling` wants to see it."""

    id: int
    metric: str
    subject: str
    index: int | None
    facts: Facts
    bound: Bound = "exact"


def is_seed(key: str) -> bool:
    """Whether an entry of a configuration is a seed: `seed`, `model.seed`, `data_seed`."""
    return key.lower().endswith("seed")


def list_candidates(session: Session, *, project: str | None, limit: int) -> list[Candidate]:
    """The newest runs, newest first, of one project or of all."""
    query = select(RunRow.id).order_by(RunRow.created_at_ms.desc(), RunRow.id).limit(limit)
    if project is not None:
        query = query.where(RunRow.project == project)
    return _candidates(session, list(session.scalars(query)))


def find_candidates(session: Session, wanted: Sequence[str]) -> list[Candidate]:
    """Runs by id, or by a name that only one run has; each once, in the order asked for.

    Raises:
        RunNotFound: there is no such run.
        Invalid: several runs have that name.
    """
    known = set(session.scalars(select(RunRow.id).where(RunRow.id.in_(wanted))))
    found = [one if one in known else _by_name(session, one) for one in wanted]
    return _candidates(session, list(dict.fromkeys(found)))


def read_description(session: Session, candidate: Candidate, *, metrics: Sequence[str]) -> Description | None:
    """What a run declared, from the series of these metrics; None where it has none of them.

    Raises:
        NotAFamily: its width cannot be read from its shapes.
    """
    series = list(_series(session, candidate.run, metrics))
    return _describe(session, candidate, series) if series else None


def read_member(session: Session, candidate: Candidate) -> Member | None:
    """A run as a member of a family: the metrics that the check uses, at the steps of its windows; None where it has
    none of them.

    Raises:
        NotAFamily: its width cannot be read from its shapes.
    """
    series = list(_series(session, candidate.run, METRICS_USED))
    if not series:
        return None
    described = _describe(session, candidate, series)
    ids = np.array([series[place].id for place in described.places], dtype=np.int64)
    columns = columns_for(session, ids, [series[place] for place in described.places])
    start, steps, values = _read_windows(session, candidate, columns)
    return Member(
        name=candidate.name,
        shape=described.shape,
        seed=candidate.seed,
        values=summarise(described.columns, steps, values, start),
        facts=described.facts,
        run=candidate.run,
    )


def _describe(session: Session, candidate: Candidate, series: Sequence[SeriesOfRun]) -> Description:
    query = select(cast(AttemptRow.modules, Text), cast(AttemptRow.routing, Text))
    modules, routing = session.execute(query.where(AttemptRow.id == candidate.attempt_id)).one()
    return describe(
        series,
        _MODULES.decode(modules) or (),
        (_ROUTES.decode(routing) if routing else None) or (),
        parametrization=candidate.parametrization,
    )


def _series(session: Session, run: str, metrics: Sequence[str]) -> Iterator[SeriesOfRun]:
    """Series of these metrics, in the order in which they were declared. Facts are decoded from the stored text:
    ten thousand of them are read for every run."""
    stored = SeriesRow.__table__.c
    query = select(stored.id, stored.metric, stored.subject, stored.index, cast(stored.facts, Text), stored.bound)
    chosen = query.where(stored.run_id == run, stored.metric.in_(metrics)).order_by(stored.id)
    known: dict[str, Facts] = {}  # heads of one attention have the same
    for key, metric, subject, index, text, bound in session.connection().execute(chosen).all():
        facts = known.get(text)
        if facts is None:
            facts = known[text] = _FACTS.decode(text)
        if bound == "upper" and facts.placement in PIECEWISE:
            continue  # of a pair of bounds the lower one, which is the closer, speaks
        yield SeriesOfRun(key, metric, subject, None if index == NO_INDEX else index, facts, bound)


def _read_windows(session: Session, candidate: Candidate, columns: Columns) -> tuple[int, Ids, Floats]:
    """The run's first step; the steps of its windows, and the values (steps, columns) there: NaN where nothing was
    measured, infinity where NaN was."""
    segments = history(session, candidate.run, candidate.attempt)
    recorded = {segment: _recorded(session, segment, columns) for segment in segments}
    steps = sorted({step for plans in recorded.values() for of_plan in plans.values() for step in of_plan})
    start = _start_of(session, segments[-1])
    wanted = set(needed_steps(steps, start))
    pieces: list[tuple[Ids, Floats]] = []
    for segment in reversed(segments):
        rare = _rare(recorded[segment].values(), start, steps[-1] if steps else start)
        own = {step for of_plan in recorded[segment].values() for step in of_plan}
        chosen = sorted(own & (wanted | rare))
        if not chosen:
            continue
        matrix = read_matrix(session, segment.attempt_id, chosen, columns)
        lost = matrix.present & ~np.isfinite(matrix.values)
        pieces.append((matrix.steps, np.where(lost, np.float32(np.inf), matrix.values)))
    if not pieces:
        return start, np.empty(0, np.int64), np.empty((0, len(columns.ids)), np.float32)
    return start, np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])


def _recorded(session: Session, segment: Segment, columns: Columns) -> dict[int, list[int]]:
    """Steps at which one of the columns may have a point, by plan."""
    plans = list_plans(session, segment.attempt_id)
    wanted = {plan.number for plan in plans if _holds_any(plan.series, columns.ids)}
    found: dict[int, list[int]] = {}
    if wanted:
        for step, plan in steps_between(session, segment, first=0, last=LAST_STEP, plans=sorted(wanted)).tolist():
            found.setdefault(plan, []).append(step)
    return found


def _rare(plans: Iterable[list[int]], start: int, last: int) -> set[int]:
    """The last steps of each plan in the late part of a run."""
    late = last - LATE_SHARE * (last - start)
    return {step for steps in plans for step in steps[-RARE_STEPS:] if step >= late}


def _holds_any(series: NDArray[np.int64], wanted: Ids) -> bool:
    return bool(np.isin(series, wanted).any())


def _start_of(session: Session, segment: Segment) -> int:
    """The step at which a history began."""
    found = session.scalar(select(AttemptRow.start_step).where(AttemptRow.id == segment.attempt_id))
    return int(found or 0)


def _candidates(session: Session, runs: Sequence[str]) -> list[Candidate]:
    """Runs with their newest attempts, in this order; a run without an attempt is left out."""
    query = (
        select(
            RunRow.id, RunRow.name, RunRow.project, RunRow.parametrization, RunRow.config, RunRow.created_at_ms,
            StandingRow.cursor, AttemptRow.id, AttemptRow.name,
        )
        .join(AttemptRow, AttemptRow.run_id == RunRow.id)
        .join(StandingRow, StandingRow.run_id == RunRow.id)
        .where(RunRow.id.in_(runs))
        .order_by(AttemptRow.started_at_ms, AttemptRow.number)
    )  # fmt: skip
    found = {row[0]: Candidate(*row) for row in session.execute(query)}  # of several attempts the newest stays
    return [found[run] for run in runs if run in found]


def _by_name(session: Session, name: str) -> str:
    named = list(session.scalars(select(RunRow.id).where(RunRow.name == name).order_by(RunRow.created_at_ms)))
    if len(named) > 1:
        raise Invalid(f"{len(named)} runs are called {name!r}; name one by its id: {', '.join(named[:8])}")
    if not named:
        names = session.execute(select(RunRow.name, RunRow.id))
        near = difflib.get_close_matches(name, [text for row in names for text in row], n=1, cutoff=_NEAR)
        raise RunNotFound(name, nearest=near[0] if near else None)
    return named[0]


_FACTS: Final = msgspec.json.Decoder(Facts)
_MODULES: Final = msgspec.json.Decoder(tuple[Module, ...] | None)
_ROUTES: Final = msgspec.json.Decoder(tuple[Route, ...] | None)
