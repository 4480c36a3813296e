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
SCRIPTS = [recipes.SCRIPTS / f"{name}.py" for name in NAMES]
MEASURED = {"activation.rms", "gradient.rms", "update.rms", "loss"}
"""What every recipe measures; a sharded one at least what needs no whole parameter."""
OF_SHARDS = {"activation.rms", "loss"}


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory) -> Path:
    """A directory for each recipe, with what it left: output, exit status, spool."""
    directory = tmp_path_factory.mktemp("recipes")
    runner = [sys.executable, "-m", "tests.stacks.recipe_runner", directory, *SCRIPTS]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(runner, cwd=ROOT, env=environment, check=True)
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_offline_and_measures(left_behind, name):
    own = left_behind / name

    assert (own / "status").read_text() == "0", (own / "output").read_text()
    spools = {path.parent for path in own.rglob("*.spool")}
    assert len(spools) == 1
    points, _, _ = read(spools.pop())
    assert {metric for metric, _, _ in points} >= (OF_SHARDS if name == "fsdp2" else MEASURED)
    assert {0, 1, 2, 5, 10} <= set().union(*points.values())


def test_a_kernel_of_ones_own_has_its_logits_measured_in_the_recipe(left_behind):
    points, _, _ = read(next((left_behind / "attention").rglob("*.spool")).parent)

    heads = {index for metric, subject, index in points if (metric, subject) == ("attention.max_logit", "1")}
    assert heads == {0, 1, 2, 3}


def test_the_page_has_the_scripts_verbatim():
    assert recipes.PAGE.read_text() == recipes.page(), "write it anew: python -m docs.recipes"


def test_every_script_is_a_recipe_of_the_page():
    assert sorted(path.stem for path in recipes.SCRIPTS.glob("*.py")) == sorted(NAMES)
