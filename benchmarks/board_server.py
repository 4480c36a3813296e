"""A server with its board in a process of its own, whose CPU seconds can be read."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 120.0


@contextmanager
def serving(directory: Path) -> Iterator[tuple[int, str]]:
    """A server over the database of a directory: its process and its address."""
    port_file = directory / "port"
    port_file.unlink(missing_ok=True)  # of a server that was here before
    command = [sys.executable, "-m", "internist", "serve", "--port", "0"]
    command += ["--database", str(directory / "internist.db"), "--port-file", str(port_file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INTERNIST_")}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not port_file.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start within {START_S:.0f} s")
            time.sleep(0.05)
        yield server.pid, f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        server.terminate()
        server.wait(timeout=60)


def cpu_seconds(process: int) -> float:
    """CPU seconds that a process has used so far, in its own code and the kernel's for it; Linux alone tells."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
