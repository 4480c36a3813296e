"""Hugging Face's Trainer, with random models of the transformers library."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.client.points import records
from tests.stacks.twin import Run, Watched, assert_coverage_is_honest, assert_measured, assert_right, train

transformers = pytest.importorskip("transformers", reason="pip install 'internist[stacks]'")

STEPS = 3
WORDS, CONTEXT = 32, 8
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),  # pinned memory without an accelerator
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers"),
]


class Sentences(torch.utils.data.Dataset):
    """Random ids, the same at every reading."""

    def __init__(self, count: int) -> None:
        self._ids = torch.randint(3, WORDS, (count, CONTEXT), generator=torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": self._ids[place], "labels": self._ids[place]}


def gpt2(**options: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return transformers.AutoModelForCausalLM.from_config(config, **options)


def llama(**options: Any) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, **options)


def gemma2(**options: Any) -> nn.Module:
    config = transformers.Gemma2Config(
        vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, query_pre_attn_scalar=4, sliding_window=4, attn_logit_softcapping=3.0,
        max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, **options)


def bert(**options: Any) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, pad_token_id=0,
    )  # fmt: skip
    return transformers.AutoModelForMaskedLM.from_config(config, **options)


BLOCKS = {gpt2: "transformer.h", llama: "model.layers", gemma2: "model.layers", bert: "bert.encoder.layer"}
ATTENTION = {gpt2: "attn", llama: "self_attn", gemma2: "self_attn", bert: "attention.self"}


def attentions(make: Any) -> tuple[str, ...]:
    return tuple(f"{BLOCKS[make]}.{i}.{ATTENTION[make]}" for i in range(2))


def blocks(make: Any) -> tuple[str, ...]:
    return tuple(f"{BLOCKS[make]}.{i}" for i in range(2))


def trainer(model: nn.Module, directory: Path, **options: Any) -> Any:
    settings = {
        "output_dir": str(directory), "max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "logging_steps": 1, "logging_strategy": "steps", "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 0, **options,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(**settings)
    return transformers.Trainer(model=model, args=arguments, train_dataset=Sentences(64), eval_dataset=Sentences(4))


def losses_of(run: Run, trained: Any) -> None:
    for entry in trained.state.log_history:
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in entry:
                run.loss(entry[name])


def train_with(
    make: Any, tmp_path: Path, *, reference: bool = True, attention: str = "sdpa", dtype: Any = None, **options: Any
) -> Watched:
    def script(run: Run) -> None:
        torch._dynamo.reset()
        model = make(attn_implementation=attention, **({"dtype": dtype} if dtype else {}))
        run.watch(model)
        trained = trainer(model, tmp_path / "out", **options)
        trained.train()
        losses_of(run, trained)

    return train(script, tmp_path, reference=reference)


@pytest.mark.parametrize(
    ("make", "attention"),
    [
        (gpt2, "eager"),
        (llama, "eager"),
        (gemma2, "eager"),
        (bert, "eager"),
        (gpt2, "sdpa"),
        (llama, "sdpa"),
        (bert, "sdpa"),
    ],
)
def test_a_model_of_the_library_is_the_same_bits_and_measured_whole(tmp_path, make, attention):
    run = train_with(make, tmp_path, attention=attention)

    assert_measured(run, steps=STEPS, attention=attentions(make), features=blocks(make), spectra=False, loss=True)
    assert_right(run)
    assert run.measured("weight.spectral_norm")


def test_models_left_in_eval_mode_by_from_pretrained_are_measured_in_a_loop_of_ones_own(tmp_path):
    saved = tmp_path / "saved"
    torch.manual_seed(1)
    llama().save_pretrained(saved)

    def script(run: Run) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(saved)
        assert not model.training
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run.watch(model, optimizer)
        data = Sentences(8)
        for place in range(STEPS):
            loss = model(**{name: value[None] for name, value in data[place].items()}).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, attention=attentions(llama), features=blocks(llama))
    assert_right(run)


def test_accumulated_gradients_are_one_step(tmp_path):
    run = train_with(gpt2, tmp_path, gradient_accumulation_steps=3)

    assert_measured(run, steps=STEPS, attention=attentions(gpt2), features=blocks(gpt2), spectra=False)
    assert_right(run)


def test_a_model_compiled_by_the_trainer_is_the_same_bits_and_measured(tmp_path):
    run = train_with(llama, tmp_path, reference=False, torch_compile=True, torch_compile_backend="aot_eager")

    names = {name for name, _ in llama().named_parameters()}
    assert run.measured("update.rms") == names
    assert run.steps("update.rms", "lm_head.weight") == list(range(STEPS))
    assert run.measured("activation.rms") >= {*blocks(llama), "lm_head", "model.layers.0.mlp.up_proj"}
    assert run.measured("attention.max_logit") == set(attentions(llama))
    assert run.steps("loss")[-1:] == [STEPS - 1]  # the compiled model was made after watch(), and found meanwhile
    assert_coverage_is_honest(run)


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision_is_the_same_bits_and_measured_whole(tmp_path, how):
    options = {"bf16": True} if how == "autocast" else {"dtype": torch.bfloat16}
    run = train_with(llama, tmp_path, **options)

    assert_measured(run, steps=STEPS, attention=attentions(llama), features=blocks(llama), spectra=False)
    assert_right(run, "activation.rms", "gradient.rms", "update.rms", "weight.rms")


def test_evaluations_between_steps_change_no_value(tmp_path):
    run = train_with(gpt2, tmp_path, eval_strategy="steps", eval_steps=1)

    assert_measured(run, steps=STEPS, attention=attentions(gpt2), features=blocks(gpt2), spectra=False)
    assert_right(run)


def test_checkpointed_training_is_the_same_bits_and_measured_once(tmp_path):
    run = train_with(llama, tmp_path, gradient_checkpointing=True)

    assert_measured(run, steps=STEPS, attention=attentions(llama), features=blocks(llama), spectra=False)
    assert_right(run)


def test_a_run_resumed_from_a_checkpoint_goes_on_at_its_step(tmp_path):
    def script(run: Run) -> None:
        directory = tmp_path / ("watched" if run.is_watched else "bare")
        model = gpt2()
        first = trainer(model, directory, max_steps=2, save_strategy="steps", save_steps=2)
        first.train()
        losses_of(run, first)
        model = gpt2()
        run.watch(model)
        second = trainer(model, directory)
        second.train(resume_from_checkpoint=True)
        losses_of(run, second)

    run = train(script, tmp_path, reference=False)

    assert run.steps("update.rms", "transformer.ln_f.weight") == [2]
    assert run.steps("activation.rms", "transformer.h.1") == [2]
    assert run.steps("loss") == [2]


@pytest.mark.parametrize("how", ["callback", "report_to"])
def test_the_trainers_callback_watches_its_model_with_the_same_bits(tmp_path, how):
    from internist.integrations.transformers import InternistCallback

    def script(run: Run) -> None:
        model = gpt2()
        if not run.is_watched:
            run.watch(model)
        run.keep(model)
        options = {"report_to": "internist"} if run.is_watched and how == "report_to" else {}
        trained = trainer(model, tmp_path / "out", eval_strategy="steps", eval_steps=2, **options)
        if run.is_watched:
            if how == "report_to":
                trained.pop_callback(InternistCallback)  # made as users make it; the test needs one that is offline
            trained.add_callback(callback := InternistCallback(**run.options))
        trained.train()
        losses_of(run, trained)
        if run.is_watched:
            run.adopt(callback.monitor)
            assert trained.pop_callback(InternistCallback) is callback

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, attention=attentions(gpt2), features=blocks(gpt2), spectra=False, loss=True)
    assert_right(run)
    assert len(run.steps("train/loss")) == STEPS
    assert run.steps("eval/loss")
    assert records(run.directory)[0].start.config["max_steps"] == STEPS
