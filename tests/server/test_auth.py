import pytest
from starlette.testclient import TestClient

from internist_server.app import create_app
from internist_server.auth import safe_next
from internist_server.settings import Settings
from tests.server.sending import Sender

TOKEN = "secret; with, odd=signs é"
DOCUMENT = {"Accept": "text/html"}


@pytest.fixture
def guarded(sqlite_url):
    """A server that asks for a token."""
    app = create_app(Settings(database_url=sqlite_url, token=TOKEN, host="0.0.0.0"), board=False)
    with TestClient(app, follow_redirects=False) as client:
        yield client


@pytest.fixture
def open_server(sqlite_url):
    """A server on loopback without a token."""
    with TestClient(create_app(Settings(database_url=sqlite_url), board=False), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/nope", "/metrics", "/openapi.json"])
def test_without_a_token_it_is_401_with_a_wrong_one_403(guarded, path):
    missing, wrong = guarded.get(path), guarded.get(path, headers={"Authorization": "Bearer no"})

    assert (missing.status_code, missing.json()["error"]) == (401, "token_missing")
    assert missing.headers["www-authenticate"] == "Bearer"
    assert (wrong.status_code, wrong.json()["error"]) == (403, "token_refused")


def test_a_writer_needs_the_token_too(guarded):
    sender = Sender(guarded, register=False)

    assert sender.post_start().status_code == 401
    guarded.post("/login", data={"token": TOKEN})
    assert sender.post_start().status_code == 200


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_token_may_have_signs_beyond_ascii(guarded, encoding):
    headers = {"Authorization": f"Bearer {TOKEN}".encode(encoding)}

    assert guarded.get("/api/v1/runs", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_open_to_everyone(guarded, path):
    assert guarded.get(path).status_code == 200


def test_a_browser_is_sent_to_the_login_and_back(guarded):
    away = guarded.get("/runs/x?metric=loss", headers=DOCUMENT)
    assert away.status_code == 303
    assert away.headers["location"] == "/login?next=%2Fruns%2Fx%3Fmetric%3Dloss"
    assert 'value="/runs/x?metric=loss"' in guarded.get(away.headers["location"]).text

    back = guarded.post("/login", data={"token": TOKEN, "next": "/runs/x?metric=loss"})

    assert (back.status_code, back.headers["location"]) == (303, "/runs/x?metric=loss")
    cookie = back.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert guarded.get("/api/v1/runs").status_code == 200


def test_a_wrong_token_shows_the_form_again(guarded):
    answer = guarded.post("/login", data={"token": "no"})

    assert answer.status_code == 403
    assert "no token of this server" in answer.text
    assert "set-cookie" not in answer.headers


def test_the_login_escapes_what_it_repeats(guarded):
    page = guarded.get("/login", params={"next": '/"><script>alert(1)</script>'}).text

    assert "<script>" not in page


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "x", "", "/a\nb"])
def test_the_login_leads_nowhere_else(target):
    assert safe_next(target) == "/"


@pytest.mark.parametrize("cookie", ["internist_session=no", "internist_session", "a b=;;=", "\x80=\x81"])
def test_a_cookie_that_is_none_is_no_token(guarded, cookie):
    headers = {"Cookie": cookie.encode("latin-1")}

    assert guarded.get("/api/v1/runs", headers=headers).status_code in (401, 403)


def test_without_a_configured_token_everyone_on_loopback_may_read(open_server):
    assert open_server.get("/api/v1/runs").status_code == 200


def test_requests_are_timed_by_route(open_server):
    open_server.get("/api/v1/runs/some-run")

    assert 'method="GET",route="/api/v1/runs/{run_id}",status="404"' in open_server.get("/metrics").text


def test_an_unknown_path_of_the_api_is_json_404(open_server):
    answer = open_server.get("/api/v1/nope")

    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


def test_a_wrong_method_is_405(open_server):
    assert open_server.delete("/api/v1/runs").json()["error"] == "method_not_allowed"
