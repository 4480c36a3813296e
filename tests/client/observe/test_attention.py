"""MaxLogit of every kind of attention, against what enters its softmax in float64."""

import functools
import math
import sys
import threading
import types
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import bias as attention_bias
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import internist
from internist.model.outline import WatchedModule
from internist.observe.attention import AttentionCapture
from internist.observe.faults import Faults
from internist.observe.sampling import Sampling
from internist.observe.taps import Gate
from internist.record.series_book import SeriesBook
from tests.client.observe.attention_models import (
    BATCH,
    HEADS,
    LOWEST,
    TOKENS,
    WIDTH,
    Attention,
    Model,
    causal,
    eager,
    matched,
    one_step,
    reference,
)
from tests.client.points import read


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    torch.manual_seed(0)


def measured(compute, *, key_heads=HEADS, tokens=TOKENS):
    """What was measured of an attention layer, and its queries and keys as the softmax got them."""
    model = Model(Attention(compute, key_heads=key_heads))
    found = one_step(model, torch.randn(BATCH, tokens, WIDTH))
    return found, 3 * model.attn.q, 3 * model.attn.k


# ---- softmax written by hand ---------------------------------------------------------------------------------------

CAPTURED = functools.partial(functional.softmax, dim=-1)
SOFTMAXES = {
    "functional": lambda x: functional.softmax(x, dim=-1),
    "torch": lambda x: torch.softmax(x, -1),
    "method": lambda x: x.softmax(dim=-1),
    "special": lambda x: torch.special.softmax(x, -1),
    "internal": lambda x: torch._softmax(x, 3, False),
    "module": nn.Softmax(dim=-1),
    "captured before": CAPTURED,
    "in float32": lambda x: functional.softmax(x, dim=-1, dtype=torch.float32),
    "of a transposed matrix": lambda x: x.transpose(-1, -2).softmax(-2).transpose(-1, -2),
}


@pytest.mark.parametrize("softmax", SOFTMAXES.values(), ids=SOFTMAXES)
def test_every_way_to_a_softmax_is_seen(softmax):
    found, q, k = measured(eager(softmax))

    assert matched(found["attn"], reference(q, k))


HIDING = {
    "infinity": -torch.inf,
    "a large number": -1e9,
    "the number often written": -1e4,
    "the lowest number": LOWEST,
}


@pytest.mark.parametrize("value", HIDING.values(), ids=HIDING)
@pytest.mark.parametrize("adds", [False, True])
def test_what_is_hidden_by_hand_does_not_count(value, adds):
    seen = causal()
    bias = torch.zeros(TOKENS, TOKENS).masked_fill(~seen, value)
    found, q, k = measured(eager(CAPTURED, (lambda x: x + bias) if adds else (lambda x: x.masked_fill(~seen, value))))

    assert matched(found["attn"], reference(q, k, seen=seen))


def test_heads_folded_into_the_batch_are_told_apart():
    def compute(_, q, k, v):
        logits = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)) / math.sqrt(q.shape[-1])
        return torch.bmm(logits.softmax(-1), v.flatten(0, 1)).unflatten(0, (-1, HEADS))

    found, q, k = measured(compute)

    assert matched(found["attn"], reference(q, k))


def test_heads_behind_the_queries_are_told_apart():
    def compute(_, q, k, v):
        logits = torch.einsum("bhtd,bhsd->bths", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("bths,bhsd->bhtd", logits.softmax(-1), v)

    found, q, k = measured(compute)

    assert matched(found["attn"], reference(q, k))


def test_grouped_heads_in_five_dimensions_are_told_apart():
    def compute(_, q, k, v):
        logits = torch.einsum("bkgtd,bksd->bkgts", q.unflatten(1, (2, -1)), k) / math.sqrt(q.shape[-1])
        return torch.einsum("bkgts,bksd->bkgtd", logits.softmax(-1), v).flatten(1, 2)

    found, q, k = measured(compute, key_heads=2)

    assert matched(found["attn"], reference(q, k))


EXPERTS = 6


class Router(nn.Module):
    """Scores of experts for each token."""

    def __init__(self, *, einsum):
        super().__init__()
        self.gate, self.einsum = nn.Linear(WIDTH, EXPERTS, bias=False), einsum

    def forward(self, x):
        scores = torch.einsum("btd,ed->bte", x, self.gate.weight) if self.einsum else self.gate(x)
        return scores.softmax(-1).mean()


@pytest.mark.parametrize("einsum", [False, True])
def test_a_router_inside_attention_is_not_taken_for_it(einsum):
    model = Model(
        Attention(lambda self, q, k, v: eager(CAPTURED)(self, q, k, v) * self.router(q.transpose(1, 2).flatten(2)))
    )
    model.attn.router = Router(einsum=einsum)
    found = one_step(model, torch.randn(BATCH, TOKENS, WIDTH))

    assert matched(found["attn"], reference(3 * model.attn.q, 3 * model.attn.k))


@pytest.mark.parametrize("einsum", [False, True])
def test_a_router_beside_attention_in_a_block_named_after_it_is_not_taken_for_it(einsum):
    class AttentionBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.router = Attention(eager(CAPTURED)), Router(einsum=einsum)

        def forward(self, x):
            return x + self.attn(x) * self.router(x)

    class AttentionModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(AttentionBlock() for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = AttentionModel()
    found = one_step(model, torch.randn(1, TOKENS, WIDTH))

    assert sorted(found) == ["blocks.0.attn", "blocks.1.attn"]
    for index, block in enumerate(model.blocks):
        assert matched(found[f"blocks.{index}.attn"], reference(3 * block.attn.q, 3 * block.attn.k))


def test_attention_of_a_block_without_a_name_for_it_belongs_to_the_block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            q, k = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.first, self.second))
            return x + functional.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2)

    class AttentionModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    assert sorted(one_step(AttentionModel(), torch.randn(BATCH, TOKENS, WIDTH))) == ["blocks.0", "blocks.1"]


def test_a_classifiers_softmax_outside_of_attention_is_not_measured():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, TOKENS)

        def forward(self, x):
            return self.head(self.body(x)).softmax(-1)

    assert not one_step(Classifier(), torch.randn(HEADS, TOKENS, WIDTH))


def test_features_that_pass_a_softmax_in_linear_attention_are_no_logits():
    def compute(_, q, k, v):
        return q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v)

    found, _, _ = measured(compute)

    assert not found


def test_logits_shifted_by_their_maximum_are_absent_and_not_zero():
    found, _, _ = measured(eager(CAPTURED, lambda x: x - x.amax(-1, keepdim=True).detach()))

    assert "attn" not in found or not found["attn"].isfinite().any()


def test_the_innermost_attention_is_the_subject():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Attention(lambda self, q, k, v: self.mix(q, k, v))
            self.inner.mix = Mix()

        def forward(self, x):
            return self.inner(x)

    class Mix(nn.Module):
        """On the stack above attention, and no attention itself."""

        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, q, k, v):
            return eager(CAPTURED)(self, q, k, v) * self.gain

    class OuterAttention(Outer):
        pass

    model = Model(OuterAttention())
    found = one_step(model, torch.randn(BATCH, TOKENS, WIDTH))

    assert list(found) == ["attn.inner"]
    assert matched(found["attn.inner"], reference(3 * model.attn.inner.q, 3 * model.attn.inner.k))


# ---- torch's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["upper_left", "lower_right"])
def test_the_causal_biases_of_torch_are_read(variant):
    keys = TOKENS + 5
    make = getattr(attention_bias, f"causal_{variant}")

    def compute(_, q, k, v):
        k, v = (torch.cat((x, x[:, :, :5]), dim=2) for x in (k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=make(TOKENS, keys))

    found, q, k = measured(compute)
    seen = causal(TOKENS, keys) if variant == "lower_right" else causal(keys, keys)[:TOKENS]

    assert matched(found["attn"], reference(q, torch.cat((k, k[:, :, :5]), dim=2), seen=seen))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_is_measured_with_weights_and_without(need_weights, batch_first):
    class Mha(nn.MultiheadAttention):
        def forward(self, x):
            hidden = ~causal()
            return super().forward(x, x, x, attn_mask=hidden, need_weights=need_weights)[0]

    model = Model(Mha(WIDTH, HEADS, batch_first=batch_first))
    with torch.no_grad():
        model.attn.in_proj_weight.mul_(3)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    found = one_step(model, x if batch_first else x.transpose(0, 1))
    q, k, _ = functional.linear(x, model.attn.in_proj_weight, model.attn.in_proj_bias).chunk(3, dim=-1)
    q, k = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (q, k))

    assert matched(found["attn"], reference(q, k, seen=causal()))


def test_the_fast_path_of_frozen_multihead_attention_is_read():
    class Mha(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x, key_padding_mask=hidden)[0]

    hidden = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    hidden[:, -3:] = True
    model = Model(Mha(WIDTH, HEADS, batch_first=True).eval().requires_grad_(False))
    x = torch.randn(BATCH, TOKENS, WIDTH)
    monitored = one_step(model, x)
    q, k, _ = functional.linear(x, model.attn.in_proj_weight, model.attn.in_proj_bias).chunk(3, dim=-1)
    q, k = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (q, k))

    assert matched(monitored["attn"], reference(q, k, seen=~hidden[:, None, None, :]))


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
DOCUMENTS = torch.tensor([0] * 5 + [1] * 7)


def relative(score, b, h, query, key):
    return score + SLOPES[h] * (key - query)


def soft(score, b, h, query, key):
    return 5.0 * torch.tanh(score / 5.0)


def of_one_document(b, h, query, key):
    return (DOCUMENTS[query] == DOCUMENTS[key]) & (query >= key)


DISTANCE = (torch.arange(TOKENS) - torch.arange(TOKENS).unsqueeze(1)) * SLOPES.view(1, HEADS, 1, 1)
TOGETHER = (DOCUMENTS.unsqueeze(1) == DOCUMENTS) & causal()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize(
    ("score_mod", "expected"), [(None, {}), (relative, {"bias": DISTANCE}), (soft, {"softcap": 5.0})]
)
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("key_heads", [HEADS, 2])
def test_flex_attention_is_measured_with_its_functions(score_mod, expected, masks, key_heads):
    block_mask = create_block_mask(of_one_document, None, None, TOKENS, TOKENS, device="cpu") if masks else None

    held = flex_attention  # a name that no module has

    def compute(_, q, k, v):
        q, k, v = (x.detach() for x in (q, k, v))  # on a CPU it has no backward
        return held(q, k, v, score_mod, block_mask, enable_gqa=key_heads != HEADS)

    found, q, k = measured(compute, key_heads=key_heads)

    assert matched(found["attn"], reference(q, k, seen=TOGETHER if masks else None, **expected))


# ---- flash_attn ----------------------------------------------------------------------------------------------------


def attend(q, k, v, **_):
    """Something of the right shape and with a gradient: (..., T, H, D)."""
    return q + k.sum() + v.sum()


def stand_in():
    """A module with the signatures of flash_attn 2.8."""

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        return attend(q, k, v)

    def flash_attn_qkvpacked_func(
        qkv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        return attend(*qkv.unbind(2))

    def flash_attn_kvpacked_func(
        q, kv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        return attend(q, *kv.unbind(2))

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        return attend(q, k, v)

    module = types.ModuleType("flash_attn")
    for each in (flash_attn_func, flash_attn_qkvpacked_func, flash_attn_kvpacked_func, flash_attn_varlen_func):
        setattr(module, each.__name__, each)
    return module


@pytest.fixture
def flash_attn(monkeypatch):
    module = stand_in()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


FLASH = {
    "plain": ({}, {}),
    "causal": ({"causal": True}, {"seen": causal()}),
    "window": ({"causal": True, "window_size": (4, 0)}, {"seen": causal(window=5)}),
    "window both ways": ({"window_size": (2, 2)}, {"seen": causal(window=3) | causal(window=3).T}),
    "softcap": ({"softcap": 5.0, "softmax_scale": 0.7}, {"softcap": 5.0, "scale": 0.7}),
    "alibi": ({"alibi_slopes": SLOPES, "causal": True}, {"bias": -DISTANCE.abs(), "seen": causal()}),
}


@pytest.mark.parametrize(("given", "expected"), FLASH.values(), ids=FLASH)
@pytest.mark.parametrize("packing", ["", "kv", "qkv"])
def test_flash_attention_is_read_by_the_names_of_its_arguments(flash_attn, given, expected, packing):
    def compute(_, q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if packing == "qkv":
            out = flash_attn.flash_attn_qkvpacked_func(torch.stack((q, k, v), 2), **given)
        elif packing == "kv":
            out = flash_attn.flash_attn_kvpacked_func(q, torch.stack((k, v), 2), **given)
        else:
            out = flash_attn.flash_attn_func(q, k, v, **given)
        return out.transpose(1, 2)

    found, q, k = measured(compute)

    assert matched(found["attn"], reference(q, k, **expected))


@pytest.mark.parametrize("window", [(-1, -1), (2, 0)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_packed_sequences_do_not_see_each_other(flash_attn, window, is_causal):
    starts = torch.tensor([0, 5, TOKENS], dtype=torch.int32)

    def compute(_, q, k, v):
        out = [
            flash_attn.flash_attn_varlen_func(
                q1.transpose(0, 1), k1.transpose(0, 1), v1.transpose(0, 1), starts, starts, 7, 7,
                causal=is_causal, window_size=window,
            ).transpose(0, 1)
            for q1, k1, v1 in zip(q, k, v, strict=True)
        ]  # fmt: skip
        return torch.stack(out)

    found, q, k = measured(compute)
    seen = DOCUMENTS.unsqueeze(1) == DOCUMENTS
    if window != (-1, -1):
        seen = seen & causal(window=3)
    elif is_causal:
        seen = TOGETHER

    assert matched(found["attn"], reference(q, k, seen=seen))


# ---- told by the model's own code ----------------------------------------------------------------------------------


def test_a_kernel_of_ones_own_is_told_of():
    bias = torch.randn(HEADS, TOKENS, TOKENS)

    def compute(self, q, k, v):
        internist.attention_logits(self, q, k, scale=0.3, softcap=4.0, mask=bias, is_causal=True, enable_gqa=True)
        return q + k.sum() + v.sum()

    found, q, k = measured(compute, key_heads=2)

    assert matched(found["attn"], reference(q, k, scale=0.3, softcap=4.0, bias=bias, seen=causal()))


@pytest.mark.parametrize("arguments", [(None, None), ("q", 3), (torch.ones(2), torch.ones(3, 3))])
def test_telling_nonsense_never_raises(arguments):
    def compute(self, q, k, v):
        internist.attention_logits(self, *arguments)
        return eager(CAPTURED)(self, q, k, v)

    found, q, k = measured(compute)

    assert matched(found["attn"], reference(q, k))


def test_without_a_monitor_telling_does_nothing():
    internist.attention_logits(nn.Linear(2, 2), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo reads it of whatever it is given
@pytest.mark.filterwarnings("ignore:`torch.jit")  # dynamo imports what uses it
def test_a_compiled_models_softmax_is_seen_in_the_replay():
    model = Model(Attention(eager(CAPTURED, lambda x: x.masked_fill(~causal(), -1e9))))
    x = torch.randn(BATCH, TOKENS, WIDTH)
    model.attn(x)
    q, k = 3 * model.attn.q[:1], 3 * model.attn.k[:1]
    found = one_step(torch.compile(model, backend="eager"), x)

    assert matched(found["attn"], reference(q, k, seen=causal()))


# ---- what is left out, and what is put back ------------------------------------------------------------------------


def test_per_sample_gradients_are_left_out_and_blind_nothing():
    model = Model(Attention(eager(CAPTURED)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = internist.watch(model, optimizer, every=1)
    x = torch.randn(BATCH, TOKENS, WIDTH)

    def loss(parameters, row):
        return torch.func.functional_call(model, parameters, (row[None],)).square().mean()

    for _ in range(5):
        model(x).square().mean().backward()
        torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)
        optimizer.step()
    monitor.finish()
    points, _, _ = read(monitor.directory)
    assert sorted(points["attention.max_logit", "attn", 0])[:3] == [0, 1, 2]


def test_a_module_is_given_up_only_after_three_faults_in_a_row():
    attention = Attention(eager(CAPTURED))
    capture, faults = capture_of(attention)
    q = torch.randn(1, HEADS, 3, 4)
    for wrong in (True, True, False, True, True):
        internist.attention_logits(attention, q, q[..., :2] if wrong else q)
    assert not faults.is_given_up("attention", "attn")

    internist.attention_logits(attention, q, q[..., :2])
    assert faults.is_given_up("attention", "attn")
    assert not capture.measured_now


def test_losses_keep_their_bits_and_functions_are_put_back():
    def train(*, watched):
        torch.manual_seed(1)
        model = Model(Attention(eager(CAPTURED, lambda x: functional.dropout(x, 0.1))))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = internist.watch(model, optimizer, every=1) if watched else None
        losses = []
        for _ in range(4):
            loss = model(torch.randn(BATCH, TOKENS, WIDTH)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if monitor is not None:
            monitor.finish()
        return losses

    before = torch.softmax, torch._softmax, functional.scaled_dot_product_attention
    assert train(watched=True) == train(watched=False)
    assert (torch.softmax, torch._softmax, functional.scaled_dot_product_attention) == before
    assert "softmax" not in vars(torch.Tensor)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo reads it of whatever it is given
def test_compiled_functions_inside_a_watched_model_stay_whole():
    compiled = torch.compile(
        lambda x: functional.softmax(x, dim=-1) + torch.softmax(x, -1), fullgraph=True, backend="eager"
    )

    def compute(self, q, k, v):
        return eager(CAPTURED)(self, q, k, v) * compiled(q).mean()

    found, q, k = measured(compute)

    assert matched(found["attn"], reference(q, k))


def capture_of(attention, **gate):
    """A capture whose gate is open inside this attention module."""
    faults, sampling = Faults(), Sampling(every=1)
    opened = Gate(**{"on": True, "heavy": True, "in_root": True, **gate})
    opened.stack.append(WatchedModule("attn", weakref.ref(attention), "attention", 0, None))
    capture = AttentionCapture(opened, book=SeriesBook(sampling.wants), faults=faults, sampling=sampling)
    return capture, faults


def test_a_replay_is_kept_from_the_fast_path_and_leaves_it_as_it_was():
    module = nn.Identity()
    capture, _ = capture_of(module, replay=True)
    enabled = torch.backends.mha.get_fastpath_enabled

    for _ in range(2):
        capture.enter()
        capture.enter()
        assert not enabled()
        capture.leave()
        assert not enabled()
        capture.leave()
        assert enabled()
    capture.leave()
    assert enabled()


def test_another_threads_attention_is_not_the_models():
    attention = Attention(eager(CAPTURED))
    capture, _ = capture_of(attention)
    q, heard = torch.randn(1, HEADS, 3, 4), []

    def elsewhere():
        internist.attention_logits(attention, q, q)
        heard.append(len(capture._values))

    capture.enter()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [0]

    internist.attention_logits(attention, q, q)
    assert len(capture._values) == 1
    capture.leave()


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_tensors_without_entries_are_left_out_without_a_fault(device):
    attention = Attention(eager(CAPTURED))
    capture, faults = capture_of(attention)
    with FakeTensorMode() if device == "fake" else torch.device("meta"):
        q = torch.empty(1, HEADS, 3, 4)
    capture.install()
    for _ in range(4):
        functional.scaled_dot_product_attention(q, q, q)
        (q @ q.transpose(-1, -2)).softmax(-1)
    capture.remove()

    assert not faults.reason("attention", "attn")
    assert not capture._values


def test_coverage_says_which_modules_the_last_heavy_steps_have_measured():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Attention(eager(CAPTURED)), Attention(eager(CAPTURED))
            self.calls = 0

        def forward(self, x):
            self.calls += self.training
            return self.second(self.first(x)) if self.calls == 1 else self.first(x)

    torch.manual_seed(0)
    model = Sometimes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = internist.watch(model, optimizer, every=1)
    seen = []
    for _ in range(6):
        model(torch.randn(1, TOKENS, WIDTH)).sum().backward()
        optimizer.step()
        states = {e.subject: e.state for e in monitor.coverage() if e.family == "attention"}
        seen.append((states["first"], states["second"]))
    monitor.finish()

    assert seen[0] == ("measured", "measured")
    assert seen[-1] == ("measured", "idle")
