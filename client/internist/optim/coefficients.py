"""Newton-Schulz orthogonalisation: coefficient sets with what they do to singular values, and the iteration.

Every step maps X to aX + b(XX')X + c(XX')^2 X, which maps each singular value s to as + bs^3 + cs^5 and leaves the
singular vectors alone. The sets differ in how fast small values grow and how near to one they all end.
"""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from internist.optim.newton_schulz import CPU_MULTIPLIES_BFLOAT16, Triple, newton_schulz


class Band(NamedTuple):
    """Where a set takes the singular values of [floor, 1] (relative to the Frobenius norm)."""

    floor: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Coefficients:
    """A published sequence of quintic polynomials."""

    name: str
    triples: tuple[Triple, ...]
    shrink: float
    """The input is divided by this times its Frobenius norm."""
    repeats: bool
    """Whether the last triple may be repeated for more steps, and steps be left out, or the set is of one piece."""
    bands: tuple[Band, Band, Band]
    """Image of [0.1, 1], [0.01, 1] and [0.001, 1], computed for this project in float64."""
    source: str

    def of_length(self, steps: int | None) -> tuple[Triple, ...]:
        """The triples of `steps` steps; None is the set as published.

        Raises:
            ValueError: steps is not positive, or the set has no such length.
        """
        if steps is None or steps == len(self.triples):
            return self.triples
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"expected a positive number of Newton-Schulz steps or None, got {steps!r}")
        if not self.repeats:
            raise ValueError(f"the set {self.name!r} has {len(self.triples)} steps and no others, got steps={steps}")
        return self.triples[:steps] + self.triples[-1:] * (steps - len(self.triples))


_JORDAN: Triple = (3.4445, -4.7750, 2.0315)
_CLASSICAL: Triple = (15 / 8, -10 / 8, 3 / 8)
_POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    _CLASSICAL,
)


def _safe(triples: tuple[Triple, ...], safety: float) -> tuple[Triple, ...]:
    """All but the last divided by powers of the safety factor, as the Polar Express reference does."""
    shrunk = tuple((a / safety, b / safety**3, c / safety**5) for a, b, c in triples[:-1])
    return (*shrunk, triples[-1])


COEFFICIENTS: dict[str, Coefficients] = {
    entry.name: entry
    for entry in (
        Coefficients(
            "jordan",
            (_JORDAN,) * 5,
            1.0,
            True,
            (Band(0.1, 0.682, 1.134), Band(0.01, 0.682, 1.134), Band(0.001, 0.471, 1.202)),
            "Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks",
        ),
        Coefficients(
            "you",
            (
                (4.0848, -6.8946, 2.9270),
                (3.9505, -6.3029, 2.6377),
                (3.7418, -5.5913, 2.3037),
                (2.8769, -3.1427, 1.2046),
                (2.8366, -3.0525, 1.2012),
            ),
            1.0,
            False,
            (Band(0.1, 0.978, 1.032), Band(0.01, 0.978, 1.032), Band(0.001, 0.475, 1.145)),
            "You Jiacheng 2025; the default of Dao AI Lab's gram-newton-schulz",
        ),
        Coefficients(
            "polar_express",
            _safe(_POLAR_EXPRESS, 1.01),
            1.01,
            True,
            (Band(0.1, 1.0, 1.0), Band(0.01, 1.0, 1.0), Band(0.001, 1.0, 1.0)),
            "Amsel et al. 2025, arXiv:2505.16932, with the safety factor 1.01 of its reference",
        ),
        Coefficients(
            "deepseek",
            (_JORDAN,) * 8 + ((2.0, -1.5, 0.5),) * 2,
            1.0,
            False,
            (Band(0.1, 1.0, 1.0005), Band(0.01, 1.0, 1.0005), Band(0.001, 1.0, 1.0005)),
            "DeepSeek-V4 hybrid: Jordan's triple eight times, then (2, -1.5, 0.5) twice",
        ),
        Coefficients(
            "classical",
            (_CLASSICAL,) * 5,
            1.0,
            True,
            (Band(0.1, 0.996, 1.0), Band(0.01, 0.229, 1.0), Band(0.001, 0.023, 1.0)),
            "The quintic Newton-Schulz step for the polar factor (15/8, -10/8, 3/8)",
        ),
    )
}
"""The sets by name."""


def coefficients(name: str) -> Coefficients:
    """The set of that name.

    Raises:
        ValueError: there is none.
    """
    if name in COEFFICIENTS:
        return COEFFICIENTS[name]
    near = get_close_matches(str(name), COEFFICIENTS, n=1, cutoff=0.0)
    raise ValueError(f"no coefficient set {name!r}; did you mean {near[0]!r}? There are {', '.join(COEFFICIENTS)}")


@cache
def band(name: str, steps: int | None = None, *, floor: float = 0.01) -> Band:
    """Least and greatest singular value that a set makes of those in [floor, 1], in exact arithmetic.

    Args:
        name: of the set.
        steps: as for `orthogonalize`.
        floor: least singular value of the input, relative to its Frobenius norm, in (0, 1]. A flat square matrix of
            width n has them all at 1/sqrt(n).
    """
    known = coefficients(name)
    with unset_fake_temporarily():  # numbers of ours, also where the model's are not there
        s = torch.logspace(math.log10(floor), 0.0, 20_001, dtype=torch.float64) / known.shrink
        for a, b, c in known.of_length(steps):
            square = s * s
            s = s * (a + square * (b + square * c))
        return Band(floor, float(s.min()), float(s.max()))


@cache
def greatest_singular_value(name: str, steps: int | None = None) -> float:
    """Greatest singular value that a set makes of any in [0, 1]: `orthogonalize` divided by it has norm at most one."""
    return max(band(name, steps, floor=10.0**-exponent).high for exponent in (1, 3, 6, 9))


ROUNDING = 1.01
"""How far below-float32 arithmetic may carry a singular value over the set's greatest: 1.009 was the most seen, over
six sets and five shapes."""


def longest(name: str, steps: int | None, dtype: torch.dtype) -> float:
    """What an orthogonalised direction is divided by to have norm at most one, in any arithmetic.

    Args:
        name: of the set.
        steps: as for `orthogonalize`.
        dtype: of the arithmetic; below float32 there is room for its rounding.
    """
    greatest = greatest_singular_value(name, steps)
    return greatest if dtype in (torch.float32, torch.float64) else greatest * ROUNDING


@cache
def norm_band(name: str, steps: int | None = None, *, side: int) -> Band:
    """Least and greatest spectral norm of an orthogonalised direction, which is not zero.

    The greatest singular value of a matrix is at least 1 / sqrt(side) of its Frobenius norm, and ends no lower than
    anything from there to 1 does; how high the others end is bounded by the whole of [0, 1].

    Args:
        name: of the set.
        steps: as for `orthogonalize`.
        side: the shorter one of the matrix.
    """
    floor = side**-0.5
    return Band(floor, band(name, steps, floor=floor).low, greatest_singular_value(name, steps))


def arithmetic_dtype(device: torch.device) -> torch.dtype:
    """The type a device multiplies matrices in fastest: bfloat16 where it does so natively, float32 elsewhere.

    A CPU does with AMX or AVX-512 BF16.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device.type == "cpu" and CPU_MULTIPLIES_BFLOAT16:
        return torch.bfloat16
    return torch.float32


def orthogonalize(
    matrices: Tensor, name: str = "jordan", *, steps: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The nearest matrices with orthonormal rows (or columns), approximately: U f(S) V' of U S V'.

    Args:
        matrices: (..., fan_out, fan_in), floating.
        name: a coefficient set in COEFFICIENTS.
        steps: Newton-Schulz steps; None is the set's own number.
        dtype: of the arithmetic; None is what suits the device (`arithmetic_dtype`).

    Returns:
        (..., fan_out, fan_in) in the arithmetic's dtype. Singular values lie in the set's band (`band`); zeros give
        zeros, a matrix of rank one its own direction, one row or column its unit vector times a number in the band.
        NaN or infinity anywhere makes the whole matrix NaN.

    Raises:
        ValueError: not floating matrices, an unknown set, or steps that it does not have.
    """
    if matrices.ndim < 2 or matrices.numel() == 0 or not matrices.is_floating_point():
        raise ValueError(
            f"expected floating (..., fan_out, fan_in) matrices, got {matrices.dtype} {tuple(matrices.shape)}"
        )
    known = coefficients(name)
    x = matrices.to(dtype or arithmetic_dtype(matrices.device)).reshape(-1, *matrices.shape[-2:])
    return newton_schulz(x, known.of_length(steps), known.shrink).view(matrices.shape)


def orthogonality_residual(d: Tensor) -> Tensor:
    """||D D' - I||_F / sqrt(min(fan_out, fan_in)) of each, (matrices, fan_out, fan_in) to (matrices,) float32."""
    wide = (d if d.shape[1] <= d.shape[2] else d.mT).float()
    gram = wide @ wide.mT
    gram.diagonal(dim1=1, dim2=2).sub_(1.0)
    residual: Tensor = torch.linalg.vector_norm(gram, dim=(1, 2)) / gram.shape[1] ** 0.5
    return residual
