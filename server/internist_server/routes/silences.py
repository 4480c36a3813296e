"""Silences: who asked not to be told of what, why, and until when."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from internist.schema.alerts import Silence
from internist_server.inputs import LINE
from internist_server.routes import examples
from internist_server.routes.access import CallerDep
from internist_server.routes.alerts import Number
from internist_server.routes.answers import ViewRoute
from internist_server.routes.services import ServicesDep, SessionDep
from internist_server.store import silences

router = APIRouter(prefix="/api/v1/silences", route_class=ViewRoute, tags=["alerts"])

LONGEST_S = 31_536_000.0
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1_000), LINE]
_NAME = StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=64)
_GLOB = StringConstraints(min_length=1, max_length=200)


class NewSilence(BaseModel):
    """What is not to be told of, who says so, why, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    matchers: dict[Annotated[str, _NAME], Annotated[str, _GLOB, LINE]] = Field(
        min_length=1, max_length=32, description="Globs by label; all of them must match.",
        examples=[{"run": "4f2a", "condition": "attention"}],
    )  # fmt: skip
    author: Words = Field(examples=["ada"])
    reason: Words = Field(examples=["logits are clipped on purpose"])
    seconds: float = Field(gt=0, le=LONGEST_S, allow_inf_nan=False, examples=[7_200])


@router.get("", responses={200: examples.of("Silences")})
def list_silences(
    services: ServicesDep,
    session: SessionDep,
    caller: CallerDep,
    expired: Annotated[bool, Query(description="Also those that are in force no more.")] = False,
) -> tuple[Silence, ...]:
    """Silences in force, the newest first."""
    found = silences.list_silences(session, now_ms=services.clock(), with_expired=expired)
    project = caller.only(None)
    return tuple(one for one in found if project is None or one.matchers.get("project") == project)


@router.post("", responses={200: examples.of("Silence")})
def add_silence(wanted: NewSilence, services: ServicesDep) -> Silence:
    """Tell nobody of matching alerts for a while. They are recorded, and what still fires at its end is told then."""
    return services.handling.silence(
        matchers=wanted.matchers, author=wanted.author, reason=wanted.reason, seconds=wanted.seconds
    )


@router.delete(
    "/{silence_id}",
    responses={404: {"description": "There is no such silence."}, 200: examples.of("Silence")},
)
def end_silence(silence_id: Number, services: ServicesDep) -> Silence:
    """Take a silence back: it expires now, and is kept."""
    return services.handling.end_silence(silence_id)
