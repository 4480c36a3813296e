"""A run in a file of its own, and back among others: whatever is asked of it is answered as before."""

import json

import pytest
from sqlalchemy.exc import OperationalError

from internist_server import archive_command, store_check
from internist_server.archive_command import archive, put_away, unarchive
from internist_server.compactor import Compactor
from internist_server.errors import Conflict
from internist_server.store.compaction import Sizes
from internist_server.store.database import Database
from tests.server.sending import Sender, module_series, start_of

SERIES = [module_series(0, "update.own", "blocks.0"), module_series(1, "activation.rms_max", "blocks.0")]
OWN = {"metric": "update.own"}
ASKED = (
    ("", {}),
    ("/series", {}),
    ("/points", OWN),
    ("/heatmap", OWN),
    ("/verdicts", {}),
    ("/coverage", {}),
    ("/routing", {}),
)
NUMBERED = ("id", "series", "cursor")
"""Fields that hold numbers which the database gives."""


def send_run(api, run, *, alert=False):
    sender = Sender(api, start_of(run))
    records = [*sender.declare(SERIES)]
    records += [sender.frame(step, [1.0, 1.0 + step]) for step in range(0, 1_000, 10)]
    if alert:
        records.append(sender.frame(1_000, [float("nan"), 5.0]))
    sender.send(records)
    return sender


def answers(sender):
    """What is answered of a run, without the numbers that the database gives."""

    def plain(said):
        if isinstance(said, dict):
            return {name: plain(one) for name, one in said.items() if name not in NUMBERED and "time" not in name}
        return [plain(one) for one in said] if isinstance(said, list) else said

    alerts = sender.api.get("/api/v1/alerts", params={"run": sender.run}).json()
    return [plain(sender.get(path, **params)) for path, params in ASKED] + [plain(alerts)]


@pytest.fixture
def over(api, database_url):
    """A run that is over, some of it in tiles, behind another one."""
    send_run(api, "run1")
    sender = send_run(api, "run2", alert=True)
    sender.send([sender.finish(1_000)])
    database = Database(database_url)
    Compactor(database, sizes=Sizes(block=32, kept=4)).compact()
    database.close()
    return sender


def test_a_run_is_put_away_and_comes_back_with_all_that_is_known_of_it(over, api, database_url, tmp_path, capsys):
    before, file = answers(over), tmp_path / "run2.db"
    assert any(row["ratios"] for row in over.get("/heatmap", **OWN)["rows"])

    assert archive(["run2", str(file), "--database", database_url]) == 0
    assert api.get("/api/v1/runs/run2").status_code == 404
    third = send_run(api, "run3", alert=True)  # takes numbers that were run2's
    assert unarchive([str(file), "--database", database_url]) == 0

    assert answers(over) == before
    assert third.get("/verdicts")["members"]
    assert unarchive([str(file), "--database", database_url]) == 1
    assert "there is a run 'run2' already" in capsys.readouterr().err
    assert store_check.command(database_url, as_json=False) == 0
    resumed = Sender(api, start_of("run2", attempt="run2-b", parent="run2-a", start_step=500))
    resumed.send([*resumed.declare(SERIES), *(resumed.frame(step, [1.0, 2.0]) for step in range(500, 700, 10))])
    assert json.dumps(resumed.points("update.own"))


def test_a_run_that_is_live_stays(sqlite_api, sqlite_url, tmp_path):
    live = Sender(sqlite_api)
    live.send([*live.declare(SERIES), live.frame(0, [1.0, 1.0])])
    live.beat(0)

    with pytest.raises(Conflict, match="run 'run1' is live"):
        put_away(sqlite_url, "run1", tmp_path / "run1.db", now_ms=0)

    assert not list(tmp_path.glob("run1*"))
    assert live.points("update.own")


def test_a_file_stays_where_nobody_knows_whether_the_run_left_the_database(
    sqlite_api, sqlite_url, tmp_path, monkeypatch, capsys
):
    sender = send_run(sqlite_api, "run1")
    sender.send([sender.finish(1_000)])
    before, file, remove = answers(sender), tmp_path / "run1.db", archive_command._remove

    def remove_unheard(*given, **named):
        remove(*given, **named)
        raise OperationalError("COMMIT", None, ConnectionError("the connection was lost"))

    monkeypatch.setattr(archive_command, "_remove", remove_unheard)
    assert archive(["run1", str(file), "--database", sqlite_url]) == 1

    assert "the connection was lost" in capsys.readouterr().err
    assert sqlite_api.get("/api/v1/runs/run1").status_code == 404
    assert unarchive([str(file), "--database", sqlite_url]) == 0
    assert answers(sender) == before
