"""The models that the proofs of muP train, and what prepares them: a rule, an optimizer, a width and a depth.

All are the demo's byte GPT with heads of one width, so that wider models have more heads and the scale of the attention
logits never changes. Without norms, the three LayerNorms of a block and the end are left out.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from internist.demo.model import ByteGPT
from internist.mup import plan
from internist.optim import Muon, MuonPlusPlus

BETAS = (0.9, 0.95)
EPS = 1e-8
PLANNED = {"AdamW": "adamw", "Muon-Kimi": "muon_kimi", "Muon++": "muon_plus_plus"}
"""Optimizer to the name of its rules."""


@dataclass(frozen=True)
class Shape:
    """A width and a depth of the byte GPT."""

    width: int
    depth: int
    norms: bool = True
    context: int = 32
    head_width: int = 16

    def model(self, seed: int) -> ByteGPT:
        """A fresh model, as the demo initialises it: what is planned for it draws its weights anew.

        Raises:
            ValueError: the width is no multiple of the heads'.
        """
        if self.width % self.head_width:
            raise ValueError(f"expected a multiple of the head width {self.head_width}, got width {self.width}")
        torch.manual_seed(seed)
        heads = self.width // self.head_width
        model = ByteGPT(width=self.width, depth=self.depth, heads=heads, context=self.context)
        if not self.norms:
            model.ln_f = nn.Identity()  # type: ignore[assignment]
            for block in model.blocks:
                block.ln1, block.ln2 = nn.Identity(), nn.Identity()
        return model


@dataclass(frozen=True)
class Arm:
    """A rule with an optimizer."""

    optimizer: str
    """AdamW, Muon-Kimi or Muon++."""
    rule: str
    """muP, k = 1 (muP for branches of one transformation) or SP."""

    @property
    def name(self) -> str:
        """Rule and optimizer."""
        return f"{self.rule}, {self.optimizer}"

    def described(self) -> dict[str, Any]:
        """What a result was made with, JSON-able."""
        return asdict(self)

    def prepare(
        self, model: ByteGPT, base: Shape, *, lr: float, adamw_lr: float | None = None
    ) -> torch.optim.Optimizer:
        """Draw the model's weights and set its multipliers by the rule, from the current random state.

        At the base hidden matrices have RMS-to-RMS operator norm 1, embeddings variance 1, and the head, as Su 2026
        (kexue.fm 11647) has it, standard deviation 1 / width.

        Args:
            base: what the rates below are meant for; at this shape all rules are the same.
            lr: of hidden matrices, and of everything else unless `adamw_lr` is given.

        Returns:
            The optimizer, with the rule's rates.
        """
        if self.optimizer not in PLANNED or self.rule not in ("muP", "k = 1", "SP"):
            raise ValueError(f"no such arm: {self.name!r}")
        planned = plan(
            model,
            base=(base.width, base.depth),
            optimizer=PLANNED[self.optimizer],
            lr=lr,
            adamw_lr=adamw_lr,
            weight_decay=0.0,
            eps=EPS,
            init="spectral",
            init_std={"output": 1.0 / base.width},
            parametrization="standard" if self.rule == "SP" else "mup",
            branch_depth=1 if self.rule == "k = 1" else None,
        )
        groups = planned.apply()
        if self.optimizer == "AdamW":
            return torch.optim.AdamW(groups, betas=BETAS, fused=True)
        for group in groups:
            if group.get("algorithm") == "adamw":
                group.setdefault("betas", BETAS)
        return Muon(groups) if self.optimizer == "Muon-Kimi" else MuonPlusPlus(groups, initialize=True)
