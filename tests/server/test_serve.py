import json
import signal
import socket
import sqlite3
import threading
import time

import pytest
import urllib3

from internist_server.app import create_app
from internist_server.cli import bind, serve
from internist_server.errors import SettingsError
from internist_server.settings import Settings, is_loopback
from tests.server.processes import server_process, start
from tests.server.sending import Sender, module_series, start_of

SERIES = [module_series(0, "activation.rms_max", "blocks.0"), module_series(1, "update.own", "blocks.0")]
END_S = 20
SLOW_S = 3
"""What a machine that does other things may take for the end of a process."""


def values(step):
    return [float(step), 1.0 + step / 1000]


def test_acknowledged_frames_survive_kill_9_twice_and_none_is_stored_twice(empty_database_url, tmp_path):
    sender, records, sent = None, [], 0
    for life in range(3):
        with server_process(empty_database_url, tmp_path) as server:
            if sender is None:
                sender = Sender(server)
                records = sender.declare(SERIES) + [sender.frame(step, values(step)) for step in range(0, 600, 10)]
            sender.api = server
            acknowledged = sender.post_start().json()["acknowledged"]
            assert acknowledged >= sent - 1
            # The server dies with a request in flight, whose answer is lost: it may have been stored or not.
            for begin in range(acknowledged + 1, len(records), 7):
                if life < 2 and begin >= (life + 1) * 20:
                    flight = threading.Thread(target=send_into_the_dark, args=(sender, records[begin : begin + 7]))
                    flight.start()
                    server.process.send_signal(signal.SIGKILL)
                    flight.join()
                    break
                sent = sender.send(records[begin : begin + 7])["acknowledged"] + 1
            if life == 2:
                again = sender.send(records)
                points = sender.points("activation.rms_max")

    assert (again["stored"], again["duplicates"]) == (0, len(records))
    assert points == {step: float(step) for step in range(0, 600, 10)}


def send_into_the_dark(sender, records):
    try:
        sender.post(records)
    except urllib3.exceptions.HTTPError:
        return


def test_the_server_migrates_says_where_it_is_and_ends_cleanly(tmp_path):
    database = tmp_path / "here.db"
    for number in (signal.SIGTERM, signal.SIGINT):
        with server_process(str(database), tmp_path) as server:
            assert server.get("/readyz").status_code == 200
            server.process.send_signal(number)
            out, _ = server.process.communicate(timeout=END_S)

        assert server.process.returncode == 0
        assert out.splitlines() == [f"Internist is at {server.address}  (data: {database})"]
    assert sqlite3.connect(database).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_next_free_port_is_taken_and_named_unless_one_was_asked_for(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(port=taken.getsockname()[1])
        with bind(settings) as listener:
            port = listener.getsockname()[1]

        assert capsys.readouterr().out == f"port {settings.port} is taken; using {port}\n"
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {settings.port}: "):
            bind(settings, is_exact=True)


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        (["--host", "0.0.0.0"], {}, "refusing to listen on 0.0.0.0 without a token"),
        ([], {"INTERNIST_HOST": "example.org"}, "refusing to listen"),
        ([], {"INTERNIST_MAX_REQUEST_BYTES": "many"}, "INTERNIST_MAX_REQUEST_BYTES"),
        ([], {"INTERNIST_ALERTMANAGER_URL": "http://a:9093, b:9093"}, "such as http://alertmanager:9093, got 'b:9093'"),
        ([], {"INTERNIST_ALERTMANAGER_REFRESH_S": "0"}, "INTERNIST_ALERTMANAGER_REFRESH_S"),
        (["--database", "/nowhere/at/all.db"], {}, "the database /nowhere/at/all.db cannot be used"),
        (["--database", "nonsense://x"], {}, "cannot be used"),
        (
            ["--host", "0.0.0.0", "--token", "t"],
            {"INTERNIST_WEBHOOK_URL": "http://169.254.169.254/x"},
            "the webhook http://169.254.169.254 is on this machine or its link: set INTERNIST_LOCAL_WEBHOOKS=true",
        ),
        (["--database", "postgresql://h:port/x"], {}, "cannot be used"),
        (["--host", "203.0.113.7", "--token", "t"], {}, "cannot listen on 203.0.113.7"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(tmp_path, arguments, environment, reason):
    process = start(str(tmp_path / "a.db"), *arguments, **environment)

    try:
        out, _ = process.communicate(timeout=END_S)
    finally:
        process.kill()

    assert process.returncode == 1
    assert reason in out
    assert len(out.splitlines()) == 1


def test_a_database_of_a_newer_version_is_refused_in_one_sentence(sqlite_url, capsys):
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    assert serve(["--database", sqlite_url, "--port", "0"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert "a newer version of Internist migrated it to revision 9999" in line and "update Internist" in line


def test_the_stream_tells_of_changes_and_ends_with_the_server_which_logs_as_it_is_told(tmp_path):
    logs = {"INTERNIST_LOG_FORMAT": "json", "INTERNIST_ACCESS_LOG": "true"}
    with server_process(str(tmp_path / "a.db"), tmp_path, **logs) as server:
        sender = Sender(server)
        sender.send(sender.declare(SERIES))
        cursor = sender.get()["cursor"]
        stream = urllib3.PoolManager().request(
            "GET",
            f"{server.address}/api/v1/runs/{sender.run}/stream?cursor={cursor}",
            preload_content=False,
            timeout=END_S,
        )
        assert read_event(stream)["event"] == "alive"
        sender.send([sender.frame(0, values(0))])

        event = read_event(stream)
        while event["event"] == "alive":  # what it says while nothing is new
            event = read_event(stream)

        assert event["event"] == "change"
        assert int(event["id"]) > cursor
        assert '"step":0' in event["data"]
        server.process.terminate()
        out, _ = server.process.communicate(timeout=END_S)
        assert server.process.returncode == 0
        written = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert f"/api/v1/runs/{sender.run}/stream" in [line.get("path") for line in written]


def test_a_server_ends_in_time_while_many_send_and_keeps_what_it_acknowledged(tmp_path):
    with server_process(str(tmp_path / "a.db"), tmp_path) as server:
        senders = [Sender(server, start_of(f"run{place}")) for place in range(8)]
        kept, began = {}, threading.Event()
        threads = [threading.Thread(target=send_until_it_ends, args=(one, kept, began)) for one in senders]
        for thread in threads:
            thread.start()
        assert began.wait(END_S)
        asked = time.monotonic()
        server.process.terminate()
        server.process.communicate(timeout=END_S)
        took_s = time.monotonic() - asked
        for thread in threads:
            thread.join(END_S)
        assert server.process.returncode == 0

    assert took_s < 5 + SLOW_S
    with server_process(str(tmp_path / "a.db"), tmp_path) as server:
        for sender in senders:
            sender.api = server
            assert sender.post_start().json()["acknowledged"] >= kept.get(sender.run, -1)


def send_until_it_ends(sender, kept, began):
    records = sender.declare(SERIES)
    for step in range(10_000):
        try:
            answer = sender.post([*records, *(sender.frame(step * 10 + place, values(step)) for place in range(10))])
        except urllib3.exceptions.HTTPError:
            return
        if answer.status_code != 200:
            return
        kept[sender.run], records = answer.json()["acknowledged"], []
        began.set()


def read_event(stream):
    event = {}
    for line in iter(stream.readline, b""):
        name, _, value = line.decode().strip().partition(": ")
        if name:
            event[name] = value
        elif "data" in event:
            return event
    raise AssertionError("the stream ended")


def test_a_server_beyond_loopback_needs_a_token(sqlite_url):
    with pytest.raises(SettingsError, match="INTERNIST_TOKEN"):
        create_app(Settings(database_url=sqlite_url, host="0.0.0.0"), board=False)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_known(host, loopback):
    assert is_loopback(host) is loopback


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("INTERNIST_WEBHOOK_URL", "http://a/, http://b/")
    monkeypatch.setenv("INTERNIST_DATABASE_URL", "postgres://me@db/x")
    monkeypatch.setenv("INTERNIST_TOKEN", " ")

    settings = Settings()

    assert settings.webhook_url == ("http://a/", "http://b/")
    assert settings.database_url == "postgresql://me@db/x"
    assert settings.token is None


@pytest.mark.parametrize(("given", "url"), [("a.db", "sqlite:///a.db"), ("/x/a.db", "sqlite:////x/a.db")])
def test_a_path_is_a_sqlite_database(given, url):
    assert Settings(database_url=given).database_url == url
