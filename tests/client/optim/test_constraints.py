import math

import pytest
import torch

from internist.optim.constraints import (
    mclip,
    post_clip,
    retract,
    retraction_factor,
    spectral_radius,
    spectral_weight_decay,
)
from internist.optim.muon_sphere import MuonSphere
from internist.optim.spectral_init import open_gap_init, spectral_init

ROUNDING = 1e-5
"""Relative, of float32 products of a few dozen columns."""


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def triplet(weight):
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return s[..., 0], u[..., :, 0], vh[..., 0, :]


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (3, 10, 10)])
def test_spectral_decay_shrinks_the_largest_singular_value_alone(shape):
    weight = gaussian(*shape, dtype=torch.float64)
    before = torch.linalg.svdvals(weight)

    after = torch.linalg.svdvals(spectral_weight_decay(weight, *triplet(weight), lr=0.01, decay=0.5))

    torch.testing.assert_close(after[..., 0], before[..., 0] * (1 - 0.005))
    torch.testing.assert_close(after[..., 1:], before[..., 1:])


def test_spectral_decay_is_the_gradient_step_of_half_the_squared_norm():
    weight = gaussian(6, 5, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.linalg.matrix_norm(weight, 2).square() / 2, weight)
    W = weight.detach()

    torch.testing.assert_close(spectral_weight_decay(W, *triplet(W), lr=0.1, decay=0.2), W - 0.02 * gradient)


def test_post_clip_clips_one_value_and_leaves_a_small_matrix_alone():
    weight = gaussian(9, 7, dtype=torch.float64)
    values = torch.linalg.svdvals(weight)
    threshold = (0.5 * (values[0] + values[1])).item()

    clipped = post_clip(weight, *triplet(weight), threshold=threshold)
    torch.testing.assert_close(torch.linalg.matrix_norm(clipped, 2).item(), threshold)
    assert torch.equal(post_clip(weight, *triplet(weight), threshold=2 * values[0].item()), weight)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (2, 24, 24)])
def test_mclip_is_the_svd_with_its_values_clipped(shape, dtype, tolerance):
    weight = gaussian(*shape, dtype=dtype)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    threshold = s.median().item() * 1.01
    expected = u @ torch.diag_embed(s.clamp(max=threshold)) @ vh

    clipped = mclip(weight, threshold)

    assert clipped.dtype == dtype
    assert (torch.linalg.matrix_norm(clipped.double() - expected, 2) / s[..., 0]).max() < tolerance


def test_mclip_of_zeros_is_zeros_and_of_nan_is_nan():
    weight = torch.zeros(2, 4, 3)
    weight[1, 0, 0] = math.nan

    clipped = mclip(weight, 1.0)

    assert (clipped[0] == 0).all() and clipped[1].isnan().all()
    with pytest.raises(ValueError, match="positive threshold"):
        mclip(weight, 0.0)


def test_hard_retraction_lands_on_the_radius_and_dynamic_leans_to_it():
    weight = gaussian(2, 8, 6)
    sigma = torch.linalg.matrix_norm(weight, 2)

    landed = torch.linalg.matrix_norm(retract(weight, sigma, 1.5), 2)
    torch.testing.assert_close(landed, torch.full((2,), 1.5), rtol=ROUNDING, atol=0)
    leaning = retraction_factor(torch.tensor([2.0, 1.0, 0.5]), 1.0, mode="dynamic", lr=0.1)
    torch.testing.assert_close(leaning, torch.tensor([0.995, 1.0, 1.005]))
    assert retraction_factor(torch.tensor(0.0), 1.0).item() == 1
    assert retraction_factor(torch.tensor(math.nan), 1.0).isnan()
    with pytest.raises(ValueError, match="hard"):
        retraction_factor(sigma, 1.0, mode="soft")


def test_the_radius_of_a_shape():
    assert spectral_radius((4, 16), 2.0) == 1.0
    for shape, c in (((4,), 1.0), ((0, 4), 1.0), ((4, 4), 0.0), ((4, 4), math.nan)):
        with pytest.raises(ValueError, match="expected a"):
            spectral_radius(shape, c)


def test_spectral_init_scales_and_keeps_directions():
    weight = gaussian(3, 20, 10)

    start = spectral_init(weight, 0.7)

    torch.testing.assert_close(
        torch.linalg.matrix_norm(start.matrices, 2), torch.full((3,), 0.7), rtol=ROUNDING, atol=0
    )
    ratio = start.matrices / weight
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_open_gap_is_as_wide_as_asked(share):
    weight = gaussian(2, 40, 64)
    _, u, v = triplet(weight)

    opened = open_gap_init(weight, 2.0, share).matrices

    values = torch.linalg.svdvals(opened)
    torch.testing.assert_close(values[:, 0], torch.full((2,), 2.0), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(values[:, 1], torch.full((2,), 2.0 * share), rtol=ROUNDING, atol=0)
    _, new_u, new_v = triplet(opened)
    assert ((new_u * u).sum(1).abs() - 1).abs().max() < ROUNDING
    assert ((new_v * v).sum(1).abs() - 1).abs().max() < ROUNDING


def test_starting_points_refuse_what_has_no_norm():
    for bad in (torch.zeros(1, 3, 3), torch.full((1, 3, 3), math.nan)):
        with pytest.raises(ValueError, match="positive, finite spectral norm"):
            spectral_init(bad, 1.0)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        open_gap_init(torch.eye(3).unsqueeze(0), 1.0, 1.0)
    with pytest.raises(ValueError, match="positive radius"):
        spectral_init(torch.eye(3).unsqueeze(0), -1.0)


def sphere(shape=(32, 48), **options):
    weight = torch.nn.Parameter(gaussian(*shape))
    return weight, MuonSphere([weight], **options)


def test_muon_sphere_holds_the_radius_at_every_step():
    weight, optimizer = sphere(lr=0.02, radius=1.5, dtype=torch.float32)
    radius = spectral_radius(weight.shape, 1.5)
    fixed = gaussian(*weight.shape, seed=1)

    for step in range(60):
        weight.grad = fixed + 0.5 * gaussian(*weight.shape, seed=2 + step)
        optimizer.step()
        assert abs(torch.linalg.matrix_norm(weight.detach(), 2).item() / radius - 1) < 3e-3


def test_muon_sphere_takes_the_slow_step():
    weight, optimizer = sphere((8, 6), lr=0.1, dtype=torch.float32)
    before, gradient = weight.detach().double(), gaussian(8, 6, seed=1)
    weight.grad = gradient
    radius = spectral_radius((8, 6))
    u, _, vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    expected = before - 0.1 * radius * (u @ vh)
    expected *= radius / torch.linalg.matrix_norm(expected, 2)

    optimizer.step()

    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-4)


def test_muon_sphere_resumes_bit_for_bit_and_counts():
    runs = []
    for restart in (False, True):
        weight, optimizer = sphere(lr=0.02)
        for step in range(8):
            if restart and step == 4:
                state = optimizer.state_dict()
                optimizer = MuonSphere([weight], lr=0.02)
                optimizer.load_state_dict(state)
            weight.grad = gaussian(*weight.shape, seed=step)
            optimizer.request_diagnostics()
            optimizer.step()
        runs.append((weight.detach(), optimizer.diagnostics()[weight]["optimizer.firings"].item()))

    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retraction": "soft"}, "hard"),
        ({"rounds": 0}, "rounds"),
        ({"radius": 0.0}, "radius"),
        ({"lr": -1.0}, "lr"),
        ({"coefficients": "jordn"}, "jordan"),
    ],
)
def test_muon_sphere_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        sphere(**options)


def test_muon_sphere_refuses_weight_decay_on_matrices_and_zeros():
    with pytest.raises(ValueError, match="weight decay"):
        MuonSphere([{"params": [torch.nn.Parameter(torch.ones(2, 2))], "weight_decay": 0.1}])
    with pytest.raises(ValueError, match="positive, finite spectral norm"):
        MuonSphere([torch.nn.Parameter(torch.zeros(2, 2))])
