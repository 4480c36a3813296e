"""NorMuon, cautious decay and the Polar Express: each one's formula in plain torch, and one switch turns it on."""

import copy

import pytest
import torch
from torch import nn

from internist.optim import Muon

ROUNDING = 1e-5
"""Of entries after four steps of 0.05 in float32, against the formula's own products."""
BFLOAT16 = 0.03
"""Of the way that four steps go: two roundings of one iteration in bfloat16, each 1 to 2 % off."""
POLAR_EXPRESS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]
"""As arXiv:2505.16932 prints them; its code divides all but the last by powers of 1.01, and the norm by 1.01."""
JORDAN = [(3.4445, -4.7750, 2.0315)] * 5
LR, MU, DECAY, STEPS = 0.05, 0.95, 0.5, 4


def gaussian(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def polynomial(x, triples, shrink=1.0):
    x = x / (x.norm() * shrink)
    for index, (a, b, c) in enumerate(triples):
        s = shrink if index + 1 < len(triples) else 1.0
        gram = x @ x.mT
        x = a / s * x + (b / s**3 * gram + c / s**5 * gram @ gram) @ x
    return x


def by_the_formula(weight, gradients, *, normuon=None, cautious=False, polar_express=False):
    """The weight after steps of Muon with Nesterov's momentum, as the papers write them, one line each."""
    w, m = weight.double(), torch.zeros_like(weight).double()
    v = torch.zeros(len(weight), 1).double()
    for gradient in gradients:
        g = gradient.double()
        m = MU * m + (1 - MU) * g
        n = (1 - MU) * g + MU * m
        d = polynomial(n, POLAR_EXPRESS, 1.01) if polar_express else polynomial(n, JORDAN)
        if normuon is not None:
            v = normuon * v + (1 - normuon) * (d * d).mean(1, keepdim=True)
            even = d / v.sqrt()
            d = even * d.norm() / even.norm()
        d = d * max(1.0, d.shape[0] / d.shape[1]) ** 0.5
        spared = (torch.sign(d) * torch.sign(w) < 0).double() if cautious else torch.zeros_like(w)
        w = w - LR * (d + DECAY * (1.0 - spared) * w)
    return w.float()


def stepped(make, weights, gradients):
    params = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = make(params)
    for number in range(STEPS):
        for parameter, own in zip(params, gradients, strict=True):
            parameter.grad = own[number].to(parameter.dtype)
        optimizer.step()
    return optimizer, [parameter.detach() for parameter in params]


class OfStacks(Muon):
    """As it steps what is on an accelerator."""

    def _stacks(self, device):  # noqa: ARG002
        return True


SWITCHES = [
    {"normuon": 0.95},
    {"normuon": 0.9, "cautious": True},
    {"cautious": True},
    {"coefficients": "polar_express"},
    {"coefficients": "polar_express", "normuon": 0.95, "cautious": True},
]


@pytest.mark.parametrize("kind", [Muon, OfStacks])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_a_switch_takes_the_step_of_its_paper(kind, switches):
    shapes = [(24, 16), (16, 40), (24, 16), (1, 12)]
    weights = [gaussian(shape, seed) for seed, shape in enumerate(shapes)]
    gradients = [[gaussian(shape, 100 * seed + step) for step in range(STEPS)] for seed, shape in enumerate(shapes)]

    def make(params):
        return kind(params, lr=torch.tensor(LR), momentum=MU, weight_decay=DECAY, dtype=torch.float32, **switches)

    _, found = stepped(make, weights, gradients)
    asked = {
        "normuon": switches.get("normuon"),
        "cautious": switches.get("cautious", False),
        "polar_express": "coefficients" in switches,
    }
    for one, weight, own in zip(found, weights, gradients, strict=True):
        torch.testing.assert_close(one, by_the_formula(weight, own, **asked), rtol=0, atol=ROUNDING)


def test_every_matrix_of_a_parameter_has_rows_of_its_own():
    weight, gradients = gaussian((12, 8), 0), [gaussian((12, 8), 1 + step) for step in range(STEPS)]

    def make(params, **group):
        return Muon([{"params": params, **group}], lr=LR, weight_decay=DECAY, dtype=torch.float32, normuon=0.9)

    for blocks in (3, (6, 2, 4)):
        rows = (4, 4, 4) if blocks == 3 else blocks
        _, (found,) = stepped(lambda params: make(params, row_blocks=blocks), [weight], [gradients])  # noqa: B023
        cut = [by_the_formula(*part, normuon=0.9) for part in _parts(weight, gradients, rows)]
        torch.testing.assert_close(found, torch.cat(cut), rtol=0, atol=ROUNDING)


def _parts(weight, gradients, rows):
    pieces = [gradient.split(rows) for gradient in gradients]
    return [(part, [piece[index] for piece in pieces]) for index, part in enumerate(weight.split(rows))]


def test_bfloat16_weights_step_likewise():
    weight, gradients = 0.02 * gaussian((64, 48), 0), [gaussian((64, 48), 1 + step) for step in range(STEPS)]

    def make(params):
        return Muon(params, lr=LR, weight_decay=DECAY, normuon=0.95, cautious=True)

    _, (found,) = stepped(make, [weight.bfloat16()], [gradients])
    wanted = by_the_formula(weight, gradients, normuon=0.95, cautious=True)
    assert float((found.float() - wanted).norm() / (wanted - weight).norm()) < BFLOAT16


def test_rows_go_with_a_checkpoint():
    weights, gradients = [gaussian((8, 6), 0)], [[gaussian((8, 6), 1 + step) for step in range(STEPS)]]

    def make(params):
        return Muon(params, lr=LR, normuon=0.95, dtype=torch.float32)

    optimizer, (halfway,) = stepped(make, weights, gradients)
    resumed = nn.Parameter(halfway.clone())
    again = make([resumed])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    (original,) = optimizer.param_groups[0]["params"]
    for parameter in (original, resumed):
        parameter.grad = gaussian((8, 6), 9)
    optimizer.step()
    again.step()

    assert torch.equal(resumed, original)


def test_a_direction_of_zeros_moves_nothing_and_nan_takes_its_own_matrix_alone():
    weights = [gaussian((6, 4), 0), gaussian((6, 4), 1)]
    gradients = [[torch.zeros(6, 4)] * STEPS, [torch.full((6, 4), torch.nan)] * STEPS]
    _, (still, ill) = stepped(lambda params: Muon(params, lr=LR, weight_decay=0.0, normuon=0.95), weights, gradients)

    assert torch.equal(still, weights[0])
    assert bool(ill.isnan().all())


def test_of_rows_made_even_no_norm_is_promised_or_told():
    weight = nn.Parameter(gaussian((6, 4), 0))
    optimizer = Muon([weight], normuon=0.95)
    weight.grad = gaussian((6, 4), 1)
    optimizer.request_diagnostics()
    optimizer.step()

    assert "update_band" not in optimizer.describe()[0]
    assert set(optimizer.diagnostics()[weight]) == {"optimizer.effective_lr"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"normuon": 1.0}, r"\[0, 1\), or None, got 1\.0"), ({"normuon": True}, "got True"), ({"cautious": 1}, "got 1")],
)
def test_other_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.ones(3, 3))], **options)
