"""`internist serve`: API and board in one process."""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from internist_migrations.upgrade import NewerDatabase, upgrade
from internist_server.alerts.address_book import AddressBook, require_usable
from internist_server.alerts.rule_files import read_rules
from internist_server.app import create_app
from internist_server.connections import BoundedProtocol
from internist_server.errors import RulesError, SettingsError
from internist_server.journal import Journal
from internist_server.logs import set_up_logging
from internist_server.settings import Settings, require_allowed, require_safe

log = logging.getLogger(__name__)

PORTS_TRIED: Final = 50
SHUTDOWN_S: Final = 2
"""Seconds in which requests that are worked on may end."""
LEAVE_S: Final = 4.5
"""Seconds after a signal in which the process ends, whatever it is at: what was acknowledged is safe."""


def serve(argv: Sequence[str]) -> int:
    """Serve the API and the board until SIGINT or SIGTERM."""
    options = _parser().parse_args(argv)
    level = "INFO" if options.verbose else "WARNING"
    set_up_logging(level)
    try:
        settings = read_settings(_given(options))
        listener = bind(settings, is_exact="port" in settings.model_fields_set)
    except (SettingsError, RulesError, OSError) as error:
        return _fail(str(error))
    set_up_logging(level, form=settings.log_format)
    port = listener.getsockname()[1]
    settings = settings.model_copy(update={"port": port})
    try:
        upgrade(settings.database_url)
    except (NewerDatabase, SQLAlchemyError, OSError, ValueError) as error:
        listener.close()
        return _fail(f"the database {_place(settings)} cannot be used: {str(error).splitlines()[0]}")
    app = create_app(settings, board=options.board)
    server = _Server(app, announce=lambda: _announce(settings, options))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again when it has shut down
    server.run(sockets=[listener])
    if server.was_told_to_end:  # an interpreter takes its time to end where a machine has much to do
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0 if server.started else 1)
    return 0 if server.started else 1


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of settings, by their names."""
    given = {"host": options.host, "port": options.port, "database_url": options.database, "token": options.token}
    return given | {"rules": options.rules, "base_path": options.base_path}


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from the environment; what the command line says wins.

    Args:
        given: what it says, by the names of settings; None where it says nothing.

    Raises:
        SettingsError: a setting is wrong, or unsafe, or nobody can be told at an address.
        RulesError: the file of rules is wrong.
    """
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        reasons = (
            "INTERNIST_{}: {}".format("_".join(map(str, one["loc"])).upper(), one["msg"]) for one in error.errors()
        )
        raise SettingsError("; ".join(reasons)) from error
    require_safe(settings)
    receivers = read_rules(settings.rules).receiver if settings.rules is not None else ()
    require_usable(AddressBook(settings.webhook_url, settings.apprise_urls, receivers).everyone)
    require_allowed(settings, (one.webhook_url for one in receivers if one.webhook_url is not None))
    return settings


def bind(settings: Settings, *, is_exact: bool = False) -> socket.socket:
    """A listening socket on the port; where nobody has asked for this one, perhaps on the next free one.

    Raises:
        OSError: the port is taken, so are those that follow, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    error: OSError | None = None
    tried = 1 if is_exact else PORTS_TRIED
    for port in range(settings.port, min(settings.port + tried, 65_536)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, port))
            listener.listen(128)
        except OSError as refused:
            listener.close()
            error = refused
            continue
        if port not in (0, settings.port):
            sys.stdout.write(f"port {settings.port} is taken; using {port}\n")
        return listener
    which = f"port {settings.port}" if is_exact else f"port {settings.port} or the {PORTS_TRIED - 1} after it"
    raise OSError(f"cannot listen on {settings.host} {which}: {error}")


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, app: Journal, *, announce: object) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                access_log=False,
                log_config=None,
                lifespan="on",
                timeout_graceful_shutdown=SHUTDOWN_S,
                server_header=False,
            )
        )
        self._announce = announce
        self.was_told_to_end = False
        self._close = app.close

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, and be gone in time whatever a request or a thread is at."""
        if not self.should_exit:
            self.was_told_to_end = True
            leave = threading.Timer(LEAVE_S, os._exit, (0,))
            leave.daemon = True
            leave.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Send away who waits, let what is worked on end, then stop."""
        self._close()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started and callable(self._announce):
            self._announce()


def _announce(settings: Settings, options: argparse.Namespace) -> None:
    sys.stdout.write(f"Internist is at {settings.address}  (data: {_place(settings)})\n")
    sys.stdout.flush()
    if options.port_file is not None:
        draft = options.port_file.with_suffix(".draft")
        draft.write_text(str(settings.port))
        draft.replace(options.port_file)
    if options.open:
        threading.Thread(target=webbrowser.open, args=(settings.address,), daemon=True).start()


def _place(settings: Settings) -> str:
    """The database as people know it, without passwords."""
    if settings.database_url.startswith("sqlite:///"):
        return settings.database_url.removeprefix("sqlite:///") or "memory"
    scheme, _, rest = settings.database_url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _fail(reason: str) -> int:
    sys.stderr.write(f"internist serve: {reason}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist serve", description="Start the server: API and board in one process."
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1; beyond loopback a token is required)")
    parser.add_argument(
        "--port",
        type=int,
        help="port to listen on (default 8237, or the next free one; one that is given is taken or an error)",
    )
    parser.add_argument("--database", help="path of a SQLite file, or postgresql://… (default internist.db)")
    parser.add_argument("--token", help="token that everyone must present (better: INTERNIST_TOKEN)")
    parser.add_argument("--rules", type=Path, help="file with rules and receivers of your own (INTERNIST_RULES)")
    parser.add_argument("--base-path", help="path under which people reach it, behind a proxy (INTERNIST_BASE_PATH)")
    parser.add_argument("--open", action="store_true", help="open the board in a browser")
    parser.add_argument("--port-file", type=Path, help="write the port to this file when the server is ready")
    parser.add_argument("--no-board", dest="board", action="store_false", help="serve the API alone")
    parser.add_argument("--verbose", action="store_true", help="log alerts and other events, not only trouble")
    return parser
