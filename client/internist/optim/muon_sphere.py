"""MuonSphere: Muon with each weight pulled back to a sphere of the spectral norm, to compare with."""

from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from internist.optim import stack
from internist.optim.bucket import Bucket, Group
from internist.optim.constraints import Retraction, retraction_factor, spectral_radius
from internist.optim.core import MatrixOptimizer, is_shared, learning_rate
from internist.optim.matrices import matrix_views
from internist.optim.pair_state import gather, scatter, step_of
from internist.optim.retraction import AT_RADIUS
from internist.optim.spectral_init import spectral_init
from internist.optim.top_pair import warm_pair

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NET_ROUNDS = 8


class MuonSphere(MatrixOptimizer):
    """MuonSphere, and AdamW for the groups that say `algorithm="adamw"`.

        W <- W − ηR msign(M);  W <- W R / ‖W‖₂,  R = c √(fan_out / fan_in)

    The norm is estimated by a few warm-started block Krylov rounds, where the method's own code runs 20 power
    iterations, and the retraction ends a step, where it begins one there: what the model computes with, and what is
    saved, is at its radius. A matrix is rescaled to R when it is added, and one of zeros refused.

    Args:
        params: parameters or groups of them, as in `Muon`.
        lr: η, the spectral norm of one update as a share of R.
        radius: c, in units of √(fan_out / fan_in), positive.
        retraction: `hard`, all the way, or `dynamic`, a factor 1 ± 0.05 η in that direction, which is too weak to
            hold the norm against gradients that keep pushing it.
        rounds: of the estimate, each reading the weight twice, at least 1.
        momentum, nesterov, coefficients, steps, dtype, maximize, process_group: as in `Muon`.

    Raises:
        ValueError: a value out of range, weight decay on matrices (their norm is fixed), or a matrix of zeros.

    Source: Controlled LLM Training on Spectral Sphere, arXiv:2601.08393: its Spectral Sphere Optimizer with λ = 0, with
    the defaults of its public code (momentum 0.9, Nesterov, 8 matrix-sign steps, dynamic rate 0.05).
    """

    traceable = False  # the estimate of the norm is seeded by the step
    writes_whole = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        *,
        radius: float = 1.0,
        retraction: Retraction = "hard",
        rounds: int = 6,
        momentum: float = 0.9,
        nesterov: bool = True,
        coefficients: str = "polar_express",
        steps: int | None = None,
        dtype: torch.dtype | None = None,
        maximize: bool = False,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": 0.0,
            "momentum": momentum,
            "nesterov": nesterov,
            "scale": "spectral_mup",
            "coefficients": coefficients,
            "steps": steps,
            "dtype": dtype,
            "maximize": maximize,
            "radius": radius,
            "retraction": retraction,
            "rounds": rounds,
        }
        super().__init__(params, defaults, process_group=process_group)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch's optimizers do, and rescale its matrices."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["algorithm"] != "adamw":
            for parameter in group["params"]:
                self._initialize(parameter, group)

    @torch.no_grad()
    def _initialize(self, parameter: Tensor, group: Group) -> None:
        values = parameter
        if is_shared(parameter):
            from internist.optim.distributed import overwrite, whole

            values = whole(parameter)
        for view in matrix_views(values, values, group):
            start = spectral_init(view, spectral_radius(view.shape, group["radius"])).matrices
            norms = (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) for matrices in (start, view))
            factor = torch.div(*norms)  # of a resumed run it is one but for rounding, and the weights stay as they were
            view.copy_(torch.where((factor - 1.0).abs() > AT_RADIUS, start, view))
        if is_shared(parameter):
            overwrite(parameter, values)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group["algorithm"] == "adamw":
            return
        if float(group["weight_decay"]) != 0.0:
            raise ValueError(f"the spectral norm is fixed, expected no weight decay, got {group['weight_decay']}")
        if group["scale"] != "spectral_mup":
            raise ValueError(
                f"the update is lr times the radius, expected scale 'spectral_mup', got {group['scale']!r}"
            )
        if group["retraction"] not in get_args(Retraction):
            raise ValueError(f"expected a retraction of {get_args(Retraction)}, got {group['retraction']!r}")
        if not isinstance(group["rounds"], int) or group["rounds"] < 1:
            raise ValueError(f"expected a positive number of rounds, got {group['rounds']!r}")
        spectral_radius((1, 1), group["radius"])

    def _state_of(self, parameter: Tensor, group: Group) -> dict[str, Any]:
        """Adds `v` (matrices, 2, fan_in) right vectors of the first and second singular value, zeros at first, and
        `firings` (matrices,) retractions so far."""
        state = super()._state_of(parameter, group)
        if "v" not in state:
            shape = torch.empty(parameter.shape, device="meta")
            views = matrix_views(shape, shape, group)
            count, dtype = sum(view.shape[0] for view in views), torch.promote_types(parameter.dtype, torch.float32)
            state["v"] = torch.zeros(count, 2, views[0].shape[2], dtype=dtype, device=parameter.device)
            state["firings"] = torch.zeros(count, dtype=dtype, device=parameter.device)
        return state

    def _scale(self, bucket: Bucket) -> float:
        return spectral_radius((bucket.fan_out, bucket.fan_in), bucket.group["radius"])

    def _write(self, bucket: Bucket, d: Tensor) -> None:
        """Muon's write, then the retraction."""
        before = [weight.clone() for weight in bucket.weights] if self._wants_diagnostics else None
        super()._write(bucket, d)
        if bucket.stacked:
            self._retract_stack(bucket, None if before is None else bucket.joined(before))
            return
        group, radius, rate = bucket.group, self._scale(bucket), learning_rate(bucket.group)
        for index, (parameter, weight, offset) in enumerate(
            zip(bucket.params, bucket.weights, bucket.offsets, strict=True)
        ):
            state, own = self.state[parameter], slice(offset, offset + weight.shape[0])
            pair = warm_pair(weight, state["v"][own], rounds=group["rounds"], seed=int(state["step"]))
            factor = retraction_factor(pair.sigma, radius, mode=group["retraction"], lr=rate)
            off = (pair.sigma / radius - 1.0).abs() > AT_RADIUS
            weight.mul_(torch.where(off, factor, 1.0).view(-1, 1, 1).to(weight.dtype))
            state["v"][own] = torch.stack([pair.v, pair.beneath], dim=1)
            state["firings"][own] += off
            if before is not None:
                net = warm_pair(weight - before[index], torch.zeros_like(pair.v), rounds=NET_ROUNDS).sigma
                self._note_piece(parameter, "optimizer.net_update", net)
                self._note_piece(parameter, "optimizer.firings", state["firings"][own])

    def _retract_stack(self, bucket: Bucket, before: Tensor | None) -> None:
        """Retract all matrices of a stack at once."""
        group, radius, rate = bucket.group, self._scale(bucket), learning_rate(bucket.group)
        start, seed = gather(self.state, bucket, "v"), step_of(self.state, bucket)
        pair = warm_pair(stack.weights_of(bucket), start, rounds=group["rounds"], seed=seed, batched=True)
        factor = retraction_factor(pair.sigma, radius, mode=group["retraction"], lr=rate)
        off = (pair.sigma / radius - 1.0).abs() > AT_RADIUS
        stack.scale(bucket, torch.where(off, factor, 1.0).view(-1, 1, 1))
        firings = gather(self.state, bucket, "firings") + off
        scatter(self.state, bucket, "v", torch.stack([pair.v, pair.beneath], dim=1))
        scatter(self.state, bucket, "firings", firings)
        if before is not None:
            change = stack.weights_of(bucket) - before
            net = warm_pair(change, torch.zeros_like(pair.v), rounds=NET_ROUNDS, batched=True).sigma
            self._note(bucket, "optimizer.net_update", net.to(torch.float32))
            self._note(bucket, "optimizer.firings", firings.to(torch.float32))

    def _note_piece(self, parameter: Tensor, metric: str, values: Tensor) -> None:
        noted, value = self._diagnostics.setdefault(parameter, {}), values.amax().to(torch.float32)
        noted[metric] = torch.maximum(noted[metric], value) if metric in noted else value
