"""What people say of runs: names, tags, notes, pins, the archive; and the order of lists."""

import pytest

from internist.schema.wire import Facts, Series
from tests.server.sending import Sender, start_of

SERIES = [Series(0, "loss", "model", "", facts=Facts())]


@pytest.fixture
def runs(api, clock):
    """Three runs with losses of 3, NaN and 1, in this order of time."""
    for name, loss in (("b", 3.0), ("c", float("nan")), ("a", 1.0)):
        sender = Sender(api, start_of(name, project="p2" if name == "a" else "p1", name=name))
        sender.send([*sender.declare(SERIES), sender.frame(0, [loss]), sender.frame(10, [loss]), sender.finish(10)])
        clock.advance(1)
    return api


def listed(api, **query):
    return [run["id"] for run in api.get("/api/v1/runs", params=query).json()]


def test_a_run_is_renamed_tagged_noted_and_stays_so_when_it_is_resumed(runs):
    changes = {"name": "baseline", "tags": ["paper", "muon", "paper"], "notes": "two lines\nof it"}
    changed = runs.patch("/api/v1/runs/a", json=changes).json()
    Sender(runs, start_of("a", attempt="a-2", name="a"))

    assert {key: changed[key] for key in changes} == {**changes, "tags": ["paper", "muon"]}
    found = runs.get("/api/v1/runs/a").json()
    assert {key: found[key] for key in changes} == {**changes, "tags": ["paper", "muon"]}
    assert len(found["attempts"]) == 2
    assert found["cursor"] >= changed["cursor"] > 0


def test_what_is_not_named_stays(runs):
    runs.patch("/api/v1/runs/a", json={"tags": ["paper"], "pinned": True})
    changed = runs.patch("/api/v1/runs/a", json={"notes": "n"}).json()

    assert (changed["name"], changed["tags"], changed["pinned"], changed["archived"]) == ("a", ["paper"], True, False)


def test_pinned_runs_come_first_and_archived_ones_only_when_asked_for(runs):
    runs.patch("/api/v1/runs/b", json={"pinned": True})
    runs.patch("/api/v1/runs/c", json={"archived": True})

    assert listed(runs) == ["b", "a"]
    assert listed(runs, archived=True) == ["c"]
    assert runs.get("/api/v1/runs/c").status_code == 200


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ({}, "acb"),
        ({"reverse": True}, "bca"),
        ({"sort": "name"}, "abc"),
        ({"sort": "loss"}, "abc"),
        ({"sort": "loss", "reverse": True}, "bac"),
        ({"sort": "project"}, "cba"),
        ({"sort": "step"}, "acb"),
    ],
)
def test_lists_are_sorted_by_the_server(runs, query, order):
    assert "".join(listed(runs, **query)) == order


def test_a_search_finds_tags(runs):
    runs.patch("/api/v1/runs/b", json={"tags": ["Über-Lauf"]})

    assert listed(runs, name="ber-lauf") == ["b"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "at least one of name, tags"),
        ({"name": "  "}, "at least 1 character"),
        ({"name": None}, "valid string"),
        ({"tags": ["a\nb"]}, "pattern"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_changes_that_make_no_sense_are_422(runs, changes, reason):
    answer = runs.patch("/api/v1/runs/a", json=changes)

    assert answer.status_code == 422
    assert reason in answer.json()["detail"]


def test_a_run_that_there_is_not_cannot_be_changed(runs):
    answer = runs.patch("/api/v1/runs/nowhere", json={"pinned": True})

    assert (answer.status_code, answer.json()["error"]) == (404, "run_not_found")
