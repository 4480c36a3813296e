"""The outline of a model as its series tell it: which block each belongs to, in forward order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from internist_server.judge.columns import MISSING, Indices
from internist_server.judge.series import JudgedSeries

_BACKWARD = 1
_STAGES = {"activation": 0, "attention": 0, "block": 0, "output": 0, "router": 0, "gradient": _BACKWARD}
"""Stage of a step by the subject of the metric; what is not here comes of the update."""
_UPDATE, _GROUP, _LAST = 2, 3, 4


@dataclass(frozen=True, slots=True)
class Outline:
    """Blocks, and modules outside blocks; `place` and `block` are aligned with the series."""

    place: Indices
    """Order in which a step makes them: outputs in forward order, of a module that holds others after theirs; then
    gradients, from the last to the first, then weights and what the update makes of them, then the optimizer's groups,
    and last the whole model."""
    block: Indices
    """Place in `blocks`; MISSING for series of a parameter group or of the whole model."""
    blocks: tuple[str, ...]
    block_order: tuple[int, ...]

    @classmethod
    def of(cls, series: Sequence[JudgedSeries]) -> "Outline":
        """The outline of these series."""
        order: dict[str, int] = {}
        names: list[str | None] = []
        for one in series:
            facts = one.facts
            name = (facts.block or facts.module or one.subject) if one.kind in ("module", "parameter") else None
            names.append(name)
            if name is not None:
                order[name] = min(order.get(name, facts.order), facts.order)
        number = {name: place for place, name in enumerate(order)}
        return cls(
            place=_places(series),
            block=np.array([MISSING if name is None else number[name] for name in names], np.int64),
            blocks=tuple(order),
            block_order=tuple(order.values()),
        )


def blocks_of(series: Sequence[JudgedSeries]) -> list[str]:
    """The residual blocks in forward order."""
    order: dict[str, int] = {}
    for one in series:
        block = one.facts.block
        if block is not None:
            order[block] = min(order.get(block, one.facts.order), one.facts.order)
    return sorted(order, key=lambda block: (order[block], block))


def _places(series: Sequence[JudgedSeries]) -> Indices:
    """Place of each series among all. A module that holds others is over when they are: a NaN that all of them show
    was made in the innermost."""
    order: dict[str, int] = {}
    for one in series:
        if one.kind == "module" and one.subject:
            order[one.subject] = min(order.get(one.subject, one.facts.order), one.facts.order)
    ends: list[str] = []
    inside: list[str] = []
    for name in sorted(order, key=lambda name: (order[name], name)):
        while inside and not name.startswith(inside[-1] + "."):
            ends.append(inside.pop())
        inside.append(name)
    ends += reversed(inside)
    ended = {name: place for place, name in enumerate(ends)}

    def place(one: JudgedSeries) -> tuple[int, int]:
        if one.kind == "model" or (one.kind == "module" and not one.subject):
            return _LAST, one.facts.order
        stage = _STAGES.get(one.metric.partition(".")[0], _UPDATE) if one.kind != "group" else _GROUP
        return stage, ended.get(one.facts.module or one.subject, one.facts.order)

    keys = [place(one) for one in series]
    size = max([len(ended), *(at for _, at in keys)], default=0) + 1
    ordered = [stage * size + (size - 1 - at if stage == _BACKWARD else at) for stage, at in keys]
    return np.array(ordered, np.int64)


def homes(series: Sequence[JudgedSeries]) -> list[str]:
    """By series, where the parameters of a group are: in one block, or how many there are; empty for what is of no
    group or of one whose parameters are not measured."""
    members: dict[int, dict[str, str]] = {}
    for one in series:
        if one.kind == "parameter" and one.facts.group is not None:
            home = one.facts.block or one.facts.module or one.subject
            members.setdefault(one.facts.group, {})[one.subject] = home
    said = []
    for one in series:
        own = members.get(-1 if one.facts.group is None else one.facts.group, {}) if one.kind == "group" else {}
        places = set(own.values())
        said.append("" if not own else places.pop() if len(places) == 1 else f"{len(own)} parameters")
    return said
