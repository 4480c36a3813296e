"""What a run records for the scaling check, and how its series and modules are read."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from internist.model.outline import outline
from internist.mup import sample
from internist.mup.trial import Trial, train
from internist.observe.routing import routing
from internist.scaling.description import shape_of
from internist.scaling.errors import NotAFamily

WIDTH, HEADS, VOCABULARY, DEPTH = 16, 2, 11, 3


class Times:
    """A forward hook that says its factor."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, _module, _args, output):
        return output * self.factor


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.down = Attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.down(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v, scale=0.25).transpose(1, 2).flatten(-2)


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def optimizer_of(model: nn.Module):
    hidden = list(model.blocks.parameters())
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    return torch.optim.AdamW(
        [{"params": hidden, "lr": 1e-3, "eps": 1e-9, "weight_decay": 0.5}, {"params": rest, "lr": torch.tensor(0.02)}],
        weight_decay=0.0,
    )


@pytest.fixture
def gpt() -> Gpt:
    torch.manual_seed(0)
    return Gpt()


@pytest.fixture
def member(gpt):
    gpt.head.register_forward_hook(Times(0.25))
    gpt.blocks[0].attn.register_forward_hook(Times(0.5))
    return train(Trial(optimizer_of, sample.batch, sample.loss, 2), gpt, name="one", seed=0)


def test_the_routing_table_says_rates_and_what_weights_began_with(gpt):
    routes = {route.parameter: route for route in routing([optimizer_of(gpt)], outline(gpt))}

    down = routes["blocks.0.down.weight"]
    assert (down.lr, down.eps, down.weight_decay) == (1e-3, 1e-9, 0.5)
    assert down.init_rms == pytest.approx(gpt.blocks[0].down.weight.detach().square().mean().sqrt().item())
    assert routes["head.weight"].lr == pytest.approx(0.02)


def test_numbers_an_optimizer_does_not_have_are_absent(gpt):
    route = routing([torch.optim.SGD(gpt.parameters(), lr=0.1)], outline(gpt))[0]

    assert (route.lr, route.eps) == (0.1, None)


def test_a_rate_that_warms_up_from_zero_is_told_as_it_will_be(gpt):
    optimizer = torch.optim.SGD(gpt.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)

    assert (optimizer.param_groups[0]["lr"], routing([optimizer], outline(gpt))[0].lr) == (0.0, 0.1)


def test_a_weight_that_is_not_finite_has_no_initial_rms(gpt):
    with torch.no_grad():
        gpt.head.weight[0, 0] = float("nan")

    assert {r.parameter: r.init_rms for r in routing([optimizer_of(gpt)], outline(gpt))}["head.weight"] is None


def test_the_outline_says_what_hooks_multiply_by(gpt):
    gpt.head.register_forward_hook(Times(0.5))
    gpt.head.register_forward_hook(Times(0.25))
    gpt.norm.register_forward_hook(lambda _module, _args, output: output)

    factors = {module.name: module.multiplier for module in outline(gpt).describe()}
    assert (factors["head"], factors["norm"], factors["blocks.0"]) == (0.125, 1.0, 1.0)


def test_the_shape_of_a_model_is_read_from_its_series(member):
    shape = member.shape

    assert (shape.width, shape.depth, shape.vocabulary, shape.heads) == (WIDTH, DEPTH, VOCABULARY, HEADS)
    assert (shape.block_matrices, shape.head_width) == (2, WIDTH / HEADS)


def test_the_facts_of_a_run_are_by_role(member):
    facts = member.facts

    assert (member.optimizer, facts.attention_scale) == ("adamw", 0.25)
    assert (facts.lr["hidden"], facts.lr["head"], facts.lr["embedding"]) == pytest.approx((1e-3, 0.02, 0.02))
    assert facts.weight_decay["hidden"] == pytest.approx(0.5)
    assert facts.weight_decay["head"] == 0.0
    assert facts.multipliers == pytest.approx({"head": 0.25, "residual": 0.5})


def test_every_role_is_measured_from_the_first_step(member):
    measured = {(metric, role) for metric, role, window in member.values if window == "init"}

    assert {
        ("update.own_mean", "embedding"), ("update.own_mean", "hidden"), ("update.own_mean", "head"),
        ("update.feature_mean", "head"), ("update.feature_mean", "residual"), ("activation.rms", "head"),
        ("attention.max_abs_logit", "attention"), ("update.abs_max", "gain"), ("update.abs_max", "bias"),
        ("weight.operator_norm", "hidden"), ("update.head_norm", "head"), ("gradient.rms", "hidden"),
    } <= measured  # fmt: skip


def test_a_head_with_a_bias_is_judged_by_the_norm_of_its_update_alone(gpt):
    gpt.head = nn.Linear(WIDTH, VOCABULARY)
    values = train(Trial(optimizer_of, sample.batch, sample.loss, 1), gpt, name="one", seed=0).values

    assert ("update.own_mean", "head", "init") not in values
    assert ("update.head_norm", "head", "init") in values


def test_training_diverging_to_nan_is_kept_as_such(gpt):
    def explode(model):
        return torch.optim.SGD(model.parameters(), lr=1e30)

    values = train(Trial(explode, sample.batch, sample.loss, 3), gpt, name="one", seed=0).values
    assert float("inf") in values.values()


def test_a_width_that_shapes_do_not_tell_is_refused():
    with pytest.raises(NotAFamily, match="its width cannot be read: it has no residual blocks, no embedding"):
        shape_of([], [])
