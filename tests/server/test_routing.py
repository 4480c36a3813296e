"""The routing table of a run: taken with its start, kept, read; and a misrouted matrix opens an alert."""

import pytest

from internist.schema.wire import Facts, Route, Series
from tests.server.sending import Sender, start_of

ROUTES = (
    Route("blocks.0.fc.weight", "Muon", "muon", "hidden", (8, 4), "hidden", "original", "jordan"),
    Route("head.weight", "Muon", "adamw", "head", (9, 8), "head"),
)


def test_the_table_of_the_start_is_read_back(api):
    sender = Sender(api, start_of(routing=ROUTES, optimizers=("Muon",)))

    table = sender.get("/routing")

    assert (table["run"], table["attempt"]) == ("run1", "run1-a")
    assert [(r["parameter"], r["algorithm"], r["shape"]) for r in table["routes"]] == [
        ("blocks.0.fc.weight", "muon", [8, 4]),
        ("head.weight", "adamw", [9, 8]),
    ]
    assert table["routes"][0]["scale"] == "original"


def test_a_start_without_a_table_has_an_empty_one_and_a_later_rank_may_bring_it(api):
    first = Sender(api, start_of(world_size=2))
    assert first.get("/routing")["routes"] == []

    Sender(api, start_of(world_size=2, rank=1, routing=ROUTES))

    assert len(first.get("/routing")["routes"]) == 2


def test_each_attempt_has_its_own(sqlite_api):
    Sender(sqlite_api, start_of(routing=ROUTES))
    second = Sender(sqlite_api, start_of(attempt="run1-b", routing=ROUTES[:1], started_at_ms=1_800_000_000_000))

    assert len(second.get("/routing")["routes"]) == 1
    assert len(second.get("/routing", attempt="run1-a")["routes"]) == 2


@pytest.mark.parametrize(
    "route",
    [Route("x" * 600, "a", "b", "c"), Route("w", "a\x00", "b", "c"), Route("w", "a", "b", "c", (-1,))],
)
def test_a_line_of_the_table_that_cannot_be_is_left_out_and_the_others_kept(sqlite_api, route):
    sender = Sender(sqlite_api, start_of(routing=(ROUTES[0], route, ROUTES[1])))

    kept = [one["parameter"] for one in sender.get("/routing")["routes"]]
    assert kept == [one.parameter for one in ROUTES]


def test_a_hidden_matrix_on_another_optimizer_opens_a_warning_that_resolves(sqlite_api):
    sender = Sender(sqlite_api, start_of(routing=ROUTES))
    facts = Facts(role="linear", block="blocks.0", module="blocks.0.fc", cadence=100)
    misrouted = Series(0, "optimizer.misrouted", "parameter", "blocks.0.fc.weight", facts=facts)
    sender.send([*sender.declare([misrouted]), sender.frame(0, [1.0]), sender.frame(1, [1.0])])

    (alert,) = sqlite_api.get("/api/v1/alerts").json()["alerts"]
    assert (alert["rule"], alert["severity"], alert["state"]) == ("matrix_misrouted", "warning", "firing")
    assert alert["message"].startswith("blocks.0.fc.weight: a hidden matrix that another algorithm steps")

    sender.send([sender.frame(100, [0.0]), sender.frame(200, [0.0])])
    (alert,) = sqlite_api.get("/api/v1/alerts").json()["alerts"]
    assert alert["state"] == "resolved"


def test_the_band_of_a_target_that_only_warns_has_no_critical_edge(sqlite_api):
    sender = Sender(sqlite_api)
    facts = Facts(cadence=10, fan_in=64, fan_out=256)  # of rank 64: its even share is 1/8
    share = Series(0, "optimizer.removed_share", "parameter", "w", facts=facts)
    sender.send([*sender.declare([share]), *(sender.frame(step, [0.2]) for step in range(0, 50, 10))])

    band = sender.get("/points", metric="optimizer.removed_share")["windows"][0]["band"]
    assert (band["warn_high"][-1], band["critical_high"][-1]) == (0.5, None)
