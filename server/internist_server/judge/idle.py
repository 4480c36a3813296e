"""Idle modules: experts that no token of a step came to. What a step did to them says nothing of how they are."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from internist_server.judge.checks import Flags, Indices
from internist_server.judge.series import JudgedSeries

_OF_A_STEP = ("gradient", "update")
"""Families of metrics that say what a step did to a parameter or by it."""
_OF_A_CALL = "activation"


class Idle:
    """Which modules a step may leave out: those of a numbered list within a block whose members are built alike. One
    that was not called at a step, where another of its list was, is idle there.

    Args:
        series: all of them.
    """

    def __init__(self, series: Sequence[JudgedSeries]) -> None:
        members = _members([_module(one) for one in series], [one.facts.block for one in series])
        lists = sorted({name for name, _ in members.values()})
        experts = sorted(set(members.values()))
        number = {member: place for place, member in enumerate(experts)}
        self._list_of: Indices = np.array([lists.index(name) for name, _ in experts], np.int64)
        own = np.full(len(series), -1, np.int64)
        for column, member in members.items():
            own[column] = number[member]
        family = np.array([one.metric.partition(".")[0] for one in series])
        self.columns: Flags = own >= 0
        """By column: whether a series is of such a module."""
        self._calls = np.flatnonzero(self.columns & (family == _OF_A_CALL))
        self._steps = np.flatnonzero(self.columns & np.isin(family, _OF_A_STEP))
        self._own = own

    def without(self, present: Flags) -> Flags:
        """What was measured at a step, less what a step did to modules that were idle there.

        Args:
            present: by column, whether measured.
        """
        if not self._steps.size:
            return present
        is_called = np.zeros(self._list_of.size, bool)
        is_called[self._own[self._calls[present[self._calls]]]] = True
        is_idle = ~is_called & np.isin(self._list_of, self._list_of[is_called])
        if not is_idle.any():
            return present
        kept = present.copy()
        kept[self._steps] &= ~is_idle[self._own[self._steps]]
        return kept


def _module(one: JudgedSeries) -> str:
    """The module that a series is of."""
    return one.subject if one.kind == "module" else (one.facts.module or "") if one.kind == "parameter" else ""


def _members(modules: Sequence[str], blocks: Sequence[str | None]) -> dict[int, tuple[str, str]]:
    """By column, the list that its module is in and its member there, of lists whose members are alike inside."""
    places: dict[str, tuple[str, str, str]] = {}
    for module, block in zip(modules, blocks, strict=True):
        if block is not None and module not in places and (found := _place(module, block)) is not None:
            places[module] = found
    inside: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, member, rest in places.values():
        inside[name][member].add(rest)
    alike = {name for name, each in inside.items() if _are_alike(list(each.values()))}
    return {
        column: places[module][:2]
        for column, module in enumerate(modules)
        if module in places and places[module][0] in alike
    }


def _place(module: str, block: str) -> tuple[str, str, str] | None:
    """The outermost list of a block that a module is in, its member there, and its name within that; None if it is in
    no list."""
    parts = module.removeprefix(f"{block}.").split(".") if module.startswith(f"{block}.") else []
    at = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return None
    return ".".join([block, *parts[:at]]), parts[at], ".".join(parts[at + 1 :])


def _are_alike(members: list[set[str]]) -> bool:
    """Whether there are several, each of the same parts."""
    return len(members) > 1 and bool(members[0] - {""}) and all(own - {""} == members[0] - {""} for own in members)
