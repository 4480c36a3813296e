"""Planning: the rules applied to every parameter of one model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from torch import nn

from internist.mup.family import Family, against_model, against_size, unplaced
from internist.mup.own_scales import Attention, OwnScales, own_scales
from internist.mup.planning import Init, Placed, Plan, PlanRow
from internist.mup.rules import (
    FEATURE_LEARNING,
    OPTIMIZERS,
    PARAMETRIZATIONS,
    SAME,
    Branch,
    Optimizer,
    Parametrization,
    Ratios,
    Role,
    Rule,
    folded,
    optimizer_named,
    router_rule,
    rule,
)
from internist.mup.structure import Part, Structure, structure
from internist.mup.words import reason_of

Head = Literal["multiplier", "weights"]

_EMBEDDING_STD = 1.0


def plan(
    model: nn.Module,
    *,
    base: nn.Module | Sequence[int | None],
    optimizer: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    adamw_lr: float | None = None,
    init: Init | None = "normal",
    init_std: float | Mapping[str, float] | None = None,
    radius: float = 1.0,
    parametrization: Parametrization = "mup",
    branch_depth: int | None = None,
    roles: Mapping[str, str] | None = None,
    output: str | bool | None = None,
    head: Head = "multiplier",
    attention: Attention = "own",
    probe: Any = None,
) -> Plan:
    """Plan a model's initialisation, multipliers and parameter groups, from hyperparameters that a base model has.

    Args:
        model: the model to train. Nothing is changed before `Plan.apply`.
        base: a smaller model of the same family (same parameters, smaller or fewer blocks), whose shapes say what
            grows; or its (width, depth), where all widths grow alike. A depth of None is the model's own.
        optimizer: a name in `OPTIMIZERS`. Of those that step matrices alone everything else is AdamW's.
        lr: the base model's learning rate.
        weight_decay: the base model's, of matrices and embeddings; gains and biases are not decayed.
        eps: the base model's, of AdamW.
        adamw_lr: the base model's learning rate of what a matrix optimizer leaves to AdamW; None: `lr`.
        init: `normal`; `spectral`: hidden matrices are Gaussian, rescaled to spectral norm
            radius · √(fan_out / fan_in), the rest is normal; None: weights stay as they are.
        init_std: the base model's standard deviation of matrices and embeddings; or role to it, of input, hidden,
            output. What is not given: what the weights of a base model have; without, 1 / √fan_in, and of embeddings
            that are not tied 1.
        radius: ‖W‖_R = √(fan_in / fan_out) ‖W‖₂ of hidden matrices under the spectral initialisation.
        parametrization: `mup`; `u_mup`; `standard` or `ntk` to compare with.
        branch_depth: transformations in each residual branch (1, or 2 and more), where counting its matrices is wrong.
        roles: regular expression that matches the whole name of a parameter or module, to its role: input (or
            embedding), hidden, output (or head), gain, bias, router; of modules also `block`, and `branch`: its output
            is what a residual branch adds.
        output: name of the head's module; False: there is none, or it multiplies its output itself.
        head: `multiplier`: the head's output is multiplied. `weights`: its weights and learning rate are smaller
            instead, for code that uses them without calling the module, as fused losses do.
        attention: `own`: its logits are the model's own matter. `scale`: where heads are wider than the base model's,
            their queries are multiplied so that logits are divided by the dimension of a head and not by its root.
            One forward of model and base tells heads, and what is multiplied already.
        probe: what model and base are called with for that: a tensor, a tuple of arguments, a mapping of keywords.
            None: under `scale` a few tokens or vectors, by the model's first layer; else no forward is looked at.
            Where one is, a factor that the model has on its logits is found too, and left out of the plan's.

    Returns:
        The plan. Its numbers depend on shapes alone, with a base model on the RMS of its weights, and with a probe on
        what a forward shows.

    Raises:
        ValueError: an argument out of range; a base that is larger or of another family; roles, width or branches that
            the module tree does not tell, with the module and the choices.

    Source: `internist.mup.rules`, row by row.
    """
    known = optimizer_named(optimizer)
    _check(lr=lr, weight_decay=weight_decay, eps=eps, adamw_lr=adamw_lr, radius=radius)
    for what, value, allowed in (
        ("parametrization", parametrization, PARAMETRIZATIONS),
        ("init", init, (*get_args(Init), None)),
        ("head", head, get_args(Head)),
        ("attention", attention, get_args(Attention)),
    ):
        if value not in allowed:
            raise ValueError(f"expected {what} to be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if adamw_lr is not None and not known.is_matrix_optimizer:
        raise ValueError(f"adamw_lr is for what a matrix optimizer leaves to AdamW, and {optimizer} steps everything")
    stds = _stds(init_std)
    shape = structure(model, roles=roles, output=output, branch_depth=branch_depth)
    family = against_model(shape, base) if isinstance(base, nn.Module) else against_size(shape, base)
    _require_clear(shape, family, parametrization, output)
    planner = _Planner(known, parametrization, family, head, init, radius, stds)
    own = OwnScales({})
    if probe is not None or attention == "scale":
        watched = [name for name, placed in planner.multipliers(shape).items() if placed.factor != 1.0]
        own = own_scales(shape, base, probe, attention=attention, watched=watched)
        if head == "weights" and own.logits != 1.0:
            raise ValueError("the model multiplies its logits itself: head='weights' is not possible, say 'multiplier'")
        planner = replace(planner, own_logits=own.logits if parametrization in FEATURE_LEARNING else 1.0)
    if adamw_lr is None:
        adamw_lr = lr
    rows = tuple(
        planner.row(part, lr=adamw_lr if planner.stepper(part).name != known.name else lr, wd=weight_decay, eps=eps)
        for part in shape.parts
    )
    placed = {name: p for name, p in planner.multipliers(shape).items() if p.factor != 1.0}
    notes = _notes(shape, family) if attention == "own" else ()
    queries = own.queries if parametrization in FEATURE_LEARNING else {}
    return Plan(model, optimizer, parametrization, init, rows, placed, family.base, (*notes, *own.notes), queries)


@dataclass(frozen=True, slots=True)
class _Planner:
    """The rules for one family."""

    optimizer: Optimizer
    parametrization: Parametrization
    family: Family
    head: Head
    init: Init | None
    radius: float
    stds: Mapping[str, float]
    own_logits: float = 1.0
    """By how much the model's own factor of its logits is its base's."""

    def stepper(self, part: Part) -> Optimizer:
        """Who steps a parameter."""
        is_own = part.role in ("hidden", "router") or not self.optimizer.is_matrix_optimizer
        return self.optimizer if is_own else OPTIMIZERS["adamw"]

    def rule(self, part: Part) -> Rule:
        """The rule of a parameter."""
        name = self.stepper(part).name
        branch = cast(Branch, 0 if part.block is None else part.branch.transformations if part.branch else 2)
        if part.role == "router":
            return router_rule(name, branch=branch, parametrization=self.parametrization)
        if part.role in ("input", "output"):
            found = rule(name, cast(Role, part.role), parametrization=self.parametrization)
            return folded(found) if part.role == "output" and self.head == "weights" else found
        return rule(name, cast(Role, part.role), branch=branch, parametrization=self.parametrization)

    def row(self, part: Part, *, lr: float, wd: float, eps: float) -> PlanRow:
        """What is said of a parameter whose base has these hyperparameters."""
        found, ratios = self.rule(part), self.family.ratios[part.name]
        keeps_norm = found.optimizer == "muon_plus_plus"
        is_spectral = self.init == "spectral" and part.role == "hidden"
        std = None if found.init_variance is None else self._base_std(part) * math.sqrt(found.init_variance.at(ratios))
        alpha = found.multiplier.at(ratios)
        if part.is_tied or (part.role == "output" and self.head == "multiplier"):
            alpha = self._head(part).factor
        return PlanRow(
            part.name,
            tuple(part.tensor.shape),
            "tied" if part.is_tied else part.role,
            found.optimizer,
            lr=lr * found.lr.at(ratios),
            weight_decay=0.0 if found.weight_decay is None or keeps_norm else wd * found.weight_decay.at(ratios),
            eps=None if found.eps is None else eps * found.eps.at(ratios),
            init_std=None if is_spectral else std,
            init_norm=self.radius * math.sqrt(part.fan_out / part.fan_in) if is_spectral else None,
            multiplier=alpha,
            reason=reason_of(part, found, ratios, keeps_norm=keeps_norm, spectral=is_spectral),
            layout=part.layout,
            row_blocks=part.row_blocks,
        )

    def multipliers(self, shape: Structure) -> dict[str, Placed]:
        """Module to its multiplier, of branches and heads."""
        placed: dict[str, Placed] = {}
        for branch in shape.branches:
            found = rule(
                self.optimizer.name, "hidden", branch=cast(Branch, branch.transformations),
                parametrization=self.parametrization,
            )  # fmt: skip
            placed[branch.module] = Placed(found.multiplier.at(Ratios(depth=self.family.depth)))
        for part in shape.parts:
            if "output" in part.roles and self.head == "multiplier":
                placed[part.roles["output"]] = self._head(part)
        return placed

    def _head(self, part: Part) -> Placed:
        found = rule(self.stepper(part).name, "output", parametrization=self.parametrization)
        ratios = self.family.ratios[part.name]
        if part.is_tied:
            ratios = Ratios(ratios.fan_out, 1.0, ratios.longest, ratios.depth)
        if self.head == "weights" and part.is_tied and found.multiplier != SAME:
            raise ValueError(
                f"{part.name!r} is embedding and head at once, which have different scales: head='weights' is not "
                "possible, it needs head='multiplier'"
            )
        return Placed(found.multiplier.at(ratios) / self.own_logits, after_bias=False)

    def _base_std(self, part: Part) -> float:
        """The standard deviation that the base model's counterpart is drawn with."""
        role = "hidden" if part.role == "router" else part.role
        if role in self.stds:
            return self.stds[role]
        if part.name in self.family.rms:
            return self.family.rms[part.name]
        ratios = self.family.ratios[part.name]
        if part.is_tied:
            return 1.0 / math.sqrt(part.fan_out / ratios.fan_out)
        if part.role == "input" and part.is_table:
            return _EMBEDDING_STD
        return 1.0 / math.sqrt(part.fan_in / ratios.fan_in)


def _check(**values: float | None) -> None:
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"expected {name} to be a number, got {value!r}")
        if not (math.isfinite(value) and value >= 0.0) or (name == "radius" and value == 0.0):
            raise ValueError(f"expected {name} of at least 0, got {value}")


def _stds(init_std: float | Mapping[str, float] | None) -> dict[str, float]:
    """Role to the base's standard deviation."""
    roles = ("input", "hidden", "output")
    if init_std is None:
        return {}
    if not isinstance(init_std, Mapping):
        _check(init_std=init_std)
        return dict.fromkeys(roles, float(init_std))
    names = {"embedding": "input", "head": "output"}
    wrong = [role for role in init_std if names.get(role, role) not in roles]
    if wrong:
        raise ValueError(f"init_std: expected roles of {', '.join(roles)}, got {wrong[0]!r}")
    _check(**{f"init_std[{role!r}]": std for role, std in init_std.items()})
    return {names.get(role, role): float(std) for role, std in init_std.items()}


def _require_clear(shape: Structure, family: Family, parametrization: str, output: str | bool | None) -> None:
    """Refuse a model of which the rules need to know more than the tree tells."""
    for part in shape.parts:
        if not part.role:
            raise ValueError(unplaced(part))
    if parametrization not in FEATURE_LEARNING:
        return
    if family.depth != 1.0 and shape.unclear:
        block, why = next(iter(shape.unclear.items()))
        pattern = block.rpartition(".")[0].replace(".", r"\.") + r"\.\d+\.(name|name)"
        raise ValueError(
            f"what block {block!r} adds to its stream is not clear: {why}. Say which modules' outputs are added: "
            f"roles={{{pattern!r}: 'branch'}}"
        )
    if not shape.outputs and output is not False:
        raise ValueError(
            "no output head was found among the linear layers outside the blocks: say output='name' of its module, or "
            "output=False where there is none or the model multiplies its output itself"
        )


def _notes(shape: Structure, family: Family) -> tuple[str, ...]:
    """What is left to the model's own code."""
    notes = []
    if family.even != 1.0 and any("quer" in part.note or "attn" in part.name for part in shape.parts):
        notes.append(
            "Attention's logits are the model's own matter: where the dimension of a head grows with width, they have "
            "to be divided by it (times a constant), not by its square root; where only the number of heads grows, "
            "nothing is needed."
        )
    return tuple(notes)
