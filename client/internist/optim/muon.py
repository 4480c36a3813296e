"""Muon: the orthogonalised momentum, scaled by shape."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from internist.optim import switches
from internist.optim.bucket import Bucket, Group
from internist.optim.core import MatrixOptimizer
from internist.optim.matrices import matrix_views
from internist.optim.pair_state import ROWS, gather, scatter

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Muon(MatrixOptimizer):
    """Muon for hidden matrices, and AdamW for the groups that say `algorithm="adamw"`.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; decoupled decay and
    `match_rms_adamw` from Liu et al. 2025, arXiv:2502.16982. At equal settings it takes torch.optim.Muon's steps.

    Three switches change a step, each by itself, and none is on unless it is asked for:

        normuon=0.95                    β₂ of NorMuon: rows of D are divided by the root of their squares' running mean
                                        (`switches.evened`); costs one number per row of state
        cautious=True                   weight decay spares what the step takes away from zero
                                        (`switches.decay_cautiously`)
        coefficients="polar_express"    the Polar Express's polynomials (Amsel et al. 2025, arXiv:2505.16932)

    Raises:
        ValueError: a value out of range.
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
        normuon: float | None = None,
        cautious: bool = False,
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
            "normuon": normuon,
            "cautious": cautious,
        }
        super().__init__(params, defaults, process_group=process_group)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        beta, cautious = group["normuon"], group["cautious"]
        if beta is not None and not (isinstance(beta, float) and 0.0 <= beta < 1.0):
            raise ValueError(f"expected a normuon (its beta2) in [0, 1), or None, got {beta!r}")
        if not isinstance(cautious, bool):
            raise ValueError(f"expected cautious to be True or False, got {cautious!r}")

    def _state_of(self, parameter: Tensor, group: Group) -> dict[str, Any]:
        """Adds, for NorMuon, the running means of squares: of the rows of all its matrices, one after the other."""
        state = super()._state_of(parameter, group)
        if group["normuon"] is not None and ROWS not in state:
            shape = torch.empty(parameter.shape, device="meta")
            rows = sum(view.shape[0] * view.shape[1] for view in matrix_views(shape, shape, group))
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            state[ROWS] = torch.zeros(rows, dtype=dtype, device=parameter.device)
        return state

    def _finish(self, bucket: Bucket, d: Tensor) -> Tensor:
        if bucket.group["normuon"] is None:
            return d
        d, squares = switches.evened(d, gather(self.state, bucket, ROWS), bucket.group["normuon"])
        scatter(self.state, bucket, ROWS, squares)
        return d
