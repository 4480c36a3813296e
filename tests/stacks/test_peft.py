"""peft's LoRA: adapters put in before and after watching, merged, on a frozen base."""

from collections.abc import Callable

import pytest
import torch

from tests.stacks.test_trainer import WORDS, Sentences, llama
from tests.stacks.twin import Run, Watched, assert_measured, assert_right, missing, train

peft = pytest.importorskip("peft", reason="pip install 'internist[stacks]'")

STEPS = 6
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks transformers for it
]


def adapted(model: torch.nn.Module) -> torch.nn.Module:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    return peft.get_peft_model(model, config)


def loop(run: Run, model: torch.nn.Module, each: Callable[[int], None] = lambda _: None) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    data = Sentences(STEPS)
    for place in range(STEPS):
        each(place)
        loss = model(**{name: value[None] for name, value in data[place].items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.loss(loss)


def adapters_of(run: Watched) -> set[str]:
    assert run.reference is not None
    return {name for name in run.reference.stepped if "lora_" in name}


@pytest.mark.parametrize("watch_first", [False, True], ids=["adapted_first", "watched_first"])
def test_adapters_on_a_frozen_base_are_measured(tmp_path, watch_first):
    def script(run: Run) -> None:
        model = llama()
        if watch_first:
            run.watch(model)
            loop(run, adapted(model))
        else:
            wrapped = adapted(model)
            run.watch(wrapped)
            loop(run, wrapped)

    run = train(script, tmp_path)

    assert len(adapters_of(run)) == 2 * 2 * 2
    assert_measured(run, steps=STEPS, spectra=False)
    assert_right(run)
    assert adapters_of(run) <= run.measured("weight.spectral_norm")
    frozen = {e.subject for e in run.coverage if e.kind == "parameter" and e.state == "frozen"}
    assert {s for s in frozen if s.endswith("mlp.up_proj.weight")} and not adapters_of(run) & frozen
    assert not adapters_of(run) & missing(run, "update").keys()


def test_merging_and_unmerging_adapters_between_steps_keeps_bits_and_values(tmp_path):
    def script(run: Run) -> None:
        wrapped = adapted(llama())
        run.watch(wrapped)

        def each(place: int) -> None:
            if place == 3:
                wrapped.merge_adapter()
                with torch.no_grad():
                    run.loss(wrapped(torch.full((1, 4), WORDS - 1)).logits.sum())
                wrapped.unmerge_adapter()

        loop(run, wrapped, each)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, spectra=False)
    assert_right(run)
