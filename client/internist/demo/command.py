"""`internist demo`: a real run with a real mistake, watched from the first step to the alert and back.

Starts a server, a webhook receiver and two training runs, one of which makes a mistake on purpose.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3

from internist.demo.findings import Finding, findings, table
from internist.demo.receiver import Receiver
from internist.demo.training import FACTOR, MISTAKE_FROM, MISTAKE_UNTIL, SICK_BLOCK, STEPS

_CODES = "exit code: 0 everything was seen; 1 something was not, or the server did not start; 130 interrupted"
SICK, WELL = "with-a-mistake", "without"
START_TIMEOUT_S = 60.0
SETTLE_S = 20.0
"""How long the last notification may take after training has ended."""


def command(argv: list[str]) -> int:
    """Watch a small GPT train, fall ill and recover: server, board, alert and webhook on this machine."""
    parser = argparse.ArgumentParser(prog="internist demo", description=__doc__, epilog=_CODES)
    parser.add_argument(
        "--headless", action="store_true", help="no browser; check everything, print what was seen, and exit"
    )
    parser.add_argument("--port", type=int, default=8237, help="the board's port; the next free one if it is taken")
    options = parser.parse_args(argv)
    receiver = Receiver(_print_body)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="internist-demo-") as folder,
            serving(Path(folder), options.port, receiver.url) as (address, server),
        ):
            return _run(address, Path(folder), receiver, server, headless=options.headless)
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    finally:
        receiver.close()


def _run(address: str, folder: Path, receiver: Receiver, server: "subprocess.Popen[bytes]", *, headless: bool) -> int:
    api = Api(address)
    _say(f"board:    {address}")
    _say(f"webhook:  {receiver.url} (bodies are printed here)")
    _say(f"training: a 4-layer byte GPT on CPython's manual pages, {STEPS} steps, twice; one of the two trains")
    last = MISTAKE_UNTIL - 1
    _say(f"          blocks.{SICK_BLOCK} with {FACTOR:.0f} times its rate from step {MISTAKE_FROM} to {last}\n")
    if not headless:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    runs = {name: _start_training(address, folder, name) for name in (SICK, WELL)}
    try:
        _follow(runs, api)
    finally:
        for process in runs.values():
            process.terminate()
    failed = [name for name, process in runs.items() if process.wait(30) != 0]
    if failed:
        _say(f"training ended with an error: {', '.join(failed)}; its output is above")
        return 1
    found = _look(api, receiver)
    print("\n" + table(found) + "\n", flush=True)
    missing = [finding.what for finding in found if finding.holds is False]
    _say("missing: " + "; ".join(missing) if missing else "everything that was promised was seen")
    if not headless:
        _say(f"the board stays at {address} until you press Ctrl-C")
        server.wait()
    return 1 if missing else 0


class Api:
    """Reads the server's public API."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(10.0), retries=False)

    def get(self, path: str, **query: Any) -> Any:
        """A JSON answer.

        Raises:
            RuntimeError: the answer is an error.
        """
        answer = self._pool.request("GET", f"{self._address}{path}", fields={k: str(v) for k, v in query.items()})
        if answer.status != 200:
            raise RuntimeError(f"GET {path} answered {answer.status}: {answer.data[:300]!r}")
        return json.loads(answer.data)

    def runs(self) -> dict[str, dict[str, Any]]:
        """The demo's runs by name."""
        page = self.get("/api/v1/runs", limit=50)
        return {run["name"]: run for run in (page["runs"] if isinstance(page, dict) else page)}

    def alerts(self, run: str) -> list[dict[str, Any]]:
        """All alerts of a run that ever fired."""
        return [a for a in self.get("/api/v1/alerts", run=run, limit=1000)["alerts"] if a["opened_step"] is not None]

    def losses(self, run: str) -> dict[int, float]:
        """Loss by step."""
        page = self.get(f"/api/v1/runs/{run}/points", metric="loss", subject="model", pixels=10_000)
        window = page["windows"][0]
        return {s: v for s, v in zip(window["steps"], window["values"], strict=True) if isinstance(v, float)}


def _look(api: Api, receiver: Receiver) -> list[Finding]:
    """Give the last notification time to arrive, then check."""
    runs = api.runs()
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = findings(
            alerts=api.alerts(runs[SICK]["id"]),
            twin_alerts=api.alerts(runs[WELL]["id"]),
            bodies=list(receiver.bodies),
            losses=api.losses(runs[SICK]["id"]),
            twin_losses=api.losses(runs[WELL]["id"]),
        )
        if all(finding.holds is not False for finding in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _start_training(address: str, folder: Path, name: str) -> "subprocess.Popen[str]":
    environment = dict(os.environ)
    environment.update(
        INTERNIST_SERVER=address,
        INTERNIST_PROJECT="demo",
        INTERNIST_NAME=name,
        INTERNIST_DIR=str(folder / "spool"),
        INTERNIST_MODE="online",
        OMP_NUM_THREADS="1",  # two runs beside each other on two cores
    )
    arguments = ["--mistake"] if name == SICK else []
    script = [sys.executable, "-m", "internist.demo.training", *arguments]
    return subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True)


def _follow(runs: "dict[str, subprocess.Popen[str]]", api: Api) -> None:
    """Print the sick run's progress with its verdict; read the twin's output away."""
    twin = threading.Thread(target=lambda: [None for _ in runs[WELL].stdout or ()], daemon=True)
    twin.start()
    for line in runs[SICK].stdout or ():
        words = line.split()
        if words[:1] != ["step"]:
            print(line, end="", flush=True)
            continue
        step, loss, rate = int(words[1]), words[3], words[5]
        if step % 20 == 0:
            run = api.runs().get(SICK, {})
            print(
                f"  step {step:>4}/{STEPS}   loss {loss}   {rate:>5} it/s   {run.get('sentence') or 'no verdict yet'}",
                flush=True,
            )
    runs[SICK].wait()
    twin.join()


@contextmanager
def serving(folder: Path, port: int, webhook: str) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """A real `internist serve` with its database in `folder`; gives its address."""
    port_file = folder / "port"
    script = [
        sys.executable,
        "-m",
        "internist",
        "serve",
        "--port",
        str(port),
        "--port-file",
        str(port_file),
    ]
    script += ["--database", str(folder / "internist.db")]
    environment = {k: v for k, v in os.environ.items() if k not in ("INTERNIST_TOKEN", "INTERNIST_DATABASE_URL")}
    environment["INTERNIST_WEBHOOK_URL"] = webhook
    server = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (port_file.exists() and port_file.read_text().strip()):
            if server.poll() is not None:
                raise SystemExit("the server did not start; its message is above (is `internist[server]` installed?)")
            if time.monotonic() > deadline:
                raise SystemExit(f"the server did not start within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}", server
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def _print_body(body: dict[str, Any]) -> None:
    print(
        "\n--- webhook received ---\n" + json.dumps(_shortened(body), indent=2) + "\n------------------------\n",
        flush=True,
    )


def _shortened(body: dict[str, Any]) -> dict[str, Any]:
    """The body as received, with the first two members only."""
    alerts: Sequence[Any] = body.get("alerts", [])
    rest = [f"... and {len(alerts) - 2} more"] if len(alerts) > 2 else []
    return {**body, "alerts": [*alerts[:2], *rest]}


def _say(text: str) -> None:
    print(text, flush=True)
