"""Drawing a model's weights as a plan says, and telling where weights are not as it says."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, linalg, nn

from internist.measures.spectral import spectral_norm
from internist.model.freshness import looks_drawn
from internist.model.roles import is_norm, plain_name

EXACT_UP_TO = 1024
"""Smaller side up to which a spectral norm is computed exactly; Lanczos beyond, restarted."""

RESTARTS = 3


@torch.no_grad()
def draw_normal(tensor: Tensor, std: float) -> None:
    """Fill a tensor, in place, with a Gaussian of this standard deviation, by torch's global generator."""
    nn.init.normal_(tensor, std=std)


@torch.no_grad()
def draw_spectral(tensor: Tensor, norm: float, *, layout: str, row_blocks: int | None) -> None:
    """Fill a parameter, in place, with Gaussian matrices rescaled so that each has this spectral norm.

    Args:
        tensor: a matrix, a stack of them, or a convolution kernel.
        norm: ‖W‖₂ of each of its matrices, in the weight's unit, positive.
        layout: how it is stored: `out_in`, `in_out`, or `conv`.
        row_blocks: number of matrices that are fused in its rows.

    Source: Yang, Simon & Bernstein 2023, arXiv:2310.17813 (‖W‖₂ = Θ(√(fan_out / fan_in))); that the norm is set
    exactly, on the matrix as it is drawn, is this project's recipe.
    """
    nn.init.normal_(tensor)
    for matrix in matrices(tensor, layout=layout, row_blocks=row_blocks):
        matrix.mul_(norm / exact_norm(matrix))


def matrices(tensor: Tensor, *, layout: str, row_blocks: int | None) -> Iterator[Tensor]:
    """Views of a parameter's matrices, each (fan_out, fan_in) or its transpose."""
    if tensor.dim() == 2 or (tensor.dim() == 3 and layout != "conv"):
        stack = tensor.unsqueeze(0) if tensor.dim() == 2 else tensor
    else:
        stack = tensor.flatten(1).unsqueeze(0)
    for matrix in stack:
        yield from (matrix.mT if layout == "in_out" else matrix).chunk(row_blocks or 1)


def exact_norm(matrix: Tensor) -> float:
    """‖W‖₂ of a matrix, to float32 rounding where its smaller side is at most `EXACT_UP_TO`, else by Lanczos."""
    work = matrix.to(torch.float32)
    tall = work if work.shape[0] >= work.shape[1] else work.mT
    if tall.shape[1] <= EXACT_UP_TO:
        wide = tall.to(torch.float64)
        return math.sqrt(float(linalg.eigvalsh(wide.mT @ wide)[-1]))
    found = spectral_norm(work)
    for _ in range(RESTARTS):
        found = spectral_norm(work, start=found.right)
    return float(found.norm)


@torch.no_grad()
def trained_norm(root: nn.Module) -> str | None:
    """Name of a gain or bias of a norm whose entries differ, as training makes them; empty where those of all norms are
    alike, as they start. None without norms that learn."""
    found = None
    for name, owner in root.named_modules():
        for attribute, tensor in owner.named_parameters(recurse=False) if is_norm(owner) else ():
            if tensor.requires_grad and tensor.numel() > 1:
                found = ""
                if bool((tensor != tensor.flatten()[0]).any()):
                    return plain_name(f"{name}.{attribute}")
    return found


@torch.no_grad()
def looks_trained(tensor: Tensor, *, layout: str, row_blocks: int | None) -> bool:
    """Whether one of a parameter's matrices has a singular value above what independent entries make."""
    for matrix in matrices(tensor, layout=layout, row_blocks=row_blocks):
        sigma = spectral_norm(matrix.to(torch.float32)).norm.reshape(1)
        if sigma > 0 and not bool(looks_drawn(matrix.to(torch.float32).unsqueeze(0), sigma)):
            return True
    return False


@torch.no_grad()
def reset_vector(owner: nn.Module, attribute: str, tensor: Tensor, role: str) -> None:
    """Biases to zero, gains of torch's own norms to one; what other vectors start at is their module's matter."""
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
    if role == "bias":
        tensor.zero_()
    elif role == "gain" and attribute == "weight" and isinstance(owner, norms):
        tensor.fill_(1.0)
