"""How families of runs scale in width and depth."""

from typing import Annotated, Final

from fastapi import APIRouter, Query

from internist.schema.scaling import Scaling
from internist_server.routes import examples
from internist_server.routes.access import CallerDep, require_reach
from internist_server.routes.answers import ViewRoute
from internist_server.routes.runs import Responses
from internist_server.routes.services import ServicesDep, SessionDep

router = APIRouter(prefix="/api/v1/scaling", route_class=ViewRoute, tags=["scaling"])

MAX_MEMBERS: Final = 512
"""Runs of one report."""
_STATUS: Final[Responses] = {
    404: {"description": "There is no such run or family."},
    422: {
        "description": "The runs cannot be compared: fewer than three sizes, or they differ in more than width and "
        "depth. The detail says what, in a sentence."
    },
}
Runs = Annotated[
    list[str] | None,
    Query(
        max_length=MAX_MEMBERS,
        description="Exactly these runs, by id, or by a name that only one run has; repeated for each.",
    ),
]


@router.get("", responses={**_STATUS, 200: examples.of("Scaling")})
def read_scaling(
    services: ServicesDep,
    session: SessionDep,
    caller: CallerDep,
    runs: Runs = None,
    family: Annotated[str | None, Query(max_length=128, description="A family's id, as the list gives it.")] = None,
    project: Annotated[str | None, Query(max_length=512, description="Only families of this project.")] = None,
) -> Scaling:
    """The scaling check: exponents in width and depth, and what is wrong with them, of the runs or the family named.

    Without either, the families among the newest thousand runs: runs of one project that agree in everything but width,
    depth and seed; with the report of the only one that can be checked, where there is just one.
    """
    for run in runs or ():
        require_reach(services, caller, run)
    return services.scalings.read(session, runs=runs or (), family=family, project=caller.only(project))
