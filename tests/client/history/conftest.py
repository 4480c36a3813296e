"""Files of other tools, written by these tools, and a server that takes them in."""

import gzip
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.serving import served

RECORDED = Path(__file__).with_name("recorded")
WANDB_SCRIPT = """
import wandb
wandb.init(project="shop", name="tiny", mode="offline", config={"lr": 1e-3, "opt": {"name": "adamw"}})
for i in range(5):
    wandb.log({"loss": 2.0 - i / 10 if i < 4 else float("nan"), "val/acc": i / 10, "nested": {"a": i}})
wandb.log({"loss": 1.0}, step=10)
wandb.log({"long": 1.0, **{f"filler_{i:04}": 0.5 for i in range(1500)}}, step=11)  # a record longer than a block
wandb.finish()
"""
SECONDS = 120
"""For wandb's own service to start and end, on a busy machine."""


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("history")) as address:
        yield address


@pytest.fixture(scope="session")
def tensorboard_files(tmp_path_factory) -> Path:
    """Two runs by torch's writer; the second logs scalars as tensors, as newer TensorFlow does."""
    from torch.utils.tensorboard import SummaryWriter

    directory = tmp_path_factory.mktemp("tensorboard") / "shop"
    for name in ("first", "second"):
        with SummaryWriter(directory / name) as writer:
            for step in range(6):
                value = float("nan") if name == "second" and step == 5 else 2.0 - step / 10
                writer.add_scalar("Loss/train", value, step, new_style=name == "second", walltime=1.7e9 + step)
                writer.add_scalar("val/acc", step / 10, step, walltime=1.7e9 + step)
    return directory


@pytest.fixture(scope="session")
def wandb_directory(tmp_path_factory) -> Path:
    """An offline run."""
    directory = tmp_path_factory.mktemp("wandb")
    command = [sys.executable, "-W", "ignore", "-c", WANDB_SCRIPT]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "wandb"


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with gzip.open(RECORDED / "mlflow.db.gz") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return path
