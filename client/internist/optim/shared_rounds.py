"""A retraction's round of matrices that ranks hold pieces of: each multiplies what it holds, and nobody has all.

A round multiplies a few vectors with W and Wᵀ (`following`). Of a piece of W that is a piece of the product, so that
one all-reduce of all matrices' vectors stands for reading W, where the whole of it would travel otherwise. What follows
is computed by every rank from the same sums. Derived for this project.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from internist.optim import following
from internist.optim.bucket import Bucket, Group
from internist.optim.ownership import Region
from internist.optim.pair_state import States, gather_followed, scatter_followed, seen
from internist.optim.retraction import concluded

PRODUCTS = 5, 4
"""How often a round sums images, as long as fan_out, and what Wᵀ makes of them, as long as fan_in."""


class Piece(NamedTuple):
    """What a rank holds of one matrix of a parameter."""

    matrix: int
    rows: slice
    columns: slice
    held: Tensor
    """(rows, columns), a view of what it holds of the parameter."""


class Held(NamedTuple):
    """What a rank holds of a parameter of matrices of one shape."""

    bucket: Bucket
    """As if all of it were here; its weights have no numbers."""
    pieces: Sequence[Piece]
    counts: bool
    """Whether this rank's pieces count: of replicas one does."""


def suits(parameter: Tensor, group: Group, shape: tuple[int, int, int], ranks: int) -> bool:
    """Whether parts of a parameter are parts of its matrices (count, fan_out, fan_in), and so many ranks send less than
    the matrices are. Stacks and convolutions are not cut here."""
    _, fan_out, fan_in = shape
    images, backs = PRODUCTS
    sent = following.width(fan_out, fan_in) * (backs * fan_in + images * fan_out)
    return parameter.ndim == 2 and group["layout"] != "conv" and ranks * sent < fan_out * fan_in


def pieces(region: Region, local: Tensor, group: Group, shape: tuple[int, int, int]) -> list[Piece]:
    """What of a parameter's matrices a rank holds.

    Args:
        region: of the rank.
        local: of the region's shape.
        group: of the parameter, which `suits`.
        shape: (count, fan_out, fan_in) of its matrices, which are of one shape.
    """
    found: list[Piece] = []
    for (rows, columns), inner in region.boxes:
        held = local[inner]
        if group["layout"] == "in_out":
            rows, columns, held = columns, rows, held.mT
        found += _blocks(rows, columns, held, shape[1])
    return [piece for piece in found if piece.held.numel()]


def _blocks(rows: slice, columns: slice, held: Tensor, fan_out: int) -> Iterator[Piece]:
    """A part of matrices that stand one above the other, cut where they end."""
    start = rows.start
    while start < rows.stop:
        matrix = start // fan_out
        stop = min(rows.stop, (matrix + 1) * fan_out)
        own = held[start - rows.start : stop - rows.start]
        yield Piece(matrix, slice(start - matrix * fan_out, stop - matrix * fan_out), columns, own)
        start = stop


def retract(states: States, parts: Sequence[Held], add_up: Callable[[Tensor], None]) -> None:
    """One round of every parameter, and W <- W S / ‖W‖₂ of what this rank holds.

    Args:
        states: the optimizer's.
        parts: the same parameters, in one order, on every rank.
        add_up: sums a flat float tensor over the ranks, in place. A collective.
    """
    known = [gather_followed(states, part.bucket)[0] for part in parts]
    views = [seen(one) for one in known]
    found = following.follow_by(
        lambda blocks: _summed(parts, blocks, add_up, turned=True),
        lambda images: _summed(parts, images, add_up, turned=False),
        [one.block for one in known],
        [view.share for view in views],
    )
    for part, one, view, now in zip(parts, known, views, found, strict=True):
        factors = concluded(one, view, now, part.bucket, exact=False, may_grow=True)
        scatter_followed(states, part.bucket, one)
        for piece in part.pieces:
            piece.held.mul_(factors[piece.matrix, 0, 0].to(piece.held.dtype))


def _summed(
    parts: Sequence[Held], rows: Sequence[Tensor], add_up: Callable[[Tensor], None], *, turned: bool
) -> list[Tensor]:
    """(B, k, fan_out) rows times Wᵀ where `turned`, else (B, k, fan_in) rows times W, of all parameters."""
    made = []
    for part, block in zip(parts, rows, strict=True):
        size = part.bucket.fan_out if turned else part.bucket.fan_in
        product = block.new_zeros(*block.shape[:2], size)
        for piece in part.pieces if part.counts else ():
            of, to = (piece.columns, piece.rows) if turned else (piece.rows, piece.columns)
            held = piece.held.to(block.dtype)
            product[piece.matrix, :, to] += block[piece.matrix, :, of] @ (held.mT if turned else held)
        made.append(product)
    flat = torch.cat([product.flatten() for product in made])
    add_up(flat)
    sizes = [product.numel() for product in made]
    return [own.view(product.shape) for own, product in zip(torch.split(flat, sizes), made, strict=True)]
