"""Singular values of matrices that ranks hold pieces of, by few sums over the ranks; no piece is ever sent.

A step of Lanczos on W^T W needs W^T (W v). Of pieces that are whole rows, W^T W is the sum of theirs, so that one sum
of vectors over the ranks is all that a step sends; of pieces cut both ways W v is a sum as well. All matrices of a call
are summed at once, and what follows from sums is worked out by every rank alike, on the CPU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, linalg
from torch.nn import functional

from internist.measures.precision import full_precision

EXACT_UP_TO = 256
"""Columns up to which the Gram matrix itself is summed, and its eigenvalues are exact. A matrix that is cut both ways,
whose Gram matrix is no sum, is summed itself up to the square of that."""

STEPS = 32
"""Of Lanczos, from a random vector: as many as a process takes that has the whole matrix."""

BREAKDOWN = 1e-5
"""A Krylov vector this small against the matrix is rounding, and is set to zero."""

Over = Callable[[Tensor], Tensor]
"""A flat float32 tensor of every rank to one that all ranks have alike, on the CPU: entry by entry their sum, or their
largest. A collective."""


class Pieces(NamedTuple):
    """This rank's pieces of k matrices of one shape. They are overwritten."""

    held: Tensor
    """(k, m, n) float32. A rank that holds nothing has no rows."""
    columns: int
    """Of the whole matrix, as it lies here: pieces of columns alone are taken for rows of the transposed one."""
    rows: int | None = None
    """Of the whole, where it is cut both ways; None: n is all of its columns."""
    at: tuple[int, int] = (0, 0)
    """Where the piece begins in the whole, where it is cut both ways."""

    @property
    def method(self) -> str:
        """How they are measured: `gram` is exact to 1e-6, `lanczos-32` an estimate from below."""
        is_small = self.columns <= EXACT_UP_TO if self.rows is None else self.rows * self.columns <= EXACT_UP_TO**2
        return "gram" if is_small else f"lanczos-{STEPS}"


class Found(NamedTuple):
    """Of k matrices: (k,) float32 on the CPU. NaN where an entry is, else infinity where one is."""

    norms: Tensor
    frobenius: Tensor


def spectra(batch: Sequence[Pieces], *, total: Over, largest: Over) -> list[Found]:
    """Largest singular values and Frobenius norms of whole matrices.

    Every rank gives pieces of the same matrices in the same order. What is sent: once numbers and Gram matrices,
    and for each step of Lanczos a vector of each matrix, or two of one that is cut both ways.

    Args:
        batch: pieces.
        total: the sum over ranks.
        largest: the maximum over ranks.

    Raises:
        ValueError: a piece does not lie in its matrix.
    """
    for pieces in batch:
        _check(pieces)
    scales = _cut(largest(_joined([_extent(pieces.held) for pieces in batch])), [p.held.shape[0] for p in batch])
    for pieces, scale in zip(batch, scales, strict=True):
        pieces.held.div_(torch.where(scale > 0, scale, 1.0).view(-1, 1, 1).to(pieces.held.device))
    first = [torch.cat((_squares(p.held).view(-1), _gram(p).view(-1))) for p in batch]
    sums = _cut(total(_joined(first)), [len(each) for each in first])
    found: list[Found | None] = []
    waiting: list[int] = []
    for index, (pieces, scale, numbers) in enumerate(zip(batch, scales, sums, strict=True)):
        count = pieces.held.shape[0]
        frobenius = numbers[:count].sqrt()
        if pieces.method == "gram":
            norms = _top(_whole_gram(pieces, numbers[count:]))
            found.append(_scaled(norms, frobenius, scale))
        else:
            found.append(Found(scale, frobenius))
            waiting.append(index)
    iterated = _lanczos([batch[index] for index in waiting], total)
    for index, norms in zip(waiting, iterated, strict=True):
        found[index] = _scaled(norms, found[index].frobenius, scales[index])  # type: ignore[union-attr]
    return [each for each in found if each is not None]


def _check(pieces: Pieces) -> None:
    _, m, n = pieces.held.shape
    rows, columns = (m, n) if pieces.rows is None else (pieces.rows, pieces.columns)
    if pieces.at[0] + m > rows or pieces.at[1] + n > columns or (pieces.rows is None and n != pieces.columns):
        raise ValueError(f"expected a piece of a ({rows}, {pieces.columns}) matrix at {pieces.at}, got ({m}, {n})")


def _extent(held: Tensor) -> Tensor:
    """(k,) largest finite absolute entries: what squares neither under- nor overflow against."""
    flat = held.flatten(1)
    if not flat.shape[1]:
        return flat.new_zeros(flat.shape[0])
    return torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0).abs().amax(1)


def _squares(held: Tensor) -> Tensor:
    return held.flatten(1).square().sum(1)


def _gram(pieces: Pieces) -> Tensor:
    """What is summed of matrices that are measured exactly: Gram matrices, or the matrices."""
    if pieces.method != "gram":
        return pieces.held.new_empty(0)
    if pieces.rows is not None:
        _, m, n = pieces.held.shape
        row, column = pieces.at
        return functional.pad(pieces.held, (column, pieces.columns - column - n, row, pieces.rows - row - m))
    with full_precision(pieces.held):
        return pieces.held.mT @ pieces.held


def _whole_gram(pieces: Pieces, summed: Tensor) -> Tensor:
    """(k, columns, columns) Gram matrices, of what has been summed."""
    if pieces.rows is None:
        return summed.view(-1, pieces.columns, pieces.columns)
    whole = summed.view(-1, pieces.rows, pieces.columns)
    return whole.mT @ whole


def _lanczos(batch: Sequence[Pieces], total: Over) -> list[Tensor]:
    """(k,) largest singular values of each, from below: the top of what W^T W is on a Krylov space.

    That is taken from inner products, not from the recurrence, so what rounding leaves in the basis cannot raise it.
    """
    if not batch:
        return []
    kept = [(_basis(pieces), _basis(pieces)) for pieces in batch]
    for (basis, _), pieces in zip(kept, batch, strict=True):
        basis[:, 0] = _first_vector(pieces.columns)
    for step in range(STEPS):
        images = _images(batch, [basis[:, step] for basis, _ in kept], total)
        for (basis, imaged), image in zip(kept, images, strict=True):
            imaged[:, step] = image
            if step + 1 < STEPS:
                basis[:, step + 1] = _next(basis[:, : step + 1], image)
    return [_top(basis @ imaged.mT) for basis, imaged in kept]


def _images(batch: Sequence[Pieces], vectors: Sequence[Tensor], total: Over) -> list[Tensor]:
    """(k, columns) W^T W v of each."""
    left: list[Tensor] = []
    with full_precision(batch[0].held):
        for pieces, vector in zip(batch, vectors, strict=True):
            _, m, n = pieces.held.shape
            (row, column), own = pieces.at, vector
            if pieces.rows is not None:
                own = vector[:, column : column + n]
            product = torch.bmm(pieces.held, own.to(pieces.held.device).unsqueeze(2)).squeeze(2)
            left.append(product if pieces.rows is None else functional.pad(product, (row, pieces.rows - row - m)))
        crossed = [index for index, pieces in enumerate(batch) if pieces.rows is not None]
        if crossed:
            sums = _cut(total(_joined([left[i] for i in crossed])), [left[i].numel() for i in crossed])
            for index, flat in zip(crossed, sums, strict=True):
                pieces = batch[index]
                row, m = pieces.at[0], pieces.held.shape[1]
                left[index] = flat.view(left[index].shape)[:, row : row + m].to(pieces.held.device)
        right: list[Tensor] = []
        for pieces, product in zip(batch, left, strict=True):
            image = torch.bmm(product.unsqueeze(1), pieces.held).squeeze(1)
            column, n = pieces.at[1], pieces.held.shape[2]
            padded = image if pieces.rows is None else functional.pad(image, (column, pieces.columns - column - n))
            right.append(padded)
    sums = _cut(total(_joined(right)), [image.numel() for image in right])
    return [flat.view(image.shape) for flat, image in zip(sums, right, strict=True)]


def _next(known: Tensor, image: Tensor) -> Tensor:
    """(k, n) what of images (k, n) is orthogonal to (k, j, n) known vectors, of length 1, or zero where it is noise."""
    length = linalg.vector_norm(image, dim=1, keepdim=True)
    rest = image
    for _ in range(2):  # once leaves rounding in the basis
        rest = rest - torch.einsum("kj,kjn->kn", torch.einsum("kjn,kn->kj", known, rest), known)
    new = linalg.vector_norm(rest, dim=1, keepdim=True)
    return rest * torch.where(new > BREAKDOWN * length, 1.0 / new, 0.0)


def _basis(pieces: Pieces) -> Tensor:
    return torch.zeros(pieces.held.shape[0], STEPS, pieces.columns, dtype=torch.float32, device="cpu")


def _first_vector(size: int) -> Tensor:
    """A unit vector that all ranks have alike. The global generator is not touched."""
    generator = torch.Generator(device="cpu").manual_seed(size)
    return functional.normalize(torch.randn(size, generator=generator, dtype=torch.float32, device="cpu"), dim=0)


def _top(projected: Tensor) -> Tensor:
    """(k,) roots of the largest eigenvalues of (k, s, s) matrices that are symmetric but for rounding."""
    lower = torch.nan_to_num(projected.double(), nan=0.0, posinf=0.0, neginf=0.0)  # its norm is told by the Frobenius
    values: Tensor = linalg.eigvalsh(lower)
    return values[:, -1].clamp(min=0.0).sqrt().float()


def _scaled(norms: Tensor, frobenius: Tensor, scale: Tensor) -> Found:
    norms, frobenius = norms * scale, frobenius * scale
    return Found(torch.where(frobenius.isfinite(), norms, frobenius), frobenius)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _cut(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    return list(flat.split_with_sizes(list(sizes)))
