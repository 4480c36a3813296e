"""A database as a file while it is written to, back again, and whether what must be true of it is."""

import json
import sqlite3
import threading

import pytest

from internist.commands import doctor
from internist_server import store_check
from internist_server.backup_command import backup, restore
from internist_server.store.database import sqlite_path
from tests.server.sending import Sender, module_series, start_of

SERIES = [module_series(0, "update.own", "blocks.0"), module_series(1, "activation.rms_max", "blocks.0")]
PATIENCE_S = 30.0


@pytest.fixture
def sender(api):
    made = Sender(api)
    made.send([*made.declare(SERIES), *(made.frame(step, [1.0, step]) for step in range(0, 600, 10))])
    return made


def steps(sender):
    return set(sender.points("activation.rms_max"))


def test_a_backup_holds_what_was_acknowledged_while_frames_come(sender, database_url, tmp_path, serve, capsys):
    began, ends = threading.Event(), threading.Event()

    def train():
        for step in range(600, 60_000, 10):
            sender.send([sender.frame(step, [1.0, step])])
            began.set()
            if ends.is_set():
                return

    training = threading.Thread(target=train)
    training.start()
    assert began.wait(PATIENCE_S)
    file = tmp_path / "backup.db"
    assert backup([str(file), "--database", database_url]) == 0
    ends.set()
    training.join(PATIENCE_S)

    assert capsys.readouterr().out.startswith(f"{file}: 1 runs, ")
    assert sorted(tmp_path.glob("backup*")) == [file]
    again = Sender(serve(f"sqlite:///{file}"), sender.start, register=False)
    assert steps(again) >= set(range(0, 610, 10))
    assert again.get("/verdicts")["members"]
    assert store_check.command(str(file), as_json=False) == 0


def test_a_backup_is_put_back_while_the_server_runs_and_training_goes_on(sender, database_url, tmp_path):
    file = tmp_path / "backup.db"
    assert backup([str(file), "--database", database_url]) == 0
    later = sender.sequence
    sender.send([sender.frame(step, [1.0, step]) for step in range(600, 900, 10)])
    other = Sender(sender.api, start_of("run2"))

    assert restore([str(file), "--database", database_url]) == 1  # it holds runs
    assert restore([str(file), "--database", database_url, "--replace"]) == 0

    assert sender.api.get(f"/api/v1/runs/{other.run}").status_code == 404
    assert steps(sender) == set(range(0, 600, 10))
    assert sender.post_start().json()["acknowledged"] == later - 1
    sender.sequence = later
    sender.send([sender.frame(step, [1.0, step]) for step in range(600, 700, 10)])
    assert steps(sender) == set(range(0, 700, 10))
    third = Sender(sender.api, start_of("run3"))
    third.send([*third.declare(SERIES), third.frame(0, [1.0, 1.0])])  # numbers go on behind those that are taken
    assert store_check.command(database_url, as_json=False) == 0


def test_what_cannot_be_a_backup_is_refused_in_one_sentence(sqlite_url, tmp_path, capsys):
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"SQLite format 3\0" + b"x" * 5_000)
    taken = tmp_path / "taken"
    taken.touch()

    assert restore([str(broken), "--database", sqlite_url]) == 1
    assert restore([str(tmp_path / "nowhere"), "--database", sqlite_url]) == 1
    assert backup([str(taken), "--database", sqlite_url]) == 1
    assert backup([str(tmp_path / "b"), "--database", str(tmp_path / "nowhere")]) == 1

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "is there already" in lines[2] and "there is no database at" in lines[3]
    assert not list(tmp_path.glob("*.draft"))


def test_a_backup_of_a_newer_version_is_refused(sqlite_url, tmp_path, capsys):
    file = tmp_path / "b.db"
    assert backup([str(file), "--database", sqlite_url]) == 0
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    assert restore([str(file), "--database", sqlite_url]) == 1
    assert "a newer version of Internist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("harm", "claim"),
    [
        ("DELETE FROM plans", "every frame has its plan"),
        ("UPDATE frames SET \"values\" = x'00000000' WHERE sequence = 5", "every frame is as wide as its plan"),
        ("UPDATE ranks SET delivered = '[[0, 9]]'", "every stored frame was acknowledged"),
        ("UPDATE ranks SET loose = 1", "frames that lie in no tile are counted"),
        ("UPDATE judge_states SET judged_step = 99999", "nothing is judged beyond what came"),
        ("DELETE FROM standings", "it is known how every run stands"),
    ],
)
def test_a_store_in_which_something_is_not_as_it_must_be_is_told(sqlite_api, sqlite_url, harm, claim, capsys):
    sender = Sender(sqlite_api)
    sender.send([*sender.declare(SERIES), *(sender.frame(step, [1.0, step]) for step in range(0, 100, 10))])
    with sqlite3.connect(sqlite_path(sqlite_url)) as connection:
        connection.execute(harm)

    assert store_check.command(sqlite_url, as_json=True) == 1

    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [one["name"] for one in findings if one["state"] == "problem"] == [claim]


def test_a_database_that_is_not_there_is_a_problem_and_none_is_made(tmp_path, capsys):
    assert store_check.command(str(tmp_path / "a.db"), as_json=False) == 1
    assert "there is no database at" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_has_a_database_looked_at_by_the_server(sqlite_url, monkeypatch, capsys):
    class Store:
        def load(self):
            return store_check.command

    monkeypatch.setattr(doctor, "entry_points", lambda **_: [Store()])

    assert doctor.command(["--database", sqlite_url]) == 0
    assert "no problem was found" in capsys.readouterr().out
