"""The plain loop, and what people write around it."""

import copy

import pytest
import torch
from torch import nn

import internist
from tests.client.points import read
from tests.stacks.models import BLOCKS, CONTEXT, WORDS, Attention, Gpt, cross_entropy, sentences
from tests.stacks.twin import Run, assert_coverage_is_honest, assert_measured, assert_right, train

STEPS = 7


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def plain_loop(run: Run) -> None:
    model = Gpt(lambda: Attention(dropout=0.1))
    optimizer = adamw(model)
    run.watch(model, optimizer)
    for ids, targets in sentences(STEPS):
        _, loss = model(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        run.loss(loss)


def test_a_plain_loop_is_the_same_bits_and_measured_whole(tmp_path):
    run = train(plain_loop, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert run.steps("gradient.norm_before_clip") == list(range(STEPS))


LOSS_AT = {"tuple": 1, "loss first": 0, "mapping": "loss"}


class Answering(nn.Module):
    """A root that returns its loss in one of the ways people return it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.gpt, self.way = Gpt(), way

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> object:
        logits, loss = self.gpt(ids, targets)
        if self.way == "tuple":
            return logits, loss
        if self.way == "loss first":
            return loss, logits
        return loss if self.way == "scalar" else {"loss": loss, "logits": logits}


@pytest.mark.parametrize("way", ["tuple", "loss first", "scalar", "mapping"])
def test_the_loss_is_found_where_the_root_returns_it(tmp_path, way):
    def script(run: Run) -> None:
        model = Answering(way)
        optimizer = adamw(model)
        run.watch(model, optimizer)
        for ids, targets in sentences(STEPS):
            answer = model(ids, targets)
            loss = answer if way == "scalar" else answer[LOSS_AT[way]]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)
            seen.append(loss.item())

    seen: list[float] = []
    run = train(script, tmp_path)

    assert list(run.points.get(("loss", "model", None), {}).values()) == pytest.approx(seen[:STEPS], rel=1e-6)


class OwnParameters(Gpt):
    """A root that holds parameters itself and returns its loss alone, as speed runs do."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(2))

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for scale, block in zip(self.scales, self.blocks, strict=True):
            x = scale * block(x)
        return cross_entropy(self.head(self.norm(x)), targets)


def test_a_root_that_returns_its_loss_alone_is_not_called_silent(tmp_path):
    def script(run: Run) -> None:
        model = OwnParameters()
        optimizer = adamw(model)
        run.watch(model, optimizer)
        for ids, targets in sentences(STEPS):
            loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"), but=("model",))
    assert_right(run)
    assert "scales" in run.measured("update.rms")
    assert [
        entry
        for entry in run.coverage
        if entry.subject == "model" and entry.state == "silent" and entry.family != "loss"
    ] == []


def test_a_model_saved_whole_while_it_is_watched_carries_nothing_of_the_monitor(tmp_path):
    saved = tmp_path / "model.pt"

    def script(run: Run) -> None:
        model = Gpt()
        optimizer = adamw(model)
        run.watch(model, optimizer)
        for ids, targets in sentences(3):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)
            torch.save(model, saved)

    train(script, tmp_path, reference=False)

    assert b"internist" not in saved.read_bytes()


def test_gradient_accumulation_is_one_step_of_several_forwards(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = adamw(model)
        run.watch(model, optimizer)
        for place, (ids, targets) in enumerate(sentences(12)):
            loss = cross_entropy(model(ids), targets) / 3
            loss.backward()
            run.loss(loss)
            if place % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()

    run = train(script, tmp_path)

    assert_measured(run, steps=4, features=(*BLOCKS, "head"))
    assert_right(run)


def test_an_evaluation_between_steps_leaves_no_trace_in_the_values(tmp_path):
    def script(run: Run) -> None:
        model = Gpt(lambda: Attention(dropout=0.1))
        optimizer = adamw(model)
        run.watch(model, optimizer)
        for ids, targets in sentences(STEPS):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)
            model.eval()
            with torch.no_grad():
                for other, expected in sentences(2):
                    run.loss(model(other * 0, expected)[1])
            model.train()

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_a_model_in_eval_mode_that_is_trained_is_measured(tmp_path):
    def script(run: Run) -> None:
        model = Gpt().eval()
        optimizer = adamw(model)
        run.watch(model, optimizer)
        for ids, targets in sentences(STEPS):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_tied_weights_are_measured_once_with_both_roles(tmp_path):
    def script(run: Run) -> None:
        model = Gpt(tied=True)
        optimizer = adamw(model)
        run.watch(model, optimizer)
        for ids, targets in sentences(STEPS):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert {"weight.row_rms_max", "weight.head_norm"} <= {m for m, s, _ in run.points if s == "embed.weight"}
    assert "head.weight" not in run.measured("update.rms")


def test_an_averaged_copy_of_the_model_is_not_measured(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = adamw(model)
        run.watch(model, optimizer)
        average = copy.deepcopy(model)
        run.keep(average)
        for ids, targets in sentences(STEPS):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, new in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(new, 0.1)
            run.loss(loss)
            run.loss(average(ids * 0, targets)[1])

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_a_scaler_that_skips_a_step_is_followed(tmp_path):
    def script(run: Run) -> None:
        model = Gpt()
        optimizer = adamw(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        run.watch(model, optimizer)
        for place, (ids, targets) in enumerate(sentences(STEPS)):
            _, loss = model(ids, targets)
            scaler.scale(loss).backward()
            if place == 4:
                model.norm.weight.grad[0] = float("inf")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            run.loss(loss)
            run.loss(scaler.get_scale())

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS - 1, features=(*BLOCKS, "head"))
    assert_right(run, "gradient.rms", "update.rms", "weight.rms")


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_are_measured_once(tmp_path, reentrant):
    def script(run: Run) -> None:
        model = Gpt(lambda: Attention(dropout=0.1), checkpoints=reentrant)
        optimizer = adamw(model)
        run.watch(model, optimizer)
        for ids, targets in sentences(STEPS):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path)

    inside = {"activation"} if reentrant else set()  # there blocks run without gradients, and again in backward
    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"), attention=("blocks.0.attn", "blocks.1.attn"))
    assert_right(run, *({"gradient.rms", "update.rms", "weight.rms"} if inside else ()))


def test_a_notebook_cell_that_is_run_again_finishes_the_earlier_monitor(tmp_path):
    kept = []  # a monitor ends with its model

    def cell() -> internist.Monitor:
        torch.manual_seed(0)
        model = Gpt()
        kept[:] = [model]
        optimizer = adamw(model)
        monitor = internist.watch(model, optimizer, every=1, mode="offline", directory=tmp_path)
        for ids, targets in sentences(4):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return monitor

    first = cell()
    second = cell()

    assert first.is_finished
    assert not second.is_finished
    second.finish()
    points, _, _ = read(first.directory)
    again, _, _ = read(second.directory)
    assert points["update.rms", "head.weight", None] == again["update.rms", "head.weight", None]
    assert sorted(again["activation.rms", "blocks.1", None]) == [0, 1, 2, 3]


def test_a_call_by_vmap_does_not_blind_the_run(tmp_path):
    def script(run: Run) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = adamw(model)
        run.watch(model, optimizer)
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss_of(parameters, x):
            return torch.func.functional_call(model, parameters, (x[None],)).square().mean()

        generator = torch.Generator().manual_seed(1)
        for place in range(STEPS):
            x = torch.randn(4, 6, generator=generator)
            if place == 2:
                each = torch.func.vmap(torch.func.grad(loss_of), (None, 0))(weights, x)
                run.loss(sum(g.square().sum() for g in each.values()))
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path, reference=False)

    for name in ("0", "2"):
        assert set(run.steps("activation.rms", name)) >= set(range(STEPS)) - {2}
        assert run.steps("update.rms", f"{name}.weight") == list(range(STEPS))
    assert all(value == value for value in run.points["activation.rms", "2", None].values())
    assert_coverage_is_honest(run)


def test_constants_of_the_models_fit_the_batches():
    ids, targets = next(sentences(1))

    assert Gpt()(ids, targets)[0].shape == (2, CONTEXT, WORDS)
