"""A block of right vectors that follows the top of matrices as they move: one warm round at a time, by few operators.

Where a matrix moves a little between rounds, the span of a few vectors put through a polynomial of WᵀW each time keeps
to its largest singular directions, and the best vector in it gives ‖W‖₂ from below. A new direction that grows from
nothing is seen once it nears the radius. Derived for this project; subspace iteration filtered by Chebyshev polynomials
is textbook.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, linalg

WIDTH = 8
"""Vectors of a block. Four let a norm pass its radius by 5 % under gradients that keep pushing one way, where eight
stayed within 2 %; a product with either reads the matrix once."""

SQUARINGS = 6
"""Squarings of the block's Gram matrix: a value a hundredth below the top then counts a quarter, and takes a thousandth
of that hundredth from the norm's square. In float64, which has room for that power."""

EDGE = 0.97
"""Directions below the edge, as a share of the radius, are damped alike by a Chebyshev polynomial of degree four in
WᵀW; one at the radius grows 4 times against them, where a power of that degree would have it grow by a quarter."""

JITTER = 1e-5
"""Added to the diagonal of a Gram matrix, so that a matrix of lower rank than the block has a factor."""

SMALL = 1e-30
"""Norms below this are taken as this: what is divided by them is zero then, and not NaN."""
TINY = 1e-300
"""The same of what was multiplied by itself so often, in float64."""

SEEDS = 9973
"""Seeds that look somewhere else each: a prime, so that no small number of steps comes back."""


class Followed(NamedTuple):
    """What one round found of B matrices. NaN for a matrix that is not finite."""

    sigma: Tensor
    """(B, 1, 1) the largest singular value, from below, and no less than `SMALL`."""
    u: Tensor
    """(B, 1, fan_out) W v / sigma: a unit vector, zero for a matrix of zeros."""
    v: Tensor
    """(B, 1, fan_in) a unit vector, to the rounding of the block."""
    block: Tensor
    """(B, k, fan_in) orthonormal rows to go on from."""


def width(fan_out: int, fan_in: int) -> int:
    """k: how many vectors follow a matrix of that shape."""
    return min(WIDTH, fan_out, fan_in)


def share_of(radius: Tensor) -> Tensor:
    """(B, 1, 1) of (B,) radii, positive: what WᵀW is multiplied by so that the edge is at one."""
    return (radius * EDGE).square_().reciprocal_().view(-1, 1, 1)


def follow(matrices: Tensor, block: Tensor, share: Tensor) -> Followed:
    """One round: the block put through a polynomial of WᵀW, and the best vector in it.

    In that order: what rose since the last round is in the block by then. The other way round, which saves a product,
    norms went twice as far.

    Args:
        matrices: (B, fan_out, fan_in) W, float32 or float64.
        block: (B, k, fan_in) orthonormal rows, of the last round.
        share: `share_of` of what ‖W‖₂ is about.
    """
    turned = matrices.mT
    block = _filtered(matrices, turned, block, share)
    return _best(block, torch.bmm(block, turned))


Products = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def follow_by(images: Products, back: Products, blocks: Sequence[Tensor], shares: Sequence[Tensor]) -> list[Followed]:
    """`follow` of several stacks of matrices that are known by their products alone, all at once.

    Args:
        images: (B, k, fan_in) rows of every stack, times its Wᵀ.
        back: (B, k, fan_out) rows, times W.
        blocks, shares: of every stack, as of `follow`.
    """

    def inner(rows: Sequence[Tensor]) -> list[Tensor]:
        return [again * share for again, share in zip(back(images(rows)), shares, strict=True)]

    once = [
        block + 8.0 * again
        for block, again in zip(blocks, inner([g - x for g, x in zip(inner(blocks), blocks, strict=True)]), strict=True)
    ]
    twice = [
        16.0 * again - (block - 2.0 * one)
        for block, one, again in zip(
            blocks, once, inner([g - x for g, x in zip(inner(once), once, strict=True)]), strict=True
        )
    ]
    filtered = [orthonormal(rows).nan_to_num_(0.0, 0.0, 0.0) for rows in twice]
    return [_best(block, image) for block, image in zip(filtered, images(filtered), strict=True)]


def _best(block: Tensor, images: Tensor) -> Followed:
    """The best vector in a block, from its (B, k, fan_out) images."""
    gram = torch.bmm(images, images.mT).double()
    gram = gram / linalg.vector_norm(gram, dim=(1, 2), keepdim=True).clamp_(min=SMALL)
    for _ in range(SQUARINGS):
        gram = torch.bmm(gram, gram)
    # a power is nearly λ ttᵀ: its column of the largest entry is t, whatever the signs of the rows
    best = gram.diagonal(dim1=1, dim2=2).argmax(dim=1).view(-1, 1, 1)
    top = gram.gather(1, best.expand(-1, 1, gram.shape[2]))
    top = (top / linalg.vector_norm(top, dim=2, keepdim=True).clamp_(min=TINY)).to(block.dtype)
    v, image = torch.bmm(top, block), torch.bmm(top, images)
    sigma = linalg.vector_norm(image, dim=2, keepdim=True).clamp_(min=SMALL)
    return Followed(sigma, image / sigma, v, block)


def _filtered(matrices: Tensor, turned: Tensor, block: Tensor, share: Tensor) -> Tensor:
    """The block put through T₄(2 G − 1) with G = WᵀW / (EDGE S)², orthonormal: zeros where that is no number.

    T₂(2 G − 1) = 1 + 8 G (G − 1), and T₄ = 2 T₂² − 1.
    """
    inner = torch.baddbmm(block, torch.bmm(block, turned).mul_(share), matrices, beta=-1.0)
    once = torch.baddbmm(block, torch.bmm(inner, turned).mul_(share), matrices, alpha=8.0)
    inner = torch.baddbmm(once, torch.bmm(once, turned).mul_(share), matrices, beta=-1.0)
    rest = torch.add(block, once, alpha=-2.0)
    twice = torch.baddbmm(rest, torch.bmm(inner, turned).mul_(share), matrices, beta=-1.0, alpha=16.0)
    return orthonormal(twice).nan_to_num_(0.0, 0.0, 0.0)


def orthonormal(rows: Tensor) -> Tensor:
    """(B, k, n) rows of length about one made orthonormal, by a Cholesky factor of their Gram matrix; short where they
    are dependent."""
    gram = torch.bmm(rows, rows.mT)
    gram.diagonal(dim1=1, dim2=2).add_(JITTER)
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
    """A (B, k, n) block with the (B, 1, n) vectors before the others, and a random one at the end."""
    kept, noise = block.shape[1] - 2, _noise(block.narrow(1, 0, 1), seed=seed)
    rows = v if kept < 0 else torch.cat([v, block.narrow(1, 0, kept), noise], dim=1)
    return orthonormal(rows)


def _noise(block: Tensor, *, seed: int) -> Tensor:
    """(k, n) rows of length about one that look random: the digits of sines. No generator is touched."""
    places = torch.arange(1, block.shape[1] * block.shape[2] + 1, dtype=torch.float64, device=block.device)
    digits = places.mul_(1.0 + seed % SEEDS / SEEDS).sin_().mul_(2.0**20).frac_()
    rows = digits.view(block.shape[1:]).mul_((3.0 / block.shape[2]) ** 0.5)
    return rows.to(block.dtype).expand(block.shape).clone()
