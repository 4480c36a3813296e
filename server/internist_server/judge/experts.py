"""Experts as the series of a model tell them: members of a numbered list within a block that are built alike."""

from collections import defaultdict
from collections.abc import Sequence

from internist_server.judge.series import JudgedSeries

Member = tuple[str, str]
"""The list, by the name of what holds it, and the member's number in it."""


def experts_of(series: Sequence[JudgedSeries]) -> dict[int, Member]:
    """By column, which expert a series is of; what is of none is not in it."""
    modules, blocks = [_module(one) for one in series], [one.facts.block for one in series]
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


def _module(one: JudgedSeries) -> str:
    """The module that a series is of."""
    return one.subject if one.kind == "module" else (one.facts.module or "") if one.kind == "parameter" else ""


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
