"""The login of a browser: one field, one cookie."""

from html import escape
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from internist_server import auth
from internist_server.routes.services import BodyDep, ServicesDep

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
<p>This server asks for its token.</p>
<form method="post" action="/login">
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
_WRONG: Final = '<p class="wrong" role="alert">This is not the server’s token, the INTERNIST_TOKEN there.</p>'
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
def log_in(body: BodyDep, services: ServicesDep) -> Response:
    """Check the token of the form, and give the browser its cookie."""
    form = parse_qs(body.content.decode("utf-8", "replace"), keep_blank_values=True)
    target = auth.safe_next(form.get("next", ["/"])[0])
    token = services.settings.token
    if token is not None and not auth.is_same(form.get("token", [""])[0], token):
        return _page(target, 403)
    response = RedirectResponse(target, status_code=303)
    if token is not None:
        auth.set_cookie(response, token, is_secure=services.settings.address.startswith("https://"))
    return response


def _page(target: str, status: int) -> HTMLResponse:
    wrong = _WRONG if status == 403 else ""
    page = _PAGE.replace("{next}", escape(auth.safe_next(target), quote=True)).replace("{wrong}", wrong)
    return HTMLResponse(page, status, _HEADERS)
