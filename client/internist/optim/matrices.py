"""How a parameter becomes matrices: the views of it that are orthogonalised one by one.

(out, in)                     one matrix
(out, in), row_blocks=12      twelve of (out / 12, in): a fused projection split by heads
(out, in), row_blocks=(a, b)  two, of a and b rows: fused queries, keys and values of unequal size
(experts, out, in)            one per expert
(out, in, *kernel)            one of (out, in * kernel): a convolution in the order it lies in memory
layout="in_out"               the transpose: weights stored (in, out), as Hugging Face's Conv1D does
layout="conv"                 three dimensions are (out, in, kernel), not (experts, out, in)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LAYOUTS = ("out_in", "in_out", "conv")


def matrix_views(tensor: Tensor, like: Tensor, group: dict[str, Any]) -> list[Tensor]:
    """The matrices of a tensor, each entry a (count, fan_out, fan_in) of equal ones.

    Args:
        tensor: a parameter, its gradient or its momentum.
        like: the parameter, whose memory order decides that of a convolution's columns.
        group: with `row_blocks` and `layout`.

    Returns:
        Views of the tensor. Only a gradient laid out in memory unlike its parameter is copied.

    Raises:
        ValueError: the tensor has fewer than two dimensions or is empty, cannot be viewed so, or its rows do not
            divide as `row_blocks` asks.
    """
    layout, row_blocks = group["layout"], group["row_blocks"]
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise ValueError(f"expected a matrix, a stack of matrices or a convolution, got shape {tuple(tensor.shape)}")
    if tensor.ndim == 2:
        stack = tensor.unsqueeze(0)
    elif tensor.ndim == 3 and layout != "conv":
        stack = tensor
    else:
        stack = _flattened(tensor, like).unsqueeze(0)
    if layout == "in_out":
        stack = stack.mT
    if row_blocks is None:
        return [stack]
    if isinstance(row_blocks, int):
        return [_equal_blocks(stack, row_blocks)]
    counts = list(row_blocks)
    if sum(counts) != stack.shape[1] or min(counts) < 1:
        raise ValueError(f"row_blocks {tuple(counts)} sum to {sum(counts)}, and the matrix has {stack.shape[1]} rows")
    return list(torch.split(stack, counts, dim=1))


def check_matrices(parameter: Tensor, group: dict[str, Any]) -> None:
    """Refuse a parameter that cannot be viewed as matrices the way its group asks.

    Raises:
        ValueError: as `matrix_views`, or the group's layout or row_blocks are no such thing.
    """
    layout, row_blocks = group["layout"], group["row_blocks"]
    if layout not in LAYOUTS:
        raise ValueError(f"expected a layout of {LAYOUTS}, got {layout!r}")
    if row_blocks is not None and not isinstance(row_blocks, int | Sequence):
        raise ValueError(f"row_blocks is a number of equal blocks or a sequence of row counts, got {row_blocks!r}")
    if hasattr(parameter, "placements"):  # a DTensor, which its owner will see whole and contiguous
        parameter = torch.empty(parameter.shape, device="meta")
    views = matrix_views(parameter, parameter, group)
    storage = parameter.untyped_storage()._cdata  # its identity, which storages without memory have too
    if any(view.untyped_storage()._cdata != storage for view in views):
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} and strides {parameter.stride()} is no matrix")


def _flattened(tensor: Tensor, like: Tensor) -> Tensor:
    """(out, in * kernel), columns in the order they lie in memory: any order gives the same orthogonalised step."""
    strides = like.stride()
    order = sorted(range(1, like.ndim), key=lambda dim: -strides[dim])
    return tensor.permute(0, *order).reshape(tensor.shape[0], -1)


def _equal_blocks(stack: Tensor, blocks: int) -> Tensor:
    count, rows = stack.shape[:2]
    if blocks < 1 or rows % blocks:
        raise ValueError(f"{rows} rows do not divide into {blocks} equal blocks")
    if blocks == 1:
        return stack
    if count != 1:
        raise ValueError(f"row_blocks splits one matrix, and this parameter has {count}")
    cut: Tensor = torch.unflatten(stack.select(0, 0), 0, (blocks, rows // blocks))
    return cut
