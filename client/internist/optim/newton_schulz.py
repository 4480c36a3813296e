"""The Newton-Schulz iteration, in the form that costs least for a shape and an arithmetic.

The standard form multiplies the matrix itself at every step. The Gram form multiplies only the small Gram matrix
G = X X' and collects the polynomial Q, so that X is touched twice: Y = Q X. Its rounding makes small eigenvalues of G
negative, and those grow by a^2 a step; so G is taken afresh from the matrix before they can matter, sooner in
bfloat16 than in float32.

Source: the Gram form with restarts is Dao AI Lab's, "Gram Newton-Schulz". Where to restart for an arithmetic, the
normalisation by the trace of G and the spread rounding of the diagonal are derived for this project.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from internist.optim import passes
from internist.optim.alignment import aligned

Triple = tuple[float, float, float]

CPU_MULTIPLIES_BFLOAT16: bool = any(
    supported is not None and supported()
    for supported in (getattr(torch.cpu, f"_is_{what}_supported", None) for what in ("amx_tile", "avx512_bf16"))
)
"""Natively, in tiles or by rows: what the processor can, not what is faster on it, so that like ranks decide alike.
Asked once: a compiler cannot trace the question. Elsewhere a step in bfloat16 takes four times what one in float32
does, so matrices are multiplied in float32 there and rounded at the end."""

GROWTH_BEFORE_RESTART = {torch.bfloat16: (150.0, 20.0), torch.float32: (1e5, 1e4), torch.float64: (1e12, 1e11)}
"""By how much a negative eigenvalue of the Gram matrix may grow in the first run of steps, and in later ones, where
more eigenvalues are large and so is their rounding. The keys are the arithmetics there are."""

SMALLEST_GRAM = 256
"""Side from which bfloat16 takes the Gram form: in smaller ones rounding is averaged over too few entries."""

SMALLEST_NORM = 1e-15
"""A matrix of a smaller Frobenius norm is divided by this, not by its norm: zeros stay zeros."""

STRIP = 128
"""Rows of a symmetric product that a CPU computes at once in float32,"""
LONG_STRIP = 256
"""and in bfloat16, where only strips of long products pay (measured with tiles, and not by rows):"""
LONG = 2**20
"""those of matrices of at least so many entries, three times as long as wide."""

GOLDEN = 0.6180339887
"""Multiples of it fall evenly between whole numbers."""

UNIT_OF_ROUNDING = 2.0**-7.5
"""Distance of neighbouring bfloat16 numbers relative to them: from 2^-8 to 2^-7."""


def newton_schulz(x: Tensor, triples: tuple[Triple, ...], shrink: float, *, batched: bool | None = None) -> Tensor:
    """X f(X'X): every singular value s becomes its image under the polynomials, singular vectors stay.

    Args:
        x: (count, fan_out, fan_in) bfloat16, float32 or float64. Not changed.
        triples: (a, b, c) of each step, s -> a s + b s^3 + c s^5.
        shrink: the input is divided by this times its Frobenius norm first.
        batched: whether all are multiplied at once, by few operators; None is where they are not a CPU's.

    Returns:
        (count, fan_out, fan_in), contiguous, in x's dtype. NaN or infinity anywhere in a matrix makes all of it NaN.
    """
    batched = x.device.type != "cpu" if batched is None else batched
    is_widened = x.dtype == torch.bfloat16 and not (batched or CPU_MULTIPLIES_BFLOAT16)
    dtype = torch.float32 if is_widened else x.dtype
    plan = (_plan if torch.compiler.is_compiling() else _known_plan)(
        triples, dtype, min(x.shape[-2:]), max(x.shape[-2:])
    )
    if batched:
        return _iterate_batch(x, plan, shrink)
    done = [_alone(one.to(dtype), plan, shrink).to(x.dtype) for one in torch.split(x, 1)]
    return done[0].view(x.shape) if len(done) == 1 else torch.cat([one.view(1, *x.shape[1:]) for one in done])


def _alone(x: Tensor, plan: tuple[tuple[Triple, ...], ...], shrink: float) -> Tensor:
    """One matrix, (1, fan_out, fan_in), on a CPU: one after another, each stays in the cache."""
    x = x if torch.compiler.is_compiling() else aligned(x)
    return _iterate(x if x.dtype == torch.bfloat16 else x[0], plan, shrink)  # bmm is faster than mm in bfloat16


def _plan(triples: tuple[Triple, ...], dtype: torch.dtype, short: int, long: int) -> tuple[tuple[Triple, ...], ...]:
    """The steps cut into runs: within a run only Gram matrices are multiplied. Runs of one step are the standard form.

    Products are counted in multiples of the short side cubed: a step of the standard form costs 2 ratio + 1, a run of
    k steps 2 ratio + 4 k - 3.
    """
    standard = tuple((triple,) for triple in triples)
    if dtype == torch.bfloat16 and short < SMALLEST_GRAM:
        return standard
    ratio = long / short
    runs: list[list[Triple]] = []
    growth = 1.0
    first, later = GROWTH_BEFORE_RESTART[dtype]
    for triple in triples:
        if runs and growth * runs[-1][-1][0] ** 2 <= (first if len(runs) == 1 else later):
            growth *= runs[-1][-1][0] ** 2
            runs[-1].append(triple)
        else:
            growth = 1.0
            runs.append([triple])
    gram_cost = sum(2.0 * ratio + 4 * len(run) - 3 for run in runs)
    if gram_cost < len(triples) * (2.0 * ratio + 1.0):
        return tuple(tuple(run) for run in runs)
    return standard


def _iterate(x: Tensor, plan: tuple[tuple[Triple, ...], ...], shrink: float) -> Tensor:
    """(fan_out, fan_in) on a CPU, or a batch of one. Tall matrices are multiplied from the right, and never transposed.

    A step's polynomial is aI + U of the Gram matrix. The identity is multiplied as the number a, which is not rounded,
    but where a run's polynomials are collected. A CPU prepares each product for its factors alpha and beta, so only
    the coefficients may be those: the norm is multiplied apart.
    """
    tall = x.shape[-2] > x.shape[-1]
    side = min(x.shape[-2:])
    gram, u, product, spare = (x.new_empty(*x.shape[:-2], side, side) for _ in range(4))
    for index, run in enumerate(plan):
        _symmetric_product(x.mT if tall else x, x if tall else x.mT, out=gram)
        inverse = _normalize(gram, shrink) if index == 0 else None
        for step, (a, b, c) in enumerate(run):
            _symmetric_product(gram, gram, out=u, alpha=c, plus=gram, beta=b)
            if step + 1 < len(run):
                _symmetric_product(u, gram, out=spare, plus=gram, beta=a)
                _symmetric_product(spare, u, out=gram, plus=spare, beta=a)
            if step > 0:
                _symmetric_product(u, product, out=spare, plus=product, beta=a)
                product, spare = spare, product
            elif inverse is not None or len(run) > 1:
                u, product = product, u
                _scale_sum(product, a, inverse)
        if inverse is not None or len(run) > 1:
            x = _product(x, product) if tall else _product(product, x)
        else:
            x = _product(x, u, plus=x, beta=run[0][0]) if tall else _product(u, x, plus=x, beta=run[0][0])
    return x


def _iterate_batch(x: Tensor, plan: tuple[tuple[Triple, ...], ...], shrink: float) -> Tensor:
    """`_iterate` of (count, fan_out, fan_in), by as few operators as it takes: launching them is what costs."""
    tall = x.shape[-2] > x.shape[-1]
    product, inverse = x, None
    for index, run in enumerate(plan):
        turned = x.mT
        gram = torch.bmm(turned, x) if tall else torch.bmm(x, turned)
        if index == 0:
            inverse = _normalize_batch(gram, shrink)
        for step, (a, b, c) in enumerate(run):
            u = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            if step + 1 < len(run):
                gram = torch.baddbmm(gram, u, gram, beta=a)
                gram = torch.baddbmm(gram, gram, u, beta=a)
            if step > 0:
                product = torch.baddbmm(product, u, product, beta=a)
            elif index == 0 or len(run) > 1:
                product = u
                _add_identity(product, a, inverse if index == 0 else None)
        if index == 0 or len(run) > 1:
            x = torch.bmm(x, product) if tall else torch.bmm(product, x)
        else:
            x = torch.baddbmm(x, x, u, beta=run[0][0]) if tall else torch.baddbmm(x, u, x, beta=run[0][0])
    return x


def _normalize_batch(gram: Tensor, shrink: float) -> Tensor:
    """`_normalize` of (count, side, side); the factors are (count, 1, 1)."""
    exact = torch.float64 if gram.dtype == torch.float64 else torch.float32
    squares = _diagonals(gram).sum(-1, keepdim=True, dtype=exact).clamp_(min=SMALLEST_NORM**2)
    if shrink != 1.0:
        squares.mul_(shrink**2)
    gram.div_(squares)
    return squares.rsqrt()


def _add_identity(matrices: Tensor, a: float, factors: Tensor | None) -> None:
    """`_scale_sum` of (count, side, side) in place, with factors (count, 1, 1)."""
    side = matrices.shape[-1]
    rounded = matrices.dtype == torch.bfloat16
    of_diagonal = (_shift if torch.compiler.is_compiling() else _known_shift)(a, side, rounded, matrices.device)
    if factors is None:
        _diagonals(matrices).add_(of_diagonal)
    else:
        _diagonals(matrices.mul_(factors)).addcmul_(factors, of_diagonal)


def _diagonals(matrices: Tensor) -> Tensor:
    """(count, 1, side) diagonals of (count, side, side) products, which have no gaps: one view."""
    count, side, _ = matrices.shape
    return matrices.as_strided((count, 1, side), (side * side, side, side + 1))


def _shift(a: float, side: int, rounded: bool, device: torch.device) -> Tensor:
    """(side,) what is added to a diagonal for a I: a, in float32 numbers that fall evenly around it if rounded."""
    return (_spread if rounded else _ones)(side, device) * a


def _product(a: Tensor, b: Tensor, *, plus: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """a b + beta plus: matrices or batches of them."""
    if plus is None:
        return torch.mm(a, b) if a.ndim == 2 else torch.bmm(a, b)
    return torch.addmm(plus, a, b, beta=beta) if a.ndim == 2 else torch.baddbmm(plus, a, b, beta=beta)


def _normalize(gram: Tensor, shrink: float) -> Tensor | float:
    """Scale XX' in place to that of X / (shrink ||X||_F), and return 1 / (shrink ||X||_F), broadcastable over X."""
    if gram.numel() == gram.shape[-1] ** 2 and passes.suits(gram):
        return passes.normalize(gram, shrink=shrink, least=SMALLEST_NORM**2)
    exact = torch.float64 if gram.dtype == torch.float64 else torch.float32
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=exact)
    if not torch.compiler.is_compiling():
        number = 1.0 / (math.sqrt(max(float(trace), SMALLEST_NORM**2)) * shrink)
        gram.mul_(number * number)  # a bfloat16 matrix times a number is several times faster than times a tensor
        return number
    inverse = trace.clamp(min=SMALLEST_NORM**2).rsqrt() / shrink
    if gram.ndim > 2:
        inverse = inverse[..., None, None]
    gram.mul_(inverse * inverse)
    return inverse


def _symmetric_product(
    a: Tensor, b: Tensor, *, out: Tensor, alpha: float = 1.0, plus: Tensor | None = None, beta: float = 0.0
) -> None:
    """alpha a b + beta plus, which is known to be symmetric, into `out`: matrices or batches of them.

    Polynomials of one Gram matrix commute, so their products are symmetric. Where multiplying is slow, what lies
    below the diagonal strips is mirrored, not computed.
    """
    strip = STRIP
    if out.ndim > 2 and plus is not None:
        torch.baddbmm(plus, a, b, beta=beta, alpha=alpha, out=out)
        return
    if out.ndim > 2:
        if a.numel() < LONG or a.shape[-1] < 3 * a.shape[-2]:
            torch.bmm(a, b, out=out)
            return
        a, b, out, strip = a[0], b[0], out[0], LONG_STRIP
    for start in range(0, out.shape[0], strip):
        rows, rest = slice(start, start + strip), slice(start + strip, None)
        part = out[rows, start:]
        if plus is None:
            torch.mm(a[rows], b[:, start:], out=part)
        else:
            torch.addmm(plus[rows, start:], a[rows], b[:, start:], beta=beta, alpha=alpha, out=part)
        out[rest, rows].copy_(out[rows, rest].mT)


def _scale_sum(matrix: Tensor, a: float, factor: Tensor | float | None) -> None:
    """factor (U + a I) in place of U; None is 1.

    The diagonal is one number, nearly, and would be rounded to bfloat16 the same way in every row: a bias of up to
    0.2 % a step. Factors spread evenly over one unit of rounding make it noise that averages out.
    """
    if not isinstance(factor, Tensor) and matrix.numel() == matrix.shape[-1] ** 2 and passes.suits(matrix):
        number = 1.0 if factor is None else factor
        factors = _known_spread if matrix.dtype == torch.bfloat16 else _known_ones
        passes.scale_sum(matrix, number, number * a, factors(matrix.shape[-1], matrix.device))
        return
    if factor is not None:
        matrix.mul_(factor)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    shift = a if factor is None else factor * a
    if isinstance(shift, Tensor) and shift.ndim > 1:
        shift = shift.squeeze(-1)
    if matrix.dtype != torch.bfloat16:
        diagonal.add_(shift)
        return
    spread = (_spread if torch.compiler.is_compiling() else _known_spread)(matrix.shape[-1], matrix.device)
    diagonal.copy_(diagonal.float().add_(shift).mul_(spread))


def _spread(side: int, device: torch.device) -> Tensor:
    """(side,) float32 numbers around 1, which fall evenly over one unit of rounding of bfloat16."""
    spread = torch.arange(side, dtype=torch.float32, device=device).mul_(GOLDEN).frac_().sub_(0.5)
    return spread.mul_(UNIT_OF_ROUNDING).add_(1.0)


def _ones(side: int, device: torch.device) -> Tensor:
    return torch.ones(side, device=device)


_known_spread = lru_cache(maxsize=64)(_spread)
_known_ones = lru_cache(maxsize=64)(_ones)
_known_shift = lru_cache(maxsize=64)(_shift)
_known_plan = lru_cache(maxsize=256)(_plan)
