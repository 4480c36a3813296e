"""Ranks that hold other weights: pipeline stages and experts get names of their own, so that no two layers are merged.

Ranks that train replicas of one model report under one name, and the server merges them. Whether they do is read from
the weights: each rank compares its own with those of rank 0 when it is watched. Wrapped in DistributedDataParallel, or
sharded, a model needs no comparison: the wrapper makes the ranks one.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from internist.model.outline import obstacle
from internist.model.roles import plain_name
from internist.model.shards import is_sharded
from internist.monitor.identity import Identity, Store, default_store

_LOG = logging.getLogger("internist")
_SAMPLED = 16
"""Entries of each parameter that are compared."""
_PATIENCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Apart:
    """What of a model belongs to this rank alone."""

    prefix: str = ""
    modules: frozenset[str] = frozenset()
    """Plain names of modules whose parameters differ from rank 0's."""
    whole: bool = False
    """The whole model is another: a stage of a pipeline."""

    def renamed(self, rename: Callable[[str], str] | Mapping[str, str] | None) -> Callable[[str], str]:
        """The user's renaming, with the names that are this rank's alone set apart."""
        table = dict(rename) if isinstance(rename, Mapping) else {}

        def translate(name: str) -> str:
            shown = str(rename(name)) if callable(rename) else table.get(name, name)
            if not self.whole and name not in self.modules:
                return shown
            return f"{self.prefix}{shown}" if shown else self.prefix.rstrip(".")

        return translate


def apart(model: nn.Module, root: nn.Module, who: Identity, turn: int) -> Apart:
    """What of a model belongs to this rank alone; nothing where the ranks cannot talk to each other.

    Args:
        model: as it is watched, wrappers included.
        root: the user's own module inside.
        who: this rank.
        turn: how many models this process has watched before: ranks watch them in the same order.
    """
    store = default_store() if who.world_size > 1 else None
    if store is None or isinstance(model, nn.parallel.DistributedDataParallel):
        return Apart()
    mine = fingerprints(root)
    key = f"internist/weights/{turn}"
    if who.rank == 0:
        store.set(key, json.dumps(mine))
        return Apart()
    first = _read(store, key, who.rank)
    if first is None:
        return Apart()
    names = [name for name, print_ in mine.items() if first.get(name) != print_]
    if not names:
        return Apart()
    whole = len(names) == len(mine)
    prefix = f"pp{who.rank}." if whole else f"ep{who.rank}."
    _LOG.warning(
        "internist: %d of %d parameters of rank %d are not those of rank 0, such as %s: they are reported apart, as "
        "%s…; replicas that become equal later are one if they are watched then (DistributedDataParallel: after it)",
        len(names), len(mine), who.rank, names[0], prefix,
    )  # fmt: skip
    return Apart(prefix, frozenset(name.rpartition(".")[0] for name in names), whole)


def fingerprints(root: nn.Module) -> dict[str, str]:
    """By plain name: what tells a parameter from another, by its shape and some of its entries. Sharded ones, and those
    without values, are left out."""
    found: dict[str, str] = {}
    for name, parameter in root.named_parameters():
        if is_sharded(parameter) or obstacle(parameter):
            continue
        entries = _some(parameter.detach())
        text = f"{tuple(parameter.shape)} {entries}"
        found[plain_name(name)] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return found


def _some(tensor: Tensor) -> list[float]:
    flat = tensor.reshape(-1)
    places = torch.arange(min(_SAMPLED, len(flat)), device=flat.device) * max(1, len(flat) // _SAMPLED)
    chosen: list[float] = flat[places.clamp(max=len(flat) - 1)].double().tolist()
    return chosen


def _read(store: Store, key: str, rank: int) -> dict[str, str] | None:
    try:
        store.wait([key], _PATIENCE)
        told = json.loads(store.get(key))
    except (RuntimeError, LookupError, ValueError) as error:  # what stores raise on a timeout differs by backend
        _LOG.warning("internist: rank %d does not know rank 0's weights, and takes them for its own: %s", rank, error)
        return None
    return told if isinstance(told, dict) else None
