"""Rules: those of the file, those that are set here, and the thresholds of one run."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from internist.schema.wire import Threshold
from internist_server.alerts.rules import MAX_RULES, Rule, RuleSet
from internist_server.routes import examples
from internist_server.routes.answers import ViewRoute
from internist_server.routes.services import ServicesDep, SessionDep
from internist_server.store.attempts import require_run

router = APIRouter(prefix="/api/v1", route_class=ViewRoute, tags=["rules"])

_REFUSED: dict[int | str, dict[str, Any]] = {
    409: {"description": "The file of rules has a rule of that name already."},
    422: {"description": "A field is not known, a value cannot be, or a receiver is not there."},
}
_NO_RUN: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such run."}}


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules on all runs, in the order in which they are asked: a later one wins."""

    file: tuple[Rule, ...]
    """Of the server's file, which are changed there."""
    rules: tuple[Rule, ...]
    """That were set here."""
    receivers: tuple[str, ...]
    """Names that rules may name."""


class Limits(BaseModel):
    """The thresholds of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thresholds: Annotated[tuple[Threshold, ...], Field(max_length=MAX_RULES)]


@router.get("/rules", responses={200: examples.of("Rules")})
def read_rules(services: ServicesDep, session: SessionDep) -> Rules:
    """The rules of the user's own on all runs."""
    book = services.book
    names = tuple(receiver.name for receiver in book.receivers)
    return Rules(book.file.rule, book.set_rules(session).rules, names)


@router.put("/rules", responses={**_REFUSED, 200: examples.of("RuleSet")})
def set_rules(rules: RuleSet, services: ServicesDep) -> RuleSet:
    """Set the rules of the API, all of them at once. Live runs are judged by them from their next step on."""
    return services.handling.set_rules(rules)


@router.get("/runs/{run_id}/thresholds", responses={**_NO_RUN, 200: examples.of("Limits")})
def read_thresholds(run_id: str, services: ServicesDep, session: SessionDep) -> Limits:
    """The thresholds of one run, as it was started with or as they were set since."""
    require_run(session, run_id)
    return Limits(thresholds=services.book.thresholds(session, run_id))


@router.put("/runs/{run_id}/thresholds", responses={**_NO_RUN, **_REFUSED, 200: examples.of("Limits")})
def set_thresholds(run_id: str, limits: Limits, services: ServicesDep) -> Limits:
    """Set the thresholds of one run, all of them at once; they hold from its next step on."""
    return Limits(thresholds=services.handling.set_thresholds(run_id, limits.thresholds))
