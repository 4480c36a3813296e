"""Runs, and what the judge says of them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from internist.schema.views import Coverage, Ranks, Routing, Run, Usage, Verdicts
from internist_server.routes import examples
from internist_server.routes.access import CallerDep
from internist_server.routes.answers import ViewRoute
from internist_server.routes.run_changes import RunChanges
from internist_server.routes.services import ServicesDep, SessionDep
from internist_server.store import attempts, runs
from internist_server.store.coverage import read_coverage
from internist_server.store.order import Sort
from internist_server.store.ranks_view import read_ranks
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
    name: Annotated[
        str | None, Query(max_length=512, description="A part of the run's name, project or id, or of a tag.")
    ] = None,
    archived: Annotated[bool, Query(description="Those that are archived, instead of the others.")] = False,
    sort: Annotated[Sort, Query(description="By what; pinned ones come first. `verdict`: the worst first.")] = "newest",
    reverse: Annotated[bool, Query(description="The other way; what has no value stays last.")] = False,
    limit: Limit = 100,
    offset: Offset = 0,
) -> tuple[Run, ...]:
    """Runs: pinned ones, then the newest, first."""
    wanted = runs.Listing(caller.only(project), name, archived, sort, reverse)
    found = runs.list_runs(
        session, wanted, limit=limit, offset=offset, now_ms=services.clock(),
        since_ms=services.clock.listening_since_ms,
    )  # fmt: skip
    return tuple(found)


@router.get("/{run_id}", responses={**NOT_FOUND, 200: examples.of("Run")})
def read_run(run_id: str, services: ServicesDep, session: SessionDep) -> Run:
    """One run: its state, its verdict in a sentence, its attempts."""
    return runs.read_run(session, run_id, now_ms=services.clock(), since_ms=services.clock.listening_since_ms)


@router.patch("/{run_id}", responses={**NOT_FOUND, 200: examples.of("Run")})
def change_run(run_id: str, changes: RunChanges, services: ServicesDep, session: SessionDep) -> Run:
    """Rename, tag, note, pin or archive a run: what is not named stays. A later start of the run does not undo it."""
    services.handling.label(run_id, changes.labels())
    return read_run(run_id, services, session)


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


@router.get("/{run_id}/ranks", responses={**NOT_FOUND, 200: examples.of("Ranks")})
def ranks(
    run_id: str,
    services: ServicesDep,
    session: SessionDep,
    attempt: AttemptQuery = None,
    limit: Annotated[int, Query(ge=0, le=10_000, description="Ranks of the answer; counts are of all.")] = 1_000,
) -> Ranks:
    """The ranks: who is silent, who is behind, whose loss, gradients or weights are unlike the others'; those first."""
    return read_ranks(
        session, attempts.choose_attempt(session, run_id, attempt), now_ms=services.clock(),
        since_ms=services.clock.listening_since_ms, limit=limit,
    )  # fmt: skip


@router.get("/{run_id}/routing", responses={**NOT_FOUND, 200: examples.of("Routing")})
def routing(run_id: str, session: SessionDep, attempt: AttemptQuery = None) -> Routing:
    """How each parameter is stepped: its optimizer, algorithm and group, as they were at the start."""
    return read_routing(session, attempts.choose_attempt(session, run_id, attempt))
