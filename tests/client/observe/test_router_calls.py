"""Loads and entropies of routers: routers by hand and Hugging Face's, against what their own choices say."""

import math

import pytest
import torch
from torch import Tensor, nn

import internist
from internist.model.routers import routers
from tests.client.points import read

WIDTH, EXPERTS, CHOSEN = 32, 6, 2
ROUNDING = 1e-5
"""Sums of float32 over some tokens, against float64."""


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    torch.manual_seed(0)


class Experts(nn.Module):
    """A mixture of experts by hand: a linear router, a softmax, the largest of it."""

    def __init__(self, *, per_token: int | None = CHOSEN) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        if per_token is not None:
            self.top_k = per_token

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(CHOSEN, dim=-1)
        spread = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return x + (outputs * spread.unsqueeze(-2)).sum(-1)


class Sorted(nn.Module):
    """A router that returns its choice, which a balancing bias has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))
        self.register_buffer("balance_bias", torch.tensor([50.0] + [0.0] * (EXPERTS - 1)))
        self.top_k = CHOSEN

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = (x @ self.weight.T).sigmoid()
        chosen = (scores + self.balance_bias).topk(CHOSEN, dim=-1).indices
        return scores.gather(-1, chosen), chosen


def defined(logits: Tensor, chosen: Tensor) -> tuple[list[float], float]:
    """Load of each expert and entropy, in float64."""
    p = logits.detach().double().reshape(-1, EXPERTS).softmax(-1)
    load = [float((chosen.reshape(-1, CHOSEN) == expert).any(-1).double().mean()) for expert in range(EXPERTS)]
    return load, float(-(p * p.log()).sum(-1).mean()) / math.log(EXPERTS)


def trained(model: nn.Module, batches: list[Tensor]):
    """One step over these micro-batches; what it left, and the monitor."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    for x in batches:
        out = model(x)
        (out if isinstance(out, Tensor) else out.logits).square().mean().backward()
    optimizer.step()
    return monitor


def values(points, name: str) -> tuple[list[float], float]:
    """Load of each expert and entropy at step 0."""
    return [points["router.load", name, expert][0] for expert in range(EXPERTS)], points["router.entropy", name, None][
        0
    ]


def test_a_router_by_hand_tells_its_loads_and_its_entropy_over_micro_batches_of_any_size():
    model = nn.Sequential(Experts(), Experts())
    batches = [torch.randn(tokens, 5, WIDTH) for tokens in (2, 7)]
    logits = torch.cat([model[0].gate(x).flatten(0, 1) for x in batches])
    load, entropy = defined(logits, logits.topk(CHOSEN).indices)

    monitor = trained(model, batches)
    entries = {(e.subject, e.family): e.state for e in monitor.coverage()}
    monitor.finish()
    points, series, _ = read(monitor.directory)
    found = values(points, "0.gate")
    assert found[0] == pytest.approx(load, abs=ROUNDING) and sum(found[0]) == pytest.approx(CHOSEN, rel=ROUNDING)
    assert found[1] == pytest.approx(entropy, rel=ROUNDING)
    assert entries["0.gate", "router"] == entries["1.gate", "router"] == "measured"
    assert series["router.load", "0.gate", 3].facts.placement == "data_parallel"


def test_a_choice_that_is_returned_counts_whatever_made_it():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Module())
    model[1].router, model[1].experts = Sorted(), nn.ModuleList()
    model[1].forward = lambda x: model[1].router(x)[0]
    x = torch.randn(9, WIDTH)
    hidden = model[0](x).detach()
    chosen = model[1].router(hidden)[1]
    load, entropy = defined(hidden @ model[1].router.weight.T, chosen)

    monitor = trained(model, [x])
    monitor.finish()
    found = values(read(monitor.directory)[0], "1.router")
    assert found[0] == pytest.approx(load, abs=ROUNDING) and found[0][0] == 1.0
    assert found[1] == pytest.approx(entropy, rel=ROUNDING)


def test_a_router_whose_number_of_choices_nobody_tells_has_its_entropy_and_a_reason():
    monitor = trained(nn.Sequential(Experts(per_token=None)), [torch.randn(3, WIDTH)])
    entry = next(e for e in monitor.coverage() if e.family == "router")
    monitor.finish()
    points = read(monitor.directory)[0]
    assert entry.state == "unsupported" and "top_k" in entry.reason
    assert ("router.entropy", "0.gate", None) in points and ("router.load", "0.gate", 0) not in points


def test_gates_that_choose_among_nothing_are_no_routers():
    model = nn.Module()
    model.gate = nn.Linear(WIDTH, 4)  # of a gated layer without experts
    model.moe = nn.Module()
    model.moe.shared_expert_gate, model.moe.top_k = nn.Linear(WIDTH, 1), 2
    model.moe.gate = nn.Linear(WIDTH, 4)

    assert [(router.module, router.per_token) for router in routers(model)] == [(model.moe.gate, 2)]


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe"])
def test_hugging_face_routers_tell_what_they_choose(family):
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 50,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": EXPERTS,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "max_position_embeddings": 64,
    }
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**small)).train()
    ids = torch.randint(0, 50, (2, 11))
    name, gate = next((n, m) for n, m in model.named_modules() if n.endswith("1.mlp.gate"))
    with torch.no_grad():
        gate.weight.normal_()
    seen = []
    handle = gate.register_forward_hook(lambda _, __, out: seen.append(out))
    model(ids)
    handle.remove()
    load, entropy = defined(seen[0][0], seen[0][2])

    monitor = trained(model, [ids])
    monitor.finish()
    found = values(read(monitor.directory)[0], name)
    assert found[0] == pytest.approx(load, abs=ROUNDING)
    assert found[1] == pytest.approx(entropy, rel=ROUNDING)
