"""A model that changes while it is watched: replaced parameters, swapped heads, frozen and new layers."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.stacks.models import BLOCKS, WIDTH, WORDS, Attention, Block, Gpt, Mlp, sentences
from tests.stacks.twin import Run, assert_measured, assert_right, train

STEPS = 7
OPTIONS = {"orthogonal": {"orthogonal_map": "cayley"}}
"""The default map of a matrix that is not square jumps at its first update, and stays."""
OWN_TOLERANCE = 5e-3
"""Relative; differences of float32 weights, times an input."""
CHANGED = 3
"""The step before which the change is made."""


def loop(model: nn.Module, run: Run, optimizer: torch.optim.Optimizer, change=lambda optimizer: optimizer) -> None:
    for place, (ids, targets) in enumerate(sentences(STEPS)):
        if place == CHANGED:
            optimizer = change(optimizer)
        _, loss = model(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.loss(loss)


def adamw(parameters) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-2)


def test_a_model_made_on_the_meta_device_and_emptied_after_watching_is_measured(tmp_path):
    def script(run: Run) -> None:
        with torch.device("meta"):
            model = Gpt()
        run.watch(model)
        model.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2, generator=generator)
        loop(model, run, adamw(model.parameters()))

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_weights_loaded_by_assignment_after_watching_are_measured(tmp_path):
    weights = {name: value.clone() for name, value in Gpt().state_dict().items()}

    def script(run: Run) -> None:
        model = Gpt()
        run.watch(model)
        model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
        loop(model, run, adamw(model.parameters()))

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_weights_loaded_by_assignment_in_the_middle_are_measured_from_there_on(tmp_path):
    weights = {name: value.clone() for name, value in Gpt().state_dict().items()}

    def script(run: Run) -> None:
        model = Gpt()
        optimizer = adamw(model.parameters())
        run.watch(model, optimizer)

        def change(_):
            model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
            return adamw(model.parameters())

        loop(model, run, optimizer, change)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_layers_that_are_unfrozen_are_measured_from_there_on(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        model.blocks[0].requires_grad_(False)
        optimizer = adamw(model.parameters())
        run.watch(model, optimizer)

        def change(_):
            model.requires_grad_(True)
            return adamw(model.parameters())

        loop(model, run, optimizer, change)

    run = train(script, tmp_path)

    assert_right(run)
    assert run.steps("update.rms", "blocks.0.attn.q.weight") == list(range(CHANGED, STEPS))
    assert run.steps("update.rms", "blocks.1.attn.q.weight") == list(range(STEPS))
    assert run.steps("activation.rms", "blocks.0") == list(range(STEPS))


def test_layers_that_are_frozen_stop_being_measured_and_coverage_says_so(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = adamw(model.parameters())
        run.watch(model, optimizer)

        def change(optimizer):
            model.blocks[0].requires_grad_(False)
            return optimizer

        loop(model, run, optimizer, change)

    run = train(script, tmp_path)

    states = {e.subject: e.state for e in run.coverage if e.family == "update"}
    assert states["blocks.0.attn.q.weight"] == "frozen"
    assert states["blocks.1.attn.q.weight"] == "measured"
    assert run.steps("gradient.rms", "blocks.0.attn.q.weight") == list(range(CHANGED))
    assert_right(run)


def test_a_swapped_head_is_measured_in_place_of_the_old_one(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = adamw(model.parameters())
        run.watch(model, optimizer)

        def change(_):
            model.head = nn.Linear(WIDTH, WORDS, bias=True)
            return adamw(model.parameters())

        loop(model, run, optimizer, change)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert run.steps("update.rms", "head.bias") == list(range(CHANGED, STEPS))


def test_a_block_that_is_appended_is_measured_from_there_on(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = adamw(model.parameters())
        run.watch(model, optimizer)

        def change(optimizer):
            block = Block(Attention(), Mlp())
            model.blocks.append(block)
            optimizer.add_param_group({"params": list(block.parameters())})
            return optimizer

        loop(model, run, optimizer, change)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "blocks.2", "head"))
    assert_right(run)
    assert run.steps("activation.rms", "blocks.2.mlp.0") == list(range(CHANGED, STEPS))


@contextmanager
def own_updates(linear: nn.Module, own: dict[int, float]) -> Iterator[None]:
    """By step: how far a linear layer's own change moves its output, at most, on 16 tokens of its input."""
    inputs: list[torch.Tensor] = []
    before: list[nn.Module] = []

    def as_it_is() -> nn.Module:
        twin = copy.deepcopy(linear).double().eval()
        twin._forward_hooks.clear()
        return twin

    def begin(*_) -> None:
        before.append(as_it_is())

    def end(*_) -> None:
        x = inputs[-1][[i * (len(inputs[-1]) - 1) // 15 for i in range(16)]]
        with torch.no_grad():
            own[len(own)] = (as_it_is()(x) - before[-1](x)).square().mean(1).sqrt().max().item()

    handles = [
        linear.register_forward_hook(lambda _, args, __: inputs.append(args[0].detach().double().flatten(0, 1))),
        register_optimizer_step_pre_hook(begin),
        register_optimizer_step_post_hook(end),
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm", "orthogonal"])
def test_a_parametrised_weight_keeps_its_bits_and_its_own_update_is_right_or_absent(tmp_path, kind, before):
    parametrize = functools.partial(getattr(nn.utils.parametrizations, kind), **OPTIONS.get(kind, {}))
    own: dict[int, float] = {}

    def script(run: Run) -> None:
        model = Gpt()
        if before:
            for block in model.blocks:
                parametrize(block.mlp[0])
        optimizer = adamw(model.parameters())
        run.watch(model, optimizer)

        def change(optimizer):
            if before:
                return optimizer
            for block in model.blocks:
                parametrize(block.mlp[0])
            return adamw(model.parameters())

        with nullcontext() if run.is_watched else own_updates(model.blocks[0].mlp[0], own):
            loop(model, run, optimizer, change)

    run = train(script, tmp_path)

    assert_right(run, "activation.rms", "gradient.rms", "update.rms", "weight.rms")
    assert run.steps("activation.rms", "blocks.0.mlp.0") == list(range(STEPS))
    found = run.points.get(("update.own", "blocks.0.mlp.0", None), {})
    assert found == pytest.approx({step: own[step] for step in found}, rel=OWN_TOLERANCE)
    assert run.measured("update.own") >= {"blocks.0.mlp.2", "blocks.1.attn.q"}
