"""The clock, and models and loops of many kinds: what real training scripts do that a small GPT does not."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import internist
from internist.demo.model import ByteGPT
from internist.model.outline import outline
from internist.observe.sampling import Due
from internist.observe.taps import PLACE
from tests.client.points import read, records


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    torch.manual_seed(0)


def finish(monitor):
    monitor.finish()
    return read(monitor.directory)


def problems(monitor):
    """What is not measured, but for a loss that the loop keeps to itself."""
    states = ("unsupported", "silent", "not captured")
    return [e for e in monitor.coverage() if e.state in states and e.family != "loss"]


# ---- the clock -----------------------------------------------------------------------------------------------------


def test_gradient_accumulation_is_one_step_and_merges_micro_batches():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    batches = [torch.randn(n, 4) for n in (2, 6)]
    outputs = []
    for x in batches:
        out = model(x)
        outputs.append(out.detach())
        out.sum().backward()
    optimizer.step()
    points, series, _ = finish(monitor)

    everything = torch.cat(outputs)
    name = next(subject for metric, subject, _ in points if metric == "activation.rms")
    assert points["activation.rms", name, None] == {
        0: pytest.approx(everything.square().mean().sqrt().item(), rel=1e-5)
    }
    assert points["activation.rms_max", name, None][0] == pytest.approx(
        everything.square().mean(1).sqrt().max().item(), rel=1e-5
    )
    assert series["activation.rms_q99", name, None].bound == "upper"


def test_evaluation_is_not_measured():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = internist.watch(model, optimizer)
    for _ in range(3):
        model(torch.ones(1, 4)).sum().backward()
        with torch.no_grad():
            model(torch.full((1, 4), 1e6))
        with torch.inference_mode():
            model(torch.full((1, 4), 1e6))
        model.eval()
        model(torch.full((1, 4), 1e6))
        model.train()
        optimizer.step()
    points, _, _ = finish(monitor)

    assert set(points["activation.rms", "0", None]) == {0, 1, 2}
    assert max(points["activation.input_rms_max", "0", None].values()) == pytest.approx(1.0)


def test_two_optimizers_make_one_round():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.AdamW(model[1].parameters(), lr=0.01)
    monitor = internist.watch(model)
    for _ in range(6):
        model(torch.ones(1, 4)).sum().backward()
        first.step()
        second.step()
    points, _, _ = finish(monitor)

    assert set(points["update.rms", "0.weight", None]) == set(points["update.rms", "1.weight", None]) == set(range(6))
    assert points["learning_rate", "0", None][5] == pytest.approx(0.1)
    assert points["learning_rate", "1.0", None][5] == pytest.approx(0.01)


class Outer(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_a_step_that_calls_the_step_of_its_base_class_is_one():
    model = nn.Linear(3, 2)
    torch.optim.SGD(model.parameters())  # from here on torch calls hooks for the base class's step as well
    optimizer = Outer(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    points, _, _ = finish(monitor)

    assert records(monitor.directory)[-1].finish.step == 3
    assert sorted(points["update.rms", "weight", None]) == [0, 1, 2, 3]


def test_an_optimizer_per_parameter_stepped_in_backward_is_one_round_per_backward():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    monitor = internist.watch(model)
    for _ in range(6):
        model(torch.ones(1, 4)).sum().backward()
    points, _, _ = finish(monitor)

    assert set(points["update.rms", "0.weight", None]) == set(range(6))


def test_an_optimizer_that_is_none_of_torchs_is_wrapped_and_unwrapped():
    model = nn.Linear(4, 2)

    class Plain:
        def __init__(self):
            self.param_groups = [{"params": list(model.parameters()), "lr": 0.5}]

        def step(self):
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.5 * p.grad

    optimizer = Plain()
    monitor = internist.watch(model, optimizer)
    for _ in range(3):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    points, _, _ = finish(monitor)

    name = next(subject for metric, subject, _ in points if metric == "update.rms")
    assert set(points["update.rms", name, None]) == {0, 1, 2}
    assert points["learning_rate", "0", None][0] == 0.5
    assert "step" not in vars(optimizer)


def test_lbfgs_with_a_closure_is_one_step_and_reads_gradients_after_it():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    monitor = internist.watch(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    points, _, _ = finish(monitor)

    assert set(points["gradient.global_norm", "model", None]) == {0, 1}


def test_a_step_the_scaler_skipped_inside_the_kernel_is_marked_and_has_no_update():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monitor = internist.watch(model, optimizer)
    grads = []
    for step in range(3):
        x = torch.full((1, 4), math.inf if step == 1 else 1.0)
        optimizer.zero_grad()
        scaler.scale(model(x).sum()).backward()
        grads.append(model.weight.grad.clone())
        scaler.step(optimizer)
        scaler.update()
    points, _, frames = finish(monitor)

    skipped = {f.step: f.skipped for f in frames}
    name = next(subject for metric, subject, _ in points if metric == "update.rms" and "weight" in subject)
    assert skipped == {0: False, 1: True, 2: False}
    assert set(points["update.rms", name, None]) == {0, 2}
    assert points["gradient.rms", name, None][0] == pytest.approx(1.0, rel=1e-5)  # as if unscaled
    assert float(grads[0].mean()) == 1024.0


# ---- models of many kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_measured_once(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(checkpoint(self.first, x, use_reentrant=reentrant))

    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    for _ in range(3):
        model(torch.ones(2, 4, requires_grad=True)).sum().backward()
        optimizer.step()
    assert not problems(monitor)
    points, _, _ = finish(monitor)

    assert set(points["activation.rms", "first", None]) == {0, 1, 2}


def test_selective_checkpointing_gives_the_same_gradients():
    def policy(_, op, *__, **___):
        return CheckpointPolicy.MUST_SAVE if op == torch.ops.aten.mm.default else CheckpointPolicy.PREFER_RECOMPUTE

    def gradients(*, watched):
        torch.manual_seed(1)
        inner = nn.Sequential(nn.Linear(4, 8, bias=False), nn.GELU(), nn.Linear(8, 4, bias=False))

        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return checkpoint(
                    self.inner, x, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy)
                )

        model = Checkpointed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = internist.watch(model, optimizer) if watched else None
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        if monitor is not None:
            assert not problems(monitor)
            monitor.finish()
        return [p.grad.clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(watched=False), gradients(watched=True), strict=True))


def test_convolutions_use_channels_as_features_and_groups_as_matrices():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    x = torch.randn(2, 4, 5, 5)
    weight = model[0].weight.detach().clone()
    with torch.no_grad():
        out = functional.conv2d(x, weight, model[0].bias, padding=1, groups=2)
    running = model[1].running_mean.clone()
    model(x).square().mean().backward()
    optimizer.step()
    after = model[0].weight.detach()
    assert not problems(monitor)
    points, series, _ = finish(monitor)

    assert points["activation.rms_max", "0", None][0] == pytest.approx(
        out.square().mean(1).sqrt().max().item(), rel=1e-4
    )
    largest = max(torch.linalg.matrix_norm(after[g : g + 4].flatten(1), 2).item() for g in (0, 4))
    assert points["weight.spectral_norm", "0.weight", None][0] == pytest.approx(largest, rel=1e-4)
    assert (
        series["weight.spectral_norm", "0.weight", None].facts.fan_out,
        series["weight.spectral_norm", "0.weight", None].facts.fan_in,
    ) == (4, 18)
    assert model[1].num_batches_tracked == 1  # the replay left the running statistics alone
    assert not torch.equal(model[1].running_mean, running)


def test_tied_weights_are_one_series_with_both_roles():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.lm_head = nn.Linear(8, 16, bias=False)
            self.lm_head.weight = self.embed.weight

        def forward(self, ids):
            return self.lm_head(self.embed(ids))

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    model(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
    optimizer.step()
    points, series, _ = finish(monitor)

    assert {m for m, subject, _ in points if subject == "embed.weight"} >= {"weight.row_rms_max", "weight.head_norm"}
    assert series["weight.row_rms_max", "embed.weight", None].facts.aliases == ("lm_head.weight",)
    assert not [key for key in points if key[1] == "lm_head.weight"]


def test_a_tied_weight_moves_each_module_that_computes_with_it():
    torch.manual_seed(0)
    embed, head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
    head.weight = embed.weight
    model = nn.Sequential(embed, nn.LayerNorm(8), head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    ids, before = torch.arange(6).reshape(2, 3), embed.weight.detach().clone()
    received = model[:2](ids).detach()
    model(ids).square().mean().backward()
    optimizer.step()
    moved = embed.weight.detach() - before
    assert not problems(monitor)
    points, _, _ = finish(monitor)

    for name, changes in (("0", moved[ids]), ("2", received @ moved.t())):
        expected = changes.flatten(0, 1).square().mean(1).sqrt().max().item()
        assert points["update.own", name, None][0] == pytest.approx(expected, rel=1e-4)


class LayerNorm(nn.Module):
    """As in nanoGPT: eps stands in the forward, and the bias may be left out."""

    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))
        self.bias = nn.Parameter(torch.rand(width)) if bias else None

    def forward(self, x):
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class T5LayerNorm(nn.Module):
    """As in T5: no mean is taken off, and there is no bias."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))
        self.variance_epsilon = 1e-6

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


class ChannelsLayerNorm(LayerNorm):
    """As in ConvNeXt: over the channels, which come first."""

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None] * normed + self.bias[:, None]


class OddLayerNorm(LayerNorm):
    """Something else under the name."""

    def forward(self, x):
        return super().forward(x) * torch.sigmoid(x)


def test_layer_norms_of_one_s_own_are_measured_where_they_compute_what_they_are_called():
    torch.manual_seed(0)
    norms = [LayerNorm(6, bias=True), LayerNorm(6, bias=False), T5LayerNorm(6), OddLayerNorm(6, bias=True)]
    model = nn.Sequential(*norms, ChannelsLayerNorm(3, bias=True), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, every=1, max_overhead=0)
    for _ in range(3):
        before = norms[0].weight.detach().clone(), norms[0].bias.detach().clone()
        x = torch.randn(2, 3, 6)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    states = {entry.subject: entry.state for entry in monitor.coverage() if entry.family == "update.own"}
    points, _, _ = finish(monitor)

    normed = nn.functional.layer_norm(x, (6,))
    moved = normed * (norms[0].weight - before[0]).detach() + (norms[0].bias - before[1]).detach()
    expected = moved.square().mean(-1).sqrt().max().item()
    assert points["update.own", "0", None][2] == pytest.approx(expected, rel=1e-3)
    assert states == {
        "0": "measured", "1": "measured", "2": "measured", "3": "unsupported", "4": "unsupported", "5": "measured",
    }  # fmt: skip


def test_frozen_parameters_are_frozen_not_missing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([model[1].weight], lr=0.1)
    monitor = internist.watch(model, optimizer)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    states = {e.subject: e.state for e in monitor.coverage() if e.kind == "parameter"}
    monitor.finish()

    assert states == {"0.weight": "frozen", "0.bias": "frozen", "1.weight": "measured", "1.bias": "frozen"}


def test_a_module_that_is_never_called_is_silent():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    model.forward = lambda x: model["used"](x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    states = {e.subject: e.state for e in monitor.coverage() if e.kind == "module"}
    monitor.finish()

    assert (states["used"], states["unused"]) == ("measured", "silent")


def test_a_module_called_twice_takes_the_largest_and_the_mean_over_both():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.layer(x) + self.layer(10 * x)

    model = Shared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = internist.watch(model, optimizer)
    x = torch.randn(3, 4)
    with torch.no_grad():
        both = torch.cat((model.layer(x), model.layer(10 * x)))
    model(x).sum().backward()
    optimizer.step()
    points, _, _ = finish(monitor)

    assert points["activation.rms", "layer", None][0] == pytest.approx(both.square().mean().sqrt().item(), rel=1e-5)
    assert points["activation.abs_max", "layer", None][0] == pytest.approx(both.abs().max().item(), rel=1e-5)


def test_torchs_own_transformer_encoder_is_measured_with_its_attention():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    model(torch.randn(2, 5, 16)).sum().backward()
    optimizer.step()
    states = {e.subject: e.state for e in monitor.coverage()}
    points, _, _ = finish(monitor)

    assert states["layers.0.self_attn.in_proj_weight"] == "measured"
    assert [i for m, s, i in points if m == "attention.max_logit" and s == "layers.1.self_attn"] == [0, 1]
    assert points["weight.spectral_norm", "layers.0.self_attn.in_proj_weight", None]


def test_a_parameter_of_an_unknown_module_is_oriented_by_widths():
    class Bare(nn.Module):
        def __init__(self, rows, columns):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(rows, columns))

        def forward(self, x):
            return x @ self.matrix

    model = nn.Sequential(Bare(4, 6), Bare(6, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    entries = {(e.subject, e.family): e for e in monitor.coverage()}
    _, series, _ = finish(monitor)

    facts = series["weight.operator_norm", "0.matrix", None].facts
    assert (facts.view, facts.fan_out, facts.fan_in) == ("transposed", 6, 4)
    assert series["weight.operator_norm", "1.matrix", None].facts.view == "square"  # the same either way round
    assert entries["1.matrix", "spectrum"].state == "measured"


def test_low_precision_weights_ship_the_share_that_did_not_move():
    model = nn.Linear(64, 64, bias=False).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = internist.watch(model, optimizer)
    before = model.weight.detach().clone()
    model(torch.randn(4, 64, dtype=torch.bfloat16)).float().square().mean().backward()
    optimizer.step()
    points, series, _ = finish(monitor)

    name = next(subject for metric, subject, _ in points if metric == "update.unchanged")
    still = (model.weight.detach() == before).float().mean().item()
    assert still > 0.1
    assert points["update.unchanged", name, None][0] == pytest.approx(still, abs=1e-6)
    assert points["update.rms", name, None][0] == pytest.approx(
        (model.weight.detach().float() - before.float()).square().mean().sqrt().item(), rel=1e-4
    )
    assert series["update.rms", name, None].facts.dtype == "bfloat16"


def test_nan_activations_and_gradients_are_recorded_as_they_are():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    x = torch.ones(3, 4)
    x[1, 2] = math.nan
    model(x).sum().backward()
    optimizer.step()
    points, _, _ = finish(monitor)

    name = next(subject for metric, subject, _ in points if metric == "activation.nonfinite")
    assert points["activation.nonfinite", name, None][0] == 2.0
    assert math.isnan(points["activation.rms", name, None][0])
    assert math.isnan(points["gradient.global_norm", "model", None][0])
    assert math.isnan(points["weight.spectral_norm", f"{name}.weight" if name != "model" else "weight", None][0])


def test_blocks_heads_and_roles_are_found():
    found = outline(ByteGPT(width=16, depth=3, heads=2, context=8))
    roles = {m.name: m.role for m in found.modules}

    assert [n for n, r in roles.items() if r == "block"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert (roles["embed"], roles["lm_head"], roles["ln_f"], roles["blocks.0.attn"]) == (
        "embedding",
        "head",
        "norm",
        "attention",
    )
    assert all(m.block == "blocks.1" for m in found.modules if m.name.startswith("blocks.1"))


def test_large_weights_which_are_worked_through_in_pieces_give_the_same():
    model = nn.Sequential(nn.Linear(300, 700), nn.Linear(700, 300, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    x = torch.randn(8, 300)
    for _ in range(11):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not problems(monitor)
    monitor._observer.arm(
        11, Due(light=True)
    )  # the steps before it measure everything, and need differences for their spectra
    before = [m.weight.detach().clone() for m in model], model[0].bias.detach().clone()
    inputs = x, model[0](x).detach()
    model(x).square().mean().backward()
    optimizer.step()
    points, _, _ = finish(monitor)

    for i, module in enumerate(model):
        delta = module.weight.detach() - before[0][i]
        moved = inputs[i] @ delta.t() + (module.bias.detach() - before[1] if i == 0 else 0)
        assert points["update.rms", f"{i}.weight", None][11] == pytest.approx(
            delta.square().mean().sqrt().item(), rel=1e-4
        )
        assert points["update.own", str(i), None][11] == pytest.approx(
            moved.square().mean(1).sqrt().max().item(), rel=1e-3
        )
        assert points["update.own_mean", str(i), None][11] == pytest.approx(
            moved.square().mean().sqrt().item(), rel=1e-3
        )


def test_memory_does_not_grow_over_steps():
    import resource

    model = ByteGPT(width=32, depth=2, heads=2, context=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = internist.watch(model, optimizer, every=1, max_overhead=0)

    def train(steps):
        for _ in range(steps):
            model(torch.zeros(1, 16, dtype=torch.long)).sum().backward()
            optimizer.step()
            internist.log(loss=1.0)

    train(150)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(300)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    monitor.finish()

    assert grown < 20_000, f"{grown} KiB over 300 steps"
    assert sum(r.plan is not None for r in records(monitor.directory)) < 12


def test_an_eager_models_modules_carry_taps_on_sampled_steps_only():
    model = ByteGPT(width=16, depth=2, heads=2, context=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, max_overhead=0)
    bare = {}
    for step in range(20):
        bare[step] = PLACE not in vars(model.blocks[0])
        ids = torch.randint(0, 256, (2, 8))
        functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
    points, _, _ = finish(monitor)

    assert [step for step in bare if not bare[step]] == [*range(17), 18]
    assert sorted(points["activation.rms", "blocks.0", None]) == [*range(17), 18]
    assert not any(m._forward_hooks or m._forward_pre_hooks or PLACE in vars(m) for m in model.modules())
