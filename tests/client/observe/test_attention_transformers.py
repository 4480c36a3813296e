"""MaxLogit of Hugging Face's models with random weights, under each of their implementations of attention."""

import importlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from internist.observe.attention_calls import read_interface
from tests.client.observe.attention_models import causal, matched, one_step, reference

transformers = pytest.importorskip("transformers")

TOKENS, VOCABULARY = 11, 50
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    torch.manual_seed(0)


def build(name: str, implementation: str, **more: object) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**{**SMALL, "attn_implementation": implementation, **more})
    model = getattr(transformers, f"{name}ForCausalLM")(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


class Told:
    """What each attention module handed to the function that computes its heads."""

    def __init__(self) -> None:
        self.calls: dict[int, tuple[Tensor, Tensor, Tensor | None, dict[str, object]]] = {}

    def of(self, module: nn.Module) -> tuple[Tensor, Tensor, Tensor | None, dict[str, object]]:
        return self.calls[id(module)]

    def around(self, function):
        def told(module, query, key, value, attention_mask, **kwargs):
            if module.training:
                self.calls[id(module)] = query.detach(), key.detach(), attention_mask, kwargs
            return function(module, query, key, value, attention_mask, **kwargs)

        return told


@pytest.fixture
def told(monkeypatch):
    """Notes what eager attention of a model family is called with."""
    notes = Told()

    def of(family: str) -> Told:
        modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        monkeypatch.setattr(modeling, "eager_attention_forward", notes.around(modeling.eager_attention_forward))
        return notes

    return of


def ids() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, TOKENS))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("family", "name", "more"),
    [
        ("llama", "Llama", {}),
        ("gemma2", "Gemma2", {"attn_logit_softcapping": 3.0, "sliding_window": 4, "query_pre_attn_scalar": 5}),
        ("gpt_oss", "GptOss", {"sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1}),
    ],
)
def test_eager_attention_is_exact_with_softcap_window_and_sinks(told, family, name, more, padded):
    notes = told(family)
    model = build(name, "eager", **more)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    if padded:
        mask[0, -3:] = 0
    found = one_step(model, input_ids=ids(), attention_mask=mask, use_cache=False)

    for index, layer in enumerate(model.model.layers):
        q, k, _, given = notes.of(layer.self_attn)
        windowed = "sliding" in str(getattr(layer.self_attn, "layer_type", getattr(layer, "attention_type", "")))
        windowed = windowed or getattr(layer.self_attn, "sliding_window", None) is not None
        seen = causal(TOKENS, TOKENS, window=4 if windowed else None) & mask.bool()[:, None, None, :]
        expected = reference(q, k, scale=given["scaling"], softcap=given.get("softcap"), seen=seen)
        assert matched(found[f"model.layers.{index}.self_attn"], expected)


def test_sdpa_is_measured_once_for_each_layer(told):
    notes = told("llama")
    torch.manual_seed(3)
    eager, batch = build("Llama", "eager"), ids()
    sdpa = build("Llama", "sdpa")
    sdpa.load_state_dict(eager.state_dict())
    found = one_step(sdpa, input_ids=batch, use_cache=False)
    eager(input_ids=batch, use_cache=False)

    for index, layer in enumerate(eager.model.layers):
        q, k, _, given = notes.of(layer.self_attn)
        expected = reference(q, k, scale=given["scaling"], seen=causal(TOKENS, TOKENS))
        assert matched(found[f"model.layers.{index}.self_attn"], expected)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_kernels_of_the_registry_that_show_nothing_are_read_from_their_arguments(padded, window):
    notes = Told()

    def kernel(module, query, key, value, attention_mask, **kwargs):
        return (query + key.sum() + value.sum()).transpose(1, 2).contiguous(), None

    def padding(*_, attention_mask=None, **__):
        return attention_mask

    transformers.AttentionInterface.register("unseen_kernel", notes.around(kernel))
    transformers.AttentionMaskInterface.register("unseen_kernel", padding)
    name, more = ("Llama", {}) if window is None else ("Mistral", {"sliding_window": window})
    model = build(name, "unseen_kernel", **more)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    if padded:
        mask[0, :3] = 0
    found = one_step(model, input_ids=ids(), attention_mask=mask, use_cache=False)

    for index, layer in enumerate(model.model.layers):
        q, k, given_mask, given = notes.of(layer.self_attn)
        holds = torch.ones(2, TOKENS, dtype=torch.bool) if given_mask is None else given_mask.bool()
        seen = causal(TOKENS, TOKENS, window=window) & holds[:, None, None, :] & holds[:, None, :, None]
        expected = reference(q, k, scale=given["scaling"], seen=seen)
        assert matched(found[f"model.layers.{index}.self_attn"], expected)


def test_models_with_attention_of_their_own_are_measured():
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.T5ForConditionalGeneration(config).train()
    entered: list[Tensor] = []
    original = Tensor.softmax

    def noting(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if model.training:
            entered.append(x.detach().double())
        return original(x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "softmax", noting, raising=False)
        found = one_step(model, input_ids=ids(), labels=ids(), use_cache=False)

    names = [
        "encoder.block.0.layer.0.SelfAttention",
        "decoder.block.0.layer.0.SelfAttention",
        "decoder.block.0.layer.1.EncDecAttention",
    ]
    assert set(names) <= set(found)
    for name, logits in zip(names, entered, strict=False):
        assert torch.allclose(found[name][0], logits.amax((0, 2, 3)).float(), rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_of_the_registry_is_read_with_its_block_mask_and_softcap(masked):
    q, k = torch.randn(2, 4, TOKENS, 8) * 3, torch.randn(2, 2, TOKENS, 8) * 3
    block = create_block_mask(lambda _b, _h, query, key: query >= key, None, None, TOKENS, TOKENS, device="cpu")
    call = read_interface(
        nn.Linear(1, 1), q, k, k, block if masked else None, scaling=0.3, softcap=5.0, sliding_window=2, states_all=True
    )
    seen = causal(TOKENS, TOKENS) if masked else None

    assert matched(call.max_logits(), reference(q, k, scale=0.3, softcap=5.0, seen=seen))


def test_packed_sequences_of_the_registry_are_told_by_positions_or_starts():
    q, k = torch.randn(1, 4, TOKENS, 8) * 3, torch.randn(1, 2, TOKENS, 8) * 3
    positions, starts = torch.tensor([[*range(4), *range(7)]]), torch.tensor([0, 4, TOKENS])
    document = torch.tensor([0] * 4 + [1] * 7)
    expected = reference(q, k, seen=causal(TOKENS, TOKENS) & (document.unsqueeze(1) == document))
    by_starts = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 7, "max_length_k": 7}

    for packing in ({"position_ids": positions}, by_starts):
        call = read_interface(nn.Linear(1, 1), q, k, k, None, is_causal=True, **packing)
        assert matched(call.max_logits(), expected)
