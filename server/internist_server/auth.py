"""The one token that a server may ask of everyone: as a header by programs, as a cookie by browsers."""

import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import quote, unquote, urlencode

import orjson
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE: Final = "internist_token"
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/login"})
_API_PATHS: Final = ("/api/", "/metrics", "/openapi.json")


class TokenGate:
    """Lets requests through that carry the token; sends browsers to the login page."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        presented = presented_token(scope)
        if presented is not None and is_same(presented, self._token):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "token required"})
        else:
            await _refusal(scope, presented)(scope, receive, send)


def presented_token(scope: Scope) -> str | None:
    """The token of a request; a header wins over a cookie."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return _text(credentials.strip())
    try:
        cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return None
    return unquote(cookies[COOKIE].value) if COOKIE in cookies else None


def is_same(presented: str, token: str) -> bool:
    """Whether two tokens are equal, in a time that does not tell how nearly."""
    return hmac.compare_digest(presented.encode("utf-8", "replace"), token.encode("utf-8", "replace"))


def set_cookie(response: Response, token: str, *, is_secure: bool) -> None:
    """Let a browser present the token from now on; scripts cannot read it."""
    response.set_cookie(
        COOKIE, quote(token, safe=""), max_age=90 * 86_400, httponly=True, samesite="lax", secure=is_secure, path="/"
    )


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


def _refusal(scope: Scope, presented: str | None) -> Response:
    is_board = not scope["path"].startswith(_API_PATHS) and scope["method"] in ("GET", "HEAD")
    if is_board:
        query = scope["query_string"].decode("latin-1")
        target = scope["path"] + (f"?{query}" if query else "")
        return RedirectResponse("/login?" + urlencode({"next": safe_next(target)}), status_code=303)
    if presented is None:
        detail = "this server asks for a token: send `Authorization: Bearer TOKEN`"
        return _problem(401, "token_missing", detail, {"WWW-Authenticate": "Bearer"})
    return _problem(403, "token_refused", "this is not the server's token", {})


def _problem(status: int, code: str, detail: str, headers: dict[str, str]) -> Response:
    body = orjson.dumps({"error": code, "detail": detail})
    return Response(body, status, headers, media_type="application/json")
