"""Starting points of a spectral optimizer: a matrix at its radius, with or without an open gap under its top pair."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from internist.measures.precision import full_precision
from internist.model.freshness import looks_drawn
from internist.optim.constraints import spectral_radius
from internist.optim.top_pair import TopPair, top_pair

AT_TARGET = 0.02
"""A norm this near its radius, relative to it, was set there: what a run saved, which keeps it no nearer, is left."""


class Start(NamedTuple):
    """Matrices at their radius, and the top pairs they have."""

    matrices: Tensor
    """(B, fan_out, fan_in), in the dtype of those given."""
    pair: TopPair
    """Sigma is the radius."""


def spectral_init(matrices: Tensor, radius: float) -> Start:
    """W S / ‖W‖₂: the matrices rescaled to spectral norm S.

    Args:
        matrices: (B, fan_out, fan_in), floating and finite; none of zeros.
        radius: S, in the weight's unit, positive.

    Returns:
        New matrices with their top pairs. The gap beneath is what the matrices had: 1 − σ₂/σ₁ is about 0.68 n^(−2/3)
        for Gaussian ones of width n (measured for this project).

    Raises:
        ValueError: radius is not positive, or a matrix has no norm to rescale: zeros, NaN or infinity.

    Source: Yang, Simon & Bernstein 2023, arXiv:2310.17813, section 4 (‖W‖₂ = Θ(√(fan_out / fan_in))); that the norm is
    set exactly, on the matrix as it is, is this project's recipe.
    """
    pair = _checked_pair(matrices, radius)
    factor = (radius / pair.sigma).view(-1, 1, 1)
    scaled = (matrices * factor).to(matrices.dtype)
    return Start(scaled, pair._replace(sigma=torch.full_like(pair.sigma, radius)))


def open_gap_init(matrices: Tensor, radius: float, share: float) -> Start:
    """S (u₁v₁ᵀ + ρ W⊥ / ‖W⊥‖₂): the top pair at S and everything beneath it scaled to ρ S, so that the gap is 1 − ρ.

    Derived for this project: the guarantee that an update keeps the top pair holds only while η ≤ 1 − σ₂/S, and a
    Gaussian matrix leaves it less than 1 % from a width of about 600 on.

    Args:
        matrices: (B, fan_out, fan_in), floating and finite; none of zeros. Their own top pairs are kept.
        radius: S, in the weight's unit, positive.
        share: ρ, in (0, 1).

    Returns:
        New matrices with their top pairs. A matrix of rank one has nothing beneath its pair, and is rescaled only.

    Raises:
        ValueError: share is not in (0, 1), or as `spectral_init`.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"expected an open gap's share in (0, 1), got {share}")
    pair = _checked_pair(matrices, radius)
    with full_precision(matrices):
        work = matrices.to(pair.sigma.dtype)
        top = pair.sigma.view(-1, 1, 1) * pair.u.unsqueeze(2) * pair.v.unsqueeze(1)
        beneath = top_pair(work, frozen=(pair.u, pair.v)).sigma
        empty = beneath <= torch.finfo(work.dtype).eps * pair.sigma * max(work.shape[1:])
        factor = torch.where(empty, 0.0, share * radius / beneath).view(-1, 1, 1)
        opened = top * (radius / pair.sigma).view(-1, 1, 1) + (work - top) * factor
    return Start(opened.to(matrices.dtype), pair._replace(sigma=torch.full_like(pair.sigma, radius)))


def set_radius(matrices: Tensor, group: dict[str, Any]) -> bool:
    """Rescale in place those of a group's (B, fan_out, fan_in) matrices that are to start at their radius.

    All that are not there yet (within 2 %) where the group says `initialize`; where it says None, those of them that
    look drawn and not trained. Zeros stay zeros under `retract`, which lets them grow.

    Returns:
        Whether any was changed.

    Raises:
        ValueError: a matrix is not finite, or zero under another policy.
    """
    radius, share = spectral_radius(matrices.shape, group["radius"]), group["open_gap"]
    sigma = top_pair(matrices).sigma
    wrong = [value for value in sigma.tolist() if not 0.0 <= value < float("inf")]
    if wrong or (group["policy"] != "retract" and not bool(sigma.all())):
        found = wrong[0] if wrong else 0.0
        raise ValueError(f"expected a matrix with a positive, finite spectral norm to rescale, got {found}")
    chosen = (sigma > 0) & ((sigma / radius - 1.0).abs() > AT_TARGET)
    if group["initialize"] is None:
        chosen &= looks_drawn(matrices, sigma)
    elif share is not None:
        chosen = sigma > 0
    if not bool(chosen.any()):
        return False
    own = matrices[chosen]
    start = spectral_init(own, radius) if share is None else open_gap_init(own, radius, share)
    matrices[chosen] = start.matrices
    return True


def _checked_pair(matrices: Tensor, radius: float) -> TopPair:
    if not radius > 0:
        raise ValueError(f"expected a positive radius, got {radius}")
    pair = top_pair(matrices)
    wrong = [value for value in pair.sigma.tolist() if not (0.0 < value < float("inf"))]
    if wrong:
        raise ValueError(f"expected a matrix with a positive, finite spectral norm to rescale, got {wrong[0]}")
    return pair


def is_zero(parameter: Tensor) -> bool:
    """Whether a parameter is zero everywhere: all of it, where it is sharded over ranks."""
    if not hasattr(parameter, "placements"):
        return not bool(parameter.detach().any())
    from internist.optim import distributed

    return distributed.is_zero(parameter)
