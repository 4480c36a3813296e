"""Fingerprints: what tells a parameter from another of the same name on another rank."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from internist.model.outline import obstacle
from internist.model.roles import plain_name
from internist.model.shards import is_sharded, ranks_of_model

_SAMPLED = 16
"""Entries of each parameter that are compared."""

Fingerprints = dict[str, tuple[str, bool]]
"""By name: a digest, and whether two equal ones mean one parameter. Ones and zeros are the same everywhere."""


def fingerprints(root: nn.Module) -> Fingerprints:
    """By plain name, of the parameters that have values: a digest of the shape and of some entries. Of a sharded one
    the mesh counts: ranks of one mesh hold pieces of one parameter."""
    found: Fingerprints = {}
    for name, parameter in root.named_parameters():
        if is_sharded(parameter):
            ranks = ranks_of_model(parameter.device_mesh)  # type: ignore[attr-defined]
            found[plain_name(name)] = _digest(f"{tuple(parameter.shape)} {ranks}"), True
        elif not obstacle(parameter):
            entries = _some(parameter.detach())
            found[plain_name(name)] = _digest(f"{tuple(parameter.shape)} {entries}"), len(set(entries)) > 1
    return found


def digest_of(prints: Mapping[str, tuple[str, bool]]) -> str:
    """One digest of all."""
    return _digest(json.dumps(sorted((name, print_) for name, (print_, _) in prints.items())))


def _some(tensor: Tensor) -> list[float]:
    flat = tensor.reshape(-1)
    places = torch.arange(min(_SAMPLED, len(flat)), device=flat.device) * max(1, len(flat) // _SAMPLED)
    chosen: list[float] = flat[places.clamp(max=len(flat) - 1)].double().tolist()
    return chosen


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
