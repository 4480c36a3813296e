"""Attention by hand, by torch's own modules and by fused kernels: the logits are those that enter the softmax."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.stacks import models
from tests.stacks.models import (
    ATTENTIONS,
    BLOCKS,
    CONTEXT,
    HEADS,
    WIDTH,
    Attention,
    Gpt,
    MultiheadBlockAttention,
    cross_entropy,
    sentences,
)
from tests.stacks.twin import Run, Watched, assert_measured, assert_right, missing, train

STEPS = 3
"""All of them heavy."""


def loop(make_model, run: Run) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run.watch(model, optimizer)
    for ids, targets in sentences(STEPS):
        loss = cross_entropy(model(ids), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.loss(loss)


CORES = ["fused", "by_matmul", "by_method", "by_einsum", "by_baddbmm", "with_softcap", "with_sliding_window"]


@pytest.mark.parametrize("core", CORES)
def test_logits_that_enter_a_softmax_are_measured_per_head(tmp_path, core):
    def script(run: Run) -> None:
        loop(lambda: Gpt(lambda: Attention(getattr(models, core))), run)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, attention=ATTENTIONS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert {index for m, _, index in run.points if m == "attention.max_logit"} == set(range(HEADS))


def test_grouped_queries_have_logits_of_every_query_head(tmp_path):
    def script(run: Run) -> None:
        loop(lambda: Gpt(lambda: Attention(models.grouped, key_heads=2)), run)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, attention=ATTENTIONS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_largest_absolute_logits_are_measured_beside_the_signed_ones(tmp_path):
    def script(run: Run) -> None:
        loop(lambda: Gpt(lambda: Attention(models.by_matmul)), run)

    run = train(script, tmp_path)

    for (metric, subject, index), points in list(run.points.items()):
        if metric == "attention.max_logit":
            absolute = run.points["attention.max_abs_logit", subject, index]
            assert all(absolute[step] >= abs(value) * (1 - 1e-5) for step, value in points.items())
    assert run.measured("attention.max_abs_logit") == set(ATTENTIONS)


@pytest.mark.parametrize("need_weights", [True, False])
def test_torchs_multihead_attention_is_measured_with_and_without_weights(tmp_path, need_weights):
    def script(run: Run) -> None:
        loop(lambda: Gpt(lambda: MultiheadBlockAttention(need_weights=need_weights)), run)

    run = train(script, tmp_path)

    modules = {f"{name}.mha" for name in ATTENTIONS}
    assert run.measured("attention.max_logit") >= modules
    assert not modules & missing(run, "attention").keys()
    assert {f"{m}.{p}" for m in modules for p in ("in_proj_weight", "in_proj_bias")} <= run.measured("update.rms")
    assert {f"{m}.in_proj_weight" for m in modules} <= run.measured("weight.spectral_norm")
    silent = {e.subject for e in run.coverage if e.state == "silent"}
    assert {f"{m}.out_proj" for m in modules} & silent == set()  # its weight is used without a call
    assert_right(run, "activation.rms", "gradient.rms", "update.rms", "weight.rms")


Largest = dict[tuple[str, int], float]
"""Of the first forward: the largest visible logit, by attention module and head."""


def record_logits(
    model: nn.Module, largest: Largest, formula: Callable[[Tensor], Tensor] = lambda logits: logits
) -> None:
    """Work out logits from what the projections give, in float64; `formula` is what happens before the softmax."""

    def see(name: str, q: Tensor, k: Tensor) -> None:
        q, k = (t.detach().double().view(*t.shape[:2], HEADS, -1).transpose(1, 2) for t in (q, k))
        logits = formula(q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~models.causal(CONTEXT), -math.inf)
        for head, value in enumerate(logits.amax((0, 2, 3)).tolist()):
            largest.setdefault((name, head), value)

    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):

            def before(m: nn.MultiheadAttention, args: tuple[Tensor, ...], name: str = name) -> None:
                weight, bias = m.in_proj_weight.double(), m.in_proj_bias.double()
                q, k, _ = (args[0].double() @ weight.T + bias).chunk(3, -1)
                see(name, q, k)

            module.register_forward_pre_hook(before)
        elif isinstance(module, Attention):

            def after(m: Attention, args: tuple[Tensor, ...], _: Tensor, name: str = name) -> None:
                x = args[0].double()
                see(name, x @ m.q.weight.double().T, x @ m.k.weight.double().T)

            module.register_forward_hook(after)


def first_logits(run: Watched) -> Largest:
    """What was measured of the first step."""
    return {
        (s, i): points[0] for (m, s, i), points in run.points.items() if m == "attention.max_logit" and i is not None
    }


def test_logits_of_multihead_attention_are_those_of_its_projections(tmp_path):
    largest: Largest = {}

    def script(run: Run) -> None:
        model = Gpt(lambda: MultiheadBlockAttention(need_weights=True))
        if not run.is_watched:
            record_logits(model, largest)
        loop(lambda: model, run)

    run = train(script, tmp_path)

    assert first_logits(run) == pytest.approx(largest, rel=1e-4)


class Encoder(nn.Module):
    """Torch's own encoder over embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(models.WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, models.WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids)))


def test_torchs_encoder_is_measured_whole(tmp_path):
    def script(run: Run) -> None:
        loop(Encoder, run)

    run = train(script, tmp_path)

    modules = {f"encoder.layers.{i}.self_attn" for i in range(2)}
    assert_measured(run, steps=STEPS, attention=tuple(modules), features=("encoder.layers.0", "head"))
    assert_right(run, "activation.rms", "gradient.rms", "update.rms", "weight.rms")


def test_a_softmax_over_classes_is_no_attention(tmp_path):
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Embedding(models.WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, models.WORDS)

        def forward(self, ids: Tensor) -> Tensor:
            gate = torch.softmax(self.fc(self.embed(ids))[:, None], -1)[:, 0]
            return self.head(gate)

    def script(run: Run) -> None:
        loop(Classifier, run)

    run = train(script, tmp_path)

    assert run.measured("attention.max_logit") == set()


def test_kernels_of_ones_own_report_their_logits_by_one_call(tmp_path):
    import internist

    class Own(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k = (f(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for f in (self.q, self.k))
            scale, mask = q.shape[-1] ** -0.5, models.causal(x.shape[1])
            internist.attention_logits(self, q, k, scale=scale, mask=mask, softcap=CAP)
            return super().forward(x)

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = capped(q @ k.mT * q.shape[-1] ** -0.5)
        exponentials = logits.masked_fill(~models.causal(CONTEXT), -math.inf).exp()  # a softmax that nobody can see
        return exponentials / exponentials.sum(-1, keepdim=True) @ v

    largest: Largest = {}

    def script(run: Run) -> None:
        model = Gpt(lambda: Own(core))
        if not run.is_watched:
            record_logits(model, largest, capped)
        loop(lambda: model, run)

    run = train(script, tmp_path)

    assert first_logits(run) == pytest.approx(largest, rel=1e-4)
    assert not {*ATTENTIONS} & missing(run, "attention").keys()


CAP = 2.0


def capped(logits: Tensor) -> Tensor:
    return CAP * torch.tanh(logits / CAP)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_has_its_scores_and_mask_applied(tmp_path):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    seen = create_block_mask(lambda _, __, q, k: q >= k, None, None, CONTEXT, CONTEXT, device="cpu")

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.detach(), k.detach(), v.detach()  # it has no backward on a CPU
        return flex_attention(q, k, v, score_mod=lambda score, *_: capped(score), block_mask=seen)

    largest: Largest = {}

    def script(run: Run) -> None:
        model = Gpt(lambda: Attention(core))
        if not run.is_watched:
            record_logits(model, largest, capped)
        loop(lambda: model, run)

    run = train(script, tmp_path)

    assert first_logits(run) == pytest.approx(largest, rel=1e-4)
