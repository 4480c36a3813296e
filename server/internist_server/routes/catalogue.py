"""What can be measured and what must hold, as data."""

from dataclasses import dataclass

from fastapi import APIRouter

from internist.schema.conditions import CONDITIONS, CRITERIA, Condition, Criterion
from internist.schema.metrics import CATALOGUE, Metric
from internist.schema.rules import RULES, Rule
from internist_server.routes import examples
from internist_server.routes.answers import ViewRoute

router = APIRouter(prefix="/api/v1/metrics", route_class=ViewRoute, tags=["catalogue"])


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every metric this server knows, the conditions, what they ask of which metric, and the rules that alarm."""

    metrics: tuple[Metric, ...]
    conditions: tuple[Condition, ...]
    criteria: tuple[Criterion, ...]
    rules: tuple[Rule, ...]


@router.get("/catalogue", responses={200: examples.of("Catalogue")})
def read_catalogue() -> Catalogue:
    """The catalogue of metrics, with definitions and units, and the conditions that are judged on them."""
    return Catalogue(CATALOGUE, CONDITIONS, CRITERIA, RULES)
