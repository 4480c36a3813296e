import gc
import logging

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LinearLR, SequentialLR, StepLR

import internist
from internist.observe.schedules import Curve, Named, Scheduler
from tests.client.points import read

GROUPS = [{"lr": 0.1}, {"lr": 0.2}]


def train(tmp_path, make, *, steps=30, lr=0.1):
    """What a run said that its rate was meant to be, and what it was, by step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule, advance = make(optimizer)
    monitor = internist.watch(
        model, optimizer, mode="offline", directory=tmp_path, every=1, max_overhead=0, schedule=schedule
    )
    for _ in range(steps):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        advance()
    monitor.finish()
    points = read(monitor.directory)[0]
    rise = points.get(("schedule.rise", "model", None), {})
    return points.get(("schedule.multiplier", "0", None), {}), points["learning_rate", "0", None], rise


@pytest.mark.parametrize(
    "make",
    [
        lambda o: StepLR(o, 10, gamma=0.1),
        lambda o: CosineAnnealingWarmRestarts(o, 10),
        lambda o: LambdaLR(o, lambda step: min(1.0, (step + 1) / 10)),
        lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=5), StepLR(o, 10)], [5]),
    ],
)
def test_a_scheduler_s_own_word_is_what_the_rates_are(tmp_path, make):
    def scheduled(optimizer):
        scheduler = make(optimizer)
        return scheduler, scheduler.step

    declared, rates, _ = train(tmp_path, scheduled)

    assert len(declared) == 30
    assert {step: value * 0.1 for step, value in declared.items()} == pytest.approx(rates, rel=1e-6)


def test_a_rate_that_something_else_changes_leaves_what_the_scheduler_says(tmp_path):
    def meddled(optimizer):
        scheduler = LambdaLR(optimizer, lambda _: 1.0)

        def advance():
            scheduler.step()
            optimizer.param_groups[0]["lr"] = 0.7

        return scheduler, advance

    declared, rates, _ = train(tmp_path, meddled)

    assert set(declared.values()) == {1.0} and rates[29] == pytest.approx(0.7)


def test_a_scheduler_of_torch_s_is_heard_where_none_is_declared(tmp_path):
    made = [
        lambda o: StepLR(o, 10, gamma=0.1),
        lambda o: CosineAnnealingWarmRestarts(o, 10),
        lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=5), StepLR(o, 10)], [5]),
    ]
    for place, make in enumerate(made):

        def unsaid(optimizer, make=make):
            scheduler = make(optimizer)
            return None, lambda: scheduler.step()

        declared, rates, _ = train(tmp_path / str(place), unsaid)

        assert set(declared) == set(range(1, 30)), "the first step is made before any scheduler has stepped"
        assert {step: value * 0.1 for step, value in declared.items()} == pytest.approx(
            {step: rate for step, rate in rates.items() if step}, rel=1e-6
        )


def test_another_optimizers_scheduler_says_nothing_and_none_is_listened_to_after_the_end(tmp_path):
    before = torch.optim.lr_scheduler.LRScheduler.step
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = StepLR(other, 10)

    def unsaid(_):
        other.step()
        return None, lambda: scheduler.step()

    assert train(tmp_path, unsaid)[0] == {}
    assert torch.optim.lr_scheduler.LRScheduler.step is before


def test_a_function_of_the_step_is_told_with_the_rise_that_it_will_still_make(tmp_path):
    declared, _, rise = train(tmp_path, lambda _: (lambda step: min(1.0, (step + 1) / 20), lambda: None))

    assert declared[9] == pytest.approx(0.5) and rise[9] == pytest.approx(2.0)
    assert rise[19] == rise[29] == 1.0


def test_a_function_that_fails_costs_its_own_word_alone_and_is_said_once(tmp_path, caplog):
    def broken(step):
        raise KeyError(step)

    with caplog.at_level(logging.WARNING, logger="internist"):
        declared, rates, _ = train(tmp_path, lambda _: (broken, lambda: None), steps=5)

    assert declared == {} and len(rates) == 5
    assert [r.getMessage() for r in caplog.records if "schedule" in r.getMessage()] == [
        "internist: the declared schedule is not used from here on: KeyError: 0 (training is not affected)"
    ]


def test_a_value_that_is_no_multiplier_is_not_used():
    for value in (float("nan"), -1.0, "much", None):
        assert Curve(lambda _, value=value: value).multipliers(0, GROUPS) is None


def test_a_scheduler_of_another_optimizer_says_nothing():
    ours, other = (torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1) for _ in range(2))
    steps = StepLR(other, 10)
    scheduler = Scheduler(steps)

    assert scheduler.multipliers(0, ours.param_groups) is None
    assert scheduler.multipliers(0, other.param_groups) == [1.0]
    del steps
    gc.collect()
    assert scheduler.multipliers(0, other.param_groups) is None  # nothing of the user's is kept alive


def test_named_schedules_are_the_ones_that_go_by_these_names():
    cosine = Named("cosine", steps=100, warmup=10, floor=0.1)
    wsd = Named("wsd", steps=100, warmup=10, decay=20)
    linear = Named("linear", steps=100)

    assert [cosine(step) for step in (0, 9, 10, 55, 100, 500)] == pytest.approx([0.1, 1.0, 1.0, 0.55, 0.1, 0.1])
    assert [wsd(step) for step in (4, 10, 80, 90, 100)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    assert [linear(step) for step in (0, 25, 100)] == pytest.approx([1.0, 0.75, 0.0])
    assert Named("constant", warmup=4)(100) == 1.0
