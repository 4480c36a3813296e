"""Accelerate: prepared models and optimizers, accumulation, clipping, mixed precision."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from tests.client.points import records
from tests.stacks.models import ATTENTIONS, BLOCKS, Attention, Gpt, cross_entropy, sentences
from tests.stacks.twin import Run, assert_measured, assert_right, train

accelerate = pytest.importorskip("accelerate", reason="pip install 'internist[stacks]'")

from internist.integrations.accelerate import InternistTracker  # noqa: E402  # it needs the library

STEPS = 5


@pytest.fixture(autouse=True)
def one_accelerator_a_test() -> Iterator[None]:
    """Its state is one for the process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def script(
    *, watch_prepared: bool, accumulate: int = 1, precision: str = "no", tracked: bool = False
) -> Callable[[Run], None]:
    def run_it(run: Run) -> None:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        model: nn.Module = Gpt(lambda: Attention(dropout=0.1))
        run.keep(model)
        tracker = InternistTracker(model, **run.options) if tracked and run.is_watched else None
        accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision, log_with=tracker
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        if tracker is not None:
            accelerator.init_trackers("shop", {"lr": 1e-2})
            run.adopt(accelerator.get_tracker("internist", unwrap=True).monitor)
        elif not watch_prepared:
            run.watch(model, optimizer)
        model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
        if watch_prepared:
            run.watch(model, optimizer)
        for ids, targets in sentences(STEPS * accumulate):
            with accelerator.accumulate(model):
                loss = cross_entropy(model(ids), targets)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            run.loss(loss)
            accelerator.log({"mean": loss.item()}, step=len(run.losses) - 1)
        accelerator.end_training()

    return run_it


@pytest.mark.parametrize("watch_prepared", [True, False], ids=["prepared", "before_prepare"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_prepared_model_is_the_same_bits_and_measured_whole(tmp_path, accumulate, watch_prepared):
    run = train(script(watch_prepared=watch_prepared, accumulate=accumulate), tmp_path)

    assert_measured(run, steps=STEPS, attention=ATTENTIONS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert max(run.points["gradient.global_norm", "model", None].values()) <= 0.1 * (1 + 1e-4)
    assert run.steps("gradient.norm_before_clip") == list(range(STEPS))


def test_mixed_precision_is_the_same_bits_and_measured_whole(tmp_path):
    run = train(script(watch_prepared=True, precision="bf16"), tmp_path)

    assert_measured(run, steps=STEPS, attention=ATTENTIONS, features=(*BLOCKS, "head"))
    assert_right(run, "activation.rms", "gradient.rms", "update.rms", "weight.rms")


def test_a_tracker_watches_its_model_with_the_same_bits_and_keeps_what_is_logged(tmp_path):
    run = train(script(watch_prepared=False, tracked=True), tmp_path)

    assert_measured(run, steps=STEPS, attention=ATTENTIONS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert run.steps("mean") == list(range(STEPS))
    found = records(run.directory)
    assert {**found[0].start.config, **next(r.outline for r in found if r.outline).config} == {"lr": 1e-2}
    assert [r.finish.outcome for r in found if r.finish] == ["finished"]
