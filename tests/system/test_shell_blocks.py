"""Every shell block of README and docs runs as it is written, or says above it why it does not.

All are run by one bash each, and by one process that has the commands, a server with runs, and what other tools kept.
"""

import contextlib
import json
import re
import shlex
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from internist_server.backup_command import write_backup
from tests.client.history.conftest import RECORDED, tensorboard_files, wandb_directory  # noqa: F401  # fixtures
from tests.dashboard.serving import served
from tests.server.families import FIRST_STEPS, WIDTHS, send_run
from tests.system.shell import shell

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/*.md")})
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.M | re.S
)
LANGUAGES = {
    "python": "run by test_code_blocks.py",
    "sh": "run here",
    "console": "run here; what is printed must be what stands there",
    "text": "is no code: a tree, a table, a formula",
}
TOKEN = "s3cret"
SICK, SICK_FROM = "4f2a", 6


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    why_not: str | None
    code: str


BLOCKS = [
    Block(
        page.name, text[: found.start("code")].count("\n") + 1, found["language"], found["why"],
        textwrap.dedent(found["code"]),
    )
    for page in PAGES
    for text in [page.read_text(encoding="utf-8")]
    for found in FENCE.finditer(text)
]  # fmt: skip
SHELL = [block for block in BLOCKS if block.language in ("sh", "console") and block.why_not is None]


@dataclass
class World:
    """What the pages take for granted: a server with runs, and words that stand for others here."""

    environ: dict[str, str]
    words: dict[str, str]
    files: dict[str, Path]

    def translate(self, code: str) -> str:
        """A block's code with the words of this world."""
        for theirs, ours in self.words.items():
            code = re.sub(rf"(?<![\w-]){re.escape(theirs)}(?![\w-])", ours, code)
        return code


@pytest.fixture(scope="module")
def world(tmp_path_factory, tensorboard_files, wandb_directory):  # noqa: F811
    directory = tmp_path_factory.mktemp("shell")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        hook() as receiver,
        served(directory, token=TOKEN) as address,
        httpx.Client(base_url=address, headers=headers, timeout=60) as api,
    ):
        for width in WIDTHS:
            send_run(api, f"d{width}-0", width=width, project="sizes")
        send_run(api, "proxy-64", width=64, project="proxies")
        send_run(api, "big-run", width=256, depth=4, project="proxies")
        send_run(api, SICK, width=128, project="sick", spoil=lambda _, step: step >= SICK_FROM)
        over = send_run(api, "over", width=128, project="over")
        over.send([over.finish(FIRST_STEPS[-1])])
        (alert, *_) = api.get("/api/v1/alerts", params={"run": SICK}).json()["alerts"]
        (first, *_) = api.get("/api/v1/scaling", params={"project": "sizes"}).json()["families"]
        revoked = api.post("/api/v1/tokens", json={"name": "old", "scopes": ["read"]}).json()
        (backups := directory / "backups").mkdir()
        (prometheus := directory / "prometheus").mkdir()
        (archive := directory / "archive").mkdir()
        database = f"sqlite:///{directory / 'board.db'}"
        write_backup(database, kept := backups / "internist-2026-01-31.db")
        lines = [{"tag": "train/nll", "step": step, "value": 2.0 - step / 40} for step in range(20)]
        (log := directory / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        yield World(
            environ={
                "INTERNIST_SERVER": address, "INTERNIST_TOKEN": TOKEN, "INTERNIST_WEBHOOK_URL": receiver,
                "INTERNIST_DATABASE_URL": database, "HOME": str(directory), "USER": "ada",
                "LANG": "C.UTF-8",
            },
            words={
                "RUN": over.run, "17": str(alert["id"]), "3c1f5a0b9d27": first["id"], "/backups": str(backups),
                "/etc/prometheus": str(prometheus), "/archive": str(archive),
                "http://gpu-head:8237": address, "…": TOKEN, "revoke 3": f"revoke {revoked['token']['id']}",
            },
            files={
                "runs": tensorboard_files, "wandb": wandb_directory, "mlruns": RECORDED / "mlruns",
                "log.jsonl": log, "internist.db": kept,
            },
        )  # fmt: skip


@contextlib.contextmanager
def hook() -> Iterator[str]:
    """A receiver of notifications that takes everything; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard", "ignore::DeprecationWarning:google")
@pytest.mark.parametrize("block", SHELL, ids=[f"{block.page}:{block.line}" for block in SHELL])
def test_a_block_runs_as_it_is_written(world, tmp_path, block):
    with shell(tmp_path, typed=TOKEN) as sh:
        for name, path in world.files.items():
            (sh.directory / name).symlink_to(path)

        if block.language == "sh":
            sh.run(world.translate(block.code), world.environ)
        else:
            for command, expected in typed(block.code):
                assert re.fullmatch(pattern(expected), sh.run(command, world.environ))

        failed = {shlex.join(call.argv): call.errors for call in sh.calls if call.code not in codes_of(call.argv)}
        assert sh.calls and failed == {}


def typed(code: str) -> list[tuple[str, str]]:
    """What is typed in a console, behind `$ `, and what it prints."""
    _, *parts = re.split(r"^\$ ", code, flags=re.M)
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def pattern(expected: str) -> str:
    """What is printed as a regular expression: a line of dots stands for any lines, ends of lines for any blanks."""
    lines = [r"(?:.*\n)*" if line == "..." else rf"{re.escape(line)} *\n" for line in expected.splitlines()]
    return "".join(lines)


def codes_of(argv: list[str]) -> set[int]:
    """Exit codes of a command that did its work: those of two tell a verdict."""
    return {0, 1, 3} if argv[0] == "scaling" or "--exit-code" in argv else {0}


def test_every_block_says_what_it_is_written_in():
    assert [(block.page, block.line, block.language) for block in BLOCKS if block.language not in LANGUAGES] == []


def test_what_is_not_run_is_little_and_says_why():
    skipped = [block for block in BLOCKS if block.why_not is not None and block.language != "python"]

    assert len(SHELL) >= 10
    assert {(block.page, block.language) for block in skipped} == {
        ("README.md", "sh"), ("operate.md", "sh"),
    }  # fmt: skip
