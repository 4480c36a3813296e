"""What a residual branch multiplies, one after the other: its matrices in stages, and the queries and keys beside them.

A stage is one matrix, or several that lie side by side (a gate and what it gates). The branch's map is the product of
its stages, so what theory asks of a branch is asked of the product of one norm from each of them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from internist.model.branches import QUERY_NORM, Branch, Matrix, kind_of, last_of, stream_width
from internist.model.roles import KEY_NAMES, QKV_NAMES, QUERY_NAMES

VALUE_NAMES = ("v_proj", "value", "wv", "w_v", "to_v", "v_lin", "value_proj", "v")
KEY_VALUE_NAMES = ("kv_proj", "to_kv", "wkv", "w_kv", "kv")
_GATES = re.compile(r"gate|(^|[._])(w1|w3|wi_0|wi_1|fc1_[gx])$", re.IGNORECASE)
_ENDS = re.compile(r"[._]weight$")


class Link(NamedTuple):
    """A matrix of a chain, or some of its rows."""

    matrix: str
    rows: int | None = None
    """How many of its rows take part, where it holds more than one map (fused projections); None: all."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The stages through which a branch leads, first to last."""

    branch: Branch
    stages: tuple[tuple[Link, ...], ...]
    expert: int | None = None
    """Which expert of a list of them; None: there is one chain, or one for each expert of a stack."""


@dataclass(frozen=True, slots=True)
class Logits:
    """The queries and keys of an attention branch, whose product its logits are."""

    branch: Branch
    query: Link
    key: Link
    query_features: int


def chains_of(
    branch: Branch, matrices: Mapping[str, Matrix], modules: Mapping[str, nn.Module]
) -> tuple[list[Chain], Logits | None]:
    """The chains of a branch, and its queries and keys if it is attention.

    Args:
        branch: as `branches_of` found it.
        matrices: of its block, by name.
        modules: of the model, by plain name.

    Returns:
        Nothing where the shapes do not say how the matrices follow each other.
    """
    members = [matrices[name] for name in branch.matrices if not matrices[name].is_router]
    width = stream_width(list(matrices.values()))
    attention = _attention(branch, members, width, modules)
    if attention is not None:
        return attention
    chains = []
    for expert, own in _by_expert(branch, members, modules).items():
        stages = _stages(own, width)
        if stages:
            chains.append(Chain(branch, stages, expert))
    return chains, None


# ---- attention -----------------------------------------------------------------------------------------------------


def _attention(
    branch: Branch, members: Sequence[Matrix], width: int, modules: Mapping[str, nn.Module]
) -> tuple[list[Chain], Logits | None] | None:
    """Values into outputs, and queries with keys; None where the branch is no attention."""
    named = {_leaf(member): member for member in members}
    query, key, value = (_named(named, names) for names in (QUERY_NAMES, KEY_NAMES, VALUE_NAMES))
    fused, pair = _named(named, (*QKV_NAMES, "in_proj")), _named(named, KEY_VALUE_NAMES)
    inner = [each for each in (query, key, value, fused, pair) if each is not None]
    is_whole = fused is not None or (
        query is not None and (pair is not None or (key is not None and value is not None))
    )
    if not inner or (not is_whole and query is None):
        return None
    out = last_of([member for member in members if member not in inner], width)
    if out is None or not is_whole:
        return [], None
    features = out.features[1]
    if fused is not None:
        held, odd = divmod(fused.fan_out - features, 2)
        if held <= 0 or odd:
            return [], None
        links = Link(fused.name, features), Link(fused.name, held), Link(fused.name, held)
    elif pair is not None and query is not None:
        half = Link(pair.name, pair.fan_out // 2)
        links = Link(query.name), half, half
    else:
        assert query is not None and key is not None and value is not None
        links = Link(query.name), Link(key.name), Link(value.name)
    chain = Chain(branch, ((links[2],), (Link(out.name),)))
    tops = branch.containers or (branch.block,)
    is_normed = any(QUERY_NORM.search(name) for name in modules if any(name.startswith(top + ".") for top in tops))
    return [chain], None if is_normed else Logits(branch, links[0], links[1], features)


def _named(members: Mapping[str, Matrix], names: Sequence[str]) -> Matrix | None:
    return next((members[name] for name in names if name in members), None)


def _leaf(matrix: Matrix) -> str:
    """The last word of a matrix's name, without `weight`."""
    return _ENDS.sub("", matrix.name.removesuffix("_weight")).rpartition(".")[2]


# ---- other branches ------------------------------------------------------------------------------------------------


def _by_expert(
    branch: Branch, members: Sequence[Matrix], modules: Mapping[str, nn.Module]
) -> dict[int | None, list[Matrix]]:
    """The matrices of each expert of a list; under None what every token passes, or a stack of experts."""
    top = branch.containers[0] if branch.containers else ""
    groups: dict[int | None, list[Matrix]] = {}
    stacked = any(member.is_stack for member in members)
    for member in members:
        if stacked and not member.is_stack:
            continue  # of an expert that all tokens share: another chain than the stack's
        starred, parts = kind_of(member, top, modules).split("."), member.name.split(".")
        number = next((int(part) for star, part in zip(starred, parts, strict=True) if star == "*"), None)
        groups.setdefault(number, []).append(member)
    return groups


def _stages(members: Sequence[Matrix], width: int) -> tuple[tuple[Link, ...], ...]:
    """The matrices in stages, the one that comes back to the stream last; nothing where they do not fit."""
    last = _last(members, width)
    if last is None:
        return ()
    groups: list[list[Matrix]] = []
    for member in members:
        if member is last:
            continue
        if groups and _lie_side_by_side(groups[-1][-1], member):
            groups[-1].append(member)
        else:
            groups.append([member])
    groups.append([last])
    if groups[0][0].features[1] != width:
        return ()
    stages = []
    for here, following in zip(groups, [*groups[1:], None], strict=True):
        wanted = width if following is None else following[0].features[1]
        given = here[0].features[0]
        if given not in (wanted, 2 * wanted if following is not None else wanted):
            return ()
        stages.append(tuple(Link(each.name, wanted if given != wanted else None) for each in here))
    return tuple(stages)


def _last(members: Sequence[Matrix], width: int) -> Matrix | None:
    """The matrix that comes back to the stream; of convolutions the last that does."""
    if all(isinstance(member.owner, nn.modules.conv._ConvNd) for member in members):
        return next((member for member in reversed(members) if member.features[0] == member.fan_out), None)
    return last_of(members, width)


def _lie_side_by_side(one: Matrix, other: Matrix) -> bool:
    """Whether two matrices take the same input: equal shapes that do not fit one behind the other, or a gate."""
    if one.features != other.features:
        return False
    fan_out, fan_in = one.features
    return fan_out != fan_in or all(_GATES.search(_leaf(each)) for each in (one, other))
