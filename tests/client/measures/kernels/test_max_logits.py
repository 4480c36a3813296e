"""The kernel of attention's largest logits, against the pieces that torch's operators multiply."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from internist.measures.kernels import max_logits as room
from internist.measures.kernels import operators
from internist.measures.kernels.max_logits import max_logits
from internist.measures.logit_pieces import NOT_MEASURED, Visibility

ROUNDING = 1e-5
"""Float32 products over at most 300 features, in two orders."""


@pytest.fixture(autouse=True)
def nothing_fails():
    """A kernel that fails would be replaced by what it is compared with."""
    yield
    assert not operators._GIVEN_UP


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(q: Tensor, k: Tensor, *, left=None, right=None, offset=0, scale=0.3, softcap=None) -> tuple[Tensor, Tensor]:
    """By the kernel, and by torch."""
    found = max_logits(q, k, Visibility(left, right, offset), scale=scale, softcap=softcap)
    return found, room._plain(q, k, left, right, offset, scale, softcap)


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [1, 40, 64, 80, 128, 300])
@pytest.mark.parametrize("right", [None, 0], ids=["all keys", "causal"])
def test_the_kernel_gives_what_torch_gives(D, dtype, right):
    q, k = random(1, 1, 130, D).to(dtype), random(1, 1, 100, D, seed=1).to(dtype)

    agree(*both(q, k, right=right))


BANDS: list[dict[str, Any]] = [
    {"right": 0},
    {"left": 7},
    {"left": 7, "right": 0},
    {"left": 100, "right": 3},
    {"left": 0, "right": 0},
    {"left": 200, "right": 0},
]


@pytest.mark.parametrize("band", BANDS, ids=str)
@pytest.mark.parametrize(("T", "S"), [(1, 17), (17, 1), (140, 200), (200, 140)])
@pytest.mark.parametrize("from_end", [False, True])
def test_bands_of_keys_hide_the_others(T, S, band, from_end):
    agree(*both(random(1, 1, T, 16), random(1, 1, S, 16, seed=1), **band, offset=S - T if from_end else 0))


@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (6, 1), (1, 1)])
def test_neighbouring_heads_share_a_key_head(H, K):
    agree(*both(random(2, H, 20, 16), random(2, K, 30, 16, seed=1), right=0))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_scale_and_softcap_are_applied_in_that_order(scale, softcap):
    agree(*both(random(1, 3, 20, 16), random(1, 3, 30, 16, seed=1), scale=scale, softcap=softcap))


def test_no_layout_is_copied_or_misread():
    q = random(2, 33, 4, 24).transpose(1, 2)
    turned, apart = random(2, 2, 24, 33, seed=1).transpose(2, 3), random(2, 33, 2, 3, 24, seed=2)[:, :, :, 1]

    agree(*both(q, turned, right=0))
    agree(*both(q, apart.transpose(1, 2), right=0))
    agree(*both(q, random(1, 1, 33, 24, seed=3).expand(2, -1, -1, -1)))


@pytest.mark.parametrize(("token", "seen_by"), [(0, "all"), (99, "the last query"), (100, "none")])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_counts_where_it_is_seen(token, seen_by, poison):
    q, k = random(1, 2, 100, 16), random(1, 2, 150, 16, seed=1)
    k[0, 1, token, 3] = poison
    found, expected = both(q, k, right=0)

    agree(found, expected)
    assert found[:, 0].isfinite().all()
    assert found[:, 1].isfinite().all() == (seen_by == "none")


def test_a_nan_query_shows_in_its_own_head():
    q, k = random(2, 3, 70, 16), random(2, 3, 70, 16, seed=1)
    q[1, 2, 66, 0] = math.nan

    for right in (None, 0):
        found, expected = both(q, k, right=right)
        agree(found, expected)
        assert found.isnan().any(dim=0).tolist() == [False, False, True]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy interprets, and says that infinities become NaN
def test_infinite_queries_against_keys_of_both_signs():
    q, k = torch.full((1, 1, 2, 1), math.inf), torch.tensor([[[[1.0], [-2.0]]]])

    agree(*both(q, k))
    agree(*both(q, k, softcap=5.0))
    agree(*both(q, k * 0))


def test_a_head_whose_queries_see_no_key_is_not_measured():
    found, expected = both(random(1, 2, 3, 16), random(1, 2, 4, 16, seed=1), left=1, right=1, offset=100)

    assert (found == NOT_MEASURED).all()
    assert (expected == NOT_MEASURED).all()


def test_types_that_the_kernel_does_not_multiply_are_left_to_torch():
    q, k = random(1, 2, 5, 16).double(), random(1, 2, 6, 16, seed=1).bfloat16()

    agree(*both(q, k))
    agree(*both(q, k.double()))
