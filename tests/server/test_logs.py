"""What the server writes down, and the id that a request, its answer and its lines have in common."""

import asyncio
import io
import json
import logging

import pytest
from starlette.testclient import TestClient

from internist_server.app import create_app
from internist_server.journal import Journal
from internist_server.lanes import RETRY_AFTER_S
from internist_server.logs import JsonLines, TextLines, fields
from internist_server.settings import Settings
from internist_server.tracing import request_id, working_for
from tests.loops import run_apart
from tests.server.sending import Sender

TOKEN = "the token of the environment"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
JOURNAL = "internist_server.journal"


@pytest.fixture
def written():
    """What is logged from INFO on, as JSON lines."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("internist_server")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lambda: [json.loads(line) for line in handler.stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def server(sqlite_url):
    settings = Settings(database_url=sqlite_url, token=TOKEN, access_log=True)
    with TestClient(create_app(settings, board=False), base_url="http://localhost", follow_redirects=False) as client:
        yield client


def lines(written, logger=JOURNAL):
    return [line for line in written() if line["logger"] == logger]


def test_a_request_its_answer_its_error_and_its_lines_have_one_id(server, written):
    answer = server.get("/api/v1/runs/none", headers={**ADMIN, "X-Request-ID": "proxy-1:a/b+c=@_."})

    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "proxy-1:a/b+c=@_."
    (line,) = lines(written)
    assert line["request_id"] == "proxy-1:a/b+c=@_."
    told = {name: line[name] for name in ("caller", "method", "path", "status", "bytes")}
    assert told == {
        "caller": "bootstrap", "method": "GET", "path": "/api/v1/runs/none", "status": 404, "bytes": len(answer.content)
    }  # fmt: skip
    assert line["duration_ms"] > 0 and line["level"] == "info" and line["time"].endswith("Z")


@pytest.mark.parametrize("offered", [b"", b"a b", b"x" * 129, b"a\x1b[2J", "ü".encode(), b"{}", None])
def test_an_id_that_could_not_stand_in_a_log_is_replaced(offered):
    made = request_id(offered)

    assert made.encode() != offered and len(made) == 16 and made.isalnum()
    assert request_id(offered) != made


def test_a_request_that_comes_no_further_than_the_gate_is_written_down_too(server, written):
    answers = [
        server.get("/api/v1/runs?token=in-the-query"),
        server.get("/api/v1/runs", headers={"Authorization": "Bearer no"}),
        server.get("/api/v1/runs", headers={"Host": "evil.example", **ADMIN}),
        server.post("/api/v1/runs", content=b"x", headers={**ADMIN, "Content-Length": "99999999999"}),
    ]

    assert [answer.status_code for answer in answers] == [401, 403, 421, 413]
    assert [line["status"] for line in lines(written)] == [401, 403, 421, 413]
    assert [line["request_id"] for line in lines(written)] == [answer.json()["request_id"] for answer in answers]
    assert "in-the-query" not in str(written()) and lines(written)[1]["caller"] is None


def test_what_threads_log_on_the_way_bears_the_id_too(server, written):
    sender = Sender(_Bearer(server))
    answer = sender.post([sender.record()])  # of no content

    (refused,) = lines(written, "internist_server.ingest")
    assert refused["request_id"] == answer.headers["X-Request-ID"]


def test_acts_of_whoever_administers_are_lines_with_fields(server, written):
    server.post("/api/v1/tokens", json={"name": "ada", "scopes": ["read"]}, headers={**ADMIN, "X-Request-ID": "act-1"})

    (line,) = lines(written, "internist_server.auditing")
    assert (line["request_id"], line["audit"]["actor"], line["audit"]["act"]) == ("act-1", "bootstrap", "create_token")


def test_probes_that_find_all_well_are_no_lines(server, written):
    for path in ("/healthz", "/readyz"):
        assert server.get(path).status_code == 200
    server.get("/metrics", headers=ADMIN)
    server.get("/metrics")

    assert [(line["path"], line["status"]) for line in lines(written)] == [("/metrics", 401)]


def test_requests_are_written_down_only_where_that_is_wanted(sqlite_url, written):
    with TestClient(create_app(Settings(database_url=sqlite_url), board=False), base_url="http://localhost") as client:
        answer = client.get("/api/v1/runs")

    assert answer.headers["X-Request-ID"] and lines(written) == []


def test_a_request_that_the_end_of_the_server_cuts_off_is_told_to_come_again(written):
    async def cut_off(*_):
        raise asyncio.CancelledError

    answers = []
    journal = Journal(cut_off, writes=True)
    journal.close()
    scope = {"type": "http", "method": "GET", "path": "/api/v1/runs", "headers": [], "client": ("127.0.0.1", 1)}

    async def ask():
        await journal(scope, None, answered)

    async def answered(message):
        answers.append(message)

    run_apart(ask())

    assert answers[0]["status"] == 503 and (b"retry-after", str(RETRY_AFTER_S).encode()) in answers[0]["headers"]
    assert [line["status"] for line in lines(written)] == [503]


def record(message, *values, **more):
    return logging.makeLogRecord({"name": "a", "levelname": "WARNING", "msg": message, "args": values, **more})


def test_nothing_from_outside_looks_like_a_line_of_its_own():
    forged = record("refused: %s", "x\n2026-01-01 INFO audit: all is well\r\x1b[2J")

    with working_for("id-1"):
        text, line = TextLines().format(forged), JsonLines().format(forged)

    assert text.endswith("refused: x\n    2026-01-01 INFO audit: all is well\\x0d\\x1b[2J [id-1]")
    assert "\n" not in line and json.loads(line)["message"].endswith("\x1b[2J")


def test_a_line_of_json_tells_its_fields_and_its_exception_and_keeps_its_own_names():
    try:
        raise ValueError("no")
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    made = json.loads(JsonLines().format(record("it %s", "failed", exc_info=caught, **fields(run="r", level="mine"))))

    assert (made["message"], made["run"], made["level"]) == ("it failed", "r", "warning")
    assert made["exception"].endswith("ValueError: no") and "request_id" not in made


class _Bearer:
    def __init__(self, client):
        self.client = client

    def post(self, path, **asked):
        return self.client.post(path, **{**asked, "headers": {**ADMIN, **asked.get("headers", {})}})
