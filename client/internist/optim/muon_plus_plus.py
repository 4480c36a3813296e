"""Muon++: Muon inside the two-sided complement of each weight's top singular pair, which it leaves where it is."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from internist.optim import frozen_step, pair_notes, stack
from internist.optim.arrivals import has_numbers
from internist.optim.bucket import Bucket, Group
from internist.optim.coefficients import longest
from internist.optim.complement import (
    adaptive_factor,
    capped_rate,
    projected,
    projected_in_turn,
    put_back,
    removed_norm,
)
from internist.optim.constraints import spectral_radius
from internist.optim.core import MatrixOptimizer, is_shared, learning_rate
from internist.optim.frozen_step import is_large
from internist.optim.group_checks import check_pair_keeping
from internist.optim.matrices import matrix_views
from internist.optim.pair_keeper import PairKeeper
from internist.optim.pair_state import Pairs, Ready, gather, gather_pairs, new_state, scatter, step_of
from internist.optim.pair_writes import write_each, write_retracted, write_together
from internist.optim.retraction import is_due
from internist.optim.rounding import rounded
from internist.optim.shared_rounds import Held, retract
from internist.optim.spectral_init import set_radius

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

logger = logging.getLogger("internist")

Policy = Literal["retract", "decay", "cap", "none"]

CAP_ROUNDS = 4
CAP_ROUNDING = 1e-6
"""Relative, of a rate that is turned into a share of its radius and back: less is no cap."""
REMOVED = "optimizer.removed_share"


class MuonPlusPlus(MatrixOptimizer):
    """Muon++, and AdamW for the groups that say `algorithm="adamw"`.

    Two numbers say what a matrix W (fan_out, fan_in) does, in units of S₀ = √(fan_out / fan_in): its radius S = c S₀ is
    the norm that it keeps, and η S₀ is the length of a step, whatever c is. With its top singular vectors u and v,

        W <- W − η S₀ D,  D = msign(P_u M P_v),  P_u = I − uuᵀ,  P_v = I − vvᵀ

    leaves u, v and S alone, to first order where other singular values reach S. What is done about those is the policy:

        retract  W <- W S / ‖W‖₂ every few steps, and u and v are followed as they turn: the default
        decay    W⊥ <- (1 − η'λ) W⊥ as well, η' = η S₀ / S, λ ≥ 1: σ₂ never passes S, whatever the gradients. What is
                 trained shrinks below S / λ, beside one direction that is not trained and alone has norm S; logged
        cap      η' <- min(η', 0.95 (1 − σ₂/S)): exact too, but steps shrink to nothing once the gap is used up
        none     nothing: the norm passes S when the gap is used up

    Under all but `retract` u and v stay where they are. `optimizer.firings` counts retractions and capped steps.

    Fresh weights are set to S when they are added. Trained ones keep the norm they have as their own S, at any factor
    from c; a warning tells it where that is far, and `drive` takes them to c slowly. A weight that is replaced between
    steps (averaged, loaded) is noticed at an audit, within `audit_every` steps: its pair is found anew, and it keeps
    the norm it came with. Under `retract` a matrix of zeros steps as under plain Muon until its norm reaches S, and is
    held there.

    A matrix with one row or one column is all top pair, and never moves once held. A momentum of zeros gives an update
    of zeros; one of rank one gives its own direction; NaN or infinity in a gradient makes the matrix NaN, as in Muon.
    bfloat16 weights are stepped in float32 and written with stochastic rounding, which takes no random numbers from
    torch's generators.

    Args:
        params: parameters or groups of them. Matrices, stacks and convolutions as in `Muon`.
        lr: η, the spectral norm of one update over S₀. 0-d tensors are accepted.
        radius: c, the norm that weights keep over S₀, positive.
        policy: one of the four above.
        decay: λ of the `decay` policy, at least 1; the complement shrinks by η λ / c a step, which must not exceed 1.
        momentum, nesterov, coefficients, steps, dtype, maximize: as in `Muon`. D is divided by the greatest singular
            value its coefficient set can make, so that ‖D‖₂ ≤ 1.
        initialize: rescale each matrix to S when it is added, in place. None does so where it looks drawn: where no
            singular value is above what independent entries make. One within 2 % of S is left as it is, so that
            resuming a run changes nothing.
        open_gap: ρ in (0, 1): `initialize=True` also scales what lies beneath the top pair to ρS (see `open_gap_init`).
        drive: share of the logarithm of S / (c S₀) that goes in a step, in [0, 1): 0.001 takes a weight from five times
            its radius to within 2 % in 4,400 steps. Under `retract` alone.
        audit_every: steps between two audits, at least 1.
        adaptive: scale η by the gains fed to `feed_gains`. Experimental.
        adaptive_cap: the most by which it may be scaled, at least 1. Under `decay` λη scales with it.

    Raises:
        ValueError: a value out of range; a matrix of zeros, but under `retract`; weight decay on matrices (it would
            shrink S).

    Source: the two-sided constraint and its condition are Zhao 2026, arXiv:2601.01306, sections 4.2-4.3 and 5.1, as
    reported by a reader of version 1. The closed form of D, the policies, the open gap, audits and the adaptive scale
    are derived for this project.
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
        radius: float = 2.0,
        policy: Policy = "retract",
        decay: float = 1.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        coefficients: str = "jordan",
        steps: int | None = None,
        dtype: torch.dtype | None = None,
        initialize: bool | None = None,
        open_gap: float | None = None,
        drive: float = 0.0,
        audit_every: int = 100,
        adaptive: bool = False,
        adaptive_cap: float = 4.0,
        maximize: bool = False,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        self._forget()
        self._told_of_decay = False
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
            "drive": drive,
            "audit_every": audit_every,
            "adaptive": adaptive,
            "adaptive_cap": adaptive_cap,
        }
        super().__init__(params, defaults, process_group=process_group)

    # -- groups

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch's optimizers do, and set its fresh matrices to their radius."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["algorithm"] == "adamw":
            return
        if group["policy"] == "decay" and not self._told_of_decay:
            self._told_of_decay = True
            logger.warning(
                "Muon++: under policy='decay' what is trained of a weight shrinks below its radius, and an untrained "
                "direction alone keeps the norm; policy='retract' holds the norm of what is trained"
            )
        if group["initialize"] is not False:
            for parameter in group["params"]:
                self._initialize(parameter, group)

    @torch.no_grad()
    def _initialize(self, parameter: Tensor, group: Group) -> None:
        if not has_numbers(parameter):
            return
        values = parameter
        if is_shared(parameter):
            from internist.optim.distributed import overwrite, whole

            values = whole(parameter)
        changed = [set_radius(view, group) for view in matrix_views(values, values, group)]
        if is_shared(parameter) and any(changed):
            overwrite(parameter, values)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group["algorithm"] != "adamw":
            check_pair_keeping(group, get_args(Policy))

    # -- state

    def _state_of(self, parameter: Tensor, group: Group) -> dict[str, Any]:
        state = super()._state_of(parameter, group)
        if "block" not in state:
            for name, value in new_state(parameter, group).items():
                state.setdefault(name, value)
        return state

    def _forget(self) -> None:
        """Drop what the host knows of the state: it is read again where it is needed."""
        self._known: PairKeeper | None = None
        self._stepped = _Stepped()
        self._met: set[Tensor] = set()
        """Parameters whose whole weights an owner has seen since."""

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
                if any(state[name].shape != expected[name].shape for name in ("u", "v", "block") if name in state):
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
            norms = torch.stack([removed_norm(*factors()) for factors in removed])
            self._note(bucket, REMOVED, pair_notes.removed_share(norms, n))
        return n

    def _project(self, bucket: Bucket, direction: Tensor) -> Tensor:
        if self._single(bucket) is not None:
            return direction
        frozen = self._keeper.ready(bucket, _shrink(bucket)).frozen
        if bucket.stacked and bucket.group["policy"] == "retract":
            n, left, right = projected_in_turn(direction, frozen)
        else:
            n, left, right = projected(direction, frozen)
        if self._wants_diagnostics:
            norms = removed_norm(torch.cat(left, dim=2), torch.cat(right, dim=1))
            self._note(bucket, REMOVED, pair_notes.removed_share(norms, n))
        return n

    def _write(self, bucket: Bucket, d: Tensor) -> None:
        """W <- W − η S₀ P_u D P_v, and what the policy asks for."""
        if bucket.weights[0].dtype.itemsize < torch.float32.itemsize:
            self._write_narrow(bucket, d)
            return
        group, single = bucket.group, self._single(bucket)
        ready = single or self._keeper.ready(bucket, _shrink(bucket))
        before = stack.weights_of(bucket).clone() if self._wants_diagnostics else None
        rate = self._rate(bucket, ready.pairs)
        if before is not None:
            self._note_all(bucket, pair_notes.of_direction(bucket, d, ready, ready.length * rate))
        self._stepped.bucket = self._stepped.ready = None
        audits = step_of(self.state, bucket) % group["audit_every"] == 0
        if audits:
            self._keeper.audit(bucket)
            ready = self._keeper.ready(bucket, _shrink(bucket))
        if group["policy"] == "retract":
            write_retracted(self.state, ready, bucket, d, rate, exact=audits)
        elif single is None:
            write_together(ready, bucket, d, rate)
        else:
            write_each(ready, bucket, d, rate)
        if before is not None:
            self._note_all(bucket, pair_notes.of_weights(self.state, self._keeper, bucket, before))

    def _needs_whole(self, bucket: Bucket, *, shares: bool) -> bool:
        """At the first step that this process sees of a parameter, where pairs are found; at audits; at rounds that
        ranks do not share; always where a step of one length for all does not write it."""
        (parameter,), group = bucket.params, bucket.group
        is_new = parameter not in self._met
        self._met.add(parameter)
        return (
            is_new
            or group["policy"] != "retract"
            or bucket.weights[0].dtype.itemsize < torch.float32.itemsize
            or min(bucket.fan_out, bucket.fan_in) == 1
            or step_of(self.state, bucket) % group["audit_every"] == 0
            or group["adaptive"]
            or isinstance(learning_rate(group), Tensor)
            or (not shares and is_due(bucket, step_of(self.state, bucket)))
        )

    def _may_show(self, bucket: Bucket, *, shares: bool) -> bool:
        """Not where ranks share a round, whose sums are rounded otherwise than products of whole weights."""
        return not (shares and is_due(bucket, step_of(self.state, bucket)))

    def _change_of(self, bucket: Bucket) -> float | Tensor | None:  # noqa: ARG002
        """Nothing is promised of D alone: a round follows."""
        return None

    def _diagnose(self, bucket: Bucket, d: Tensor) -> None:
        """What is known of a direction whose weight is not whole here."""
        ready = self._keeper.ready(bucket, _shrink(bucket))
        self._note_all(bucket, pair_notes.of_direction(bucket, d, ready, ready.length * learning_rate(bucket.group)))

    def _write_part(self, bucket: Bucket, d: Tensor) -> None:
        """W <- W − η S₀ D, entry by entry: between two rounds nothing else is done."""
        length = spectral_radius((bucket.fan_out, bucket.fan_in)) * _shrink(bucket) * learning_rate(bucket.group)
        stack.step_along(bucket, d, length)

    def _end_parts(self, parts: Sequence[Held], add_up: Callable[[Tensor], None]) -> None:
        due = [part for part in parts if is_due(part.bucket, step_of(self.state, part.bucket))]
        if due:
            retract(self.state, due, add_up)

    def _write_narrow(self, bucket: Bucket, d: Tensor) -> None:
        """The same of weights of two bytes: in float32, and rounded once, at random."""
        wide = replace(bucket, weights=[weight.float() for weight in bucket.weights])
        self._write(wide, d)
        made = stack.weights_of(wide)
        if bucket.group["policy"] != "retract":  # what rounding did to the pair would add up
            pairs = gather_pairs(self.state, bucket)
            made = put_back(made, pairs.u, pairs.v, pairs.radius)
        narrow = bucket.weights[0].dtype
        seed = step_of(self.state, bucket)
        parts = rounded(made, seed) if narrow == torch.bfloat16 else made.to(narrow)
        torch._foreach_copy_(bucket.weights, list(bucket.pieces(parts)))

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
            c = pairs.radius / spectral_radius((bucket.fan_out, bucket.fan_in))
            capped = capped_rate(rate / c, below.sigma, pairs.radius) * c
            self._keeper.count(bucket, capped < rate * (1.0 - CAP_ROUNDING))
            scatter(self.state, bucket, "second", below.v)
            rate = capped
        if group["adaptive"]:
            scatter(self.state, bucket, "rate", rate)
        return rate.view(-1, 1, 1)

    # -- the adaptive condition

    @torch.no_grad()
    def feed_gains(self, gains: Mapping[Tensor, float | Tensor]) -> None:
        """Tell how much the inputs of each layer felt of its latest update. Experimental.

        The learning rate of the next steps is the group's times min(adaptive_cap, 1/a), where a is the gain over the
        update's RMS-to-RMS operator norm: an update is made longer when inputs lie where it does little, so that what
        they feel is η. See `complement.adaptive_factor`.

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
            norm = state["rate"]  # RMS to RMS: a step's length is in units of what has one
            alignment = torch.as_tensor(gain, dtype=norm.dtype, device=norm.device) / norm
            state["factor"].copy_(adaptive_factor(alignment, group["adaptive_cap"]))

    # -- what it knows

    def _note_all(self, bucket: Bucket, notes: Iterable[tuple[str, Tensor]]) -> None:
        for metric, values in notes:
            self._note(bucket, metric, values, worst=torch.minimum if metric in pair_notes.LEAST else torch.maximum)

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
