"""What routes are given: a session, the parts of the server, and the body of a request within its limit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from sqlalchemy.orm import Session

from internist_server.auditing import Audit
from internist_server.boards import Boards
from internist_server.changes import Changes
from internist_server.clocks import ServerClock
from internist_server.errors import TooLarge, UnsupportedContent
from internist_server.handling import Handling
from internist_server.ingest import Ingest
from internist_server.inputs import whole_number
from internist_server.keyring import Keyring
from internist_server.overload import Lanes
from internist_server.readiness import Readiness
from internist_server.rulebook import RuleBook
from internist_server.scaling import Scalings
from internist_server.settings import Settings
from internist_server.store.database import Database
from internist_server.throttle import Throttle


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one server, made by `create_app`."""

    settings: Settings
    database: Database
    ingest: Ingest
    handling: Handling
    book: RuleBook
    changes: Changes
    boards: Boards
    scalings: Scalings
    keyring: Keyring
    throttle: Throttle
    audit: Audit
    clock: ServerClock
    readiness: Readiness
    lanes: Lanes
    looking: CapacityLimiter
    """Threads that look whether the server can work: they queue behind no request."""


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request, and its content type without parameters."""

    content: bytes
    content_type: str


def get_services(request: Request) -> Services:
    """The server's parts."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


def get_session(services: ServicesDep) -> Iterator[Session]:
    """A reading session for one request."""
    with services.database.read() as session:
        yield session


async def read_body(request: Request, services: ServicesDep) -> Body:
    """The whole body; reading stops at the limit.

    Raises:
        TooLarge: it is over the limit.
        UnsupportedContent: it is compressed.
        Invalid: its declared length is no whole number.
    """
    limit = services.settings.max_request_bytes
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedContent("compressed bodies are not taken; send the records as they are")
    declared = whole_number("the content length", request.headers.get("content-length", "0"))
    if declared > limit:
        raise TooLarge(f"the body has {declared} bytes; this server reads at most {limit}")
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLarge(f"the body has over {limit} bytes, the most this server reads")
        pieces.append(piece)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Body(b"".join(pieces), content_type)


SessionDep = Annotated[Session, Depends(get_session)]
BodyDep = Annotated[Body, Depends(read_body)]
