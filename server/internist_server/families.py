"""Families of runs, inferred from what the runs declared; pure."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from internist.scaling.errors import NotAFamily
from internist.scaling.family import face, settle
from internist.scaling.members import Key, Member
from internist.schema.scaling import ScalingFamily
from internist.schema.wire import Scalar
from internist_server.store.scaling import Candidate, is_seed

PATH: Final = "/api/v1/scaling"
_ID_LENGTH: Final = 12
_AS_IF_MEASURED: Final[dict[Key, float]] = {("weight.rms", "hidden", "init"): 1.0}
"""Whether sizes suffice is asked before anything is read."""

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Relative:
    """A run with what tells which family it belongs to."""

    candidate: Candidate
    member: Member
    """Without values."""

    @property
    def size(self) -> Size:
        """(width, depth)."""
        return self.member.width, self.member.depth

    @property
    def kind(self) -> dict[str, Scalar]:
        """What all runs of a family share besides the project; width, depth and seed are not in it."""
        algorithms = self.member.facts.algorithms
        return {
            "optimizer": self.member.optimizer,
            "embedding": algorithms.get("embedding"),
            "head": algorithms.get("head"),
            "parametrization": self.member.facts.parametrization,
            "vocabulary": self.member.shape.vocabulary,
            "matrices a block": self.member.shape.block_matrices,
        }


def infer(relatives: Sequence[Relative]) -> list[ScalingFamily]:
    """The families among runs: those that can be checked first, then the newest first.

    Runs belong together that agree in project, optimizer, parametrization, vocabulary and the number of matrices in a
    block, and in the entries of the configuration that were swept: those (seeds apart) that vary among runs of the same
    width and depth while a value of theirs recurs at other sizes. An entry that follows the size, such as the width
    itself, or that is new in every run, such as a directory, parts nobody. A set of runs of one size is no family.
    """
    found: list[tuple[ScalingFamily, int]] = []
    projects: dict[str, list[Relative]] = {}
    for one in relatives:
        projects.setdefault(one.candidate.project, []).append(one)
    for project, members in projects.items():
        kinds = _parted(members, [one.kind for one in members])
        differing = _differing([kind for kind, _ in kinds])
        for kind, alike in kinds:
            swept = _swept(alike)
            settings = [{key: one.candidate.config.get(key) for key in swept} for one in alike]
            for setting, group in _parted(alike, settings):
                if len({one.size for one in group}) > 1:
                    shown = {key: kind[key] for key in kind if key in differing or key == "optimizer"} | setting
                    family = _family(project, kind | setting, shown, group)
                    found.append((family, max(one.candidate.created_at_ms for one in group)))
    found.sort(key=lambda pair: (not pair[0].checkable, -pair[1], pair[0].name))
    return [family for family, _ in found]


def _parted(
    members: Sequence[Relative], keys: Sequence[dict[str, Scalar]]
) -> list[tuple[dict[str, Scalar], list[Relative]]]:
    """Members of equal keys, in the order in which they come."""
    parts: dict[str, tuple[dict[str, Scalar], list[Relative]]] = {}
    for member, key in zip(members, keys, strict=True):
        parts.setdefault(_text(key), (key, []))[1].append(member)
    return list(parts.values())


def _differing(kinds: Sequence[dict[str, Scalar]]) -> set[str]:
    """Names of what not all kinds have in common."""
    return {key for key in (kinds[0] if kinds else ()) if len({str(kind[key]) for kind in kinds}) > 1}


def _swept(members: Sequence[Relative]) -> list[str]:
    """Entries of the configuration that were swept at each size."""
    keys = sorted({key for one in members for key in one.candidate.config if not is_seed(key)})
    return [key for key in keys if _is_swept(key, members)]


def _is_swept(key: str, members: Sequence[Relative]) -> bool:
    of_size: dict[Size, set[str]] = {}
    for one in members:
        of_size.setdefault(one.size, set()).add(_text(one.candidate.config.get(key)))
    if all(len(values) == 1 for values in of_size.values()):
        return False
    counts: dict[str, int] = {}
    for values in of_size.values():
        for value in values:
            counts[value] = counts.get(value, 0) + 1
    return max(counts.values()) > 1


def _family(
    project: str, shared: dict[str, Scalar], shown: dict[str, Scalar], group: Sequence[Relative]
) -> ScalingFamily:
    members = tuple(face(one.member) for one in sorted(group, key=_by_size))
    widths = tuple(sorted({one.width for one in members}))
    depths = tuple(sorted({one.depth for one in members}))
    missing = _missing(group)
    identity = hashlib.sha256(_text([project, shared]).encode()).hexdigest()[:_ID_LENGTH]
    return ScalingFamily(
        id=identity,
        name=" · ".join([project, *(_said(key, value) for key, value in shown.items() if value not in (None, ""))]),
        project=project,
        runs=members,
        widths=widths,
        depths=depths,
        checkable=not missing,
        reason=missing,
        url=f"{PATH}?family={identity}",
    )


def _missing(group: Sequence[Relative]) -> str:
    """Why these runs cannot be checked, in words; empty where they can be, as far as their sizes tell."""
    try:
        settle([replace(one.member, values=_AS_IF_MEASURED) for one in group])
    except NotAFamily as error:
        return str(error)
    return ""


def _said(key: str, value: Scalar) -> str:
    return str(value) if key in ("optimizer", "parametrization") else f"{key} {value}"


def _by_size(one: Relative) -> tuple[int, int, int, str]:
    return *one.size, one.member.seed or 0, one.candidate.run


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
