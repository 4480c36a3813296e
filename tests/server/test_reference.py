"""A small proxy is the band of larger runs: from the client, through its spool, to the server's verdicts."""

from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from internist_migrations.upgrade import upgrade
from internist_server.app import create_api
from internist_server.settings import Settings
from tests.server import proxies
from tests.server.proxies import ship, train

STEPS = 4
"""As many as three points in a row need, the first a start: what is wrong from the first step is told at the third."""
FIRES_BY = 2
FAULTS = {
    "the square root of the head's width is forgotten": (proxies.UNSCALED, "attention"),
    "the head is initialised ten times too large": (proxies.LOUD_HEAD, "head"),
    "the residual branches lack their multiplier": (proxies.UNDAMPED, "blocks."),
    "the normalisation is gone": (proxies.BARE, "blocks."),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all runs of this file, with the proxy in it: every run costs a second or two."""
    folder = tmp_path_factory.mktemp("reference")
    url = f"sqlite:///{folder / 'internist.db'}"
    upgrade(url)
    with TestClient(create_api(Settings(database_url=url))) as api:
        ship(api, train(proxies.PROXY, folder, steps=STEPS, name="proxy"))
        yield api, folder


def get(api, path, **asked):
    answer = api.get(f"/api/v1{path}", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def healthy(server):
    api, folder = server
    monitor = train(proxies.LARGER, folder, steps=STEPS, name="larger", reference="proxy")
    ship(api, monitor)
    return monitor.run


def test_a_wider_and_deeper_run_that_is_well_is_well_by_its_proxy(server, healthy):
    api, _ = server

    board, check = get(api, f"/runs/{healthy}/verdicts"), get(api, f"/runs/{healthy}/check")

    assert board["state"] == "ok" and "by reference" in board["sentence"]
    assert {c["name"] for c in board["cards"] if c["basis"] == "reference"} >= {"forward", "dependency", "update"}
    assert (check["state"], check["deviations"], check["reference"]) == ("ok", [], "proxy")
    assert check["held"] > 100
    assert get(api, "/alerts", run=healthy)["alerts"] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_there_from_the_first_step_is_told_at_the_first_judged_ones(server, fault):
    api, folder = server
    made, where = FAULTS[fault]
    monitor = train(made, folder, steps=STEPS, name=fault, reference="proxy")
    ship(api, monitor)

    alerts = get(api, "/alerts", run=monitor.run, limit=1000)["alerts"]
    found = [a for a in alerts if a["basis"] == "reference" and (where in a["subject"] or where in a["metric"])]

    assert found and min(a["opened_step"] for a in found) <= FIRES_BY, [a["message"] for a in alerts]
    assert "the reference run's" in found[0]["message"] and "band" in found[0]["message"]
    assert get(api, f"/runs/{monitor.run}/verdicts")["state"] == "violated"


def test_a_stored_run_is_held_to_any_other_afterwards_and_nothing_of_it_changes(server, healthy):
    api, folder = server
    loud = train(replace(proxies.PROXY, head_init=10.0), folder, steps=STEPS, name="loud")
    ship(api, loud)
    before = get(api, f"/runs/{loud.run}/verdicts")

    alone, held = get(api, "/runs/loud/check"), get(api, "/runs/loud/check", reference="proxy")

    assert alone["held"] == 0 and not any(d["basis"] == "reference" for d in alone["deviations"])
    assert held["state"] == "violated" and held["deviations"][0]["opened_step"] <= FIRES_BY
    assert get(api, f"/runs/{loud.run}/verdicts") == before


def test_a_trajectory_that_is_saved_says_the_same_as_its_run(server, healthy):
    api, _ = server
    trajectory = api.get("/api/v1/runs/proxy/trajectory").content
    by_run = get(api, f"/runs/{healthy}/check", reference="proxy")

    answer = api.post(f"/api/v1/runs/{healthy}/check", content=trajectory, headers={"Content-Type": "application/json"})

    assert answer.status_code == 200 and answer.json() == by_run


def test_a_trajectory_from_a_file_travels_with_the_run(server):
    api, folder = server
    path = folder / "proxy.json"
    path.write_bytes(api.get("/api/v1/runs/proxy/trajectory").content)
    monitor = train(proxies.UNSCALED, folder, steps=STEPS, name="from a file", reference=path)
    ship(api, monitor)

    check = get(api, f"/runs/{monitor.run}/check")

    assert check["reference"] == "proxy" and check["state"] == "violated"
    assert any(d["metric"].startswith("attention.") for d in check["deviations"])


def test_a_reference_that_nobody_knows_is_said_and_found_as_soon_as_it_comes(server):
    api, folder = server
    monitor = train(proxies.PROXY, folder, steps=STEPS, name="early", reference="late proxy")
    ship(api, monitor)

    said = get(api, f"/runs/{monitor.run}/verdicts")
    assert said["state"] == "not measured"
    assert "not held to its reference: there is no run 'late proxy' on this server" in said["sentence"]
    assert get(api, f"/runs/{monitor.run}")["verdict"] == "not measured"
    answer = api.get(f"/api/v1/runs/{monitor.run}/check", params={"reference": "nobody"})
    assert answer.status_code == 404 and "there is no run 'nobody'" in answer.json()["detail"]

    ship(api, train(replace(proxies.PROXY, seed=7), folder, steps=STEPS, name="late proxy"))

    assert get(api, f"/runs/{monitor.run}/check")["reference"] == "late proxy"


def test_a_body_that_is_no_trajectory_is_refused_with_what_is_wrong(server, healthy):
    api, _ = server
    for body, expected in ((b"{}", "no trajectory"), (b"\xff", "no trajectory")):
        answer = api.post(f"/api/v1/runs/{healthy}/check", content=body, headers={"Content-Type": "application/json"})

        assert answer.status_code == 400 and expected in answer.json()["detail"]
