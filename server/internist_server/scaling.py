"""Scaling checks that were asked for: families and members are read from the store, and kept until a run changes."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Final, Generic, TypeVar

from sqlalchemy.orm import Session

from internist.scaling.errors import NotAFamily
from internist.scaling.members import Member
from internist.scaling.report import report as judge
from internist.schema.scaling import Excluded, Exponent, Scaling, ScalingFamily, ScalingReport
from internist.schema.views import Number
from internist_server.errors import FamilyNotFound, Invalid
from internist_server.families import Relative, infer
from internist_server.store import scaling as store
from internist_server.store.numbers import number
from internist_server.store.scaling import METRICS_OF_SHAPE, Candidate

MAX_RUNS: Final = 1_000
"""The newest runs that are looked through for families, of a project where one is named."""
MAX_KEPT: Final = 4_096
MAX_REPORTS: Final = 64
UNMEASURED: Final = "nothing that the check uses has been measured yet"

Version = tuple[str, int]
"""A run, and its cursor: the same as long as nothing of the run has changed."""
T = TypeVar("T")


class Scalings:
    """Answers what `GET /scaling` asks. One for all threads of a server."""

    def __init__(self) -> None:
        self._relatives: _Kept[Relative | str | None] = _Kept(MAX_KEPT)
        self._members: _Kept[Member | str] = _Kept(MAX_KEPT)
        self._reports: _Kept[ScalingReport] = _Kept(MAX_REPORTS)

    def read(
        self, session: Session, *, runs: Sequence[str] = (), family: str | None = None, project: str | None = None
    ) -> Scaling:
        """The report of these runs, or of a family; without either the families there are, with the report of the
        only one that can be checked.

        Raises:
            RunNotFound, FamilyNotFound: there is no such run or family.
            Invalid: the runs are no family; the message says why.
        """
        if runs and family is not None:
            raise Invalid("name either runs or a family, not both")
        if runs:
            report = self._report(session, store.find_candidates(session, runs))
            return Scaling((), (), None, report)
        candidates = store.list_candidates(session, project=project, limit=MAX_RUNS)
        families, strangers = self._families(session, candidates)
        chosen = _choose(families, family)
        if chosen is None:
            return Scaling(tuple(families), tuple(strangers), None, None)
        by_run = {one.run: one for one in candidates}
        report = self._report(session, [by_run[member.run] for member in chosen.runs])
        return Scaling(tuple(families), tuple(strangers), chosen.id, report)

    def _families(
        self, session: Session, candidates: Sequence[Candidate]
    ) -> tuple[list[ScalingFamily], list[Excluded]]:
        """The families, and runs that were measured and whose shape cannot be read."""
        relatives: list[Relative] = []
        strangers: list[Excluded] = []
        for one in candidates:
            known, found = self._relatives.get(_version(one))
            if not known:
                found = self._relatives.keep(_version(one), _relative(session, one))
            if isinstance(found, Relative):
                relatives.append(found)
            elif found is not None:
                strangers.append(Excluded(one.run, one.name, found))
        return infer(relatives), strangers

    def _report(self, session: Session, candidates: Sequence[Candidate]) -> ScalingReport:
        versions = tuple(_version(one) for one in candidates)
        _, report = self._reports.get(versions)
        return report or self._reports.keep(versions, self._judge(session, _named_apart(candidates)))

    def _judge(self, session: Session, candidates: Sequence[Candidate]) -> ScalingReport:
        members: list[Member] = []
        excluded: list[Excluded] = []
        for one in candidates:
            _, found = self._members.get(_version(one))
            found = found or self._members.keep(_version(one), _member(session, one))
            if isinstance(found, Member):
                members.append(replace(found, name=one.name))
            else:
                excluded.append(Excluded(one.run, one.name, found))
        try:
            return _shown(judge(members, excluded))
        except NotAFamily as error:
            raise Invalid("; ".join([str(error), *(f"{one.name}: {one.reason}" for one in excluded)])) from error


class _Kept(Generic[T]):
    """Answers by key: those that were made or asked for last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable) -> tuple[bool, T | None]:
        """Whether there is an answer, and it."""
        with self._lock:
            if key not in self._answers:
                return False, None
            self._answers.move_to_end(key)
            return True, self._answers[key]

    def keep(self, key: Hashable, answer: T) -> T:
        """Keep an answer, and give it back."""
        with self._lock:
            self._answers[key] = answer
            while len(self._answers) > self._size:
                self._answers.popitem(last=False)
        return answer


def _version(candidate: Candidate) -> Version:
    return candidate.run, candidate.cursor


def _relative(session: Session, candidate: Candidate) -> Relative | str | None:
    """The run with what tells its family; why that cannot be read; None where nothing was declared yet."""
    try:
        described = store.read_description(session, candidate, metrics=METRICS_OF_SHAPE)
    except NotAFamily as error:
        return str(error)
    if described is None:
        return None
    member = Member(candidate.name, described.shape, candidate.seed, {}, described.facts, candidate.run)
    return Relative(candidate, member)


def _member(session: Session, candidate: Candidate) -> Member | str:
    """The run as a member, or why it is none."""
    try:
        member = store.read_member(session, candidate)
    except NotAFamily as error:
        return str(error)
    return member if member is not None and member.values else UNMEASURED


def _choose(families: Sequence[ScalingFamily], wanted: str | None) -> ScalingFamily | None:
    """The family that was named, else the only one that can be checked."""
    if wanted is not None:
        named = next((one for one in families if one.id == wanted), None)
        if named is None:
            raise FamilyNotFound(wanted)
        return named
    checkable = [one for one in families if one.checkable]
    return checkable[0] if len(checkable) == 1 else None


def _named_apart(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with names that tell them apart: where several share one, with the beginnings of their ids."""
    counts = Counter(one.name for one in candidates)
    return [one if counts[one.name] == 1 else replace(one, name=f"{one.name} {one.run[:8]}") for one in candidates]


def _shown(report: ScalingReport) -> ScalingReport:
    """The report with its numbers as JSON carries them."""
    return replace(report, exponents=tuple(_shown_exponent(one) for one in report.exponents))


def _shown_exponent(one: Exponent) -> Exponent:
    return replace(
        one,
        exponent=_number(one.exponent),
        standard_error=_number(one.standard_error),
        low95=_number(one.low95),
        high95=_number(one.high95),
        low90=_number(one.low90),
        high90=_number(one.high90),
        curvature=_number(one.curvature),
        values=tuple(_number(value) for value in one.values),
    )


def _number(value: Number) -> Number:
    return number(None if value is None else float(value))
