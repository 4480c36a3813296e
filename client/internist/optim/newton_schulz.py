"""The Newton-Schulz iteration, in the form that costs least for a shape and an arithmetic.

The standard form multiplies the matrix itself at every step. The Gram form multiplies only the small Gram matrix
G = X X' and collects the polynomial Q, so that X is touched twice: Y = Q X. Its rounding makes small eigenvalues of G
negative, and those grow by a^2 a step; so G is taken afresh from the matrix before they can matter, sooner in
bfloat16 than in float32.

Source: the Gram form with restarts is Dao AI Lab's, "Gram Newton-Schulz". Where to restart for an arithmetic, the
normalisation by the trace of G and the spread rounding of the diagonal are derived for this project.
"""

from functools import lru_cache

import torch
from torch import Tensor

Triple = tuple[float, float, float]

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
"""and in bfloat16, where only strips of long products pay:"""
LONG = 2**20
"""those of matrices of at least so many entries, three times as long as wide."""

GOLDEN = 0.6180339887
"""Multiples of it fall evenly between whole numbers."""

UNIT_OF_ROUNDING = 2.0**-7.5
"""Distance of neighbouring bfloat16 numbers relative to them: from 2^-8 to 2^-7."""


def newton_schulz(x: Tensor, triples: tuple[Triple, ...], shrink: float) -> Tensor:
    """X f(X'X): every singular value s becomes its image under the polynomials, singular vectors stay.

    Args:
        x: (count, fan_out, fan_in) bfloat16, float32 or float64. Not changed.
        triples: (a, b, c) of each step, s -> a s + b s^3 + c s^5.
        shrink: the input is divided by this times its Frobenius norm first.

    Returns:
        (count, fan_out, fan_in), contiguous, in x's dtype. NaN or infinity anywhere in a matrix makes all of it NaN.
    """
    plan = (_plan if torch.compiler.is_compiling() else _known_plan)(
        triples, x.dtype, min(x.shape[-2:]), max(x.shape[-2:])
    )
    if x.device.type != "cpu":
        return _iterate(x, plan, shrink)
    # one after another, so that each stays in the cache; batches of one, as bmm is faster than mm in bfloat16
    done = [_iterate(one if x.dtype == torch.bfloat16 else one[0], plan, shrink) for one in torch.split(x, 1)]
    return done[0].view(x.shape) if len(done) == 1 else torch.cat([one.view(1, *x.shape[1:]) for one in done])


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
    """(fan_out, fan_in) or a batch of them. Tall matrices are multiplied from the right, and never transposed."""
    tall = x.shape[-2] > x.shape[-1]
    side = min(x.shape[-2:])
    gram, polynomial, product, spare = (x.new_empty(*x.shape[:-2], side, side) for _ in range(4))
    multiply = torch.mm if x.ndim == 2 else torch.bmm
    for index, run in enumerate(plan):
        _symmetric_product(x.mT if tall else x, x if tall else x.mT, out=gram)
        inverse = _normalize(gram, shrink) if index == 0 else None
        for step, (a, b, c) in enumerate(run):
            _symmetric_product(gram, gram, out=polynomial, alpha=c, plus=gram, beta=b)
            _add_identity(polynomial, a)
            more = step + 1 < len(run)
            if more:
                _symmetric_product(polynomial, gram, out=spare)
                _symmetric_product(spare, polynomial, out=gram)
            if step == 0:
                product, polynomial = polynomial, product
            else:
                _symmetric_product(polynomial, product, out=spare)
                product, spare = spare, product
        if inverse is not None:
            product.mul_(inverse)
        x = multiply(x, product) if tall else multiply(product, x)
    return x


def _normalize(gram: Tensor, shrink: float) -> Tensor | float:
    """Scale XX' in place to that of X / (shrink ||X||_F), and return 1 / (shrink ||X||_F), broadcastable over X."""
    exact = torch.float64 if gram.dtype == torch.float64 else torch.float32
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=exact)
    inverse = trace.clamp(min=SMALLEST_NORM**2).rsqrt() / shrink
    if trace.numel() == 1 and gram.device.type == "cpu" and not torch.compiler.is_compiling():
        number = float(inverse)  # a bfloat16 matrix times a number is several times faster than times a tensor
        gram.mul_(number * number)
        return number
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
        if len(out) > 1 or not out.is_cpu or a.numel() < LONG or a.shape[-1] < 3 * a.shape[-2]:
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


def _add_identity(matrix: Tensor, a: float) -> None:
    """Add a I in place."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    if matrix.dtype != torch.bfloat16:
        diagonal.add_(a)
        return
    spread, shift = (_spread if torch.compiler.is_compiling() else _known_spread)(matrix.shape[-1], a, matrix.device)
    diagonal.copy_(torch.addcmul(shift, diagonal, spread))


def _spread(side: int, a: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the diagonal of aI + U is multiplied by before it is rounded to bfloat16, and a times that.

    The diagonal is one number near a, nearly, and would be rounded the same way in every row: a bias of up to 0.2 % a
    step. Factors spread evenly over one unit of rounding make it noise that averages out.
    """
    spread = torch.arange(side, dtype=torch.float32, device=device).mul_(GOLDEN).frac_().sub_(0.5)
    spread.mul_(UNIT_OF_ROUNDING).add_(1.0)
    return spread, a * spread


_known_spread = lru_cache(maxsize=64)(_spread)
_known_plan = lru_cache(maxsize=256)(_plan)
