"""Models that are no GPT: recurrence, experts, two models at once."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.stacks.models import (
    BLOCKS,
    CONTEXT,
    WIDTH,
    WORDS,
    Gpt,
    Mlp,
    cross_entropy,
    sentences,
    vectors,
)
from tests.stacks.twin import Run, assert_coverage_is_honest, assert_measured, assert_right, missing, train, train_all

STEPS = 4


def next_words(run: Run, model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run.watch(model, optimizer)
    for ids, targets in sentences(STEPS):
        loss = cross_entropy(model(ids), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.loss(loss)


# ---- recurrence ----------------------------------------------------------------------------------------------------


HIDDEN = 12


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(WORDS, WIDTH), kind(WIDTH, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_language_model_is_measured_whole(tmp_path, kind):
    run = train(lambda run: next_words(run, Recurrent(kind)), tmp_path)

    assert_measured(run, steps=STEPS, features=("head",))
    assert_right(run)
    matrices = {f"rnn.weight_{side}_l{layer}" for side in ("ih", "hh") for layer in range(2)}
    assert not matrices & missing(run, "update").keys()
    assert matrices <= run.measured("weight.spectral_norm")


def test_a_cell_that_carries_memory_from_call_to_call_keeps_its_bits(tmp_path):
    class Carrying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell = nn.Embedding(WORDS, WIDTH), nn.GRUCell(WIDTH, HIDDEN)
            self.head = nn.Linear(HIDDEN, WORDS)
            self.memory: Tensor | None = None
            self.calls: list[int] = []

        def forward(self, ids: Tensor) -> Tensor:
            memory = (torch.zeros(HIDDEN) if self.memory is None else self.memory.detach()).expand(len(ids), -1)
            outputs = []
            for x in self.embed(ids).unbind(1):
                memory = self.cell(x, memory)
                outputs.append(memory)
            self.memory = memory.mean(0)
            self.calls.append(ids.shape[1])
            return self.head(torch.stack(outputs, 1)) / (1 + 1e-3 * len(self.calls))

    run = train(lambda run: next_words(run, Carrying()), tmp_path)

    assert_right(run)
    assert run.steps("activation.rms", "cell") == list(range(STEPS))
    assert run.steps("update.rms", "cell.weight_hh") == list(range(STEPS))
    assert run.measured("weight.spectral_norm") >= {"cell.weight_ih", "cell.weight_hh"}


# ---- experts -------------------------------------------------------------------------------------------------------


class ListOfExperts(nn.Module):
    """Experts in a ModuleList, with a counter buffer that is made anew at each call, as routers do."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.experts = nn.ModuleList(Mlp() for _ in range(experts))
        self.register_buffer("counts", torch.zeros(experts, dtype=torch.long))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        weights, chosen = self.router(flat).softmax(-1).max(-1)
        self.counts = self.counts + torch.bincount(chosen, minlength=len(self.experts))
        self.calls += 1
        out = torch.zeros_like(flat)
        for place, expert in enumerate(self.experts):
            mine = chosen == place
            if mine.any():
                out[mine] = expert(flat[mine]) * weights[mine, None]
        return out.view_as(x) * (1 + 1e-3 * self.calls) / (1 + 1e-4 * self.counts.max())


class StackOfExperts(nn.Module):
    """Experts as three-dimensional parameters: (experts, fan_out, fan_in)."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, 2 * WIDTH, WIDTH) * 0.1)
        self.down = nn.Parameter(torch.randn(experts, WIDTH, 2 * WIDTH) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        hidden = functional.silu(torch.einsum("btd,ehd->bteh", x, self.up))
        return torch.einsum("bteh,edh,bte->btd", hidden, self.down, weights)


def test_experts_in_a_list_with_counters_keep_their_bits_and_are_measured(tmp_path):
    run = train(lambda run: next_words(run, Gpt(mlp=ListOfExperts)), tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_experts_in_a_stack_have_rms_gradients_and_a_spectrum_each(tmp_path):
    run = train(lambda run: next_words(run, Gpt(mlp=StackOfExperts)), tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    stacks = {f"{block}.mlp.{name}" for block in BLOCKS for name in ("up", "down")}
    found = {(s, i) for m, s, i in run.points if m == "weight.spectral_norm" and s in stacks}
    assert found == {(name, expert) for name in stacks for expert in range(4)}


# ---- two models ----------------------------------------------------------------------------------------------------


def test_generator_and_discriminator_are_two_runs_that_do_not_disturb_each_other(tmp_path):
    def script(run: Run) -> None:
        generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, WIDTH))
        critic = nn.Sequential(nn.Linear(WIDTH, 16), nn.LeakyReLU(), nn.Linear(16, 1))
        makes, judges = (torch.optim.Adam(m.parameters(), lr=1e-2) for m in (generator, critic))
        run.watch(generator, makes)
        run.watch(critic, judges)
        for real in vectors(STEPS):
            fake = generator(torch.randn(len(real), 4))
            loss = functional.softplus(-critic(real)).mean() + functional.softplus(critic(fake.detach())).mean()
            judges.zero_grad()
            loss.backward()
            judges.step()
            run.loss(loss)
            loss = functional.softplus(-critic(fake)).mean()
            makes.zero_grad()
            loss.backward()
            makes.step()
            run.loss(loss)

    runs = train_all(script, tmp_path)

    for run in runs:
        assert_right(run, "gradient.rms", "update.rms", "weight.rms")
        assert run.steps("update.rms", "0.weight") == list(range(STEPS))
        assert run.steps("activation.rms", "2") == list(range(STEPS))
    assert_right(runs[0], "activation.rms")


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(z), mean, log_variance


def test_a_variational_autoencoder_is_measured_whole_and_its_noise_is_the_same(tmp_path):
    def script(run: Run) -> None:
        model = Autoencoder()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        run.watch(model, optimizer)
        for x in vectors(STEPS):
            again, mean, log_variance = model(x)
            loss = functional.mse_loss(again, x) - 0.5 * (1 + log_variance - mean**2 - log_variance.exp()).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS)
    assert_right(run)


def test_a_student_watched_beside_its_teacher_is_the_only_one_measured(tmp_path):
    def script(run: Run) -> None:
        student = Gpt()
        teacher = copy.deepcopy(student).requires_grad_(False)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
        run.watch(student, optimizer)
        for ids, _ in sentences(STEPS):
            with torch.no_grad():
                wanted = teacher(ids.flip(1)).softmax(-1)
            loss = functional.cross_entropy(student(ids).flatten(0, 1), wanted.flatten(0, 1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert_coverage_is_honest(run)
    assert CONTEXT == 8
