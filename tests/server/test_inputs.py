"""Every route that the API's own description names, with what no database keeps in every place that it takes: refused
with a reason, by SQLite and PostgreSQL alike. A new route is covered by being described."""

import json

import msgspec
import pytest

from internist.schema.wire import Finish, Note
from internist_server.app import create_api
from internist_server.settings import Settings
from tests.server.sending import EPOCH_MS, Sender, module_series

TEXTS = ["\0", "a\0b", "\x1b[31m", "x" * 20_000, "‮\x85"]
NUMBERS = ["9223372036854775808", "-9223372036854775809", "9" * 5_000, "1e400", "nan", "٣", "", "0x10", "\0"]
BODIES = [b"", b"\0", b"[" * 100_000, b"9" * 5_000, b'{"a":' + b"9" * 5_000 + b"}", b'"\xff"', b'"\\ud800"', b"null"]
WAYS = ["..%2f", "%2e%2e%2f", "..%2f..%2f", "..%5c", "a%2f..", "%00", "..%2fhealthz", "%2f", "a%2fb"]
DOCUMENT = create_api(Settings(database_url="sqlite:///unused.db")).openapi()
OPERATIONS = sorted((method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods)
KNOWN = {"run_id": "run1", "alert_id": "1", "silence_id": "1", "token_id": "1"}
"""What stands in a path where another part of a request is wrong."""


@pytest.fixture
def filled(api):
    """A run with points, an alert of its own code, and an end."""
    sender = Sender(api)
    sender.send([*sender.declare([module_series(0, "update.own", "blocks.0")]), sender.frame(0, [1.0])])
    sender.send([sender.record(note=Note("t", "x", "info", 1, EPOCH_MS)), sender.record(finish=Finish(1, EPOCH_MS))])
    return api


def parameters(method, path, place):
    operation = DOCUMENT["paths"][path][method.lower()]
    return [one for one in operation.get("parameters", []) if one["in"] == place]


def is_number(parameter):
    kinds = json.dumps(parameter["schema"])
    return '"integer"' in kinds or '"number"' in kinds


@pytest.fixture
def ask(filled):
    def ask(method, path, **changes):
        answer = filled.request(method, path, follow_redirects=False, **changes)
        assert answer.status_code < 500, (method, path[:100], str(changes)[:200], answer.text)
        return answer

    return ask


def test_no_path_query_or_header_makes_any_route_fail_and_each_is_refused_with_a_reason(ask):
    for method, path in OPERATIONS:
        for one in parameters(method, path, "path"):
            for value in NUMBERS if is_number(one) else [*TEXTS, "..", "."]:
                if value:
                    asked = path.format(**{**KNOWN, one["name"]: "".join(f"%{byte:02x}" for byte in value.encode())})
                    answer = ask(method, asked)
                    assert (answer.status_code, "detail" in answer.json()) == (422, True), (method, asked[:100])
        for one in parameters(method, path, "query"):
            for value in NUMBERS if is_number(one) else TEXTS:
                answer = ask(method, path.format(**KNOWN), params={one["name"]: value})
                assert (answer.status_code, "detail" in answer.json()) == (422, True), (method, path, one, value[:20])
        for one in parameters(method, path, "header"):
            for value in ("9" * 5_000, str(1 << 63), "²".encode("latin-1"), "-1", "1e3"):
                assert ask(method, path.format(**KNOWN), headers={one["name"]: value}).status_code == 422


def test_no_way_out_of_a_path_leads_anywhere(ask):
    for method, path in OPERATIONS:
        for way in WAYS if "{" in path else ():
            asked = path.format(**dict.fromkeys(KNOWN, way))
            assert ask(method, asked).status_code in (307, 400, 404, 405, 415, 422), asked


def test_no_body_makes_any_route_fail_and_each_is_refused_with_a_reason(ask):
    for method, path in OPERATIONS:
        if "requestBody" not in DOCUMENT["paths"][path][method.lower()]:
            continue
        for kind in ("application/json", "application/msgpack", "application/x-internist-spool", "text/plain", "\xb2"):
            for body in BODIES:
                answer = ask(
                    method, path.format(**KNOWN), content=body, headers={"Content-Type": kind.encode("latin-1")}
                )
                is_empty_slice = kind.endswith("spool") and not body
                assert answer.status_code in (400, 415, 422) or is_empty_slice, (method, path, kind, body[:20])


def test_a_content_length_that_is_no_number_is_refused(ask):
    for length in ("9" * 5_000, "-1", "²".encode("latin-1"), "1_0"):
        answer = ask("POST", "/api/v1/runs", content=b"{}", headers={"Content-Length": length})
        assert answer.status_code in (413, 422)


@pytest.mark.parametrize("rank", [1 << 20, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_a_rank_that_no_job_has_is_refused(filled, rank):
    body = msgspec.msgpack.encode({"version": 1, "attempt": "run1-a", "rank": rank, "records": []})
    answer = filled.post("/api/v1/runs/run1/frames", content=body, headers={"Content-Type": "application/msgpack"})

    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


def test_odd_words_in_a_heartbeat_are_no_reason_to_take_a_run_for_lost(filled):
    beat = {"attempt": "run1-a", "rank": 0, "step": 1, "step_age_ms": 1, "pause": "saving\0\x1b" + "x" * 600}

    assert filled.post("/api/v1/runs/run1/heartbeat", json=beat).status_code == 200
