"""Alerts: what fired, what still does, and who has seen it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import Field

from internist.schema.alerts import Alert, AlertsPage, AlertState
from internist.schema.conditions import CONDITION
from internist.schema.rules import ABSENT, RUN_RULE, THRESHOLD
from internist_server.inputs import LAST_INTEGER, LINE
from internist_server.routes import examples
from internist_server.routes.access import CallerDep
from internist_server.routes.answers import ViewRoute
from internist_server.routes.runs import Limit, Offset
from internist_server.routes.services import ServicesDep, SessionDep
from internist_server.store import alerts

Number = Annotated[int, Path(ge=1, le=LAST_INTEGER)]
"""An id that a database can hold."""
router = APIRouter(prefix="/api/v1/alerts", route_class=ViewRoute, tags=["alerts"])


AlertCondition = Literal[(*CONDITION, *RUN_RULE, THRESHOLD, ABSENT, "user")]  # type: ignore[valid-type]
"""What an alert may be of: a condition of the judge, the run's life or end, a rule or the code of the user's."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Who has seen an alert."""

    by: Annotated[str, Field(min_length=1, max_length=200, examples=["ada"]), LINE]
    new_normal: bool = False
    """What the value is now is well: its baseline is taken anew from there on, and the alert is resolved."""


@router.get("", responses={200: examples.of("AlertsPage")})
def list_alerts(
    session: SessionDep,
    caller: CallerDep,
    run: Annotated[str | None, Query(max_length=128, description="Only of this run.")] = None,
    state: Annotated[list[AlertState] | None, Query(description="Only in these states; may be repeated.")] = None,
    condition: Annotated[AlertCondition | None, Query(description="Only of this condition.")] = None,
    limit: Limit = 200,
    offset: Offset = 0,
) -> AlertsPage:
    """Alerts, open ones first, then newest first."""
    return alerts.list_alerts(
        session, run=run, project=caller.only(None), states=state or (), condition=condition, limit=limit, offset=offset
    )


@router.delete(
    "/{alert_id}/acknowledge",
    responses={404: {"description": "There is no such alert."}, 200: examples.of("Alert")},
)
def withdraw(alert_id: Number, services: ServicesDep) -> Alert:
    """Take an acknowledgement back: of what still fires, receivers are told again."""
    return services.handling.withdraw(alert_id)


@router.post(
    "/{alert_id}/acknowledge",
    responses={
        404: {"description": "There is no such alert."},
        422: {"description": "There is no new normal to take: it is over, or judged by no baseline of its own."},
        200: examples.of("Alert"),
    },
)
def acknowledge(alert_id: Number, who: Acknowledgement, services: ServicesDep) -> Alert:
    """Say that a person has seen the alert, and, if so, that what it tells of is the new normal. The first to say that
    they have seen it stays."""
    return services.ingest.acknowledge(alert_id, by=who.by, is_new_normal=who.new_normal)
