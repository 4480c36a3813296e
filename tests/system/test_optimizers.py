"""Muon++ from a training loop to the server: what it tells is stored, its table is read, its mistakes are alarmed."""

import os
import runpy
from pathlib import Path

import pytest
import torch

import internist
from internist.demo.model import batch, text
from internist.optim import MuonClip, MuonPlusPlus, split_parameters
from tests.client.points import read
from tests.system.serving import served, wait_for
from tests.system.training import small_model

STEPS = 24
TOLD = (
    "gap",
    "learned_norm",
    "learned_rms",
    "audit",
    "removed_share",
    "net_update",
    "firings",
    "effective_lr",
    "orthogonality",
)
EXAMPLE = Path(__file__).parents[2] / "examples/muon_plus_plus.py"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [n for n in os.environ if n.startswith("INTERNIST_")]:
        monkeypatch.delenv(name)


def train(model, *optimizers, steps=STEPS, **options):
    monitor = internist.watch(model, list(optimizers), max_overhead=0, **options)
    generator, corpus = torch.Generator().manual_seed(1), text()
    for _ in range(steps):
        inputs, targets = batch(corpus, 8, 16, generator)
        model(inputs, targets).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return monitor


def test_what_muon_plus_plus_tells_is_stored_as_told_and_its_table_is_read(tmp_path):
    model = small_model()
    optimizer = MuonPlusPlus(split_parameters(model, lr=0.02, adamw_lr=1e-3), policy="cap")
    with served(tmp_path) as server:
        monitor = train(model, optimizer, server=server.address, directory=tmp_path / "spool")
        monitor.finish(timeout=30)
        wait_for(lambda: server.runs()[0]["state"] == "finished", "the end of the run")
        spooled, weight = read(monitor.directory)[0], "blocks.1.mlp.fc1.weight"
        for name in (*TOLD, "gap_use", "misrouted"):
            metric = f"optimizer.{name}"
            stored = server.values(monitor.run, metric, weight)
            assert stored and stored == pytest.approx(spooled[metric, weight, None], rel=1e-6), metric

        routes = server.get(f"/api/v1/runs/{monitor.run}/routing")["routes"]
        by_name = {route["parameter"]: route for route in routes}
        assert set(by_name) == dict(model.named_parameters()).keys()
        assert (by_name[weight]["algorithm"], by_name[weight]["policy"]) == ("muon", "cap")
        assert by_name["lm_head.weight"]["role"] == "head"
        told = server.values(monitor.run, "optimizer.misrouted", weight)
        assert set(told.values()) == {0.0}
        members = server.get(f"/api/v1/runs/{monitor.run}/verdicts", limit=10_000)["members"]
        assert {"invariance", "gap", "frozen_share", "learned_spectrum", "routing"} <= {
            member["condition"] for member in members
        }


def test_a_hidden_matrix_left_on_another_optimizer_is_alarmed_by_name(tmp_path):
    model = small_model()
    astray = model.blocks[1].mlp.fc1.weight
    groups = split_parameters(model, lr=0.02, adamw_lr=1e-3)
    for group in groups:
        group["params"] = [(name, tensor) for name, tensor in group["params"] if tensor is not astray]
    with served(tmp_path) as server:
        monitor = train(
            model, MuonPlusPlus(groups), torch.optim.AdamW([astray]), server=server.address, directory=tmp_path / "s"
        )
        monitor.finish(timeout=30)
        wait_for(lambda: server.runs()[0]["state"] == "finished", "the end of the run")
        alerts = server.get("/api/v1/alerts", run=monitor.run, limit=1000)["alerts"]
        (alert,) = [one for one in alerts if one["condition"] == "routing"]

        assert (alert["subject"], alert["severity"], alert["opened_step"]) == ("blocks.1.mlp.fc1.weight", "warning", 0)
        assert "split_parameters" in alert["advice"]


def test_a_clip_and_the_logits_that_asked_for_it_are_stored_side_by_side(tmp_path):
    model = small_model()
    attention = model.blocks[1].attn
    with torch.no_grad():
        attention.qkv.weight[: 2 * attention.qkv.in_features] *= 60.0  # queries and keys: logits 3,600 times as large
    optimizer = MuonClip(model, lr=0.001, clip_tau=30.0)
    with served(tmp_path) as server:
        monitor = train(model, optimizer, every=2, server=server.address, directory=tmp_path / "spool")
        monitor.finish(timeout=30)
        wait_for(lambda: server.runs()[0]["state"] == "finished", "the end of the run")
        weight = "blocks.1.attn.qkv.weight"
        gamma = server.values(monitor.run, "optimizer.clip_gamma", weight)
        heads = server.values(monitor.run, "optimizer.clip_heads", weight)
        logits = [server.values(monitor.run, "attention.max_logit", "blocks.1.attn", index=head) for head in range(2)]
        calm = server.values(monitor.run, "optimizer.clip_gamma", "blocks.0.attn.qkv.weight")

    largest = {step: max(head[step] for head in logits) for step in logits[0]}
    assert largest[0] > 30.0
    assert gamma[0] == pytest.approx(30.0 / largest[0], rel=1e-3), "by as much as the step's own logits were over"
    assert heads[0] >= 1.0
    assert largest[20] < 1.2 * 30.0 < largest[0]
    assert set(calm.values()) == {1.0}


def test_the_example_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path))
    example = runpy.run_path(str(EXAMPLE))

    loss = example["train"](20)

    assert loss < 5.0, "ln 256 is 5.55: it has learned"
    assert "blocks.0.attn.qkv.weight" in capsys.readouterr().out
    internist.unwatch()
