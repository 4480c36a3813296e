"""Whatever fails inside the monitor, and in whatever order its callbacks come, the training loop does not notice."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import internist
from internist.demo.model import ByteGPT
from internist.observe import attention, calls, clipping, loss, modules, observer, optimizers, parameters, probe, root
from internist.record import recorder, series_book
from internist.ship import spool

STEPS = 6
"""Steps 0, 1, 2 and 5 measure everything."""

CALLBACKS = [
    (observer.Observer, name)
    for name in (
        "_forward_begins", "_forward_ends", "_before_update", "_after_update", "_close_round", "arm", "_collect",
        "_follow", "_read_step", "coverage", "_seen",
    )
] + [
    (modules.ActivationCapture, "_measure"),
    (modules.ActivationCapture, "install"),
    (modules.ActivationCapture, "remove"),
    (modules.ActivationCapture, "_keep_probe"),
    (modules.ActivationCapture, "collect"),
    (calls.CallSeries, "record"),
    (attention.AttentionCapture, "heard"),
    (attention.AttentionCapture, "install"),
    (attention.AttentionCapture, "enter"),
    (attention.AttentionCapture, "leave"),
    (attention.AttentionCapture, "collect"),
    (clipping.ClippingCapture, "_note"),
    (clipping.ClippingCapture, "take"),
    (loss.LossPickup, "take"),
    (loss.LossPickup, "mean"),
    (loss.LossPickup, "_backward"),
    (parameters.ParameterCapture, "owned_by"),
    (parameters.ParameterCapture, "snapshot"),
    (parameters.ParameterCapture, "gradients"),
    (parameters.ParameterCapture, "updates"),
    (parameters.ParameterCapture, "groups"),
    (parameters.ParameterCapture, "finish"),
    (optimizers.OptimizerCapture, "pull"),
    (probe.ProbeReplay, "take"),
    (probe.ProbeReplay, "before"),
    (probe.ProbeReplay, "after"),
    (probe.ProbeReplay, "reset"),
    (root.RootCalls, "refresh"),
    (root.RootCalls, "is_compiled"),
    (recorder.Recorder, "add"),
    (recorder.Recorder, "close_step"),
    (recorder.Recorder, "log"),
    (recorder.Recorder, "drain"),
    (series_book.SeriesBook, "layout"),
    (series_book.SeriesBook, "series"),
    (spool.Spool, "append"),
]  # fmt: skip
NAMES = [f"{kind.__name__}.{name}" for kind, name in CALLBACKS]


def explode(*_, **__):
    raise RuntimeError("provoked")


def trained(directory, *, watched, monkeypatch=None, broken=(), after=-1):
    """The losses of a short run. From step `after` on (-1: from before the model is watched) the callbacks in `broken`
    raise."""
    torch.manual_seed(0)
    if monkeypatch is not None and after < 0:
        for kind, name in broken:
            monkeypatch.setattr(kind, name, explode)
    model = ByteGPT(width=16, depth=1, heads=2, context=8, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    monitor = internist.watch(model, optimizer, mode="offline", directory=directory) if watched else None
    generator, found = torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        if monkeypatch is not None and step == after:
            for kind, name in broken:
                monkeypatch.setattr(kind, name, explode)
        ids = torch.randint(0, 256, (2, 9), generator=generator)
        value = functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(value.item())
        if monitor is not None:
            monitor.log(loss=value)
    if monitor is not None:
        monitor.finish()
        monkeypatch.undo() if monkeypatch is not None else None
    found.append(torch.rand(()).item())
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("bare"), watched=False)


@pytest.mark.parametrize("after", [-1, 2])
@pytest.mark.parametrize("place", range(len(CALLBACKS)), ids=NAMES)
def test_a_callback_that_raises_costs_training_nothing(bare, tmp_path, monkeypatch, place, after):
    broken = [CALLBACKS[place]]

    assert trained(tmp_path, watched=True, monkeypatch=monkeypatch, broken=broken, after=after) == bare


@pytest.mark.parametrize("first", range(0, len(CALLBACKS), 4), ids=NAMES[::4])
def test_two_callbacks_that_raise_cost_training_nothing(bare, tmp_path, monkeypatch, first):
    for second in range(1, len(CALLBACKS), 5):
        broken = [CALLBACKS[first], CALLBACKS[second]]
        assert trained(tmp_path / str(second), watched=True, monkeypatch=monkeypatch, broken=broken) == bare


def test_callbacks_may_come_in_every_order(tmp_path):
    torch.manual_seed(0)
    model = ByteGPT(width=16, depth=1, heads=2, context=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    ids = torch.zeros(1, 4, dtype=torch.long)
    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path, every=1)
    watched = monitor._observer
    events = {
        "forward begins": lambda: watched._begin_safely((ids,), {}),
        "forward ends": lambda: watched._end_safely(torch.zeros(1)),
        "before": lambda: watched.before_update(optimizer, closure=False),
        "before, with a closure": lambda: watched.before_update(optimizer, closure=True),
        "after": lambda: watched.after_update(optimizer, closure=False),
        "round ends": lambda: watched.round_ended(watched.clock.step),
        "manual step": lambda: monitor.step(),
        "step": optimizer.step,
        "forward": lambda: model(ids).sum().backward(),
        "evaluation": lambda: torch.no_grad()(model)(ids),
        "a new optimizer": lambda: monitor.add_optimizers([torch.optim.SGD(model.parameters(), lr=0.0)]),
        "a scalar": lambda: monitor.log(x=1.0),
    }

    for first, second, third in itertools.product(events, repeat=3):
        for event in (first, second, third):
            events[event]()
    monitor.finish()
    for event in events.values():
        event()

    assert model(ids).isfinite().all()


def test_a_monitor_may_be_finished_at_any_moment(tmp_path):
    """From inside the user's own hooks, too: of modules, of tensors, of the optimizer."""

    def train(place):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path / place, every=1)

        def finish(*_):
            if losses and len(losses) == 2:
                monitor.finish()

        losses = []
        match place:
            case "pre":
                model.register_forward_pre_hook(finish)
            case "inner":
                model[0].register_forward_hook(finish)
            case "post":
                model.register_forward_hook(finish)
            case "backward":
                model[1].weight.register_post_accumulate_grad_hook(finish)
            case "before step":
                optimizer.register_step_pre_hook(finish)
            case "after step":
                optimizer.register_step_post_hook(finish)
        for _ in range(4):
            value = model(torch.randn(3, 4)).square().mean()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
        monitor.finish()
        return losses

    expected = train("nowhere")
    for place in ("pre", "inner", "post", "backward", "before step", "after step"):
        assert train(place) == expected, place
