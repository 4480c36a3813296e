"""What makes models a family: they agree in everything but width, depth and seed, and there are enough sizes."""

import math
from collections.abc import Callable, Sequence

from internist.scaling.errors import NotAFamily
from internist.scaling.members import Member
from internist.schema.scaling import FEWEST_SIZES, Axis, Excluded, FamilyMember


def settle(members: Sequence[Member]) -> tuple[list[Member], list[Excluded]]:
    """The members that can be compared, smallest first, and those that cannot, with the reason.

    Raises:
        NotAFamily: those that can be compared differ in more than width, depth and seed, have fewer than three
            different widths and fewer than three different depths, or grow in width and depth together.
    """
    kept: list[Member] = []
    excluded: list[Excluded] = []
    lacks_blocks = len({m.depth for m in members}) > 1
    for member in members:
        reason = _obstacle(member, lacks_blocks=lacks_blocks)
        if reason:
            excluded.append(Excluded(member.run, member.name, reason))
        else:
            kept.append(member)
    without = "" if not excluded else "; " + "; ".join(f"{e.name} is left out: {e.reason}" for e in excluded)
    _agree(kept)
    _enough(kept, without)
    kept.sort(key=lambda m: (m.width, m.depth, -1 if m.seed is None else m.seed, m.name))
    return kept, excluded


def face(member: Member) -> FamilyMember:
    """A member as the report names it."""
    return FamilyMember(member.run, member.name, member.width, member.depth, member.seed, member.optimizer)


def differing(members: Sequence[Member]) -> str:
    """The fact in which these models differ although a family agrees in it, in words; empty where there is none."""
    for what, read in _SHARED:
        found: dict[str, str] = {}
        for member in members:
            value = read(member)
            if value:
                found.setdefault(value, member.name)
        if len(found) > 1:
            (one, first), (other, second), *_ = found.items()
            return f"the {what} of {first} is {one}, of {second} {other}"
    return ""


_SHARED: tuple[tuple[str, Callable[[Member], str]], ...] = (
    ("optimizer of hidden matrices", lambda m: m.facts.algorithms.get("hidden", "")),
    ("optimizer of the embedding", lambda m: m.facts.algorithms.get("embedding", "")),
    ("optimizer of the head", lambda m: m.facts.algorithms.get("head", "")),
    ("number of outputs (vocabulary)", lambda m: str(m.shape.vocabulary or "")),
    ("number of matrices in a block", lambda m: str(m.shape.block_matrices or "")),
    ("declared parametrization", lambda m: m.facts.parametrization),
)
"""What has to agree. An empty text was not recorded."""


def _obstacle(member: Member, *, lacks_blocks: bool) -> str:
    for (metric, role, window), value in member.values.items():
        if not math.isfinite(value):
            return f"{metric} of {role} is NaN or infinite ({window})"
    if member.depth < 1 and lacks_blocks:
        return (
            "no residual blocks were found in it (a list of at least two modules of one class with children), so its "
            "depth is unknown"
        )
    if not member.values:
        return "none of what is judged was measured"
    return ""


def _agree(members: Sequence[Member]) -> None:
    difference = differing(members)
    if difference:
        raise NotAFamily(f"these models differ in more than width, depth and seed: {difference}")


def _enough(members: Sequence[Member], without: str) -> None:
    sizes: dict[Axis, list[int]] = {
        "width": sorted({m.width for m in members}),
        "depth": sorted({m.depth for m in members}),
    }
    if all(len(found) < FEWEST_SIZES for found in sizes.values()):
        if not members:
            raise NotAFamily(f"there is no model to compare{without}")
        wanting = " or ".join(
            f"{FEWEST_SIZES - len(found)} more {axis}{'s' if FEWEST_SIZES - len(found) > 1 else ''} "
            f"(there {'is' if len(found) == 1 else 'are'} {', '.join(map(str, found))})"
            for axis, found in sizes.items()
        )
        raise NotAFamily(
            f"an exponent needs {FEWEST_SIZES} different widths or {FEWEST_SIZES} different depths: {wanting} would do"
            f"{without}"
        )
    pairs = {(m.width, m.depth) for m in members}
    if all(len(found) > 1 for found in sizes.values()) and len(pairs) == len(sizes["width"]) == len(sizes["depth"]):
        raise NotAFamily(
            "every model has a width and a depth of its own, so what comes of the one cannot be told from what comes "
            f"of the other: add a model that changes only one of them (there are {_listed(sorted(pairs))})"
        )


def _listed(pairs: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{width} x {depth}" for width, depth in pairs)
