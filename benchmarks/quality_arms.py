"""The optimizers that the quality benchmark compares, each with the settings it always has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from internist.optim.groups import split_parameters
from internist.optim.muon import Muon
from internist.optim.muon_plus_plus import MuonPlusPlus
from internist.optim.muon_sphere import MuonSphere

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
WHOLE = {r".*\.qkv\.weight": 1}
"""Fused queries, keys and values are one matrix here, as torch's Muon has them and their norms are reported."""
OPEN_GAP = 0.25
"""What lies beneath the top pair at the start, as a share of it, where the gap is opened."""


@dataclass(frozen=True)
class Arm:
    """One optimizer of the comparison."""

    name: str
    kind: str
    """AdamW, torch.optim.Muon, Muon, MuonPlusPlus or MuonSphere."""
    start: float
    """Learning rate that its grid starts from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the matrices, beside the learning rate."""

    @property
    def greatest(self) -> float:
        """The largest learning rate that it accepts."""
        return 1.0 / self.settings.get("decay", 1.0) if self.settings.get("policy") == "decay" else math.inf

    def described(self) -> dict[str, Any]:
        """What a result was made with, JSON-able."""
        return {"kind": self.kind, **self.settings}

    def optimizers(self, model: nn.Module, lr: float, rest_lr: float) -> list[torch.optim.Optimizer]:
        """The optimizers of a model, which may rescale its hidden matrices.

        Args:
            lr: of the hidden matrices; for AdamW of everything.
            rest_lr: of embeddings, head, gains and biases, always with AdamW.
        """
        options = dict(self.settings)
        if self.kind == "AdamW":
            return [torch.optim.AdamW(model.parameters(), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)]
        if self.kind == "torch.optim.Muon":
            rest = [p for group in split_parameters(model) if group["role"] != "hidden" for _, p in group["params"]]
            # torch's AdamW takes no options of ours: its decay, like that of the groups below, spares gains and biases
            groups: list[dict[str, Any]] = [{"params": [p for p in rest if p.dim() > 1]}]
            groups.append({"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0})
            adamw = torch.optim.AdamW(groups, lr=rest_lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
            return [torch.optim.Muon(hidden_matrices(model).values(), lr=lr, **options), adamw]
        adamw_options = {"betas": BETAS, "weight_decay": WEIGHT_DECAY}
        routing = split_parameters(
            model,
            lr=lr,
            adamw_lr=rest_lr,
            qkv=WHOLE,
            options={
                "embedding": adamw_options,
                "head": adamw_options,
                "gain": {"betas": BETAS},
                "bias": {"betas": BETAS},
            },
        )
        if self.kind == "Muon":
            return [Muon(routing, **options)]
        if self.kind == "MuonPlusPlus":
            return [MuonPlusPlus(routing, initialize=True, **options)]
        if self.kind == "MuonSphere":
            return [MuonSphere(routing, **options)]
        raise ValueError(f"no optimizer of kind {self.kind!r}")


def hidden_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Name to hidden matrix, as the routing has them."""
    return {name: p for group in split_parameters(model) if group["role"] == "hidden" for name, p in group["params"]}


def arms(radius: float) -> list[Arm]:
    """All that are compared. The ones that hold a norm hold R(W) = radius."""
    muon = {"weight_decay": WEIGHT_DECAY, "momentum": 0.95, "nesterov": True}
    return [
        Arm("AdamW", "AdamW", 2.0**-9),
        Arm("torch Muon", "torch.optim.Muon", 2.0**-5, muon),
        Arm("Muon", "Muon", 2.0**-5, muon),
        spectral_arm("decay", radius),
        spectral_arm("decay", radius, open_gap=OPEN_GAP),
        spectral_arm("retract", radius),
        Arm("MuonSphere", "MuonSphere", 2.0**-6, {"radius": radius, "momentum": 0.95, "coefficients": "jordan"}),
        spectral_arm("cap", radius, open_gap=OPEN_GAP),
        spectral_arm("none", radius, open_gap=OPEN_GAP),
        Arm("Muon, NorMuon", "Muon", 2.0**-5, {**muon, "normuon": 0.95}),
        Arm("Muon, cautious", "Muon", 2.0**-5, {**muon, "cautious": True}),
        Arm("Muon, Polar Express", "Muon", 2.0**-5, {**muon, "coefficients": "polar_express"}),
    ]


def spectral_arm(policy: str, radius: float, **more: Any) -> Arm:
    """MuonPlusPlus under a policy, spectrally initialised."""
    settings = {"policy": policy, "radius": radius, **({"decay": 1.0} if policy == "decay" else {}), **more}
    name = f"Muon++ {policy}" + (", open" if "open_gap" in more else "")
    return Arm(name, "MuonPlusPlus", 2.0**-6, settings)


def undecayed_muon() -> Arm:
    """Muon without weight decay, which nothing keeps from growing: of the long run alone."""
    return Arm("Muon, no decay", "Muon", 2.0**-5, {"weight_decay": 0.0, "momentum": 0.95, "nesterov": True})
