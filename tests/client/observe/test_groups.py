"""Parameter groups of several optimizers: each has a number of its own, and its parameters carry that one."""

import pytest
import torch
from torch import nn

import internist
from internist.demo.model import ByteGPT
from tests.client.points import read

BYTES = 256


def declared(directory, model, optimizers):
    """What a short watched run declares, by (metric, subject)."""
    monitor = internist.watch(model, optimizers, mode="offline", every=1, directory=directory)
    for _ in range(2):
        model(torch.randint(BYTES, (2, 8))).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    monitor.finish()
    _, series, _ = read(monitor.directory)
    return {(metric, subject): one for (metric, subject, _), one in series.items()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ByteGPT(width=16, depth=2, heads=2, context=16)


@pytest.mark.parametrize("matrices_first", [True, False])
def test_groups_of_two_optimizers_share_no_number_and_parameters_carry_their_own(tmp_path, model, matrices_first):
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    rest = [p for p in model.parameters() if not any(p is one for one in matrices)]
    optimizers = [torch.optim.SGD(matrices, lr=0.02), torch.optim.AdamW(rest, lr=3e-4)]

    series = declared(tmp_path, model, optimizers if matrices_first else optimizers[::-1])

    groups = [one.facts.group for (metric, _), one in series.items() if metric == "learning_rate"]
    assert len(groups) == len(set(groups)) == 2
    of_matrices, of_rest = groups if matrices_first else groups[::-1]
    for name, parameter in model.named_parameters():
        is_matrix = any(parameter is one for one in matrices)
        assert series["update.rms", name].facts.group == (of_matrices if is_matrix else of_rest)


def test_an_optimizer_that_takes_over_from_one_that_is_gone_takes_its_number(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    monitor = internist.watch(model, mode="offline", every=1, directory=tmp_path)
    for rate in (0.1, 0.2):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for _ in range(2):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        del optimizer
    monitor.finish()

    points, series, _ = read(monitor.directory)

    rates = [key for key in series if key[0] == "learning_rate"]
    assert len(rates) == 1
    assert list(points[rates[0]].values()) == pytest.approx([0.1, 0.1, 0.2, 0.2])
