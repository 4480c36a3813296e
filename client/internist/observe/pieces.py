"""Pieces of activations: what of a module's output or input a rank has under tensor parallelism, read where it lies."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from internist.model.roles import QKV_NAMES, QUERY_NAMES, is_linear, is_transposed_linear, stored_weight
from internist.model.shards import is_partial, is_sharded, local, shard_of


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the features of every token."""

    share: float
    """Of all features."""
    ranks: int
    """That hold one each."""


def held(tensor: Tensor) -> Tensor | None:
    """What this rank holds of an activation; None of one that is a sum which has not been taken.

    Of the result of a collective that is under way it is what the next operator of the model would wait for.
    """
    if is_sharded(tensor):
        return None if is_partial(tensor) else held(local(tensor))
    wait = getattr(tensor, "trigger_wait", None)
    if wait is None:
        return tensor
    found: Tensor = wait()
    return found


def piece_of_output(module: nn.Module, given: Tensor, here: Tensor, axis: int) -> Piece | None:
    """Which part of its features a module's output has on this rank; None where it has all.

    Args:
        module: whose weight may be cut along its outputs.
        given: the output as the module gave it.
        here: what this rank holds of it.
        axis: the feature dimension.
    """
    if is_sharded(given):
        return _of_layout(given, axis)
    row = 1 if isinstance(module, nn.Embedding) or is_transposed_linear(module) else 0
    return _of_weight(module, row, here.shape[axis])


def piece_of_input(module: nn.Module, given: Tensor, here: Tensor, axis: int) -> Piece | None:
    """The same of a module's input, whose weight may be cut along its inputs."""
    if is_sharded(given):
        return _of_layout(given, axis)
    if not is_linear(module):
        return None
    return _of_weight(module, 0 if is_transposed_linear(module) else 1, here.shape[axis])


def heads_before(attention: nn.Module) -> float:
    """How many times as many heads as this rank has lie on ranks before it, where attention's queries are cut over
    ranks: 0 where they are not."""
    for name, module in attention.named_modules():
        if name.rpartition(".")[2] not in QUERY_NAMES + QKV_NAMES:
            continue
        weight = stored_weight(module)
        if weight is None or not is_sharded(weight) or hasattr(module, "unshard"):  # sharded for storage alone
            return 0.0
        row, shard = (1 if is_transposed_linear(module) else 0), shard_of(weight)
        return shard.offset[row] / shard.shape[row] if row in shard.cut and shard.shape[row] else 0.0
    return 0.0


def _of_layout(tensor: Tensor, axis: int) -> Piece | None:
    return _cut(tensor, axis % tensor.dim())


def _of_weight(module: nn.Module, dim: int, width: int) -> Piece | None:
    weight = stored_weight(module)
    if weight is None or not is_sharded(weight) or weight.dim() != 2 or not (is_linear(module) or _embeds(module)):
        return None
    # a module that is sharded for storage alone computes with the whole weight, and its activations are whole
    return _cut(weight, dim) if local(weight).shape[dim] == width != weight.shape[dim] else None


def _embeds(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _cut(tensor: Tensor, dim: int) -> Piece | None:
    """How a tensor is cut along a dimension."""
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    ranks = 1
    for number, placement in enumerate(tensor.placements):  # type: ignore[attr-defined]
        along = getattr(placement, "dim", None)
        if along is not None and along % tensor.dim() == dim:
            ranks *= mesh.size(number)
    return None if ranks == 1 else Piece(local(tensor).shape[dim] / tensor.shape[dim], ranks)
