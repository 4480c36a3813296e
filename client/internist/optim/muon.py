"""Muon: the orthogonalised momentum, scaled by shape."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from internist.optim.core import MatrixOptimizer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Muon(MatrixOptimizer):
    """Muon for hidden matrices, and AdamW for the groups that say `algorithm="adamw"`.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; decoupled decay and
    `match_rms_adamw` from Liu et al. 2025, arXiv:2502.16982. At equal settings it takes torch.optim.Muon's steps.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        scale: str = "original",
        coefficients: str = "jordan",
        steps: int | None = None,
        tau: float = 1.0,
        dtype: torch.dtype | None = None,
        maximize: bool = False,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "scale": scale,
            "coefficients": coefficients,
            "steps": steps,
            "tau": tau,
            "dtype": dtype,
            "maximize": maximize,
        }
        super().__init__(params, defaults, process_group=process_group)
