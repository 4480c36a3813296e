"""Ways to hold a matrix's spectral norm, as pure functions: decay or clip one singular value, clip all, or rescale.

Each returns a new tensor. The top pair comes from `top_pair`, batched; matrices here are (..., fan_out, fan_in), a
pair's u and v are (..., fan_out) and (..., fan_in), and its sigma is (...).
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from internist.measures.precision import full_precision
from internist.optim.coefficients import orthogonalize

Retraction = Literal["hard", "dynamic"]

DYNAMIC_RATE = 0.05
"""Share of the learning rate by which the dynamic retraction pulls. Source: the default of the method's public code,
Spectral Sphere Optimizer, arXiv:2601.08393."""

ACCURATE = "polar_express"
"""Coefficient set of the matrix signs in `mclip`: its steps may be repeated until small singular values have grown."""

ACCURATE_STEPS = 16


def spectral_radius(shape: torch.Size | tuple[int, ...], c: float = 1.0) -> float:
    """The spectral norm S = c √(fan_out / fan_in) of a matrix whose RMS-to-RMS operator norm is c.

    Args:
        shape: (..., fan_out, fan_in).
        c: the operator norm, positive.

    Raises:
        ValueError: shape has no two last sides, or one is zero; c is not a positive number.

    Source: Yang, Simon & Bernstein 2023, arXiv:2310.17813, condition 1.
    """
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(f"expected a (fan_out, fan_in) matrix, got {tuple(shape)}")
    if not (c > 0 and math.isfinite(c)):
        raise ValueError(f"expected a positive radius, got {c}")
    return c * math.sqrt(shape[-2] / shape[-1])


def spectral_weight_decay(
    weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor, *, lr: float | Tensor, decay: float
) -> Tensor:
    """W − λησ₁u₁v₁ᵀ: weight decay of the largest singular value alone, before the step (the pre form).

    If an update has spectral norm at most η S, the decayed matrix plus the update stays within S / λ once it is there
    (by the triangle inequality, where σ₁ stays the largest).

    Args:
        weight: (..., fan_out, fan_in).
        sigma, u, v: its top singular pair.
        lr: η.
        decay: λ.

    Returns:
        Like weight. NaN in, NaN out.

    Source: Su 2026, kexue.fm 11729 (part 4): the gradient of ‖W‖₂² / 2 is σ₁u₁v₁ᵀ.
    """
    return weight - _outer(lr * decay * sigma, u, v).to(weight.dtype)


def post_clip(weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor, *, threshold: float | Tensor) -> Tensor:
    """W − max(σ₁ − τ, 0)u₁v₁ᵀ: the largest singular value clipped, one a step, after the step.

    Args:
        weight: (..., fan_out, fan_in).
        sigma, u, v: its top singular pair.
        threshold: τ, in the weight's unit.

    Returns:
        Like weight; the same numbers where σ₁ ≤ τ. NaN in, NaN out.

    Source: Su 2026, kexue.fm 11729 (part 4).
    """
    return weight - _outer((sigma - threshold).clamp(min=0.0), u, v).to(weight.dtype)


def mclip(weight: Tensor, threshold: float) -> Tensor:
    """U min(Σ, τ) Vᵀ: every singular value clipped, by two matrix signs and no SVD.

    ½(W + τ ms(W) − (τI − W ms(W)ᵀ) ms(τ ms(W) − W)), for one matrix or many.

    Args:
        weight: (..., fan_out, fan_in), floating; computed in float32 (float64 for float64).
        threshold: τ > 0, in the weight's unit.

    Returns:
        Like weight. A singular value s within about 1e-5 of ‖W‖_F from zero or τ is off by as little. NaN in, NaN out.

    Raises:
        ValueError: threshold is not positive.

    Source: Su 2026, kexue.fm 11729 (part 4).
    """
    if not threshold > 0:
        raise ValueError(f"expected a positive threshold, got {threshold}")
    with full_precision(weight):
        W = weight if weight.dtype == torch.float64 else weight.float()
        if W.shape[-2] > W.shape[-1]:
            return mclip(weight.mT, threshold).mT  # τI − W ms(W)ᵀ on the smaller side
        sign = _matrix_sign(W)
        identity = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)
        rest = (threshold * identity - W @ sign.mT) @ _matrix_sign(threshold * sign - W)
        return (0.5 * (W + threshold * sign - rest)).to(weight.dtype)


def retraction_factor(
    sigma: Tensor,
    radius: float | Tensor,
    *,
    mode: Retraction = "hard",
    lr: float | Tensor = 0.0,
    rate: float = DYNAMIC_RATE,
) -> Tensor:
    """What a matrix is multiplied by to come back to its spectral radius R.

    Args:
        sigma: (...) spectral norm of each matrix.
        radius: R, positive.
        mode: `hard` is R / σ₁, all the way; `dynamic` is 1 + rate η sign(R − σ₁), a small step in that direction.
        lr: η, for `dynamic`.
        rate: for `dynamic`.

    Returns:
        (...) like sigma; 1 where sigma is zero. NaN in, NaN out.

    Raises:
        ValueError: no such mode.

    Source: Spectral Sphere Optimizer, arXiv:2601.08393; the dynamic form as its public code has it.
    """
    if mode == "hard":
        return torch.where(sigma == 0, 1.0, radius / sigma)
    if mode == "dynamic":
        return 1.0 + rate * lr * torch.sign(radius - sigma)
    raise ValueError(f"expected a retraction of {get_args(Retraction)}, got {mode!r}")


def retract(weight: Tensor, sigma: Tensor, radius: float | Tensor, *, mode: Retraction = "hard") -> Tensor:
    """The matrix times its `retraction_factor` (with η = 1 for `dynamic`): for `hard`, of spectral norm R.

    Args:
        weight: (..., fan_out, fan_in).
        sigma: (...) its spectral norm.
        radius: R.
        mode: as for `retraction_factor`.

    Raises:
        ValueError: no such mode.
    """
    factor = retraction_factor(sigma, radius, mode=mode, lr=1.0)
    return weight * factor[..., None, None].to(weight.dtype)


def _outer(sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return sigma[..., None, None] * u.unsqueeze(-1) * v.unsqueeze(-2)


def _matrix_sign(matrices: Tensor) -> Tensor:
    """U Vᵀ, zero for zeros, to the precision of the dtype wherever singular values are not tiny."""
    return orthogonalize(matrices, ACCURATE, steps=ACCURATE_STEPS, dtype=matrices.dtype)
