"""A step's passes over matrices in a CPU's memory that multiply none: compiled, where the machine can (`native`).

Such a pass is bound by memory. Every operator of torch reads and writes the whole of a matrix, and one that mixes
dtypes takes twice as long; `passes.c` does in one pass what takes three to six of them. `advance` and `write` take any
tensors of a CPU, and use operators where `suits` says no; for the others, callers do. Derived for this project.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from internist.optim import native
from internist.optim.parts import cached_parts
from internist.optim.threads import side_by_side

CHUNK = 2**20
"""Entries that one thread passes over. Cut alike whatever the number of threads, so that sums are the same."""

ROUNDED_TWICE = 0.25
"""Share of a direction's squares, removed, up to which it is rounded before as well as after that: where it is more,
what is left would be noise beside what was rounded."""

SUFFIXES = {torch.float32: "_float", torch.bfloat16: "_bfloat16"}


@dataclass(slots=True)
class Images:
    """A matrix X seen from a pair u (fan_out,) and v (fan_in,): what X − P_u X P_v = u rᵀ + (l − (uᵀl) u) vᵀ takes."""

    u: Tensor
    v: Tensor
    both: Tensor
    """(fan_out + fan_in,) l = Xv and r = Xᵀu, one after the other, float32."""
    along: float
    """uᵀl = uᵀXv."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """(fan_out, 2) L and (2, fan_in) R with LR = X − P_u X P_v."""
        rows = self.u.shape[0]
        left, right = self.both[:rows], self.both[rows:]
        return torch.stack([self.u, left - self.along * self.u], dim=1), torch.stack([right, self.v])


def suits(arithmetic: Tensor, *others: Tensor) -> bool:
    """Whether the passes take these: plain tensors of a CPU without gaps, float32, the first float32 or bfloat16."""
    if arithmetic.dtype not in SUFFIXES or torch.compiler.is_compiling() or native.library() is None:
        return False
    if any(other.dtype is not torch.float32 for other in others):
        return False
    return all(map(_is_plain, (arithmetic, *others)))


def accumulate(gradient: Tensor, momentum: Tensor, *, mu: float) -> None:
    """M <- μ M + (1 − μ) G alone, with the numbers that `advance` gives."""
    if suits(gradient, momentum):
        _accumulate(gradient, momentum, mu)
    elif gradient.ndim > 1 and suits(gradient.mT, momentum.mT):
        _accumulate(gradient.mT, momentum.mT, mu)
    else:
        momentum.lerp_(gradient, 1.0 - mu)


def _accumulate(gradient: Tensor, momentum: Tensor, mu: float) -> None:
    library = native.library()
    assert library is not None

    def chunk(first: int, count: int) -> None:
        library.accumulate(_at(gradient, first), _at(momentum, first), count, 1.0 - mu)

    _each_chunk(momentum.numel(), 1, chunk)
    increment_version(momentum)


def advance(gradient: Tensor, momentum: Tensor, out: Tensor, *, mu: float, nesterov: bool) -> None:
    """M <- μ M + (1 − μ) G, and the direction N into `out`: M, or with Nesterov's look ahead μ M + (1 − μ) G.

    Entry by entry: the compiled pass gives the same numbers wherever an entry stands.

    Args:
        gradient, momentum: G and M, of one shape. M is overwritten.
        out: of that shape, in the arithmetic's dtype. N's length does not matter, and may be another.
        mu: μ.
        nesterov: whether N looks ahead.
    """
    if suits(out, gradient, momentum):
        _advance(gradient, momentum, out, mu, nesterov)
    elif gradient.ndim > 1 and suits(out, gradient.mT, momentum.mT):  # of a weight stored (in, out)
        turned = torch.empty(gradient.mT.shape, dtype=out.dtype)
        _advance(gradient.mT, momentum.mT, turned, mu, nesterov)
        out.copy_(turned.mT)
    else:
        for entry, moment, direction in cached_parts(gradient, momentum, out):
            advance_by_operators(entry, moment, direction, mu=mu, nesterov=nesterov)


def _advance(gradient: Tensor, momentum: Tensor, out: Tensor, mu: float, nesterov: bool) -> None:
    run, ahead = _function("advance", out), _ahead(mu, nesterov)

    def chunk(first: int, count: int) -> None:
        run(_at(gradient, first), _at(momentum, first), _at(out, first), count, 1.0 - mu, ahead)

    _each_chunk(out.numel(), 1, chunk)
    increment_version(momentum)


def advance_by_operators(gradient: Tensor, momentum: Tensor, out: Tensor, *, mu: float, nesterov: bool) -> None:
    """What `advance` does, of a part that a cache holds."""
    momentum.lerp_(gradient, 1.0 - mu)
    if nesterov and mu > 0.5:  # N / mu: its length does not matter, and this takes half the time
        torch.add(momentum, gradient, alpha=(1.0 - mu) / mu, out=out)
    elif nesterov:
        torch.lerp(gradient, momentum, mu, out=out)
    else:
        out.copy_(momentum)


def advance_projected(
    gradient: Tensor, momentum: Tensor, out: Tensor, u: Tensor, v: Tensor, *, mu: float, nesterov: bool
) -> Images:
    """As `advance`, of one matrix (fan_out, fan_in), with P_u N P_v into `out`.

    Returns:
        N's images of u (fan_out,) and v (fan_in,).
    """
    rate, ahead = 1.0 - mu, _ahead(mu, nesterov)
    (rows, columns), both = out.shape, u.new_empty(out.shape[0] + out.shape[1])
    if rows <= _rows_of_chunk(columns):
        run = _function("advance_projected", out)
        pointers = _at(u), _at(v), _at(both), _at(both, rows)
        along = run(_at(gradient), _at(momentum), _at(out), rows, columns, rate, ahead, *pointers, ROUNDED_TWICE)
        increment_version(momentum)
        return Images(u, v, both, along)
    run, correct, combine = (_function(name, out) for name in ("advance_with_images", "correct", "combine"))

    def advance_chunk(first: int, count: int, left: int, right: int) -> float:
        matrices = (_at(matrix, first * columns) for matrix in (gradient, momentum, out))
        squares: float = run(*matrices, count, columns, rate, ahead, _at(u, first), _at(v), left, right)
        return squares

    squares = sum(_into_images(both, rows, advance_chunk))
    increment_version(momentum)
    seen = Images(u, v, both, float(u.dot(both[:rows])))

    def correct_chunk(first: int, count: int) -> None:
        correct(_at(out, first * columns), count, columns, *_correction(seen, first))

    def combine_chunk(first: int, count: int) -> None:
        matrices = (_at(matrix, first * columns) for matrix in (gradient, momentum, out))
        combine(*matrices, count, columns, ahead, *_correction(seen, first))

    removed = float(both.dot(both)) - seen.along**2
    _each_chunk(rows, columns, correct_chunk if removed <= ROUNDED_TWICE * squares else combine_chunk)
    return seen


def write(weight: Tensor, d: Tensor, *, keep: float, length: float) -> None:
    """W <- keep W − length D, entry by entry, D in the arithmetic's dtype."""
    if suits(d, weight):
        _write(weight, d, keep, length)
    elif d.ndim > 1 and suits(d, weight.mT):  # stored (in, out)
        _write(weight.mT, d.mT.contiguous(), keep, length)
    else:
        for own, step in cached_parts(weight, d):
            own.mul_(keep).add_(step, alpha=-length)


def _write(weight: Tensor, d: Tensor, keep: float, length: float) -> None:
    run = _function("write", d)

    def chunk(first: int, count: int) -> None:
        run(_at(weight, first), _at(d, first), count, keep, length)

    _each_chunk(d.numel(), 1, chunk)
    increment_version(weight)


def write_projected(
    weight: Tensor, d: Tensor, u: Tensor, v: Tensor, *, keep: float, length: float, back: float
) -> None:
    """W <- keep W − length (P_u D P_v − back u vᵀ) of one matrix (fan_out, fan_in), D in the arithmetic's dtype."""
    (rows, columns), both = d.shape, u.new_empty(d.shape[0] + d.shape[1])
    if rows <= _rows_of_chunk(columns):
        run = _function("write_projected", d)
        run(_at(weight), _at(d), rows, columns, keep, length, back, _at(u), _at(v), _at(both))
        increment_version(weight)
        return
    images, write = _function("images", d), _function("write_corrected", d)

    def images_chunk(first: int, count: int, left: int, right: int) -> None:
        images(_at(d, first * columns), count, columns, _at(u, first), _at(v), left, right)

    _into_images(both, rows, images_chunk)
    seen = Images(u, v, both, float(u.dot(both[:rows])) - back)

    def write_chunk(first: int, count: int) -> None:
        matrices = (_at(weight, first * columns), _at(d, first * columns))
        write(*matrices, count, columns, keep, length, *_correction(seen, first))

    _each_chunk(rows, columns, write_chunk)
    increment_version(weight)


def normalize(gram: Tensor, *, shrink: float, least: float) -> float:
    """Divide XXᵀ (k, k) by shrink² of its trace, or of `least` if that is more; 1 / (shrink √trace), NaN of a NaN."""
    inverse: float = _function("normalize", gram)(_at(gram), gram.shape[-1], shrink, least)
    return inverse


def scale_sum(matrix: Tensor, factor: float, shift: float, spread: Tensor) -> None:
    """factor X + shift I in place of X (k, k), its diagonal times the (k,) float32 numbers of `spread`."""
    _function("scale_sum", matrix)(_at(matrix), matrix.shape[-1], factor, shift, _at(spread))


def _ahead(mu: float, nesterov: bool) -> float:
    """What of the gradient is added to the momentum for a direction. Nesterov's is divided by μ, as operators do it."""
    return (1.0 - mu) / mu if nesterov and mu > 0.0 else 0.0


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.is_cpu and tensor.is_contiguous()


def _function(name: str, arithmetic: Tensor) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(native.library(), name + SUFFIXES[arithmetic.dtype])
    return found


def _at(tensor: Tensor, entry: int = 0) -> int:
    return tensor.data_ptr() + entry * tensor.element_size()


def _correction(images: Images, first: int) -> tuple[int, int, int, int, float]:
    both, rows = images.both, images.u.shape[0]
    return _at(images.u, first), _at(images.v), _at(both, first), _at(both, rows), images.along


def _into_images(both: Tensor, rows: int, run: Callable[[int, int, int, int], Any]) -> list[Any]:
    """Run every chunk with the addresses of its left image and of a right one, which are added up; what each gave."""
    columns = both.shape[0] - rows
    tall = _rows_of_chunk(columns)
    rights = both.new_empty(-(-rows // tall), columns)
    given = _each_chunk(
        rows, columns, lambda first, count: run(first, count, _at(both, first), _at(rights, first // tall * columns))
    )
    torch.sum(rights, 0, out=both[rows:])
    return given


def _rows_of_chunk(columns: int) -> int:
    return max(1, CHUNK // columns)


def _each_chunk(rows: int, columns: int, run: Callable[[int, int], Any]) -> list[Any]:
    """Run (first row, rows) of every chunk, by all threads where there are several of both; what each gave."""
    tall = _rows_of_chunk(columns)
    if rows <= tall:
        return [run(0, rows)]
    return side_by_side([partial(run, first, min(tall, rows - first)) for first in range(0, rows, tall)])
