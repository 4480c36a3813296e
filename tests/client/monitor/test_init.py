"""Scripts written for wandb run as they are, with `import internist as wandb`."""

import argparse
import copy
import logging

import pytest
import torch
from torch import nn

import internist
import internist as wandb
from internist.errors import ConfigurationError
from tests.client.points import read, records

MODELS = []
"""Models of the test under way: a run ends with its model, and these outlive the function that trains them."""


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path))
    yield
    wandb.finish()
    wandb.unwatch()
    MODELS.clear()


def train(steps=3, *, criterion=None, **options):
    """What a script for wandb does between init and finish."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    MODELS.append(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = wandb.watch(model, criterion, log="all", log_freq=10, **options)
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(torch.ones(2, 4)), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wandb.log({"train/loss": loss}, step=step, commit=True)
    return monitor


def config_of(directory):
    found = {}
    for record in records(directory):
        found |= record.start.config if record.start else record.outline.config if record.outline else {}
    return found


def test_what_is_told_before_and_after_the_model_is_watched_belongs_to_the_run(caplog):
    arguments = argparse.Namespace(lr=0.1, layers=2)
    with wandb.init(project="shop", name="first", config=arguments, tags=["a"], mode="offline") as run:
        wandb.log({"early": 1.0})
        assert wandb.config.lr == 0.1 == run.config["lr"]
        assert wandb.run is run
        wandb.config.batch = 8
        monitor = train(criterion=nn.CrossEntropyLoss())
        wandb.config.update({"lr": 0.2, "nested": {"depth": 3}})
        wandb.summary["best"] = 0.5
        wandb.alert(title="Low accuracy", text="0.5", level=wandb.AlertLevel.WARN, wait_duration=300)
        wandb.alert(title="Low accuracy", text="0.5", level="WARN", wait_duration=300)

    assert monitor.is_finished
    assert "the run keeps lr=0.1 as it was" in caplog.text
    found = records(monitor.directory)
    assert (found[0].start.project, found[0].start.name) == ("shop", "first")
    assert config_of(monitor.directory) == {"lr": 0.1, "layers": 2, "batch": 8, "tags": "['a']", "nested.depth": 3}
    assert [(r.note.title, r.note.level) for r in found if r.note] == [("Low accuracy", "warning")]
    points = read(monitor.directory)[0]
    assert sorted(points["train/loss", "model", None]) == [0, 1, 2]
    assert points["early", "model", None] == {0: 1.0}
    assert points["summary/best", "model", None].popitem()[1] == 0.5
    assert wandb.run is None


def test_a_second_run_of_a_script_is_a_run_of_its_own():
    first = wandb.init(name="one")
    one = train()
    assert wandb.init(name="two") is first
    second = wandb.init(name="two", reinit=True)
    two = train()
    wandb.finish(exit_code=1)

    assert one.is_finished and first is not second
    assert one.run != two.run
    assert [r.finish.outcome for r in records(two.directory) if r.finish] == ["failed"]


def test_arguments_of_watch_win_over_those_of_init():
    wandb.init(project="ours", config={"lr": 1, "width": 2})
    monitor = train(project="theirs", config={"lr": 3})
    wandb.finish()

    start = records(monitor.directory)[0].start
    assert (start.project, start.config) == ("theirs", {"lr": 3, "width": 2})


def test_scalars_without_a_model_are_said_to_be_lost(caplog):
    wandb.init()
    wandb.log({"loss": 1.0})
    with caplog.at_level(logging.WARNING, "internist"):
        wandb.finish()

    assert "no model was watched, so the 1 calls of log() are not recorded" in caplog.text


def test_wrong_arguments_of_init_are_named():
    with pytest.raises(ConfigurationError, match="mode='sometimes': expected one of"):
        wandb.init(mode="sometimes")
    with pytest.raises(TypeError, match="no argument 'projekt'"):
        wandb.init(projekt="x")
    with pytest.raises(AttributeError, match="init"):
        _ = internist.config
    wandb.init(config={"a": 1})
    copied = copy.deepcopy(wandb.config)
    copied.a = 2
    assert (wandb.config.a, type(copied)) == (1, type(wandb.config))
    with pytest.raises(AttributeError, match="no 'b'; it has a"):
        _ = wandb.config.b
