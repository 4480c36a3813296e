"""Who steps the parameters: two optimizers, one per parameter, closures, optimizers of one's own."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.stacks.models import BLOCKS, Gpt, sentences
from tests.stacks.twin import Run, assert_measured, assert_right, train

STEPS = 7


def loop(model: Gpt, run: Run, after_backward: Callable[[int], None]) -> None:
    for place, (ids, targets) in enumerate(sentences(STEPS)):
        _, loss = model(ids, targets)
        loss.backward()
        after_backward(place)
        run.loss(loss)


def matrices_and_rest(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "blocks" in name]
    known = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in known]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("second_every", [1, 2])
def test_two_optimizers_are_one_round_even_if_one_steps_every_other_time(tmp_path, named, second_every):
    def script(run: Run) -> None:
        model = Gpt()
        matrices, rest = matrices_and_rest(model)
        first = torch.optim.Muon(matrices, lr=1e-2)
        second = torch.optim.AdamW(rest, lr=3e-3)
        run.watch(model, [first, second] if named else None)

        def step(place: int) -> None:
            first.step()
            first.zero_grad()
            if place % second_every == second_every - 1:
                second.step()
                second.zero_grad()

        loop(model, run, step)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert [*run.points["learning_rate", "0", None].values()] == pytest.approx([1e-2] * STEPS)
    assert {s for m, s, _ in run.points if m == "learning_rate"} == {"0", "1.0"}


def test_a_named_optimizer_that_never_steps_does_not_stop_the_run(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        idle = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=1e-3)
        run.watch(model, [optimizer, idle])

        def step(_: int) -> None:
            optimizer.step()
            optimizer.zero_grad()

        loop(model, run, step)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


@pytest.mark.parametrize("named", [True, False])
def test_an_optimizer_that_is_made_anew_is_followed(tmp_path, named):
    def script(run: Run) -> None:
        model = Gpt()
        box = [torch.optim.AdamW(model.parameters(), lr=1e-2)]
        run.watch(model, box[0] if named else None)

        def step(place: int) -> None:
            if place == 3:
                box[0] = torch.optim.AdamW(model.parameters(), lr=1e-3)
            box[0].step()
            box[0].zero_grad()

        loop(model, run, step)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    rates = [run.points["learning_rate", "0", None][step] for step in range(STEPS)]
    assert rates == pytest.approx([1e-2] * 3 + [1e-3] * 4)


@pytest.mark.parametrize("named", [True, False])
def test_optimizers_that_step_in_backward_are_one_round_a_backward(tmp_path, named):
    def script(run: Run) -> None:
        model = Gpt()
        each = {p: torch.optim.AdamW([p], lr=1e-2) for p in model.parameters()}

        def step(parameter: nn.Parameter) -> None:
            each[parameter].step()
            each[parameter].zero_grad()

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        run.watch(model, list(each.values()) if named else None)
        loop(model, run, lambda _: None)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_lbfgs_with_a_closure_is_measured(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
        run.watch(model, optimizer)
        for ids, targets in sentences(4):

            def closure(ids=ids, targets=targets):
                optimizer.zero_grad()
                _, loss = model(ids, targets)
                loss.backward()
                return loss

            run.loss(optimizer.step(closure))

    run = train(script, tmp_path)

    assert_measured(run, steps=4, features=(*BLOCKS, "head"))
    assert_right(run, "gradient.rms", "update.rms", "weight.rms", "weight.spectral_norm")


class SignDescent:
    """An optimizer by hand: no `param_groups`, no torch base class."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.parameters, self.lr = parameters, lr

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters:
            parameter -= self.lr * parameter.grad.sign()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def test_an_optimizer_by_hand_without_groups_is_measured(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = SignDescent(list(model.parameters()), 1e-2)
        run.watch(model, optimizer)

        def step(_: int) -> None:
            optimizer.step()
            optimizer.zero_grad()

        loop(model, run, step)

    run = train(script, tmp_path)

    names = {name for name, _ in Gpt().named_parameters()}
    assert run.measured("gradient.rms") == run.measured("update.rms") == names
    assert {*BLOCKS, "head"} <= run.measured("update.feature")
    assert {"blocks.0.attn.q", "blocks.1.mlp.2", "embed"} <= run.measured("update.own")
    assert run.points["update.rms", "blocks.0.attn.q.weight", None][1] == pytest.approx(1e-2, rel=1e-3)
    assert run.steps("activation.rms", "blocks.1") == list(range(STEPS))


def test_parameters_changed_without_any_optimizer_are_measured_by_steps_of_the_monitor(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        run.watch(model)

        def step(_: int) -> None:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
            for monitor in run.monitors:
                monitor.step()

        loop(model, run, step)

    run = train(script, tmp_path)

    names = {name for name, _ in Gpt().named_parameters()}
    assert run.measured("update.rms") == names
    assert run.steps("update.rms", "head.weight") == list(range(STEPS))
    assert {*BLOCKS, "head"} <= run.measured("update.feature")


def test_a_run_that_never_steps_an_optimizer_says_which_call_is_missing(tmp_path, caplog):
    def script(run: Run) -> None:
        model = Gpt()
        run.watch(model)
        for ids, targets in sentences(40):
            _, loss = model(ids, targets)
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
            run.loss(loss)

    train(script, tmp_path)

    said = [r.getMessage() for r in caplog.records if "step" in r.getMessage() and r.levelname == "WARNING"]
    assert len(said) == 1
    assert "monitor.step()" in said[0] or ".step()" in said[0]


def test_a_resumed_optimizer_continues_the_steps_of_its_state(tmp_path):
    earlier = Gpt()
    state = torch.optim.AdamW(earlier.parameters(), lr=1e-2)
    for ids, targets in sentences(5):
        earlier(ids, targets)[1].backward()
        state.step()
        state.zero_grad()
    saved, weights = state.state_dict(), earlier.state_dict()

    def script(run: Run) -> None:
        model = Gpt()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run.watch(model, optimizer)
        model.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(saved))  # it would share the tensors of the state

        def step(_: int) -> None:
            optimizer.step()
            optimizer.zero_grad()

        loop(model, run, step)

    run = train(script, tmp_path)

    assert run.steps("update.rms", "head.weight") == list(range(5, 5 + STEPS))
