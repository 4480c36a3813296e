"""The gate of a server that asks for a token: programs present one in a header, browsers the session they were given
for one. Whoever passes is named in the request, and what they may do is asked at each route."""

import logging
import math
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from internist_server.callers import EVERYONE, Caller, Credential, hashed
from internist_server.keyring import SESSION_MS, Keyring
from internist_server.problem import problem
from internist_server.throttle import Throttle

log = logging.getLogger(__name__)

COOKIE: Final = "internist_session"
CALLER: Final = "internist.caller"
"""Where in a request's scope its caller is."""
CREDENTIAL: Final = "internist.credential"
"""Where what it presented is: what lasts longer than a request asks again whether that is in force."""
GRANT: Final = "internist.grant"
"""Where the board reads what its viewer may see: equal grants are shown equal pages."""
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/login", "/logout"})
_API_PATHS: Final = ("/api/", "/metrics", "/openapi.json")


class TokenGate:
    """Lets requests through that show who asks; sends browsers to the login page."""

    def __init__(self, app: ASGIApp, keyring: Keyring, throttle: Throttle) -> None:
        self._app, self._keyring, self._throttle = app, keyring, throttle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self._keyring.is_open:
            scope[CALLER] = EVERYONE  # in place: what routes note in the scope is read outside of this, too
            await self._app(scope, receive, send)
            return
        shown, address = presented(scope), address_of(scope)
        token = None if shown is None or shown.is_session else shown.key
        wait_s = self._throttle.wait_s(address, token)
        caller = None if wait_s or shown is None else await find_caller(shown, self._keyring)
        if caller is not None:
            if token is not None:
                self._throttle.trust(address, token)
            scope[CALLER], scope[GRANT], scope[CREDENTIAL] = caller, caller.grant, shown
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "token required"})
        else:
            await self._refusal(scope, token, wait_s)(scope, receive, send)

    def _refusal(self, scope: Scope, token: str | None, wait_s: float) -> Response:
        is_board = not scope["path"].startswith(_API_PATHS) and scope["method"] in ("GET", "HEAD")
        if is_board:
            query = scope["query_string"].decode("latin-1")
            target = scope["path"] + (f"?{query}" if query else "")
            return RedirectResponse("/login?" + urlencode({"next": safe_next(target)}), status_code=303)
        if wait_s:
            return too_many(wait_s)
        if token is None:
            detail = "this server asks for a token: send `Authorization: Bearer TOKEN`"
            return problem(401, "token_missing", detail, {"WWW-Authenticate": "Bearer"})
        address = address_of(scope)
        self._throttle.note(address, token)
        log.warning("a token that is none, or none any more, was presented from %s", address)
        return problem(403, "token_refused", "this is no token of this server, or none any more")


def too_many(wait_s: float) -> Response:
    """The answer to an address that was wrong about tokens too often."""
    detail = "too many wrong tokens came from here: wait, and present the right one"
    return problem(429, "too_many_attempts", detail, {"Retry-After": str(math.ceil(wait_s))})


def caller_of(scope: Scope) -> Caller:
    """Who asks. Without a gate before the API, everyone may do everything."""
    caller: Caller = scope.get(CALLER, EVERYONE)
    return caller


def presented(scope: Scope) -> Credential | None:
    """What a request presents; a header wins over a cookie. None: nothing."""
    token, session = presented_token(scope), presented_session(scope)
    if token is not None:
        return Credential(hashed(token))
    return None if session is None else Credential(hashed(session), is_session=True)


async def find_caller(shown: Credential, keyring: Keyring) -> Caller | None:
    """Who presents this; None: nobody may."""
    return keyring.known(shown) or await run_in_threadpool(keyring.find, shown)


async def is_in_force(scope: Scope, keyring: Keyring) -> bool:
    """Whether what a request presented when it came in would still let it in."""
    shown: Credential | None = scope.get(CREDENTIAL)
    return shown is None or await find_caller(shown, keyring) is not None


def address_of(scope: Scope) -> str:
    """Where a request came from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def presented_token(scope: Scope) -> str | None:
    """The token in a request's header."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    return _text(credentials.strip()) if scheme.lower() == b"bearer" else None


def presented_session(scope: Scope) -> str | None:
    """The session in a request's cookie."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    try:
        cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return None
    return cookies[COOKIE].value if COOKIE in cookies else None


def set_cookie(response: Response, session: str, *, is_secure: bool) -> None:
    """Let a browser present its session from now on; scripts cannot read it."""
    response.set_cookie(
        COOKIE, session, max_age=SESSION_MS // 1000, httponly=True, samesite="lax", secure=is_secure, path="/"
    )


def drop_cookie(response: Response) -> None:
    """Let a browser forget its session."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax")


def safe_next(target: str) -> str:
    """Where to go after the login: a path of this server, never another one."""
    is_local = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_local else "/"


def _text(header: bytes) -> str:
    """A header's text, whether it was sent as UTF-8 or as Latin-1."""
    try:
        return header.decode()
    except UnicodeDecodeError:
        return header.decode("latin-1")
