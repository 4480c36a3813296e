"""The recipes run as they are written, measure something, and are those of the page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs import recipes
from tests.client.points import read

ROOT = Path(__file__).parents[2]
NAMES = [name for _, name in recipes.SECTIONS]
MEASURED = {"activation.rms", "gradient.rms", "update.rms", "loss"}
"""What every recipe measures; a sharded one only what needs no whole parameter."""
OF_SHARDS = {"activation.rms", "loss"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_offline_and_measures(tmp_path, name):
    environment = {
        **os.environ,
        "INTERNIST_MODE": "offline",
        "INTERNIST_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [sys.executable, recipes.SCRIPTS / f"{name}.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert ran.returncode == 0, ran.stderr
    spools = {path.parent for path in tmp_path.rglob("*.spool")}
    assert len(spools) == 1
    points, _, _ = read(spools.pop())
    assert {metric for metric, _, _ in points} >= (OF_SHARDS if name == "fsdp2" else MEASURED)
    steps = set().union(*(values for values in points.values()))
    assert {0, 1, 2, 5, 10} <= steps


def test_a_kernel_of_ones_own_has_its_logits_measured_in_the_recipe(tmp_path):
    environment = {**os.environ, "INTERNIST_MODE": "offline", "INTERNIST_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, recipes.SCRIPTS / "attention.py"], cwd=tmp_path, env=environment, check=True)

    points, _, _ = read(next(tmp_path.rglob("*.spool")).parent)
    assert {index for metric, subject, index in points if (metric, subject) == ("attention.max_logit", "1")} == {
        0,
        1,
        2,
        3,
    }


def test_the_page_has_the_scripts_verbatim():
    assert recipes.PAGE.read_text() == recipes.page(), "write it anew: python -m docs.recipes"


def test_every_script_is_a_recipe_of_the_page():
    assert sorted(path.stem for path in recipes.SCRIPTS.glob("*.py")) == sorted(NAMES)
