"""A plan: what the rules say of every parameter of one model, and doing it."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn

from internist.model.heads import HeadRows
from internist.model.roles import plain_name, unwrap
from internist.mup.initialise import draw_normal, draw_spectral, looks_trained, reset_vector, trained_norm
from internist.mup.mark import mark
from internist.mup.multipliers import multiply, multiply_queries
from internist.mup.rules import OPTIMIZERS
from internist.mup.words import table_of

log = logging.getLogger("internist")

Init = Literal["normal", "spectral"]

STATE_FORMAT = 1
NOT_AS_PLANNED = 0.25
"""How far an RMS may be from the planned std, relatively, before it is told: far above what sampling does."""

_GROUP_ROLES = {"input": "embedding", "output": "head", "router": "hidden"}


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What a plan says of one parameter."""

    parameter: str
    shape: tuple[int, ...]
    role: str
    """input, hidden, output, gain, bias, router; `tied` is an embedding that is the head's weight too."""
    optimizer: str
    """Whose rule it is: a name in `OPTIMIZERS`."""
    lr: float
    weight_decay: float
    eps: float | None
    """None: the optimizer's own, or it has none."""
    init_std: float | None
    """None: not drawn (gains, biases), or drawn to `init_norm`."""
    multiplier: float
    """Of the branch that it is in, or of the head that it is."""
    reason: str
    init_norm: float | None = None
    """Spectral norm of each of its matrices, under the spectral initialisation."""
    layout: str = "out_in"
    row_blocks: int | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A multiplier of a module's output."""

    factor: float
    after_bias: bool = True


@dataclass(frozen=True, slots=True)
class Queries:
    """A multiplier of the queries that a module makes."""

    factor: float
    rows: HeadRows | None = None
    """Which of its outputs they are; None: all."""


@dataclass(eq=False)
class Plan:
    """What to do with every parameter of a model, so that it trains as its base model does.

    Made by `plan`. `str(plan)` is `plan.table()`.
    """

    model: nn.Module
    optimizer: str
    parametrization: str
    init: Init | None
    rows: tuple[PlanRow, ...]
    multipliers: dict[str, Placed]
    """Module to what its output is multiplied by, for those where it is not one."""
    base: str
    """The base in words."""
    notes: tuple[str, ...] = field(default=())
    """What the rules ask for that a plan cannot do by itself."""
    queries: dict[str, Queries] = field(default_factory=dict)
    """Module to what the queries that it makes are multiplied by, for those where it is not one."""

    def apply(self, *, redraw: bool = False) -> list[dict[str, Any]]:
        """Initialise the weights, set the multipliers, and return the optimizer's parameter groups.

        Again, it draws the weights anew and sets the same multipliers once. Frozen weights are never drawn, and trained
        ones are refused: norms whose gains differ, or without norms hidden matrices with a singular value above what
        independent entries make. With `init=None` weights stay as they are; those that are not as planned are logged.
        Apply before the monitor, `torch.compile` and data parallelism.

        Args:
            redraw: draw weights anew that look trained.

        Returns:
            As `groups`.

        Raises:
            ValueError: weights are to be drawn and have no storage (meta device), or look trained.
        """
        if self.init is None:
            self._tell_departures()
        else:
            self._require_storage()
            if not redraw and (name := self._trained()):
                raise ValueError(
                    f"{name!r} looks trained, or loaded, and is to be drawn anew: plan(init=None) leaves weights as "
                    "they are, apply(redraw=True) draws them"
                )
            self._initialise()
        self.set_multipliers()
        return self.groups()

    def set_multipliers(self) -> None:
        """Set the multipliers alone, in place of those of any earlier plan: when training is resumed."""
        for raw, module in unwrap(self.model).named_modules():
            placed = self.multipliers.get(plain_name(raw), Placed(1.0))
            multiply(module, placed.factor, after_bias=placed.after_bias)
            queries = self.queries.get(plain_name(raw), Queries(1.0))
            multiply_queries(module, queries.factor, queries.rows)
        branches, queries_of = self.multipliers.values(), self.queries.values()
        mark(unwrap(self.model), [*(one.factor for one in branches), *(one.factor for one in queries_of)])

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups: `(name, parameter)` pairs with lr, weight_decay, eps under AdamW, algorithm and role.

        Groups of hidden matrices of the Muon family also say scale, layout and row_blocks (and `adjust_lr_fn` where
        torch.optim.Muon has the scale). Parameters that want no gradient are in none.
        """
        tensors = self._tensors()
        grouped: dict[tuple[Any, ...], list[tuple[str, nn.Parameter]]] = {}
        for row in self.rows:
            if tensors[row.parameter].requires_grad:
                key = (row.role, row.optimizer, row.lr, row.weight_decay, row.eps, row.layout, row.row_blocks)
                grouped.setdefault(key if self._is_matrix_row(row) else (*key[:5], "out_in", None), []).append(
                    (row.parameter, tensors[row.parameter])
                )
        counts: dict[str, int] = {}
        groups = []
        for (role, optimizer, lr, weight_decay, eps, layout, row_blocks), members in grouped.items():
            named = _GROUP_ROLES.get(role, "embedding+head" if role == "tied" else role)
            counts[named] = counts.get(named, 0) + 1
            known = OPTIMIZERS[optimizer]
            group = {
                "params": members,
                "name": named if counts[named] == 1 else f"{named}.{counts[named]}",
                "role": named,
                "algorithm": known.algorithm,
                "lr": lr,
                "weight_decay": weight_decay,
            }
            if eps is not None:
                group["eps"] = eps
            if known.scale is not None:
                group |= {"scale": known.scale, "layout": layout, "row_blocks": row_blocks}
            if known.name == "muon_plus_plus":
                group |= self._radius_of(members)
            if known.torch_scale is not None:
                group["adjust_lr_fn"] = known.torch_scale
            groups.append(group)
        return groups

    def table(self) -> str:
        """Every parameter's row, with the reason for it in words; parameters that are alike in all blocks once."""
        return table_of(self)

    def __str__(self) -> str:
        return self.table()

    def departures(self) -> tuple[str, ...]:
        """The weights whose RMS is not what the plan would draw, a sentence each; weights of zeros are let be."""
        found = []
        tensors = self._tensors()
        for row in self.rows:
            weight = tensors[row.parameter].detach()
            if row.init_std is None or weight.is_meta:
                continue
            rms = float(weight.to(torch.float32).square().mean().sqrt())
            if rms and not math.isclose(rms, row.init_std, rel_tol=NOT_AS_PLANNED):
                found.append(f"{row.parameter} has RMS {rms:.4g}, and the plan's std is {row.init_std:.4g}")
        return tuple(found)

    # -- in checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The plan as numbers and strings, for a checkpoint."""
        return {
            "format": STATE_FORMAT,
            "optimizer": self.optimizer,
            "parametrization": self.parametrization,
            "init": self.init,
            "base": self.base,
            "notes": list(self.notes),
            "rows": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
            "multipliers": {name: [placed.factor, placed.after_bias] for name, placed in self.multipliers.items()},
            "queries": {
                name: {"factor": one.factor, "rows": one.rows and asdict(one.rows)}
                for name, one in self.queries.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a saved plan is this one.

        Raises:
            ValueError: it was made for another model, or says something else; names the first parameter that differs.
        """
        saved = Plan.load(self.model, state)
        for own, other in zip(self.rows, saved.rows, strict=True):
            for item in fields(PlanRow):
                a, b = getattr(own, item.name), getattr(other, item.name)
                same = math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a == b
                if not same and item.name != "reason":
                    raise ValueError(
                        f"the saved plan differs at {own.parameter!r}: {item.name} is {b!r} there, {a!r} here"
                    )
        if saved.multipliers != self.multipliers:
            name = next(n for n in (*self.multipliers, *saved.multipliers)
                        if self.multipliers.get(n) != saved.multipliers.get(n))  # fmt: skip
            here, there = self.multipliers.get(name, Placed(1.0)), saved.multipliers.get(name, Placed(1.0))
            raise ValueError(f"the saved plan differs at {name!r}: multiplier {there.factor} there, {here.factor} here")
        if saved.queries != self.queries:
            name = next(n for n in (*self.queries, *saved.queries) if self.queries.get(n) != saved.queries.get(n))
            is_here, is_there = self.queries.get(name, Queries(1.0)), saved.queries.get(name, Queries(1.0))
            what = f"queries x {is_there.factor} there, {is_here.factor} here"
            raise ValueError(f"the saved plan differs at {name!r}: {what}")

    @staticmethod
    def load(model: nn.Module, state: Mapping[str, Any]) -> "Plan":
        """A saved plan, for the model that it was made for. Its weights are left as they are: `init` is None.

        Raises:
            ValueError: it was made for another model; names the first parameter that differs.
        """
        if state.get("format") != STATE_FORMAT:
            raise ValueError(f"expected a plan of format {STATE_FORMAT}, got {state.get('format')!r}")
        rows = tuple(PlanRow(**{**row, "shape": tuple(row["shape"])}) for row in state["rows"])
        placed = {name: Placed(float(factor), bool(after)) for name, (factor, after) in state["multipliers"].items()}
        queries = {
            name: Queries(float(one["factor"]), HeadRows(**one["rows"]) if one["rows"] else None)
            for name, one in state.get("queries", {}).items()  # plans of before had none
        }
        found = Plan(
            model,
            state["optimizer"],
            state["parametrization"],
            None,
            rows,
            placed,
            state["base"],
            tuple(state["notes"]),
            queries,
        )
        found._require_its_model()
        return found

    def _require_its_model(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        for row in self.rows:
            if row.parameter not in shapes:
                raise ValueError(f"the saved plan is for another model: it has no parameter {row.parameter!r}")
            if shapes[row.parameter] != row.shape:
                what = f"{row.parameter!r} has shape {shapes[row.parameter]} here and {row.shape} there"
                raise ValueError(f"the saved plan is for another model: {what}")
        planned = {row.parameter for row in self.rows}
        extra = [name for name in shapes if name not in planned]
        if extra:
            raise ValueError(f"the saved plan is for another model: it says nothing of parameter {extra[0]!r}")
        modules = {plain_name(raw) for raw, _ in unwrap(self.model).named_modules()}
        lost = [name for name in (*self.multipliers, *self.queries) if name not in modules]
        if lost:
            raise ValueError(
                f"the saved plan is for another model: it has no module {lost[0]!r}, which has a multiplier"
            )

    # -- doing it

    def _tensors(self) -> dict[str, nn.Parameter]:
        return {plain_name(name): tensor for name, tensor in unwrap(self.model).named_parameters()}

    def _radius_of(self, members: Sequence[tuple[str, nn.Parameter]]) -> dict[str, Any]:
        """The norm that Muon++ is to keep of weights that were drawn to one; of others, it keeps its own default."""
        name, tensor = members[0]
        row = next(row for row in self.rows if row.parameter == name)
        if row.init_norm is None:
            return {}
        shape = tensor.shape if tensor.ndim < 4 else (*tensor.shape[:1], math.prod(tensor.shape[1:]))
        fan_out, fan_in = shape[-2:] if row.layout == "out_in" else (shape[-1], shape[-2])
        return {"radius": row.init_norm / math.sqrt(fan_out / (row.row_blocks or 1) / fan_in)}

    def _is_matrix_row(self, row: PlanRow) -> bool:
        return OPTIMIZERS[row.optimizer].scale is not None

    def _require_storage(self) -> None:
        for name, tensor in self._tensors().items():
            if tensor.is_meta:
                raise ValueError(f"{name!r} is on the meta device: give it storage before its weights are drawn")

    def _trained(self) -> str:
        """Name of a parameter that looks trained; empty where none does."""
        norm = trained_norm(unwrap(self.model))
        if norm is not None:
            return norm
        tensors = self._tensors()
        drawn = [row for row in self.rows if row.role == "hidden" and tensors[row.parameter].requires_grad]
        looked = (
            row.parameter
            for row in drawn
            if looks_trained(tensors[row.parameter], layout=row.layout, row_blocks=row.row_blocks)
        )
        return next(looked, "")

    def _initialise(self) -> None:
        modules = {plain_name(raw): module for raw, module in unwrap(self.model).named_modules()}
        tensors = self._tensors()
        for row in self.rows:
            tensor, (place, _, attribute) = tensors[row.parameter], row.parameter.rpartition(".")
            if not tensor.requires_grad:
                continue
            owner = modules[place]
            if row.init_norm is not None:
                draw_spectral(tensor, row.init_norm, layout=row.layout, row_blocks=row.row_blocks)
            elif row.init_std is not None:
                draw_normal(tensor, row.init_std)
                if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.padding_idx is not None:
                    with torch.no_grad():
                        tensor[owner.padding_idx].zero_()
            else:
                reset_vector(owner, attribute, tensor, row.role)

    def _tell_departures(self) -> None:
        found = self.departures()
        if found:
            shown = "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "")
            log.warning("the weights are not as the plan would draw them (trained ones never are): %s", shown)
