"""Attention by hand, by torch's own modules and by fused kernels: the logits are those that enter the softmax."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.stacks import models
from tests.stacks.models import ATTENTIONS, BLOCKS, CONTEXT, HEADS, WIDTH, Attention, Gpt, MultiheadBlockAttention, cross_entropy, sentences  # fmt: skip
from tests.stacks.twin import Run, assert_measured, assert_right, missing, train

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
    assert {f"{m}.out_proj" for m in modules} & missing(run, "activation").keys() == set()  # it is never called
    assert_right(run, "activation.rms", "gradient.rms", "update.rms", "weight.rms")


def test_logits_of_multihead_attention_are_those_of_its_projections(tmp_path):
    largest: dict[tuple[str, int], float] = {}

    def script(run: Run) -> None:
        model = Gpt(lambda: MultiheadBlockAttention(need_weights=True))
        if not run.is_watched:
            for name in ATTENTIONS:
                model.get_submodule(f"{name}.mha").register_forward_pre_hook(
                    lambda m, args, name=name: [
                        largest.setdefault((f"{name}.mha", head), value)
                        for head, value in enumerate(of_projections(m, args[0]))
                    ]
                    and None
                )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run.watch(model, optimizer)
        for ids, targets in sentences(1):
            loss = cross_entropy(model(ids), targets)
            loss.backward()
            optimizer.step()
            run.loss(loss)

    def of_projections(module: nn.MultiheadAttention, x: Tensor) -> list[float]:
        q, k, _ = (x.double() @ module.in_proj_weight.double().T + module.in_proj_bias.double()).chunk(3, -1)
        q, k = (t.view(*t.shape[:2], HEADS, -1).transpose(1, 2) for t in (q, k))
        logits = (q @ k.mT / math.sqrt(WIDTH // HEADS)).masked_fill(~models.causal(CONTEXT), -math.inf)
        return logits.detach().amax((0, 2, 3)).tolist()

    run = train(script, tmp_path)

    found = {(s, i): points[0] for (m, s, i), points in run.points.items() if m == "attention.max_logit"}
    assert found == pytest.approx(largest, rel=1e-4)


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
            q = self.q(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
            k = self.k(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
            scale, mask = q.shape[-1] ** -0.5, models.causal(x.shape[1])
            internist.attention_logits(self, q, k, scale=scale, mask=mask, softcap=5.0)
            return super().forward(x)

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = 5.0 * torch.tanh(q @ k.mT * q.shape[-1] ** -0.5 / 5.0)
        exponentials = logits.masked_fill(~models.causal(CONTEXT), -math.inf).exp()  # a softmax nobody can see
        return exponentials / exponentials.sum(-1, keepdim=True) @ v

    largest: dict[tuple[str, int], float] = {}

    def script(run: Run) -> None:
        loop(lambda: Gpt(lambda: Own(core)), run)

    run = train(script, tmp_path)

    assert largest == {}
    assert run.measured("attention.max_logit") == set(ATTENTIONS)
    assert all(
        value <= 5.0 + 1e-4 for (m, _, _), points in run.points.items() if m == "attention.max_logit" for value in points.values()
    )
    assert not {*ATTENTIONS} & missing(run, "attention").keys()
