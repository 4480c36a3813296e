"""Two ranks of DistributedDataParallel: each ships its parts, the server merges them, and judges a step only when it
is complete."""

import os
import socket
import subprocess
import sys

import pytest
import torch

import internist
from tests.client.points import read
from tests.system.serving import served, wait_for
from tests.system.training import ddp_batch, small_model

STEPS = 12
WORLD = 2
TOLERANCE = 2e-4
"""Relative; float32 sums in another order."""


def reference(directory) -> dict:
    """The same job as one process on the whole batch."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = ddp_batch(WORLD)
    with internist.watch(model, optimizer, mode="offline", directory=directory, max_overhead=0) as monitor:
        for _ in range(STEPS):
            model(inputs, targets).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return read(monitor.directory)[0]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with served(folder) as server:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("INTERNIST_")}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.system.training", "--steps", str(STEPS)],
                env={
                    **clean,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(WORLD),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": "1",
                    "INTERNIST_SERVER": server.address,
                    "INTERNIST_DIR": str(folder / "spool"),
                },
            )
            for rank in range(WORLD)
        ]
        assert [rank.wait(120) for rank in ranks] == [0] * WORLD
        yield server, server.runs(), reference(folder / "reference")


def test_all_ranks_agree_on_one_run_without_being_told(job):
    _, runs, _ = job

    assert len(runs) == 1
    attempt = runs[0]["attempts"][0]
    assert (attempt["world_size"], attempt["ranks_seen"]) == (WORLD, WORLD)


@pytest.mark.parametrize(
    ("metric", "subject"),
    [
        ("activation.rms", "blocks.1"),
        ("activation.rms_max", "blocks.2.mlp.fc1"),
        ("activation.abs_max", "lm_head"),
        ("activation.input_rms_max", "blocks.0.attn.proj"),
        ("block.contribution", "blocks.1"),
        ("block.stream", "blocks.1"),
        ("output.log_z", "lm_head"),
        ("output.log_z_max", "lm_head"),
        ("weight.rms", "blocks.1.mlp.fc1.weight"),
        ("weight.spectral_norm", "blocks.0.attn.qkv.weight"),
        ("update.rms", "blocks.1.mlp.fc2.weight"),
        ("gradient.rms", "blocks.0.attn.proj.weight"),
        ("gradient.global_norm", "model"),
        ("learning_rate", "0"),
        ("loss", "model"),
    ],
)
def test_merged_values_are_those_of_one_process_on_the_whole_batch(job, metric, subject):
    server, runs, points = job
    found = server.values(runs[0]["id"], metric, subject)

    assert found == pytest.approx(points[metric, subject, None], rel=TOLERANCE, abs=1e-7)


def test_every_step_is_judged_once_with_all_its_ranks(job):
    server, _, _ = job

    run = wait_for(lambda: next((r for r in server.runs() if r["last_step"] == STEPS - 1), None), "the last step")
    assert run["state"] == "finished"
    assert server.get(f"/api/v1/runs/{run['id']}/verdicts")["step"] == STEPS - 1
