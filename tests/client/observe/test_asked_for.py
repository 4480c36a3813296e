"""What was not asked for costs nothing: no tap, no replay."""

import pytest
import torch

import internist
from internist.demo.model import ByteGPT
from internist.observe.probe import ProbeReplay
from internist.observe.sampling import Due
from internist.observe.taps import PLACE

EVERYTHING = Due(light=True, heavy=True, matrices=-1)


def watched(tmp_path, metrics, *, include=None):
    """A model about to make a step that measures everything, and its monitor."""
    torch.manual_seed(0)
    model = ByteGPT(width=16, depth=2, heads=2, context=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path, metrics=metrics, include=include)
    monitor._observer.arm(0, EVERYTHING)
    return model, optimizer, monitor


def tapped(model):
    """Names of the modules with a tap; the root's tells of forwards, whatever is measured."""
    return {name for name, module in model.named_modules() if name and PLACE in vars(module)}


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (["gradient.rms", "weight.rms", "update.rms"], set()),
        (["block.contribution"], {"blocks.0", "blocks.1"}),
        (["output.log_z"], {"lm_head"}),
    ],
    ids=str,
)
def test_only_modules_that_a_wanted_metric_needs_are_tapped(tmp_path, metrics, expected):
    model, _, monitor = watched(tmp_path, metrics)

    assert tapped(model) == expected
    monitor.finish()
    assert not tapped(model)


def test_modules_with_parameters_are_tapped_for_their_own_updates(tmp_path):
    model, _, monitor = watched(tmp_path, ["update.own"])

    assert tapped(model) == {name for name, module in model.named_modules() if module._parameters and name}
    monitor.finish()


def test_modules_that_are_left_out_are_not_tapped(tmp_path):
    model, _, monitor = watched(tmp_path, ["activation.rms"], include=["blocks.0.*"])

    assert tapped(model)
    assert all(name.startswith("blocks.0") for name in tapped(model))
    monitor.finish()


@pytest.mark.parametrize(
    ("metrics", "replays"), [(["gradient.rms"], 0), (["activation.rms"], 1), (["update.feature"], 2)], ids=str
)
def test_a_compiled_model_is_replayed_only_for_what_needs_it(tmp_path, monkeypatch, metrics, replays):
    made, forward = [], ProbeReplay._run
    monkeypatch.setattr(ProbeReplay, "_run", lambda own, **how: made.append(how) or forward(own, **how))
    torch.manual_seed(0)
    model = ByteGPT(width=16, depth=2, heads=2, context=8)
    model.compile(backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path, metrics=metrics)
    monitor._observer.arm(0, EVERYTHING)
    model(torch.zeros(2, 8, dtype=torch.long)).square().mean().backward()
    optimizer.step()
    monitor.finish()

    assert len(made) == replays
