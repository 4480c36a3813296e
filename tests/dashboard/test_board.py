"""The board as an ASGI application: pages, static files, credentials. The API behind it is the real one."""

import gzip
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from plotly.offline import get_plotlyjs_version

from internist_dashboard.api import Api
from internist_dashboard.app import ASSETS, PLOTLY, create_board, page_of
from internist_dashboard.errors import NotFound, NotSignedIn, ServerUnwell
from internist_dashboard.viewer import VIEWER, viewer_of
from internist_migrations.upgrade import upgrade
from internist_server.app import create_app
from internist_server.settings import Settings
from tests.loops import run_apart

TOKEN = "s3cret"
FIRST_VISIT_BYTES = 920_000
"""Of what is kept for later visits; what a run's page asks of its numbers, below 90 kB, makes it a megabyte."""


@pytest.fixture
def server(tmp_path: Path) -> Any:
    url = f"sqlite:///{tmp_path / 'board.db'}"
    upgrade(url)
    return create_app(Settings(database_url=url, token=TOKEN, allowed_hosts=("internist",)), board=False)


def answer(app: Any, path: str, **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://board") as client:
            return await client.get(path, headers=headers)

    return run_apart(ask())


def session_of(app: Any) -> str:
    """What the cookie of a browser holds that has signed in."""

    async def sign_in() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://internist") as client:
            return await client.post("/login", data={"token": TOKEN})

    return run_apart(sign_in()).cookies["internist_session"]


def asked(app: Any, question: Callable[[Api], Coroutine[Any, Any, Any]], *, cookie: str | None = None) -> Any:
    async def ask() -> Any:
        given = [(b"cookie", f"other=1; internist_session={cookie}".encode())] if cookie else []
        VIEWER.set(viewer_of("http", given))
        return await question(Api(httpx.ASGITransport(app), base_url="http://internist"))

    return run_apart(ask())


@pytest.mark.parametrize("path", ["/", "/runs/abc", "/alerts", "/anything/else"])
def test_every_path_is_a_page(server, path):
    page = answer(create_board(httpx.ASGITransport(server)), path)

    assert page.status_code == 200
    assert "react-entry-point" in page.text


def test_nothing_is_loaded_from_elsewhere(server):
    page = answer(create_board(httpx.ASGITransport(server)), "/").text

    assert "https://" not in page and "//cdn" not in page


@pytest.mark.parametrize("path", ["/", "/runs/abc", "/assets/board.js"])
def test_browsers_are_told_what_a_page_may_do(server, path):
    headers = answer(create_board(httpx.ASGITransport(server)), path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    if path.endswith(".js"):
        return
    directives = dict(one.split(" ", 1) for one in headers["content-security-policy"].split("; "))
    assert directives["script-src"].startswith("'self' 'sha256-") and "unsafe" not in directives["script-src"]
    assert directives["connect-src"] == "'self'"
    assert directives["default-src"] == "'none'"


def test_static_files_are_compressed_once_and_cached_by_browsers(server):
    board = create_board(httpx.ASGITransport(server))
    address = next(part for part in answer(board, "/").text.split('"') if part.startswith("/assets/board.js"))

    first = answer(board, address, **{"accept-encoding": "gzip"})
    again = answer(board, address, **{"accept-encoding": "gzip"})
    plain = answer(board, address, **{"accept-encoding": "identity"})

    assert first.headers["content-encoding"] == "gzip"
    assert "immutable" in first.headers["cache-control"]
    assert first.content == again.content == plain.content
    assert len(gzip.compress(plain.content)) < len(plain.content) / 2


def test_a_first_visit_takes_less_than_a_megabyte_and_plotly_is_kept_for_good(server):
    board = create_board(httpx.ASGITransport(server))
    page = answer(board, "/runs/abc").text
    addresses = {one for one in re.findall(r'(?:src|href)[= ]+"([^"]+)"', page) if one.startswith("/")}
    plotly = next(one for one in addresses if "/plotly.min.js?m=" in one)

    answers = {one: answer(board, one, **{"accept-encoding": "gzip"}) for one in addresses}

    assert "immutable" in answers[plotly].headers["cache-control"]
    assert not any("polyfill" in one or "dash_table" in one for one in addresses)
    assert sum(int(one.headers["content-length"]) for one in answers.values()) < FIRST_VISIT_BYTES


def test_the_bundle_of_plotly_is_of_the_version_that_figures_are_made_for():
    bundle = (ASSETS / PLOTLY).read_text(encoding="utf-8")[:100]

    assert f"plotly.js {get_plotlyjs_version()}," in bundle


def test_a_file_without_a_fingerprint_is_sent_once_and_then_said_to_be_the_same(server):
    board = create_board(httpx.ASGITransport(server))
    path = "/_dash-component-suites/dash/dcc/async-graph.js"

    first = answer(board, path, **{"accept-encoding": "gzip"})
    again = answer(board, path, **{"accept-encoding": "gzip", "if-none-match": first.headers["etag"]})

    assert first.status_code == 200 and "immutable" not in first.headers["cache-control"]
    assert again.status_code == 304 and again.content == b""


def test_two_boards_live_in_one_process(server):
    boards = [create_board(httpx.ASGITransport(server)) for _ in range(2)]

    dependencies = [answer(board, "/_dash-dependencies").json() for board in boards]

    assert len(dependencies[0]) == len(dependencies[1]) > 20


def test_the_viewers_own_token_is_handed_on_and_no_other_cookie():
    viewer = viewer_of(
        "https", [(b"cookie", b"a=b; internist_session=t"), (b"host", b"lab:1"), (b"authorization", b"Bearer x")]
    )

    assert viewer.headers == {"Cookie": "internist_session=t", "Authorization": "Bearer x"}
    assert viewer.origin == "https://lab:1"
    assert "Bearer" not in repr(viewer)


def test_the_api_answers_the_viewer_who_shows_the_token(server):
    assert asked(server, lambda api: api.runs(limit=1), cookie=session_of(server)) == []


@pytest.mark.parametrize("cookie", [None, "wrong"])
def test_without_the_token_the_board_says_sign_in(server, cookie):
    with pytest.raises(NotSignedIn):
        asked(server, lambda api: api.runs(limit=1), cookie=cookie)

    page, kind = asked(server, lambda api: page_of("/runs/x", api), cookie=cookie)
    assert kind == {"kind": "problem"}
    assert "/login?next=/runs/x" in str(page)


def test_an_unknown_run_is_not_found(server):
    with pytest.raises(NotFound):
        asked(server, lambda api: api.run("nope"), cookie=session_of(server))


def test_a_server_that_is_none_of_ours_is_unwell():
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>hello</html>"})

    with pytest.raises(ServerUnwell, match="not understood"):
        asked(other, lambda api: api.runs(limit=1))


def test_an_empty_server_shows_the_lines_to_copy_with_its_address(server):
    async def show(api: Api) -> Any:
        VIEWER.set(
            viewer_of("http", [(b"host", b"lab:8237"), (b"cookie", f"internist_session={session_of(server)}".encode())])
        )
        return await page_of("/", api)

    page, _ = asked(server, show)

    assert "internist.watch(model, optimizer, server=" in str(page)
    assert "http://lab:8237" in str(page)
