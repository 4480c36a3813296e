import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from internist.commands.sync import command, describe
from internist.errors import NotInternist, ServerUnreachable, SpoolError, TokenRefused
from internist.schema.wire import VERSION, Finish, Frame, Plan, RunStart, Series
from internist.ship import sync as sync_module
from internist.ship.segments import segment_path
from internist.ship.spool import Spool
from internist.ship.sync import sync
from tests.client.ship.small_server import SmallServer, json_answer


@pytest.fixture
def server():
    with SmallServer() as server:
        yield server


def dead_job(root: Path, *, run="r", attempt="a", rank=0, ranks=1, started=1, steps=range(10), size=4) -> Path:
    start = RunStart(
        version=VERSION, run=run, attempt=attempt, rank=rank, world_size=ranks, project="p", name="n", every=1,
        started_at_ms=started,
    )  # fmt: skip
    spool = Spool(root, start)
    spool.append(series=(Series(0, "loss", "model", ""),), plan=Plan(0, (0,)))
    for step in steps:
        spool.append(frame=Frame(plan=0, step=step, measured_at_ms=1, values=bytes(size)))
    spool.close()
    return spool.directory


def test_what_dead_jobs_left_arrives_once_however_often_it_is_synced(tmp_path, server):
    dead_job(tmp_path)
    dead_job(tmp_path, run="s")

    told = []
    first = sync(tmp_path, server=server.address, told=lambda done, of: told.append((done, of)))
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert (first.runs, first.attempts, first.spools) == (["r", "s"], 2, 2)
    assert (first.records, first.stored, first.duplicates) == (26, 26, 0)
    assert first.urls == [f"{server.address}/runs/r", f"{server.address}/runs/s"]
    arrived = list(server.arrived)
    again = sync(tmp_path, server=server.address)
    assert (again.records, again.stored) == (0, 0)
    assert server.arrived == arrived
    assert server.steps() == [*range(10)] * 2


def test_only_what_the_server_lacks_is_sent(tmp_path, server):
    dead_job(tmp_path, steps=range(4))
    sync(tmp_path, server=server.address)
    dead_job(tmp_path, steps=range(4, 9))

    report = sync(tmp_path, server=server.address)
    assert (report.records, report.stored) == (8, 8)
    assert server.steps() == list(range(9))


def test_ranks_go_side_by_side_by_step(tmp_path, server, monkeypatch):
    for rank in range(3):
        dead_job(tmp_path, rank=rank, ranks=3, steps=range(100), size=20_000)
    sync(tmp_path, server=server.address)

    reached, widest = {0: -1, 1: -1, 2: -1}, 0
    for rank, record in server.arrived:
        if record.frame:
            reached[rank] = record.frame.step
            widest = max(widest, max(reached.values()) - min(reached.values()))
    assert reached == {0: 99, 1: 99, 2: 99}
    assert widest <= 2 * (1 << 20) // 20_000


def test_attempts_go_in_order_of_their_starts(tmp_path, server):
    dead_job(tmp_path, attempt="a-later", started=20, steps=range(50, 60))
    dead_job(tmp_path, attempt="b-earlier", started=10, steps=range(50))
    sync(tmp_path, server=server.address)

    assert server.steps() == list(range(60))


@pytest.mark.parametrize("place", [".", "r", "r/a", "r/a/rank-00000"])
def test_any_level_of_the_directory_will_do(tmp_path, server, place):
    dead_job(tmp_path)

    assert sync(tmp_path / place, server=server.address).stored == 13


def test_verify_counts_what_the_server_lacks_and_sends_it(tmp_path, server):
    dead_job(tmp_path)
    sync(tmp_path, server=server.address)
    assert sync(tmp_path, server=server.address, verify=True).missing == 0
    del server.stored["r", "a", 0][5], server.stored["r", "a", 0][7]

    assert sync(tmp_path, server=server.address).missing is None
    report = sync(tmp_path, server=server.address, verify=True)
    assert report.missing == 2
    assert "verified: the server lacked 2 records, which it has now" in describe(report)
    assert sync(tmp_path, server=server.address, verify=True).missing == 0


def test_a_spool_that_is_still_written_is_shipped_and_named(tmp_path, server):
    start = RunStart(
        version=VERSION, run="r", attempt="a", rank=0, world_size=1, project="p", name="n", every=1, started_at_ms=1
    )
    spool = Spool(tmp_path, start)
    spool.append(finish=Finish(1, 2))

    report = sync(tmp_path, server=server.address)
    assert report.live == [spool.directory]
    assert report.stored == 2
    assert spool.append(finish=Finish(2, 3))
    spool.close()


def test_torn_and_damaged_spools_give_what_is_sound(tmp_path, server):
    path = segment_path(dead_job(tmp_path), 1)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole[:-1])
    report = sync(tmp_path, server=server.address)

    assert report.corrupt == 1
    assert report.stored == 11
    assert "1 damaged place skipped" in describe(report)


def test_a_spool_without_a_beginning_is_left_out_by_name_and_the_others_are_shipped(tmp_path, server, capsys):
    dead_job(tmp_path)
    broken = dead_job(tmp_path, run="s")
    segment_path(broken, 1).write_bytes(b"garbage")

    assert command([str(tmp_path), "--server", server.address]) == 1
    out = capsys.readouterr().out
    assert f"left out, its beginning is damaged: {broken}" in out
    assert "1 run, 1 attempt, 1 spool: 13 records sent, 13 of them new to the server" in out


def test_refused_records_are_reported_with_their_reason(tmp_path, server, capsys):
    dead_job(tmp_path)
    server.refuse = lambda record: "too old" if record.frame and record.frame.step < 3 else None

    assert command([str(tmp_path), "--server", server.address]) == 1
    assert "refused: 3 records: too old" in capsys.readouterr().out


def test_a_server_that_stumbles_is_tried_again(tmp_path, server, monkeypatch):
    monkeypatch.setattr(sync_module, "_RETRIES_S", (0.01, 0.01))
    dead_job(tmp_path)
    stumbles = iter([503, 503])
    server.misbehave = lambda request: (
        json_answer({"detail": "busy"}, status)
        if request.path.endswith("/frames") and (status := next(stumbles, None))
        else None
    )

    assert sync(tmp_path, server=server.address).stored == 13


def test_a_directory_without_spools_is_named(tmp_path, capsys):
    with pytest.raises(SpoolError, match="holds no spools"):
        sync(tmp_path, server="http://127.0.0.1:1")
    with pytest.raises(SpoolError, match="is not a directory"):
        sync(tmp_path / "absent", server="http://127.0.0.1:1")
    assert command([str(tmp_path), "--server", "http://127.0.0.1:1"]) == 1
    assert "holds no spools: expected" in capsys.readouterr().err


def test_a_server_that_cannot_be_used_is_named(tmp_path, server, capsys):
    dead_job(tmp_path)
    server.misbehave = lambda _: json_answer({"detail": "no"}, 401)
    with pytest.raises(TokenRefused):
        sync(tmp_path, server=server.address)
    server.misbehave = lambda _: (200, "text/html", b"<html>")
    with pytest.raises(NotInternist):
        sync(tmp_path, server=server.address)
    server.stop()
    server.stop = lambda: None
    with pytest.raises(ServerUnreachable):
        sync(tmp_path, server=server.address)
    assert command([str(tmp_path), "--server", server.address]) == 1
    assert f"no Internist server answers at {server.address}" in capsys.readouterr().err


def test_directory_server_and_token_come_from_the_environment(tmp_path, server, monkeypatch, capsys):
    dead_job(tmp_path)
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path))
    monkeypatch.setenv("INTERNIST_SERVER", server.address)
    monkeypatch.setenv("INTERNIST_TOKEN", "secret")

    assert command(["--verify"]) == 0
    assert server.requests[0].headers["Authorization"] == "Bearer secret"
    out = capsys.readouterr().out
    assert out.startswith(f"from {tmp_path} (INTERNIST_DIR)\n")
    assert "verified: the server has every record" in out


def test_without_arguments_what_lies_in_the_default_directory_is_synced(tmp_path, server, monkeypatch, capsys):
    dead_job(tmp_path / "internist-runs")
    monkeypatch.delenv("INTERNIST_DIR", raising=False)
    monkeypatch.setenv("INTERNIST_SERVER", server.address)
    monkeypatch.chdir(tmp_path)

    assert command([]) == 0
    assert capsys.readouterr().out.startswith("from internist-runs (the default: INTERNIST_DIR is not set)\n")
    assert server.steps() == list(range(10))


def test_a_default_directory_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "100%"))

    assert command([]) == 1
    assert f"{tmp_path}/100% is not a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(["--help"])
    assert "100%" in capsys.readouterr().out.replace("\n", "").replace(" ", "")


def test_sync_and_the_command_line_work_without_torch(tmp_path, server):
    dead_job(tmp_path)
    script = """
import sys
sys.modules["torch"] = None
from internist.commands.cli import main
sys.exit(main(["sync", *sys.argv[1:]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "--server", server.address],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert server.steps() == list(range(10))


def test_a_copied_spool_can_be_synced(tmp_path, server):
    shutil.copytree(dead_job(tmp_path / "here"), tmp_path / "copy" / "rank-00000")

    assert sync(tmp_path / "copy", server=server.address).stored == 13
