"""Singular values of weight matrices and of their changes.

Small matrices are measured exactly, large ones by Lanczos on W^T W with full reorthogonalisation: an estimate from
below that stayed within 1 % of the exact value in every test (see tests/client/test_measures_spectral.py).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, linalg
from torch.nn import functional

from internist.measures.precision import full_precision

EXACT_UP_TO = 256
"""Smaller side up to which the exact value is computed: about 2 ms for 256 x 256 and for 256 x 1024 on one core."""

EXACT_ENTRIES = 2**21
"""And entries up to which it is: Lanczos reads a longer matrix in place, where the exact way copies it to float64."""

SAFE_TRACE = 1e-20, 1e30
"""Sums of squares between which float32 products neither underflow nor overflow to any effect."""

COLD_STEPS = 32
WARM_STEPS = 20
RANDOM_SHARE = 0.1
"""A warm start is mixed with this much noise: alone, it could stay orthogonal to a new top direction for ever."""

BREAKDOWN = 1e-5
"""A Krylov vector this small against the matrix is rounding, and is set to zero."""

SQUARINGS = 20
"""Squarings of a Gram matrix off the CPU: its trace ratio is then within log(size) / 2**20 of the top eigenvalue."""


class Spectral(NamedTuple):
    """A spectral norm, how it was computed, and a right vector to start the next one from."""

    norm: Tensor
    """() float32, the largest singular value."""
    method: str
    """`gram` is exact to 1e-6; `lanczos-32` (cold) and `lanczos-20` (warm) are estimates from below, within 1 %."""
    right: Tensor | None
    """(fan_in,) or (fan_out,) float32, whichever side is smaller; None where the method needs no start."""


def spectral_norm(weight: Tensor, *, start: Tensor | None = None) -> Spectral:
    """Largest singular value of a matrix.

    Args:
        weight: (fan_out, fan_in), floating, of any strides.
        start: `right` of an earlier matrix close to this one.

    Returns:
        The norm in the weight's unit, with its method. NaN in, NaN out; infinity if an entry is infinite and none
        NaN. On the CPU the host reads small intermediate values; elsewhere it never waits for the device.

    Raises:
        ValueError: weight is not a non-empty floating matrix.
    """
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise ValueError(f"expected a floating (fan_out, fan_in) matrix, got {weight.dtype} of {tuple(weight.shape)}")
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.t()
    size = tall.shape[1]
    if start is not None and start.shape != (size,):
        raise ValueError(f"expected a start of {size} entries, got {tuple(start.shape)}")
    with full_precision(weight):
        if size <= EXACT_UP_TO and tall.numel() <= EXACT_ENTRIES:
            return Spectral(_exact(tall), "gram", None)
        steps = min(size, COLD_STEPS if start is None else WARM_STEPS)
        norm, right = _lanczos(tall.float(), _first_vector(tall, start), steps)
        return Spectral(norm, f"lanczos-{steps}", right)


def operator_norm(spectral_norm: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """RMS-to-RMS operator norm of a matrix, from its spectral norm.

    Args:
        spectral_norm: () largest singular value, in the weight's unit.
        shape: (fan_out, fan_in) of the matrix view.

    Returns:
        () float32 on the same device. NaN in, NaN out.

    Raises:
        ValueError: shape is not that of a non-empty matrix.

    Source: Yang, Simon & Bernstein 2023, arXiv:2310.17813.
    """
    return spectral_norm * operator_scale(shape)


def operator_scale(shape: torch.Size | tuple[int, ...]) -> float:
    """What the spectral norm of a (fan_out, fan_in) matrix is multiplied by to become its `operator_norm`.

    Raises:
        ValueError: shape is not that of a non-empty matrix.
    """
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"expected a (fan_out, fan_in) matrix, got {tuple(shape)}")
    fan_out, fan_in = shape
    return math.sqrt(fan_in / fan_out)


def stable_rank(frobenius: Tensor, spectral_norm: Tensor) -> Tensor:
    """How many directions carry a matrix: squared Frobenius norm over squared spectral norm.

    Args:
        frobenius: (...) root of the sum of the squared entries.
        spectral_norm: (...) largest singular value of the same matrix.

    Returns:
        (...) float32, from 1 to the smaller side. NaN in, NaN out; NaN too for a matrix of zeros, as fresh output
        projections often are: it has no rank to speak of.
    """
    return (frobenius / spectral_norm).square()


def _exact(tall: Tensor) -> Tensor:
    """From the eigenvalues of the Gram matrix of the columns: its squared condition costs the largest one nothing.

    On the CPU in float32, where that multiplies float32 as such and far from its ends: half the time of float64, and no
    further from the exact value than `svdvals` in float32.
    """
    if tall.device.type != "cpu":
        wide = tall.double()
        return _top_by_squaring(wide.t() @ wide)[0].sqrt().float()
    gram = trace = None
    if torch.get_float32_matmul_precision() == "highest":
        narrow = tall.float()
        gram = narrow.t() @ narrow
        trace = gram.trace().item()
    if gram is None or trace is None or not SAFE_TRACE[0] < trace < SAFE_TRACE[1]:
        wide = tall.double()
        gram = wide.t() @ wide
        trace = gram.trace().item()
    if not math.isfinite(trace):  # eigvalsh raises on these
        return torch.tensor(trace, device="cpu")
    eigenvalues: Tensor = linalg.eigvalsh(gram)  # ascending
    return eigenvalues[-1].clamp(min=0.0).sqrt().float()


def _lanczos(tall: Tensor, first: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Largest singular value of (m, n) from below, and its right vector, by Lanczos on W^T W.

    The projected matrix is taken from inner products, not from the recurrence, so what rounding leaves in the basis
    cannot raise the value above the true one.
    """
    smallest, largest = torch.aminmax(tall)
    scale = torch.maximum(largest, smallest.neg())  # squares of tiny updates would underflow
    if scale.device.type == "cpu" and not bool(scale.isfinite()):
        return scale, first
    shrink = torch.where(scale >= torch.finfo(torch.float32).tiny, 1.0 / scale, 0.0)
    basis = torch.zeros(steps, tall.shape[1], dtype=torch.float32, device=tall.device)
    projected = torch.zeros(steps, steps, dtype=torch.float32, device=tall.device)
    basis[0] = first
    for step in range(steps):
        image = tall.t().mv(tall.mv(basis[step]).mul_(shrink)).mul_(shrink)
        known = basis[: step + 1]
        parts = known.mv(image)
        projected[step, : step + 1] = parts
        if step + 1 == steps:
            break
        length = linalg.vector_norm(image)
        rest = torch.addmv(image, known.t(), parts, alpha=-1)
        rest.addmv_(known.t(), known.mv(rest), alpha=-1)  # a second time: once leaves rounding in the basis
        new = linalg.vector_norm(rest)
        basis[step + 1] = rest * torch.where(new > BREAKDOWN * length, 1.0 / new, 0.0)
    top, ritz = _top(projected)
    norm = scale * top.clamp(min=0.0).sqrt().float()
    return torch.where(scale.isfinite(), norm, scale), basis.t().mv(ritz.float())


def _first_vector(tall: Tensor, start: Tensor | None) -> Tensor:
    """Unit vector to start from: random, or the given one with some noise. The global generator is not touched."""
    size = tall.shape[1]
    generator = torch.Generator(device=tall.device).manual_seed(size)
    noise = functional.normalize(torch.randn(size, generator=generator, device=tall.device), dim=0)
    if start is None:
        return noise
    known = torch.nan_to_num(start.float(), nan=0.0, posinf=0.0, neginf=0.0)  # of a matrix that was not finite
    return functional.normalize(torch.add(functional.normalize(known, dim=0), noise, alpha=RANDOM_SHARE), dim=0)


def _top(projected: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue and eigenvector of a small positive semi-definite matrix given by its lower triangle."""
    lower = projected.double()
    if lower.device.type == "cpu":
        values, vectors = linalg.eigh(lower)
        return values[-1], vectors[:, -1]
    return _top_by_squaring(lower + lower.tril(-1).t())


def _top_by_squaring(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue and eigenvector of a positive semi-definite matrix, without waiting for the device."""
    power = matrix
    for _ in range(SQUARINGS):
        power = power / power.trace().clamp(min=torch.finfo(power.dtype).tiny)
        power = power @ power
    power = power / power.trace().clamp(min=torch.finfo(power.dtype).tiny)
    column = power.index_select(1, power.diagonal().argmax().view(1)).flatten()
    return (power * matrix).sum(), functional.normalize(column, dim=0)
