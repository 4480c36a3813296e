"""Stored runs, judged once more, by themselves or by a reference run; and what others are held to."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from internist.schema.check import Check
from internist.schema.reference import Trajectory
from internist_server import checks, references
from internist_server.errors import Malformed
from internist_server.routes import examples
from internist_server.routes.access import CallerDep, require_reach
from internist_server.routes.answers import ViewRoute
from internist_server.routes.runs import AttemptQuery, Responses
from internist_server.routes.services import BodyDep, ServicesDep, SessionDep
from internist_server.store import attempts, scaling
from internist_server.store.attempts import Attempt
from internist_server.store.references import require_known

router = APIRouter(prefix="/api/v1/runs", route_class=ViewRoute, tags=["checks"])

_STATUS: Final[Responses] = {
    404: {"description": "There is no such run, attempt or reference."},
    422: {"description": "The run cannot be held to that reference. The detail says why, in a sentence."},
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Trajectory"},
                "example": examples.REQUESTS["Trajectory"],
            }
        },
    }
}
_DECODER: Final = msgspec.json.Decoder(Trajectory)


@router.get("/{run_id}/check", responses={**_STATUS, 200: examples.of("Check")})
def check_run(
    run_id: str,
    session: SessionDep,
    services: ServicesDep,
    caller: CallerDep,
    reference: Annotated[
        str | None, Query(max_length=512, description="The run to hold it to, by id or by a name that only it has.")
    ] = None,
    attempt: AttemptQuery = None,
) -> Check:
    """All steps of the run, judged once more: what was out of its band, when, and by what. Nothing is stored, and no
    alert is opened."""
    if reference is not None:
        require_reach(services, caller, reference)
    return checks.check(session, _attempt(session, run_id, attempt), reference=reference)


@router.post("/{run_id}/check", openapi_extra=_BODY, responses={**_STATUS, 200: examples.of("Check")})
def check_run_by_trajectory(run_id: str, body: BodyDep, session: SessionDep, attempt: AttemptQuery = None) -> Check:
    """The same, held to a trajectory that is sent: a reference of another server, or one that was deleted here."""
    try:
        trajectory = _DECODER.decode(body.content)
    except msgspec.MsgspecError as error:
        raise Malformed(f"the body is no trajectory: {error}") from error
    require_known(trajectory)
    return checks.check(session, _attempt(session, run_id, attempt), trajectory=trajectory)


@router.get("/{run_id}/trajectory", responses={**_STATUS, 200: examples.of("Trajectory")})
def read_trajectory(run_id: str, session: SessionDep) -> Trajectory:
    """What another run can be held to: every judged metric of this one by place, relative depth and step."""
    return references.trajectory_of(session, run_id)


def _attempt(session: Session, run: str, attempt: str | None) -> Attempt:
    """An attempt of a run that is named by its id, or by a name that only it has."""
    (candidate,) = scaling.find_candidates(session, [run])
    return attempts.choose_attempt(session, candidate.run, attempt)
