"""Whether the server lives, whether it can work, and what it counts."""

from dataclasses import dataclass
from typing import Literal

from anyio import to_thread
from fastapi import APIRouter, Response

from internist_server import observability
from internist_server.problem import problem
from internist_server.routes import examples
from internist_server.routes.answers import ViewRoute
from internist_server.routes.services import ServicesDep, SessionDep
from internist_server.store import alerts, deliveries, overview

router = APIRouter(route_class=ViewRoute, tags=["health"])


@dataclass(frozen=True, slots=True)
class Health:
    """That the server answers."""

    status: Literal["ok"]
    service: Literal["internist"]


@router.get("/healthz", responses={200: examples.of("Health")})
async def healthz() -> Health:
    """Whether the process answers. Open to everyone, and never queued."""
    return Health("ok", "internist")


@router.get(
    "/readyz",
    response_model=Health,
    responses={
        503: {"description": "The database takes no write, is not migrated, not the one it was, or has no room left."},
        200: examples.of("Health"),
    },
)
async def readyz(services: ServicesDep) -> Response | Health:
    """Whether the database takes a write, is the one it was, is migrated, and has room. Open to everyone."""
    unready = await to_thread.run_sync(services.readiness.look, limiter=services.looking)
    return Health("ok", "internist") if unready is None else problem(503, unready.code, unready.detail)


@router.get("/metrics", response_class=Response, responses={200: examples.metrics()})
def metrics(session: SessionDep, services: ServicesDep) -> Response:
    """What the server counts, for Prometheus."""
    clock = services.clock
    standing = observability.Standing(
        runs=overview.count_by_state(session, now_ms=clock(), since_ms=clock.listening_since_ms),
        open_alerts=alerts.count_firing(session),
        undelivered={(name, str(state)): count for (name, state), count in deliveries.counts(session).items()},
        lanes={lane.name: (lane.active, lane.waiting) for lane in services.lanes},
        database_bytes=overview.database_bytes(session),
    )
    return Response(observability.exposition(standing), headers={"Content-Type": observability.CONTENT_TYPE})
