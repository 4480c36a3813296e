"""A forward that is looked at: heads by what attention receives, and what a model multiplies its logits by itself."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from internist.mup import plan
from internist.mup.multipliers import QueryMultiplier
from internist.mup.planning import Plan
from internist.mup.probe import probed

from .mup_models import VOCABULARY, Gpt2, Llama, Stack, TorchEncoder, ids

HEADS = 4


class Attention(nn.Module):
    """Causal attention whose queries are made as `kind` says; torch divides its logits by the root of the features."""

    def __init__(self, width, kind):
        super().__init__()
        self.kind, self.size = kind, width // HEADS
        fused = kind in ("blocks", "interleaved", "grouped")
        keys = 2 if kind == "grouped" else HEADS
        self.keys = keys
        if fused:
            self.alpha = nn.Linear(width, (HEADS + 2 * keys) * self.size)
        else:
            self.alpha, self.beta, self.gamma = (nn.Linear(width, width) for _ in range(3))
        if kind == "normed":
            self.delta, self.epsilon = nn.RMSNorm(self.size), nn.RMSNorm(self.size)
        self.omega = nn.Linear(width, width)

    def heads(self, x):
        batch, tokens, _ = x.shape
        split = (batch, tokens, -1, self.size)
        if self.kind == "blocks":
            q, k, v = (part.view(split) for part in self.alpha(x).chunk(3, -1))
        elif self.kind == "interleaved":
            q, k, v = self.alpha(x).view(batch, tokens, HEADS, 3 * self.size).chunk(3, -1)
        elif self.kind == "grouped":
            q, k, v = self.alpha(x).view(batch, tokens, self.keys, -1, self.size).split((HEADS // self.keys, 1, 1), 3)
            q, k, v = (part.flatten(2, 3) for part in (q, k, v))
        else:
            q, k, v = (one(x).view(split) for one in (self.alpha, self.beta, self.gamma))
        if self.kind == "normed":
            q, k = self.delta(q), self.epsilon(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x):
        q, k, v = self.heads(x)
        scale = None
        if self.kind == "prescaled":
            q, scale = q / self.size, 1.0
        elif self.kind == "right":
            scale = 1.0 / self.size
        if self.kind == "eager":
            y = ((q @ k.mT) * self.size**-0.5).softmax(-1) @ v
        else:
            y = functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=self.keys < HEADS
            )
        return self.omega(y.transpose(1, 2).flatten(2))


def block_of(kind):
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(width), Attention(width, kind)

        def forward(self, x):
            return x + self.attention(self.norm(x))

    return Block


def built(kind, width):
    torch.manual_seed(0)
    return Stack(block_of(kind), width, 2)


def scaled(kind, *, width=32, base=16):
    return plan(built(kind, width), base=built(kind, base), attention="scale", probe=ids())


@pytest.mark.parametrize(
    ("kind", "queries"),
    [
        ("separate", "alpha"),
        ("blocks", "alpha"),
        ("interleaved", "alpha"),
        ("grouped", "alpha"),
        ("normed", "delta"),
    ],
)
def test_queries_are_found_by_what_attention_receives_and_multiplied_by_the_root_of_the_growth(kind, queries):
    planned = scaled(kind)
    before, after = built(kind, 32), planned.model

    planned.set_multipliers()

    assert [name.rpartition(".")[2] for name in planned.queries] == [queries, queries]
    assert all(one.factor == pytest.approx(0.5**0.5) for one in planned.queries.values())
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    for old, new, factor in zip(
        before.layers[0].attention.heads(x), after.layers[0].attention.heads(x), (0.5**0.5, 1.0, 1.0), strict=True
    ):
        torch.testing.assert_close(new, old * factor)


@pytest.mark.parametrize("kind", ["right", "prescaled"])
def test_a_model_that_divides_by_the_dimension_itself_is_left_alone(kind):
    assert scaled(kind).queries == {}


def test_more_heads_of_the_same_size_need_nothing():
    base = built("separate", 32)
    model = copy.deepcopy(base)

    assert plan(model, base=base, attention="scale", probe=ids()).queries == {}


def test_torchs_own_attention_is_multiplied_before_its_forward():
    torch.manual_seed(0)
    model, base = TorchEncoder(32, 2), TorchEncoder(16, 2)
    planned = plan(model, base=base, attention="scale")
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    before = model.layers[0].self_attn(x * 0.5**0.5, x, x, need_weights=False)[0]

    planned.set_multipliers()

    assert list(planned.queries) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert any("its bias" in note or "their bias" in note for note in planned.notes)
    depth = planned.multipliers["layers.0.self_attn"].factor if "layers.0.self_attn" in planned.multipliers else 1.0
    torch.testing.assert_close(model.layers[0].self_attn(x, x, x, need_weights=False)[0], before * depth)


def test_a_plan_without_it_takes_the_multiplier_away():
    model, base = built("blocks", 32), built("blocks", 16)
    plan(model, base=base, attention="scale").set_multipliers()
    plan(model, base=base).set_multipliers()

    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert not any(isinstance(hook, QueryMultiplier) for hook in hooks)


def test_multipliers_of_queries_travel_in_a_checkpoint():
    planned = scaled("interleaved")
    loaded = Plan.load(planned.model, planned.state_dict())

    assert loaded.queries == planned.queries
    planned.load_state_dict(planned.state_dict())
    with pytest.raises(ValueError, match=r"the saved plan differs at 'layers.0.attention.alpha': queries x 0.7071"):
        plan(planned.model, base=built("interleaved", 16)).load_state_dict(planned.state_dict())


def test_attention_that_is_not_seen_is_refused_by_name():
    with pytest.raises(ValueError, match=r"heads of 'layers.0.attention' are not told.*attention='own'"):
        scaled("eager")


def test_a_size_as_base_is_refused_where_heads_are_to_be_compared():
    with pytest.raises(ValueError, match="give a base model, not its size"):
        plan(Llama(32), base=(16, 2), attention="scale")


class Halved(Llama):
    """A Llama that multiplies its logits by 8 / width itself: what enters its head by half of that."""

    def forward(self, tokens):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        width = x.shape[-1]
        return self.lm_head(self.norm(x) * 2 / width) * 4


def test_what_a_model_multiplies_its_logits_by_is_not_multiplied_again():
    planned = plan(Halved(32), base=Halved(16), probe=ids())

    assert "lm_head" not in planned.multipliers
    assert "multiplies its logits by 0.25 itself, and its base by 0.5" in planned.notes[-1]
    assert plan(Halved(32), base=Halved(16)).multipliers["lm_head"].factor == 0.5
    with pytest.raises(ValueError, match=r"multiplies its logits by 0.25 itself.*give a base model"):
        plan(Halved(32), base=(16, 2), probe=ids())


def test_a_tied_head_has_no_factor_of_its_own():
    assert probed(Gpt2(32), ids(), head="lm_head").logits == 1.0


class Telling(nn.Linear):
    """A head that answers with a dictionary."""

    def forward(self, x):
        return {"logits": super().forward(x)}


def test_a_head_that_answers_with_more_than_a_tensor_is_named_before_anything_is_done():
    def make(width):
        model = Llama(width)
        model.lm_head = Telling(width, VOCABULARY)
        return model

    with pytest.raises(ValueError, match=r"'lm_head' is to be multiplied, and its output is a dict.*say output='name'"):
        plan(make(32), base=make(16), probe=ids())


def test_looking_changes_nothing():
    class Counting(Llama):
        def __init__(self, width):
            super().__init__(width)
            self.register_buffer("calls", torch.zeros(()))
            self.drop = nn.Dropout()

        def forward(self, tokens):
            self.calls += 1
            return self.drop(super().forward(tokens))

    model = Counting(32)
    model.norm.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    probed(model, ids(), head="lm_head")

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model.norm.training) == (True, False)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_making_inputs_for_a_look_changes_nothing_either():
    torch.manual_seed(0)
    model, base = (nn.Sequential(nn.Linear(8, w), nn.BatchNorm1d(w), nn.Linear(w, 3)) for w in (32, 16))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    plan(model, base=base, attention="scale")

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_forward_that_fails_says_what_to_give():
    with pytest.raises(ValueError, match=r"raised TypeError.*as probe="):
        plan(Llama(32), base=Llama(16), attention="scale", probe=(ids(), 1))
