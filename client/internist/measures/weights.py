"""How large parameters are: RMS of all, rows of embeddings and heads, entries of gains and biases."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, linalg

from internist.measures import host, many

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By size: what an entry is read as."""
LARGE = 2**15
"""Above this many entries a tensor in a CPU's memory is summed by itself."""


def mean_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Mean of squares of each tensor, of any shape: weights, gradients or differences.

    Args:
        tensors: floating, on one device. Low precision is summed in float32.

    Returns:
        (n,) float32. NaN in, NaN out; infinity where the squares sum to more than 3e38.

    Raises:
        ValueError: there is no tensor, or one is empty or not floating.
    """
    _require_tensors(tensors)
    if tensors[0].device.type == "cpu":
        return _mean_squares_on_host(tensors)
    roots = many.norms(tensors, 2)
    torch._foreach_mul_(roots, [tensor.numel() ** -0.5 for tensor in tensors])  # a copy to the device would wait
    return torch.stack(roots).square_()


def _mean_squares_on_host(tensors: Sequence[Tensor]) -> Tensor:
    large = [i for i, x in enumerate(tensors) if x.numel() > LARGE and host.can_sum(x)]
    sums = {i: host.square_sum(tensors[i]) for i in large}
    rest = [i for i in range(len(tensors)) if i not in sums]
    if rest:
        norms = torch._foreach_norm(_narrow([tensors[i] for i in rest]), 2, dtype=torch.float32)
        sums |= zip(rest, torch.stack(norms).square_().tolist(), strict=True)
    means = [sums[i] / tensor.numel() for i, tensor in enumerate(tensors)]
    return torch.tensor(means, dtype=torch.float32, device="cpu")


def vector_abs_max(tensors: Sequence[Tensor]) -> Tensor:
    """Largest absolute entry of each tensor; meant for gains and biases, slow for matrices.

    Args:
        tensors: floating, on one device.

    Returns:
        (n,) float32. NaN in, NaN out.

    Raises:
        ValueError: there is no tensor, or one is empty or not floating.
    """
    _require_tensors(tensors)
    return torch.stack(many.norms(tensors, torch.inf))


def row_rms_max(weight: Tensor) -> Tensor:
    """Largest row RMS of an embedding: the largest output it can give for any token.

    Args:
        weight: (rows, features), floating; for an embedding a row is a vocabulary entry.

    Returns:
        () float32. NaN in, NaN out.

    Raises:
        ValueError: weight is not a non-empty floating matrix.

    Source: Su 2026, kexue.fm/archives/11647.
    """
    if weight.ndim != 2:
        raise ValueError(f"expected a (rows, features) matrix, got {tuple(weight.shape)}")
    _require_tensors([weight])
    norms: Tensor = linalg.vector_norm(_narrow([weight])[0], dim=-1, dtype=torch.float32)
    return norms.amax() / math.sqrt(weight.shape[1])


def head_norm(weight: Tensor) -> Tensor:
    """Norm of an output head: fan_in times its largest row RMS, the largest logit of an input of RMS 1.

    Args:
        weight: (vocabulary, fan_in), floating, as `nn.Linear` keeps it.

    Returns:
        () float32. NaN in, NaN out.

    Raises:
        ValueError: weight is not a non-empty floating matrix.

    Source: Su 2026, kexue.fm/archives/11647.
    """
    return row_rms_max(weight) * weight.shape[-1]


def bit_sum(tensors: Sequence[Tensor]) -> Tensor:
    """A checksum of the bits of tensors: the same on every device, whatever order it adds in.

    Args:
        tensors: not empty, of any types and devices.

    Returns:
        () float32, a whole number below 2**24: the low bits of the sum of all entries, read as integers.

    Raises:
        ValueError: there is no tensor.
    """
    if not tensors:
        raise ValueError("expected at least one tensor, got none")
    home = tensors[0].device
    sums = [tensor.reshape(-1).view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    total = torch.stack([each.to(home, non_blocking=True) for each in sums]).sum()
    return total.bitwise_and((1 << 24) - 1).float()


def _narrow(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.float() if tensor.dtype == torch.float64 else tensor for tensor in tensors]


def _require_tensors(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise ValueError("expected at least one tensor, got none")
    for tensor in tensors:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            raise ValueError(f"expected non-empty floating tensors, got {tensor.dtype} of shape {tuple(tensor.shape)}")
