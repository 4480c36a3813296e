"""The login of a browser: one field, one cookie, which holds the session that the token was exchanged for."""

import logging
from html import escape
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from internist_server import auth
from internist_server.callers import Credential, hashed
from internist_server.errors import Forbidden
from internist_server.routes.services import BodyDep, ServicesDep

log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False)

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Internist · sign in</title>
<style>
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 16px;
  font: 16px/1.5 Inter, system-ui, -apple-system, "Segoe UI", sans-serif; background: #f8f9fa; color: #212529; }
main { width: 100%; max-width: 360px; }
h1 { margin: 0 0 4px; font-size: 24px; font-weight: 600; letter-spacing: -0.01em; }
p { margin: 0 0 24px; color: #5c636a; }
form { display: grid; gap: 8px; padding: 24px; background: #fff; border: 1px solid #dee2e6; border-radius: 8px; }
label { font-size: 14px; font-weight: 500; }
input { font: inherit; padding: 8px 12px; border: 1px solid #ced4da; border-radius: 4px;
  background: inherit; color: inherit; }
button { margin-top: 8px; font: inherit; font-weight: 500; padding: 8px 12px; border: 0; border-radius: 4px;
  background: #2b6cb0; color: #fff; cursor: pointer; }
:focus-visible { outline: 2px solid #2b6cb0; outline-offset: 2px; }
.wrong { margin: 0; color: #b02a37; font-size: 14px; }
@media (prefers-color-scheme: dark) {
  body { background: #141517; color: #e9ecef; } p { color: #a6adb4; }
  form { background: #1f2023; border-color: #373a40; } input { border-color: #4a4e55; } .wrong { color: #ff8787; }
}
</style>
</head>
<body>
<main>
<h1>Internist</h1>
<p>This server asks for a token.</p>
<form method="post" action="login">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input type="hidden" name="next" value="{next}">
{wrong}
<button type="submit">Sign in</button>
</form>
</main>
</body>
</html>
"""
_WRONG: Final = '<p class="wrong" role="alert">{reason}</p>'
_REASONS: Final = {
    403: "This is no token of this server: INTERNIST_TOKEN there, or one that was made there and may read.",
    429: "Too many wrong tokens came from here. Wait a minute.",
}
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
}


@router.get("/login")
def show_login(next: Annotated[str, Query(max_length=2_000)] = "/") -> HTMLResponse:
    """The page with the form."""
    return _page(next, 200)


@router.post("/login")
def log_in(request: Request, body: BodyDep, services: ServicesDep) -> Response:
    """Check the token of the form, and give the browser a session for it."""
    form = parse_qs(body.content.decode("utf-8", "replace"), keep_blank_values=True)
    target = auth.safe_next(form.get("next", ["/"])[0])
    if services.keyring.is_open:
        return RedirectResponse(target, status_code=303)
    token, address = form.get("token", [""])[0], auth.address_of(request.scope)
    if services.throttle.wait_s(address, hashed(token)):
        log.warning("a sign-in from %s was not looked at: too many wrong tokens came from there", address)
        return _page(target, 429)
    try:
        signed_in = services.keyring.sign_in(token)
    except Forbidden as error:
        log.warning("a sign-in from %s was refused: %s", address, error)
        return _page(target, 403)
    if signed_in is None:
        services.throttle.note(address, hashed(token))
        log.warning("a sign-in from %s was refused: it is no token", address)
        return _page(target, 403)
    caller, session = signed_in
    services.throttle.trust(address, hashed(token))
    services.audit.record("sign_in", actor=caller.name, address=address)
    response = RedirectResponse(target, status_code=303)
    auth.set_cookie(response, session, is_secure=services.settings.address.startswith("https://"))
    return response


@router.post("/logout")
def log_out(request: Request, services: ServicesDep) -> Response:
    """End the browser's session, here and there."""
    session = auth.presented_session(request.scope)
    if session is not None:
        caller = services.keyring.find(Credential(hashed(session), is_session=True))
        services.keyring.sign_out(hashed(session))
        if caller is not None:
            services.audit.record("sign_out", actor=caller.name, address=auth.address_of(request.scope))
    response = RedirectResponse("/login", status_code=303)
    auth.drop_cookie(response)
    return response


def _page(target: str, status: int) -> HTMLResponse:
    wrong = _WRONG.replace("{reason}", _REASONS[status]) if status in _REASONS else ""
    page = _PAGE.replace("{next}", escape(auth.safe_next(target), quote=True)).replace("{wrong}", wrong)
    return HTMLResponse(page, status, _HEADERS)
