"""A real shell whose `internist` is this very process: what pages say is run without an interpreter for each line."""

import contextlib
import io
import os
import shlex
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from internist.commands import cli

SECONDS = 120
"""For one block, on a busy machine."""
_STUB = """#!/bin/bash
exec 3<> /dev/tcp/127.0.0.1/{port}
{{ printf '%s\\0' "$#" "$@"; env -0; }} >&3
printf '\\0' >&3
read -r code <&3
cat <&3
exit "$code"
"""
"""Hands arguments and environment over; takes the exit code and what is printed."""


@dataclass(slots=True)
class Call:
    """One command of ours that a script called."""

    argv: list[str]
    code: int
    output: str
    errors: str


@dataclass(slots=True)
class Shell:
    """bash in a directory.

    Attributes:
        calls: of `internist`, in their order.
    """

    directory: Path
    path: Path
    calls: list[Call] = field(default_factory=list)

    def run(self, script: str, environ: Mapping[str, str]) -> str:
        """Run a script; what it printed. What anything but `internist` writes to its errors is an error."""
        done = subprocess.run(
            ["bash", "-u", "-c", script], cwd=self.directory, capture_output=True, text=True, timeout=SECONDS,
            check=False, env={**environ, "PATH": f"{self.path}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.stderr == "", done.stderr
        return done.stdout


@contextmanager
def shell(directory: Path, *, typed: str = "") -> Iterator[Shell]:
    """A shell that knows `internist`; while it is open this process stands in its directory.

    Args:
        typed: what each command reads where it asks for something.
    """
    path = directory / "bin"
    path.mkdir(parents=True)
    made = Shell(directory / "home", path)
    made.directory.mkdir()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            call = _answer(_until_empty(self.rfile), typed)
            made.calls.append(call)
            self.wfile.write(f"{call.code}\n{call.output}".encode())

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server, contextlib.chdir(made.directory):
        stub = path / "internist"
        stub.write_text(_STUB.format(port=server.server_address[1]))
        stub.chmod(0o755)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def _until_empty(stream: io.BufferedIOBase) -> list[str]:
    """Fields that end in zeros, up to an empty one behind the arguments."""
    fields: list[str] = []
    held = bytearray()
    while True:
        byte = stream.read(1)
        if byte not in (b"\0", b""):
            held += byte
            continue
        if not byte or (not held and len(fields) > int(fields[0])):
            return fields
        fields.append(held.decode())
        held.clear()


def _answer(fields: list[str], typed: str) -> Call:
    count = int(fields[0])
    argv, environ = fields[1 : count + 1], dict(field.split("=", 1) for field in fields[count + 1 :])
    output, errors = io.StringIO(), io.StringIO()
    kept, terminal = dict(os.environ), sys.stdin
    try:
        os.environ.clear()
        os.environ.update(environ)
        sys.stdin = io.StringIO(f"{typed}\n")
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = cli.main(argv)
    except Exception as error:  # the shell waits for an answer; the test that reads the code tells the reason
        code, _ = 70, errors.write(f"{shlex.join(argv)}: {type(error).__name__}: {error}")
    finally:
        os.environ.clear()
        os.environ.update(kept)
        sys.stdin = terminal
    return Call(argv, code, output.getvalue(), errors.getvalue())
