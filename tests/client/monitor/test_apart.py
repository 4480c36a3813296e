"""Ranks that hold other weights never report under one name; replicas do."""

import os

import pytest
import torch
from torch import nn

import internist
from tests.client.optim.gang import Gang
from tests.client.points import read


def train(directory, seeds, experts):
    """Two linear layers on each rank; what the rank reports: subjects of its parameters' updates, and of coverage."""
    rank = int(os.environ["RANK"])
    os.environ.update(INTERNIST_DIR=directory, INTERNIST_RUN_ID="5" * 32, INTERNIST_ATTEMPT="6" * 32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    torch.manual_seed(seeds[rank])
    for layer in experts:
        nn.init.normal_(model[layer].weight)
        nn.init.normal_(model[layer].bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, mode="offline", every=1)
    for _ in range(2):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    coverage = {e.subject for e in monitor.coverage() if e.kind == "parameter"}
    monitor.finish()
    points, series, _ = read(monitor.directory)
    placements = {s.facts.placement for s in series.values() if s.metric == "update.rms"}
    return sorted({s for m, s, _ in points if m == "update.rms"}), sorted(coverage), sorted(placements)


@pytest.fixture(scope="module")
def two():
    made = Gang(2)
    yield made
    made.close()


MODULE = "tests.client.monitor.test_apart"
ALL = ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_replicas_report_under_one_name_and_one_of_them_their_parameters(two, tmp_path):
    first, second = two.run(MODULE, "train", str(tmp_path), [1, 1], [0, 2])

    assert first[0] == ALL
    assert second[0] == []


def test_stages_of_a_pipeline_report_their_own_parameters_under_names_of_their_own(two, tmp_path):
    first, second = two.run(MODULE, "train", str(tmp_path), [1, 2], [0, 2])

    assert first[:2] == (ALL, ALL)
    assert second[:2] == ([f"pp1.{name}" for name in ALL],) * 2
    assert second[2] == ["disjoint"]


def test_experts_of_a_rank_are_set_apart_and_what_ranks_share_is_not(two, tmp_path):
    first, second = two.run(MODULE, "train", str(tmp_path), [1, 2], [2])

    assert first[0] == ALL
    assert second[0] == ["ep1.2.bias", "ep1.2.weight"]
