"""`internist login` and `logout` against a real server."""

import io
import json

import pytest

from internist.commands import token
from internist.commands.login import FAILURE, USAGE, WELL, login, logout
from internist.history.reading import read
from internist.ship.connection import Connection
from internist.ship.credentials import kept
from internist_migrations.upgrade import upgrade
from internist_server.app import create_app
from internist_server.settings import Settings
from tests.dashboard.serving import listening

ADMIN = "the token of the environment"


def server(directory, token):
    url = f"sqlite:///{directory / 'internist.db'}"
    upgrade(url)
    return create_app(Settings(database_url=url, token=token), board=False)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with listening(server(tmp_path_factory.mktemp("login"), ADMIN)) as address:
        yield address


@pytest.fixture(autouse=True)
def environ(tmp_path, monkeypatch):
    found = {"XDG_CONFIG_HOME": str(tmp_path)}
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("INTERNIST_TOKEN", raising=False)
    return found


def pipe(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_who_signs_in_needs_to_tell_no_command_and_no_script_a_token(address, environ, monkeypatch, capsys, tmp_path):
    pipe(monkeypatch, f"{ADMIN}\n")

    assert login([address]) == WELL
    said = capsys.readouterr().out
    assert f"{address} knows you as bootstrap: admin, all projects; kept in {tmp_path}/internist/tokens.json" in said
    assert ADMIN not in said

    assert token.command(["create", "ada", "--scope", "read", "--server", address]) == WELL
    with read(address) as opened:
        assert list(opened.runs()) == []


def test_what_the_token_is_for_is_said_and_told_to_programs(address, environ, monkeypatch, capsys):
    wanted = {"name": "eve", "scopes": ["ingest", "read"], "project": "lab", "days": 7}
    connection = Connection(address, ADMIN)
    secret = connection.write("tokens", wanted, dict)["secret"]
    connection.close()
    monkeypatch.setenv("INTERNIST_TOKEN", "another")

    assert login([address, "--token", secret]) == WELL
    said = capsys.readouterr()
    assert "eve: ingest and read, project lab, until 2" in said.out and "INTERNIST_TOKEN is set, and wins" in said.err

    assert login([address, "--token", secret, "--json"]) == WELL
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["scopes"], told["project"]) == ("eve", ["ingest", "read"], "lab")
    assert told["server"] == address and secret not in str(told)


def test_a_token_that_the_server_does_not_know_is_not_kept(address, environ, monkeypatch, capsys):
    assert login([address, "--token", "int_nobody"]) == USAGE
    said = capsys.readouterr().err
    assert "this is no token of this server" in said and said.count("\n") == 1
    pipe(monkeypatch, "\n")
    assert login([address]) == USAGE
    assert "no token was given" in capsys.readouterr().err
    assert kept(environ) == {}


def test_who_signs_out_is_not_known_any_more(address, environ, capsys):
    login([address, "--token", ADMIN])
    capsys.readouterr()

    assert logout([address, "--json"]) == WELL
    assert json.loads(capsys.readouterr().out) == {"forgotten": [address]}
    assert logout([address]) == WELL
    assert f"nothing was kept for {address}" in capsys.readouterr().out
    assert kept(environ) == {}


def test_of_a_server_that_asks_for_no_token_none_is_kept(tmp_path, environ, capsys):
    with listening(server(tmp_path, None)) as address:
        assert login([address, "--token", "any"]) == WELL

    assert "asks for no token: nothing is kept" in capsys.readouterr().out
    assert kept(environ) == {}


def test_a_place_that_cannot_be_written_is_said(address, tmp_path, monkeypatch, capsys):
    (tmp_path / "internist").write_text("a file where the directory should be")

    assert login([address, "--token", ADMIN]) == FAILURE
    assert capsys.readouterr().err.startswith("internist login: ")
