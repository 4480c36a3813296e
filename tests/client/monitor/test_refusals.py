"""What `watch` is handed by mistake is named, with what to hand it instead."""

import logging

import pytest
import torch
from torch import nn

import internist
from internist.errors import ConfigurationError
from tests.client.points import read, records


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path))
    yield
    internist.unwatch()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Trainer:
    def __init__(self, model):
        self.model = model


class Accelerator:
    pass


class HalfScheduler:
    """Of no class of torch's, as libraries write them."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        pass

    def get_last_lr(self):
        return [0.1]


WRONG_OPTIMIZERS = {
    "its optimizer": lambda model: torch.optim.lr_scheduler.StepLR(sgd(model), 1),
    "a learning-rate scheduler (HalfScheduler)": lambda model: HalfScheduler(sgd(model)),
    "is a learning-rate scheduler (ReduceLROnPlateau)": lambda model: torch.optim.lr_scheduler.ReduceLROnPlateau(
        sgd(model)
    ),
    "is a gradient scaler (GradScaler); pass the optimizer that it steps": lambda _: torch.amp.GradScaler("cpu"),
    "optimizer[1] is None": lambda model: [sgd(model), None],
    "optimizer['b'] is None": lambda model: {"a": sgd(model), "b": None},
    "optimizer[1] is a learning-rate scheduler": lambda model: (
        sgd(model),
        torch.optim.lr_scheduler.StepLR(sgd(model), 1),
    ),
    "is the class AdamW; pass an instance": lambda _: torch.optim.AdamW,
    "is a model (Sequential)": lambda model: model,
    "got generator as optimizer": lambda model: model.parameters(),
    "trainer.optimizer": lambda model: Trainer(model),
    "accelerator.prepare()": lambda _: Accelerator(),
}


@pytest.mark.parametrize("message", WRONG_OPTIMIZERS)
def test_what_is_no_optimizer_is_named_with_what_to_pass(model, message):
    with pytest.raises(ConfigurationError) as caught:
        internist.watch(model, WRONG_OPTIMIZERS[message](model))

    assert message in str(caught.value)
    assert all(m._compiled_call_impl is None for m in model.modules())


WRONG_MODELS = {
    "the model comes first": sgd,
    "Sequential is a class; pass an instance": lambda _: nn.Sequential,
    "pass the model and the optimizer that it trains": Trainer,
    "run one forward before watching the model": lambda _: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)),
    "got list": lambda model: [model],
}


@pytest.mark.parametrize("message", WRONG_MODELS)
def test_what_is_no_model_is_named_with_what_to_pass(model, message):
    with pytest.raises(ConfigurationError) as caught:
        internist.watch(WRONG_MODELS[message](model), sgd(model))

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_overhead": 1}, "max_overhead=1: expected a share of the run's time from 0 to 0.5, such as 0.01 for 1 %"),
        ({"max_overhead": 5}, "max_overhead=5"),
        ({"max_overhead": float("nan")}, "max_overhead=nan"),
        ({"replay": "no"}, "replay='no': expected True or False"),
        ({"include": "blokcs"}, "include='blokcs' matches none of the model's 3 modules; the nearest names are"),
        ({"include": ["^0$", "attn"]}, "include='attn' matches none"),
        ({"exclude": "."}, "exclude=['.'] leaves none of the model's 3 modules"),
        ({"include": "^2$", "exclude": "2"}, "that include=['^2$'] chooses"),
    ],
)
def test_options_that_make_no_sense_are_refused(model, arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        internist.watch(model, sgd(model), **arguments)

    assert message in str(caught.value)


def test_a_typo_in_include_is_answered_with_the_nearest_name(model):
    named = nn.ModuleDict({"encoder": model, "decoder": nn.Linear(2, 2)})

    with pytest.raises(ConfigurationError, match="nearest names are 'decoder'"):
        internist.watch(named, include="decodre")


def test_optimizers_may_come_as_a_dict(model):
    optimizers = {
        "first": torch.optim.SGD(model[0].parameters(), lr=0.1),
        "second": torch.optim.Adam(model[2].parameters(), lr=0.1),
    }
    monitor = internist.watch(model, optimizers)

    assert records(monitor.directory)[0].start.optimizers == ("SGD", "Adam")


def test_an_optimizer_that_is_named_later_is_followed(model):
    monitor = internist.watch(model, sgd(model))
    later = torch.optim.Adam(model.parameters(), lr=0.1)
    assert internist.watch(model, later) is monitor
    for _ in range(3):
        model(torch.ones(1, 4)).sum().backward()
        later.step()
    monitor.finish()

    assert sorted(read(monitor.directory)[0]["update.rms", "0.weight", None]) == [0, 1, 2]


def test_a_frozen_model_is_watched_and_said(model, caplog):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        internist.watch(model)

    assert "none of Sequential's 4 parameters requires a gradient" in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch is about to leave TorchScript
def test_a_scripted_model_is_refused_and_a_traced_one_is_watched_and_said(model, caplog):
    with pytest.raises(ConfigurationError, match=r"compiled by torch\.jit\.script: its calls cannot be seen"):
        internist.watch(torch.jit.script(model))
    with caplog.at_level(logging.WARNING):
        internist.watch(torch.jit.trace(model, torch.ones(1, 4)))

    assert "TorchScript hides the calls of TopLevelTracedModule's modules" in caplog.text


def test_parameters_that_are_elsewhere_do_not_decide_where_measurements_go(model):
    model[0].to(device="meta")
    mixed = nn.ModuleDict({"away": model[0], "here": nn.Linear(4, 2)})
    optimizer = sgd(mixed["here"])
    monitor = internist.watch(mixed, optimizer)
    for _ in range(2):
        mixed["here"](torch.ones(1, 4)).sum().backward()
        optimizer.step()
        internist.log(loss=torch.tensor(2.0))
    monitor.finish()

    points = read(monitor.directory)[0]
    assert points["loss", "model", None] == {0: 2.0, 1: 2.0}
    assert sorted(points["update.rms", "here.weight", None]) == [0, 1]


def test_replay_is_an_option(model):
    monitor = internist.watch(model, replay=False)

    assert monitor._options.replay is False


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("start_run", "internist has no start_run(): call internist.watch(model, optimizer)"),
        ("config", "pass config= to internist.watch"),
        ("save", "no files"),
        ("define_metric", "axis="),
        ("Table", "internist.log"),
        ("login", "INTERNIST_TOKEN"),
    ],
)
def test_names_of_other_tools_are_answered_with_ours(name, instead):
    with pytest.raises(AttributeError) as caught:
        getattr(internist, name)

    assert instead in str(caught.value)
    assert not hasattr(internist, name)
