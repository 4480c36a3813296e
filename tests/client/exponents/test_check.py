"""`internist.mup.check`: real models, trained a few steps."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from internist.mup import check
from internist.scaling.errors import NotAFamily

WIDTHS = (32, 64, 128, 256)


class Mlp(nn.Module):
    """A plain network: an input layer, two hidden ones, an output layer."""

    def __init__(self, width: int, inputs: int = 12, outputs: int = 10) -> None:
        super().__init__()
        sizes = (inputs, width, width, width)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, outputs, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Residual(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(23, width), nn.Linear(width, 23, bias=False)
        self.blocks = nn.Sequential(*(Branch(width) for _ in range(depth)))

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)))


def test_a_planned_model_has_nothing_wrong():
    found = check(lambda width: Mlp(width), widths=WIDTHS, optimizer="muon_plus_plus", lr=0.03, seeds=2, steps=4)

    assert found.diagnoses == ()
    assert found.exit_code in (0, 3)
    assert any("hidden matrices" in line and "update.own_mean" in line for line in found.table().splitlines())


def test_an_unscaled_model_is_told_what_is_wrong(tmp_path):
    told: list[str] = []
    found = check(
        lambda width: Mlp(width),
        widths=WIDTHS,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
        seeds=2,
        steps=3,
        progress=told.append,
    )
    found.plot(tmp_path / "check.svg")

    assert (found.verdict, found.exit_code) == ("FAIL", 1)
    assert "hidden_rate_not_divided" in [d.causes[0].id for d in found.diagnoses]
    assert told[:3] == ["width 32, seed 0", "width 32, seed 1", "width 64, seed 0"]
    assert (tmp_path / "check.svg").read_text().startswith("<svg ")


def test_width_and_depth_are_swept_from_the_first_of_each():
    found = check(Residual, widths=(16, 32, 64), depths=(2, 4, 8), optimizer="adamw", seeds=1, steps=1)

    sizes = {(m.width, m.depth) for m in found.report.family}
    assert sizes == {(16, 2), (32, 2), (64, 2), (16, 4), (16, 8)}
    assert {e.axis for e in found.exponents} == {"width", "depth"}


def test_the_same_check_gives_the_same_numbers():
    def once():
        found = check(lambda width: Mlp(width), widths=(16, 32, 64), optimizer="adamw", seeds=1, steps=2)
        return [e.values for e in found.exponents]

    assert once() == once()


def test_a_batch_and_a_loss_of_ones_own_are_used():
    seen: list[tuple[int, ...]] = []

    def loss(output, targets):
        seen.append(tuple(output.shape))
        return (output - targets).abs().mean()

    check(
        lambda width: Mlp(width), widths=(16, 32, 64), optimizer="sgd", seeds=1, steps=1,
        batch=lambda _: (torch.randn(3, 12), torch.zeros(3, 10)), loss=loss,
    )  # fmt: skip
    assert seen == [(3, 10)] * 3


def test_hooks_are_gone_from_what_was_checked():
    made: list[nn.Module] = []

    def build(width):
        made.append(Mlp(width))
        return made[-1]

    check(build, widths=(16, 32, 64), optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1), seeds=1, steps=1)

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made[0].modules())


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"widths": (16, 32)}, NotAFamily, "needs 3 different widths or 3 different depths, got 2 widths, 0 depths"),
        ({"widths": (16, 32, 0)}, ValueError, "widths: expected whole numbers of at least 1, got 0"),
        ({"widths": (16, 32, 64), "seeds": 0}, ValueError, "seeds: expected whole numbers of at least 1, got 0"),
        ({"depths": (2, 4, 8)}, TypeError, "depths are given, and build_model takes no keyword 'depth'"),
        ({"widths": (16, 32, 64), "optimizer": "adamm"}, ValueError, "did you mean 'adamw'"),
        ({"widths": (16, 32, 64), "optimizer": "lion"}, ValueError, "for others give a function"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, error, said):
    with pytest.raises(error, match=said):
        check(lambda width: Mlp(width), **arguments)


def test_a_model_no_batch_can_be_made_for_asks_for_one():
    with pytest.raises(ValueError, match="give batch="):
        check(
            lambda width: nn.Conv1d(width, 4, 1),
            widths=(16, 32, 64),
            optimizer=lambda m: torch.optim.SGD(m.parameters()),
        )
