"""Runs, and what the judge says of them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from internist.schema.views import Coverage, Routing, Run, Usage, Verdicts
from internist_server.routes import examples
from internist_server.routes.access import CallerDep
from internist_server.routes.answers import ViewRoute
from internist_server.routes.services import ServicesDep, SessionDep
from internist_server.store import attempts, runs
from internist_server.store.coverage import read_coverage
from internist_server.store.removal import read_usage
from internist_server.store.routing import read_routing

router = APIRouter(prefix="/api/v1/runs", route_class=ViewRoute, tags=["runs"])

AttemptQuery = Annotated[str | None, Query(max_length=128, description="An attempt's id; the newest without one.")]
Responses = dict[int | str, dict[str, Any]]
Limit = Annotated[int, Query(ge=1, le=1_000, description="At most so many.")]
Offset = Annotated[int, Query(ge=0, le=1 << 40, description="Leave out so many first.")]
NOT_FOUND: Responses = {404: {"description": "There is no such run or attempt."}}


@router.get("", responses={200: examples.of("Runs")})
def list_runs(
    services: ServicesDep,
    session: SessionDep,
    caller: CallerDep,
    project: Annotated[str | None, Query(max_length=512, description="Only of this project.")] = None,
    name: Annotated[str | None, Query(max_length=512, description="A part of the run's name, project or id.")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> tuple[Run, ...]:
    """Runs, newest first."""
    found = runs.list_runs(
        session, project=caller.only(project), name=name, limit=limit, offset=offset, now_ms=services.clock(),
        since_ms=services.clock.listening_since_ms,
    )  # fmt: skip
    return tuple(found)


@router.get("/{run_id}", responses={**NOT_FOUND, 200: examples.of("Run")})
def read_run(run_id: str, services: ServicesDep, session: SessionDep) -> Run:
    """One run: its state, its verdict in a sentence, its attempts."""
    return runs.read_run(session, run_id, now_ms=services.clock(), since_ms=services.clock.listening_since_ms)


@router.delete("/{run_id}", responses={**NOT_FOUND, 200: examples.of("Usage")})
def delete_run(run_id: str, services: ServicesDep) -> Usage:
    """Delete a run with all its points and alerts, for good. The answer says what it took."""
    return services.ingest.delete(run_id)


@router.get("/{run_id}/usage", responses={**NOT_FOUND, 200: examples.of("Usage")})
def usage(run_id: str, session: SessionDep) -> Usage:
    """How many bytes the points and judgements of a run take."""
    return read_usage(session, run_id)


@router.get("/{run_id}/verdicts", responses={**NOT_FOUND, 200: examples.of("Verdicts")})
def read_verdicts(
    run_id: str,
    services: ServicesDep,
    session: SessionDep,
    attempt: AttemptQuery = None,
    limit: Annotated[int, Query(ge=0, le=100_000, description="Members of the answer; roll-ups count all.")] = 500,
) -> Verdicts:
    """The verdict board: six cards, every block, and the members, worst first."""
    return services.boards.read(session, attempts.choose_attempt(session, run_id, attempt), limit=limit)


@router.get("/{run_id}/coverage", responses={**NOT_FOUND, 200: examples.of("Coverage")})
def coverage(run_id: str, session: SessionDep, attempt: AttemptQuery = None) -> Coverage:
    """What of the model is measured, and what is not and why."""
    return read_coverage(session, attempts.choose_attempt(session, run_id, attempt))


@router.get("/{run_id}/routing", responses={**NOT_FOUND, 200: examples.of("Routing")})
def routing(run_id: str, session: SessionDep, attempt: AttemptQuery = None) -> Routing:
    """How each parameter is stepped: its optimizer, algorithm and group, as they were at the start."""
    return read_routing(session, attempts.choose_attempt(session, run_id, attempt))
