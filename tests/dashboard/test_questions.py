"""What the board's framework is asked: what no page would ask is refused, and no value of an input makes it fail."""

import pytest
from starlette.testclient import TestClient

from internist_migrations.upgrade import upgrade
from internist_server.app import create_app
from internist_server.settings import Settings

BODIES = [b"", b"{", b"null", b"[]", b"{}", b'{"output":"x"}', b"\xff", b"[" * 100_000, b"9" * 5_000]
VALUES = [
    None,
    -1,
    1 << 70,
    1e308,
    "",
    "\0",
    "(a|aa)+$",
    "x" * 10_000,
    [],
    {},
    True,
    {"run": "\0"},
    {"kind": "run", "run": 1},
]
SCRIPTS = ["..%2f", "dash/..%2f", "dash/%00", "nosuch/a.js", "dash/nosuch.js", "", "dash_mantine_components/../a"]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('board') / 'a.db'}"
    upgrade(url)
    with TestClient(create_app(Settings(database_url=url)), base_url="http://localhost") as client:
        yield client


def ask(board, **question):
    return board.post("/_dash-update-component", json=question)


def callbacks(board):
    """Those that the server answers."""
    return [one for one in board.get("/_dash-dependencies").json() if not one.get("clientside_function")]


def question_of(callback, value):
    """What a page would ask, with this value in every input."""
    output = callback["output"]
    places = [dict(zip(("id", "property"), one.rsplit(".", 1), strict=True)) for one in output.strip(".").split("...")]
    return {
        "output": output,
        "outputs": places if output.startswith("..") else places[0],
        "inputs": [{**one, "value": value} for one in callback["inputs"]],
        "state": [{**one, "value": value} for one in callback["state"]],
        "changedPropIds": [f"{one['id']}.{one['property']}" for one in callback["inputs"]],
    }


@pytest.mark.parametrize("body", BODIES)
def test_what_is_no_question_is_refused(board, body):
    answer = board.post("/_dash-update-component", content=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, list(answer.json())) == (422, ["detail"])


def test_a_question_that_no_page_asks_is_refused(board):
    good = question_of(callbacks(board)[0], "/")
    assert ask(board, **good).status_code == 200

    odd = [("output", "a.b"), ("outputs", {}), ("outputs", []), ("inputs", []), ("inputs", [1]), ("state", 1)]
    for part, wrong in [*odd, ("changedPropIds", [1])]:
        assert ask(board, **{**good, part: wrong}).status_code == 422, part


def test_an_endless_question_is_not_read(board):
    assert board.post("/_dash-update-component", content=b" " * (5 << 20)).status_code == 413


def test_no_value_of_an_input_makes_a_callback_fail(board):
    asked = [question_of(one, value) for one in callbacks(board) for value in VALUES]

    assert len(asked) > 100
    assert {ask(board, **one).status_code for one in asked} <= {200, 204}


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_script_that_is_not_there_is_not_found(board, path):
    assert board.get(f"/_dash-component-suites/{path}").status_code == 404


def test_numbers_in_addresses_may_be_of_any_length(board):
    question = question_of(callbacks(board)[0], "/")
    question["state"][0]["value"] = "?first=" + "9" * 5_000

    assert ask(board, **question).status_code == 200
    assert board.get("/_board/runs/x/news", params={"after": 1, "lines": "9" * 5_000}).status_code == 503
