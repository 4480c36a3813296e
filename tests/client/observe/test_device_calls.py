"""What calls on an accelerator say is what calls on the host say, by another way: here both measure the same trainings
on the host."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import internist
from internist.demo.model import ByteGPT
from internist.observe import seen, sheets, token_pools
from internist.observe.sampling import Due
from tests.client.points import read

ROUNDING = 1e-5
"""Relative; float32 sums in another order."""
HALF_ROUNDING = 2e-3
"""The same of bfloat16: the host takes a block's output less its input in that type, an accelerator in float32."""
HEAVY = Due(light=True, heavy=True)
LIGHT = Due(light=True)

Points = dict[tuple[str, str, int | None], dict[int, float]]


def measured(
    directory,
    make: Callable[[], nn.Module],
    batches: list[list[Tensor]],
    *,
    far: bool,
    metrics: list[str] | None = None,
) -> tuple[Points, dict[tuple[str, str, int | None], str]]:
    """Every point of a training of one step per list of micro-batches, heavy and light in turn; and the bounds. Left
    out is what the monitor says of itself."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = internist.watch(model, optimizer, mode="offline", directory=directory, metrics=metrics, max_overhead=0)
    observer = monitor._observer
    observer._captures.activations.measures_on_devices = far
    for step, micro in enumerate(batches):
        observer.arm(step, LIGHT if step % 2 else HEAVY)
        for x in micro:
            model(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish()
    points, series, _ = read(monitor.directory)
    bounds = {key: each.bound for key, each in series.items()}
    return {key: value for key, value in points.items() if not key[0].startswith("monitor.")}, bounds


def same(tmp_path, make, batches, *, rounding: float = ROUNDING, **how) -> Points:
    """The points of both ways, which are the same."""
    near, near_bounds = measured(tmp_path / "near", make, batches, far=False, **how)
    found, found_bounds = measured(tmp_path / "far", make, batches, far=True, **how)
    assert found_bounds == near_bounds
    assert found.keys() == near.keys()
    for key, values in near.items():
        assert found[key] == pytest.approx(values, rel=rounding, abs=1e-7, nan_ok=True), key
    return found


def gpt() -> nn.Module:
    return ByteGPT(width=32, depth=2, heads=2, context=16)


def ids(batch: int, tokens: int = 16) -> Tensor:
    return torch.randint(256, (batch, tokens), generator=torch.Generator().manual_seed(batch))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def test_a_transformer(tmp_path):
    points = same(tmp_path, gpt, [[ids(8)]] * 4)

    assert points["activation.lipschitz", "blocks.0", None].keys() == {0, 2}
    assert points["update.own", "blocks.0.attn.qkv", None].keys() == {0, 1, 2, 3}


def test_micro_batches_of_several_sizes_are_parts_of_one_value(tmp_path):
    same(tmp_path, gpt, [[ids(8), ids(2)], [ids(4), ids(3), ids(8)], [ids(8), ids(2)]])


def test_batches_of_ever_other_sizes(tmp_path):
    same(tmp_path, gpt, [[ids(n)] for n in (8, 3, 5, 8, 2, 7)])


class Images(nn.Module):
    """Convolutions, whose features lie behind the batch, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.twice, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        x = self.twice(functional.relu(self.twice(x)))
        return self.out(x.mean((2, 3)))


def test_images_and_a_module_that_is_called_twice(tmp_path):
    same(tmp_path, Images, [[random(4, 3, 8, 8)]] * 2 + [[random(4, 3, 8, 8).to(memory_format=torch.channels_last)]])


class Passing(nn.Module):
    """A block that gives back what its last child gave."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_tensor_that_several_modules_give(tmp_path):
    same(tmp_path, Passing, [[random(6, 7, 8)], [random(70, 8)], [random(8)]])


def test_numbers_that_are_none_stay_so(tmp_path):
    x = random(6, 7, 8)
    x[0, 0, 0], x[1, 1, 1] = math.nan, math.inf

    points = same(tmp_path, Passing, [[random(6, 7, 8), x], [x]])

    assert math.isnan(points["activation.rms_q99", "blocks.0", None][1])
    assert points["activation.nonfinite", "blocks.0.0", None][0] == 16


def test_half_precision_and_wide_outputs(tmp_path, monkeypatch):
    from internist.observe import device_calls, host_calls

    for module in (seen, device_calls, host_calls):
        monkeypatch.setattr(module, "WIDE_OUTPUT", 100)

    same(tmp_path, lambda: gpt().bfloat16(), [[ids(8)]] * 3, rounding=HALF_ROUNDING)


def test_a_sheet_or_pool_that_is_full_is_reduced_on_the_way(tmp_path, monkeypatch):
    for module in (sheets, token_pools):
        monkeypatch.setattr(module, "FIRST_ROWS" if module is sheets else "FIRST_PLACES", 2)
    monkeypatch.setattr(sheets, "SHEET_BYTES", 10_000)
    monkeypatch.setattr(token_pools, "POOL_BYTES", 50_000)

    same(tmp_path, gpt, [[ids(8), ids(8)]] * 4)


def test_a_forward_that_raises_is_none_of_the_step(tmp_path):
    class Failing(Passing):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if len(x) == 13:
                raise ValueError
            return out

    def train(far: bool) -> Points:
        torch.manual_seed(0)
        model = Failing()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path / str(far), max_overhead=0)
        monitor._observer._captures.activations.measures_on_devices = far
        model(random(6, 8)).square().mean().backward()
        with pytest.raises(ValueError):
            model(random(13, 8))
        model(random(9, 8)).square().mean().backward()
        optimizer.step()
        monitor.finish()
        return {key: found for key, found in read(monitor.directory)[0].items() if not key[0].startswith("monitor.")}

    near, far = train(far=False), train(far=True)

    assert far.keys() == near.keys()
    assert all(far[key] == pytest.approx(near[key], rel=ROUNDING, abs=1e-7) for key in near)


@pytest.mark.parametrize(
    "metrics",
    [
        ["activation.rms"],
        ["activation.input_rms_max"],
        ["activation.rms_q99", "output.log_z_max"],
        ["block.contribution"],
        ["block.stream", "activation.spread_mean"],
        ["update.own", "gradient.rms"],
        ["attention.max_logit"],
    ],
)
def test_what_is_asked_for_alone(tmp_path, metrics):
    points = same(tmp_path, gpt, [[ids(8)]] * 2, metrics=metrics)

    assert {metric for metric, *_ in points} >= set(metrics)


def test_memory_is_used_again_and_given_back(tmp_path):
    torch.manual_seed(0)
    model = gpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path, max_overhead=0)
    activations = monitor._observer._captures.activations
    activations.measures_on_devices = True
    kept = []
    for step in range(4):
        monitor._observer.arm(step, HEAVY)
        model(ids(8)).square().mean().backward()
        optimizer.step()
        (calls,) = activations._on_devices.values()
        kept.append([sheet._planes.data_ptr() for sheet in calls._sheets._sheets.values()])
    assert kept[-1] == kept[-2] != []
    monitor.finish()

    assert not activations._on_devices
