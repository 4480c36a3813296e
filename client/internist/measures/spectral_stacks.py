"""Singular values of many matrices at once, in few launches and without waiting for the device.

Each stack of matrices of one shape is reduced to small positive semi-definite matrices that have its squared singular
values: the Gram matrices of the columns, or, of matrices that are large on both sides, what a block Krylov iteration on
W^T W projects them to. The small ones of all stacks are squared together until their largest eigenvalue stands out.
(Solvers of eigenvalue problems read on the host whether they have converged.)

NaN and infinities stay with their own matrix.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, linalg
from torch.nn import functional

from internist.measures.precision import full_precision

EXACT_UP_TO = 256
"""Smaller side up to which the exact value is computed."""

EXACT_ENTRIES = 2**21
"""And entries up to which it is: the exact way copies the matrix to float64."""

SQUARED_UP_TO = 1024
"""Smaller side up to which a Gram matrix is squared: beyond, reading the matrix for every step of an iteration is less
work than the products."""

BLOCK = 8
"""Vectors that are multiplied while the matrix is read once: what takes the time of a large one."""

COLD_STEPS = 10
"""Steps, each of which reads the matrix twice: Gaussian ones of 4,096 on a side came out up to 0.45 % low. Lanczos with
one vector takes 32 for 0.05 %, and 20 for 0.3 %."""

WARM_STEPS = 9
"""One fewer from a start that is worth something; from one that is not, the same matrices came out up to 0.56 % low."""

RANDOM_SHARE = 0.1
"""A warm start is mixed with this much noise: alone, it could stay orthogonal to a new top direction for ever."""

BREAKDOWN = 1e-5
"""What is left of a block, once earlier ones are projected out, is rounding where it is this small against it."""

INSEPARABLE = 1e-6
"""Share of a block's sum of squares below which float32 inner products do not tell a direction from rounding."""

KEPT = 1e-3
"""Squared length of a direction from which on it enters the basis: of rounding, the first pass leaves a tenth."""

SQUARINGS = 10
"""Squarings of a float32 Gram matrix: the trace ratio of its power 2**10 is below the largest eigenvalue by at most
log(size) / 2**10 of it, 0.7 % at a size of 1,024, which is half of that of the singular value."""

EXACT_SQUARINGS = 20
"""The same in float64, of what is to be exact: within log(size) / 2**20."""

AT_ONCE = {torch.float32: 3, torch.float64: 6}
"""Squarings between two normalisations. A matrix of Frobenius norm 1 and size n has entries of at least n**-1.5, and j
squarings later of n**(-1 - 2**(j - 1)), whose squares neither type may lose: 1e-30 and 1e-159 at their largest n."""


class Reduced(NamedTuple):
    """What is left of a stack of k matrices."""

    small: Tensor
    """(k, s, s): the largest eigenvalue is the square of the largest singular value over the scale."""
    scales: Tensor
    """(k, 1, 1) float32: the largest absolute entry of each matrix."""
    frobenius: Tensor
    """(k, 1, 1) float32: the Frobenius norm over the scale."""
    basis: Tensor | None
    """(k, n, s) float32, orthonormal columns, or zeros, that `small` is a projection to; None if it is none."""
    method: str
    """`gram` is exact to 1e-6; `gram-1024` (a power of the Gram matrix), `krylov-8x10` (vectors x steps) and
    `krylov-8x9` (a warm start) are estimates from below, within 1 %."""


class Spectra(NamedTuple):
    """The spectra of a stack of k matrices."""

    norms: Tensor
    """(k,) float32 largest singular values. NaN where an entry is, else infinity where one is."""
    frobenius: Tensor
    """(k,) float32 Frobenius norms; NaN where the matrix is zero or not finite."""
    right: Tensor | None
    """(k, n) float32: of a Krylov iteration, right singular vectors of the tall matrices, of any length, to start the
    next one."""
    method: str


def method(shape: tuple[int, ...] | torch.Size, *, warm: bool = False) -> str:
    """How matrices of a shape are measured."""
    size = min(shape[-2:])
    if size <= EXACT_UP_TO and shape[-2] * shape[-1] <= EXACT_ENTRIES:
        return "gram"
    if size <= SQUARED_UP_TO:
        return f"gram-{2**SQUARINGS}"
    return f"krylov-{BLOCK}x{WARM_STEPS if warm else COLD_STEPS}"


def takes_start(shape: tuple[int, ...] | torch.Size) -> bool:
    """Whether matrices of a shape are measured from vectors to start from."""
    return method(shape).startswith("krylov")


def reduce_(stack: Tensor, *, start: Tensor | None = None) -> Reduced:
    """Reduce a stack of matrices to small ones.

    Args:
        stack: (k, fan_out, fan_in) float32; it is written over.
        start: (k, n) float32, n the smaller side: `right` of earlier matrices close to these; only an iteration
            takes it.

    Raises:
        ValueError: this is no such stack, or no start for it.
    """
    if stack.ndim != 3 or stack.numel() == 0 or stack.dtype != torch.float32:
        raise ValueError(f"expected float32 (k, fan_out, fan_in) matrices, got {stack.dtype} of {tuple(stack.shape)}")
    how, size = method(stack.shape, warm=start is not None), min(stack.shape[1:])
    if start is not None and start.shape != (len(stack), size):
        raise ValueError(f"expected a start of {(len(stack), size)}, got {tuple(start.shape)}")
    scales = linalg.vector_norm(stack, torch.inf, dim=(1, 2), keepdim=True)
    stack.div_(scales)  # squares of tiny updates would underflow
    frobenius = linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
    tall = stack if stack.shape[1] >= stack.shape[2] else stack.mT
    with full_precision(stack):
        if takes_start(stack.shape):
            small, basis = _krylov(tall, _first_block(tall, start), WARM_STEPS if start is not None else COLD_STEPS)
            return Reduced(small, scales, frobenius, basis, how)
        exact = tall.double() if how == "gram" else tall
        return Reduced(torch.bmm(exact.mT, exact), scales, frobenius, None, how)


def spectra(parts: Sequence[Reduced]) -> list[Spectra]:
    """The spectra of stacks on one device, in as few products as there are sizes of small matrices."""
    groups: dict[tuple[int, torch.dtype], list[int]] = {}
    for i, part in enumerate(parts):
        groups.setdefault((part.small.shape[1], part.small.dtype), []).append(i)
    found: dict[int, Spectra] = {}
    for members in groups.values():
        chosen = [parts[i] for i in members]
        values, power = _top([part.small for part in chosen])
        scales = _joined([part.scales for part in chosen])
        norms = values.sqrt_().float().mul_(scales)
        norms = torch.where(norms.isnan(), scales, norms).flatten()  # zeros and infinities became NaN when scaled
        frobenius = _joined([part.frobenius for part in chosen]).mul(scales).flatten()
        sizes = [len(part.small) for part in chosen]
        own = zip(*(torch.split(x, sizes) for x in (norms, frobenius, power)), strict=True)
        for i, part, (norm, size, shown) in zip(members, chosen, own, strict=True):
            right = _right(part.basis, shown) if part.basis is not None else None
            found[i] = Spectra(norm, size, right, part.method)
    return [found[i] for i in range(len(parts))]


def _krylov(tall: Tensor, first: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(k, s, s) float64 projections of W^T W for (k, m, n) matrices, s = BLOCK * steps, and the (k, n, s) basis.

    The projection is taken from inner products, not from the recurrence, so what rounding leaves in the basis cannot
    raise its largest eigenvalue above the true one. That asks for columns of length one or zero: what is too short to
    be told from rounding is dropped.
    """
    count, _, size = tall.shape
    basis = torch.zeros(count, size, BLOCK * steps, dtype=torch.float32, device=tall.device)
    projected = torch.zeros(count, BLOCK * steps, BLOCK * steps, dtype=torch.float32, device=tall.device)
    rows, turned = basis.mT, tall.mT  # of the basis; what is not known yet is zero
    floor = torch.eye(BLOCK, dtype=torch.float32, device=tall.device).mul_(INSEPARABLE).expand(count, -1, -1)
    block = _kept(_shortened(first, first), floor)
    for step in range(steps):
        own = slice(BLOCK * step, BLOCK * (step + 1))
        basis[:, :, own] = block
        image = torch.bmm(turned, torch.bmm(tall, block))
        parts = torch.bmm(rows, image)
        projected[:, :, own] = parts
        if step + 1 < steps:
            rest = _shortened(torch.baddbmm(image, basis, parts, alpha=-1), image)
            rest = torch.baddbmm(rest, basis, torch.bmm(rows, rest), alpha=-1)  # once leaves rounding in the basis
            block = _kept(rest, floor)
    upper = projected.double()
    return upper.triu() + upper.triu(1).mT, basis


def _shortened(rest: Tensor, image: Tensor) -> Tensor:
    """The columns of (k, n, b) made orthonormal, but for directions next to rounding, which come out shorter.

    By Cholesky's factor of their inner products, with some of the identity added: what is below that is not made long.
    """
    gram = torch.bmm(rest.mT, rest)
    squares = linalg.vector_norm(rest, dim=(1, 2)).square_().mul_(INSEPARABLE)
    squares = squares.add_(linalg.vector_norm(image, dim=(1, 2)).square_(), alpha=BREAKDOWN**2)
    gram.diagonal(dim1=1, dim2=2).add_(squares.add_(torch.finfo(torch.float32).tiny).unsqueeze(1))
    factor, _ = linalg.cholesky_ex(gram)
    rows: Tensor = linalg.solve_triangular(factor, rest.mT, upper=False)
    return rows.mT


def _kept(short: Tensor, floor: Tensor) -> Tensor:
    """The columns of (k, n, b), which are almost orthonormal or short, made orthonormal or zero."""
    factor, _ = linalg.cholesky_ex(torch.baddbmm(floor, short.mT, short))
    lengths = factor.diagonal(dim1=1, dim2=2).unsqueeze(2)
    rows: Tensor = linalg.solve_triangular(factor, short.mT, upper=False)
    return rows.mul_(lengths > KEPT**0.5).mT


def _first_block(tall: Tensor, start: Tensor | None) -> Tensor:
    """(k, n, BLOCK) to start from: noise, and the given vectors with some of it for the first. No generator is touched:
    one on the device would have to be made there."""
    count, _, size = tall.shape
    index = torch.arange(size * BLOCK, device=tall.device)
    noise = (index * index * 0x9E3779B1 & 0xFFFFFFFF).float().sub_(2.0**31)  # fractions of a quadratic sequence
    noise = functional.normalize(noise.view(BLOCK, size), dim=1)
    block = noise.expand(count, -1, -1)
    if start is not None:
        known = torch.nan_to_num(start, nan=0.0, posinf=0.0, neginf=0.0)  # of a matrix that was not finite
        mixed = torch.add(functional.normalize(known, dim=1), noise[0], alpha=RANDOM_SHARE)
        block = torch.cat((functional.normalize(mixed, dim=1).unsqueeze(1), block[:, 1:]), dim=1)
    return block.mT


def _top(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(k, 1, 1) largest eigenvalues of (k, s, s) positive semi-definite matrices, from below, and the (k, s, s) powers
    that show them. NaN for zeros, in which no direction stands out."""
    small = _joined(parts)
    exact = small.dtype == torch.float64
    power, at_once = small, AT_ONCE[small.dtype]
    with full_precision(small):
        for squaring in range(EXACT_SQUARINGS if exact else SQUARINGS):
            if squaring % at_once == 0:
                power = power / linalg.vector_norm(power, dim=(1, 2), keepdim=True)
            power = torch.bmm(power, power)
    trace = power.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
    return torch.mul(power, small).sum((1, 2), keepdim=True).div_(trace), power


def _right(basis: Tensor, power: Tensor) -> Tensor:
    """(k, n): the vectors of the full space that belong to the largest eigenvalue of the projection."""
    longest = power.diagonal(dim1=1, dim2=2).argmax(1).view(-1, 1, 1).expand(-1, power.shape[1], 1)
    column = power.gather(2, longest)
    column = column / linalg.vector_norm(column, dim=1, keepdim=True)
    with full_precision(basis):
        return torch.bmm(basis, column.float()).squeeze(2)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
