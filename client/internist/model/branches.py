"""The residual branches of a model's blocks: which matrices make one, and whose output the block adds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from internist.model.roles import block_of, is_linear, is_norm, plain_name

_OUT_WORDS = re.compile(
    r"(^|[._])(\w*out|\w*out_?proj|o_?proj|c_proj|proj|wo|o|to_out|dense|down\w*|fc2|fc_?out|w2|linear2|dense_4h_to_h)"
    r"(\.\d+)?$",
    re.IGNORECASE,
)
_ATTENTION_WORDS = re.compile(
    r"^(w?[qkvo]|w?qkv|[qkvo]_?proj|qkv_?proj|out_?proj|c_attn|query|key|value|in_proj|query_key_value|attn\w*|attention\w*)$",
    re.IGNORECASE,
)
_AFTER_WORDS = re.compile(r"post_?(feed_?forward|ffn?w?|mlp)|(attn|attention|mlp|ffn?w?|feed_?forward)_?post", re.I)
QUERY_NORM = re.compile(r"(^|[._])[qkv]_?(layer)?_?norm$|(query|key)_?(layer)?_?norm$", re.IGNORECASE)


class Matrix(NamedTuple):
    """A hidden matrix or router of a block."""

    name: str
    fan_out: int
    fan_in: int
    owner: nn.Module
    is_router: bool
    is_stack: bool = False
    """Whether it is as many matrices as there are experts."""

    @property
    def features(self) -> tuple[int, int]:
        """Features that come out of it, and that go in: of a convolution its channels."""
        if isinstance(self.owner, nn.modules.conv._ConvNd):
            return self.owner.out_channels, self.owner.in_channels
        return self.fan_out, self.fan_in


@dataclass(frozen=True, slots=True)
class Branch:
    """What a block adds to its stream."""

    block: str
    module: str
    """Name of the module whose output it is."""
    transformations: int
    """1, or 2 for two and more."""
    matrices: tuple[str, ...]
    """Names of its parameters that are matrices."""
    containers: tuple[str, ...] = ()
    """Names of the modules that hold nothing but this branch."""


def branches_of(
    root: nn.Module,
    blocks: Sequence[str],
    matrices: Sequence[Matrix],
    *,
    named: Sequence[str] = (),
    transformations: int | None = None,
) -> tuple[list[Branch], dict[str, str]]:
    """The branches of all blocks, and of blocks where they cannot be told, why.

    A block's children that hold matrices are a branch each; linear layers that lie directly in it are one, or two
    where some are named after attention. What does not come back to the stream's width is one branch with what
    follows.

    Args:
        root: the model.
        blocks: names of its blocks.
        matrices: of all blocks, in registration order.
        named: modules whose output is said to be what a branch adds; then their blocks have no others.
        transformations: of every branch, instead of what is counted.

    Raises:
        ValueError: `transformations` is not positive, or a named module is in no block.
    """
    if transformations is not None and transformations < 1:
        raise ValueError(f"expected a branch_depth of at least 1, got {transformations}")
    modules = {plain_name(name): module for name, module in root.named_modules()}
    known = set(blocks)
    adrift = [name for name in named if block_of(name, known) is None]
    if adrift:
        there = ", ".join(blocks) or "none"
        raise ValueError(f"roles: {adrift[0]!r} is said to be a branch, and is in no block; blocks are {there}")
    found: list[Branch] = []
    unclear: dict[str, str] = {}
    by_block: dict[str | None, list[Matrix]] = {}
    for matrix in matrices:
        by_block.setdefault(block_of(matrix.name, known), []).append(matrix)
    for block in blocks:
        inside = by_block.get(block, [])
        outs = [name for name in named if block_of(name, known) == block]
        own, reason = _named(block, modules, outs, inside) if outs else _found(block, modules, inside)
        if reason:
            unclear[block] = reason
        for branch in own:
            count = branch.transformations if transformations is None else min(transformations, 2)
            found.append(Branch(block, branch.module, count, branch.matrices, branch.containers))
    return found, unclear


def _named(
    block: str, modules: Mapping[str, nn.Module], outs: Sequence[str], inside: Sequence[Matrix]
) -> tuple[list[Branch], str]:
    """The branches that were said: each gets the matrices in it; what is in none, in order, the first without."""
    held = {out: [m for m in inside if m.name.startswith(out + ".")] for out in outs}
    units = _units(block, modules, [m for m in inside if not any(m in members for members in held.values())])
    for out in outs:
        if not held[out] and units:
            held[out] = units.pop(0)[1]
    if units:
        return [], f"{units[0][1][0].name!r} is in none of the branches that roles names"
    width = stream_width(inside)
    return [
        Branch(block, out, _count(members, width, out, modules), tuple(m.name for m in members), (out,))
        for out, members in held.items()
    ], ""


def _found(block: str, modules: Mapping[str, nn.Module], inside: Sequence[Matrix]) -> tuple[list[Branch], str]:
    if not inside:
        return [], "it has no matrices"
    width = stream_width(inside)
    merged: list[tuple[list[str], list[Matrix]]] = []
    is_open = False
    for container, members in _units(block, modules, inside):
        if not is_open:
            merged.append(([], []))
        elif not container and len(members) > 1 and _is_attention(merged[-1][1]):
            return _closed(
                block, modules, merged[:-1], width
            ), f"which of its layers ends its attention is not clear: {_names(inside)}"
        merged[-1][0].extend([container] if container else [])
        merged[-1][1].extend(members)
        is_open = last_of(merged[-1][1], width) is None or (not container and _is_attention(members))
    if is_open:
        return _closed(
            block, modules, merged[:-1], width
        ), f"none of {_names(merged[-1][1])} is known to come back to the stream, {width} wide"
    branches = _closed(block, modules, merged, width)
    return branches, _norm_after(block, modules, width, len(branches))


def _closed(
    block: str, modules: Mapping[str, nn.Module], merged: Sequence[tuple[list[str], list[Matrix]]], width: int
) -> list[Branch]:
    """The branches of matrices that come back to the stream, with the children that hold them."""
    branches = []
    for containers, members in merged:
        out = last_of(members, width)
        assert out is not None
        name, top = out.name.rpartition(".")[0], containers[0] if containers else ""
        if containers and not (_is_called(name, out, modules) and _is_alone(members, out, top, modules)):
            name = containers[-1]
        count = _count(members, width, top, modules)
        branches.append(Branch(block, name, count, tuple(m.name for m in members), tuple(containers)))
    return branches


def _units(block: str, modules: Mapping[str, nn.Module], inside: Sequence[Matrix]) -> list[tuple[str, list[Matrix]]]:
    """Matrices that belong together: (child of the block that holds them, or empty; members), in order."""
    children = {matrix.name[len(block) + 1 :].split(".")[0] for matrix in inside}
    only = f"{block}.{next(iter(children))}" if len(children) == 1 else ""
    if isinstance(modules.get(only), nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return _units(only, modules, inside)
    units: list[tuple[str, list[Matrix]]] = []
    direct: dict[str, list[Matrix]] = {}
    kind = ""
    for matrix in inside:
        path = matrix.name[len(block) + 1 :].split(".")
        is_layer = is_linear(matrix.owner) or isinstance(matrix.owner, nn.modules.conv._ConvNd)
        if len(path) == 1 or (len(path) == 2 and is_layer):
            # the square layer named like an output that comes right after queries, keys and values is their output
            ends = kind == "attention" and matrix.fan_in == matrix.fan_out and _OUT_WORDS.search(path[0])
            kind = "attention" if ends or _ATTENTION_WORDS.match(path[0]) else "other"
            if kind not in direct:
                direct[kind] = []
                units.append(("", direct[kind]))
            direct[kind].append(matrix)
        elif units and units[-1][0] == f"{block}.{path[0]}":
            units[-1][1].append(matrix)
        else:
            units.append((f"{block}.{path[0]}", [matrix]))
    return units


def _is_attention(members: Sequence[Matrix]) -> bool:
    """Whether they are attention's layers, without one that is named as its last."""
    words = [m.name.removesuffix(".weight").rpartition(".")[2] for m in members]
    return all(map(_ATTENTION_WORDS.match, words)) and not any(map(_OUT_WORDS.search, words)) and len(words) > 1


def stream_width(inside: Sequence[Matrix]) -> int:
    """The stream's width: the most common number of features that go in, of equally common ones the smaller; of
    convolutions what goes into the first, if it comes out again."""
    convolutions = [m for m in inside if isinstance(m.owner, nn.modules.conv._ConvNd)]
    if len(convolutions) == len(inside) and any(m.features[0] == inside[0].features[1] for m in inside):
        return inside[0].features[1]
    fans = [m.features[1] for m in inside if not m.is_router] or [m.features[1] for m in inside]
    return min(set(fans), key=lambda fan: (-fans.count(fan), fan))


def last_of(members: Sequence[Matrix], width: int) -> Matrix | None:
    """The matrix that comes back to the stream; None where none does."""
    able = [m for m in members if m.features[0] == width and not m.is_router]
    named = [m for m in able if _OUT_WORDS.search(m.name.removesuffix(".weight"))]
    return (named or able)[-1] if able else None


def _count(members: Sequence[Matrix], width: int, top: str, modules: Mapping[str, nn.Module]) -> int:
    """1 if all its matrices are the last, of which experts have several; else 2."""
    out = last_of(members, width)
    kinds = {kind_of(m, top, modules) for m in members if not m.is_router}
    return 1 if out is not None and kinds == {kind_of(out, top, modules)} else 2


def _is_called(name: str, out: Matrix, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the module of a matrix is called: torch's attention reads its output layer's weight instead."""
    parent = modules.get(name.rpartition(".")[0])
    is_layer = is_linear(out.owner) or isinstance(out.owner, nn.modules.conv._ConvNd)
    return is_layer and not isinstance(parent, nn.MultiheadAttention)


def _is_alone(members: Sequence[Matrix], out: Matrix, top: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the last matrix is the only one of its kind and adds all there is: experts are several, or shared."""
    kind = kind_of(out, top, modules)
    return "*" not in kind.split(".") and not any(m.is_router for m in members)


def kind_of(matrix: Matrix, top: str, modules: Mapping[str, nn.Module]) -> str:
    """The name of a matrix, a star for its number in a list of experts within `top`; without a top, as it is."""
    parts = matrix.name.split(".")
    for i in range(top.count(".") + 1 if top else len(parts), len(parts)):
        if isinstance(modules.get(".".join(parts[:i])), nn.ModuleList) and parts[i].isdigit():
            parts[i] = "*"
    return ".".join(parts)


def _names(members: Sequence[Matrix]) -> str:
    return ", ".join(matrix.name for matrix in members)


def _norm_after(block: str, modules: Mapping[str, nn.Module], width: int, branches: int) -> str:
    """Why a norm may stand between a branch's last matrix and the stream; empty where none seems to."""
    norms = [
        name
        for name, module in modules.items()
        if name.startswith(block + ".")
        and is_norm(module)
        and not QUERY_NORM.search(name)
        and any(p.dim() == 1 and p.numel() == width for p in module.parameters(recurse=False))
    ]
    after = [name for name in norms if _AFTER_WORDS.search(name.rpartition(".")[2])]
    if len(norms) > branches:
        return f"it has more norms of the stream's width ({', '.join(norms)}) than branches ({branches})"
    return f"{after[0]!r} is named as if it came after its branch" if after else ""
