"""`internist token` against a real server: what is made opens it, what is revoked does not."""

import httpx
import pytest

from internist.commands.token import USAGE, WELL, command
from internist.errors import TokenRefused
from tests.dashboard.serving import served

ADMIN = "the token of the environment"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("tokens"), token=ADMIN) as address:
        yield address


def status(address, secret):
    return httpx.get(f"{address}/api/v1/runs", headers={"Authorization": f"Bearer {secret}"}).status_code


def test_a_token_is_made_shown_once_listed_and_revoked(address, capsys):
    there = ["--server", address, "--token", ADMIN]

    assert command(["create", "ada", "--scope", "read", "--project", "lab", "--days", "7", *there]) == WELL
    said = capsys.readouterr()
    secret = said.out.strip()
    assert status(address, secret) == 200
    assert "ada · read · project lab · expires 2" in said.err and secret not in said.err

    assert command(["list", *there]) == WELL
    line = capsys.readouterr().out
    assert "ada · read · project lab" in line and secret not in line

    assert command(["revoke", line.split()[0], *there]) == WELL
    assert status(address, secret) == 403
    assert command(["list", "--json", *there]) == WELL
    assert '"revoked_at_ms": null' not in capsys.readouterr().out


def test_what_the_server_refuses_is_one_line(address, capsys):
    assert command(["revoke", "77", "--server", address, "--token", ADMIN]) == USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_token_that_administers_nothing_is_made(address):
    with pytest.raises(TokenRefused):
        command(["create", "x", "--scope", "read", "--server", address, "--token", "no"])
