"""A stream that is open ends with what opened it."""

from contextlib import contextmanager

import httpx
import pytest

from internist_migrations.upgrade import upgrade
from internist_server.app import create_app
from internist_server.settings import Settings
from tests.dashboard.serving import listening
from tests.server.conftest import Clock
from tests.server.sending import Sender

BOOTSTRAP = "the token of the environment"
ADMIN = {"Authorization": f"Bearer {BOOTSTRAP}"}
DAY_S = 86_400
PATIENCE_S = 30


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def server(tmp_path_factory, clock):
    url = f"sqlite:///{tmp_path_factory.mktemp('streams') / 'internist.db'}"
    upgrade(url)
    with (
        listening(create_app(Settings(database_url=url, token=BOOTSTRAP), board=False, clock=clock)) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        yield client


@pytest.fixture
def sender(server):
    class Bearer:
        def post(self, path, **asked):
            return server.post(path, **{**asked, "headers": {**ADMIN, **asked.get("headers", {})}})

    return Sender(Bearer())


def made(server, name, **wanted):
    body = {"name": name, "scopes": ["read"], **wanted}
    return server.post("/api/v1/tokens", json=body, headers=ADMIN).raise_for_status().json()


@contextmanager
def listened(server, run, headers):
    """The lines of a run's stream, after its first event."""
    with server.stream("GET", f"/api/v1/runs/{run}/stream", headers=headers) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert any(line.startswith("data:") for line in lines)
        yield lines


def is_refused(server, headers):
    return server.get("/api/v1/identity", headers=headers).status_code == 403


def test_a_stream_goes_on_while_its_token_is_in_force_and_ends_when_it_is_revoked(server, sender):
    token = made(server, "ada")
    headers = {"Authorization": f"Bearer {token['secret']}"}

    with listened(server, sender.run, headers) as lines:
        sender.send([])
        assert any(line.startswith("event:") for line in lines)
        server.delete(f"/api/v1/tokens/{token['token']['id']}", headers=ADMIN).raise_for_status()
        sender.send([])  # wakes it
        assert sum(line.startswith("event:") for line in lines) <= 1  # what it said before it knew
    assert is_refused(server, headers)


def test_a_stream_ends_when_its_token_expires(server, sender, clock):
    headers = {"Authorization": f"Bearer {made(server, 'eve', days=1)['secret']}"}

    with listened(server, sender.run, headers) as lines:
        clock.advance(DAY_S)
        sender.send([])
        assert sum(line.startswith("event:") for line in lines) <= 1
    assert is_refused(server, headers)


def test_a_stream_ends_when_its_browser_signs_out(server, sender):
    answer = server.post("/login", data={"token": made(server, "bob")["secret"]})
    cookie = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    server.cookies.clear()

    with listened(server, sender.run, cookie) as lines:
        server.post("/logout", headers=cookie)
        sender.send([])
        assert sum(line.startswith("event:") for line in lines) <= 1
    assert server.get("/api/v1/identity", headers=cookie).status_code == 401
