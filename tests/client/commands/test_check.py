"""`internist check` against a real server: words, exit codes, a file that others are held to."""

import json

import httpx
import pytest

from internist.commands.check import ILL, UNKNOWN, USAGE, WELL, command
from internist.schema.reference import TRAJECTORY_VERSION
from tests.dashboard.serving import served
from tests.server import proxies

STEPS = 4


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A server with a proxy, and a twin of it whose head is ten times too large: a second of training each."""
    folder = tmp_path_factory.mktemp("check")
    with served(folder) as address, httpx.Client(base_url=address, timeout=60) as api:
        proxies.ship(api, proxies.train(proxies.PROXY, folder, steps=STEPS, name="proxy"))
        loud = proxies.Made(head_init=10.0, seed=1)
        proxies.ship(api, proxies.train(loud, folder, steps=STEPS, name="loud"))
        yield address, folder


def test_the_exit_code_tells_the_verdict_where_it_is_asked_for(house, capsys):
    address, _ = house
    held = ["loud", "--reference", "proxy", "--server", address]

    assert command(held) == WELL
    assert command([*held, "--exit-code"]) == ILL
    assert command(["proxy", "--reference", "proxy", "--server", address, "--exit-code"]) == WELL
    assert command(["proxy", "--server", address, "--exit-code"]) == UNKNOWN  # four steps are no baseline
    said = capsys.readouterr().out
    assert "held to proxy" in said and "head" in said and "the reference run's" in said


def test_a_file_that_was_saved_stands_for_its_run(house, capsys):
    address, folder = house
    path = str(folder / "proxy.json")

    assert command(["proxy", "--save", path, "--server", address]) == WELL
    assert json.loads((folder / "proxy.json").read_text())["version"] == TRAJECTORY_VERSION
    assert command(["loud", "--reference", path, "--server", address, "--exit-code", "--json"]) == ILL
    answer = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert answer["reference"] == "proxy" and answer["deviations"]


def test_what_is_not_there_is_exit_code_2_and_one_line(house, capsys):
    address, _ = house

    assert command(["nobody", "--server", address]) == USAGE
    assert command(["loud", "--reference", "prxy", "--server", address]) == USAGE
    assert command(["loud", "--reference", "missing.json", "--server", address]) == USAGE
    first, second, third = capsys.readouterr().err.splitlines()
    assert "there is no run 'nobody'" in first and "did you mean 'proxy'" in second and "no such file" in third
