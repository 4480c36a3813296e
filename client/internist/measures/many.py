"""Statistics of many parameters, and of many layers of one kind, in few launches: for devices on which launches are the
cost. What each of them is to one tensor is said in `weights.py` and `updates.py`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, linalg

from internist.measures.precision import full_precision

NARROW = (torch.bfloat16, torch.float16)
"""Types that a float32 copy holds without loss."""


def pays(device: torch.device) -> bool:
    """Whether launches are the cost on a device: anywhere but on the CPU, where memory is."""
    return device.type != "cpu"


def differences_(after: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    """Weight changes `after - before` in float32, written over float32 copies, which are not needed again.

    Args:
        after: parameters, on one device.
        before: copies of them, float32 where that holds them without loss; others are widened into new memory.

    Raises:
        ValueError: the lists, or two tensors of a pair, do not match.
    """
    if [tensor.shape for tensor in after] != [tensor.shape for tensor in before]:
        raise ValueError(f"expected pairs of one shape, got {len(after)} tensors after and {len(before)} before")
    found = list(before)
    kinds: dict[torch.dtype, list[int]] = {}
    for i, (a, b) in enumerate(zip(after, before, strict=True)):
        if b.dtype == torch.float32 and a.dtype in (torch.float32, *NARROW):
            kinds.setdefault(a.dtype, []).append(i)
        else:
            found[i] = torch.sub(a.float(), b.float())
    for members in kinds.values():
        changes = [before[i] for i in members]
        torch._foreach_neg_(changes)
        torch._foreach_add_(changes, [after[i] for i in members])
    return found


def unchanged(differences: Sequence[Tensor]) -> Tensor:
    """(n,) float32 shares of the entries of each float32 difference that did not move. A NaN entry has moved.

    Entries are counted in float32, which rounds above 2**24: the share is then off by at most about 1e-7.
    """
    moved = norms(differences, 0)  # the 0-norm counts what is not zero
    torch._foreach_div_(moved, [difference.numel() for difference in differences])
    return torch.rsub(torch.stack(moved), 1).clamp_(min=0)


def row_norm_maxima(matrices: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """(n,) float32: of each matrix the largest Euclidean norm of a row, times a number."""
    largest = [linalg.vector_norm(matrix, dim=1, dtype=_result_type(matrix)).amax() for matrix in matrices]
    torch._foreach_mul_(largest, list(scales))
    return torch.stack(largest).float()


def norms(tensors: Sequence[Tensor], order: float) -> list[Tensor]:
    """Norms of floating tensors of any sizes on one device, () float32 each. One call for every type among them: a call
    on several types runs tensor by tensor."""
    kinds: dict[torch.dtype, list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault(tensor.dtype, []).append(i)
    found: dict[int, Tensor] = {}
    for dtype, members in kinds.items():
        chosen = [tensors[i].float() if dtype == torch.float64 else tensors[i] for i in members]
        found.update(zip(members, torch._foreach_norm(chosen, order, dtype=torch.float32), strict=True))
    return [found[i] for i in range(len(tensors))]


def own_linears(probes: Tensor, deltas: Tensor, delta_biases: Tensor | None) -> Tensor:
    """How far the outputs of k linear layers of one shape move, each on its own probe, as `updates.own_linear`.

    Args:
        probes: (k, tokens, fan_in), what entered the layers.
        deltas: (k, fan_out, fan_in) float32, the weights' changes.
        delta_biases: (k, fan_out) float32, the biases' changes.

    Returns:
        (k, tokens) float32. NaN in, NaN out.
    """
    inputs = probes.float()
    with full_precision(probes):
        if delta_biases is None:
            return _rms(torch.bmm(inputs, deltas.mT))
        return _rms(torch.baddbmm(delta_biases.unsqueeze(1), inputs, deltas.mT))


def own_gains(normalized: Tensor, delta_gains: Tensor, delta_biases: Tensor | None) -> Tensor:
    """How far the outputs of k normalisation layers of one width move, each on its own probe, as `updates.own_gain`.

    Args:
        normalized: (k, tokens, features), the layers' inputs after normalising and before their gain.
        delta_gains: (k, features) float32, the gains' changes.
        delta_biases: (k, features) float32, the biases' changes.

    Returns:
        (k, tokens) float32. NaN in, NaN out.
    """
    gains = delta_gains.unsqueeze(1)
    if delta_biases is None:
        return _rms(normalized.float() * gains)
    return _rms(torch.addcmul(delta_biases.unsqueeze(1), normalized.float(), gains))


def _result_type(matrix: Tensor) -> torch.dtype:
    return torch.float64 if matrix.dtype == torch.float64 else torch.float32


def _rms(change: Tensor) -> Tensor:
    """RMS over the last dimension."""
    found: Tensor = linalg.vector_norm(change, dim=-1)
    return found.div_(math.sqrt(change.shape[-1]))
