"""QK-Clip: the clipped head's logit is tau on replay, every other bit stays, whatever makes the queries and keys."""

import copy
import math
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as bound_by_name
from torch.utils.checkpoint import checkpoint

import internist
from internist.demo.model import ByteGPT
from internist.optim.logits import Call, exact_logits, logit_bounds
from internist.optim.projections import Fused, Latent, Separate
from internist.optim.qk_clip import QKClip

HEADS, SIZE, TOKENS, BATCH = 4, 8, 12, 2
WIDTH = HEADS * SIZE
TAU = 5.0
REPLAY = 1e-3
"""Relative error of a clipped head's logit on replay: two float32 roundings of each row and of the product."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def rotate(x):
    """Rotary embedding of the first and second half of the features."""
    angle = torch.arange(x.shape[-2])[:, None] / 10.0 ** torch.arange(x.shape[-1] // 2)
    first, second = x.chunk(2, -1)
    return torch.cat((first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()), -1)


class Plain(nn.Module):
    """Separate projections, with fewer key heads if asked, rotary if asked."""

    def __init__(self, key_heads=HEADS, bias=True, rotary=False, repeat=False):
        super().__init__()
        self.key_heads, self.rotary, self.repeat = key_heads, rotary, repeat
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.k_proj = nn.Linear(WIDTH, key_heads * SIZE, bias=bias)
        self.v_proj = nn.Linear(WIDTH, key_heads * SIZE, bias=bias)

    def qkv(self, x):
        q, k, v = (
            split(self.q_proj(x), HEADS),
            split(self.k_proj(x), self.key_heads),
            split(self.v_proj(x), self.key_heads),
        )
        if self.rotary:
            q, k = rotate(q), rotate(k)
        if self.repeat:
            k, v = (t.repeat_interleave(HEADS // self.key_heads, 1) for t in (k, v))
        return q, k, v

    def forward(self, x):
        q, k, v = self.qkv(x)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < HEADS)
        return y.transpose(1, 2).flatten(2)


class Together(nn.Module):
    """One projection, its rows arranged as asked."""

    def __init__(self, arrangement, key_heads=HEADS):
        super().__init__()
        self.arrangement, self.key_heads = arrangement, key_heads
        self.qkv_proj = nn.Linear(WIDTH, (HEADS + 2 * key_heads) * SIZE)

    def qkv(self, x):
        out, k = self.qkv_proj(x), self.key_heads
        if self.arrangement == "blocks":
            q, key, v = out.split((HEADS * SIZE, k * SIZE, k * SIZE), -1)
            return split(q, HEADS), split(key, k), split(v, k)
        out = out.unflatten(-1, (k, -1, SIZE))
        q, key, v = out[..., :-2, :], out[..., -2, :], out[..., -1, :]
        return q.flatten(-3, -2).transpose(1, 2), key.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x):
        q, k, v = self.qkv(x)
        y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] < HEADS)
        return y.transpose(1, 2).flatten(2)


class LatentAttention(nn.Module):
    """Content and rotary features; the rotary key is one for all heads."""

    nope, rope, latent = 6, 4, 10

    def __init__(self):
        super().__init__()
        self.q_b_proj = nn.Linear(WIDTH, HEADS * (self.nope + self.rope))
        self.kv_a_proj = nn.Linear(WIDTH, self.latent + self.rope)
        self.kv_b_proj = nn.Linear(self.latent, HEADS * (self.nope + SIZE))

    def qkv(self, x):
        q = split(self.q_b_proj(x), HEADS)
        latent, k_rope = self.kv_a_proj(x).split((self.latent, self.rope), -1)
        k, v = split(self.kv_b_proj(latent), HEADS).split((self.nope, SIZE), -1)
        shared = rotate(k_rope[:, None]).expand(-1, HEADS, -1, -1)
        q = torch.cat((q[..., : self.nope], rotate(q[..., self.nope :])), -1)
        return q, torch.cat((k, shared), -1), v

    def forward(self, x):
        return functional.scaled_dot_product_attention(*self.qkv(x), is_causal=True).transpose(1, 2).flatten(2)


class Model(nn.Module):
    """Attention between two linear layers; `attn` is what the tests look at."""

    def __init__(self, attn):
        super().__init__()
        self.inner, self.attn, self.out = nn.Linear(WIDTH, WIDTH), attn, nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.out(self.attn(self.inner(x)))


def frozen_sgd(model):
    """An optimizer whose steps change nothing, so that only the clip does."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def logits(model, x):
    """(H,) the largest visible logit of each head, by the whole matrix in float64."""
    with torch.no_grad():
        q, k, _ = model.attn.qkv(model.inner(x))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        products = q.double() @ k.double().mT / q.shape[-1] ** 0.5
        if not isinstance(model.attn, Together):
            products = products.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
        return products.amax((0, 2, 3)).float()


def loud(model, heads=(1, 3), factor=30.0):
    """Make the queries of some heads large."""
    source = getattr(model.attn, "q_proj", None)
    with torch.no_grad():
        for head in heads:
            rows = source.weight[head * SIZE : (head + 1) * SIZE]
            rows.mul_(factor)


def step(model, optimizer, x):
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def clipped(model, *, tau=TAU, **options):
    """The model's logits before and after one clip, and what did it."""
    x = torch.randn(BATCH, TOKENS, WIDTH)
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=tau, **options)
    before, weights = logits(model, x), {n: p.detach().clone() for n, p in model.named_parameters()}
    step(model, optimizer, x)
    return before, logits(model, x), weights, clip


def noted(clip):
    """The layers whose calls are noted from now on, in order."""
    seen, observe = [], clip._capture.observe

    def count(layer, call):
        seen.append(layer)
        observe(layer, call)

    clip._capture.observe = count
    return seen


def check_replay(before, after, tau=TAU):
    fired = before > tau
    assert fired.any() and not fired.all()
    torch.testing.assert_close(after[fired], torch.full_like(after[fired], tau), rtol=REPLAY, atol=0)
    assert torch.equal(after[~fired], before[~fired])
    return fired


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_on_replay_the_clipped_heads_give_tau_and_the_others_keep_their_bits(rotary, bias):
    model = Model(Plain(bias=bias, rotary=rotary))
    loud(model)
    before, after, weights, clip = clipped(model)

    fired = check_replay(before, after)
    assert fired.tolist() == [False, True, False, True]
    for name in ("q_proj", "k_proj"):
        for kind in ("weight", "bias") if bias else ("weight",):
            now, old = getattr(getattr(model.attn, name), kind), weights[f"attn.{name}.{kind}"]
            for head in range(HEADS):
                rows = slice(head * SIZE, (head + 1) * SIZE)
                ratio = (TAU / before[head]) ** 0.5 if fired[head] else 1.0
                torch.testing.assert_close(now[rows], old[rows] * ratio)
                assert fired[head] or torch.equal(now[rows], old[rows])
    untouched = [n for n in weights if "q_proj" not in n and "k_proj" not in n]
    assert all(torch.equal(model.get_parameter(n), weights[n]) for n in untouched)
    assert clip.counts()["attn"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("repeat", [False, True])
def test_grouped_queries_are_clipped_alone(repeat):
    model = Model(Plain(key_heads=2, repeat=repeat))
    loud(model)
    before, after, weights, _ = clipped(model)

    check_replay(before, after)
    assert torch.equal(model.attn.k_proj.weight, weights["attn.k_proj.weight"])
    assert torch.equal(model.attn.k_proj.bias, weights["attn.k_proj.bias"])


@pytest.mark.parametrize(
    ("arrangement", "key_heads"), [("blocks", HEADS), ("interleaved", HEADS), ("blocks", 2), ("grouped", 2)]
)
@pytest.mark.parametrize("told", [False, True])
def test_rows_of_a_fused_projection_are_told_apart(arrangement, key_heads, told):
    model = Model(Together(arrangement, key_heads))
    x = torch.randn(BATCH, TOKENS, WIDTH)
    tau = float(logits(model, x).sort().values[1:3].mean())
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=tau, projections={"attn": Fused("qkv_proj", arrangement)} if told else None)
    before, values = logits(model, x), model.attn(model.inner(x))
    step(model, optimizer, x)

    fired = check_replay(before, logits(model, x), tau)
    assert fired.sum() == 2
    with torch.no_grad():
        _, _, v = model.attn.qkv(model.inner(x))
    optimizer.zero_grad()
    assert values.shape == (BATCH, TOKENS, WIDTH) and v.shape[1] == key_heads


def test_a_wrong_arrangement_is_refused():
    model = Model(Together("interleaved"))
    QKClip(model, frozen_sgd(model), projections={"attn": Fused("qkv_proj", "blocks")})

    with pytest.raises(ValueError, match=r"not heads of 'attn.qkv_proj.weight'"):
        model(torch.randn(BATCH, TOKENS, WIDTH))
    assert functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention


def test_latent_attention_is_clipped_by_named_projections():
    model = Model(LatentAttention())
    x = torch.randn(BATCH, TOKENS, WIDTH)
    tau = float(logits(model, x).sort().values[1:3].mean())
    projections = {"attn": Latent("q_b_proj", "kv_b_proj", nope=6, rope=4)}
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=tau, projections=projections)
    before, old = logits(model, x), copy.deepcopy(model.attn.state_dict())
    step(model, optimizer, x)

    fired = check_replay(before, logits(model, x), tau)
    gamma = torch.where(fired, tau / before, 1.0)
    q = (model.attn.q_b_proj.weight / old["q_b_proj.weight"]).view(HEADS, 10, -1)
    kv = (model.attn.kv_b_proj.weight / old["kv_b_proj.weight"]).view(HEADS, 6 + SIZE, -1)
    for head in range(HEADS):
        torch.testing.assert_close(q[head, :6], torch.full_like(q[head, :6], gamma[head].sqrt().item()))
        torch.testing.assert_close(q[head, 6:], torch.full_like(q[head, 6:], gamma[head].item()))
        torch.testing.assert_close(kv[head, :6], torch.full_like(kv[head, :6], gamma[head].sqrt().item()))
    assert torch.equal(kv[:, 6:], torch.ones_like(kv[:, 6:]))
    assert torch.equal(model.attn.kv_a_proj.weight, old["kv_a_proj.weight"])


@pytest.mark.parametrize("kdim", [None, WIDTH // 2])
def test_torchs_own_attention_is_clipped(kdim):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha = nn.MultiheadAttention(WIDTH, HEADS, kdim=kdim, vdim=kdim, batch_first=True)
            nn.init.normal_(self.mha.in_proj_bias)

        def forward(self, x, y):
            return self.mha(x, y, y, need_weights=False)[0]

    model = Own()
    x, y = torch.randn(BATCH, TOKENS, WIDTH), torch.randn(BATCH, TOKENS, kdim or WIDTH)
    with torch.no_grad():
        weight = model.mha.in_proj_weight if kdim is None else model.mha.q_proj_weight
        weight[SIZE : 2 * SIZE] *= 30

    def largest():
        m = model.mha
        wq, wk = (m.q_proj_weight, m.k_proj_weight) if kdim else m.in_proj_weight.chunk(3)[:2]
        bq, bk = m.in_proj_bias.chunk(3)[:2]
        with torch.no_grad():
            q, k = split(x @ wq.T + bq, HEADS), split(y @ wk.T + bk, HEADS)
            return (q @ k.mT / SIZE**0.5).amax((0, 2, 3))

    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=TAU)
    before = largest()
    model(x, y).sum().backward()
    optimizer.step()

    fired = before > TAU
    assert fired[1] and not fired.all()
    torch.testing.assert_close(largest()[fired], torch.full_like(before[fired], TAU), rtol=REPLAY, atol=0)
    torch.testing.assert_close(largest()[~fired], before[~fired], rtol=1e-6, atol=0)


def test_the_transposed_linear_layer_of_hugging_face_is_clipped_by_columns():
    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf = nf
            self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.zeros(nf))

        def forward(self, x):
            return x @ self.weight + self.bias

    attn = Together("blocks")
    attn.qkv_proj = Conv1D(3 * WIDTH, WIDTH)
    model = Model(attn)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    tau = float(logits(model, x).sort().values[1:3].mean())
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=tau)
    before = logits(model, x)
    step(model, optimizer, x)

    check_replay(before, logits(model, x), tau)


def test_attention_bound_by_name_is_seen():
    class Imported(Plain):
        def forward(self, x):
            return bound_by_name(*self.qkv(x), is_causal=True).transpose(1, 2).flatten(2)

    model = Model(Imported())
    loud(model)
    before, after, _, _ = clipped(model)

    check_replay(before, after)


def test_accumulation_takes_the_largest_of_all_micro_batches():
    model = Model(Plain())
    loud(model)
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=TAU)
    batches = [torch.randn(BATCH, TOKENS, WIDTH) * scale for scale in (1.0, 2.0, 0.5)]
    before = torch.stack([logits(model, x) for x in batches]).amax(0)
    for x in batches:
        model(x).sum().backward()
    optimizer.step()

    check_replay(before, torch.stack([logits(model, x) for x in batches]).amax(0))


def test_every_step_is_captured():
    model = Model(Plain())
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=TAU)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    for n in range(1, 5):
        loud(model)
        step(model, optimizer, x)
        assert clip.counts()["attn"].tolist() == [0, n, 0, n]
    assert clip.steps == 4

    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, 0.01 * x)  # what an earlier round saw is forgotten
    assert clip.counts()["attn"].tolist() == [0, 4, 0, 4]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_evaluation_and_recomputed_forwards_do_not_count():
    class Checkpointed(Model):
        def forward(self, x):
            return self.out(checkpoint(self.attn, self.inner(x), use_reentrant=self.reentrant))

    for reentrant in (True, False):
        model = Checkpointed(Plain())
        model.reentrant = reentrant
        loud(model)
        optimizer = frozen_sgd(model)
        seen = noted(QKClip(model, optimizer, tau=TAU))
        x = torch.randn(BATCH, TOKENS, WIDTH)
        if not reentrant:  # torch warns of it otherwise
            with torch.no_grad():
                model(100 * x)
        model.eval()
        model(100 * x)
        with torch.inference_mode():
            model(100 * x) if not reentrant else None
        model.train()
        before = logits(model, x)
        model(x).sum().backward()
        optimizer.step()

        assert len(seen) == 1
        check_replay(before, logits(model, x))


def test_losses_and_gradients_are_those_without_it_until_it_fires():
    def train(with_clip):
        torch.manual_seed(1)
        model = ByteGPT(width=32, depth=2, heads=2, context=16, dropout=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        clip = QKClip(model, optimizer) if with_clip else None
        losses = []
        for _ in range(4):
            ids = torch.randint(256, (2, 16))
            loss = model(ids, ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        assert clip is None or all(not c.any() for c in clip.counts().values())
        return [*losses, *(p.detach() for p in model.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_it_works_beside_the_monitor_whichever_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    builtin = functional.scaled_dot_product_attention
    for clip_first in (True, False):
        model = ByteGPT(width=32, depth=2, heads=2, context=16)
        with torch.no_grad():
            for block in model.blocks:
                block.attn.qkv.weight[:64] *= 20
        optimizer = frozen_sgd(model)
        made = {}
        for what in ("clip", "monitor") if clip_first else ("monitor", "clip"):
            made[what] = QKClip(model, optimizer, tau=0.1) if what == "clip" else internist.watch(model, optimizer)
        ids = torch.randint(256, (2, 16))
        fired = []
        for _ in range(12):  # measured and unmeasured steps
            with torch.no_grad():
                for block in model.blocks:
                    block.attn.qkv.weight[:64] *= 2
            model(ids, ids).loss.backward()
            optimizer.step()
            fired.append(sum(int(c.sum()) for c in made["clip"].counts().values()))
        problems = [e for e in made["monitor"].coverage() if e.state in ("unsupported", "silent", "not captured")]
        made["monitor"].finish()

        assert all(later > earlier for earlier, later in pairwise(fired)), fired
        assert not problems
        assert functional.scaled_dot_product_attention is builtin


def test_removal_restores_everything():
    builtin = functional.scaled_dot_product_attention
    model = Model(Plain())
    loud(model)
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=TAU)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    step(model, optimizer, x)
    counts = clip.counts()
    clip.remove()
    loud(model)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, x)

    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(clip.counts()["attn"], counts["attn"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_post_hooks
    assert functional.scaled_dot_product_attention is builtin


def test_an_error_inside_attention_leaves_nothing_behind():
    class Failing(Plain):
        def forward(self, x):
            super().forward(x)
            raise KeyError("mine")

    model = Model(Failing())
    QKClip(model, frozen_sgd(model))
    with pytest.raises(KeyError, match="mine"):
        model(torch.randn(BATCH, TOKENS, WIDTH))

    assert functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention


def test_copies_and_pickles_of_the_model_carry_nothing():
    model = Model(Plain())
    clip = QKClip(model, frozen_sgd(model))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model.attn)):
        other(torch.randn(BATCH, TOKENS, WIDTH))

    assert clip.describe()[0]["heads"] == 0


def test_logits_that_are_not_finite_clip_nothing():
    for poison in (math.nan, math.inf, 1e25):  # the last makes finite queries whose logits overflow
        model = Model(Plain())
        loud(model)
        optimizer = frozen_sgd(model)
        QKClip(model, optimizer, tau=TAU)
        x = torch.randn(BATCH, TOKENS, WIDTH)
        step(model, optimizer, 0 * x)
        x = x * poison if math.isfinite(poison) else x.index_fill(1, torch.tensor(3), poison)
        before = copy.deepcopy(model.attn.state_dict())
        model(x)
        optimizer.step()

        assert all(torch.equal(v, before[k]) for k, v in model.attn.state_dict().items())


def test_a_mask_hides_keys_and_its_bias_is_no_part_of_the_logit():
    class Masked(Plain):
        def forward(self, x):
            bias = torch.full((TOKENS, TOKENS), -torch.inf).triu(1) + 50.0
            return functional.scaled_dot_product_attention(*self.qkv(x), attn_mask=bias).transpose(1, 2).flatten(2)

    model = Model(Masked())
    loud(model)
    before, after, _, _ = clipped(model)

    check_replay(before, after)


def test_low_precision_weights_are_clipped_within_their_rounding():
    model = Model(Plain()).bfloat16()
    loud(model)
    x = torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.bfloat16)
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=TAU)
    before, old = logits(model, x), model.attn.q_proj.weight.detach().clone()
    model(x).sum().backward()
    optimizer.step()

    fired = before > TAU
    torch.testing.assert_close(logits(model, x)[fired], torch.full_like(before[fired], TAU), rtol=3e-2, atol=0)
    assert torch.equal(model.attn.q_proj.weight[:SIZE], old[:SIZE])


def test_double_precision_and_an_empty_batch_are_taken():
    model = Model(Plain()).double()
    loud(model)
    x = torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64)
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=TAU)
    before = logits(model, x)
    model(x[:0])
    model(x).sum().backward()
    optimizer.step()

    check_replay(before, logits(model, x))


def test_autocast_does_not_reach_the_logits():
    model = Model(Plain())
    loud(model)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=TAU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x).sum().backward()
    optimizer.step()

    assert clip.counts()["attn"].tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(logits(model, x)[[1, 3]], torch.full((2,), TAU), rtol=3e-2, atol=0)


def test_zero_queries_settle_nothing_and_later_ones_do():
    model = Model(Together("interleaved"))
    with torch.no_grad():
        kept = model.attn.qkv_proj.weight.clone()
        model.attn.qkv_proj.weight.zero_(), model.attn.qkv_proj.bias.zero_()
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=1e-3)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    step(model, optimizer, x)
    with torch.no_grad():
        model.attn.qkv_proj.weight.copy_(kept)
    step(model, optimizer, x)

    assert clip.counts()["attn"].tolist() == [1] * HEADS
    torch.testing.assert_close(logits(model, x), torch.full((HEADS,), 1e-3), rtol=REPLAY, atol=0)


def test_diagnostics_and_state_tell_what_was_clipped():
    model = Model(Plain())
    loud(model)
    before, _, _, clip = clipped(model)
    told = clip.diagnostics()

    assert set(told) == {model.attn.q_proj.weight, model.attn.k_proj.weight}
    values = told[model.attn.q_proj.weight]
    assert values["optimizer.clip_gamma"].item() == pytest.approx((TAU / before).min().item(), rel=1e-4)
    assert values["optimizer.clip_heads"].item() == 2.0 and values["optimizer.clip_heads"].ndim == 0
    assert clip.describe() == [
        {
            "layer": "attn",
            "kind": "separate",
            "weights": ["attn.q_proj.weight", "attn.k_proj.weight"],
            "heads": HEADS,
            "skipped": "",
        }
    ]

    state = pickle.loads(pickle.dumps(clip.state_dict()))
    resumed = Model(Plain())
    optimizer = frozen_sgd(resumed)
    other = QKClip(resumed, optimizer, tau=TAU)
    other.load_state_dict(state)
    loud(resumed)
    step(resumed, optimizer, torch.randn(BATCH, TOKENS, WIDTH))
    assert other.steps == 2
    assert other.counts()["attn"].tolist() == [0, 2, 0, 2]
    with pytest.raises(ValueError, match="'elsewhere'"):
        other.load_state_dict({"steps": 1, "counts": {"elsewhere": torch.zeros(1)}})
    with pytest.raises(ValueError, match="4 heads, and the state counts 3"):
        other.load_state_dict({"steps": 1, "counts": {"attn": torch.zeros(3)}})


def test_layers_whose_queries_are_normalised_are_left_alone_and_listed():
    class Normed(Plain):
        def __init__(self):
            super().__init__()
            self.q_norm = nn.LayerNorm(SIZE)

    model = nn.Sequential(Normed(), Plain())
    rows = {row["layer"]: row["skipped"] for row in QKClip(model, frozen_sgd(model)).describe()}
    assert "q_norm" in rows["0"] and rows["1"] == ""
    with pytest.raises(ValueError, match="q_norm"):
        QKClip(Model(Normed()), frozen_sgd(Model(Normed())))


def test_attention_that_cannot_be_seen_is_refused_and_observe_helps():
    class Written(Plain):
        clip = None

        def forward(self, x):
            q, k, v = self.qkv(x)
            if self.clip is not None:
                self.clip.observe("attn", q, k, is_causal=True)
            hidden = torch.ones(TOKENS, TOKENS).triu(1).bool()
            weights = (q @ k.mT / SIZE**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
            return (weights @ v).transpose(1, 2).flatten(2)

    model = Model(Written())
    loud(model)
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=TAU)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    with pytest.raises(RuntimeError, match="'attn' \\(Written\\) did not call scaled_dot_product_attention"):
        model(x)
    model.attn.clip = clip
    before = logits(model, x)
    step(model, optimizer, x)

    check_replay(before, logits(model, x))
    with pytest.raises(ValueError, match="no clipped attention layer is named 'attm'"):
        clip.observe("attm", x, x)


def test_bad_input_is_refused_by_name():
    model = Model(Plain())
    optimizer = frozen_sgd(model)
    with pytest.raises(ValueError, match="tau"):
        QKClip(model, optimizer, tau=0.0)
    with pytest.raises(TypeError, match="Module"):
        QKClip(3, optimizer)
    with pytest.raises(TypeError, match="Optimizer"):
        QKClip(model, model)
    with pytest.raises(ValueError, match="'atn' matches no module"):
        QKClip(model, optimizer, projections={"atn": Separate("q_proj", "k_proj")})
    with pytest.raises(ValueError, match="'attn' has no module 'wq'; it holds q_proj"):
        QKClip(model, optimizer, projections={"attn": Separate("wq", "k_proj")})
    with pytest.raises(ValueError, match=r"does not step 'attn.q_proj.weight'"):
        QKClip(model, torch.optim.SGD(model.out.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="no attention layer"):
        QKClip(nn.Linear(2, 2), optimizer)
    with pytest.raises(ValueError, match="DataParallel"):
        QKClip(nn.DataParallel(model), optimizer)

    class OddAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.alpha, self.beta = nn.Linear(2, 2), nn.Linear(2, 2)

    odd = nn.ModuleDict({"attn": Plain(), "odd": OddAttention()})
    with pytest.raises(ValueError, match=r"'odd' \(OddAttention\) are not known: it holds alpha, beta"):
        QKClip(odd, frozen_sgd(odd))
    QKClip(odd, frozen_sgd(odd), exclude=["odd"])


def test_a_step_without_any_attention_warns_once():
    model = Model(Plain())
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer)
    with pytest.warns(UserWarning, match="saw no attention"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from((1, 2, 4)), st.integers(1, 9), st.floats(-3, 3), st.booleans())
def test_the_bound_is_never_below_the_exact_maximum(seed, key_heads, size, spread, causal):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, 7, size, generator=generator) * 10**spread
    k = torch.randn(2, key_heads, 7, size, generator=generator)
    call = Call(q, k, is_causal=causal, enable_gqa=True, scale=-0.7 if seed % 3 == 0 else None)

    bounds, exact = logit_bounds(call), exact_logits(call)
    assert (bounds >= exact).all()
    chosen = torch.tensor([0, 3])
    torch.testing.assert_close(exact_logits(call, chosen), exact[chosen])


def test_the_bound_is_met_by_parallel_queries_and_keys():
    q = torch.tensor([[[[3.0, 4.0]]]])
    call = Call(q, 2 * q, scale=1.0)

    assert exact_logits(call).tolist() == [50.0]
    assert logit_bounds(call).tolist() == pytest.approx([50.0], rel=2e-4)


def test_where_the_decision_must_not_wait_a_layer_is_armed_by_earlier_bounds_and_misses_are_counted():
    model = Model(Plain())
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=TAU)
    clip._at_once = False  # as on an accelerator
    x = torch.randn(BATCH, TOKENS, WIDTH)
    quiet = 0.01
    for _ in range(3):
        step(model, optimizer, quiet * x)
    assert not clip._watched[0].armed
    loud(model)
    before = logits(model, x)
    step(model, optimizer, x)  # too sudden: counted
    assert clip.unmeasured >= 2
    assert torch.equal(logits(model, x), before)
    missed = clip.unmeasured
    step(model, optimizer, x)
    assert clip.unmeasured == 2 * missed
    step(model, optimizer, x)  # armed by the bound of two steps ago

    check_replay(before, logits(model, x))
    assert clip.unmeasured == 2 * missed


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_clipped_with_its_graph_whole(backend):
    torch._dynamo.reset()
    model = nn.Sequential(Model(Plain()), nn.Identity())
    loud(model[0])
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=TAU)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    before = logits(model[0], x)
    for _ in range(2):
        compiled(x).square().mean().backward()
        optimizer.step()

    check_replay(before, logits(model[0], x))
    assert functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention
    assert clip.counts()["0.attn"].tolist()[0] == 0
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:`torch.jit")  # dynamo imports what uses it
def test_a_compiled_step_is_followed_by_the_clip():
    torch._dynamo.reset()
    model = Model(Plain())
    loud(model)
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=TAU)
    compiled = torch.compile(optimizer.step, backend="eager")
    x = torch.randn(BATCH, TOKENS, WIDTH)
    before = logits(model, x)
    model(x).sum().backward()
    compiled()

    check_replay(before, logits(model, x))
    torch._dynamo.reset()


def test_training_stays_below_the_threshold_where_it_would_not():
    def largest(with_clip):
        torch.manual_seed(2)
        model = ByteGPT(width=32, depth=1, heads=2, context=16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        if with_clip:
            QKClip(model, optimizer, tau=4.0)
        seen = []
        attention = model.blocks[0].attn
        attention.qkv.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
        for step_ in range(40):
            ids = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(step_ % 4))
            loss = model(ids[:, :-1], ids[:, 1:]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        q, k, _ = seen[-1].view(4, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
        return exact_logits(Call(q, k, is_causal=True)).max().item()

    assert largest(False) > 12.0
    assert largest(True) < 6.0  # the threshold, and what one step adds


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo reads it of whatever it is given
@pytest.mark.parametrize("inside", [False, True])
def test_compiled_models_may_checkpoint_their_attention(inside):
    class Checkpointed(Model):
        def forward(self, x):
            return self.out(checkpoint(self.attn, self.inner(x), use_reentrant=False))

    torch._dynamo.reset()
    model = Checkpointed(Plain())
    loud(model)
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=TAU)
    if inside:
        model.attn.compile(backend="aot_eager", fullgraph=True)
    compiled = model if inside else torch.compile(model, backend="aot_eager")
    seen = noted(clip)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    before = logits(model, x)
    compiled(x).sum().backward()
    optimizer.step()

    assert len(seen) == 1
    check_replay(before, logits(model, x))
    torch._dynamo.reset()


def test_compiled_code_needs_the_arrangement_of_a_fused_projection():
    torch._dynamo.reset()
    model = Model(Together("interleaved"))
    clip = QKClip(model, frozen_sgd(model))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(BATCH, TOKENS, WIDTH)
    with pytest.raises(RuntimeError, match="cannot be told apart in compiled code"):
        compiled(x)
    clip.remove()
    torch._dynamo.reset()
    optimizer = frozen_sgd(model)
    tau = float(logits(model, x).sort().values[1:3].mean())
    QKClip(model, optimizer, tau=tau, projections={"attn": Fused("qkv_proj", "interleaved")})
    before = logits(model, x)
    torch.compile(model, backend="eager")(x).sum().backward()
    optimizer.step()

    check_replay(before, logits(model, x), tau)
    torch._dynamo.reset()
