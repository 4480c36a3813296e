"""What browsers must not do with this server: ask it under another's name (DNS rebinding), write to it from another's
page, show it in a frame, or guess what it sends."""

import logging
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internist_server.inputs import shown
from internist_server.problem import problem
from internist_server.settings import Settings, is_loopback

log = logging.getLogger(__name__)

ANY: Final = "*"
HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Probes ask for these by whatever address they know, and they tell nothing."""
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_READS: Final = ("GET", "HEAD", "OPTIONS")
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of every answer that says nothing else: pages of the board and the login have a policy of their own."""


def names_of(settings: Settings) -> frozenset[str] | None:
    """The names under which a server may be asked; None: any.

    A server that listens on loopback knows them: loopback's, its own, and that of its external address. One that
    listens beyond does not, and asks for a token, which another's page does not have.
    """
    if ANY in settings.allowed_hosts or not (settings.allowed_hosts or is_loopback(settings.host)):
        return None
    external = urlsplit(settings.external_url).hostname if settings.external_url else None
    own = (settings.host, *_LOOPBACK, *settings.allowed_hosts, *([external] if external else []))
    return frozenset(name.lower().strip("[]") for name in own)


class BrowserGuard:
    """ASGI middleware: refuses requests under a strange name or from a strange page, and says in every answer what it
    is for."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = names_of(settings)
        self._external = urlsplit(settings.external_url).netloc if settings.external_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                known = {name.lower() for name, _ in given}
                message = {**message, "headers": given + [one for one in _HEADERS if one[0] not in known]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "not from here"})
        else:
            await refusal(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._names is not None and name_of(host) not in self._names and scope["path"] not in HEALTH_PATHS:
            log.warning("a request under the name %s was refused", shown(host))
            detail = f"this server is not {shown(host)}: set INTERNIST_ALLOWED_HOSTS to the names people reach it by"
            return problem(421, "host_refused", detail)
        if scope["type"] == "http" and scope["method"] not in _READS and not self._is_own(headers, host):
            return problem(403, "cross_site", "another site's page may not write here")
        return None

    def _is_own(self, headers: dict[bytes, str], host: str) -> bool:
        """Whether a program, or a page of this server, asks: browsers say from where, programs do not."""
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = headers.get(b"origin")
        return origin is None or urlsplit(origin).netloc in (host, self._external)


def name_of(host: str) -> str:
    """The name in a `Host` header, without a port and a last dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()
