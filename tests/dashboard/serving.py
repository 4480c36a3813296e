"""The real server with its board, on a free port, in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from internist_migrations.upgrade import upgrade
from internist_server.app import create_app
from internist_server.settings import Settings

START_S = 30.0


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = threading.Event()

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        self.is_listening.set()


@contextmanager
def served(directory: Path, *, token: str | None = None, port: int = 0, base_path: str = "") -> Iterator[str]:
    """A server over the SQLite database of a directory; its address."""
    url = f"sqlite:///{directory / 'board.db'}"
    upgrade(url)
    with listening(create_app(Settings(database_url=url, token=token, base_path=base_path)), port=port) as address:
        yield address


@contextmanager
def listening(app: Any, *, port: int = 0) -> Iterator[str]:
    """An ASGI app on a port, in a thread; its address."""
    server = _Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.is_listening.wait(START_S), "the server did not start"
    listens = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{listens}"
    finally:
        server.should_exit = True
        thread.join(timeout=15)
