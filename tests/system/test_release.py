"""Wheel and sdist are built and installed into empty environments: each extra brings what its parts import."""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import internist

ROOT = Path(__file__).parents[2]
SECONDS = 900
"""For a package index to deliver a server's dependencies, on a busy machine."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS)]

PARTS = {
    "": ("internist.schema.wire", "internist.ship.sync", "internist.record.series_book", "internist.history.importing"),
    "cli": ("internist.commands.runs", "internist.commands.report", "internist.commands.completion"),
    "server": ("internist_server.app", "internist_server.cli", "internist_dashboard.app"),
}
"""What must import with an extra and nothing else."""
ABSENT = {
    "": {"internist_server.app", "internist.commands.runs", "internist.monitor.watching"},
    "cli": {"internist_server.app", "internist.monitor.watching"},
    "server": {"internist.monitor.watching"},
}
"""What must not: whatever it needs came by another way than its extra."""
IMPORT = """
import importlib, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
        found[name] = None
    except ModuleNotFoundError as error:
        found[name] = error.name
print(json.dumps(found))
"""


def run(*command, cwd=ROOT):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment_with(directory, *what):
    """The interpreter of an environment that holds this and what it asks for: no pip, and nothing compiled in vain."""
    venv.create(directory)
    python = directory / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", *what, cwd=directory)
    return python


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    directory = tmp_path_factory.mktemp("dist")
    python = environment_with(directory / "tools", "hatchling")
    run(python, "-m", "hatchling", "build", "-t", "sdist", "-d", directory)
    (sdist,) = directory.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(directory / "source", filter="data")
    (source,) = (directory / "source").iterdir()
    run(python, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=source)
    (wheel,) = directory.glob("*.whl")
    return sdist, wheel


def test_the_sdist_and_the_wheel_hold_what_users_need_and_nothing_else(built):
    sdist, wheel = built
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "CHANGELOG.md", "client/internist/py.typed"} <= names
    assert not [name for name in names if name.endswith((".db", ".pyc"))]

    with zipfile.ZipFile(wheel) as packed:
        inside = packed.namelist()
        (metadata,) = [name for name in inside if name.endswith(".dist-info/METADATA")]
        text = packed.read(metadata).decode()
    assert {name.split("/")[0] for name in inside} == {
        "internist", "internist_server", "internist_dashboard", "internist_migrations",
        f"internist-{internist.__version__}.dist-info",
    }  # fmt: skip
    assert "internist/py.typed" in inside and "internist/optim/passes.c" in inside
    assert "Requires-Python: >=3.11" in text and "License-Expression: Apache-2.0" in text
    assert {line for line in text.splitlines() if line.startswith("Requires-Dist") and "extra" not in line} == {
        "Requires-Dist: msgspec>=0.19", "Requires-Dist: urllib3>=2.2",
    }  # fmt: skip


@pytest.mark.parametrize("extra", PARTS, ids=lambda extra: extra or "none")
def test_an_extra_brings_what_its_parts_import_and_no_more(built, tmp_path, extra):
    _, wheel = built
    asked = f"internist[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    python = environment_with(tmp_path / "empty", "-c", ROOT / "constraints.txt", asked)

    names = [*PARTS[extra], *ABSENT[extra]]
    found = json.loads(run(python, "-c", IMPORT, json.dumps(names), cwd=tmp_path))
    assert {name: missing for name, missing in found.items() if missing is None} == dict.fromkeys(PARTS[extra])
    command = tmp_path / "empty" / "bin" / "internist"
    assert run(command, "--version", cwd=tmp_path) == f"internist {internist.__version__}\n"
    assert re.search(r"needs pip install 'internist\[(server,)?torch\]'", run(command, "--help", cwd=tmp_path))
    assert run(command, "sync", "--help", cwd=tmp_path)


def test_types_are_there_for_users_of_the_api(tmp_path):
    (tmp_path / "user.py").write_text(
        "import torch\n"
        "import internist\n"
        "model = torch.nn.Linear(2, 2)\n"
        "monitor: internist.Monitor = internist.watch(model, every=10)\n"
        "internist.log(loss=1.0)\n"
        "with internist.read() as server:\n"
        "    steps: list[int] = [step for curve in server.run('x').curves() for step in curve.steps]\n"
        "internist.watch(model, evry=10)  # type: ignore[call-arg]\n"
    )
    run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "user.py", cwd=tmp_path)
