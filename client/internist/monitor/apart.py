"""Ranks that hold other weights: stages of a pipeline and experts get names of their own, so that no two layers are
merged.

Ranks that train replicas of one model, or hold pieces of it, report under one name, and the server merges them. Whether
they do is read from the weights when they are watched: every rank tells a digest of its own, and compares its weights
with those of every other kind of model among the lower ranks. Wrapped in DistributedDataParallel a model needs no
comparison: the wrapper makes the ranks one.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from torch import nn

from internist.model.roles import block_names, plain_name
from internist.monitor.fingerprints import Fingerprints, digest_of, fingerprints
from internist.monitor.identity import Identity, Store, default_store

_LOG = logging.getLogger("internist")
_PATIENCE_S = 30.0

Rename = Callable[[str], str] | Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Apart:
    """How a rank's model differs from those of lower ranks."""

    names: Mapping[str, str] = field(default_factory=dict)
    """What modules are called whose names are those of other ones on a lower rank."""
    blocks: Mapping[str, str] = field(default_factory=dict)
    """What blocks are called, and with them all that is in them: numbered through all stages."""
    modules: frozenset[str] = frozenset()
    """As they are called here in the end: modules with parameters that no lower rank holds."""
    stage: int = 0
    """Of a pipeline: which stage the model is."""
    is_first: bool = True
    """Whether no lower rank has the same model, or shares weights with it."""
    place: int = 0
    """Modules of the stages before."""

    def renamed(self, rename: Rename) -> Callable[[str], str]:
        """The user's renaming, with the names that other ranks would use too set apart."""
        given = _renamer(rename)
        return lambda name: self._shown(given(name))

    def _shown(self, name: str) -> str:
        outer = name
        while outer and outer not in self.blocks:
            outer = outer.rpartition(".")[0]
        return self.blocks[outer] + name[len(outer) :] if outer else self.names.get(name, name)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A model, as the ranks that have it tell it."""

    digest: str
    parameters: Fingerprints
    modules: tuple[str, ...]
    blocks: tuple[str, ...]
    """Names of blocks, in order."""

    @classmethod
    def of(cls, root: nn.Module, given: Callable[[str], str]) -> "_Kind":
        parameters = {_of_parameter(given, name): told for name, told in fingerprints(root).items()}
        names = [plain_name(name) for name, _ in root.named_modules()]
        inside = block_names(root)
        blocks = (given(name) for name in names if name in inside)
        return cls(digest_of(parameters), parameters, tuple(map(given, names)), tuple(blocks))

    def told(self) -> str:
        return json.dumps([self.digest, self.parameters, self.modules, self.blocks])

    @classmethod
    def read(cls, text: bytes) -> "_Kind":
        digest, parameters, modules, blocks = json.loads(text)
        return cls(digest, {name: (p, bool(t)) for name, (p, t) in parameters.items()}, tuple(modules), tuple(blocks))


def apart(model: nn.Module, root: nn.Module, who: Identity, turn: int, rename: Rename) -> Apart:
    """How a rank's model differs from those of lower ranks.

    Where the ranks cannot talk to each other they are taken for replicas, unless the user gives names.

    Args:
        model: as it is watched, wrappers included.
        root: the user's own module inside.
        who: this rank.
        turn: how many models this process has watched before: ranks watch them in the same order.
        rename: the user's own renaming.
    """
    store = default_store() if who.world_size > 1 else None
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return Apart(is_first=who.rank == 0)
    if store is None:
        return Apart(is_first=who.rank == 0 or rename is not None)
    mine = _Kind.of(root, _renamer(rename))
    key = f"internist/weights/{turn}"
    store.set(f"{key}/of/{mine.digest}", mine.told())
    store.set(f"{key}/{who.rank}", mine.digest)
    if who.rank == 0:
        return Apart()
    try:
        lower = _lower_kinds(store, key, who.rank)
    except (RuntimeError, LookupError, ValueError) as error:  # what stores raise on a timeout differs by backend
        _LOG.warning(
            "internist: rank %d does not know lower ranks' weights, and takes them for its own: %s", who.rank, error
        )
        return Apart(is_first=False)
    digests = [kind.digest for kind in lower]
    is_known = mine.digest in digests
    return _compared(mine, lower[: digests.index(mine.digest)] if is_known else lower, is_first=not is_known)


def _compared(mine: _Kind, earlier: Sequence[_Kind], *, is_first: bool) -> Apart:
    """A model against the other kinds that lower ranks have, in their order."""
    if not earlier:
        return Apart(is_first=is_first)
    shared = {name for kind in earlier for name in kind.parameters if name in mine.parameters}
    same = {name for kind in earlier for name in shared if kind.parameters.get(name) == mine.parameters[name]}
    # ones and zeros are the same everywhere: they do not make two layers one
    is_stage = not any(mine.parameters[name][1] for name in same)
    other = shared if is_stage else shared - same
    clashing = {_owner(name) for name in other}
    own = clashing | {_owner(name) for name in mine.parameters if name not in shared}
    blocks: dict[str, str] = {}
    if is_stage:
        blocks = _numbered_on(mine, earlier)
        clashing = {name for name in mine.modules if any(name in kind.modules for kind in earlier)}
    prefix = f"{'pp' if is_stage else 'ep'}{len(earlier)}"
    names = {name: f"{prefix}.{name}" if name else prefix for name in clashing}
    found = Apart(
        names,
        blocks,
        stage=len(earlier) if is_stage else 0,
        is_first=is_first and is_stage,
        place=sum(len(kind.modules) for kind in earlier) if is_stage else 0,
    )
    shown = found.renamed(None)
    if other and is_first:
        _LOG.warning(
            "internist: %d of %d parameters of this rank are not those that a lower rank has under the same name, such "
            "as %s, which is reported of %s; watch(rename=...) gives other names. Replicas that become equal later "
            "are one if they are watched then (DistributedDataParallel: after it)",
            len(other), len(mine.parameters), min(other), shown(_owner(min(other))),
        )  # fmt: skip
    return Apart(
        found.names,
        blocks,
        frozenset(map(shown, own)) if is_first else frozenset(),
        found.stage,
        found.is_first,
        found.place,
    )


def _numbered_on(mine: _Kind, earlier: Sequence[_Kind]) -> dict[str, str]:
    """New names of a stage's blocks, counted on from the blocks of earlier stages, where theirs have the same names."""
    taken = {name for kind in earlier for name in kind.blocks}
    if taken.isdisjoint(mine.blocks):
        return {}
    before: dict[str, int] = {}
    for kind in earlier:
        for name in kind.blocks:
            stem = name.rpartition(".")[0]
            before[stem] = before.get(stem, 0) + 1
    found: dict[str, str] = {}
    for name in mine.blocks:
        stem, _, last = name.rpartition(".")
        if last.isdecimal() and before.get(stem):
            found[name] = f"{stem}.{int(last) + before[stem]}" if stem else str(int(last) + before[stem])
    return found


def _lower_kinds(store: Store, key: str, rank: int) -> list[_Kind]:
    """The kinds of models that lower ranks have, in the order of their first ranks."""
    until = time.monotonic() + _PATIENCE_S
    keys = [f"{key}/{lower}" for lower in range(rank)]
    store.wait(keys, timedelta(seconds=max(0.1, until - time.monotonic())))
    digests = dict.fromkeys(store.get(each).decode() for each in keys)
    return [_Kind.read(store.get(f"{key}/of/{digest}")) for digest in digests]


def _renamer(rename: Rename) -> Callable[[str], str]:
    if rename is None:
        return lambda name: name
    if isinstance(rename, Mapping):
        table = dict(rename)
        return lambda name: str(table.get(name, name))
    return lambda name: str(rename(name))


def _of_parameter(given: Callable[[str], str], name: str) -> str:
    owner, _, attribute = name.rpartition(".")
    shown = given(owner)
    return f"{shown}.{attribute}" if shown else attribute


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
