"""Whether the server lives, whether it can work, and what it counts."""

from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from internist_migrations.upgrade import is_current
from internist_server import observability
from internist_server.routes import examples
from internist_server.routes.answers import ViewRoute
from internist_server.routes.problems import problem
from internist_server.routes.services import ServicesDep, SessionDep
from internist_server.store import alerts, deliveries

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
    responses={503: {"description": "The database does not answer, or is not migrated."}, 200: examples.of("Health")},
)
def readyz(services: ServicesDep) -> Response | Health:
    """Whether the database answers and is migrated. Open to everyone."""
    try:
        if is_current(services.database.engine):
            return Health("ok", "internist")
    except SQLAlchemyError:
        return problem(503, "database_unavailable", "the database does not answer")
    return problem(503, "not_migrated", "the database is not migrated; `internist serve` migrates it when it starts")


@router.get("/metrics", response_class=Response, responses={200: examples.metrics()})
def metrics(session: SessionDep) -> Response:
    """What the server counts, for Prometheus."""
    text = observability.exposition(open_alerts=alerts.count_firing(session), undelivered=deliveries.counts(session))
    return Response(text, headers={"Content-Type": observability.CONTENT_TYPE})
