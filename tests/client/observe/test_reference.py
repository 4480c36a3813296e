"""Every metric of the catalogue against an independent reference: SVD, a second forward, a materialised attention
matrix."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import internist
from internist.demo.model import ByteGPT, batch, text
from internist.measures import formats
from internist.schema.metrics import METRICS
from tests.client.points import read

TOLERANCE = 2e-4
"""Relative; float32 sums in another order."""
SPECTRAL_TOLERANCE = 1e-4
"""Relative; matrices here are small, so their spectra are exact but for rounding."""
STEPS = 3
HEADS, WIDTH, DEPTH, CONTEXT, BATCH = 2, 32, 2, 16, 4


class Step:
    """One training step, with everything a reference needs: inputs, gradients, the model before and after."""

    def __init__(self, model: ByteGPT, inputs: torch.Tensor) -> None:
        self.inputs = inputs
        self.before = copy.deepcopy(model)
        self.grads: dict[str, torch.Tensor] = {}
        self.after = model
        self.clip = float("nan")
        self.loss = float("nan")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three steps of a real model, watched; each with its reference."""
    torch.manual_seed(0)
    model = ByteGPT(width=WIDTH, depth=DEPTH, heads=HEADS, context=CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    twin = copy.deepcopy(model)
    generator, corpus = torch.Generator().manual_seed(1), text()
    steps: list[Step] = []
    directory = tmp_path_factory.mktemp("spool")
    with internist.watch(model, optimizer, mode="offline", directory=directory) as monitor:
        for _ in range(STEPS):
            inputs, targets = batch(corpus, BATCH, CONTEXT, generator)
            twin.load_state_dict(model.state_dict())
            step = Step(twin, inputs)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            step.clip = float(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            step.grads = {n: p.grad.clone() for n, p in model.named_parameters()}
            optimizer.step()
            twin.load_state_dict(model.state_dict())
            step.after = copy.deepcopy(twin)
            step.loss = loss.item()
            monitor.log(loss=loss)
            steps.append(step)
        monitor.log({"extra": 7.0})
    points, series, _ = read(monitor.directory)
    return points, series, steps


def outputs(model: ByteGPT, inputs: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs and inputs of every module in one forward, by plain hooks."""
    out, into, handles = {}, {}, []
    for name, module in model.named_modules():

        def hook(_, args, output, name=name):
            out[name], into[name] = output.detach().clone(), args[0].detach().clone()

        handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return out, into


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).double()


def rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def strided(count: int, most: int = 64) -> list[int]:
    return list(range(count)) if count <= most else [i * (count - 1) // (most - 1) for i in range(most)]


def check(points, metric, subject, at, expected, *, index=None, tolerance=TOLERANCE):
    found = points[metric, subject, index][at]
    assert found == pytest.approx(expected, rel=tolerance, abs=1e-9), f"{metric} of {subject} at step {at}"


def test_every_metric_of_the_catalogue_is_produced(trained):
    points, _, _ = trained

    told_by_optimizers = {metric for metric in METRICS if metric.startswith("optimizer.")} - {
        "optimizer.steps"
    }  # see test_optimizers.py
    of_many_ranks = {"update.base", "weight.replicas_differ"}  # see tests/stacks/test_sharded.py
    of_routers = {"router.load", "router.entropy"}  # see test_router_calls.py
    declared = {"schedule.multiplier", "schedule.rise"}  # see test_schedules.py
    others = told_by_optimizers | of_many_ranks | of_routers | declared
    assert {metric for metric, _, _ in points} - {"extra"} == set(METRICS) - others


def shares(x: torch.Tensor, narrow: torch.dtype) -> dict[str, float]:
    """What underflows and saturates of float32 numbers, by what a cast to the narrower format makes of them."""
    cast, wide = x.to(narrow).double(), x.double().abs()
    about = torch.finfo(torch.float32)
    return {
        "underflow": ((wide > 0) & (wide < about.smallest_normal)).double().mean().item(),
        "saturation": (~(wide < about.max)).double().mean().item(),
        "narrow_underflow": ((x != 0) & (cast == 0)).double().mean().item(),
        "narrow_saturation": (~cast.isfinite()).double().mean().item(),
    }


def test_ranges_match_casts_of_the_probe_tokens_of_samples_and_of_gradients(trained):
    points, series, steps = trained
    seen = set()
    for at, step in enumerate(steps):
        out, _ = outputs(step.before, step.inputs)
        after = dict(step.after.named_parameters())
        for kind, name in {(m.partition(".")[0], n) for m, n, _ in points if m.endswith(".narrow_underflow")}:
            if kind == "activation":
                x = tokens(out[name]).float()
                x = x[strided(len(x))]
            else:
                x = formats.sample((after if kind == "weight" else step.grads)[name])
            for statistic, expected in shares(x, torch.float16).items():
                check(points, f"{kind}.{statistic}", name, at, expected)
            assert series[f"{kind}.underflow", name, None].facts.method == "float32, then float16"
            seen.add(kind)
    assert seen == {"activation", "weight", "gradient"}


def test_activations_match_a_plain_forward(trained):
    points, _, steps = trained
    for at, step in enumerate(steps):
        out, into = outputs(step.before, step.inputs)
        for name in [n for m, n, _ in points if m == "activation.rms"]:
            x = tokens(out[name])
            norms = x.square().mean(1).sqrt()
            check(points, "activation.rms", name, at, rms(x))
            check(points, "activation.rms_max", name, at, norms.max().item())
            rank = math.ceil(0.99 * len(norms)) - 1
            check(points, "activation.rms_q99", name, at, norms.sort().values[rank].item())
            check(points, "activation.abs_max", name, at, x.abs().max().item())
            check(points, "activation.nonfinite", name, at, 0.0)
            if into[name].is_floating_point():
                check(
                    points,
                    "activation.input_rms_max",
                    name,
                    at,
                    tokens(into[name]).square().mean(1).sqrt().max().item(),
                )
        for name in ("blocks.0", "blocks.1"):
            check(points, "block.contribution", name, at, rms(out[name] - into[name]) / rms(into[name]))
            check(points, "block.stream", name, at, rms(into[name]))
        z = tokens(out["lm_head"]).logsumexp(1)
        check(points, "output.log_z", "lm_head", at, z.mean().item())
        check(points, "output.log_z_max", "lm_head", at, z.max().item())


def test_dependency_matches_all_pairs_of_probe_tokens(trained):
    points, series, steps = trained
    for at, step in enumerate(steps):
        out, into = outputs(step.before, step.inputs)
        for name in [n for m, n, _ in points if m == "activation.spread"]:
            y = tokens(out[name])[strided(BATCH * CONTEXT)]
            distance = (y[:, None] - y[None]).square().mean(2).sqrt()
            pairs = torch.triu_indices(len(y), len(y), 1)
            far = distance[pairs[0], pairs[1]]
            check(points, "activation.spread", name, at, far.max().item())
            x = tokens(into[name])[strided(BATCH * CONTEXT)]
            apart = (x[:, None] - x[None]).square().mean(2).sqrt()[pairs[0], pairs[1]]
            keep = apart >= 1e-3 * apart.max()
            check(points, "activation.spread_mean", name, at, far[keep].mean().item())
            check(points, "activation.lipschitz", name, at, (far[keep] / apart[keep]).max().item(), tolerance=2e-3)
        assert series["activation.spread", "blocks.0", None].bound == "lower"


def test_weights_updates_and_gradients_match_copies_of_the_parameters(trained):
    points, _, steps = trained
    for at, step in enumerate(steps):
        before, after = dict(step.before.named_parameters()), dict(step.after.named_parameters())
        total = 0.0
        for name, new in after.items():
            old = before[name]
            delta = new.detach().double() - old.detach().double()
            check(points, "weight.rms", name, at, rms(new.detach()))
            check(points, "update.rms", name, at, rms(delta), tolerance=1e-3)
            check(points, "update.relative_rms", name, at, rms(delta) / rms(new.detach()), tolerance=1e-3)
            check(points, "update.unchanged", name, at, (new == old).double().mean().item())
            check(points, "gradient.rms", name, at, rms(step.grads[name]))
            total += step.grads[name].double().square().sum().item()
            if new.dim() == 1:
                check(points, "weight.abs_max", name, at, new.abs().max().item())
                check(points, "update.abs_max", name, at, delta.abs().max().item(), tolerance=1e-3)
            elif name in ("embed.weight", "position.weight"):
                check(
                    points, "weight.row_rms_max", name, at, new.detach().double().square().mean(1).sqrt().max().item()
                )
                check(
                    points, "update.row_rms_max", name, at, delta.square().mean(1).sqrt().max().item(), tolerance=1e-3
                )
            elif name == "lm_head.weight":
                check(
                    points,
                    "weight.head_norm",
                    name,
                    at,
                    WIDTH * new.detach().double().square().mean(1).sqrt().max().item(),
                )
                check(
                    points,
                    "update.head_norm",
                    name,
                    at,
                    WIDTH * delta.square().mean(1).sqrt().max().item(),
                    tolerance=1e-3,
                )
        check(points, "gradient.global_norm", "model", at, total**0.5)
        check(points, "gradient.norm_before_clip", "model", at, step.clip)


def test_spectra_match_the_singular_values(trained):
    points, _, steps = trained
    checked = 0
    for at, step in enumerate(steps):
        before, after = dict(step.before.named_parameters()), dict(step.after.named_parameters())
        for name in [n for m, n, _ in points if m == "weight.spectral_norm"]:
            w = after[name].detach().double()
            d = w - before[name].detach().double()
            factor = (w.shape[1] / w.shape[0]) ** 0.5
            sigma, change = torch.linalg.svdvals(w), torch.linalg.svdvals(d)
            check(points, "weight.spectral_norm", name, at, sigma[0].item(), tolerance=SPECTRAL_TOLERANCE)
            check(points, "weight.operator_norm", name, at, factor * sigma[0].item(), tolerance=SPECTRAL_TOLERANCE)
            check(points, "weight.stable_rank", name, at, (sigma.square().sum() / sigma[0] ** 2).item(), tolerance=1e-3)
            check(points, "update.spectral_norm", name, at, change[0].item(), tolerance=1e-3)
            check(points, "update.operator_norm", name, at, factor * change[0].item(), tolerance=1e-3)
            check(points, "update.relative", name, at, (change[0] / sigma[0]).item(), tolerance=1e-3)
            checked += 1
    assert (
        checked == STEPS * DEPTH * 4
    )  # qkv, proj, fc1, fc2 of each block; the head and embeddings have norms of their own


def test_own_updates_match_a_second_forward_with_only_that_module_changed(trained):
    points, _, steps = trained
    for at, step in enumerate(steps):
        _, into = outputs(step.before, step.inputs)
        old, new = dict(step.before.named_modules()), dict(step.after.named_modules())
        for name in [n for m, n, _ in points if m == "update.own"]:
            x = (
                into[name].reshape(-1)
                if not into[name].is_floating_point()
                else into[name].reshape(-1, into[name].shape[-1])
            )
            x = x[strided(len(x), 16)]
            with torch.no_grad():
                moved = copy.deepcopy(new[name]).double()(x.double() if x.is_floating_point() else x)
                moved -= copy.deepcopy(old[name]).double()(x.double() if x.is_floating_point() else x)
            check(points, "update.own", name, at, moved.square().mean(1).sqrt().max().item(), tolerance=2e-3)
            check(points, "update.own_mean", name, at, rms(moved), tolerance=2e-3)


def test_features_match_a_second_forward_with_everything_changed(trained):
    points, _, steps = trained
    subjects = {n for m, n, _ in points if m == "update.feature"}
    assert subjects == {"blocks.0", "blocks.1", "lm_head"}
    for at, step in enumerate(steps):
        first, second = outputs(step.before, step.inputs[:1])[0], outputs(step.after, step.inputs[:1])[0]
        for name in subjects:
            moved = tokens(second[name]) - tokens(first[name])
            check(points, "update.feature", name, at, moved.square().mean(1).sqrt().max().item(), tolerance=2e-3)
            check(points, "update.feature_mean", name, at, rms(moved), tolerance=2e-3)


def test_max_logits_match_the_materialised_attention_matrix(trained):
    points, _, steps = trained
    for at, step in enumerate(steps):
        out, _ = outputs(step.before, step.inputs)
        for block in range(DEPTH):
            qkv = out[f"blocks.{block}.attn.qkv"].view(BATCH, CONTEXT, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            logits = (qkv[0] @ qkv[1].transpose(-1, -2)).double() / (WIDTH // HEADS) ** 0.5
            hidden = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
            for head in range(HEADS):
                seen = logits[:, head].masked_fill(hidden, -math.inf)
                check(points, "attention.max_logit", f"blocks.{block}.attn", at, seen.max().item(), index=head)
                largest = logits[:, head].masked_fill(hidden, 0).abs().max().item()
                check(points, "attention.max_abs_logit", f"blocks.{block}.attn", at, largest, index=head)


def test_what_the_run_reports_is_kept_as_given(trained):
    points, series, steps = trained
    for at, step in enumerate(steps):
        check(points, "loss", "model", at, step.loss)
        check(points, "learning_rate", "0", at, 1e-2)
        check(points, "weight_decay", "0", at, 0.1)
        check(points, "monitor.coverage", "model", at, 1.0)
        check(points, "monitor.dropped", "model", at, 0.0)
        assert 0 < points["monitor.overhead_ms", "model", None][at] < 60_000
    assert points["extra", "model", None] == {STEPS - 1: 7.0}
    assert series["learning_rate", "0", None].facts.parameters == sum(p.numel() for p in steps[0].after.parameters())


def test_ceilings_hold_everywhere(trained):
    points, _, steps = trained
    for at, step in enumerate(steps):
        for name in [n for m, n, _ in points if m == "weight.operator_norm"]:
            module = name.removesuffix(".weight")
            bias = dict(step.before.named_modules())[module].bias
            radius = points["activation.input_rms_max", module, None][at]
            # weights as they were in the forward
            w = dict(step.before.named_parameters())[name].detach()
            operator = torch.linalg.matrix_norm(w, 2).item() * (w.shape[1] / w.shape[0]) ** 0.5
            assert points["activation.rms_max", module, None][at] <= operator * radius + rms(bias) + 1e-5
            assert points["activation.spread", module, None][at] <= 2 * operator * radius + 1e-5
            assert points["activation.lipschitz", module, None][at] <= operator * (1 + 1e-3)
            change = dict(step.after.named_modules())[module].bias.detach() - bias.detach()
            limit = points["update.operator_norm", name, None][at] * radius + rms(change)
            assert points["update.own", module, None][at] <= limit * (1 + 1e-3) + 1e-6


def test_facts_say_what_a_series_is(trained):
    _, series, _ = trained

    qkv = series["activation.rms_max", "blocks.1.attn.qkv", None].facts
    assert (qkv.role, qkv.block, qkv.input_normalized, qkv.fan_in, qkv.fan_out) == (
        "linear",
        "blocks.1",
        True,
        WIDTH,
        3 * WIDTH,
    )
    assert not series["activation.rms_max", "blocks.1.mlp.fc2", None].facts.input_normalized
    spectrum = series["weight.spectral_norm", "blocks.0.mlp.fc1.weight", None]
    assert (spectrum.facts.fan_out, spectrum.facts.fan_in, spectrum.facts.cadence, spectrum.facts.block) == (
        128,
        32,
        400,
        "blocks.0",
    )
    assert series["activation.rms", "blocks.0", None].facts.role == "block"
    assert series["activation.rms", "lm_head", None].facts.role == "head"
