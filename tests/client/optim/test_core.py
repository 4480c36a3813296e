"""What every matrix optimizer shares: how parameters become matrices, groups, states, AdamW beside, bad input."""

import copy
import math

import pytest
import torch
from torch import nn

from internist.optim import Muon
from internist.optim.coefficients import orthogonalize
from internist.optim.matrices import matrix_views
from internist.optim.parts import CACHED_ENTRIES, cached_parts

COMPILED = 5e-6
"""A step that a compiler traced is made of operators, which round in other places than the compiled passes, and small
singular values grow by up to 3.4 in each of five steps."""

ROUNDING = 2e-5
"""Of a step of 0.1 in float32."""


def parameter(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = nn.Parameter(torch.randn(shape, generator=generator))
    made.grad = torch.randn(shape, generator=generator)
    return made


def stepped(weight, **options):
    """What one step of lr 0.1 without momentum or decay takes off a weight."""
    before = weight.detach().clone()
    options = {"scale": "none", "weight_decay": 0.0, "momentum": 0.0, "dtype": torch.float32} | options
    Muon([{"params": [weight], **options}], lr=0.1).step()
    return (before - weight.detach()) / 0.1


def direction(gradient):
    return orthogonalize(gradient, dtype=torch.float32)


def test_a_matrix_is_one():
    weight = parameter(12, 30)

    assert torch.allclose(stepped(weight), direction(weight.grad), atol=ROUNDING)


def test_a_fused_projection_is_split_by_heads():
    weight = parameter(12, 30)
    expected = torch.cat([direction(block) for block in weight.grad.split(3)])

    assert torch.allclose(stepped(weight, row_blocks=4), expected, atol=ROUNDING)


def test_row_blocks_may_differ():
    weight = parameter(12, 30)
    expected = torch.cat([direction(block) for block in weight.grad.split([8, 2, 2])])

    assert torch.allclose(stepped(weight, row_blocks=(8, 2, 2)), expected, atol=ROUNDING)


def test_a_stack_of_experts_is_one_matrix_each():
    weight = parameter(3, 12, 30)
    expected = torch.stack([direction(expert) for expert in weight.grad])

    assert torch.allclose(stepped(weight), expected, atol=ROUNDING)


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 2, 2)])
def test_a_convolution_is_a_matrix_of_its_outputs(kernel):
    weight = parameter(8, 4, *kernel)
    expected = direction(weight.grad.flatten(1)).view_as(weight)

    assert torch.allclose(stepped(weight, layout="conv"), expected, atol=ROUNDING)


def test_a_convolution_in_channels_last_steps_the_same():
    plain = parameter(8, 4, 3, 3)
    last = nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    last.grad = plain.grad.clone()  # laid out otherwise, as a user's own gradient may be

    assert torch.allclose(stepped(last), stepped(plain), atol=ROUNDING)


def test_weights_stored_in_by_out_step_as_their_transpose():
    stored = parameter(30, 12)
    weight = nn.Parameter(stored.detach().t().clone())
    weight.grad = stored.grad.t().clone()
    expected = stepped(weight, scale="spectral_mup").t()

    assert torch.allclose(stepped(stored, scale="spectral_mup", layout="in_out"), expected, atol=ROUNDING)


def test_blocks_of_transposed_weights_are_of_outputs():
    stored = parameter(30, 12)
    expected = torch.cat([direction(block) for block in stored.grad.t().split(4)]).t()

    assert torch.allclose(stepped(stored, layout="in_out", row_blocks=3), expected, atol=ROUNDING)


def test_a_matrix_larger_than_the_cache_is_stepped_whole():
    weight = parameter(40, CACHED_ENTRIES // 16)

    assert torch.allclose(stepped(weight), direction(weight.grad), atol=ROUNDING)


@pytest.mark.parametrize("shape", [(5, 70_000), (1, 3, 40_000), (3, 300, 300), (200_000,), (0, 7)])
def test_cached_parts_are_all_of_a_tensor_once(shape):
    counts = torch.zeros(shape)
    for (part,) in cached_parts(counts):
        part.add_(1)

    assert bool((counts == 1).all())


def test_views_share_memory_with_the_parameter():
    weight = parameter(8, 4, 3, 3)
    (view,) = matrix_views(weight.detach(), weight, {"layout": "out_in", "row_blocks": None})
    view.zero_()

    assert not weight.any()


def model_and_optimizer(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.Linear(32, 8))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": others, "algorithm": "adamw", "lr": 0.01, "weight_decay": 0.0}]
    return model, Muon(groups, lr=0.02, **options)


def loss_of(model):
    inputs = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
    return (model(inputs) - inputs[:, :8]).square().mean()


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_the_loss_falls():
    model, optimizer = model_and_optimizer()
    before = float(loss_of(model).detach())
    train(model, optimizer, 40)

    assert float(loss_of(model).detach()) < before / 2


def test_adamw_groups_take_the_steps_of_torchs_adamw():
    model, optimizer = model_and_optimizer()
    other = copy.deepcopy(model)
    adamw = torch.optim.AdamW([p for p in other.parameters() if p.ndim < 2], lr=0.01, weight_decay=0.0)
    for _ in range(3):
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        optimizer.step()
        adamw.step()

    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert ours.ndim == 2 or torch.allclose(ours, theirs, atol=1e-7)


def test_two_runs_are_bitwise_the_same():
    first, second = (train(*model_and_optimizer(), 5) for _ in range(2))

    assert all(map(torch.equal, first, second))


def test_a_saved_state_goes_on_bitwise():
    model, optimizer = model_and_optimizer()
    train(model, optimizer, 3)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = train(model, optimizer, 3)
    other, resumed = model_and_optimizer(nesterov=False, momentum=0.5)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)

    assert all(map(torch.equal, train(other, resumed, 3), expected))


def test_a_copied_optimizer_goes_on():
    model, optimizer = model_and_optimizer()
    train(model, optimizer, 2)
    other, copied = copy.deepcopy((model, optimizer))

    assert all(map(torch.equal, train(model, optimizer, 2), train(other, copied, 2)))


def test_a_saved_momentum_keeps_its_dtype():
    weight = parameter(8, 12)
    optimizer = Muon([weight], lr=0.1)
    optimizer.step()
    saved = optimizer.state_dict()
    half = nn.Parameter(weight.detach().bfloat16())
    resumed = Muon([half], lr=0.1)
    resumed.load_state_dict(saved)

    momentum = resumed.state[half]["momentum_buffer"]
    assert momentum.dtype == torch.float32 and torch.equal(momentum, optimizer.state[weight]["momentum_buffer"])
    half.grad = weight.grad.bfloat16()
    resumed.step()
    assert resumed.state[half]["momentum_buffer"].dtype == torch.float32


def test_a_state_of_another_shape_is_refused():
    optimizer = Muon([parameter(8, 12)], lr=0.1)
    optimizer.step()

    with pytest.raises(
        ValueError, match=r"'momentum_buffer' is of another shape: \(8, 12\) for a parameter of \(12, 8\)"
    ):
        Muon([parameter(12, 8)], lr=0.1).load_state_dict(optimizer.state_dict())


def test_state_is_one_momentum_and_a_count():
    weight = parameter(64, 32)
    optimizer = Muon([weight], lr=0.1)
    optimizer.step()
    state = optimizer.state[weight]

    assert set(state) == {"momentum_buffer", "step"}
    assert state["momentum_buffer"].shape == weight.shape and state["step"].shape == () and float(state["step"]) == 1


def test_a_parameter_without_gradient_stays():
    with_gradient, without = parameter(8, 8), parameter(8, 8)
    without.grad = None
    before = without.detach().clone()
    optimizer = Muon([with_gradient, without], lr=0.1)
    optimizer.step()

    assert torch.equal(without, before) and without not in optimizer.state


def test_closures_see_gradients_and_give_the_loss():
    model, optimizer = model_and_optimizer()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) > 0


def test_schedulers_reach_every_group():
    model, optimizer = model_and_optimizer()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    train(model, optimizer, 1)
    scheduler.step()

    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005]


def test_a_cycling_schedule_moves_the_momentum():
    model, optimizer = model_and_optimizer()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=10)
    momenta = []
    for _ in range(5):
        train(model, optimizer, 1)
        scheduler.step()
        momenta.append(optimizer.param_groups[0]["momentum"])

    assert momenta[0] > momenta[2]


def test_a_learning_rate_may_be_a_tensor_and_change_in_place():
    rate = torch.tensor(0.02)
    model, optimizer = model_and_optimizer()
    other, plain = model_and_optimizer()
    optimizer.param_groups[0]["lr"] = rate
    train(model, optimizer, 1)
    train(other, plain, 1)
    rate.mul_(0.5)
    plain.param_groups[0]["lr"] = 0.01

    for ours, expected in zip(train(model, optimizer, 1), train(other, plain, 1), strict=True):
        assert torch.allclose(ours, expected, atol=1e-7)


def test_maximize_is_descent_on_the_negated_gradient():
    up, down = parameter(8, 12), parameter(8, 12)
    down.grad = -up.grad
    Muon([up], lr=0.1, maximize=True).step()
    Muon([down], lr=0.1).step()

    assert torch.equal(up, down)


@pytest.mark.parametrize("bad", [False, True])
def test_a_gradient_scaler_unscales_and_skips(bad):
    weight, plain = parameter(8, 12), parameter(8, 12)
    before = weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = Muon([weight], lr=0.1)
    scaler.scale(torch.zeros(()))
    weight.grad = plain.grad * 1024.0
    if bad:
        weight.grad[0, 0] = math.inf
    scaler.step(optimizer)
    scaler.update()
    Muon([plain], lr=0.1).step()

    assert torch.equal(weight, before if bad else plain)


def test_a_bad_gradient_makes_its_own_matrix_nan_and_no_other():
    sick, well = parameter(8, 12), parameter(8, 12, seed=1)
    sick.grad[2, 3] = math.nan
    Muon([sick, well], lr=0.1).step()

    assert sick.isnan().all() and well.isfinite().all()


def test_a_zero_gradient_only_decays():
    weight = parameter(8, 12)
    before = weight.detach().clone()
    weight.grad.zero_()
    Muon([weight], lr=0.1, weight_decay=0.5).step()

    assert torch.allclose(weight, before * 0.95)


def test_gradients_are_left_as_they_were():
    model, optimizer = model_and_optimizer()
    loss_of(model).backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()

    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before, strict=True))


def test_steps_allocate_no_more_as_they_go_on():
    model, optimizer = model_and_optimizer()
    train(model, optimizer, 2)
    held = sum(len(state) for state in optimizer.state.values())
    train(model, optimizer, 5)

    assert sum(len(state) for state in optimizer.state.values()) == held


def test_groups_can_be_added_later_and_may_be_empty():
    first, second = parameter(8, 12), parameter(8, 12)
    optimizer = Muon([{"params": [first]}, {"params": []}], lr=0.1)
    optimizer.add_param_group({"params": [second], "lr": 0.0, "weight_decay": 0.0})
    before = second.detach().clone()
    optimizer.step()

    assert torch.equal(second, before) and not torch.equal(first, second)


def test_a_refused_group_is_not_kept():
    optimizer = Muon([parameter(8, 12)], lr=0.1)
    with pytest.raises(ValueError, match="at least 0"):
        optimizer.add_param_group({"params": [parameter(4, 4)], "lr": -1.0})

    assert len(optimizer.param_groups) == 1


def test_one_parameter_in_two_groups_is_refused():
    weight = parameter(8, 12)
    with pytest.raises(ValueError, match="more than one parameter group"):
        Muon([{"params": [weight]}, {"params": [weight]}], lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr of at least 0, got -0.1"),
        ({"lr": math.nan}, "lr of at least 0"),
        ({"lr": torch.ones(2)}, "one element"),
        ({"weight_decay": -1.0}, "weight_decay of at least 0"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\), got 1.0"),
        ({"scale": "orignal"}, "did you mean 'original'"),
        ({"coefficients": "jordam"}, "did you mean 'jordan'"),
        ({"steps": -1}, "positive number"),
        ({"dtype": torch.float16}, "expected a dtype of"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Muon([parameter(8, 12)], **{"lr": 0.1} | options)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"algorithm": "adam"}, "expected an algorithm of"),
        ({"algorithm": "adamw", "betas": (0.9, 1.0)}, "betas in"),
        ({"algorithm": "adamw", "eps": -1.0}, "eps of at least 0"),
        ({"weight_deacy": 0.1}, "did you mean 'weight_decay'"),
        ({"row_blocks": 5}, "8 rows do not divide into 5"),
        ({"row_blocks": (4, 3)}, "sum to 7"),
        ({"layout": "in-out"}, "expected a layout of"),
    ],
)
def test_bad_group_keys_are_refused(group, message):
    with pytest.raises(ValueError, match=message):
        Muon([{"params": [parameter(8, 12)], **group}], lr=0.1)


def test_what_is_no_matrix_is_refused_by_name():
    with pytest.raises(ValueError, match=r"parameter 'norm.bias': .*algorithm=\"adamw\""):
        Muon([("norm.bias", parameter(8))], lr=0.1)


def test_complex_and_integer_parameters_are_refused():
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(TypeError, match="expected a real floating type"):
            Muon([torch.zeros(8, 12, dtype=dtype)], lr=0.1)


@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
def test_sparse_gradients_are_refused(algorithm):
    weight = parameter(8, 12)
    weight.grad = weight.grad.to_sparse()
    with pytest.raises(TypeError, match=r"sparse gradients are not supported, got one of shape \(8, 12\)"):
        Muon([{"params": [weight], "algorithm": algorithm}], lr=0.1).step()


def test_an_optimizer_without_parameters_is_refused():
    with pytest.raises(ValueError, match="empty parameter list"):
        Muon([], lr=0.1)


def test_diagnostics_come_when_asked_for_and_are_true():
    weight = parameter(24, 60)
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0, scale="original", dtype=torch.float32)
    optimizer.step()
    assert optimizer.diagnostics() == {}
    before = weight.detach().clone()
    optimizer.request_diagnostics()
    optimizer.step()
    update = before - weight.detach()
    noted = {metric: float(value) for metric, value in optimizer.diagnostics()[weight].items()}

    assert noted["optimizer.effective_lr"] == pytest.approx(0.1)
    norm = float(torch.linalg.matrix_norm(update, 2))
    assert noted["optimizer.update_norm_low"] <= norm <= noted["optimizer.update_norm_high"]
    gram = (update / 0.1) @ (update / 0.1).t()
    assert noted["optimizer.orthogonality"] == pytest.approx(float((gram - torch.eye(24)).norm()) / 24**0.5, rel=1e-3)
    optimizer.step()
    assert optimizer.diagnostics() == {}


def test_a_parameter_of_several_matrices_tells_of_the_worst():
    weight = parameter(3, 12, 30)
    weight.grad[1] = torch.outer(torch.ones(12), torch.ones(30))  # of rank one: the least orthogonal
    optimizer = Muon([weight], lr=0.1, dtype=torch.float32)
    optimizer.request_diagnostics()
    optimizer.step()

    assert float(optimizer.diagnostics()[weight]["optimizer.orthogonality"]) > 0.9


def test_it_describes_every_parameter():
    _, optimizer = model_and_optimizer()
    rows = optimizer.describe()

    assert [row["algorithm"] for row in rows] == ["muon"] * 2 + ["adamw"] * 4
    assert rows[0]["shape"] == [32, 12] and rows[0]["scale"] == "original" and rows[0]["coefficients"] == "jordan"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_step_does_the_same():
    model, optimizer = model_and_optimizer(dtype=torch.float32)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.02)
    other, plain = model_and_optimizer(dtype=torch.float32)
    compiled = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        compiled()

    for ours, expected in zip(model.parameters(), train(other, plain, 2), strict=True):
        assert torch.allclose(ours, expected, atol=COMPILED)
