"""Models of images: convolutions, batch norms, patches, channels last, a denoiser."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.stacks.models import BLOCKS, WIDTH, Attention, Block, Mlp, images
from tests.stacks.twin import Run, assert_measured, assert_right, train

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
