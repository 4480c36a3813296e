"""Tokens, and the log of what was done with those that administer the server."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from internist.schema.access import Act, Identity, NewToken, Scope, Token
from internist.schema.wire import MAX_NAME_LENGTH
from internist_server.inputs import LAST_INTEGER, LINE
from internist_server.routes import examples
from internist_server.routes.access import CallerDep
from internist_server.routes.answers import ViewRoute
from internist_server.routes.runs import Limit, Offset
from internist_server.routes.services import ServicesDep, SessionDep
from internist_server.store import access

router = APIRouter(prefix="/api/v1", route_class=ViewRoute, tags=["access"])

LONGEST_DAYS = 3_650
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), LINE]


class WantedToken(BaseModel):
    """What a token is to be for, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(examples=["cluster"])
    scopes: frozenset[Scope] = Field(min_length=1, description="What its bearer may do.", examples=[["ingest"]])
    project: Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_LENGTH), LINE] | None = Field(
        default=None, description="The only project whose runs it is for; all without one."
    )
    days: float | None = Field(
        default=None, gt=0, le=LONGEST_DAYS, allow_inf_nan=False, description="Until it expires; never without one."
    )


@router.get("/identity", responses={200: examples.of("Identity")})
def read_identity(caller: CallerDep) -> Identity:
    """For whom the server takes whoever asks, and what the token lets them do. Any token may ask."""
    return Identity(caller.name, tuple(sorted(caller.scopes)), caller.project, caller.expires_at_ms)


@router.get("/tokens", responses={200: examples.of("Tokens")})
def list_tokens(session: SessionDep) -> tuple[Token, ...]:
    """Tokens that were made, those too that are over; the newest first. The server keeps only their hashes."""
    return tuple(access.list_tokens(session))


@router.post(
    "/tokens",
    responses={
        409: {"description": "One of that name is in force, or this server asks for no token."},
        200: examples.of("NewToken"),
    },
)
def create_token(wanted: WantedToken, caller: CallerDep, services: ServicesDep) -> NewToken:
    """Make a token. What is to be presented is told in this answer, and never again."""
    return services.keyring.create(
        name=wanted.name, scopes=sorted(wanted.scopes), project=wanted.project, days=wanted.days, by=caller
    )


@router.delete(
    "/tokens/{token_id}",
    responses={404: {"description": "There is no such token."}, 200: examples.of("Token")},
)
def revoke_token(token_id: Annotated[int, Path(ge=1, le=LAST_INTEGER)], services: ServicesDep) -> Token:
    """Let nobody use a token any more; browsers that signed in with it are signed out."""
    return services.keyring.revoke(token_id)


@router.get("/audit", responses={200: examples.of("Acts")})
def read_audit(session: SessionDep, limit: Limit = 100, offset: Offset = 0) -> tuple[Act, ...]:
    """What was done by whoever administers the server, the newest first."""
    return tuple(access.list_acts(session, limit=limit, offset=offset))
