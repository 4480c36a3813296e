"""The norm before clipping: of the watched model alone, whatever else is clipped and however often."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm

import internist
from internist.observe.clipping import ClippingCapture
from tests.client.points import read
from tests.client.torches import needs_the_warning_of_no_parameters

ROUNDING = 1e-6
"""A float32 norm of some hundred entries."""
LEFT = 1e-4
"""Torch adds a millionth to the norm that it divides by, twice where it clips twice."""


class Clipped:
    """A model with gradients, its capture, and its norm before."""

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.other = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), nn.Linear(4, 2)
        own = {id(parameter) for parameter in self.model.parameters()}
        self.capture = ClippingCapture(lambda tensor: id(tensor) in own)
        self.backward()

    def backward(self):
        for model in (self.model, self.other):
            model.zero_grad()
            model(torch.randn(6, 4)).square().sum().backward()
        self.norm = float(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm())

    def left(self):
        return float(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm())

    def take(self):
        norm = self.capture.take()
        return None if norm is None else float(norm)


@pytest.fixture
def clipped():
    made = Clipped()
    yield made
    made.capture.remove()


@pytest.mark.parametrize("given", ["generator", "list", "iterator", "by name"])
def test_the_models_clip_is_measured_and_done(clipped, given):
    parameters = {
        "generator": clipped.model.parameters(),
        "list": list(clipped.model.parameters()),
        "iterator": iter(list(clipped.model.parameters())),
        "by name": clipped.model.parameters(),
    }[given]
    if given == "by name":
        clip_grad_norm_(parameters=parameters, max_norm=0.5)
    else:
        clip_grad_norm_(parameters, 0.5)

    assert clipped.take() == pytest.approx(clipped.norm, rel=ROUNDING)
    after = torch.cat([p.grad.flatten() for p in clipped.model.parameters()]).norm()
    assert float(after) == pytest.approx(0.5, rel=1e-4)
    assert clipped.take() is None


def test_what_clipping_leaves_is_known_without_reading_a_gradient(clipped):
    clip_grad_norm_(clipped.model.parameters(), 0.5)
    clip_grad_norm_(clipped.model.parameters(), 0.2)
    clipped.take()
    assert clipped.capture.after == pytest.approx(clipped.left(), rel=LEFT)

    clipped.backward()
    for part, limit in zip(clipped.model, (0.1, 1e9), strict=True):
        clip_grad_norm_(part.parameters(), limit)
    clipped.take()
    assert clipped.capture.after == pytest.approx(clipped.left(), rel=LEFT)


def test_what_is_left_is_not_known_where_a_part_is_clipped_again(clipped):
    clip_grad_norm_(clipped.model.parameters(), 0.5)
    clip_grad_norm_(clipped.model[0].parameters(), 0.01)

    assert clipped.take() is not None and clipped.capture.after is None
    assert clipped.take() is None and clipped.capture.after is None


def test_another_models_clip_is_not_ours(clipped):
    clip_grad_norm_(clipped.other.parameters(), 0.1)
    assert clipped.take() is None

    clip_grad_norm_(clipped.model.parameters(), 0.5)
    clip_grad_norm_(clipped.other.parameters(), 0.1)
    assert clipped.take() == pytest.approx(clipped.norm, rel=ROUNDING)


def test_disjoint_parts_make_one_norm(clipped):
    for part in clipped.model:
        clip_grad_norm_(part.parameters(), 0.1)

    assert clipped.take() == pytest.approx(clipped.norm, rel=ROUNDING)


def test_of_the_same_parameters_the_first_clip_counts(clipped):
    clip_grad_norm_(clipped.model.parameters(), 0.5)
    clip_grad_norm_(clipped.model.parameters(), 0.1)
    clip_grad_norm_(clipped.model[0].parameters(), 0.01)

    assert clipped.take() == pytest.approx(clipped.norm, rel=ROUNDING)


def test_what_cannot_be_told_apart_is_not_measured_and_said_once(clipped, caplog):
    for _ in range(2):
        clip_grad_norm_([*clipped.model.parameters(), *clipped.other.parameters()], 0.5)
        assert clipped.take() is None
    clip_grad_norm_(clipped.model[0].parameters(), 0.5)
    clip_grad_norm_(clipped.model.parameters(), 0.5)
    assert clipped.take() is None

    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "parameters of the model were clipped together with others",
        "gradients were clipped over parts of the model that overlap",
    ]


def test_another_norm_is_not_recorded_as_the_2_norm(clipped):
    clip_grad_norm_(clipped.model.parameters(), 0.5, norm_type=float("inf"))
    assert clipped.take() is None


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_a_norm_that_is_computed_apart_counts_if_it_is_the_2_norm(clipped, norm_type):
    parameters = list(clipped.model.parameters())
    total = get_total_norm([p.grad for p in parameters], norm_type)
    clip_grads_with_norm_(parameters, 0.5, total)

    assert clipped.take() == (pytest.approx(clipped.norm, rel=ROUNDING) if norm_type == 2.0 else None)


def test_clipping_by_value_has_no_norm(clipped):
    clip_grad_value_(clipped.model.parameters(), 0.01)
    assert clipped.take() is None


@needs_the_warning_of_no_parameters
def test_an_empty_generator_keeps_torchs_warning(clipped):
    with pytest.warns(UserWarning, match="empty generator"):
        clip_grad_norm_((p for p in ()), 1.0)
    assert clipped.take() is None


def test_two_captures_each_hear_their_own_model(clipped):
    theirs = {id(parameter) for parameter in clipped.other.parameters()}
    second = ClippingCapture(lambda tensor: id(tensor) in theirs)
    clip_grad_norm_(clipped.model.parameters(), 0.5)
    expected = clip_grad_norm_(clipped.other.parameters(), 0.5)

    assert clipped.take() == pytest.approx(clipped.norm, rel=ROUNDING)
    assert float(second.take()) == float(expected)
    second.remove()


def test_a_run_that_clips_twice_and_another_model_stores_one_right_norm(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    torch.manual_seed(0)
    model, other = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = internist.watch(model, optimizer, every=1)
    expected = []
    for _ in range(3):
        model(torch.randn(6, 4)).square().sum().backward()
        other(torch.randn(6, 4)).square().sum().backward()
        expected.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()))
        clip_grad_norm_(model[0].parameters(), 0.5)
        clip_grad_norm_(model[1].parameters(), 0.5)
        clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish()
    points, _, _ = read(monitor.directory)

    found = points["gradient.norm_before_clip", "model", None]
    assert [found[step] for step in range(3)] == pytest.approx(expected, rel=ROUNDING)
    assert [points["gradient.norm_after_clip", "model", None][step] for step in range(3)] == pytest.approx(
        [0.5 * 2**0.5] * 3, rel=LEFT
    )
