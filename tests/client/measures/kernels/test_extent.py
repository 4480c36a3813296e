"""The kernel of an activation's extent, against torch's operators on the same tensors."""

import math

import pytest
import torch
from torch import Tensor

from internist.measures.kernels import extent as room
from internist.measures.kernels.extent import ABS_MAX, NONFINITE, RMS, extent, rows

ROUNDING = 2e-6
"""Float32 sums of up to 5,000 squares in two orders."""

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(x: Tensor, source: Tensor | None = None, log_z: bool = False) -> tuple[Tensor, Tensor]:
    """By the kernel, and by torch."""
    found = torch.full((rows(source, log_z), x.numel() // x.shape[-1]), math.nan)
    expected = torch.full_like(found, math.nan)
    extent(x, found, source, log_z)
    room._plain(x, expected, source, log_z)
    return found, expected


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 17), (3, 5, 64), (70, 33), (2, 3, 5000), (300, 8)], ids=str)
@pytest.mark.parametrize(("with_source", "log_z"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_kernel_gives_what_torch_gives(shape, dtype, with_source, log_z):
    x = random(*shape).to(dtype)
    source = random(*shape, seed=1).to(dtype) if with_source else None

    agree(*both(x, source, log_z))


def test_an_extent_by_hand():
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    out = torch.empty(6, 2)
    extent(x, out, torch.tensor([[1.0, -4.0], [2.0, 1.0]]), log_z=True)

    assert out[:5].tolist() == [[pytest.approx(12.5**0.5), 0.0], [4.0, 0.0], [0.0, 0.0], [4.0, 5.0], [17.0, 5.0]]
    assert out[5].tolist() == pytest.approx([3 + math.log1p(math.exp(-7)), math.log(2)])


LAYOUTS = {
    "features of a convolution": lambda: random(2, 40, 7, 5).flatten(2).transpose(1, 2),
    "features of a convolution, one picture": lambda: random(1, 40, 7, 5).flatten(2).transpose(1, 2),
    "tokens first": lambda: random(9, 3, 24).transpose(0, 1),
    "tokens left out": lambda: random(3, 9, 24)[:, 1:],
    "features left out": lambda: random(3, 9, 24)[..., 3:20],
    "a matrix turned": lambda: random(40, 33).T,
    "one token for all": lambda: random(1, 24).expand(7, 24),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("turned", ["x", "source", "both"])
def test_no_layout_is_copied_or_misread(layout, turned):
    x, source = layout(), layout() + 1
    if turned == "x":
        source = source.contiguous()
    if turned == "source":
        x = x.contiguous()

    agree(*both(x, source, True))


def test_rows_of_an_arena_are_written_and_nothing_beside_them():
    arena = torch.full((5, 100), -7.0)
    x = random(2, 10, 6)
    extent(x, arena[:3, 30:50])

    assert arena[:3, 30:50].ne(-7).all()
    assert arena.eq(-7).sum() == arena.numel() - 60
    agree(arena[RMS, 30:50], x.square().mean(dim=-1).sqrt().flatten())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy interprets, and says what NaN and infinities do
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("features", [5, 6000])
def test_entries_that_are_not_finite_stay_so(dtype, features):
    x = random(6, features).to(dtype)
    x[0, 1], x[1, -1], x[2, 0] = math.nan, math.inf, -math.inf
    x[3, 0], x[3, 1], x[3, -1] = -math.inf, math.inf, math.nan
    x[4] = -math.inf
    found, expected = both(x, torch.zeros_like(x), True)

    agree(found, expected)
    assert found[RMS].isnan().tolist() == [True, False, False, True, False, False]
    assert found[ABS_MAX].isinf().tolist() == [False, True, True, False, True, False]
    assert found[NONFINITE].tolist() == [1, 1, 1, 3, features, 0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_finite_in_float64_is_not_counted_as_infinite():
    found, expected = both(torch.tensor([[1e300, 1.0], [2.0, math.inf]], dtype=torch.float64))

    agree(found, expected)
    assert found[NONFINITE].tolist() == [0.0, 1.0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_squares_beyond_float32_give_an_infinite_norm():
    found, _ = both(torch.tensor([[1e30, 1.0]]))

    assert found.flatten().tolist() == [math.inf, pytest.approx(1e30), 0.0]


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
def test_log_z_holds_for_logits_far_from_zero(offset):
    found, expected = both(random(4, 9000) + offset, None, True)

    agree(found, expected)
