"""What the host knows anyway: the norm before clipping, an optimizer's steps, its eps, and what it was not given."""

import pytest
import torch
from torch import nn

import internist
from tests.client.points import read

ROUNDING = 1e-6
"""A quotient of two float32 numbers."""
STEPS = 40
EPS = 1e-6


def model():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))


def trained(tmp_path, net, make, *, steps=STEPS, clip=None, after=None):
    """Points and series of a watched run."""
    optimizer = make(net)
    monitor = internist.watch(net, optimizer, mode="offline", directory=tmp_path, max_overhead=0)
    for step in range(steps):
        net(torch.randn(3, 4)).square().sum().backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        if after is not None:
            after(step, optimizer)
    monitor.finish()
    return read(monitor.directory)[:2]


def adamw(net):
    return torch.optim.AdamW(net.parameters(), lr=1e-3, eps=EPS)


def test_a_norm_that_lies_on_the_host_comes_at_every_step_and_says_so(tmp_path):
    points, series = trained(tmp_path, model(), adamw, clip=0.1)

    norm = ("gradient.norm_before_clip", "model", None)
    assert sorted(points[norm]) == list(range(STEPS))
    assert series[norm].facts.cadence == 1
    assert set(points["gradient.global_norm", "model", None]) < set(points[norm])


def test_the_steps_that_a_state_has_seen_are_those_that_were_made_until_it_is_cleared(tmp_path):
    def clear(step, optimizer):
        if step == 5:
            optimizer.state.clear()

    points, series = trained(tmp_path, model(), adamw, after=clear)

    seen = points["optimizer.steps", "0", None]
    assert {step: seen[step] for step in (0, 1, 5, 6, 10)} == {0: 1, 1: 2, 5: 6, 6: 1, 10: 5}
    assert series["optimizer.steps", "0", None].facts.group == series["learning_rate", "0", None].facts.group


def test_an_optimizer_that_counts_nothing_tells_nothing_of_it(tmp_path):
    points, _ = trained(tmp_path, model(), lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), steps=3)

    assert not [metric for metric, *_ in points if metric in ("optimizer.steps", "gradient.over_eps")]


def test_a_gradient_over_eps_is_its_rms_over_the_eps_of_its_group(tmp_path):
    def make(net):
        first, *others = net
        groups = [
            {"params": first.parameters(), "eps": 10 * EPS},
            {"params": [p for o in others for p in o.parameters()]},
        ]
        return torch.optim.Adam(groups, lr=1e-3, eps=EPS)

    points, _ = trained(tmp_path, model(), make)

    for name, eps in (("0.weight", 10 * EPS), ("3.weight", EPS), ("3.bias", EPS)):
        of, over = points["gradient.rms", name, None], points["gradient.over_eps", name, None]
        assert over == pytest.approx({step: of[step] / eps for step in over}, rel=ROUNDING) and len(over) > 16


def test_what_was_forgotten_is_told_until_it_is_given_to_an_optimizer(tmp_path):
    net = model()

    def give(step, optimizer):
        if step == 20:
            optimizer.add_param_group({"params": list(net[2].parameters())})

    points, _ = trained(
        tmp_path,
        net,
        lambda net: torch.optim.AdamW([p for n, p in net.named_parameters() if not n.startswith("2.")]),
        after=give,
    )

    told = {name: own for (metric, name, _), own in points.items() if metric == "optimizer.left_out"}
    assert set(told) == {"2.weight", "2.bias"}
    for own in told.values():
        assert all(value == (step <= 20) for step, value in own.items()) and max(own) > 20 and min(own) == 0


@pytest.mark.parametrize("kind", ["all are", "most are not, as adapters have it", "the rest wants no gradient"])
def test_nothing_is_told_where_nothing_was_forgotten(tmp_path, kind):
    net = model()
    own = list(net.parameters()) if kind == "all are" else list(net[0].parameters())
    if kind.startswith("the rest"):
        for parameter in [p for layer in net[1:] for p in layer.parameters()]:
            parameter.requires_grad_(False)

    points, _ = trained(tmp_path, net, lambda _: torch.optim.AdamW(own), steps=3)

    assert not [metric for metric, *_ in points if metric == "optimizer.left_out"]
