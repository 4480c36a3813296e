"""What is killed in a round, and what must be true after many of them."""

import os
import random
import resource
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from internist_migrations.upgrade import upgrade
from internist_server.store.database import sqlite_path
from tests.torture.clients import Training
from tests.torture.ranks import Down, Run, require_sound
from tests.torture.servers import LOOKED_S, Server, at_a_moment, at_a_statement

LIFE_S: Final = 0.8
"""A server lives for at most so long, from when it is told that it will die."""
STATEMENTS: Final = 150
"""It dies before one of so many statements: a first request makes some forty, and the compactor's are among them."""
STRIDE: Final = 37
"""From one to the next, so that few rounds are of early and of late ones."""
SOUND_EVERY: Final = 25
"""Rounds after which the store's invariants are checked; and in the end."""
PATIENCE_S: Final = 60
"""Until a server serves again whose database was away."""


@dataclass(frozen=True)
class Place:
    """Where a database lies, and how it is killed apart from its server, where it can be."""

    url: str
    kill: Callable[[], None] | None = None
    """Kills all of its processes."""
    restart: Callable[[], None] | None = None

    @property
    def file(self) -> Path:
        """SQLite's."""
        path = sqlite_path(self.url)
        assert path is not None
        return path


def servers_killed_at_any_moment(place: Place, rounds: int, numbers: random.Random) -> str:
    """One server after the other dies while two ranks of one run and the only one of another send."""
    return _servers_killed(place, rounds, lambda _: at_a_moment(numbers.uniform(0.001, LIFE_S)), numbers)


def servers_killed_at_every_statement(place: Place, rounds: int, numbers: random.Random) -> str:
    """Each dies at another statement, until none is left."""
    return _servers_killed(place, rounds, lambda number: at_a_statement(1 + number * STRIDE % STATEMENTS), numbers)


def _servers_killed(
    place: Place, rounds: int, death: Callable[[int], Callable[[], None]], numbers: random.Random
) -> str:
    server, runs = Server(place.url), [Run("two", 2), Run("one", 1)]
    served = 0
    try:
        for number in range(rounds):
            served += server.start(death(number))
            with suppress(Down):
                for run in runs:
                    run.introduce(server.api)
                while True:
                    for run in runs:
                        run.send([server.api], numbers.randrange(1, 6))
            _wait_for_death(server)
            if number % SOUND_EVERY == SOUND_EVERY - 1:
                require_sound(place.url)
        _require_whole(server, runs, place)
    finally:
        server.kill()
    return f"{rounds} servers killed, {served} of them while they served; {_sent(runs)}"


def two_servers_of_which_one_is_killed(place: Place, rounds: int, numbers: random.Random) -> str:
    """Two servers on one database, each of which takes one rank; one of them dies, and its rank goes to the other."""
    servers, runs = [Server(place.url), Server(place.url)], [Run("shared", 2)]
    try:
        servers[0].start()
        for number in range(rounds):
            dies, lives = servers[(number + 1) % 2], servers[number % 2]
            dies.kill()
            dies.start(at_a_moment(numbers.uniform(0.05, LIFE_S)))
            with suppress(Down):
                runs[0].introduce(lives.api)
                while True:
                    runs[0].send([lives.api, dies.api], numbers.randrange(1, 6))
            _wait_for_death(dies)
            runs[0].catch_up(lives.api)
            dies.start()
        _require_whole(servers[1], runs, place)
    finally:
        for server in servers:
            server.kill()
    return f"{rounds} times one of two servers on one database killed; {_sent(runs)}"


def databases_killed(place: Place, rounds: int, numbers: random.Random) -> str:
    """The database dies under a server that stays."""
    assert place.kill is not None and place.restart is not None
    server, runs = Server(place.url), [Run("two", 2)]
    try:
        server.start()
        for _ in range(rounds):
            _once_it_serves(lambda: runs[0].introduce(server.api))
            killer = os.fork()
            if killer == 0:
                time.sleep(numbers.uniform(0.001, LIFE_S))
                place.kill()
                os._exit(0)
            with suppress(Down):
                while True:
                    runs[0].send([server.api], numbers.randrange(1, 6))
            os.waitpid(killer, 0)
            place.restart()
        _once_it_serves(lambda: runs[0].introduce(server.api))
        _require_whole(server, runs, place)
    finally:
        server.kill()
    return f"{rounds} databases killed under a server; {_sent(runs)}"


def disks_full_and_files_locked_or_moved(place: Place, rounds: int, numbers: random.Random) -> str:
    """Under a server that stays: its files may grow no further, another process holds the lock for writing, or the
    database is moved away and back."""
    server, runs = Server(place.url), [Run("two", 2)]
    faults: list[Callable[[], Any]] = [
        lambda: _full(server, numbers.randrange(0, 40_000)), lambda: _locked(place.file, numbers.uniform(0.01, LIFE_S)),
        lambda: _moved(place.file),
    ]  # fmt: skip
    refused = 0
    try:
        server.start()
        runs[0].introduce(server.api)
        for number in range(rounds):
            with faults[number % len(faults)]():
                try:
                    for _ in range(8):
                        runs[0].send([server.api], numbers.randrange(1, 6))
                except Down:
                    refused += 1
            _once_it_serves(lambda: runs[0].introduce(server.api))
            runs[0].send([server.api], 1)
        _require_whole(server, runs, place)
        server.kill()  # and what is there once it is gone
        server.start()
        _require_whole(server, runs, place)
    finally:
        server.kill()
    return f"{rounds} disks full, files locked or moved, {refused} of them refused; {_sent(runs)}"


def trainings_killed(place: Place, rounds: int, numbers: random.Random) -> str:
    """Training dies; what its client had kept is shipped by `internist sync`."""
    server = Server(place.url)
    steps = 0
    try:
        server.start()
        with tempfile.TemporaryDirectory(prefix="internist-torture-") as directory:
            for number in range(rounds):
                training = Training(f"killed-{number}", server.api, Path(directory))
                training.live_for(numbers.uniform(0.05, LIFE_S))
                steps += training.require_shipped()
        require_sound(place.url)
    finally:
        server.kill()
    return f"{rounds} trainings killed, of which {steps:,} steps were kept"


ROUNDS: Final = (
    servers_killed_at_any_moment,
    servers_killed_at_every_statement,
    two_servers_of_which_one_is_killed,
    databases_killed,
    disks_full_and_files_locked_or_moved,
    trainings_killed,
)
"""Everything that is done to a database that lies at a place."""


def fits(kind: Callable[..., str], place: Place) -> bool:
    """Whether a kind of rounds can be made there: SQLite has no process of its own, PostgreSQL's files are not ours."""
    if kind is databases_killed:
        return place.kill is not None
    return kind is not disks_full_and_files_locked_or_moved or sqlite_path(place.url) is not None


@contextmanager
def sqlite_place() -> Iterator[Place]:
    """A SQLite database of this version."""
    with tempfile.TemporaryDirectory(prefix="internist-torture-") as directory:
        url = f"sqlite:///{Path(directory) / 'internist.db'}"
        upgrade(url)
        yield Place(url)


def _require_whole(server: Server, runs: list[Run], place: Place) -> None:
    if server.pid is None:
        server.start()
    for run in runs:
        run.require_whole(server.api)
    require_sound(place.url)


def _sent(runs: list[Run]) -> str:
    return f"{sum(len(rank.records) for run in runs for rank in run.ranks):,} records, each there once"


def _wait_for_death(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while server.is_alive():
        assert time.monotonic() < deadline, "the server outlived its death"
        time.sleep(LOOKED_S)


def _once_it_serves(attempt: Callable[[], None]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return attempt()
        except Down:
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(LOOKED_S)


@contextmanager
def _full(server: Server, room: int) -> Iterator[None]:
    """No file of the server grows beyond what its largest has now, and some bytes."""
    assert server.pid is not None
    path = sqlite_path(server.url)
    assert path is not None
    largest = max(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))
    infinite = resource.RLIM_INFINITY
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (largest + room, infinite))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (infinite, infinite))


@contextmanager
def _locked(file: Path, seconds: float) -> Iterator[None]:
    """Another process writes for so long."""
    other = os.fork()
    if other == 0:
        connection = sqlite3.connect(file, isolation_level=None, timeout=PATIENCE_S)
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        yield
    finally:
        os.waitpid(other, 0)


@contextmanager
def _moved(file: Path) -> Iterator[None]:
    """The database is elsewhere."""
    elsewhere = file.rename(file.with_suffix(".elsewhere"))
    try:
        yield
    finally:
        elsewhere.rename(file)


assert threading.active_count() == 1, "a process with threads must not be forked"
