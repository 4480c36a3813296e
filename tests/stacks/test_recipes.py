"""The recipes run as they are written, measure something, and are those of the page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs import recipes
from tests.client.points import read
from tests.stacks.merging import merged, parts_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # all scripts run for the first test: minutes on a busy machine
NAMES = [name for _, name in recipes.SECTIONS]
SCRIPTS = [recipes.SCRIPTS / f"{name}.py" for name in NAMES]
MEASURED = {"activation.rms", "gradient.rms", "update.rms", "loss"}
"""What every recipe measures."""
OF_RANKS = ("fsdp2", "tensor_parallel", "pipeline")
"""Recipes of many ranks; without torchrun each is a group of one."""


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
    assert {metric for metric, _, _ in points} >= MEASURED
    assert {0, 1, 2, 5, 10} <= set().union(*points.values())


@pytest.mark.parametrize("name", OF_RANKS)
def test_torchrun_starts_a_recipe_on_two_ranks_that_make_one_run(tmp_path, name):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "INTERNIST_MODE": "offline", "INTERNIST_DIR": str(tmp_path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, recipes.SCRIPTS / f"{name}.py"], cwd=ROOT, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    spools = sorted({path.parent for path in tmp_path.rglob("*.spool")})
    assert [spool.name for spool in spools] == ["rank-00000", "rank-00001"]
    assert len({spool.parent for spool in spools}) == 1
    found = merged([parts_of(spool) for spool in spools])
    assert {metric for metric, *_ in found} >= MEASURED
    weights = {subject for metric, subject, *_ in found if metric == "weight.rms"}
    assert weights == EXPECTED[name]


LAYERS = {f"{layer}.weight" for layer in ("1.0", "1.2", "2.0", "2.2")}
EXPECTED = {
    "fsdp2": {"0.weight", *LAYERS, *(name.replace("weight", "bias") for name in LAYERS), "3.weight", "3.bias"},
    "tensor_parallel": {"0.weight", *(f"{layer}.{part}" for layer in (1, 3, 4) for part in ("weight", "bias"))},
    "pipeline": {
        "embed.weight", "head.weight", "head.bias",
        *(f"blocks.{block}.{layer}.{part}" for block in range(4) for layer in (0, 1) for part in ("weight", "bias")),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "block", "attention"),
    [
        ("trainer", "model.layers.1", "model.layers.1.self_attn"),
        ("vision", "blocks.1", "blocks.1"),
        ("experts", "1", None),
    ],
)
def test_blocks_and_attention_are_recognised_in_recipes_of_libraries(left_behind, name, block, attention):
    points, _, _ = read(next((left_behind / name).rglob("*.spool")).parent)

    assert ("block.contribution", block, None) in points
    logits = {subject for metric, subject, _ in points if metric == "attention.max_logit"}
    assert attention in logits if attention else not logits


def test_a_kernel_of_ones_own_has_its_logits_measured_in_the_recipe(left_behind):
    points, _, _ = read(next((left_behind / "attention").rglob("*.spool")).parent)

    heads = {index for metric, subject, index in points if (metric, subject) == ("attention.max_logit", "1")}
    assert heads == {0, 1, 2, 3}


def test_the_page_has_the_scripts_verbatim():
    assert recipes.PAGE.read_text() == recipes.page(), "write it anew: python -m docs.recipes"


def test_every_script_is_a_recipe_of_the_page():
    assert sorted(path.stem for path in recipes.SCRIPTS.glob("*.py")) == sorted(NAMES)
