"""What became of messages to receivers."""

from typing import Annotated

from fastapi import APIRouter, Query

from internist.schema.alerts import Delivery
from internist_server.routes import examples
from internist_server.routes.access import CallerDep
from internist_server.routes.answers import ViewRoute
from internist_server.routes.runs import Limit
from internist_server.routes.services import SessionDep
from internist_server.store import deliveries

router = APIRouter(prefix="/api/v1/deliveries", route_class=ViewRoute, tags=["alerts"])


@router.get("", responses={200: examples.of("Deliveries")})
def list_deliveries(
    session: SessionDep,
    caller: CallerDep,
    state: Annotated[list[deliveries.State] | None, Query(description="Only in these states; may be repeated.")] = None,
    limit: Limit = 200,
) -> tuple[Delivery, ...]:
    """Messages by receiver, the newest first: which wait, which fail and why, which were given up."""
    return tuple(deliveries.list_deliveries(session, states=state or (), project=caller.only(None), limit=limit))
