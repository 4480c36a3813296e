"""The outline of a model: which modules and parameters are watched, what role each plays, and how a parameter is a
matrix."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from internist.schema.wire import Module, Role

_WRAPPER_PREFIXES = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_ATTENTION_WORDS = re.compile(r"attn|attention", re.IGNORECASE)
_NORM_WORDS = re.compile(r"norm(alization)?(\d+d)?$", re.IGNORECASE)
_HEAD_WORDS = re.compile(r"(^|\.)(lm_head|head|output|classifier|score|unembed\w*|out_proj_vocab)$", re.IGNORECASE)

Rename = Callable[[str], str]


@dataclass(slots=True)
class WatchedModule:
    """A module whose calls are measured."""

    name: str
    module: nn.Module
    role: Role
    order: int
    block: str | None
    excluded: bool = False
    parameters: list["WatchedParameter"] = field(default_factory=list)


@dataclass(slots=True)
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
            Module(m.name, type(m.module).__name__, m.role, m.block, sum(p.tensor.numel() for p in m.parameters))
            for m in self.modules
        )


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside wrappers of compilation and data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """A qualified name without the parts that wrappers put in it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PREFIXES) if name else name


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
    blocks = _block_names(root)
    tree = [(plain_name(raw), module) for raw, module in root.named_modules()]
    head_name = _head_name(root, tree, blocks, output)

    modules: list[WatchedModule] = []
    parameters: dict[int, WatchedParameter] = {}
    seen: set[int] = set()
    for name, module in tree:
        if id(module) in seen or type(module).__name__ == "OptimizedModule":
            continue
        seen.add(id(module))
        block = _block_of(name, blocks)
        role = _role(name, module, blocks, head_name, is_root=module is root)
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


def _block_names(root: nn.Module) -> set[str]:
    """Names of the repeated blocks: children of a list of at least two modules of one class that have children of
    their own."""
    names: set[str] = set()
    for raw, module in root.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            continue
        name = plain_name(raw)
        if any(name == outer or name.startswith(outer + ".") for outer in names):
            continue  # lists inside blocks (experts) are not the residual stream
        children = list(module.named_children())
        kinds = [type(unwrap(child)) for _, child in children]
        for child_name, child in children:
            child = unwrap(child)
            deep = any(True for _ in child.children()) and any(True for _ in child.parameters())
            if deep and kinds.count(type(child)) >= 2:
                names.add(f"{name}.{child_name}" if name else child_name)
    return names


def _block_of(name: str, blocks: set[str]) -> str | None:
    while name:
        if name in blocks:
            return name
        name = name.rpartition(".")[0]
    return None


def _worth_watching(name: str, module: nn.Module, block: str | None) -> bool:
    """Modules without parameters of their own are watched where they are branches of a block or attention."""
    if block is None or not any(True for _ in module.children()):
        return False
    return name.rpartition(".")[0] == block or bool(_ATTENTION_WORDS.search(type(module).__name__))


def _is_norm(module: nn.Module) -> bool:
    return bool(_NORM_WORDS.search(type(module).__name__))


def is_linear(module: nn.Module) -> bool:
    """A module that computes x W^T + b with a 2-D `weight`: `nn.Linear` and its heirs, Hugging Face's `Conv1D`."""
    return isinstance(module, nn.Linear) or _is_transposed_linear(module)


def _is_transposed_linear(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", None) is not None


def _role(name: str, module: nn.Module, blocks: set[str], head: str | None, *, is_root: bool) -> Role:
    if is_root:
        return "root"
    if head is not None and name == head:
        return "head"
    if name in blocks:
        return "block"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if is_linear(module):
        return "linear"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if _is_norm(module):
        return "norm"
    if _ATTENTION_WORDS.search(type(module).__name__):
        return "attention"
    return "container" if any(True for _ in module.children()) else "other"


def _head_name(root: nn.Module, tree: list[tuple[str, nn.Module]], blocks: set[str], output: str | None) -> str | None:
    if output is not None:
        if output not in {name for name, _ in tree}:
            near = [name for name, _ in tree if name.endswith(output.rpartition(".")[2])] or [name for name, _ in tree]
            raise ValueError(f"output={output!r} names no module of the model; there are {', '.join(near[:8])}")
        return output
    linears = [name for name, module in tree if is_linear(module) and _block_of(name, blocks) is None and name]
    named = [name for name in linears if _HEAD_WORDS.search(name)]
    if named:
        return named[-1]
    embeddings = {id(m.weight) for m in root.modules() if isinstance(m, nn.Embedding)}
    tied = [name for name, module in tree if name in linears and id(getattr(module, "weight", None)) in embeddings]
    return tied[-1] if tied else (linears[-1] if linears else None)


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
    if tensor.dim() <= 1:
        parameter.roles.add("vector")
    elif isinstance(owner, nn.Embedding | nn.EmbeddingBag) and attribute == "weight":
        parameter.roles.add("embedding")
    elif module.role == "head" and attribute == "weight" and tensor.dim() == 2:
        parameter.roles.add("head")
        parameter.view = parameter.view or ("transposed" if _is_transposed_linear(owner) else "(fan_out, fan_in)")
    elif isinstance(owner, nn.Linear) and attribute == "weight":
        parameter.roles.add("matrix")
        parameter.view = "(fan_out, fan_in)"
    elif _is_transposed_linear(owner) and attribute == "weight":
        parameter.roles.add("matrix")
        parameter.view = "transposed"
    elif isinstance(owner, nn.MultiheadAttention) and attribute.endswith("proj_weight"):
        parameter.roles.add("matrix")
        parameter.view = "(fan_out, fan_in)"
    elif isinstance(owner, nn.modules.conv._ConvNd) and attribute == "weight":
        if owner.transposed and owner.groups > 1:
            parameter.unsupported = "a grouped transposed convolution has no stated matrix view"
            return
        parameter.roles.add("matrix")
        parameter.view = f"convolution, {owner.groups} groups" if owner.groups > 1 else "convolution"
    elif tensor.dim() == 2:
        parameter.view = "unknown"
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
