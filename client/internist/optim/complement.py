"""The two-sided complement of a singular pair, and the rules that keep the pair the top one: pure functions.

    P_u = I − uuᵀ,  P_v = I − vvᵀ,  W = S uvᵀ + W⊥ with W⊥ = P_u W P_v

An update inside the complement, ΔW = −ηS P_u D P_v with ‖D‖₂ ≤ 1, changes W⊥ alone, so that the norm afterwards is
max(S, ‖W⊥ − ηS D‖₂) ≤ max(S, σ₂ + ηS).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from internist.optim.parts import CACHED_ENTRIES

CAP_SHARE = 0.95
"""Share of the gap that one capped step may use. Derived for this project, as is all of this file."""

CAP_SLACK = 1e-3
"""And by how much more σ₂ is taken to be than was estimated, from below, relative to the radius."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A bucket's frozen pairs, also in the arithmetic's dtype."""

    u: Tensor
    """(B, fan_out) unit vectors, float32 or float64."""
    v: Tensor
    """(B, fan_in) likewise."""
    u_parts: Tensor
    """(B, k, fan_out) in the arithmetic's dtype: u itself, or its rounding and what that lost."""
    v_parts: Tensor
    """(B, k, fan_in) likewise."""
    row: Tensor
    """(B, 1, fan_out) the first of those parts of u: its rounding."""
    column: Tensor
    """(B, fan_in, 1) that of v."""
    turned_row: Tensor
    """(B, fan_out, 1) and, as they are needed the other way round as well:"""
    turned_column: Tensor
    """(B, 1, fan_in)."""
    turned_v_parts: Tensor
    """(B, fan_in, k)."""
    exact_row: Tensor
    """(B, 1, fan_out) u and"""
    exact_turned_row: Tensor
    """(B, fan_out, 1) the same, and"""
    exact_column: Tensor
    """(B, 1, fan_in) v, as they are."""


def frozen(u: Tensor, v: Tensor, dtype: torch.dtype, *, in_parts: bool = True) -> Frozen:
    """The pairs (B, fan_out) and (B, fan_in) made ready for products with matrices of that dtype.

    Args:
        u, v: the pairs.
        dtype: of the matrices.
        in_parts: whether what rounding loses of the vectors is kept: not where they move anyway.
    """
    u_parts, v_parts = (_parts(unit, dtype) if in_parts else unit.to(dtype).unsqueeze(1) for unit in (u, v))
    row, column = u_parts.narrow(1, 0, 1), v_parts.narrow(1, 0, 1)
    wide = u.unsqueeze(1)
    turned = row.mT, column, v_parts.mT
    return Frozen(u, v, u_parts, v_parts, row, column.mT, *turned, wide, wide.mT, v.unsqueeze(1))


Columns = tuple[Tensor, Tensor]
"""Two columns of a factor L, or two rows of R."""


def projected(matrices: Tensor, pair: Frozen) -> tuple[Tensor, Columns, Columns]:
    """P_u M P_v, and L and R with LR = M − P_u M P_v: what the projection takes away, of rank two.

    P_u M P_v = M − u(uᵀM) − (Mv − u(uᵀMv))vᵀ, to the precision of M's dtype, vectors included: made for what comes
    before Newton-Schulz, where `complement_factors` follows.

    Args:
        matrices: (B, fan_out, fan_in) M, floating. Overwritten.
        pair: of the same dtype.

    Returns:
        M itself, the (B, fan_out, 1) columns of L and (B, 1, fan_in) rows of R. NaN in, NaN out.
    """
    b = torch.bmm(matrices, pair.column)  # reads by rows, and so is the one to bring M into the cache
    a = torch.bmm(pair.row, matrices)
    b = torch.baddbmm(b, pair.turned_row, torch.bmm(pair.row, b), alpha=-1)
    left, right = (pair.turned_row, b), (a, pair.turned_column)
    return matrices.baddbmm_(torch.cat(left, dim=2), torch.cat(right, dim=1), alpha=-1), left, right


def projected_in_turn(matrices: Tensor, pair: Frozen) -> tuple[Tensor, Columns, Columns]:
    """As `projected`, one side after the other: three operators fewer, and one more pass over M."""
    a = torch.bmm(pair.row, matrices)
    matrices.baddbmm_(pair.turned_row, a, alpha=-1)
    b = torch.bmm(matrices, pair.column)
    return matrices.baddbmm_(b, pair.turned_column, alpha=-1), (pair.turned_row, b), (a, pair.turned_column)


def complement_factors(
    matrices: Tensor, pair: Frozen, *, extra: float = 0.0, stacked: bool | None = None
) -> tuple[Tensor, Tensor]:
    """L and R with LR = M − P_u M P_v + extra uvᵀ: a projection as a correction of rank two.

    Args:
        matrices: (B, fan_out, fan_in) M, floating.
        pair: of the same dtype.
        extra: what is to be added along the pair.
        stacked: whether by few operators, as accelerators want it; None is where M is not on a CPU.

    Returns:
        (B, fan_out, 2) and (B, 2, fan_in) in the dtype of u, as exact as M is: below float32 the vectors' two parts
        are multiplied, so M − LR is orthogonal to u and v and not to their roundings. NaN in, NaN out.
    """
    u, v = pair.u, pair.v
    if not matrices.is_cpu if stacked is None else stacked:
        b = torch.bmm(matrices, pair.turned_v_parts).sum(2, keepdim=True, dtype=u.dtype)
        a = torch.bmm(pair.u_parts, matrices).sum(1, keepdim=True, dtype=u.dtype)
        a = torch.baddbmm(a, torch.bmm(pair.exact_row, b).sub_(extra), pair.exact_column, alpha=-1.0)
        return torch.cat([pair.exact_turned_row, b], dim=2), torch.cat([a, pair.exact_column], dim=1)
    wide = matrices.to(u.dtype)  # a few small ones: skinny products of bfloat16 are slow on a CPU, and rounded
    b, a = torch.bmm(wide, v.unsqueeze(2)).squeeze(2), torch.bmm(u.unsqueeze(1), wide).squeeze(1)
    c = torch.bmm(u.unsqueeze(1), b.unsqueeze(2)).view(-1, 1) - extra
    return torch.stack([u, b], dim=2), torch.stack([torch.addcmul(a, c, v, value=-1.0), v], dim=1)


def put_back(weights: Tensor, u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """P_u W P_v + S uvᵀ of (B, fan_out, fan_in) weights and their pairs and radii, both in float32."""
    left, right = complement_factors(weights, frozen(u, v, u.dtype))
    rest = torch.baddbmm(weights, left, right, alpha=-1.0)
    return torch.baddbmm(rest, (radius.unsqueeze(1) * u).unsqueeze(2), v.unsqueeze(1))


def add_step(weights: Tensor, left: Tensor, right: Tensor, step: Tensor, length: Tensor, keep: float | Tensor) -> None:
    """W <- keep W + LR − length D, in place, in parts that a CPU's cache holds.

    Args:
        weights: (B, fan_out, fan_in) W.
        left, right: (B, fan_out, 2) and (B, 2, fan_in).
        step: (B, fan_out, fan_in) D.
        length: (B, 1, 1).
        keep: a number for all, or (B, 1, 1).
    """
    dtype = weights.dtype
    left, right, length = left.to(dtype), right.to(dtype), length.to(dtype)
    if isinstance(keep, Tensor):
        weights.mul_(keep.to(dtype))
        keep = 1.0
    count, rows, columns = weights.shape
    if weights.numel() <= CACHED_ENTRIES:
        weights.baddbmm_(left, right, beta=keep).addcmul_(step.to(dtype), length, value=-1.0)
        return
    few = max(1, CACHED_ENTRIES // (rows * columns))
    tall = rows if few > 1 else max(1, CACHED_ENTRIES // columns)
    for first in range(0, count, few):
        some = slice(first, first + few)
        for top in range(0, rows, tall):
            part = slice(top, top + tall)
            weight = weights[some, part].baddbmm_(left[some, part], right[some], beta=keep)
            weight.addcmul_(step[some, part].to(dtype), length[some], value=-1.0)


def removed_norm(left: Tensor, right: Tensor) -> Tensor:
    """‖LR‖_F of (..., m, k) and (..., k, n) factors, (...) float32 or float64: how much a projection takes away."""
    wide = torch.promote_types(left.dtype, torch.float32)
    left, right = left.to(wide), right.to(wide)
    return ((left.mT @ left) * (right @ right.mT)).sum((-2, -1)).clamp(min=0.0).sqrt()  # ‖LR‖_F² = ⟨LᵀL, RRᵀ⟩


def capped_rate(lr: float | Tensor, sigma2: Tensor, radius: Tensor) -> Tensor:
    """min(η, (1 − ε)(1 − σ₂/S)), not below zero: the most that the gap allows.

    Args:
        lr: η.
        sigma2: (B,) estimate of the second singular value, from below.
        radius: (B,) S.

    Returns:
        (B,) the rate of each matrix. NaN where sigma2 is.
    """
    room = CAP_SHARE * (1.0 - CAP_SLACK - sigma2 / radius)
    return torch.minimum(room.clamp(min=0.0), torch.as_tensor(lr, dtype=room.dtype, device=room.device))


def adaptive_factor(alignment: Tensor, cap: float) -> Tensor:
    """min(cap, 1/a): how much longer a step may be when inputs feel only a share a of its spectral norm.

    The alignment a(A) = g(A) / R(A) compares the gain that real inputs see, g = RMS(Ax) / RMS(x), with the worst one,
    R = √(fan_in / fan_out) ‖A‖₂. Experimental, and derived for this project: of the data-dependent condition of
    arXiv:2601.01306 only the sentence in its abstract was seen.

    Args:
        alignment: a of the latest update, above 0 and at most about 1.
        cap: the largest factor, at least 1.

    Returns:
        Like alignment, in [1, cap]; 1 where the alignment is no positive number.
    """
    factor = (1.0 / alignment).clamp(min=1.0, max=cap)
    return torch.where(alignment > 0, factor, torch.ones_like(factor))


def complement_residual(d: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """‖DDᵀ − P_u‖_F / √(m − 1) (on the shorter side of length m): how far D is from orthonormal on the complement.

    Args:
        d: (B, fan_out, fan_in), with uᵀD = 0 and Dv = 0 up to the rounding of its dtype, in which DDᵀ is made.
        u, v: the pair.

    Returns:
        (B,) in the dtype of u; NaN for a matrix with one row or column, which has no complement.
    """
    wide, unit = (d, u) if d.shape[1] <= d.shape[2] else (d.mT, v)
    miss = (wide @ wide.mT).to(unit.dtype) + unit.unsqueeze(2) * unit.unsqueeze(1)
    miss.diagonal(dim1=1, dim2=2).sub_(1.0)
    norm: Tensor = torch.linalg.vector_norm(miss, dim=(1, 2))
    return norm / (miss.shape[1] - 1.0) ** 0.5 if miss.shape[1] > 1 else torch.full_like(norm, torch.nan)


def _parts(unit: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, k, n) vectors of that dtype whose sum is the (B, n) one: itself, or its rounding and what that lost."""
    rounded = unit.to(dtype)
    if dtype in (torch.float32, torch.float64):
        return rounded.unsqueeze(1)
    return torch.stack([rounded, (unit - rounded).to(dtype)], dim=1)
