"""Own updates of many modules of one kind at once: layers of one shape are one product."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from internist.measures import many
from internist.model.outline import WatchedModule
from internist.model.roles import is_linear, is_transposed_linear
from internist.observe.own import Probe, normalization, normalized_by

STACK_BYTES = 64 << 20
"""Changes of weights that are stacked at once: they are copied."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A module whose parameters have all been stepped."""

    watched: WatchedModule
    probe: Probe
    changes: Mapping[str, Tensor]
    """By attribute, float32: what the step did to the module's own parameters."""


def batches(modules: Sequence[Moved]) -> Iterator[list[Moved]]:
    """The modules in lists: of one kind each, or one module that no other is like."""
    groups: dict[Hashable, list[Moved]] = {}
    for moved in modules:
        groups.setdefault(_kind(moved), []).append(moved)
    for members in groups.values():
        change = members[0].changes.get("weight")
        most = max(1, STACK_BYTES // (4 * change.numel())) if change is not None else 1
        for start in range(0, len(members), most):
            yield members[start : start + most]


def own_updates(batch: Sequence[Moved]) -> Tensor:
    """(modules, tokens) RMS of the change of each module's output on its probe, of a batch of at least two."""
    first = batch[0]
    module = first.watched.module
    tokens = torch.stack([moved.probe.tokens for moved in batch])
    weight = torch.stack([moved.changes["weight"] for moved in batch])
    bias = torch.stack([moved.changes["bias"] for moved in batch]) if "bias" in first.changes else None
    if is_linear(module):
        change = many.own_linears(tokens, weight.mT if is_transposed_linear(module) else weight, bias)
    else:
        kind = normalization(module)
        assert kind is not None
        change = many.own_gains(normalized_by(kind, tokens), weight, bias)
    return change if first.probe.factor == 1.0 else change * abs(first.probe.factor)


def _kind(moved: Moved) -> Hashable:
    """Equal for modules that one product serves; the module's own number where none does."""
    module, weight, tokens = moved.watched.module, moved.changes.get("weight"), moved.probe.tokens
    apart = weight is None or isinstance(module, nn.Embedding) or not (set(moved.changes) <= {"weight", "bias"})
    rule: Hashable = None
    if not apart:
        rule = ("linear", is_transposed_linear(module)) if is_linear(module) else normalization(module)
    if weight is None or rule is None or tokens.dim() != 2:
        return moved.watched.order
    bias = moved.changes.get("bias")
    shapes = weight.shape, None if bias is None else bias.shape, tokens.shape
    return rule, shapes, tokens.dtype, tokens.device, moved.probe.factor
