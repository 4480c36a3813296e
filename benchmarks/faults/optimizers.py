"""Optimizers and schedules of the runs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from internist.optim import Muon, MuonPlusPlus, split_parameters

OPTIMIZERS = ("adamw", "sgd", "lion", "muon", "muon++")
SCHEDULES = ("cosine", "wsd", "steps", "restarts", "constant")
WARMUP = 40
RATES = {"adamw": 2e-3, "sgd": 0.05, "lion": 3e-4, "muon": 0.02, "muon++": 0.02}
_DECAY = {"adamw": 0.1, "sgd": 1e-4, "lion": 0.3}


class Lion(torch.optim.Optimizer):
    """Steps by the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  # no closure here
        """One step."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for weight in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                weight.mul_(1 - lr * group["weight_decay"])
                weight.sub_(momentum.lerp(weight.grad, 1 - beta1).sign_(), alpha=lr)
                momentum.lerp_(weight.grad, 1 - beta2)


def make_optimizer(kind: str, model: nn.Module, *, left_out: str | None = None) -> torch.optim.Optimizer:
    """An optimizer with one group per block and one for the rest (Muon's groups are by role).

    Args:
        kind: one of OPTIMIZERS.
        model: whose parameters it steps.
        left_out: a module whose parameters are forgotten.
    """
    rate = RATES[kind]
    if kind in ("muon", "muon++"):
        groups = split_parameters(model, lr=rate, adamw_lr=RATES["adamw"])
        return Muon(groups) if kind == "muon" else MuonPlusPlus(groups)
    named = [(n, p) for n, p in model.named_parameters() if left_out is None or not n.startswith(left_out + ".")]
    by_place: dict[str, list[nn.Parameter]] = {}
    for name, parameter in named:
        by_place.setdefault(place_of(name), []).append(parameter)
    parameters = [{"params": members} for members in by_place.values()]
    decay = _DECAY[kind]
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
    if kind == "lion":
        return Lion(parameters, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=decay)


def place_of(name: str) -> str:
    """The block, or numbered layer, that a parameter is in; `rest` of others."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("blocks", "layers") else "rest"


def schedule(kind: str, steps: int) -> Callable[[int], float]:
    """The share of its rate that an optimizer has at each step, after a warm-up."""

    def after(step: int) -> float:
        done = step / steps
        if kind == "cosine":
            return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        if kind == "wsd":
            return 1.0 if done < 0.8 else max(0.02, (1 - done) / 0.2)
        if kind == "steps":
            return 1.0 if done < 0.5 else 0.1 if done < 0.85 else 0.01
        if kind == "restarts":
            return 0.1 + 0.45 * (1 + math.cos(math.pi * (step % (steps // 4)) / (steps // 4)))
        return 1.0

    return lambda step: min(1.0, (step + 1) / WARMUP) * after(step)
