"""Operands of products begin at a boundary of memory, whatever stands beside them."""

import pytest
import torch

from internist.optim.alignment import BOUNDARY, EVEN, aligned, is_even
from internist.optim.coefficients import coefficients
from internist.optim.newton_schulz import newton_schulz

JORDAN = coefficients("jordan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("offset", [0, 1, 5, 32, 35])
def test_a_matrix_off_a_boundary_is_copied_to_one(dtype, offset):
    matrix = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)[offset : offset + 35].view(5, 7)

    found = aligned(matrix)
    assert torch.equal(found, matrix)
    assert found.data_ptr() % BOUNDARY == 0
    assert (found is matrix) == (matrix.data_ptr() % BOUNDARY == 0)


def test_a_matrix_with_gaps_is_copied():
    assert aligned(torch.zeros(64, 32).mT).is_contiguous()


def test_matrices_of_even_sides_keep_those_after_them_at_a_boundary():
    assert is_even((EVEN, 3 * EVEN))
    assert not is_even((EVEN, EVEN + 1))
    stack = torch.zeros(4, EVEN, 3 * EVEN, dtype=torch.bfloat16)
    assert all(matrix.data_ptr() % BOUNDARY == 0 for matrix in stack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_is_orthogonalised_to_the_same_bits_wherever_it_stands(dtype):
    stack = torch.randn(7, 5, 9, generator=torch.Generator().manual_seed(1)).to(dtype)

    together = newton_schulz(stack, JORDAN.triples, JORDAN.shrink)
    for index, matrix in enumerate(stack):
        assert torch.equal(together[index], newton_schulz(matrix[None].clone(), JORDAN.triples, JORDAN.shrink)[0])
