"""Which parameter goes to which optimizer: hidden matrices to the matrix optimizer, everything else to AdamW.

group       what                                                                    algorithm   decay
hidden      linear layers, convolution kernels, expert stacks, attention's fused    muon        the optimizer's
            projections
embedding   embeddings, positions, learned tokens; tied embedding and head          adamw       the optimizer's
head        the output layer's weight                                               adamw       the optimizer's
gain        norm gains, other vectors, scalars                                      adamw       0
bias        biases                                                                  adamw       0
other       what `overrides` sends there                                            adamw       the optimizer's

What a module is, is read by the monitor's own rules (`internist.model.roles`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from internist.model.roles import (
    block_names,
    block_of,
    fused_rows,
    head_name,
    is_norm,
    module_role,
    parameter_kind,
    plain_name,
    unwrap,
)
from internist.schema.wire import Role

GROUPS = ("hidden", "embedding", "head", "gain", "bias", "other")
UNDECAYED = ("gain", "bias")

RowBlocks = int | tuple[int, ...] | None

_EMBEDDING_WORDS = re.compile(r"(^|[._])(wpe|wte|\w*emb|\w*embed(ding)?s?|\w*position\w*|\w*_tokens?)$", re.IGNORECASE)
_EXPERT_WORDS = re.compile(r"experts?|moe", re.IGNORECASE)
_ROUTER_WORDS = re.compile(r"(router|gate)$", re.IGNORECASE)


@dataclass(slots=True)
class _Place:
    """A parameter, wherever the model holds it."""

    name: str
    tensor: nn.Parameter
    parts: set[str] = field(default_factory=set)
    """Group names that its places ask for; empty: none fits."""
    layout: str = "out_in"
    row_blocks: RowBlocks = None
    reason: str = ""

    @property
    def part(self) -> str:
        """Its group: of a parameter shared between places the first that is no matrix of the trunk."""
        return next((group for group in (*GROUPS[1:], "hidden") if group in self.parts), "")


class Routing(list[dict[str, Any]]):
    """Parameter groups, ready for an optimizer: `Muon(split_parameters(model))`. Printed, a table.

    An optimizer writes its defaults into the groups it is given: split anew for a second one.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], frozen: Sequence[tuple[str, nn.Parameter]]) -> None:
        super().__init__(groups)
        self.frozen = tuple(frozen)
        """(name, parameter) of those that want no gradient and are in no group."""
        self._rows = [*self._routed(), *(_row(name, tensor, "frozen", {}) for name, tensor in self.frozen)]

    def describe(self) -> list[dict[str, Any]]:
        """One row per parameter, JSON-able: parameter, shape, role, algorithm, group, layout, row_blocks."""
        return [dict(row) for row in self._rows]

    def table(self) -> str:
        """The rows as text, one line per parameter and one per group with its number of entries."""
        columns = ("parameter", "shape", "role", "group", "algorithm", "view")
        lines = [columns]
        for row in self._rows:
            shape = " x ".join(map(str, row["shape"])) or "scalar"
            rows = "" if row["row_blocks"] is None else f", row blocks {row['row_blocks']}"
            view = row["layout"] + rows if row["algorithm"] == "muon" else ""
            lines.append((row["parameter"], shape, row["role"], row["group"], row["algorithm"], view))
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        totals: dict[str, list[int]] = {}
        for row in self._rows:
            total = totals.setdefault(row["group"], [0, 0])
            total[0] += 1
            total[1] += _entries(row["shape"])
        text += ["", *(f"{group}: {n} parameters, {entries:,} entries" for group, (n, entries) in totals.items())]
        return "\n".join(text)

    def __str__(self) -> str:
        return self.table()

    def _routed(self) -> Iterator[dict[str, Any]]:
        for group in self:
            for name, tensor in group["params"]:
                yield _row(name, tensor, group["role"], group)


def split_parameters(
    model: nn.Module,
    *,
    lr: float | None = None,
    adamw_lr: float | None = None,
    lr_ratios: Mapping[str, float] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    overrides: Mapping[str, str] | None = None,
    qkv: Mapping[str, int | Sequence[int]] | None = None,
    output: str | None = None,
) -> Routing:
    """Sort a model's parameters into groups for a matrix optimizer that also steps AdamW groups.

    Every parameter that wants a gradient is in exactly one group; tied ones count once, a tied embedding and head as an
    embedding. Grouped convolutions are split into one matrix per group, and fused projections into queries, keys and
    values, where the module tree says how many rows are whose (`internist.model.roles.fused_rows`, and
    `nn.MultiheadAttention`'s); `qkv` says otherwise.

    Args:
        model: wrappers of compilation and data parallelism are looked through.
        lr: learning rate of the hidden matrices; None leaves it to the optimizer.
        adamw_lr: of all AdamW groups; None: `lr`.
        lr_ratios: group name to a factor of that rate, 1 where none is given.
        options: group name to further keys of its groups (`weight_decay`, `betas`, `scale`, ...), which win.
        overrides: regular expression that a parameter's whole name matches, to the name of its group.
        qkv: the same, to `row_blocks`: a number of equal blocks of output rows (1: one matrix; three times the heads:
            one for each head's queries, keys and values), or the row counts.
        output: name of the head's module, where it is not the last linear layer outside the blocks.

    Returns:
        The groups, of `(name, parameter)` pairs, so that the optimizer keeps the names.

    Raises:
        ValueError: a parameter that no rule places, an unknown group, an expression that is invalid or matches
            nothing, two that disagree, ratios without a rate, a lazy parameter without a shape.
    """
    for name in (*(lr_ratios or ()), *(options or ()), *(overrides or {}).values()):
        _check_group(name)
    root = unwrap(model)
    places = _places(root, output)
    names = [place.name for place in places]
    asked = _matched("overrides", overrides or {}, names)
    blocks = _matched("qkv", qkv or {}, names)
    trainable = [place for place in places if place.tensor.requires_grad]
    grouped: dict[tuple[str, str, str, RowBlocks], list[tuple[str, nn.Parameter]]] = {}
    for place in trainable:
        part = asked.get(place.name, place.part)
        if not part:
            raise ValueError(
                f"no rule places parameter {place.name!r} of shape {tuple(place.tensor.shape)} ({place.reason}): say "
                f"overrides={{{re.escape(place.name)!r}: group}} with one of {', '.join(GROUPS)}"
            )
        if part == "hidden" and place.tensor.dim() < 2:
            raise ValueError(f"{place.name!r} of shape {tuple(place.tensor.shape)} is no matrix: it cannot be 'hidden'")
        role = "embedding+head" if {"embedding", "head"} <= place.parts and part != "hidden" else part
        rows: RowBlocks = None
        if part == "hidden":
            rows = _row_blocks(blocks[place.name]) if place.name in blocks else place.row_blocks
        elif place.name in blocks:
            raise ValueError(f"qkv names {place.name!r}, which is {part!r} and no hidden matrix")
        key = part, role, place.layout if part == "hidden" else "out_in", rows
        grouped.setdefault(key, []).append((place.name, place.tensor))
    groups = []
    for (part, role, layout, rows), members in sorted(grouped.items(), key=lambda item: GROUPS.index(item[0][0])):
        group: dict[str, Any] = {"params": members, "name": _group_name(part, role, layout, rows), "role": role}
        group["algorithm"] = "muon" if part == "hidden" else "adamw"
        if part == "hidden":
            group |= {"layout": layout, "row_blocks": rows}
        rate = _rate(part, lr, adamw_lr, lr_ratios or {})
        if rate is not None:
            group["lr"] = rate
        if part in UNDECAYED:
            group["weight_decay"] = 0.0
        groups.append(group | dict((options or {}).get(part, {})))
    return Routing(groups, [(place.name, place.tensor) for place in places if not place.tensor.requires_grad])


def _places(root: nn.Module, output: str | None) -> list[_Place]:
    """Every parameter once, with what all its places say of it."""
    blocks = block_names(root)
    tree = [(plain_name(raw), module) for raw, module in root.named_modules()]
    owners = dict(tree)
    head = head_name(root, tree, blocks, output)
    found: dict[int, _Place] = {}
    for name, module in tree:
        role = module_role(name, module, blocks, head, is_root=module is root)
        inside = block_of(name, blocks) is not None or not blocks
        for attribute, tensor in module.named_parameters(recurse=False):
            full = f"{name}.{attribute}" if name else attribute
            if is_lazy(tensor):
                raise ValueError(f"parameter {full!r} has no shape yet: call the model once before splitting it")
            place = found.setdefault(id(tensor), _Place(full, tensor))
            _sort(place, full, module, role, attribute, inside_trunk=inside)
            above, _, own = name.rpartition(".")
            fused = fused_rows(owners[above], own) if attribute == "weight" and above in owners else None
            if fused is not None:
                place.row_blocks = 3 if len(set(fused)) == 1 else fused
    return list(found.values())


def _sort(place: _Place, name: str, owner: nn.Module, role: Role, attribute: str, *, inside_trunk: bool) -> None:
    """Add what this place of the parameter says of it."""
    tensor = place.tensor
    kind, view = parameter_kind(owner, role, attribute, tensor.shape)
    if attribute.endswith("bias") or attribute.startswith("bias_"):
        place.parts.add("bias")
    elif kind == "vector" or is_norm(owner):
        place.parts.add("gain")
    elif kind in ("embedding", "head"):
        place.parts.add(kind)
    elif kind == "matrix":
        is_input = not inside_trunk and any(_EMBEDDING_WORDS.search(word) for word in name.split(".")[:-1])
        place.parts.add("embedding" if is_input else "hidden")
        if view == "transposed":
            place.layout = "in_out"
        elif view.startswith("convolution"):
            assert isinstance(owner, nn.modules.conv._ConvNd)
            place.layout = "in_out" if owner.transposed and tensor.dim() > 3 else "conv"
            place.row_blocks = owner.groups if owner.groups > 1 else None
        elif attribute == "in_proj_weight":
            place.row_blocks = 3
    elif _EMBEDDING_WORDS.search(attribute):
        place.parts.add("embedding")
    elif tensor.dim() == 3 and (_EXPERT_WORDS.search(name) or _EXPERT_WORDS.search(type(owner).__name__)):
        place.parts.add("hidden")
        place.layout = "in_out" if getattr(owner, "is_transposed", False) is True else "out_in"
    elif kind == "unknown" and attribute == "weight" and _ROUTER_WORDS.search(type(owner).__name__):
        place.parts.add("hidden")
    else:
        place.reason = f"held by a {type(owner).__name__}, whose use of it is not known"


def _check_group(name: str) -> None:
    if name not in GROUPS:
        near = get_close_matches(name, GROUPS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected a group of {', '.join(GROUPS)}, got {name!r}{hint}")


def _matched(what: str, patterns: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Parameter name to the value of the pattern that matches the whole of it."""
    found: dict[str, Any] = {}
    for pattern, value in patterns.items():
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{what}: {pattern!r} is not a valid regular expression: {error}") from error
        matches = [name for name in names if expression.fullmatch(name)]
        if not matches:
            near = get_close_matches(pattern, names, n=3, cutoff=0.3)
            raise ValueError(f"{what}: {pattern!r} matches no parameter's whole name; near are {', '.join(near)}")
        for name in matches:
            if found.get(name, value) != value:
                raise ValueError(f"{what}: {name!r} is matched twice, for {found[name]!r} and {value!r}")
            found[name] = value
    return found


def _row_blocks(blocks: int | Sequence[int]) -> RowBlocks:
    return blocks if isinstance(blocks, int) else tuple(int(rows) for rows in blocks)


def _rate(part: str, lr: float | None, adamw_lr: float | None, ratios: Mapping[str, float]) -> float | None:
    base = lr if part == "hidden" or adamw_lr is None else adamw_lr
    if base is None:
        if part in ratios:
            raise ValueError(f"lr_ratios gives a ratio for {part!r}, and there is no lr to take it of")
        return None
    return base * ratios.get(part, 1.0)


def _group_name(part: str, role: str, layout: str, rows: RowBlocks) -> str:
    """`hidden`, `hidden.conv`, `hidden.rows=3`, `embedding.tied`: unlike for unlike groups."""
    name = "embedding.tied" if role == "embedding+head" else part
    name += "" if layout == "out_in" else f".{layout}"
    return name if rows is None else f"{name}.rows={rows if isinstance(rows, int) else '+'.join(map(str, rows))}"


def _row(name: str, tensor: nn.Parameter, role: str, group: Mapping[str, Any]) -> dict[str, Any]:
    rows = group.get("row_blocks")
    return {
        "parameter": name,
        "shape": list(tensor.shape),
        "role": role,
        "algorithm": group.get("algorithm", "none"),
        "group": group.get("name", "frozen"),
        "layout": group.get("layout", "out_in"),
        "row_blocks": list(rows) if isinstance(rows, tuple) else rows,
    }


def _entries(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
