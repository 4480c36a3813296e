"""What optimizers tell of themselves: pulled on sampled steps, recorded as told, and never a danger to training."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import internist
from internist.demo.model import ByteGPT
from internist.model.outline import outline
from internist.observe.optimizers import tellers
from internist.observe.routing import promises, routing
from internist.optim import MuonPlusPlus, split_parameters
from internist.schema.wire import Route
from tests.client.points import read, records
from tests.client.torches import needs_torchs_muon

LR = 0.02
STEPS = 20
SAMPLED = [*range(17), 18]
"""Of these steps, those that measure everything."""


class Telling(torch.optim.SGD):
    """Plain descent that knows its own numbers: the seam's smallest honest optimizer.

    A request makes the next step note how much of each weight's gradient lies along its top singular pair, the length
    of the step, and its own count of steps, as 0-d tensors.
    """

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.requests, self.pulls = 0, 0
        self.noted = {}
        self.is_asked = False
        for group in self.param_groups:
            group["policy"] = "cap"

    def request_diagnostics(self):
        self.requests += 1
        self.is_asked = True

    def step(self, closure=None):
        loss = super().step(closure)
        self.noted = {p: self.of(p) for g in self.param_groups for p in g["params"]} if self.is_asked else {}
        self.is_asked = False
        return loss

    def of(self, p):
        values = torch.linalg.svdvals(p.detach()) if p.dim() == 2 else torch.ones(2)
        return {
            "optimizer.effective_lr": torch.tensor(self.param_groups[0]["lr"]),
            "optimizer.gap": 1 - values[1] / values[0],
            "optimizer.of_no_catalogue": values[0],
        }

    def diagnostics(self):
        self.pulls += 1
        return self.noted


class Faulty(Telling):
    def diagnostics(self):
        raise RuntimeError("lost my notes")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    torch.manual_seed(0)
    yield
    internist.unwatch()


def small():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def gpt():
    return ByteGPT(width=16, depth=2, heads=2, context=8)


def train(model, *optimizers, steps=STEPS):
    shape = (4, 6) if isinstance(model, nn.Sequential) else None
    for _ in range(steps):
        if shape:
            model(torch.ones(shape)).square().mean().backward()
        else:
            ids = torch.randint(0, 256, (2, 8))
            model(ids, ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def split(model, *, misrouted=()):
    """Hidden matrices and the rest, but for names that a test sends astray."""
    named = dict(model.named_parameters())
    hidden = [n for n, p in named.items() if n.startswith("blocks") and p.dim() == 2 and n not in misrouted]
    return [named[n] for n in hidden], [p for n, p in named.items() if n not in hidden]


def test_what_the_optimizer_tells_is_recorded_as_told_on_model_heavy_steps_and_asked_for_only_then():
    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    monitor = internist.watch(model, optimizer, every=10)

    train(model, optimizer)

    points, series, _ = read(finished(monitor))
    told = points["optimizer.effective_lr", "0.weight", None]
    assert sorted(told) == SAMPLED
    assert list(told.values()) == pytest.approx([LR] * len(SAMPLED))
    assert (optimizer.requests, optimizer.pulls) == (len(SAMPLED), len(SAMPLED))
    declared = series["optimizer.effective_lr", "0.weight", None]
    assert (declared.kind, declared.facts.module, declared.facts.cadence) == ("parameter", "0", 100)
    assert declared.facts.method == "told by Telling, policy cap"


def test_what_is_in_no_catalogue_is_left_out():
    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    monitor = internist.watch(model, optimizer, max_overhead=0)

    train(model, optimizer)

    assert not [metric for metric, *_ in read(finished(monitor))[0] if "catalogue" in metric]


@pytest.mark.parametrize(("policy", "is_judged"), [("cap", True), ("none", True), ("decay", False)])
def test_the_share_of_the_gap_is_told_under_the_policies_that_rest_on_it(policy, is_judged):
    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    optimizer.param_groups[0]["policy"] = policy
    monitor = internist.watch(model, optimizer, max_overhead=0)

    train(model, optimizer)

    points = read(finished(monitor))[0]
    gap, use = (points.get((f"optimizer.{name}", "0.weight", None), {}) for name in ("gap", "gap_use"))
    assert gap
    assert (list(use) == list(gap)) is is_judged
    assert [LR / gap[step] for step in use] == pytest.approx(list(use.values()), rel=1e-5)


def test_a_gap_that_is_used_up_is_a_large_share_and_a_nan_stays_one():
    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    optimizer.of = lambda p: {"optimizer.gap": torch.tensor(-0.1 if p.dim() == 2 else math.nan)}
    monitor = internist.watch(model, optimizer, max_overhead=0)

    train(model, optimizer, steps=1)

    points = read(finished(monitor))[0]
    assert points["optimizer.gap_use", "0.weight", None][0] > 1e3
    assert math.isnan(points["optimizer.gap_use", "0.bias", None][0])


def test_an_optimizer_that_fails_at_it_is_not_asked_again_and_training_goes_on(caplog):
    model = small()
    optimizer = Faulty(model.parameters(), lr=LR)
    before = [p.detach().clone() for p in model.parameters()]
    monitor = internist.watch(model, optimizer, max_overhead=0)

    with caplog.at_level(logging.WARNING):
        train(model, optimizer)

    assert optimizer.requests == 1
    assert [r.getMessage() for r in caplog.records if "lost my notes" in r.getMessage()] != []
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    points = read(finished(monitor))[0]
    assert len(points["update.rms", "0.weight", None]) == len(SAMPLED)


@pytest.mark.parametrize("told", [3, {"0.weight": 1}, None, {torch.ones(1): "x"}])
def test_answers_of_another_form_do_not_hurt(told):
    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    optimizer.diagnostics = lambda: told
    monitor = internist.watch(model, optimizer, max_overhead=0)

    train(model, optimizer)

    assert len(read(finished(monitor))[0]["update.rms", "0.weight", None]) == len(SAMPLED)


def test_a_value_of_many_entries_is_refused_and_the_others_of_the_step_are_kept():
    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    optimizer.of = lambda _: {"optimizer.audit": torch.ones(3)}
    monitor = internist.watch(model, optimizer, max_overhead=0)

    train(model, optimizer)

    points = read(finished(monitor))[0]
    assert not [metric for metric, *_ in points if metric == "optimizer.audit"]
    assert len(points["update.rms", "0.weight", None]) == len(SAMPLED)


def test_what_an_object_behind_a_step_hook_knows_is_told_too_and_nothing_is_told_twice():
    class Clipper:
        def __init__(self, optimizer, weight):
            self.weight = weight
            optimizer.register_step_post_hook(torch.compiler.disable(self.after))

        def after(self, *_):
            self.gamma = torch.tensor(0.5)

        def diagnostics(self):
            return {self.weight: {"optimizer.clip_gamma": self.gamma, "optimizer.effective_lr": self.gamma}}

    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    clipper = Clipper(optimizer, model[0].weight)
    monitor = internist.watch(model, optimizer, max_overhead=0)

    train(model, optimizer)

    assert list(tellers(optimizer)) == [optimizer, clipper]
    points = read(finished(monitor))[0]
    assert set(points["optimizer.clip_gamma", "0.weight", None].values()) == {0.5}
    assert list(points["optimizer.effective_lr", "0.weight", None].values()) == pytest.approx([LR] * len(SAMPLED))


@needs_torchs_muon
def test_hidden_matrices_on_another_algorithm_are_told_apart_and_warned_of_once(caplog):
    model = gpt()
    astray = ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight")
    hidden, rest = split(model, misrouted=astray)
    muon, adamw = torch.optim.Muon(hidden), torch.optim.AdamW(rest)
    monitor = internist.watch(model, [muon, adamw])

    with caplog.at_level(logging.WARNING):
        train(model, muon, adamw)

    points = {name: p for (metric, name, _), p in read(finished(monitor))[0].items() if metric == "optimizer.misrouted"}
    assert {name for name, values in points.items() if set(values.values()) == {1.0}} == set(astray)
    assert len(points) == 8 and all(set(v.values()) == {0.0} for n, v in points.items() if n not in astray)
    (warning,) = [r.getMessage() for r in caplog.records if "hidden matrices" in r.getMessage()]
    assert "2 of 8 hidden matrices are stepped by AdamW" in warning and astray[0] in warning


def test_without_an_optimizer_for_matrices_nothing_is_astray(caplog):
    model = gpt()
    optimizer = torch.optim.AdamW(model.parameters())
    monitor = internist.watch(model, optimizer, max_overhead=0)

    with caplog.at_level(logging.WARNING):
        train(model, optimizer)

    assert not [metric for metric, *_ in read(finished(monitor))[0] if metric == "optimizer.misrouted"]
    assert "hidden" not in caplog.text


@needs_torchs_muon
def test_optimizers_that_were_not_named_are_known_when_they_step():
    model = gpt()
    hidden, rest = split(model, misrouted=("blocks.0.attn.proj.weight",))
    muon, adamw = torch.optim.Muon(hidden), torch.optim.AdamW(rest)
    monitor = internist.watch(model)

    train(model, muon, adamw)

    points = read(finished(monitor))[0]
    assert set(points["optimizer.misrouted", "blocks.0.attn.proj.weight", None].values()) == {1.0}


@pytest.mark.parametrize("policy", ["decay", "cap", "retract", "none"])
def test_being_asked_changes_no_bit_of_the_training(policy):
    weights = []
    for mode in ("offline", "disabled"):
        torch.manual_seed(0)
        model = gpt()
        optimizer = MuonPlusPlus(split_parameters(model), lr=LR, policy=policy, audit_every=4)
        internist.watch(model, optimizer, mode=mode, every=2)
        train(model, optimizer)
        internist.unwatch()
        weights.append([p.detach().clone() for p in model.parameters()])

    assert all(torch.equal(watched, alone) for watched, alone in zip(*weights, strict=True))


@needs_torchs_muon
def test_the_routing_table_travels_with_the_start():
    model = gpt()
    hidden, rest = split(model)
    muon = torch.optim.Muon([{"params": hidden, "name": "hidden"}])
    monitor = internist.watch(model, [muon, torch.optim.AdamW(rest)])

    routes = records(finished(monitor))[0].start.routing

    assert len(routes) == len(list(model.parameters()))
    plain = replace(routes[0], init_rms=None)
    assert plain == Route(
        "blocks.0.attn.qkv.weight", "Muon", "muon", "hidden", (48, 16), lr=1e-3, weight_decay=0.1, eps=1e-7
    )
    assert {r.algorithm for r in routes} == {"muon", "adamw"}


def test_an_optimizer_that_describes_itself_says_role_and_rules():
    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    rules = {"parameter": None, "algorithm": "muon", "scale": "original", "coefficients": "jordan", "policy": None}
    optimizer.describe = lambda: [{**rules, "role": role} for role in ("hidden", "bias", "hidden", "bias")]

    routes = routing([optimizer], outline(model))

    assert [(r.parameter, r.role) for r in routes[:2]] == [("0.weight", "hidden"), ("0.bias", "bias")]
    assert (routes[0].algorithm, routes[0].scale, routes[0].coefficients, routes[0].policy) == (
        "muon",
        "original",
        "jordan",
        "",
    )


@pytest.mark.parametrize("described", [lambda: 1 / 0, lambda: [{}], lambda: [1, 2, 3, 4], lambda: None, "no function"])
def test_a_table_that_cannot_be_read_is_made_from_the_groups(described):
    model = small()
    optimizer = Telling(model.parameters(), lr=LR)
    optimizer.describe = described

    assert [r.algorithm for r in routing([optimizer], outline(model))] == ["telling"] * 4


@needs_torchs_muon
def test_what_is_promised_of_updates_is_what_the_optimizer_states_and_torch_s_muon_is_known():
    model = small()
    told = Telling(model.parameters(), lr=LR)
    told.describe = lambda: [{"update_scale": 0.5, "update_band": [0.7, 1.1]}, {}, {"update_scale": 1}, {}]
    by_torch = torch.optim.Muon([model[0].weight], adjust_lr_fn="match_rms_adamw")
    other = torch.optim.Muon([model[0].weight], ns_steps=3)

    assert promises([told], outline(model)) == {0: (0.5, (0.7, 1.1))}
    assert promises([by_torch], outline(model)) == {0: (pytest.approx(0.2 * 8**0.5), (0.68, 1.134))}
    assert promises([other], outline(model)) == promises([torch.optim.SGD(model.parameters())], outline(model)) == {}


def test_the_promise_travels_with_the_series_of_the_update():
    model = small()
    told = Telling(model.parameters(), lr=LR)
    told.describe = lambda: [{"update_scale": 0.5, "update_band": [0.7, 1.1]}, {}, {}, {}]
    monitor = internist.watch(model, told)

    train(model, told)

    facts = read(finished(monitor))[1]["update.operator_norm", "0.weight", None].facts
    assert (facts.update_scale, facts.update_band) == (0.5, (0.7, 1.1))


def test_names_are_made_short_and_printable():
    model = small()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "name": "a\nb" + "x" * 600}], lr=LR)

    (group,) = {r.group for r in routing([optimizer], outline(model))}

    assert group.isprintable() and len(group) == 512


def finished(monitor):
    monitor.finish()
    return monitor.directory
