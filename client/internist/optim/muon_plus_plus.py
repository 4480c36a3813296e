"""Muon++: Muon inside the two-sided complement of each weight's top singular pair, which it leaves where it is."""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, linalg

from internist.optim import frozen_step, stack
from internist.optim.bucket import Bucket, Group
from internist.optim.coefficients import longest, norm_band
from internist.optim.complement import (
    adaptive_factor,
    add_step,
    capped_rate,
    complement_factors,
    complement_residual,
    projected,
    removed_norm,
)
from internist.optim.constraints import spectral_radius
from internist.optim.core import MatrixOptimizer, is_shared, learning_rate
from internist.optim.frozen_step import is_large
from internist.optim.group_checks import check_pair_keeping
from internist.optim.matrices import matrix_views
from internist.optim.pair_keeper import PairKeeper
from internist.optim.pair_state import Pairs, Ready, gather, gather_pairs, new_state, scatter, step_of
from internist.optim.spectral_init import open_gap_init, spectral_init
from internist.optim.top_pair import pair_residual, warm_pair

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Policy = Literal["decay", "cap", "retract", "none"]

CAP_ROUNDS = 4
NET_ROUNDS = 5
"""Krylov rounds of what is estimated; each reads the matrices twice."""


class MuonPlusPlus(MatrixOptimizer):
    """Muon++, and AdamW for the groups that say `algorithm="adamw"`.

    A matrix W with top singular value S, alone at the top, with vectors u and v, is stepped by

        W <- W − ηS D,  D = msign(P_u M P_v),  P_u = I − uuᵀ,  P_v = I − vvᵀ

    so u and v stay singular vectors with value S, and stay the top ones while η ≤ 1 − σ₂/S: the spectral conditions on
    weights (‖W‖₂ = S) and updates (‖ΔW‖₂ = ηS) then hold at every step, with no normalisation of weights. S is
    c √(fan_out / fan_in) after `initialize`; otherwise each matrix keeps the norm it has at its first step as its own
    S, and `describe` says which c that is. What is left of the gap then decides, by policy:

        decay    W⊥ <- (1 − ηλ) W⊥ as well, λ ≥ 1: σ₂ never passes S, whatever the gradients, and ends below S / λ
        cap      η <- min(η, 0.95 (1 − σ₂/S)): exact too, but steps shrink to nothing once the gap is used up
        retract  after the step W <- W S / ‖W‖₂, and the pair is found anew: the net update is at most 2ηS, and may
                 be next to nothing
        none     nothing: the norm passes S when the gap is used up

    Under every policy but `none`, a matrix whose gap 1 − σ₂/S is below 1e-3 (at its first step, or at an audit, from
    the next audit on) has no well-defined top pair and is retracted from then on; that is counted and logged once.
    `optimizer.firings` counts the capped steps, the retractions, and such falls.

    A matrix with one row or one column is all top pair, and never moves. A momentum of zeros gives an update of
    zeros (the complement still decays); one of rank one gives its own direction; NaN or infinity in a gradient makes
    the matrix NaN, as in Muon. A momentum wholly along the pair leaves rounding, which is orthogonalised as any other.

    Args:
        params: parameters or groups of them. Matrices, stacks and convolutions as in `Muon`.
        lr: η, the spectral norm of one update as a share of S. 0-d tensors are accepted.
        radius: c, in units of √(fan_out / fan_in), positive. It takes effect through `initialize`.
        policy: one of the four above.
        decay: λ of the `decay` policy, at least 1; the complement shrinks by ηλ a step, which must not exceed 1.
        momentum, nesterov, coefficients, steps, dtype, maximize: as in `Muon`. D is divided by the greatest singular
            value its coefficient set can make, so that ‖D‖₂ ≤ 1.
        initialize: rescale each matrix to spectral norm S when it is added, in place. Matrices of zeros are refused.
            Not when training is resumed: it would change the weights.
        open_gap: ρ in (0, 1): `initialize` also scales what lies beneath the top pair to ρS (see `open_gap_init`).
        audit_every: steps between two estimates of σ₂ (the gap), at least 1.
        adaptive: scale η by the gains fed to `feed_gains`. Experimental.
        adaptive_cap: the most by which it may be scaled, at least 1. Under `decay` λη scales with it.

    Raises:
        ValueError: a value out of range; a matrix of zeros; weight decay on matrices (it would shrink S).

    Source: the two-sided constraint and its condition are Zhao 2026, arXiv:2601.01306, sections 4.2-4.3 and 5.1, as
    reported by a reader of version 1; the rescaling of nearly degenerate matrices likewise. The closed form of D, the
    policies `decay`, `cap` and `none`, the open gap, audits and the adaptive scale are derived for this project.
    Momentum and Newton-Schulz are Muon's. The paper's own algorithm box, initialisation and weight decay were not seen.
    """

    traceable = False  # audits and policies ask the host
    writes_whole = True
    """A step reads the whole weight: with sharded weights the owner of a matrix writes it too."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        *,
        radius: float = 1.0,
        policy: Policy = "decay",
        decay: float = 1.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        coefficients: str = "jordan",
        steps: int | None = None,
        dtype: torch.dtype | None = None,
        initialize: bool = False,
        open_gap: float | None = None,
        audit_every: int = 100,
        adaptive: bool = False,
        adaptive_cap: float = 4.0,
        maximize: bool = False,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        self._forget()
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
            "policy": policy,
            "decay": decay,
            "initialize": initialize,
            "open_gap": open_gap,
            "audit_every": audit_every,
            "adaptive": adaptive,
            "adaptive_cap": adaptive_cap,
        }
        super().__init__(params, defaults, process_group=process_group)

    # -- groups

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch's optimizers do, and rescale its matrices if it says `initialize`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["algorithm"] != "adamw" and group["initialize"]:
            for parameter in group["params"]:
                self._initialize(parameter, group)

    @torch.no_grad()
    def _initialize(self, parameter: Tensor, group: Group) -> None:
        values = parameter
        if is_shared(parameter):
            from internist.optim.distributed import overwrite, whole

            values = whole(parameter)
        for view in matrix_views(values, values, group):
            radius = spectral_radius(view.shape, group["radius"])
            share = group["open_gap"]
            start = spectral_init(view, radius) if share is None else open_gap_init(view, radius, share)
            view.copy_(start.matrices)
        if is_shared(parameter):
            overwrite(parameter, values)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group["algorithm"] != "adamw":
            check_pair_keeping(group, get_args(Policy))

    # -- state

    def _state_of(self, parameter: Tensor, group: Group) -> dict[str, Any]:
        state = super()._state_of(parameter, group)
        if "u" not in state:
            state.update(new_state(parameter, group))
        return state

    def _forget(self) -> None:
        """Drop what the host knows of the state: it is read again where it is needed."""
        self._known: PairKeeper | None = None
        self._stepped = _Stepped()

    @property
    def _keeper(self) -> PairKeeper:
        if self._known is None:
            self._known = PairKeeper(self.state)
        return self._known

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, as `Muon` does.

        Raises:
            ValueError: as `Muon`'s, or the saved pairs are of other matrices than the saved groups cut.
        """
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        saved = [(index, group) for group in state_dict["param_groups"] for index in group["params"]]
        for parameter, (index, group) in zip(own, saved, strict=False):
            state = state_dict["state"].get(index, {})
            if "u" in state:
                expected = new_state(parameter, group)
                if any(state[name].shape != expected[name].shape for name in ("u", "v")):
                    what = f"{tuple(state['v'].shape)}, expected {tuple(expected['v'].shape)}"
                    raise ValueError(f"the saved pairs are of other matrices than the parameter's: {what}")
        super().load_state_dict(state_dict)

    # -- the step

    def _single(self, bucket: Bucket) -> Ready | None:
        """The pairs of a bucket whose matrices `frozen_step` steps; None for any other. The same throughout a step."""
        if self._stepped.bucket is not bucket:
            ready = self._keeper.ready(bucket, _shrink(bucket)) if is_large(bucket) else None
            self._stepped.bucket, self._stepped.ready = bucket, ready
        return self._stepped.ready

    def _direction(self, bucket: Bucket) -> Tensor:
        ready = self._single(bucket)
        if ready is None:
            return super()._direction(bucket)
        group, gradient, momentum = bucket.group, bucket.gradients[0], bucket.momenta[0]
        if group["maximize"]:
            gradient = -gradient
        n = torch.empty(momentum.shape, dtype=bucket.dtype)
        removed = [
            frozen_step.projected_direction(*matrix, mu=group["momentum"], nesterov=group["nesterov"])
            for matrix in zip(gradient.unbind(0), momentum.unbind(0), ready.single, n.unbind(0), strict=True)
        ]
        if self._wants_diagnostics:
            self._note_removed(bucket, torch.stack([removed_norm(*factors()) for factors in removed]), n)
        return n

    def _project(self, bucket: Bucket, direction: Tensor) -> Tensor:
        if self._single(bucket) is not None:
            return direction
        n, left, right = projected(direction, self._keeper.ready(bucket, _shrink(bucket)).frozen)
        if self._wants_diagnostics:
            self._note_removed(bucket, removed_norm(left, right), n)
        return n

    def _write(self, bucket: Bucket, d: Tensor) -> None:
        """W <- W − ηλW⊥ − ηS P_u D P_v, then what the policy asks for after a step."""
        group, single = bucket.group, self._single(bucket)
        ready = single or self._keeper.ready(bucket, _shrink(bucket))
        before = stack.weights_of(bucket).clone() if self._wants_diagnostics else None
        decay = group["decay"] if group["policy"] == "decay" else 0.0
        rate = self._rate(bucket, ready.pairs)
        if before is not None:
            self._diagnose_direction(bucket, d, ready, ready.length * rate)
        if single is None:
            self._write_together(bucket, d, ready, rate, decay)
        else:
            rates = rate.flatten().tolist() if isinstance(rate, Tensor) else [rate] * len(d)
            for weight, step, pair, own in zip(bucket.weights[0], d, ready.single, rates, strict=True):
                length = own * pair.radius * ready.shrink
                frozen_step.write(weight, step, pair, length=length, decay=own * decay)
        self._stepped.bucket = self._stepped.ready = None
        self._after(bucket, ready.pairs)
        if before is not None:
            self._diagnose_weights(bucket, before)

    def _write_together(self, bucket: Bucket, d: Tensor, ready: Ready, rate: float | Tensor, decay: float) -> None:
        # with the same product: the decay takes from S uvᵀ what is put back here
        left, right = complement_factors(d, ready.frozen, extra=decay / ready.shrink, stacked=bucket.stacked)
        length = ready.length * rate
        keep = 1.0 - rate * decay if decay else 1.0
        if bucket.stacked:
            stack.add(bucket, torch.baddbmm(d.to(left.dtype), left, right, beta=-1.0).mul_(length), keep)
            return
        left = left * length
        cut = 0
        for weight, step in zip(bucket.weights, bucket.pieces(d), strict=True):
            own = slice(cut, cut + weight.shape[0])
            cut = own.stop
            add_step(weight, left[own], right[own], step, length[own], keep if isinstance(keep, float) else keep[own])

    def _rate(self, bucket: Bucket, pairs: Pairs) -> float | Tensor:
        """η: one number for all matrices of the bucket, or (B, 1, 1)."""
        group, lr = bucket.group, learning_rate(bucket.group)
        if not (isinstance(lr, Tensor) or group["adaptive"] or group["policy"] == "cap"):
            return lr
        rate = torch.ones_like(pairs.radius) * (lr.to(pairs.radius) if isinstance(lr, Tensor) else lr)
        if group["adaptive"]:
            rate = rate * gather(self.state, bucket, "factor")
        if group["policy"] == "cap":
            below = self._keeper.below(bucket, pairs, rounds=CAP_ROUNDS)
            free = gather(self.state, bucket, "fallen") > 0  # those are retracted instead
            capped = torch.where(free, rate, capped_rate(rate, below.sigma, pairs.radius))
            self._keeper.count(bucket, capped < rate)
            scatter(self.state, bucket, "second", below.v)
            rate = capped
        if group["adaptive"]:
            scatter(self.state, bucket, "rate", rate)
        return rate.view(-1, 1, 1)

    def _after(self, bucket: Bucket, pairs: Pairs) -> None:
        """Retract and audit, where it is time to."""
        policy = bucket.group["policy"]
        if policy == "retract" or (policy != "none" and self._keeper.has_fallen(bucket)):
            self._keeper.retract(bucket, pairs)
        if step_of(self.state, bucket) % bucket.group["audit_every"] == 0:
            self._keeper.audit(bucket)

    # -- the adaptive condition

    @torch.no_grad()
    def feed_gains(self, gains: Mapping[Tensor, float | Tensor]) -> None:
        """Tell how much the inputs of each layer felt of its latest update. Experimental.

        The learning rate of the next steps is the group's times min(adaptive_cap, 1/a), where a is the gain over the
        update's RMS-to-RMS operator norm: an update is made longer when inputs lie where it does little, so that what
        they feel is ηc. See `complement.adaptive_factor`.

        Args:
            gains: parameter -> RMS(ΔW x) / RMS(x) over the inputs x of its layer, ΔW being the latest update. Numbers,
                or 0-d tensors, which are not read by the host. One that is not positive and finite resets to 1.

        Raises:
            ValueError: a parameter that is not in a group with adaptive=True, or has not been stepped.
        """
        groups = {p: group for group in self.param_groups if group.get("adaptive") for p in group["params"]}
        for parameter, gain in gains.items():
            group, state = groups.get(parameter), self.state.get(parameter, {})
            if group is None or group["algorithm"] == "adamw" or "rate" not in state:
                shape = tuple(parameter.shape)
                raise ValueError(f"expected a stepped matrix of a group with adaptive=True, got a parameter of {shape}")
            fan_in = state["v"].shape[1]
            fan_out = state["u"].numel() / state["v"].shape[0]
            norm = (fan_in / fan_out) ** 0.5 * state["rate"] * state["radius"]
            alignment = torch.as_tensor(gain, dtype=norm.dtype, device=norm.device) / norm
            state["factor"].copy_(adaptive_factor(alignment, group["adaptive_cap"]))

    # -- what it knows

    def _note_removed(self, bucket: Bucket, removed: Tensor, kept: Tensor) -> None:
        """Note the share of directions that a projection took away, (B,) norms of it, and left, (B, m, n)."""
        rest = linalg.vector_norm(kept, dim=(1, 2), dtype=removed.dtype)
        whole = torch.hypot(removed, rest)
        share = torch.where(whole == 0, whole, removed / whole)
        self._note(bucket, "optimizer.removed_share", share.to(torch.float32))

    def _diagnose_direction(self, bucket: Bucket, d: Tensor, ready: Ready, length: Tensor) -> None:
        """Note what is known of D, and of the update it makes at that length."""
        residual = complement_residual(d, ready.pairs.u, ready.pairs.v).to(torch.float32)
        length = length.flatten().to(torch.float32)
        side = min(bucket.fan_out, bucket.fan_in)
        image = norm_band(bucket.group["coefficients"], bucket.group["steps"], side=side)
        self._note(bucket, "optimizer.effective_lr", length)
        self._note(bucket, "optimizer.update_norm_low", length * image.low, worst=torch.minimum)
        self._note(bucket, "optimizer.update_norm_high", length * image.high)
        self._note(bucket, "optimizer.orthogonality", residual)

    def _diagnose_weights(self, bucket: Bucket, before: Tensor) -> None:
        """Note what the step did to the weights. Nothing that later steps read is changed."""
        pairs, weights = gather_pairs(self.state, bucket), stack.weights_of(bucket)
        change = weights - before
        seed = step_of(self.state, bucket)
        net = warm_pair(change, pairs.second, rounds=NET_ROUNDS, seed=seed, batched=bucket.stacked).sigma
        gap = 1.0 - self._keeper.below(bucket, pairs).sigma / pairs.radius
        audit = pair_residual(weights, pairs.u, pairs.v, pairs.radius)
        self._note(bucket, "optimizer.gap", gap.to(torch.float32), worst=torch.minimum)
        self._note(bucket, "optimizer.audit", audit.to(torch.float32))
        self._note(bucket, "optimizer.net_update", net.to(torch.float32))
        self._note(bucket, "optimizer.firings", gather(self.state, bucket, "firings").to(torch.float32))

    def describe(self) -> list[dict[str, Any]]:
        """One row per parameter, as `Muon` has, with the radius c that each of its matrices keeps, once stepped."""
        rows = super().describe()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for row, parameter in zip(rows, parameters, strict=True):
            state = self.state.get(parameter, {})
            if "radius" in state:
                count, fan_in = state["v"].shape
                per_c = (state["u"].numel() / count / fan_in) ** 0.5
                row["radius"] = [round(radius / per_c, 6) for radius in state["radius"].tolist()]
        return rows


class _Stepped(threading.local):
    """The bucket that a thread steps, and its pairs if `frozen_step` steps it."""

    bucket: Bucket | None = None
    ready: Ready | None = None


def _shrink(bucket: Bucket) -> float:
    """What D is multiplied by so that its norm is at most one."""
    return 1.0 / longest(bucket.group["coefficients"], bucket.group["steps"], bucket.dtype)
