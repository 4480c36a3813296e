"""Small models with exactly one mistake in their parametrisation each: what the scaling check has to find.

A correct setup is made by `internist.mup.plan`; a provocation then breaks one thing of it, as code that has the mistake
would have it: a rate, an initial weight, a multiplier, eps, the attention scale, weight decay.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from internist.mup import plan, sample
from internist.mup.multipliers import multiply
from internist.mup.planning import Plan
from internist.mup.trial import Trial, train
from internist.optim import Muon, MuonPlusPlus
from internist.scaling.members import Member

VOCABULARY = 64
HEADS = 4


class Attention(nn.Module):
    """Causal attention of a fixed number of heads."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        normed = self.norm(x)
        q, k, v = (f(normed).view(rows, length, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.o(mixed.transpose(1, 2).reshape(rows, length, width))


class Feedforward(nn.Module):
    """A branch of two matrices, with a norm before it or without."""

    def __init__(self, width: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False) if norm else nn.Identity()
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(self.norm(x))))


class Block(nn.Module):
    def __init__(self, width: int, attention_scale: float | None, *, norm: bool) -> None:
        super().__init__()
        self.attention = None if attention_scale is None else Attention(width, attention_scale)
        self.mlp = Feedforward(width, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            x = x + self.attention(x)
        return x + self.mlp(x)


class Net(nn.Module):
    """A residual network over tokens; with attention it is a small GPT."""

    def __init__(self, width: int, depth: int, *, attention_scale: float | None = None, norm: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, attention_scale, norm=norm) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False) if norm else nn.Identity()
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1.0 if parameter is self.embedding.weight else parameter.shape[1] ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


Powers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Provocation:
    """A family with one mistake, or with none."""

    name: str
    expects: tuple[str, ...]
    """Ids of the mistake, and of those it cannot be told from by exponents; empty: no diagnosis may come."""
    optimizer: str = "adamw"
    lr: float = 3e-3
    width: Powers = field(default_factory=dict)
    """What is changed, by which power of the width ratio: a role's rate (`hidden`, `embedding`, `head`), `head_init`,
    `head_multiplier`, `hidden_init`, `decay`."""
    depth: Powers = field(default_factory=dict)
    """The same of the depth ratio: `hidden`, `branch`."""
    scaled_eps: bool = True
    eps: float = 1e-12
    attention: bool = False
    attention_power: float = -1.0
    """Of the head's width in the attention scale."""
    norm: bool = True
    decay: float = 0.0
    steps: int = 10
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2,)

    def quick(self) -> "Provocation":
        """The same with smaller models."""
        if len(self.depths) > 1:
            return replace(self, widths=(32,), depths=(2, 4, 8))
        return replace(self, widths=(16, 32, 64, 128) if self.steps > 10 else (32, 64, 128, 256))


def members(provoked: Provocation, seeds: int) -> Iterator[Member]:
    """Train the family, a member at a time."""
    for width in provoked.widths:
        for depth in provoked.depths:
            for seed in range(seeds):
                yield member(provoked, width, depth, seed)


def member(provoked: Provocation, width: int, depth: int, seed: int) -> Member:
    """Train one model and return what was measured of it."""

    def make(size: int, blocks: int) -> Net:
        scale = _attention_scale(provoked, size) if provoked.attention else None
        return Net(size, blocks, attention_scale=scale, norm=provoked.norm)

    def optimizer(model: nn.Module) -> Any:
        return _broken(provoked, plan_of(model), width / provoked.widths[0], depth / provoked.depths[0])

    def plan_of(model: nn.Module) -> Plan:
        torch.manual_seed(seed)
        base = make(provoked.widths[0], provoked.depths[0])
        torch.manual_seed(seed)
        found: Plan = plan(
            model,
            base=base,
            optimizer=provoked.optimizer,
            lr=provoked.lr,
            adamw_lr=3e-3 if provoked.optimizer.startswith("muon") else None,
            weight_decay=provoked.decay,
            eps=provoked.eps,
        )
        return found

    torch.manual_seed(seed)
    name = f"{provoked.name}, width {width}, depth {depth}, seed {seed}"
    trial = Trial(optimizer, sample.batch, sample.loss, provoked.steps)
    return train(trial, make(width, depth), name=name, seed=seed)


def _attention_scale(provoked: Provocation, width: int) -> float:
    base = provoked.widths[0] / HEADS
    return float(base**-0.5 * (width / provoked.widths[0]) ** provoked.attention_power)


def _broken(provoked: Provocation, planned: Plan, r_n: float, r_l: float) -> Any:
    """Apply the plan, break what is to be broken, and make the optimizer."""
    groups = planned.apply()
    model = planned.model
    assert isinstance(model, Net)

    def factor(what: str) -> float:
        return float(r_n ** provoked.width.get(what, 0.0) * r_l ** provoked.depth.get(what, 0.0))

    for group in groups:
        group["lr"] *= factor(group["role"])
        group["weight_decay"] *= factor("decay") if group["role"] == "hidden" else 1.0
        if "eps" in group and not provoked.scaled_eps:
            group["eps"] = provoked.eps
    with torch.no_grad():
        model.head.weight.mul_(factor("head_init"))
        for block in model.blocks:
            for weight in block.parameters():
                weight.mul_(factor("hidden_init"))
    for name, placed in planned.multipliers.items():
        what = "head_multiplier" if name == "head" else "branch"
        multiply(model.get_submodule(name), placed.factor * factor(what), after_bias=placed.after_bias)
    return _OPTIMIZERS[provoked.optimizer](groups, lr=provoked.lr)


_OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "muon_kimi": Muon,
    "muon_mup": Muon,
    "muon_plus_plus": MuonPlusPlus,
}

_KIMI = {"optimizer": "muon_kimi", "lr": 6e-3}
_MUP = {"optimizer": "muon_mup", "lr": 0.03}
_SGD = {"optimizer": "sgd", "lr": 0.1}
_DEEP: dict[str, Any] = {"widths": (64,), "depths": (2, 4, 8, 16)}
_GPT: dict[str, Any] = {"attention": True, "widths": (32, 64, 128, 256)}
_LONG: dict[str, Any] = {"steps": 160, "widths": (32, 64, 128, 256), "lr": 0.01, "decay": 2.0}

CORRECT: tuple[Provocation, ...] = (
    Provocation("correct, AdamW", ()),
    Provocation("correct, Muon-Kimi", (), **_KIMI),
    Provocation("correct, Muon with the muP factor", (), **_MUP),
    Provocation("correct, Muon++", (), optimizer="muon_plus_plus", lr=0.03),
    Provocation("correct, SGD", (), **_SGD),
    Provocation("correct, GPT with AdamW", (), **_GPT),
    Provocation("correct in depth, AdamW", (), **_DEEP),
    Provocation("correct in depth, AdamW without norms", (), norm=False, **_DEEP),
    Provocation("correct in depth, Muon-Kimi", (), **_DEEP, **_KIMI),
    Provocation("correct in depth, SGD", (), **_DEEP, **_SGD),
    Provocation("correct eps that matters", (), eps=1e-2),
    Provocation("correct with weight decay, long", (), **_LONG),
)
BROKEN: tuple[Provocation, ...] = (
    Provocation("hidden rate not scaled, AdamW", ("hidden_rate_not_divided",), width={"hidden": 1.0}),
    Provocation("hidden rate divided twice, AdamW", ("hidden_rate_divided_twice",), width={"hidden": -1.0}),
    Provocation("Kimi factor not divided", ("matrix_factor_not_divided",), width={"hidden": 0.5}, **_KIMI),
    Provocation(
        "Kimi factor and 1/r_n", ("matrix_factor_divided_by_width", "matrix_rate_divided_by_root"),
        width={"hidden": -0.5}, **_KIMI,
    ),
    Provocation(
        "muP factor and 1/sqrt(r_n)", ("matrix_rate_divided_by_root", "matrix_factor_divided_by_width"),
        width={"hidden": -0.5}, **_MUP,
    ),
    Provocation("muP factor and 1/r_n", ("matrix_rate_divided_by_width",), width={"hidden": -1.0}, **_MUP),
    Provocation("hidden rate divided, SGD", ("sgd_hidden_rate_divided",), width={"hidden": -1.0}, **_SGD),
    Provocation("hidden init not scaled", ("hidden_init_not_scaled",), width={"hidden_init": 0.5}),
    Provocation("embedding rate divided, AdamW", ("embedding_rate_divided",), width={"embedding": -1.0}),
    Provocation(
        "embedding rate not raised, SGD", ("sgd_embedding_rate_not_raised",), width={"embedding": -1.0}, **_SGD
    ),
    Provocation("head init variance 1/fan_in, AdamW", ("head_init_too_large",), width={"head_init": 0.5}),
    Provocation("head init variance 1/fan_in, Muon-Kimi", ("head_init_too_large",), width={"head_init": 0.5}, **_KIMI),
    Provocation("head init variance 1/fan_in, SGD", ("head_init_too_large",), width={"head_init": 0.5}, **_SGD),
    Provocation("head init divided on top of the multiplier", ("head_init_too_small",), width={"head_init": -0.5}),
    Provocation("output multiplier missing, AdamW", ("output_multiplier_missing",), width={"head_multiplier": 1.0}),
    Provocation(
        "output multiplier missing, Muon-Kimi", ("output_multiplier_missing",), width={"head_multiplier": 1.0}, **_KIMI
    ),
    Provocation("output multiplier twice", ("output_multiplier_twice",), width={"head_multiplier": -1.0}),
    Provocation(
        "standard head", ("standard_head",), width={"head_multiplier": 1.0, "head_init": -0.5}
    ),
    Provocation("head rate not divided", ("head_rate_not_divided",), width={"head": 1.0}),
    Provocation("head rate divided on top", ("head_rate_divided_again",), width={"head": -1.0}),
    Provocation("attention scale 1/sqrt(d)", ("attention_scale_root",), attention_power=-0.5, **_GPT),
    Provocation("Adam eps not scaled", ("eps_not_scaled", "all_rates_fall"), eps=1e-2, scaled_eps=False),
    Provocation(
        "all rates fall as 1/sqrt(n)", ("all_rates_fall", "eps_not_scaled"),
        width={"hidden": -0.5, "embedding": -0.5, "head": -0.5},
    ),
    Provocation("weight decay not scaled", ("weight_decay_not_scaled", "weights_grow"), width={"decay": -1.0}, **_LONG),
    Provocation("branch multiplier missing", ("branch_multiplier_missing",), depth={"branch": 1.0}, **_DEEP),
    Provocation(
        "branch multiplier missing, no norms", ("branch_multiplier_missing",),
        depth={"branch": 1.0}, norm=False, **_DEEP,
    ),
    Provocation(
        "branch multiplier missing, Muon-Kimi", ("branch_multiplier_missing",), depth={"branch": 1.0}, **_DEEP, **_KIMI
    ),
    Provocation("branch multiplier 1/sqrt(L)", ("branch_multiplier_root",), depth={"branch": 0.5}, **_DEEP),
    Provocation(
        "branch multiplier 1/sqrt(L), no norms", ("branch_multiplier_root",), depth={"branch": 0.5}, norm=False, **_DEEP
    ),
    Provocation("branch multiplier twice", ("branch_multiplier_twice",), depth={"branch": -1.0}, **_DEEP),
    Provocation(
        "hidden rate 1/sqrt(L)", ("hidden_rate_divided_by_root_depth", "eps_not_scaled_with_depth"),
        depth={"hidden": -0.5}, **_DEEP,
    ),
    Provocation(
        "hidden rate not raised, SGD", ("sgd_hidden_rate_not_raised",), depth={"hidden": -1.0}, **_DEEP, **_SGD
    ),
    Provocation(
        "Adam eps not scaled with depth",
        ("eps_not_scaled_with_depth", "hidden_rate_divided_by_root_depth", "hidden_rate_divided_by_depth"),
        eps=1e-2, scaled_eps=False, **_DEEP,
    ),
)  # fmt: skip
PROVOCATIONS = {provoked.name: provoked for provoked in (*CORRECT, *BROKEN)}
