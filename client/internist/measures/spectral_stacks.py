"""Singular values of many matrices at once, in few launches and without waiting for the device.

Each stack of matrices of one shape is reduced to small positive semi-definite matrices that have its squared singular
values: the Gram matrices of the columns, or, of matrices that are large on both sides, what Lanczos on W^T W projects
them to. The small ones of all stacks are squared together until their largest eigenvalue stands out. (Solvers of
eigenvalue problems read on the host whether they have converged.)

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
"""Smaller side up to which a Gram matrix is squared: beyond, reading the matrix for every step of Lanczos is less work
than the products."""

COLD_STEPS = 32
WARM_STEPS = 20
RANDOM_SHARE = 0.1
"""A warm start is mixed with this much noise: alone, it could stay orthogonal to a new top direction for ever."""

BREAKDOWN = 1e-5
"""A Krylov vector this small against the matrix is rounding, and is set to zero."""

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
    """(k, s, n) float32, orthonormal rows that `small` is a projection to; None if it is none."""
    method: str
    """`gram` is exact to 1e-6; `gram-1024` (a power of the Gram matrix), `lanczos-32` and `lanczos-20` (a warm start)
    are estimates from below, within 1 %."""


class Spectra(NamedTuple):
    """The spectra of a stack of k matrices."""

    norms: Tensor
    """(k,) float32 largest singular values. NaN where an entry is, else infinity where one is."""
    frobenius: Tensor
    """(k,) float32 Frobenius norms; NaN where the matrix is zero or not finite."""
    right: Tensor | None
    """(k, n) float32: of Lanczos, right singular vectors of the tall matrices, of any length, to start the next one."""
    method: str


def method(shape: tuple[int, ...] | torch.Size, *, warm: bool = False) -> str:
    """How matrices of a shape are measured."""
    size = min(shape[-2:])
    if size <= EXACT_UP_TO and shape[-2] * shape[-1] <= EXACT_ENTRIES:
        return "gram"
    if size <= SQUARED_UP_TO:
        return f"gram-{2**SQUARINGS}"
    return f"lanczos-{WARM_STEPS if warm else COLD_STEPS}"


def takes_start(shape: tuple[int, ...] | torch.Size) -> bool:
    """Whether matrices of a shape are measured from vectors to start from."""
    return method(shape).startswith("lanczos")


def reduce_(stack: Tensor, *, start: Tensor | None = None) -> Reduced:
    """Reduce a stack of matrices to small ones.

    Args:
        stack: (k, fan_out, fan_in) float32; it is written over.
        start: (k, n) float32, n the smaller side: `right` of earlier matrices close to these; only Lanczos takes it.

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
            small, basis = _lanczos(tall, _first_vectors(tall, start), WARM_STEPS if start is not None else COLD_STEPS)
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


def _lanczos(tall: Tensor, first: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(k, steps, steps) float64 projections of W^T W for (k, m, n) matrices, and the (k, steps, n) basis they are to.

    The projection is taken from inner products, not from the recurrence, so what rounding leaves in the basis cannot
    raise its largest eigenvalue above the true one.
    """
    count, _, size = tall.shape
    vectors = torch.zeros(steps, count, size, 1, dtype=torch.float32, device=tall.device)
    parts = torch.zeros(steps, count, steps, 1, dtype=torch.float32, device=tall.device)
    vector, part = vectors.unbind(), parts.unbind()
    basis, turned = vectors.squeeze(3).transpose(0, 1), tall.mT  # rows that are not known yet are zero
    columns = basis.mT
    vector[0].copy_(first)
    for step in range(steps):
        image = torch.bmm(turned, torch.bmm(tall, vector[step]))
        torch.bmm(basis, image, out=part[step])
        if step + 1 == steps:
            break
        rest = torch.baddbmm(image, columns, part[step], alpha=-1)
        rest = torch.baddbmm(rest, columns, torch.bmm(basis, rest), alpha=-1)  # once leaves rounding in the basis
        length, new = linalg.vector_norm(image, dim=1, keepdim=True), linalg.vector_norm(rest, dim=1, keepdim=True)
        new.masked_fill_(new <= length.mul_(BREAKDOWN), torch.inf)
        torch.div(rest, new, out=vector[step + 1])
    lower = parts.squeeze(3).transpose(0, 1).double()
    return lower + lower.tril(-1).mT, basis


def _first_vectors(tall: Tensor, start: Tensor | None) -> Tensor:
    """(k, n, 1) unit vectors to start from: noise, or the given ones with some of it. No generator is touched: one on
    the device would have to be made there."""
    index = torch.arange(tall.shape[2], device=tall.device)
    noise = (index * index * 0x9E3779B1 & 0xFFFFFFFF).float().sub_(2.0**31)  # fractions of a quadratic sequence
    noise = functional.normalize(noise, dim=0)
    if start is None:
        return noise.view(1, -1, 1).expand(len(tall), -1, 1)
    known = torch.nan_to_num(start, nan=0.0, posinf=0.0, neginf=0.0)  # of a matrix that was not finite
    mixed = torch.add(functional.normalize(known, dim=1), noise, alpha=RANDOM_SHARE)
    return functional.normalize(mixed, dim=1).unsqueeze(2)


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
        return torch.bmm(basis.mT, column.float()).squeeze(2)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
