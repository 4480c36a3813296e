"""The public face: what `watch` takes and refuses, what `log` does, and that nothing else is lost by a mistake."""

import argparse
import logging
import os

import pytest
import torch
from torch import nn

import internist
from internist.errors import (
    ConfigurationError,
    NothingToWatch,
    NotInternist,
    ServerUnreachable,
    SpoolError,
    TokenRefused,
)
from tests.client.points import read, records
from tests.client.ship.small_server import SmallServer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("INTERNIST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    yield
    internist.unwatch()


def train(model, optimizer, steps=3):
    for _ in range(steps):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def start_of(monitor):
    return records(monitor.directory)[0].start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every=0: expected a whole number"),
        ({"every": 2.5}, "every=2.5"),
        ({"every": True}, "every=True"),
        ({"mode": "sometimes"}, "mode='sometimes': expected one of auto, online, offline, disabled"),
        ({"resume": "maybe"}, "resume='maybe'"),
        ({"compile": "eager"}, "compile='eager': expected None or 'inline'"),
        ({"compile": "fast"}, "compile='fast': expected None or 'inline'"),
        ({"distributed": "gather"}, "distributed='gather': expected 'merge' or 'reduce'"),
        ({"reference": "missing.json"}, "reference='missing.json': there is no such file"),
        ({"reference": __file__}, "it holds no trajectory of a run"),
        ({"reference": 7}, "reference=7: expected the id or the name of a run"),
        ({"reference": "a\nb"}, "printable characters"),
        ({"schedule": 3}, "schedule=3: expected a torch scheduler, a function of the step"),
        (
            {"schedule": "cosin"},
            "schedule names 'cosin'; known are constant, linear, cosine, wsd; did you mean 'cosine'?",
        ),
        ({"schedule": "cosine"}, "cosine needs steps, 1 or more"),
        ({"schedule": {"kind": "wsd", "steps": 100}}, "wsd needs decay, 1 or more"),
        ({"schedule": {"kind": "linear", "steps": 2.5}}, "schedule's steps=2.5: expected a whole number of steps"),
        ({"schedule": {"kind": "cosine", "steps": 9, "floor": 2}}, "schedule's floor=2: expected a share of the peak"),
        ({"schedule": {"kind": "constant", "steps": 9}}, "constant takes warmup, not 'steps'"),
        ({"metrics": ["weight.spectral_nrom"]}, "did you mean 'weight.spectral_norm'"),
        ({"metrics": 3}, "metrics=3"),
        ({"include": "("}, "not a valid regular expression"),
        ({"exclude": 5}, "exclude=5"),
        ({"output": "no.such.module"}, "output='no.such.module' names no module"),
        ({"step": -1}, "step=-1"),
        ({"step": "ten"}, "step='ten'"),
        ({"server": "localhost:8237"}, "server='localhost:8237': expected an address such as http"),
        ({"max_overhead": -0.1}, "max_overhead=-0.1"),
        ({"config": 17}, "config=17"),
        ({"config": {"parametrization": "magic"}}, "parametrization"),
        ({"project": "a\nb"}, "project="),
        ({"name": "x" * 600}, "printable characters"),
        ({"id": "../../etc"}, "../../etc"),
        ({"directory": 4}, "directory=4"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(model, optimizer, arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        internist.watch(model, optimizer, **arguments)

    assert message in str(caught.value)
    train(model, optimizer)  # nothing was left installed
    assert all(m._compiled_call_impl is None for m in model.modules())


@pytest.mark.parametrize("wrong", [None, "model", 3, {"model": 1}])
def test_a_model_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"expected a torch\.nn\.Module"):
        internist.watch(wrong)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(NothingToWatch, match="Tanh has no parameters"):
        internist.watch(nn.Tanh())


def test_something_without_a_step_is_no_optimizer(model):
    with pytest.raises(ConfigurationError, match=r"step\(\) method, got float as optimizer\['lr'\]"):
        internist.watch(model, {"lr": 0.1})


def test_an_optimizer_of_another_model_is_a_clock_but_says_so(model, caplog):
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)

    with caplog.at_level(logging.WARNING):
        monitor = internist.watch(model, optimizer)
    for _ in range(2):
        model(torch.ones(2, 4)).sum().backward()
        other(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    monitor.finish()

    assert "SGD owns none of Sequential's 4 parameters" in caplog.text
    points, _, _ = read(monitor.directory)
    assert 1 in points["activation.rms", "0", None]
    assert {e.state for e in monitor.coverage() if e.kind == "parameter"} == {"frozen"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INTERNIST_MODE", "on"),
        ("INTERNIST_STEP", "soon"),
        ("INTERNIST_SERVER", "nowhere"),
        ("INTERNIST_RUN_ID", "a/b"),
    ],
)
def test_a_wrong_environment_variable_is_named(model, optimizer, monkeypatch, name, value):
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=value):
        internist.watch(model, optimizer)


def test_arguments_win_over_the_environment(model, optimizer, monkeypatch, tmp_path):
    for name, value in {
        "PROJECT": "env",
        "NAME": "env",
        "RUN_ID": "env-run",
        "ATTEMPT": "env-attempt",
        "STEP": "7",
    }.items():
        monkeypatch.setenv(f"INTERNIST_{name}", value)

    monitor = internist.watch(
        model, optimizer, project="argument", id="argument-run", step=9, directory=tmp_path / "mine"
    )
    start = start_of(monitor)
    assert (start.project, start.name, start.run, start.attempt, start.start_step) == (
        "argument",
        "env",
        "argument-run",
        "env-attempt",
        9,
    )
    assert monitor.directory.is_relative_to(tmp_path / "mine")


def test_a_directory_that_cannot_be_written_is_named(model, optimizer, tmp_path):
    file = tmp_path / "file"
    file.write_text("")

    with pytest.raises(SpoolError, match=str(file)):
        internist.watch(model, optimizer, directory=file)


def test_online_insists_on_a_server(model, optimizer):
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9"):
        internist.watch(model, optimizer, mode="online", server="http://127.0.0.1:9")


def test_auto_trains_on_without_a_server_and_says_what_to_type(model, optimizer, caplog, monkeypatch):
    monkeypatch.delenv("INTERNIST_MODE")
    with caplog.at_level(logging.WARNING):
        monitor = internist.watch(model, optimizer, server="http://127.0.0.1:9")
        train(model, optimizer)
        monitor.finish(timeout=5.0)

    assert "internist serve" in caplog.text
    assert f"internist sync {os.environ['INTERNIST_DIR']}" in caplog.text
    assert read(monitor.directory)[0]["activation.rms", "0", None].keys() == {0, 1, 2}


def test_watching_twice_gives_the_same_monitor(model, optimizer):
    first = internist.watch(model, optimizer)
    taps = [m._compiled_call_impl for m in model.modules()]

    assert internist.watch(model, optimizer) is first
    assert [m._compiled_call_impl for m in model.modules()] == taps


def test_a_finished_model_can_be_watched_again(model, optimizer):
    internist.watch(model, optimizer).finish()
    train(model, optimizer)

    second = internist.watch(model, optimizer)
    train(model, optimizer)
    second.finish()
    assert read(second.directory)[0]["activation.rms", "0", None]


def test_disabled_does_nothing_at_all(model, optimizer, tmp_path):
    monitor = internist.watch(model, optimizer, mode="disabled", directory=tmp_path / "none")
    train(model, optimizer)
    monitor.log(loss=1.0)
    monitor.alert("a", "b")
    monitor.step()
    monitor.finish()

    assert (monitor.url, monitor.directory, monitor.coverage()) == (None, None, ())
    assert not (tmp_path / "none").exists()


def test_config_is_flattened_and_kept(model, optimizer):
    config = argparse.Namespace(lr=0.1, model={"width": 4, "layers": [1, 2]}, seed=None, inf=float("inf"))
    monitor = internist.watch(model, optimizer, config=config)

    assert start_of(monitor).config == {
        "lr": 0.1,
        "model.width": 4,
        "model.layers": "[1, 2]",
        "seed": None,
        "inf": "inf",
    }


def test_include_and_exclude_choose_modules(model, optimizer):
    monitor = internist.watch(model, optimizer, include=["^0", "^2"], exclude="^2")
    train(model, optimizer)
    states = {e.subject: e.state for e in monitor.coverage()}
    monitor.finish()

    assert (states["0"], states["2"], states["2.weight"]) == ("measured", "excluded", "excluded")
    assert {subject for _, subject, _ in read(monitor.directory)[0]} == {"0", "0.weight", "0.bias", "model"}


def test_metrics_choose_families(model, optimizer):
    monitor = internist.watch(model, optimizer, metrics=["update.own", "weight.*"])
    train(model, optimizer)
    monitor.finish()

    families = {metric for metric, _, _ in read(monitor.directory)[0]}
    assert {m.partition(".")[0] for m in families} == {"weight", "update", "monitor"}
    assert {m for m in families if m.startswith("update")} == {"update.own"}


def test_rename_changes_every_name(model, optimizer):
    monitor = internist.watch(model, optimizer, rename=lambda name: f"pp0.{name}")
    train(model, optimizer)
    monitor.finish()

    subjects = {subject for metric, subject, _ in read(monitor.directory)[0] if metric == "weight.rms"}
    assert subjects == {"pp0.0.weight", "pp0.0.bias", "pp0.2.weight", "pp0.2.bias"}


def test_the_start_step_is_read_from_the_optimizers_state(model):
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, steps=5)
    monitor = internist.watch(model, optimizer)
    train(model, optimizer, steps=1)
    monitor.finish()

    assert start_of(monitor).start_step == 5
    assert list(read(monitor.directory)[0]["activation.rms", "0", None]) == [5]


@pytest.mark.parametrize(
    "value", [1.5, 2, True, torch.tensor(1.5), torch.tensor([3.0]), torch.tensor(2, dtype=torch.int64)]
)
def test_log_takes_numbers_and_one_element_tensors(model, optimizer, value):
    monitor = internist.watch(model, optimizer)
    model(torch.ones(1, 4)).sum().backward()
    internist.log({"a/b": value})
    optimizer.step()
    monitor.finish()

    assert read(monitor.directory)[0]["a/b", "model", None] == {0: float(value)}


def test_log_leaves_out_what_is_no_number_and_says_so_once(model, optimizer, caplog):
    monitor = internist.watch(model, optimizer)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            internist.log({"text": "high", "vector": torch.ones(3), "": 1.0, "bad\nname": 1.0, "good": 4.0})
        internist.log(step=-3, good=5.0)
    monitor.finish()

    assert caplog.text.count("log('text')") == 1
    assert "log(step=-3)" in caplog.text
    assert list(read(monitor.directory)[0]) == [("good", "model", None)]


def test_nan_and_infinite_scalars_are_values(model, optimizer):
    monitor = internist.watch(model, optimizer)
    train(model, optimizer, steps=1)
    internist.log(loss=float("nan"), grad=1e300)
    monitor.finish()

    points = read(monitor.directory)[0]
    assert points["loss", "model", None][0] != points["loss", "model", None][0]
    assert points["grad", "model", None][0] == float("inf")


def test_a_scalar_belongs_to_the_step_it_was_logged_in(model, optimizer):
    monitor = internist.watch(model, optimizer)
    for step in range(4):
        model(torch.ones(2, 4)).sum().backward()
        internist.log(before=float(step))
        optimizer.step()
        internist.log(after=float(step))
    internist.log(late=1.0, step=2)
    monitor.finish()

    points = read(monitor.directory)[0]
    assert points["before", "model", None] == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}
    assert points["after", "model", None] == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}
    assert points["late", "model", None] == {2: 1.0}


def test_loss_is_picked_up_from_what_the_root_returns(tmp_path):
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, x):
            return {"loss": self.linear(x).square().mean(), "logits": x}

    model = WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = internist.watch(model, optimizer)
    expected = []
    for _ in range(3):
        losses = [model(torch.randn(2, 4))["loss"] for _ in range(2)]
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(sum(loss.item() for loss in losses) / 2)
    monitor.finish()

    assert list(read(monitor.directory)[0]["loss", "model", None].values()) == pytest.approx(expected, rel=1e-6)


def test_an_alert_of_the_users_own_is_a_note(model, optimizer, caplog):
    monitor = internist.watch(model, optimizer)
    internist.alert("data", "shard 7 is empty", "error")
    internist.alert("data", "x", "loud")
    monitor.finish()

    notes = [r.note for r in records(monitor.directory) if r.note]
    assert [(n.title, n.text, n.level) for n in notes] == [
        ("data", "shard 7 is empty", "error"),
        ("data", "x", "warning"),
    ]
    assert caplog.text.count("level='loud': expected info, warning or error") == 1


def test_the_context_manager_says_whether_the_run_failed(model, optimizer):
    with pytest.raises(ZeroDivisionError), internist.watch(model, optimizer) as monitor:
        _ = 1 / 0

    assert records(monitor.directory)[-1].finish.outcome == "failed"


def test_calls_without_a_watched_model_do_nothing():
    internist.log(loss=1.0)
    internist.alert("a", "b")
    internist.finish()
    internist.unwatch()


def test_loops_without_an_optimizer_call_step(model):
    with torch.no_grad():
        before = model[0].weight.clone()
    monitor = internist.watch(model)
    for _ in range(3):
        model(torch.ones(2, 4)).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        monitor.step()
    monitor.finish()

    points = read(monitor.directory)[0]
    assert list(points["update.rms", "0.weight", None]) == [0, 1, 2]
    moved = (model[0].weight.detach() - before).square().mean().sqrt().item()
    assert moved <= sum(points["update.rms", "0.weight", None].values()) * (1 + 1e-5)


def test_the_last_sampled_step_is_in_the_spool_without_a_next_step(model, optimizer):
    monitor = internist.watch(model, optimizer)
    train(model, optimizer, steps=1)
    deadline = 100
    while deadline and not read(monitor.directory)[2]:
        deadline -= 1
        monitor._sender.join(0.05)  # the sender writes it by itself after a short while

    assert read(monitor.directory)[2]


@pytest.mark.parametrize(
    ("answer", "error"),
    [((401, "application/json", b"{}"), TokenRefused), ((200, "text/html", b"<h1>It works!</h1>"), NotInternist)],
)
def test_a_refused_token_and_a_stranger_are_told_apart(model, optimizer, monkeypatch, answer, error):
    monkeypatch.delenv("INTERNIST_MODE")

    with SmallServer(misbehave=lambda _: answer) as server, pytest.raises(error, match=server.address):
        internist.watch(model, optimizer, mode="online", server=server.address)
