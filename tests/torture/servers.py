"""Servers that are forked from this process, since starting an interpreter for each of hundreds takes longer than all
that they do; and ways in which they die."""

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import urllib3
import uvicorn
from sqlalchemy import Engine, event

from internist_server import app as app_module
from internist_server.app import create_app
from internist_server.compactor import Compactor
from internist_server.settings import Settings
from internist_server.store.compaction import Sizes
from tests.server.processes import Answer

DEADLINE_S: Final = 60
ANSWER_S: Final = 40
"""Longer than a writer waits for another."""
LOOKED_S: Final = 0.005
"""Between two looks at another process, which has no event to wait on."""

HURRIED: Final = partial(Compactor, every_s=0.05, sizes=Sizes(block=8, kept=4))
"""Blocks are made while frames come in, not minutes later."""


class Api:
    """The server at an address, as a `Sender` speaks to it; nothing is tried twice."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._pool = urllib3.PoolManager(retries=False, timeout=ANSWER_S, headers={"Connection": "close"})

    def post(self, path: str, *, content: bytes, headers: dict[str, str], params: dict[str, Any] | None = None) -> Any:
        """A POST."""
        query = "&".join(f"{name}={value}" for name, value in (params or {}).items())
        return Answer(self._pool.request("POST", f"{self.address}{path}?{query}", body=content, headers=headers))

    def get(self, path: str, params: dict[str, Any] | None = None) -> Any:
        """A GET."""
        return Answer(self._pool.request("GET", self.address + path, fields=params))


def at_a_moment(seconds: float) -> Callable[[], None]:
    """Die so many seconds from now, whatever the process is at then."""

    def arm() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler runs, nothing is closed: as `kill -9` does
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return arm


def at_a_statement(number: int) -> Callable[[], None]:
    """Die before the statement, or the commit, of this number, counted from 1."""

    def arm() -> None:
        made = 0

        def count(*_: Any) -> None:
            nonlocal made
            made += 1
            if made == number:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
        event.listen(Engine, "commit", count)

    return arm


@dataclass
class Server:
    """A place at which one server after another serves a database."""

    url: str
    port: int = field(default_factory=lambda: _free_port())
    pid: int | None = None

    @property
    def api(self) -> Api:
        """Whatever serves there."""
        return Api(f"http://127.0.0.1:{self.port}")

    def start(self, death: Callable[[], None] | None = None) -> bool:
        """Start one, which may die as it is told to; whether it has come to serve."""
        assert self.pid is None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._serve(death)
        deadline = time.monotonic() + DEADLINE_S
        while self.is_alive():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(LOOKED_S)
        return False

    def is_alive(self) -> bool:
        """Whether it has not died yet."""
        if self.pid is None:
            return False
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.pid = None
            assert os.WIFSIGNALED(status), f"the server ended by itself: {os.waitstatus_to_exitcode(status)}"
        return self.pid is not None

    def kill(self) -> None:
        """End it, as it is."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None

    def _serve(self, death: Callable[[], None] | None) -> None:
        """In the child: serve until death."""
        try:
            logging.disable()  # what is done to it is no news
            app_module.Compactor = HURRIED  # type: ignore[misc, assignment]
            app = create_app(Settings(database_url=self.url, port=self.port), board=False)
            _Mortal(uvicorn.Config(app, host="127.0.0.1", port=self.port, log_config=None, lifespan="on"), death).run()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)


class _Mortal(uvicorn.Server):
    """A server that is told how it dies once it serves."""

    def __init__(self, config: uvicorn.Config, death: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._death = death

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and begin to die."""
        if self._death is not None:
            self._death()
        await super().startup(sockets)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
