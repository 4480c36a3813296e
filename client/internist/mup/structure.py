"""The structure of a model as the rules see it: the role of every parameter, and how each is a matrix.

Read from the module tree alone, by the monitor's own rules (`internist.model.roles`). What the tree does not tell is an
error that names the module and what may be said of it.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.parameter import is_lazy

from internist.model.branches import Branch, Matrix, branches_of
from internist.model.roles import (
    DOWN_WORDS,
    ROUTER_WORDS,
    block_names,
    block_of,
    head_name,
    is_linear,
    is_norm,
    is_router,
    is_transposed_linear,
    module_role,
    parameter_kind,
    plain_name,
    unwrap,
)
from internist.mup.overrides import PARAMETER_ROLES, said_roles

_EMBEDDING_WORDS = re.compile(r"(^|[._])(wpe|wte|\w*emb|\w*embed(ding)?s?|\w*position\w*|\w*_tokens?)$", re.IGNORECASE)
_EXPERT_WORDS = re.compile(r"experts?|moe", re.IGNORECASE)
_KEY_WORDS = re.compile(r"(^|[._])(k|v|key|value|wk|wv)(_proj)?\.weight$")


@dataclass(slots=True)
class Part:
    """A parameter: what it is, and how it is a matrix."""

    name: str
    tensor: nn.Parameter
    owner: nn.Module
    roles: dict[str, str] = field(default_factory=dict)
    """Role to the module that has it so; two of a tied embedding and head."""
    choices: tuple[str, ...] = ()
    """Where the tree does not tell: the roles it may have."""
    fan_out: int = 1
    fan_in: int = 1
    layout: str = "out_in"
    row_blocks: int | None = None
    block: str | None = None
    branch: Branch | None = None
    note: str = ""
    """What it is in words, where it is more than its role."""

    @property
    def is_tied(self) -> bool:
        """An embedding that is the head's weight too."""
        return {"input", "output"} <= self.roles.keys()

    @property
    def is_table(self) -> bool:
        """Whether it is looked up or added, as embeddings are, and never multiplied by: its rows are no fan-in."""
        return not is_linear(self.owner) and not isinstance(self.owner, nn.modules.conv._ConvNd)

    @property
    def is_stack(self) -> bool:
        """Whether it is a stack of experts."""
        return self.tensor.dim() == 3 and self.layout != "conv" and self.role == "hidden"

    @property
    def role(self) -> str:
        """Its role; a tied embedding and head is an input. Empty where `choices` are left."""
        return next((role for role in PARAMETER_ROLES if role in self.roles), "")


@dataclass(slots=True)
class Structure:
    """A model as the rules see it."""

    root: nn.Module
    parts: list[Part]
    blocks: list[str]
    """Names of the residual blocks, in registration order."""
    branches: list[Branch]
    outputs: list[str]
    """Names of the modules that make the model's outputs."""
    unclear: dict[str, str]
    """Block to why its branches cannot be told."""

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return len(self.blocks)

    def width(self) -> int:
        """Width of the residual stream, or of the layers of a model without blocks.

        Raises:
            ValueError: the shapes disagree; says what was looked at.
        """
        seen: dict[int, str] = {}
        for part in self.parts:
            if part.role == "input" and part.tensor.dim() >= 2:
                seen.setdefault(part.fan_out, f"{part.name!r} makes {part.fan_out}")
            elif "output" in part.roles:
                seen.setdefault(part.fan_in, f"{part.name!r} takes {part.fan_in}")
        hidden = Counter(part.fan_in for part in self.parts if part.role == "hidden")
        if hidden:
            width, _ = hidden.most_common(1)[0]
            seen.setdefault(width, f"most hidden matrices take {width}")
        if len(seen) == 1:
            return next(iter(seen))
        what = "; ".join(seen.values()) or "it has no embedding, no head and no hidden matrix"
        raise ValueError(
            f"the model's width cannot be told from its shapes: {what}. Give a smaller model of the family as base: "
            "its shapes say what grows"
        )


def structure(
    model: nn.Module,
    *,
    roles: Mapping[str, str] | None = None,
    output: str | bool | None = None,
    branch_depth: int | None = None,
) -> Structure:
    """Read a model's module tree.

    Args:
        model: wrappers of compilation and data parallelism are looked through.
        roles: regular expression that matches the whole name of a parameter or module, to its role: of
            `PARAMETER_ROLES` or, for modules, of `MODULE_ROLES` (`block`: a residual block; `branch`: its output is
            what a residual branch adds).
        output: name of the head's module, where it is not the last linear layer outside the blocks; False: none.
        branch_depth: transformations in each branch, where counting its matrices is wrong.

    Raises:
        ValueError: an argument that names nothing, a lazy parameter, a parameter that no rule places, or one whose
            places contradict each other.
    """
    root = unwrap(model)
    tree = [(plain_name(raw), module) for raw, module in root.named_modules(remove_duplicate=False)]
    lazy = [plain_name(name) for name, tensor in root.named_parameters() if is_lazy(tensor)]
    if lazy:
        raise ValueError(f"parameter {lazy[0]!r} has no shape yet: call the model once before planning it")
    asked = said_roles(roles or {}, tree, root)
    given = [name for name, role in asked.items() if role == "block"]
    blocks = given or block_list(root)
    known = set(blocks)
    head = None
    if output is not False:
        head = head_name(root, tree, known, output if isinstance(output, str) else None)
    said = {name: role for name, role in asked.items() if role in PARAMETER_ROLES}
    parts = _parts(root, tree, known, head, said, is_said=isinstance(output, str))
    _check_places(parts)
    matrices = [
        Matrix(part.name, part.fan_out, part.fan_in, part.owner, part.role == "router")
        for part in parts
        if part.block is not None and part.role in ("hidden", "router")
    ]
    named = [name for name, role in asked.items() if role == "branch"]
    branches, unclear = branches_of(root, blocks, matrices, named=named, transformations=branch_depth)
    _assign(parts, branches)
    outputs = list(dict.fromkeys(part.roles["output"] for part in parts if "output" in part.roles))
    return Structure(root, parts, blocks, branches, outputs, unclear)


def block_list(root: nn.Module) -> list[str]:
    """The residual blocks; also the only one of a list of one."""
    found = block_names(root)
    names = [plain_name(raw) for raw, _ in root.named_modules() if plain_name(raw) in found]
    if names:
        return names
    return [
        f"{plain_name(raw)}.0"
        for raw, module in root.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == 1 and any(True for _ in module[0].children())
    ][:1]


def fits(root: nn.Module, *, like: Structure) -> dict[str, Part]:
    """Every parameter of a model with its fans, read as in a larger model of its family; without roles.

    Args:
        root: unwrapped.
        like: its structure says how parameters of the same names are stored.
    """
    layouts = {part.name: part.layout for part in like.parts}
    found: dict[str, Part] = {}
    blocks = set(block_list(root))
    for raw, module in root.named_modules():
        name = plain_name(raw)
        for attribute, tensor in module.named_parameters(recurse=False):
            part = Part(f"{name}.{attribute}" if name else attribute, tensor, module, block=block_of(name, blocks))
            role = module_role(name, module, blocks, next(iter(like.outputs), None), is_root=module is root)
            _fit(part, module, attribute, parameter_kind(module, role, attribute, tensor.shape)[1], None)
            wanted = layouts.get(part.name, part.layout)
            if tensor.dim() == 3 and wanted != part.layout:
                part.layout, part.fan_out, part.fan_in = wanted, part.fan_in, part.fan_out
            found[part.name] = part
    return found


def _parts(
    root: nn.Module,
    tree: Sequence[tuple[str, nn.Module]],
    blocks: set[str],
    head: str | None,
    asked: Mapping[str, str],
    *,
    is_said: bool,
) -> list[Part]:
    """Every parameter once, with the roles that its places give it."""
    found: dict[int, Part] = {}
    width = _stream(root, blocks)
    embeds = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) and block_of(n, blocks) is None for n, m in tree)
    first = not embeds
    for name, module in tree:
        kind_of_module = module_role(name, module, blocks, head, is_root=module is root)
        for attribute, tensor in module.named_parameters(recurse=False):
            full = f"{name}.{attribute}" if name else attribute
            part = found.setdefault(id(tensor), Part(full, tensor, module, block=block_of(name, blocks)))
            kind, view = parameter_kind(module, kind_of_module, attribute, tensor.shape)
            if part.name == full:
                _fit(part, module, attribute, view, width)
            role = _role(part, full, module, attribute, kind, has_blocks=bool(blocks))
            role = asked.get(full) or (asked.get(name) if attribute == "weight" else None) or role
            outside = part.block is None and role == "hidden" and full not in asked and name not in asked
            if outside and first:
                # the first layer of a model that embeds nothing; one whose only layer is said to be the head has none
                role = "input"
            elif outside and blocks and width is not None and part.tensor.dim() == 2:
                role = _outer(part, width)
            first = first and role not in ("input", "hidden", "output")
            if role == "output" and kind_of_module == "head" and part.name == full and not is_said:
                role = _head(part, width, embeds=embeds, blocks=blocks)
            if role:
                part.roles.setdefault(role, name)
    return list(found.values())


def _role(part: Part, full: str, owner: nn.Module, attribute: str, kind: str, *, has_blocks: bool) -> str:
    """The role of a parameter at one of its places; empty, and a note in the part, where no rule fits."""
    dims = part.tensor.dim()
    if attribute.endswith("bias") or attribute.startswith("bias_"):
        return "bias"
    if kind == "vector" or is_norm(owner):
        return "gain"
    if kind in ("embedding", "head"):
        return "input" if kind == "embedding" else "output"
    inside = part.block is not None or not has_blocks
    if kind == "matrix":
        parents = full.split(".")[:-1]
        if part.block and is_router(parents[-1] if parents else "", part.fan_out, part.fan_in):
            return "router"
        return "input" if not inside and any(_EMBEDDING_WORDS.search(word) for word in parents) else "hidden"
    if _EMBEDDING_WORDS.search(attribute):
        return "input"
    if dims == 3 and (_EXPERT_WORDS.search(full) or _EXPERT_WORDS.search(type(owner).__name__)):
        return "hidden"
    if kind == "unknown" and attribute == "weight" and ROUTER_WORDS.search(type(owner).__name__):
        return "router"
    part.choices = PARAMETER_ROLES
    part.note = f"held by a {type(owner).__name__}, whose use of it is not known"
    return ""


def _outer(part: Part, width: int) -> str:
    """The role of a linear layer outside the blocks that is neither the first layer nor the head."""
    if part.fan_in == width == part.fan_out:
        return "hidden"
    part.choices = ("input", "hidden", "output")
    part.note = f"a layer of {part.fan_in} to {part.fan_out} outside the blocks, whose stream is {width} wide"
    return ""


def _head(part: Part, width: int | None, *, embeds: bool, blocks: set[str]) -> str:
    """`output`, unless the shape of what was taken for the head contradicts it."""
    if width is not None and blocks and part.fan_in != width:
        if not embeds and part.fan_out == width:
            return "input"
        part.choices = ("input", "hidden", "output")
        part.note = f"taken for the head, but it takes {part.fan_in} and the blocks' stream is {width} wide"
        return ""
    return "output"


def _fit(part: Part, owner: nn.Module, attribute: str, view: str, width: int | None) -> None:
    """Set a matrix's fans and layout, and its note."""
    shape = part.tensor.shape
    if len(shape) < 2 or is_norm(owner) or attribute.endswith("bias"):
        part.fan_out = part.tensor.numel()
        return
    fan_out, fan_in = shape[0], math.prod(shape[1:])
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) or is_transposed_linear(owner):
        part.layout, (fan_in, fan_out) = "in_out", (shape[0], shape[1])
    elif isinstance(owner, nn.modules.conv._ConvNd):
        kernel = math.prod(owner.kernel_size)
        fan_in, fan_out = owner.in_channels // owner.groups * kernel, owner.out_channels
        part.layout = "in_out" if owner.transposed and part.tensor.dim() > 3 else "conv"
        part.row_blocks = owner.groups if owner.groups > 1 else None
        part.note = "convolution kernel"
    elif isinstance(owner, nn.MultiheadAttention) and attribute == "in_proj_weight":
        part.row_blocks, part.note = 3, "fused queries, keys and values"
    elif part.tensor.dim() == 3 and not _EMBEDDING_WORDS.search(attribute):
        fan_out, fan_in = shape[1], shape[2]
        if _is_stored_in_out(owner, attribute, shape, width):
            part.layout, (fan_in, fan_out) = "in_out", (shape[1], shape[2])
        part.note = f"stack of {shape[0]} experts"
    elif not view:  # a learned token or position: (..., width)
        fan_in, fan_out = math.prod(shape[:-1]), shape[-1]
        if part.tensor.dim() == 2 and not _EMBEDDING_WORDS.search(attribute):
            fan_out, fan_in = shape
    part.fan_in, part.fan_out = fan_in, fan_out
    if is_linear(owner) and fan_out == 3 * fan_in and re.search(r"qkv|c_attn|query_key_value", part.name):
        part.note = "fused queries, keys and values"
    elif is_linear(owner) and fan_in == width and fan_out < fan_in and _KEY_WORDS.search(part.name):
        part.note = "keys or values of fewer heads"


def _is_stored_in_out(owner: nn.Module, attribute: str, shape: Sequence[int], width: int | None) -> bool:
    """Whether a stack of experts is (experts, in, out)."""
    if getattr(owner, "is_transposed", False) is True:
        return True
    if width is None or shape[1] == shape[2] or width not in shape[1:]:
        return False
    return (shape[2] if DOWN_WORDS.search(attribute) else shape[1]) == width


def _stream(root: nn.Module, blocks: set[str]) -> int | None:
    """The width of the blocks' stream: the most common fan-in of their linear layers; None without."""
    fans = Counter(
        (module.weight.shape[0] if is_transposed_linear(module) else module.weight.shape[1])
        for raw, module in root.named_modules()
        if is_linear(module) and (block_of(plain_name(raw), blocks) is not None or not blocks)
        and isinstance(module.weight, nn.Parameter) and module.weight.dim() == 2
    )  # fmt: skip
    attention = Counter(m.embed_dim for m in root.modules() if isinstance(m, nn.MultiheadAttention))
    fans += attention
    return fans.most_common(1)[0][0] if fans else None


def _check_places(parts: Sequence[Part]) -> None:
    """Refuse what two places make different things of; a tied weight is read as the embedding it is."""
    for part in parts:
        if part.is_tied and is_linear(part.owner) and not is_transposed_linear(part.owner):
            part.layout, part.fan_out, part.fan_in = "in_out", part.fan_in, part.fan_out
        if len(part.roles) > 1 and not (part.is_tied and len(part.roles) == 2):
            places = ", ".join(f"{role} in {module or 'the model'}" for role, module in part.roles.items())
            raise ValueError(
                f"the places of parameter {part.name!r} contradict each other: {places}. Say "
                f"roles={{{re.escape(part.name)!r}: role}} with one of {', '.join(part.roles)}"
            )


def _assign(parts: Sequence[Part], branches: Sequence[Branch]) -> None:
    """Give every parameter of a block its branch: its own, or for norms and the like one of its block's."""
    for part in parts:
        if part.block is None:
            continue
        owner = part.name.rpartition(".")[0]
        inside = [b for b in branches if b.block == part.block]
        own = [b for b in inside if part.name in b.matrices or owner in {m.rpartition(".")[0] for m in b.matrices}]
        own = own or [b for b in inside if any(owner == c or owner.startswith(c + ".") for c in b.containers)]
        # what is before or between branches: of two kinds of them, the rule of the deeper
        part.branch = own[0] if own else max(inside, key=lambda b: b.transformations, default=None)
