"""Depth scaling that was forgotten is seen in the products of a branch's norms where a parametrisation is declared."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import internist
from internist.mup.multipliers import multiply
from internist_server.judge.verdicts import JudgedSeries
from tests.client.points import read
from tests.server.judged_runs import tell_values

WIDTH, DEPTH, STEPS = 16, 16, 4


class Block(nn.Module):
    """A pre-norm block of one branch, drawn as LeCun's: R(W) of 1.5 and of 3."""

    def __init__(self, alpha):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.alpha = alpha

    def forward(self, x):
        return x + self.alpha * self.down(functional.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self, alpha):
        super().__init__()
        self.blocks = nn.ModuleList(Block(alpha) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def judged(directory, *, alpha, hook=1.0, declared=True):
    """What a judge says of a run of blocks that multiply what they add by `alpha`, or whose last layers' hooks do."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    model = Stack(alpha)
    for block in model.blocks:
        multiply(block.down, hook)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with internist.watch(model, optimizer, mode="offline", directory=directory, max_overhead=0) as run:
        for _ in range(STEPS):
            x = torch.randn(32, WIDTH, generator=generator)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    points, declarations, _ = read(run.directory)
    keys = [key for key in points if key[0].startswith("branch.")]
    series = [
        JudgedSeries(i, k[0], declarations[k].kind, k[1], k[2], declarations[k].bound, declarations[k].facts)
        for i, k in enumerate(keys)
    ]
    values = np.array([[points[key].get(step, math.nan) for key in keys] for step in range(STEPS)], np.float32)
    apart = max(one.facts.cadence for one in series)  # a young run's samples, as if they were those of an older one
    return tell_values(series, np.arange(STEPS) * apart, values, ~np.isnan(values), mup=declared)


@pytest.mark.parametrize("how", [{"alpha": 4 / DEPTH}, {"alpha": 1.0, "hook": 4 / DEPTH}], ids=["code", "hook"])
def test_a_declared_run_whose_branches_are_scaled_is_silent(tmp_path, how):
    told = judged(tmp_path, **how)

    assert told.fired() == []
    members = told.judge.verdicts("r", "a").members
    assert {(one.state, one.basis) for one in members if one.condition == "depth"} == {("ok", "target")}


def test_a_declared_run_that_forgot_is_violated_in_every_block(tmp_path):
    told = judged(tmp_path, alpha=1.0)

    members = [one for one in told.judge.verdicts("r", "a").members if one.condition == "depth"]
    violated = {one.subject for one in members if one.state == "violated"}
    assert violated == {f"blocks.{block}.down" for block in range(DEPTH)}
    assert {one.severity for one in told.fired("depth") if one.ratio > 1} >= {"critical"}


def test_where_nothing_is_declared_the_runs_own_start_counts(tmp_path):
    told = judged(tmp_path, alpha=1.0, declared=False)

    assert told.fired() == []
    members = [one for one in told.judge.verdicts("r", "a").members if one.condition == "depth"]
    assert members and "target" not in {one.basis for one in members}
