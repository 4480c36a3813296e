"""The outline of a model: which modules and parameters are watched, and how a parameter is a matrix."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from internist.model.roles import (
    block_names,
    block_of,
    head_name,
    is_attention,
    module_role,
    parameter_kind,
    plain_name,
)
from internist.schema.wire import Facts, Module, Role

Rename = Callable[[str], str]


@dataclass(slots=True, eq=False)
class WatchedModule:
    """A module whose calls are measured."""

    name: str
    module: nn.Module
    role: Role
    order: int
    block: str | None
    excluded: bool = False
    parameters: list["WatchedParameter"] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class WatchedParameter:
    """A parameter whose weight, gradient and update are measured. Tied parameters are one, with all their roles."""

    name: str
    tensor: nn.Parameter
    owner: WatchedModule
    attribute: str
    """Its name in the owner: `weight`, `bias`, ..."""
    order: int
    roles: set[str] = field(default_factory=set)
    """`matrix`, `embedding`, `head`, `vector`; empty: none of these fits, see `unsupported`."""
    view: str = ""
    aliases: list[str] = field(default_factory=list)
    unsupported: str = ""
    excluded: bool = False
    turn: int = 0
    """Its place among parameters of more than one dimension: matrices are measured in rotation."""


@dataclass(slots=True)
class Outline:
    """Everything that is watched, in registration order."""

    root: nn.Module
    modules: list[WatchedModule]
    parameters: list[WatchedParameter]
    head: WatchedModule | None

    def describe(self) -> tuple[Module, ...]:
        """The outline as it travels."""
        return tuple(
            Module(
                m.name,
                type(m.module).__name__,
                m.role,
                m.block,
                sum(p.tensor.numel() for p in m.parameters),
                _multiplier(m.module),
            )
            for m in self.modules
        )


def outline(
    root: nn.Module,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    output: str | None = None,
    rename: Rename | Mapping[str, str] | None = None,
) -> Outline:
    """Read a model's module tree.

    Raises:
        ValueError: an expression is no valid regular expression, or `output` names no module.
    """
    keep, drop = _compile("include", include), _compile("exclude", exclude)
    translate = _renamer(rename)
    blocks = block_names(root)
    tree = [(plain_name(raw), module) for raw, module in root.named_modules()]
    head = head_name(root, tree, blocks, output)

    modules: list[WatchedModule] = []
    parameters: dict[int, WatchedParameter] = {}
    seen: set[int] = set()
    for name, module in tree:
        if id(module) in seen or type(module).__name__ == "OptimizedModule":
            continue
        seen.add(id(module))
        block = block_of(name, blocks)
        role = module_role(name, module, blocks, head, is_root=module is root)
        own = list(module.named_parameters(recurse=False))
        if not own and role in ("other", "container") and not _worth_watching(name, module, block):
            continue
        shown = translate(name) or "model"
        excluded = (bool(keep) and not any(r.search(shown) for r in keep)) or any(r.search(shown) for r in drop)
        watched = WatchedModule(
            shown, module, role, len(modules), translate(block) if block is not None else None, excluded
        )
        modules.append(watched)
        for attribute, tensor in own:
            full = f"{shown}.{attribute}" if name else attribute
            known = parameters.get(id(tensor))
            if known is None:
                known = parameters[id(tensor)] = WatchedParameter(
                    full, tensor, watched, attribute, len(parameters), excluded=excluded
                )
            else:
                known.aliases.append(full)
            watched.parameters.append(known)
            _classify(known, watched, attribute)
    for turn, parameter in enumerate(p for p in parameters.values() if "matrix" in p.roles or p.view == "unknown"):
        parameter.turn = turn
    return Outline(root, modules, list(parameters.values()), next((m for m in modules if m.role == "head"), None))


def matrix_view(parameter: WatchedParameter, tensor: Tensor) -> Tensor:
    """The parameter (or its update) as one matrix or, for convolutions, one per group: (groups, fan_out, fan_in) or
    (fan_out, fan_in)."""
    if parameter.view == "transposed":
        return tensor.t()
    if parameter.view.startswith("convolution"):
        module = parameter.owner.module
        groups = int(getattr(module, "groups", 1))
        if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            tensor = tensor.transpose(0, 1) if groups == 1 else tensor
        return tensor.reshape(groups, tensor.shape[0] // groups, -1) if groups > 1 else tensor.flatten(1)
    return tensor


def resolve_view(parameter: WatchedParameter, input_width: int | None, output_width: int | None) -> None:
    """Settle the orientation of a 2-D parameter of an unknown module from the widths its module was seen with."""
    if parameter.view != "unknown":
        return
    rows, columns = parameter.tensor.shape
    straight = columns == input_width and rows != input_width
    turned = rows == input_width and columns != input_width
    if straight or (rows == output_width and columns == input_width and rows != columns):
        parameter.view, parameter.roles = "(fan_out, fan_in)", {"matrix"}
    elif turned:
        parameter.view, parameter.roles = "transposed", {"matrix"}
    else:
        parameter.view = ""
        parameter.unsupported = (
            f"shape {rows} x {columns} of {type(parameter.owner.module).__name__} fits its input width {input_width} "
            "in neither or in both orientations"
        )


def _multiplier(module: nn.Module) -> float:
    """What the module's forward hooks multiply its output by, as far as they say so by a number named `factor`."""
    told = [getattr(hook, "factor", None) for hook in module._forward_hooks.values()]
    product = math.prod(float(f) for f in told if isinstance(f, int | float) and not isinstance(f, bool))
    return product if math.isfinite(product) else 1.0


def _compile(what: str, expressions: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(expression) for expression in expressions]
    except re.error as error:
        raise ValueError(f"{what}={list(expressions)!r}: not a valid regular expression: {error}") from error


def _renamer(rename: Rename | Mapping[str, str] | None) -> Rename:
    if rename is None:
        return lambda name: name
    if isinstance(rename, Mapping):
        table = dict(rename)
        return lambda name: table.get(name, name)
    return lambda name: str(rename(name))


def _worth_watching(name: str, module: nn.Module, block: str | None) -> bool:
    """Modules without parameters of their own are watched where they are branches of a block or attention."""
    if block is None or not any(True for _ in module.children()):
        return False
    return name.rpartition(".")[0] == block or is_attention(module)


def _classify(parameter: WatchedParameter, module: WatchedModule, attribute: str) -> None:
    tensor, owner = parameter.tensor, module.module
    if _is_sharded(tensor):
        parameter.unsupported = "a sharded tensor (DTensor): sharded models are not measured yet"
        return
    if tensor.numel() == 0:
        parameter.unsupported = "it has no entries"
        return
    if tensor.is_complex() or not tensor.is_floating_point():
        parameter.unsupported = f"dtype {tensor.dtype} is not a real floating-point type"
        return
    kind, view = parameter_kind(owner, module.role, attribute, tensor.shape)
    if kind == "unknown":
        parameter.view = "unknown"
    elif kind != "none":
        parameter.roles.add(kind)
        parameter.view = (parameter.view or view) if kind == "head" else (view or parameter.view)
    elif isinstance(owner, nn.modules.conv._ConvNd) and owner.transposed:
        parameter.unsupported = "a grouped transposed convolution has no stated matrix view"
    elif not parameter.roles:
        parameter.unsupported = f"no matrix view is known for shape {tuple(tensor.shape)} of {type(owner).__name__}"


def _is_sharded(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "DTensor" or type(tensor.data).__name__ == "DTensor"


def fans(parameter: WatchedParameter) -> tuple[int, int]:
    """(fan_out, fan_in) of the parameter's matrix view; of a vector, its length twice."""
    shape: torch.Size = parameter.tensor.shape
    if len(shape) == 0:
        return 1, 1
    if "embedding" in parameter.roles and "head" not in parameter.roles:
        return int(shape[1]), int(shape[0])
    if parameter.view == "transposed":
        return int(shape[1]), int(shape[0])
    if parameter.view.startswith("convolution"):
        module = parameter.owner.module
        groups = int(getattr(module, "groups", 1))
        if getattr(module, "transposed", False):
            return int(shape[1]), int(shape[0]) * int(shape[2:].numel())
        return int(shape[0]) // groups, int(shape[1:].numel())
    return int(shape[0]), int(shape[1:].numel()) if len(shape) > 1 else int(shape[0])


def facts_of(parameter: WatchedParameter) -> Facts:
    """What is known of every series of a parameter, whatever its metric."""
    fan_out, fan_in = fans(parameter)
    return Facts(
        role=parameter.owner.role,
        block=parameter.owner.block,
        module=parameter.owner.name,
        order=parameter.owner.order,
        fan_in=fan_in,
        fan_out=fan_out,
        dtype=str(parameter.tensor.dtype).removeprefix("torch."),
        parameters=parameter.tensor.numel(),
        view=parameter.view or None,
        aliases=tuple(parameter.aliases),
    )


def hidden_matrices(outline: Outline) -> list[WatchedParameter]:
    """The matrices that an optimizer for matrices is made for: those of residual blocks, or all where there is no
    block."""
    matrices = [p for p in outline.parameters if p.roles == {"matrix"} and not p.excluded and not p.unsupported]
    inside = [p for p in matrices if p.owner.block is not None]
    return inside or matrices
