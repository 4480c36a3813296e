"""A block of right vectors that follows the top of matrices as they move: one warm round at a time, by few operators.

Where a matrix moves a little between rounds, the span of a few vectors put through a polynomial of WᵀW each time keeps
to its largest singular directions, and the best vector in it gives ‖W‖₂ from below. A new direction that grows from
nothing is seen once it nears the radius. Derived for this project; subspace iteration filtered by Chebyshev polynomials
is textbook.
"""

from typing import NamedTuple

import torch
from torch import Tensor, linalg

WIDTH = 8
"""Vectors of a block. Four let a norm pass its radius by 5 % under gradients that keep pushing one way, where eight
stay within 2 %; a product with either reads the matrix once."""

SQUARINGS = 7
"""Squarings of the block's Gram matrix: a value a hundredth below the top then counts a
thirteenth. In float64, which has room for that power."""

EDGE, DEGREE = 0.97, 4
"""Directions below the edge, as a share of the radius, are damped alike by a Chebyshev polynomial of that degree in
WᵀW; one at the radius grows 4 times against them, where a power of that degree would have it grow by a quarter."""

JITTER = 1e-5
"""Added to a Gram matrix, as a share of its trace, so that a matrix of lower rank than the block has a factor."""

SMALL = 1e-30
"""Norms below this are taken as this: what is divided by them is zero then, and not NaN."""
TINY = 1e-300
"""The same of what was multiplied by itself so often, in float64."""

SLIGHT = 0.03
"""Noise beside a row of length one: enough to keep rows apart, and gone after a few rounds."""
SEEDS = 9973
"""Seeds that look somewhere else each: a prime, so that no small number of steps comes back."""


class Followed(NamedTuple):
    """What one round found of B matrices. NaN for a matrix that is not finite."""

    sigma: Tensor
    """(B,) the largest singular value, from below, and no less than `SMALL`."""
    u: Tensor
    """(B, fan_out) W v / sigma: a unit vector, zero for a matrix of zeros."""
    v: Tensor
    """(B, fan_in) a unit vector, to the rounding of the block."""
    block: Tensor
    """(B, k, fan_in) orthonormal rows to go on from."""


def width(fan_out: int, fan_in: int) -> int:
    """k: how many vectors follow a matrix of that shape."""
    return min(WIDTH, fan_out, fan_in)


def follow(matrices: Tensor, block: Tensor, radius: Tensor) -> Followed:
    """One round: the best vector in the block, and the block put through a polynomial of WᵀW.

    Args:
        matrices: (B, fan_out, fan_in) W, float32 or float64.
        block: (B, k, fan_in) orthonormal rows, of the last round.
        radius: (B,) about ‖W‖₂, positive.
    """
    turned = matrices.mT
    images = torch.bmm(block, turned)
    gram = torch.bmm(images, images.mT).double()
    gram = gram / linalg.vector_norm(gram, dim=(1, 2), keepdim=True).clamp_(min=SMALL)
    for _ in range(SQUARINGS):
        gram = torch.bmm(gram, gram)
    top = gram.sum(1, keepdim=True)
    top = (top / linalg.vector_norm(top, dim=2, keepdim=True).clamp_(min=TINY)).to(block.dtype)
    v, image = torch.bmm(top, block).squeeze(1), torch.bmm(top, images).squeeze(1)
    sigma = linalg.vector_norm(image, dim=1, keepdim=True).clamp_(min=SMALL)
    return Followed(sigma.squeeze(1), image / sigma, v, _filtered(matrices, turned, block, images, radius))


def _filtered(matrices: Tensor, turned: Tensor, block: Tensor, images: Tensor, radius: Tensor) -> Tensor:
    """The block put through T(2 WᵀW / (EDGE S)² − 1) of `DEGREE`, orthonormal: zeros where that is no number."""
    share = (radius * EDGE).square_().reciprocal_().view(-1, 1, 1)
    before, now = block, torch.baddbmm(block, images * share, matrices, beta=-1.0, alpha=2.0)
    for _ in range(DEGREE - 1):
        image = torch.bmm(now, turned).mul_(share)
        before, now = now, torch.baddbmm(before, image, matrices, beta=-1.0, alpha=4.0).sub_(now, alpha=2.0)
    return orthonormal(now).nan_to_num_(0.0, 0.0, 0.0)


def orthonormal(rows: Tensor) -> Tensor:
    """(B, k, n) rows made orthonormal, by a Cholesky factor of their Gram matrix; short where they are dependent."""
    gram = torch.bmm(rows, rows.mT)
    norm = linalg.vector_norm(gram, dim=(1, 2)).clamp_(min=SMALL)
    gram.diagonal(dim1=1, dim2=2).add_(norm.unsqueeze(1), alpha=JITTER)
    factor, _ = linalg.cholesky_ex(gram)
    solved: Tensor = linalg.solve_triangular(factor, rows, upper=False)
    return solved


def started(rows: Tensor, width: int) -> Tensor:
    """(B, width, n) a block whose first rows are the (B, k, n) ones where those are not zero, and the others random."""
    batch, known, size = rows.shape
    block = _noise(rows.new_empty(batch, width, size), seed=0)
    first = block.narrow(1, 0, min(known, width))
    first.copy_(torch.where(rows[:, :width].any(2, keepdim=True), rows[:, :width], first))
    return orthonormal(block)


def refreshed(block: Tensor, v: Tensor, *, seed: int) -> Tensor:
    """A (B, k, n) block with the (B, n) vectors as its first rows, and a little noise in the others."""
    rows = torch.cat([v.unsqueeze(1), block[:, :-1]], dim=1)
    return orthonormal(rows + SLIGHT * _noise(block, seed=seed))


def _noise(block: Tensor, *, seed: int) -> Tensor:
    """(k, n) rows of length about one that look random: the digits of sines. No generator is touched."""
    places = torch.arange(1, block.shape[1] * block.shape[2] + 1, dtype=torch.float64, device=block.device)
    digits = places.mul_(1.0 + seed % SEEDS / SEEDS).sin_().mul_(2.0**20).frac_()
    rows = digits.view(block.shape[1:]).mul_((3.0 / block.shape[2]) ** 0.5)
    return rows.to(block.dtype).expand(block.shape).clone()
