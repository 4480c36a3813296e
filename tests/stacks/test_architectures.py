"""Models that are no GPT: images, recurrence, experts, two models at once."""

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
    Attention,
    Block,
    Gpt,
    Mlp,
    cross_entropy,
    images,
    sentences,
    vectors,
)
from tests.stacks.twin import Run, assert_coverage_is_honest, assert_measured, assert_right, missing, train, train_all

STEPS = 4


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def classify(run: Run, model: nn.Module, *, memory_format: torch.memory_format = torch.contiguous_format) -> None:
    model = model.to(memory_format=memory_format)
    optimizer = sgd(model)
    run.watch(model, optimizer)
    for x, labels in images(STEPS):
        loss = functional.cross_entropy(model(x.to(memory_format=memory_format)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.loss(loss)


def next_words(run: Run, model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run.watch(model, optimizer)
    for ids, targets in sentences(STEPS):
        loss = cross_entropy(model(ids), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.loss(loss)


# ---- images --------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(ResidualBlock(8), ResidualBlock(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn1d, self.fc = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.layers(functional.relu(self.bn(self.stem(x)))))
        return self.fc(self.bn1d(x.mean((2, 3))))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_a_residual_network_is_measured_whole(tmp_path, memory_format):
    run = train(lambda run: classify(run, ResNet(), memory_format=memory_format), tmp_path)

    assert_measured(run, steps=STEPS, features=("layers.0", "layers.1", "fc"))
    assert_right(run)


def test_tokens_of_an_image_are_its_pixels_and_of_a_batch_its_rows(tmp_path):
    largest: dict[str, float] = {}

    def script(run: Run) -> None:
        model = ResNet()
        if not run.is_watched:

            def see(name: str):
                def hook(_, __, out):
                    tokens = out.detach().double().movedim(1, -1).flatten(0, -2)
                    largest.setdefault(name, tokens.square().mean(-1).sqrt().max().item())

                return hook

            for name in ("stem", "bn", "bn1d", "layers.0.bn2", "depthwise"):
                model.get_submodule(name).register_forward_hook(see(name))
        classify(run, model)

    run = train(script, tmp_path)

    found = {name: run.points["activation.rms_max", name, None][0] for name in largest}
    assert found == pytest.approx(largest, rel=2e-4)


class Patches(nn.Module):
    """A vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, 5, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block(Attention(), Mlp()) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def test_a_vision_transformer_is_measured_whole(tmp_path):
    run = train(lambda run: classify(run, Patches()), tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"), but=("model",))
    assert_right(run)
    assert {"token", "position"} <= run.measured("update.rms")


class ChannelsLastBlock(nn.Module):
    """A ConvNeXt block: features are last between the convolution and the residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1)
        return x + self.down(functional.gelu(self.up(self.norm(y)))).permute(0, 3, 1, 2)


def test_linear_layers_in_a_convolutional_network_are_measured_over_their_own_features(tmp_path):
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 1),
            ChannelsLastBlock(8),
            ChannelsLastBlock(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )

    run = train(lambda run: classify(run, make()), tmp_path)

    assert_measured(run, steps=STEPS, features=("1", "2"))
    assert_right(run)


class UNet(nn.Module):
    """A denoiser with a time embedding, skips and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8))
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.norm, self.middle = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.tensor([1.0, 2.0])
        first = self.first(x) + self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
        middle = self.middle(functional.silu(self.norm(self.down(first))))
        return self.last(torch.cat([self.up(middle), first], 1))


def test_a_diffusion_model_is_measured_whole(tmp_path):
    def script(run: Run) -> None:
        model = UNet()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run.watch(model, optimizer)
        for x, _ in images(STEPS):
            t, noise = torch.rand(len(x)), torch.randn_like(x)
            mix = x * (1 - t)[:, None, None, None] + noise * t[:, None, None, None]
            loss = functional.mse_loss(model(mix, t), noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS)
    assert_right(run)
    assert {f"{n}.weight" for n in ("first", "down", "middle", "up", "last")} <= run.measured("weight.spectral_norm")


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
    seen: dict[tuple[str, int], float] = {}

    def script(run: Run) -> None:
        model = Gpt(mlp=StackOfExperts)
        next_words(run, model)
        if not run.is_watched:
            for block in range(2):
                for name in ("up", "down"):
                    stack = model.get_parameter(f"blocks.{block}.mlp.{name}").detach().double()
                    for expert, norm in enumerate(torch.linalg.matrix_norm(stack, 2).tolist()):
                        seen[f"blocks.{block}.mlp.{name}", expert] = norm

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    last = max(run.steps("weight.spectral_norm", "blocks.0.mlp.up", 0), default=None)
    assert last == STEPS - 2  # steps 0, 1 and 2 measure every matrix, and so may others
    assert {(s, i) for m, s, i in run.points if m == "weight.spectral_norm" and i is not None} == seen.keys()


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
