"""A block that follows the top of matrices: what it finds, and what becomes of it where there is nothing to find."""

import torch

from internist.model.freshness import looks_drawn
from internist.optim import following
from internist.optim.rounding import rounded


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rounds_find_the_norm_of_matrices_that_stay():
    matrices = gaussian(3, 40, 24)
    norms = torch.linalg.matrix_norm(matrices, 2)
    block = following.started(gaussian(3, 1, 24, seed=1), following.width(40, 24))
    for _ in range(20):
        found = following.follow(matrices, block, following.share_of(norms))
        assert (found.sigma.flatten() <= norms * (1 + 1e-5)).all()
        block = found.block

    torch.testing.assert_close(found.sigma.flatten(), norms, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.v @ matrices.mT, found.sigma * found.u)


def test_a_direction_that_was_in_no_block_is_found_once_it_is_on_top():
    matrix = gaussian(1, 64, 64)
    matrix /= torch.linalg.matrix_norm(matrix, 2)
    block = following.started(torch.linalg.svd(matrix).Vh[:, :8], 8)
    x, y = (torch.nn.functional.normalize(gaussian(64, seed=seed), dim=0) for seed in (5, 6))
    grown = matrix + 1.05 * torch.outer(x, y)
    for _ in range(6):
        found = following.follow(grown, block, following.share_of(torch.ones(1)))
        block = found.block

    torch.testing.assert_close(found.sigma.flatten(), torch.linalg.matrix_norm(grown, 2), rtol=5e-3, atol=0)


def test_zeros_low_ranks_and_numbers_too_large_give_numbers_or_spoil_their_own_matrix_alone():
    flat = torch.outer(torch.ones(12), torch.ones(10))
    matrices = torch.stack([torch.zeros(12, 10), flat, 1e4 * gaussian(12, 10), torch.full((12, 10), torch.nan)])
    block = following.started(gaussian(4, 1, 10), 8)
    share = following.share_of(torch.tensor([1.0, 11.0, 1.0, 1.0]))
    for _ in range(6):
        found = following.follow(matrices, block, share)
        block = found.block

    assert block.isfinite().all()
    assert found.sigma[:2].isfinite().all() and found.u[0].eq(0).all()
    torch.testing.assert_close(found.sigma[1].squeeze(), torch.tensor(120.0**0.5), rtol=1e-3, atol=0)


def test_draws_look_drawn_and_weights_with_a_direction_of_their_own_do_not():
    uniform = torch.rand(2, 96, 200, generator=torch.Generator().manual_seed(0)) - 0.5
    trained = gaussian(1, 96, 96) + 0.5 * torch.outer(gaussian(96, seed=1), gaussian(96, seed=2))
    for matrices, drawn in (
        (uniform, True),
        (torch.eye(64)[None], True),
        (trained, False),
        (torch.zeros(1, 4, 4), False),
    ):
        assert looks_drawn(matrices, torch.linalg.matrix_norm(matrices, 2)).all().item() is drawn


def test_random_rounding_is_right_on_average_and_keeps_what_is_no_number():
    value = torch.full((256, 64), 1.0 + 2.0**-10)  # an eighth of the way to the next bfloat16
    value[0, 0], value[0, 1] = torch.inf, torch.nan
    made = rounded(value, seed=3)

    assert made.dtype == torch.bfloat16 and made[0, 0].isinf() and made[0, 1].isnan()
    assert set(made[1:].flatten().tolist()) == {1.0, 1.0 + 2.0**-7}
    assert abs((made[1:] > 1).float().mean().item() - 1 / 8) < 0.01
    assert not torch.equal(made[1:], rounded(value, seed=4)[1:])
