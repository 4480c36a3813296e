"""Which request is being worked on: by an id that its answer and all lines of the log about it have in common."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

HEADER: Final = b"x-request-id"
_SANE: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_current: ContextVar[str] = ContextVar("internist_request", default="")


def current_request() -> str:
    """The id of the request that this thread or coroutine works for; empty: it works for none."""
    return _current.get()


def request_id(offered: bytes | None) -> str:
    """The id that a proxy or a client offers for a request, where it can stand in a log; else a new one."""
    if offered is not None and _SANE.fullmatch(offered):
        return offered.decode("ascii")
    return secrets.token_hex(8)


@contextmanager
def working_for(request: str) -> Iterator[None]:
    """What happens within is done for this request."""
    token = _current.set(request)
    try:
        yield
    finally:
        _current.reset(token)
