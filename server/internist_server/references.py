"""References: the run or the file that another run is held to, found, read once, and kept with the run."""

import logging
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from internist.scaling.counting import Family
from internist.scaling.description import Description
from internist.scaling.diagnosis import family_of_name
from internist.scaling.errors import NotAFamily
from internist.scaling.transfer import Sizes, Transfer
from internist.schema.reference import Trajectory
from internist_server.errors import Invalid, NotFound
from internist_server.judge.outline import blocks_of
from internist_server.judge.reference import Head, Yardstick
from internist_server.store import references as store
from internist_server.store import scaling
from internist_server.store.attempts import Attempt, newest_attempt
from internist_server.store.scaling import METRICS_OF_SHAPE, Candidate

log = logging.getLogger(__name__)

DECLARED: Final = ("mup", "spectral")
"""Parametrisations under which numbers from theory are targets for weights, and a larger run differs from a smaller one
by nothing but what muP says. An optimizer alone promises none of it: Muon with an ordinary initialisation and decay
keeps no weight at R(W) of order one."""


@dataclass(frozen=True, slots=True)
class Found:
    """A run's reference, or why there is none."""

    yardstick: Yardstick | None
    reason: str | None = None


def find(session: Session, attempt: Attempt, *, keeps: bool) -> Found:
    """What an attempt that names a reference is held to.

    Args:
        session: of the request.
        attempt: it names a reference.
        keeps: keep it with the attempt, so that every later step is judged by the same.
    """
    name = attempt.reference or ""
    try:
        trajectory = store.load_trajectory(session, attempt.id)
        if trajectory is None:
            if store.has_pieces(session, attempt.id):
                return Found(None, f"the reference {name!r} has not come in whole yet")
            trajectory = trajectory_of(session, name)
            if keeps:
                store.keep_trajectory(session, attempt.id, trajectory)
        return Found(yardstick(session, attempt, trajectory))
    except (NotFound, Invalid) as error:
        return Found(None, str(error))


def trajectory_of(session: Session, wanted: str) -> Trajectory:
    """The trajectory of a stored run, by its id or by a name that only it has.

    Raises:
        RunNotFound: there is no such run.
        Invalid: several runs have that name, it holds nothing that others can be held to, or its width cannot be read
            from its shapes.
    """
    (candidate,) = scaling.find_candidates(session, [wanted])
    described = _described(session, candidate)
    series = store.series_of(session, candidate.run)
    if described is None or not series:
        raise Invalid(f"run {wanted!r} has measured nothing yet that another can be held to")
    shape = described.shape
    head = Head(candidate.run, candidate.name, shape.width, shape.depth, shape.head_width, candidate.parametrization)
    attempt = newest_attempt(session, candidate.run)
    trajectory = store.read_trajectory(session, attempt, blocks_of(series), series, head)
    if not trajectory.curves:
        raise Invalid(f"run {wanted!r} has measured nothing yet that another can be held to")
    return trajectory


def yardstick(session: Session, attempt: Attempt, trajectory: Trajectory) -> Yardstick:
    """A trajectory, and how many times larger the attempt's model is.

    Raises:
        Invalid: it has told no shapes yet, or its width cannot be read from them.
    """
    (candidate,) = scaling.find_candidates(session, [attempt.run])
    described = _described(session, candidate)
    if described is None:
        raise Invalid("the run has measured nothing yet whose size could be compared with its reference")
    shape = described.shape
    own, other = shape.head_width, trajectory.head_width
    sizes = Sizes(
        width=shape.width / trajectory.width,
        depth=max(shape.depth, 1) / max(trajectory.depth, 1),
        head_width=own / other if own and other else 1.0,
    )
    return Yardstick(trajectory, sizes, _transfer(candidate, described))


def _described(session: Session, candidate: Candidate) -> Description | None:
    try:
        return scaling.read_description(session, candidate, metrics=METRICS_OF_SHAPE)
    except NotAFamily as error:
        raise Invalid(f"run {candidate.name!r} has no size to compare: {error}") from error


def _transfer(candidate: Candidate, described: Description) -> Transfer:
    algorithms = described.facts.algorithms
    hidden: Family = family_of_name(algorithms.get("hidden", ""))
    return Transfer(
        hidden=hidden,
        rest=family_of_name(algorithms.get("embedding", "")),
        declared=candidate.parametrization in DECLARED,
        branch_matrices=described.shape.block_matrices or 2,
    )
