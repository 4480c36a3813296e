"""The form of a step that accelerators take, run on a CPU's tensors: matrices of one shape as one stack."""

import copy
import logging

import pytest
import torch

from internist.optim.arrivals import News
from internist.optim.complement import complement_factors, frozen
from internist.optim.muon import Muon
from internist.optim.muon_plus_plus import MuonPlusPlus
from internist.optim.muon_sphere import MuonSphere
from internist.optim.top_pair import top_pair, warm_pair

ROUNDING = 5e-6
"""Relative, of float32 sums in another order over eight steps."""
ROUNDING_BFLOAT16 = 1e-3
"""The same of bfloat16 directions, in weights that they changed by a few percent."""
ESTIMATE = 1e-4
"""Relative, of what a few rounds of an iteration find from another random vector: the tolerance of a cold start."""

STEPS = 8
SHAPES = [(48, 32), (32, 32), (32, 64), (1, 16), (16, 1), (3, 24, 16), (24, 16), (8, 4, 3, 3)]
SMALL = 9000
"""Bytes: one to three of these matrices."""


def of_stacks(kind, stack_bytes=2**28):
    """The optimizer, as it steps what is on an accelerator."""

    class Stacking(kind):
        def _stacks(self, device):  # noqa: ARG002
            return True

    Stacking.stack_bytes = stack_bytes
    return Stacking


def gaussian(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(shapes, each=3):
    return [
        torch.nn.Parameter(gaussian(shape, 100 * index + seed))
        for index, shape in enumerate(shapes)
        for seed in range(each)
    ]


def stepped(make, weights, steps=STEPS, first=0):
    """Step them along random gradients, of which each has its own; the optimizer."""
    optimizer = make(weights)
    go_on(optimizer, weights, range(first, first + steps))
    return optimizer


def go_on(optimizer, weights, steps, numbers=None):
    for step in steps:
        for number, weight in zip(numbers or range(len(weights)), weights, strict=True):
            weight.grad = gaussian(weight.shape, 10_000 + 1000 * number + step).to(weight.dtype)
        optimizer.step()


def distance(weights, others):
    pairs = zip(weights, others, strict=True)
    return max(float(torch.dist(one.detach(), other.detach()) / other.detach().norm()) for one, other in pairs)


MUONS = [{}, {"maximize": True, "nesterov": False}, {"lr": torch.tensor(0.01)}, {"weight_decay": 0.0}]
PLUS_PLUSES = [
    {"policy": policy, "initialize": True, "open_gap": 0.9, "audit_every": 3} | more
    for policy in ("decay", "cap", "retract", "none")
    for more in ({}, {"adaptive": True}, {"lr": torch.tensor(0.01)})
]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Muon, options) for options in MUONS] + [(MuonPlusPlus, options) for options in PLUS_PLUSES],
    ids=str,
)
def test_a_stack_steps_as_its_matrices_do(kind, options):
    apart, together, cut = (parameters(SHAPES) for _ in range(3))

    for make, weights in [(kind, apart), (of_stacks(kind), together), (of_stacks(kind, SMALL), cut)]:
        stepped(lambda weights, make=make: make(weights, dtype=torch.float32, **options), weights)

    assert distance(together, apart) < ROUNDING
    assert distance(cut, together) < ROUNDING


@pytest.mark.parametrize("kind", [Muon, MuonPlusPlus])
def test_a_matrix_does_not_feel_what_stands_beside_it(kind):
    alone, together = parameters([(48, 32)], each=4), parameters([(48, 32)], each=4)
    make = of_stacks(kind)

    stepped(make, together)
    for number, weight in enumerate(alone):
        go_on(make([weight]), [weight], range(STEPS), [number])

    assert distance(alone, together) < ROUNDING


@pytest.mark.parametrize("kind", [Muon, MuonPlusPlus])
def test_bfloat16_directions_are_those_of_matrices_one_by_one(kind):
    apart, together = parameters([(288, 256)], each=2), parameters([(288, 256)], each=2)

    for make, weights in [(kind, apart), (of_stacks(kind), together)]:
        stepped(lambda weights, make=make: make(weights, dtype=torch.bfloat16), weights, steps=3)

    assert distance(together, apart) < ROUNDING_BFLOAT16


@pytest.mark.parametrize("weights_are", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [Muon, MuonPlusPlus])
def test_weights_of_other_dtypes_are_stepped_in_their_own(kind, weights_are):
    apart, together = (
        [torch.nn.Parameter(weight.detach().to(weights_are)) for weight in parameters([(48, 32), (32, 32)])]
        for _ in range(2)
    )

    for make, weights in [(kind, apart), (of_stacks(kind), together)]:
        stepped(lambda weights, make=make: make(weights, lr=0.01), weights, steps=5)

    rounding = torch.finfo(weights_are).eps * 5
    assert all(weight.dtype == weights_are for weight in together)
    assert distance(together, apart) < max(rounding, 1e-9)


@pytest.mark.parametrize("options", [{"layout": "in_out"}, {"row_blocks": 4}, {"row_blocks": (16, 8, 8, 16)}], ids=str)
@pytest.mark.parametrize("kind", [Muon, MuonPlusPlus])
def test_every_cut_of_a_parameter_is_stacked(kind, options):
    apart, together = parameters([(48, 32)]), parameters([(48, 32)])

    for make, weights in [(kind, apart), (of_stacks(kind), together)]:
        stepped(lambda weights, make=make: make([{"params": weights, **options}], dtype=torch.float32), weights)

    assert distance(together, apart) < ROUNDING


def test_a_parameter_without_a_gradient_stays_where_it_is():
    weights = parameters([(48, 32)])
    optimizer = of_stacks(MuonPlusPlus)(weights)
    before = weights[1].detach().clone()

    for step in range(3):
        go_on(optimizer, [weights[0], weights[2]], [step])

    assert torch.equal(weights[1], before)
    go_on(optimizer, weights, range(3, 5))
    assert not torch.equal(weights[1], before)


@pytest.mark.parametrize("kind", [Muon, MuonPlusPlus])
def test_diagnostics_of_a_stack_are_those_of_its_matrices(kind):
    apart, together = parameters([(48, 32), (3, 24, 16)]), parameters([(48, 32), (3, 24, 16)])

    told = []
    for make, weights in [(kind, apart), (of_stacks(kind), together)]:
        optimizer = stepped(make, weights, steps=4)
        optimizer.request_diagnostics()
        go_on(optimizer, weights, [4])
        told.append([optimizer.diagnostics()[weight] for weight in weights])

    for ours, expected in zip(*reversed(told), strict=True):
        assert ours.keys() == expected.keys()
        for metric in ours:
            rough = 0.05 if metric == "optimizer.net_update" else 1e-3  # of a nearly flat spectrum, by a few rounds
            torch.testing.assert_close(ours[metric], expected[metric], rtol=rough, atol=1e-5, msg=metric)


def test_muon_sphere_holds_the_norms_of_a_stack():
    weights = parameters([(48, 32), (3, 24, 16)])

    stepped(of_stacks(MuonSphere), weights)

    for weight in weights:
        norms = torch.linalg.matrix_norm(weight.detach(), 2) / (weight.shape[-2] / weight.shape[-1]) ** 0.5
        assert torch.allclose(norms, torch.ones(()), atol=ESTIMATE)


def test_a_state_taken_over_goes_on_as_before():
    weights = parameters([(48, 32), (32, 32)])
    make = of_stacks(MuonPlusPlus)
    options = {"policy": "cap", "audit_every": 2}
    optimizer = stepped(lambda weights: make(weights, **options), weights, steps=5)
    others = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    resumed = make(others, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    for each, of in [(optimizer, weights), (resumed, others)]:
        go_on(each, of, range(5, 10))

    assert all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))


def test_a_compiler_traces_a_step_of_stacks():
    compiled, plain = parameters([(48, 32), (32, 64)]), parameters([(48, 32), (32, 64)])
    make = of_stacks(Muon)
    optimizers = [make(weights, dtype=torch.float32) for weights in (compiled, plain)]
    steps = [torch.compile(optimizers[0].step, backend="aot_eager"), optimizers[1].step]

    for number in range(3):
        for weights, step in zip((compiled, plain), steps, strict=True):
            for index, weight in enumerate(weights):
                weight.grad = gaussian(weight.shape, 10 * number + index)
            step()

    assert distance(compiled, plain) < ROUNDING


# -- audits that arrive when they arrive


class Late(News):
    """An answer that is under way until it is let through."""

    held = True

    def arrived(self):
        return None if self.held else super().arrived()


def test_an_answer_under_way_is_not_waited_for_and_is_acted_on_at_a_later_audit(caplog):
    weights = [torch.nn.Parameter(gaussian((24, 24), seed)) for seed in range(3)]
    optimizer = of_stacks(MuonPlusPlus)(weights, lr=0.0, audit_every=2)
    go_on(optimizer, weights, [0])
    late = Late(torch.tensor([0.0, 1.0, 0.0]))
    for number, weight in enumerate(weights):
        optimizer._keeper._news[weight, 0] = late, number

    with caplog.at_level(logging.WARNING, "internist"):
        go_on(optimizer, weights, [1, 2])
        assert not caplog.records

        late.held = False
        go_on(optimizer, weights, [3])

    assert len(caplog.records) == 1


def test_of_a_stack_the_replaced_alone_are_found_anew(caplog):
    weights = parameters([(24, 24)])
    optimizer = stepped(lambda weights: of_stacks(MuonPlusPlus)(weights, lr=1e-3, audit_every=4), weights)
    with torch.no_grad():
        weights[1].copy_(6.0 * weights[0])

    with caplog.at_level(logging.WARNING, "internist"):
        go_on(optimizer, weights, range(STEPS, STEPS + 16))

    assert len(caplog.records) == 1
    norms = [float(torch.linalg.matrix_norm(weight.detach(), 2)) for weight in weights]
    assert norms == pytest.approx([2.0, 12.0, 2.0], rel=0.01)


def test_of_tensors_without_numbers_nothing_arrives():
    assert News(torch.ones(3, device="meta")).arrived() is None
    assert News(torch.ones(3)).arrived() == [1.0, 1.0, 1.0]


# -- what it rests on


@pytest.mark.parametrize("shape", [(4, 40, 24), (4, 24, 40), (2, 1, 8), (2, 8, 1)], ids=str)
def test_top_pairs_by_few_operators_are_the_top_pairs(shape):
    matrices = gaussian(shape, 3)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)

    cold = top_pair(matrices, batched=True)
    torch.testing.assert_close(cold.sigma, s[:, 0], rtol=ESTIMATE, atol=0.0)
    if s.shape[1] == 1:
        return
    beneath = top_pair(matrices, frozen=(u[:, :, 0], vh[:, 0]), batched=True)
    torch.testing.assert_close(beneath.sigma, s[:, 1], rtol=ESTIMATE, atol=0.0)
    warm = warm_pair(matrices, vh[:, 1], frozen=(u[:, :, 0], vh[:, 0]), batched=True)
    torch.testing.assert_close(warm.sigma, s[:, 1], rtol=ESTIMATE, atol=0.0)


def test_a_matrix_that_is_not_finite_spoils_no_other():
    matrices = gaussian((3, 24, 16), 5)
    matrices[1, 2, 3] = torch.nan

    pair = top_pair(matrices, batched=True)

    assert pair.sigma.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(pair.sigma[::2], torch.linalg.matrix_norm(matrices[::2], 2), rtol=ESTIMATE, atol=0.0)


def test_zeros_have_no_top_pair_by_few_operators_either():
    pair = top_pair(torch.zeros(2, 8, 6), batched=True)

    assert not pair.sigma.any()
    assert not pair.residual.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_complement_factors_by_few_operators_are_the_same(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    matrices = gaussian((3, 24, 16), 7).to(dtype)
    u, v = (torch.nn.functional.normalize(gaussian(size, 8), dim=1).to(wide) for size in ((3, 24), (3, 16)))
    pair = frozen(u, v, dtype)

    ours, expected = (complement_factors(matrices, pair, extra=0.3, stacked=stacked) for stacked in (True, False))

    # in bfloat16 each product is rounded once
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(torch.bmm(*ours), torch.bmm(*expected), rtol=tolerance, atol=tolerance)
