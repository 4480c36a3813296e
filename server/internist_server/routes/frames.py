"""What training processes send: starts, frames and heartbeats."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query

from internist.schema.wire import (
    MSGPACK_CONTENT_TYPE,
    SENT_AT_HEADER,
    SPOOL_CONTENT_TYPE,
    FramesReply,
    HeartbeatReply,
    RunStarted,
)
from internist_server import admission, envelope
from internist_server.routes import examples
from internist_server.routes.access import CallerDep
from internist_server.routes.answers import ViewRoute
from internist_server.routes.services import BodyDep, ServicesDep

SentAt = Annotated[
    int | None,
    Header(
        alias=SENT_AT_HEADER,
        ge=0,
        le=admission.LAST_MS,
        description="When this was sent by the client's own clock, in ms since 1970: moments that the client tells are "
        "kept in the server's time.",
    ),
]
router = APIRouter(prefix="/api/v1", route_class=ViewRoute, tags=["ingest"])


def _takes(name: str, *, with_spool: bool = False) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    content: dict[str, Any] = {
        envelope.JSON_CONTENT_TYPE: {"schema": schema, "example": examples.REQUESTS[name]},
        MSGPACK_CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}},
    }
    if with_spool:
        content[SPOOL_CONTENT_TYPE] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


_STATUS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "The body cannot be read."},
    403: {"description": "The token is not for it, or the run was started with another."},
    404: {"description": "The run, attempt or rank was never registered."},
    409: {"description": "A newer major version wrote it, or it contradicts what is stored."},
    413: {"description": "The body is over the limit."},
    415: {"description": "The content type is not taken."},
    422: {"description": "It can be read, and asks for something impossible."},
}


@router.post("/runs", openapi_extra=_takes("RunStart"), responses={**_STATUS, 200: examples.of("RunStarted")})
def start_run(body: BodyDep, services: ServicesDep, caller: CallerDep, sent_at_ms: SentAt = None) -> RunStarted:
    """Register a run, an attempt and a rank. Calling it again changes nothing and tells where to resume sending."""
    start = envelope.open_start(body.content, body.content_type)
    return services.ingest.start(start, sent_at_ms=sent_at_ms, by=caller)


@router.post(
    "/runs/{run_id}/frames",
    openapi_extra=_takes("FramesRequest", with_spool=True),
    responses={**_STATUS, 200: examples.of("FramesReply")},
)
def take_frames(
    run_id: str,
    body: BodyDep,
    services: ServicesDep,
    caller: CallerDep,
    attempt: Annotated[str | None, Query(max_length=128, description="Attempt that a spool slice is of.")] = None,
    rank: Annotated[int | None, Query(ge=0, le=1 << 31, description="Rank that a spool slice is of.")] = None,
    sent_at_ms: SentAt = None,
) -> FramesReply:
    """Take records of one rank: what the reply acknowledges is durable. A bad record is refused, its neighbours kept.

    A spool slice is sent as it lies in the file, with `attempt` and `rank` in the query unless it begins with a start.
    Sequence numbers that are stored already are skipped, so a slice may be sent again.
    """
    contents = envelope.open_contents(body.content, body.content_type, attempt=attempt, rank=rank)
    return services.ingest.take(run_id, contents, size=len(body.content), sent_at_ms=sent_at_ms, by=caller)


@router.post(
    "/runs/{run_id}/heartbeat",
    openapi_extra=_takes("Heartbeat"),
    responses={**_STATUS, 200: examples.of("HeartbeatReply")},
)
def take_heartbeat(run_id: str, body: BodyDep, services: ServicesDep, sent_at_ms: SentAt = None) -> HeartbeatReply:
    """Keep a rank's sign of life. Without one for 60 s the run is lost."""
    heartbeat = admission.tidy_heartbeat(envelope.open_heartbeat(body.content, body.content_type))
    return services.ingest.heartbeat(run_id, heartbeat, sent_at_ms=sent_at_ms)
