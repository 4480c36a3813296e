"""The family of a model: how much larger each of its parameters is than the base model's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import nn

from internist.model.roles import plain_name, unwrap
from internist.mup.rules import Ratios
from internist.mup.structure import Part, Structure, block_list, fits

Size = tuple[int, int | None]
"""Width and number of residual blocks; None: as many as the model has."""


@dataclass(slots=True)
class Family:
    """A model against its base."""

    ratios: dict[str, Ratios]
    """Parameter to how much it grew."""
    depth: float
    """r_L."""
    base: str
    """The base in words."""
    rms: dict[str, float] = field(default_factory=dict)
    """Parameter to the RMS of its counterpart in a base model that holds weights."""
    even: float | None = None
    """r_n, where every width grew by the same."""


def against_size(model: Structure, size: Sequence[int | None]) -> Family:
    """A model against a base of this width and depth: every width grew alike, inputs and outputs are fixed.

    Raises:
        ValueError: the size is not one, is larger than the model's, or asks for depth where there are no blocks; or
            the model's width or a parameter's role cannot be told.
    """
    width, depth = _checked_size(size)
    for part in model.parts:
        if not part.role:
            raise ValueError(unplaced(part))
    own = model.width()
    if width > own:
        raise ValueError(f"the base is wider than the model: {width} against {own}. A base is a smaller model")
    deeper = depth_ratio(model.depth, depth)
    r = own / width
    ratios = {}
    for part in model.parts:
        grows_in = part.role in ("hidden", "router", "output")
        grows_out = part.role in ("hidden", "input") or (
            part.role in ("gain", "bias") and part.tensor.numel() > 1 and not _is_of_fixed_length(part, model)
        )
        ratios[part.name] = Ratios(r if grows_in else 1.0, r if grows_out else 1.0, r, deeper)
    shown = f"{width} wide" if depth is None or not model.depth else f"{width} wide, {_blocks(depth)}"
    return Family(ratios, deeper, shown, even=r)


def against_model(model: Structure, base: nn.Module) -> Family:
    """A model against a smaller one of its family: shapes say what grew.

    Raises:
        ValueError: the base has other parameters, is larger, or differs in more than width and depth; or a parameter's
            role contradicts how it grew.
    """
    root = unwrap(base)
    known = fits(root, like=model)
    partners = _partners(model, known, root)
    there = {plain_name(raw) for raw, _ in root.named_modules()}
    shallow = len([name for name in model.blocks if name in there])
    base_depth = max(shallow, len(block_list(root))) if shallow else 0
    deeper = depth_ratio(model.depth, base_depth or None)
    ratios, rms = {}, {}
    for part in model.parts:
        partner = partners[part.name][0]
        _require_smaller(part, partner)
        grew_in, grew_out = part.fan_in / partner.fan_in, part.fan_out / partner.fan_out
        if not part.role:
            part.roles[_role_by_growth(part, grew_in, grew_out)] = part.name.rpartition(".")[0]
        _require_consistent(part, partner, grew_in, grew_out)
        longest = max(part.fan_in, part.fan_out) / max(partner.fan_in, partner.fan_out)
        fixed = part.role == "input" and (part.is_tied or part.is_table)
        ratios[part.name] = Ratios(1.0 if fixed else grew_in, grew_out, longest, deeper)
        if part.tensor.dim() >= 2 and (value := _pooled_rms(partners[part.name])) is not None:
            rms[part.name] = value
    hidden = {ratios[part.name].fan_in for part in model.parts if part.role == "hidden"}
    even = hidden.pop() if len(hidden) == 1 else None
    shown = f"a model of {_blocks(base_depth)}" if base_depth else "a model"
    return Family(ratios, deeper, shown, rms, even)


def depth_ratio(depth: int, base: int | None) -> float:
    """r_L of a model of `depth` blocks; one where the base says none.

    Raises:
        ValueError: there are no blocks, or the base has more.
    """
    if base is None or (base == 0 and depth == 0):
        return 1.0
    if depth == 0:
        raise ValueError(
            f"the base is {base} blocks deep and the model has no residual blocks (children of a ModuleList or "
            "Sequential, alike and with layers of their own): depth has nothing to scale. Say base=(width, None), or "
            "roles={regex: 'block'} for the modules that are blocks"
        )
    if base > depth:
        raise ValueError(f"the base is deeper than the model: {base} blocks against {depth}. A base is a smaller model")
    return depth / base


def unplaced(part: Part) -> str:
    """Why a parameter has no role, and what may be said."""
    name = part.name.replace(".", r"\.")
    return (
        f"no rule places parameter {part.name!r} of shape {tuple(part.tensor.shape)} ({part.note}): say "
        f"roles={{{name!r}: role}} with one of {', '.join(part.choices)}"
    )


def _checked_size(size: Sequence[int | None]) -> Size:
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ValueError(f"expected a base of (width, depth) or a model, got {size!r}")
    width, depth = size
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ValueError(f"expected a base of positive width, got {width!r}")
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):
        raise ValueError(f"expected a base whose depth is a number of blocks or None, got {depth!r}")
    return width, depth


def _blocks(count: int) -> str:
    return f"{count} block{'' if count == 1 else 's'}"


def _is_of_fixed_length(part: Part, model: Structure) -> bool:
    """Whether a vector belongs to an output or a router, which have as many entries at every width."""
    owner = part.name.rpartition(".")[0]
    routers = {other.name.rpartition(".")[0] for other in model.parts if other.role == "router"}
    return owner in model.outputs or owner in routers


def _partners(model: Structure, known: dict[str, Part], root: nn.Module) -> dict[str, list[Part]]:
    """Parameter to its counterparts in the base, at least one: of the same name, and of every block of its list."""
    partners: dict[str, list[Part]] = {}
    for part in model.parts:
        names = [part.name]
        if part.block is not None:
            inside, listed = part.name[len(part.block) :], part.block.rpartition(".")[0]
            names += [block + inside for block in model.blocks if block.rpartition(".")[0] == listed]
        found = [known[name] for name in dict.fromkeys(names) if name in known]
        if not found:
            near = get_close_matches(part.name, known, n=1)
            hint = f"; the nearest it has is {near[0]!r}" if near else ""
            raise ValueError(f"the base is of another family: it has no parameter {part.name!r}{hint}")
        partners[part.name] = [one for one in found if one.tensor.shape == found[0].tensor.shape]
    own = {part.name for part in model.parts}
    shared = {id(known[name].tensor) for name in own & known.keys()}
    extra = [name for name, part in known.items() if name not in own and id(part.tensor) not in shared]
    if extra:
        if any(extra[0].startswith(block + ".") for block in block_list(root)):
            raise ValueError(f"the base is deeper than the model, or of another family: only it has {extra[0]!r}")
        raise ValueError(f"the base is of another family: the model has no parameter {extra[0]!r}")
    return partners


def _pooled_rms(partners: Sequence[Part]) -> float | None:
    """The RMS over all counterparts of a parameter; None where they hold no weights."""
    tensors = [partner.tensor.detach() for partner in partners]
    if any(tensor.is_meta for tensor in tensors):
        return None
    squares = [float(tensor.to(torch.float32).square().mean()) for tensor in tensors]
    return math.sqrt(sum(squares) / len(squares))


def _require_smaller(part: Part, partner: Part) -> None:
    if part.tensor.dim() != partner.tensor.dim():
        raise ValueError(
            f"the base is of another family: {part.name!r} has shape {tuple(part.tensor.shape)} and there "
            f"{tuple(partner.tensor.shape)}"
        )
    fans = [("fan_out", part.fan_out, partner.fan_out)]
    if not (part.role == "input" and part.is_table):
        fans.append(("fan_in", part.fan_in, partner.fan_in))
    for what, own, base in fans:
        if base > own:
            raise ValueError(
                f"the base is larger than the model: {what} of {part.name!r} is {base} there and {own} here. A base "
                "is a smaller model"
            )


def _require_consistent(part: Part, partner: Part, grew_in: float, grew_out: float) -> None:
    """Refuse what is no growth in width."""
    wrong = ""
    if "output" in part.roles and not math.isclose(grew_in if part.is_tied else grew_out, 1.0):
        base, own = (partner.fan_in, part.fan_in) if part.is_tied else (partner.fan_out, part.fan_out)
        wrong = f"it makes {own} outputs and the base's {base}"
    elif part.role == "input" and not part.is_table and not math.isclose(grew_in, 1.0):
        wrong = f"as an input its fan_in is fixed, and it is {part.fan_in} here and {partner.fan_in} in the base"
    elif part.is_stack and part.tensor.shape[0] != partner.tensor.shape[0]:
        wrong = f"it stacks {part.tensor.shape[0]} matrices and the base's {partner.tensor.shape[0]}"
    if wrong:
        raise ValueError(
            f"the base differs in more than width and depth, or {part.name!r} is no {part.role}: {wrong}. Make them "
            f"alike, or say roles={{...: role}} with one of input, hidden, output"
        )


def _role_by_growth(part: Part, grew_in: float, grew_out: float) -> str:
    """The role that shapes tell of a layer outside the blocks, where the tree did not."""
    if set(part.choices) != {"input", "hidden", "output"}:
        raise ValueError(unplaced(part))
    if math.isclose(grew_in, 1.0) and not math.isclose(grew_out, 1.0):
        return "input"
    if math.isclose(grew_out, 1.0) and not math.isclose(grew_in, 1.0):
        raise ValueError(unplaced(part))
    return "hidden"
