"""Systems without `fcntl` and positioned reads, such as Windows, stood for by a Python from which they are taken."""

import subprocess
import sys
from pathlib import Path

import pytest

from internist.ship.segments import folder_name
from internist.ship.spool import Spool
from internist.ship.sync import sync
from tests.client.ship.small_server import SmallServer
from tests.client.ship.test_spool import START, frame, read_all, steps

PATIENCE_S = 60.0
WITHOUT_LOCKS = """
import os, sys
sys.modules["fcntl"] = None
for name in ("pread", "pwrite", "O_CLOEXEC"):
    delattr(os, name)
"""
WITH_BYTE_LOCKS = """
import fcntl, types
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.LK_UNLCK = 2, 0
def locking(file, mode, size):
    fcntl.lockf(file, fcntl.LOCK_UN if mode == msvcrt.LK_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB, size)
msvcrt.locking = locking
import sys
sys.modules["msvcrt"] = msvcrt
"""
PRELUDE = """
from pathlib import Path
from internist.errors import SpoolError
from internist.schema.wire import Frame, Plan, RunStart, Series
from internist.ship.spool import Spool, is_being_written
START = RunStart(
    version=1, run="r", attempt="a", rank=0, world_size=1, project="p", name="n", every=10, started_at_ms=1
)
root = Path(sys.argv[1])
"""
WRITE = """
spool = Spool(root, START, budget=50_000)
spool.append(series=(Series(0, "loss", "model", ""),), plan=Plan(0, (0,)))
for step in range(300):
    assert spool.append(frame=Frame(0, step, 1, bytes(400)))
spool.close()
"""


def run_python(script: str, root: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(root)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("system", [WITHOUT_LOCKS, WITH_BYTE_LOCKS + WITHOUT_LOCKS])
def test_a_spool_is_written_continued_and_read_there_as_elsewhere(tmp_path, system):
    run_python(system + PRELUDE + WRITE, tmp_path)

    found = steps(read_all(tmp_path / "r" / "a" / "rank-00000"))
    assert found == list(range(found[0], 300))
    again = Spool(tmp_path, START)
    assert again.append(frame=frame(300))
    again.close()
    run_python(system + PRELUDE + "Spool(root, START).append(frame=Frame(0, 301, 1, bytes(400)))", tmp_path)
    assert steps(read_all(tmp_path / "r" / "a" / "rank-00000"))[-2:] == [300, 301]


def test_a_spool_is_shipped_there(tmp_path):
    script = "from internist.ship.sync import sync\nprint(sync(root, server=sys.argv[2]).stored)"
    spool = Spool(tmp_path, START)
    spool.append(frame=frame(0))
    spool.close()

    with SmallServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_LOCKS + PRELUDE + script, str(tmp_path), server.address],
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert (done.stdout.strip(), done.stderr) == ("2", "")
        assert sync(tmp_path, server=server.address).stored == 0


def test_two_writers_are_told_apart_by_byte_locks(tmp_path):
    script = """
spool = Spool(root, START)
other = subprocess.run([sys.executable, "-c", sys.argv[2], str(root)], capture_output=True, text=True)
print(other.stdout, other.stderr)
spool.close()
print(is_being_written(spool.directory))
"""
    other = """
print(is_being_written(root / "r" / "a" / "rank-00000"))
try:
    Spool(root, START)
except SpoolError as error:
    print(error)
"""
    system = WITH_BYTE_LOCKS + WITHOUT_LOCKS + PRELUDE
    done = subprocess.run(
        [sys.executable, "-c", "import subprocess" + system + script, str(tmp_path), system + other],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    held, refused, free = [line for line in done.stdout.splitlines() if line.strip()]
    assert (held, free) == ("True", "False")
    assert "has a writer already" in refused


def test_without_any_lock_a_second_writer_is_not_refused_and_the_log_says_so(tmp_path):
    script = """
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
spool = Spool(root, START)
print(is_being_written(spool.directory))
"""

    out = run_python(WITHOUT_LOCKS + PRELUDE + script, tmp_path)
    assert "cannot be locked here: a second writer of this directory would not be noticed" in out
    assert out.rstrip().endswith("False")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("run-1", "run-1"),
        ("con", "_con_"),
        ("NUL.7", "_NUL.7_"),
        ("com1", "_com1_"),
        ("r.", "_r._"),
        ("comet", "comet"),
    ],
)
def test_ids_that_windows_has_other_uses_for_get_names_of_their_own(name, folder):
    assert folder_name(name, windows=True) == folder
    assert folder_name(name, windows=False) == name
