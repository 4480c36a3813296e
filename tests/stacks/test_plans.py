"""Plans of models that people train, small and random, pass the scaling check that judges them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from internist.demo.model import ByteGPT
from internist.mup import check

transformers = pytest.importorskip("transformers", reason="pip install 'internist[stacks]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers"),
]

WIDTHS = (32, 64, 128)
WIDE = (128, 256, 512)
ROUNDED = 2
"""Verdicts that stand so near an edge that another processor's rounding may turn them."""
WORDS, CONTEXT, HEADS = 61, 16, 4
NEAR = 0.25
"""Of an exponent over three small widths and two seeds; the smallest mistake makes a half."""


def gpt2(width: int) -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=WORDS, n_positions=CONTEXT, n_embd=width, n_layer=2, n_head=HEADS,
            bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )
    )  # fmt: skip


def llama_of(*, keys: int, tied: bool) -> Any:
    def llama(width: int) -> nn.Module:
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=WORDS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
                num_attention_heads=HEADS, num_key_value_heads=keys, tie_word_embeddings=tied, use_cache=False,
            )
        )  # fmt: skip

    return llama


def mixtral(width: int) -> nn.Module:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=WORDS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=HEADS, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
            use_cache=False,
        )
    )  # fmt: skip


class T5(nn.Module):
    """An encoder and a decoder of the same tokens. Its heads grow, which those of published sizes do not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=WORDS, d_model=width, d_kv=width // HEADS, d_ff=2 * width, num_layers=2, num_heads=HEADS,
                dropout_rate=0.0, use_cache=False, decoder_start_token_id=0,
            )
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        answer: Tensor = self.inner(input_ids=tokens, decoder_input_ids=tokens).logits
        return answer


def bert(width: int) -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=WORDS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=HEADS, max_position_embeddings=CONTEXT, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def vit(width: int) -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=HEADS,
            image_size=CONTEXT, patch_size=4, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def resnet(width: int) -> nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=width // 2, hidden_sizes=[width // 2, width], depths=[2, 2], layer_type="basic", num_labels=5
        )
    )


def byte_gpt(width: int) -> nn.Module:
    return ByteGPT(width=width, depth=2, heads=HEADS, context=CONTEXT)


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def images(_: nn.Module) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, CONTEXT, CONTEXT), torch.arange(4)


@pytest.mark.parametrize(
    ("build", "batch", "attends"),
    [
        pytest.param(byte_gpt, None, True, id="nanoGPT-like"),
        pytest.param(gpt2, None, True, id="GPT-2"),
        pytest.param(llama_of(keys=HEADS, tied=False), None, True, id="Llama"),
        pytest.param(llama_of(keys=2, tied=False), None, True, id="Llama, GQA"),
        pytest.param(llama_of(keys=2, tied=True), None, True, id="Llama, GQA, tied"),
        pytest.param(mixtral, None, True, id="Mixtral"),
        pytest.param(T5, None, True, id="T5"),
        pytest.param(bert, None, True, id="BERT"),
        pytest.param(vit, images, True, id="ViT"),
        pytest.param(resnet, images, False, id="ResNet"),
        pytest.param(perceptron, None, False, id="MLP"),
    ],
)
def test_a_planned_model_passes_the_check_of_its_plan(build: Any, batch: Any, attends: bool) -> None:
    found = check(build, widths=WIDTHS, optimizer="adamw", batch=batch, seeds=2, steps=2)

    exponents = {(one.metric, one.role): one.exponent for one in found.exponents if one.window == "init"}
    assert found.verdict != "FAIL", found.table()
    assert exponents["activation.rms", "head"] == pytest.approx(-0.5, abs=2 * NEAR)
    assert exponents["weight.operator_norm", "hidden"] == pytest.approx(0.0, abs=NEAR)
    if attends:
        assert exponents["attention.max_abs_logit", "attention"] == pytest.approx(-0.5, abs=NEAR)


@pytest.mark.parametrize(
    ("build", "decided"),
    [pytest.param(byte_gpt, 14, id="nanoGPT-like"), pytest.param(llama_of(keys=2, tied=False), 18, id="Llama, GQA")],
)
def test_from_a_width_of_128_on_four_seeds_decide_most_exponents(build: Any, decided: int) -> None:
    """With more seeds than sizes each seed is fitted by itself: what is one's at every size does not widen intervals.

    Narrower models do not tell more with more seeds, but wrongly: 16 tokens are not few beside a width of 32.
    """
    found = check(build, widths=WIDE, optimizer="adamw", seeds=4, steps=2)

    verdicts = [one.verdict for one in found.exponents if one.judged]
    assert len(verdicts) == 19
    assert "FAIL" not in verdicts, found.table()
    assert verdicts.count("PASS") >= decided - ROUNDED, found.table()
