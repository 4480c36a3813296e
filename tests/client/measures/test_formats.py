"""Shares that underflow and saturate, against casts to the real formats."""

import pytest
import torch

from internist.measures import formats

IN_USE = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EDGES = (0.0, 2**-10, 2**-10 * 1.01, 2**-17, 2**-25, 2**-25 * 1.001, 448, 463, 464, 465, 61439, 61440, 65519, 65520)
"""What rounds one way or the other in some format, with its neighbours."""


def numbers(dtype, seed=0):
    """(3, many) entries over the whole range of a format, with every edge of those below, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    low = -1060 if dtype == torch.float64 else -149
    exponents = torch.randint(low, 128, (3, 500), generator=generator)
    entries = torch.ldexp(1 + torch.rand(3, 500, generator=generator, dtype=torch.float64), exponents)
    edges = torch.tensor((*EDGES, torch.inf, torch.nan), dtype=torch.float64).repeat(3, 1)
    signs = torch.randint(2, (3, 500 + edges.shape[1]), generator=generator) * 2 - 1
    return (torch.cat((entries, edges), 1) * signs).to(dtype)


def in_use(x):
    """The share of each row below the normal numbers of its format, and the one at its end, by comparing."""
    about, wide = torch.finfo(x.dtype), x.double().abs()
    small = (wide > 0) & (wide < about.smallest_normal)
    return small.double().mean(1), (~(wide < about.max)).double().mean(1)


def if_cast(x, dtype):
    """The share of each row that a cast makes zero, and the one that it cannot hold: it may clamp or overflow."""
    cast, about = x.to(dtype).double(), torch.finfo(dtype)
    top_step = 2.0 ** torch.tensor(about.max).log2().floor() * about.eps
    beyond = ~cast.isfinite() | (x.double().abs() - cast.abs() > top_step / 2)
    return ((x != 0) & (cast == 0)).double().mean(1), beyond.double().mean(1)


@pytest.mark.parametrize("is_gradient", [False, True])
@pytest.mark.parametrize("dtype", IN_USE)
def test_shares_are_what_casts_to_the_real_formats_do(dtype, is_gradient):
    x = numbers(dtype)
    lost, beyond = if_cast(x, formats.narrower(dtype, is_gradient=is_gradient))
    small, ended = in_use(x)

    found = formats.shares(x, is_gradient=is_gradient)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack((small, lost, ended, beyond)).float())
    rows = [formats.shares(row.unsqueeze(0), is_gradient=is_gradient) for row in x]
    torch.testing.assert_close(torch.cat(rows, dim=1), found)


@pytest.mark.parametrize("dtype", IN_USE)
def test_vectors_of_any_lengths_have_the_shares_that_each_has_alone(dtype):
    samples = [numbers(dtype, seed)[0, :length] for seed, length in enumerate((1, 500, 7))]

    found = formats.ragged_shares(samples, is_gradient=True)

    alone = [formats.shares(sample.view(1, -1), is_gradient=True)[:, 0] for sample in samples]
    torch.testing.assert_close(found, torch.stack(alone, dim=1))


def test_16_bits_are_followed_by_the_float8_of_their_use():
    assert formats.narrower(torch.float32, is_gradient=False) == torch.float16
    assert formats.narrower(torch.bfloat16, is_gradient=False) == torch.float8_e4m3fn
    assert formats.narrower(torch.float16, is_gradient=True) == torch.float8_e5m2
    with pytest.raises(ValueError, match="float8_e5m2"):
        formats.narrower(torch.float8_e5m2, is_gradient=True)


@pytest.mark.parametrize("shape", [(1,), (5,), (3000,), (768, 768), (3072, 768), (8, 3, 3, 3)])
def test_a_sample_is_small_and_sees_all_columns(shape):
    columns = torch.arange(shape[-1]).expand(shape)

    found = formats.sample(columns)

    assert 1 <= len(found) <= formats.SAMPLED_ENTRIES
    if columns.numel() > formats.SAMPLED_ENTRIES and columns.dim() > 1:
        assert len(found.unique()) == shape[-1]


def test_of_all_zeros_nothing_underflows():
    assert not formats.shares(torch.zeros(1, 9)).any()
