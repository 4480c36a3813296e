"""`internist rules` and `internist alerts` on the command line."""

import threading

import pytest
import uvicorn

from internist.commands import alerts as alerts_command
from internist.schema.wire import Series
from internist_server import rules_command
from internist_server.app import create_api
from internist_server.settings import Settings
from tests.server.sending import Sender

WRONG = '[[rule]]\nname = "loss_high"\nmetric = "loss"\nabov = 5.0\n'
RIGHT = WRONG.replace("abov", "above") + '[[rule]]\nname = "quiet"\ncondition = "run_killed"\nenabled = false\n'
DEADLINE_S = 60


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "internist.toml"
    path.write_text(RIGHT)
    return path


@pytest.fixture
def stored(sqlite_url, serve):
    """A database with a run whose loss is too high for two samples, and that was killed."""
    sender = Sender(serve(sqlite_url))
    sender.send(sender.declare([Series(0, "loss", "model", "")]))
    sender.send([sender.frame(step, [9.0 if step in (30, 40) else 1.0]) for step in range(0, 70, 10)])
    sender.send([sender.finish(60, "killed")])
    return sqlite_url


def test_a_file_that_is_right_is_counted_and_one_that_is_wrong_is_told_of_by_line(file, capsys):
    assert rules_command.command(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 2 rules, 0 receivers\n"

    file.write_text(WRONG)

    assert rules_command.command(["check", str(file)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert f"{file}:4: `abov` is not known; did you mean `above`?" in said


def test_a_file_is_tested_on_a_stored_run_and_nothing_of_it_is_kept(file, stored, capsys):
    arguments = ["test", str(file), "--run", "run1", "--database", stored]

    assert rules_command.command(arguments) == 0

    fired, resolved, on_condition, count = capsys.readouterr().out.splitlines()
    assert fired == "run1-a  step       30  firing    loss_high (warning): model: loss is 9, over 5, since step 30"
    assert resolved.startswith("run1-a  step       50  resolved  loss_high (warning)")
    assert on_condition == "quiet: on 1 recorded alert of run_killed" and count == "1 alert would have fired"
    assert rules_command.command([*arguments, "--exit-code"]) == rules_command.FIRED


def test_a_run_or_a_database_that_is_not_there_is_said(file, stored, capsys, tmp_path):
    assert rules_command.command(["test", str(file), "--run", "nobody", "--database", stored]) == 1
    assert "there is no run 'nobody'" in capsys.readouterr().err

    assert rules_command.command(["test", str(file), "--run", "run1", "--database", str(tmp_path / "none.db")]) == 1
    assert "there is no database" in capsys.readouterr().err


@pytest.fixture
def server(stored):
    """The address of a server that listens."""
    api = uvicorn.Server(uvicorn.Config(create_api(Settings(database_url=stored)), port=0, log_config=None))
    ready = threading.Event()
    startup = api.startup

    async def announce(sockets=None):
        await startup(sockets)
        ready.set()

    api.startup = announce
    thread = threading.Thread(target=api.run, daemon=True)
    thread.start()
    assert ready.wait(DEADLINE_S)
    yield f"http://127.0.0.1:{api.servers[0].sockets[0].getsockname()[1]}"
    api.should_exit = True
    thread.join(DEADLINE_S)


def test_alerts_are_listed_seen_and_silenced_from_a_terminal(server, capsys):
    def said(*arguments):
        status = alerts_command.command(["--server", server, *arguments])
        out = capsys.readouterr()
        return status, out.out or out.err

    assert said("list") == (0, "no alert is open\n")
    assert "the run was killed by a signal at step 60" in said("list", "--all")[1]
    assert "(seen by ada)" in said("ack", "1", "--author", "ada")[1]
    assert "(seen by" not in said("unack", "1")[1]
    assert said("ack", "77", "--author", "ada") == (
        1,
        f"internist alerts: {server} refused the request (404: there is no alert 77)\n",
    )
    hushed = ("silence", "run=run1", "module=blocks.*", "--for", "30m", "--reason", "a test", "--author", "ada")
    assert "run=run1 module=blocks.*  by ada: a test" in said(*hushed)[1]
    assert "by ada" in said("silences")[1]
    assert said("unsilence", "1")[0] == 0 and said("silences") == (0, "nothing is silenced\n")


@pytest.mark.parametrize("wrong", [["silence", "run"], ["silence", "a=b", "--for", "soon"], ["ack"], []])
def test_arguments_that_are_wrong_are_exit_status_2(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        alerts_command.command([*wrong, "--reason", "a test"] if "silence" in wrong else wrong)

    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err or "silence" not in wrong


def test_a_server_that_is_not_there_is_said(capsys):
    assert alerts_command.command(["--server", "http://127.0.0.1:9", "list"]) == 1
    assert "no Internist server answers at" in capsys.readouterr().err
