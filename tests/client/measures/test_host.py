"""Reductions on a CPU: NumPy and BLAS give what torch gives, for any input, and are not needed."""

import warnings

import pytest
import torch
from torch import linalg

from internist.measures import activations, host
from internist.measures.weights import mean_squares

SHAPES = [(4, 7), (1, 1), (600, 256), (129, 1024), (3, host.LONGEST_ROW)]


def drawn(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_once", [1, 50, 10_000])
def test_a_scan_gives_the_norms_and_the_largest_entry(shape, at_once):
    x = drawn(shape)
    norms, ends = host.scan(x, at_once)
    torch.testing.assert_close(norms, linalg.vector_norm(x.double(), dim=1).float(), rtol=1e-6, atol=0.0)
    assert max(ends) == x.abs().max().item()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_is_not_finite_is_told_and_warns_of_nothing(bad):
    x = drawn((40, 16))
    x[7, 3] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norms, largest, wrong = activations.extent(x)
    torch.testing.assert_close(norms, activations.token_rms(x), equal_nan=True)
    torch.testing.assert_close(torch.tensor(largest), activations.abs_max(x), equal_nan=True)
    assert wrong == float(not torch.tensor(bad).isfinite())


@pytest.mark.parametrize("shape", [(8, 300, 256), (5, 3), (700, 1000)])
@pytest.mark.parametrize("numpy", [None, object()])  # not installed; older than 2.0, without vecdot
def test_torch_alone_gives_the_same(shape, numpy, monkeypatch):
    x = drawn(shape).requires_grad_()
    norms, largest, wrong = activations.extent(x)
    monkeypatch.setattr(host, "numpy", numpy)
    alone = activations.extent(x)
    torch.testing.assert_close(norms, alone[0], rtol=1e-6, atol=0.0)
    assert (largest, wrong) == alone[1:]


def test_only_ordinary_float32_of_a_cpu_is_taken():
    class Odd(torch.Tensor):
        pass

    rows = drawn((4, 8))
    assert host.can_scan(rows)
    assert host.can_scan(torch.nn.Parameter(rows))
    for other in (rows.double(), rows.bfloat16(), rows.to("meta"), rows.as_subclass(Odd)):
        assert not host.can_scan(other)
    assert not host.can_scan(torch.zeros(2, host.LONGEST_ROW + 1))


EXACT = 1e-5
"""Of sums of squares, whatever BLAS adds up: seen were 1e-6 with AVX-512, 2e-6 with AVX2 and 8e-6 with neither."""


@pytest.mark.parametrize("entries", [2**20, 2**20 + 1, 2**22, 3 * 2**22])
def test_sums_of_squares_of_many_entries_are_exact_to_float32(entries):
    x = drawn((entries,))
    assert host.square_sum(x) == pytest.approx(x.double().square().sum().item(), rel=EXACT)


def test_sums_of_squares_are_exact_whatever_the_type_and_the_strides():
    x = drawn((2048, 2048))
    tensors = [x, x.t(), x[:, ::2], x[:, 0], x.bfloat16(), x.double(), x.half().view(256, 8, 2048).transpose(0, 2)]
    exact = [tensor.double().square().mean().item() for tensor in tensors]
    assert mean_squares(tensors).tolist() == pytest.approx(exact, rel=EXACT)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_sums_of_squares_of_what_is_not_finite_are_not(bad):
    x = drawn((3, 2**20))
    x[1, 7] = bad
    assert mean_squares([x]).tolist() == pytest.approx([bad], nan_ok=True)
