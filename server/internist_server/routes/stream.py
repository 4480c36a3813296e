"""The live stream of a run: an event whenever something of it is new."""

from collections.abc import AsyncIterator
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Header, Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from internist.schema.views import Change, RunState
from internist_server.auth import is_in_force
from internist_server.inputs import LAST_INTEGER, whole_number
from internist_server.routes import examples
from internist_server.routes.runs import NOT_FOUND
from internist_server.routes.services import Services, ServicesDep
from internist_server.store import runs

router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

POLL_S: Final = 2.0
"""How often a stream looks for itself, for what other processes have written, and says that it lives: a reader to whom
nothing is said cannot tell a quiet run from a dead server."""
PING_S: Final = 15


@router.get(
    "/{run_id}/stream",
    response_class=EventSourceResponse,
    responses={**NOT_FOUND, 200: examples.stream()},
)
async def stream_changes(
    run_id: str,
    request: Request,
    services: ServicesDep,
    cursor: Annotated[int | None, Query(ge=-1, le=LAST_INTEGER, description="The last cursor seen; -1: none.")] = None,
    last_event_id: Annotated[str | None, Header(description="What browsers send when they reconnect.")] = None,
) -> EventSourceResponse:
    """Server-sent events `change`, each with the run's cursor: at once if `cursor` is behind, then as it happens.

    Between them, events `alive` every few seconds: they say nothing but that the stream lives. It ends when the token,
    or the browser's session, does.
    """
    resumed = whole_number("Last-Event-ID", last_event_id) if last_event_id else -1
    seen = resumed if cursor is None else cursor
    await run_in_threadpool(_read, services, run_id)
    return EventSourceResponse(_events(services, run_id, seen, request.scope), ping=PING_S)


async def _events(services: Services, run_id: str, seen: int, scope: Scope) -> AsyncIterator[ServerSentEvent]:
    state: RunState | None = None
    while True:
        if not await is_in_force(scope, services.keyring):
            return
        rung = services.changes.listen(run_id)
        change = await run_in_threadpool(_read, services, run_id)
        if change.cursor > seen or (state is not None and change.state != state):  # a run is lost without a new cursor
            seen = change.cursor
            yield ServerSentEvent(orjson.dumps(change).decode(), event="change", id=str(seen))
        else:
            yield ServerSentEvent(str(change.server_time_ms), event="alive")
        state = change.state
        await rung.wait(timeout_s=POLL_S)


def _read(services: Services, run_id: str) -> Change:
    with services.database.read() as session:
        return runs.read_change(session, run_id, now_ms=services.clock(), since_ms=services.clock.listening_since_ms)
