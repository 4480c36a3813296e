"""Orthogonalisation: every coefficient set does to singular values what is written of it, in every form and dtype."""

import math

import pytest
import torch

from internist.optim.coefficients import (
    COEFFICIENTS,
    arithmetic_dtype,
    band,
    coefficients,
    greatest_singular_value,
    norm_band,
    orthogonalize,
)
from internist.optim.newton_schulz import newton_schulz

AS_ORTHOGONAL = 1.02
"""Residuals of two roundings of one polynomial differ by this much either way."""

SETS = sorted(COEFFICIENTS)
SHAPES = [(24, 24), (24, 96), (96, 24), (200, 40), (1, 16), (16, 1), (300, 150)]

PUBLISHED = 1e-3
"""The bands are written with three digits."""

FLOAT32 = 2e-3
"""Frobenius error relative to the direction's. Rounding of the Gram form is amplified by the steepest polynomial."""

BFLOAT16 = 0.12
"""The same in bfloat16, whose entries are rounded by 0.4 %: torch's own Muon is as far off."""


def image(values, set_name, steps=None):
    """The slow, obvious form: each singular value, one at a time, in float64."""
    known = COEFFICIENTS[set_name]
    images = []
    for value in values:
        s = float(value) / known.shrink
        for a, b, c in known.of_length(steps):
            s = a * s + b * s**3 + c * s**5
        images.append(s)
    return torch.tensor(images, dtype=torch.float64)


def exact(matrix, set_name, steps=None):
    """U f(S / |S|) V' by the singular value decomposition."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u * image(s / s.norm(), set_name, steps)) @ vt


def matrix_of(shape, seed=0):
    """Gaussian times a decaying scale of columns: neither flat nor of low rank."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * torch.arange(1, shape[1] + 1) ** -0.5


@pytest.mark.parametrize("name", SETS)
def test_bands_are_what_the_polynomials_make_of_their_interval(name):
    for known in COEFFICIENTS[name].bands:
        values = image(torch.logspace(math.log10(known.floor), 0, 4001, dtype=torch.float64), name)

        assert float(values.min()) == pytest.approx(known.low, abs=PUBLISHED)
        assert float(values.max()) == pytest.approx(known.high, abs=PUBLISHED)
        assert band(name, floor=known.floor).low == pytest.approx(known.low, abs=PUBLISHED)


def test_five_steps_of_polar_express_are_in_their_known_band():
    five = band("polar_express", 5)

    assert (five.low, five.high) == pytest.approx((0.870, 1.124), abs=PUBLISHED)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_orthogonalize_matches_the_singular_value_decomposition(name, shape, dtype):
    matrix = matrix_of(shape)
    expected = exact(matrix, name)
    tolerance = {torch.float64: 1e-6, torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}[dtype]

    got = orthogonalize(matrix, name, dtype=dtype)

    assert got.dtype == dtype and got.is_contiguous()
    assert float((got.double() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12])
def test_any_number_of_polar_express_steps(steps):
    matrix = matrix_of((40, 100))
    expected = exact(matrix, "polar_express", steps)

    got = orthogonalize(matrix, "polar_express", steps=steps, dtype=torch.float32).double()

    assert float((got - expected).norm() / expected.norm()) < FLOAT32


def spectra(side, long):
    """Directions of momenta: noise, decaying as powers and exponentially, and of an eighth of the rank."""
    generator = torch.Generator().manual_seed(side)
    yield torch.randn(side, long, generator=generator)
    u = torch.linalg.qr(torch.randn(side, side, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(long, side, generator=generator))[0]
    index = torch.arange(1, side + 1)
    for s in (index**-0.5, 1.0 / index, torch.logspace(0, -3, side), (index <= side // 8) + 1e-6):
        yield (u * s) @ v.t()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(256, 1024), (160, 160), (384, 64)])
def test_bfloat16_never_runs_away(name, shape):
    high = greatest_singular_value(name) * 1.1
    for matrix in spectra(min(shape), max(shape)):
        matrix = matrix if shape[0] <= shape[1] else matrix.t()
        got = orthogonalize(matrix, name, dtype=torch.bfloat16)

        assert float(torch.linalg.matrix_norm(got.float(), 2)) < high


def torch_form(x, triples):
    """torch.optim.Muon's iteration, line by line, in x's dtype."""
    wide = x.T if x.size(0) > x.size(1) else x
    wide = wide / wide.norm().clamp(min=1e-7)
    for a, b, c in triples:
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if x.size(0) > x.size(1) else wide


def residual(d):
    gram = (d @ d.T if d.shape[0] <= d.shape[1] else d.T @ d).double()
    return float((gram - torch.eye(len(gram))).norm() / len(gram) ** 0.5)


@pytest.mark.parametrize("shape", [(128, 512), (160, 160), (384, 1536), (1152, 384)])
def test_bfloat16_is_as_orthogonal_as_torchs_form(shape):
    jordan = COEFFICIENTS["jordan"].triples
    for matrix in spectra(min(shape), max(shape)):
        x = (matrix if shape[0] <= shape[1] else matrix.t()).bfloat16()
        ours, torchs = newton_schulz(x[None], jordan, 1.0)[0], torch_form(x, jordan)

        assert residual(ours.double()) < residual(torchs.double()) * AS_ORTHOGONAL


def test_a_batch_is_its_matrices_one_by_one():
    stack = torch.stack([matrix_of((24, 60), seed) for seed in range(4)])

    together = orthogonalize(stack.view(2, 2, 24, 60), dtype=torch.float32)

    for i in range(4):
        assert torch.equal(together.view(4, 24, 60)[i], orthogonalize(stack[i], dtype=torch.float32))


@pytest.mark.parametrize("shape", [(32, 96), (96, 32), (32, 32)])
def test_the_batched_form_of_other_devices_agrees_with_the_form_of_the_cpu(shape):
    stack = torch.stack([matrix_of(shape, seed) for seed in range(3)])
    triples = COEFFICIENTS["jordan"].triples

    batched = newton_schulz(stack, triples, 1.0, batched=True)

    assert torch.allclose(batched, newton_schulz(stack, triples, 1.0), atol=1e-4)


def test_scale_of_the_input_does_not_matter_from_tiny_to_huge():
    matrix = matrix_of((24, 60))
    expected = orthogonalize(matrix, dtype=torch.float32)

    for factor in (2.0**-40, 2.0**40):
        assert torch.allclose(orthogonalize(matrix * factor, dtype=torch.float32), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zero_stays_zero(dtype):
    assert not orthogonalize(torch.zeros(8, 20), dtype=dtype).any()
    assert not orthogonalize(torch.zeros(8, 8), dtype=dtype).any()


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (20, 20), (1, 30), (30, 1)])
def test_rank_one_keeps_its_direction(shape):
    left, right = torch.randn(shape[0], 1), torch.randn(1, shape[1])
    direction = left @ right / (left.norm() * right.norm())

    got = orthogonalize(left @ right, dtype=torch.float32)

    assert torch.allclose(got, direction * float(image([1.0], "jordan")), atol=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (10, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_bad_entry_makes_the_whole_matrix_nan_and_no_other(bad, shape, dtype):
    stack = torch.stack([matrix_of(shape), matrix_of(shape)])
    stack[0, 3, 2] = bad

    got = orthogonalize(stack, dtype=dtype)

    assert got[0].isnan().all() and got[1].isfinite().all()


def test_the_input_is_not_changed():
    matrix = matrix_of((20, 50))
    before = matrix.clone()

    orthogonalize(matrix, dtype=torch.float32)

    assert torch.equal(matrix, before)


def test_norm_band_holds_for_matrices_of_every_rank():
    for rank in (1, 2, 8, 24):
        matrix = torch.randn(24, rank, generator=torch.Generator().manual_seed(rank)) @ torch.randn(rank, 60)
        norm = float(torch.linalg.matrix_norm(orthogonalize(matrix.double(), dtype=torch.float64), 2))
        known = norm_band("jordan", side=24)

        assert known.low <= norm <= known.high


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("jordn", None, "did you mean 'jordan'"),
        ("polar-express", None, "did you mean 'polar_express'"),
        ("you", 4, "has 5 steps and no others"),
        ("jordan", 0, "positive number"),
        ("jordan", 2.5, "positive number"),
    ],
)
def test_unknown_sets_and_lengths_are_refused(name, steps, message):
    with pytest.raises(ValueError, match=message):
        coefficients(name).of_length(steps)


@pytest.mark.parametrize("bad", [torch.randn(5), torch.zeros(0, 4), torch.ones(3, 3, dtype=torch.int64)])
def test_what_is_no_matrix_is_refused(bad):
    with pytest.raises(ValueError, match="expected floating"):
        orthogonalize(bad)


def test_a_device_that_is_no_cpu_or_gpu_computes_in_float32():
    assert arithmetic_dtype(torch.device("meta")) == torch.float32
