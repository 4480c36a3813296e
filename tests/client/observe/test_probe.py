"""A replay that cannot be trusted switches itself off, says so once, and training does not notice."""

import collections
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import internist
from internist.model.outline import outline
from internist.observe.faults import Faults
from internist.observe.modules import ActivationCapture
from internist.observe.probe import ProbeReplay, replay_obstacle
from internist.observe.sampling import Sampling
from internist.observe.taps import Gate
from internist.record.series_book import SeriesBook
from tests.client.points import read

WIDTH = 8
STEPS = 4
"""Three of them, the first, replay."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def train(model: nn.Module, directory, batch: Callable[[], Any], *, steps: int = STEPS) -> tuple[list[float], str, Any]:
    """Losses, why the probe is not replayed, and the points of the run."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = internist.watch(model, optimizer, mode="offline", directory=directory, every=1)
    losses = []
    for _ in range(steps):
        args, kwargs = batch()
        loss = model(*args, **kwargs).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert monitor._observer is not None
    reason = monitor._observer._captures.probe.unsupported
    monitor.finish()
    return losses, reason, read(monitor.directory)[0]


def rows() -> tuple[tuple[Tensor], dict[str, Any]]:
    return (torch.randn(4, WIDTH),), {}


class Linear(nn.Module):
    """What the models here share: one linear layer, and a forward that does more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


# ---- the rehearsal -------------------------------------------------------------------------------------------------


class Deep:
    """An object of an object of an object ..., with a counter at its end."""

    def __init__(self, levels: int) -> None:
        self.calls = 0
        self.next = Deep(levels - 1) if levels else None


class CountingFarAway(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.deep = Deep(6)

    def forward(self, x: Tensor) -> Tensor:
        end = self.deep
        while end.next is not None:
            end = end.next
        end.calls += 1
        return self.linear(x)


class CountingOn(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.count = itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 + 0 * next(self.count))


class Consuming(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.schedule: Iterator[float] = (0.1 * i for i in range(1_000))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + next(self.schedule)


@pytest.mark.parametrize(
    ("build", "name"), [(CountingFarAway, "deep.next.next"), (CountingOn, "count"), (Consuming, "schedule")]
)
def test_the_first_replay_names_what_it_could_not_put_back_and_is_the_last(tmp_path, caplog, build, name):
    with caplog.at_level(logging.WARNING, logger="internist"):
        _, reason, points = train(build(), tmp_path, rows)

    assert reason.startswith(f"a forward in evaluation mode leaves a trace that cannot be undone: {name}")
    assert sum("the probe is not replayed" in record.message for record in caplog.records) == 1
    assert not any(metric == "update.feature" for metric, _, _ in points)
    assert any(metric == "update.own" for metric, _, _ in points)  # all else is measured


def test_a_rehearsal_measures_nothing(tmp_path):
    model = nn.Sequential(Linear(), Linear())
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(None))
    _, reason, points = train(model, tmp_path, rows, steps=1)

    assert reason == "" and calls == [None]  # the hook's list was put back each time
    assert set(points["update.feature", "0", None]) == {0}


# ---- faults --------------------------------------------------------------------------------------------------------


class Raising(Linear):
    """Raises in evaluation mode, having drawn and counted before."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.calls, self.dropout = error, 0, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x + 0.1 * torch.rand_like(x)
        if not self.training:
            raise self.error
        return self.dropout(self.linear(x))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("only in training"), "ValueError: only in training"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_a_forward_that_raises_or_runs_out_of_memory_is_not_replayed_again(tmp_path, error, reason):
    bare_model = Raising(error)
    optimizer = torch.optim.SGD(bare_model.parameters(), lr=0.05)
    watched_model = Raising(error)
    watched_model.load_state_dict(bare_model.state_dict())
    torch.manual_seed(1)
    bare = []
    for _ in range(STEPS):
        loss = bare_model(*rows()[0]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bare.append(loss.item())
    torch.manual_seed(1)
    losses, said, _ = train(watched_model, tmp_path, rows)

    assert losses == bare and watched_model.calls == STEPS
    assert reason in said


class RaisingLater(Linear):
    """Its third replay raises: the rehearsal and the first pass are well."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 1e9

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.linear.weight.abs().sum() > self.limit:
            raise RuntimeError("too large")
        return self.linear(x)


def test_one_fault_after_a_good_rehearsal_switches_the_replay_off(tmp_path):
    model = RaisingLater()

    def batch() -> tuple[tuple[Tensor], dict[str, Any]]:
        model.limit = 1e9 if not hasattr(batch, "later") else 0.0
        batch.later = True  # type: ignore[attr-defined]
        return rows()

    _, reason, points = train(model, tmp_path, batch)

    assert reason == "RuntimeError: too large"
    assert set(points["update.feature", "linear", None]) == {0}


def test_a_replay_that_takes_long_is_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setattr("internist.observe.probe.LONG_SECONDS", -1.0)
    _, reason, _ = train(Linear(), tmp_path, rows)

    assert reason == "one replay took 0 seconds"


# ---- batches -------------------------------------------------------------------------------------------------------


class WholeOnly(Linear):
    """Mixes its rows: a single one is refused."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 4:
            raise ValueError(f"expected 4 rows, got {x.shape[0]}")
        return self.linear(x - x.mean(0))


def test_a_model_that_refuses_one_row_is_replayed_on_the_whole_micro_batch(tmp_path):
    _, reason, points = train(WholeOnly(), tmp_path, rows)

    assert reason == ""
    assert set(points["update.feature", "linear", None]) == set(range(STEPS))


def test_a_later_micro_batch_of_another_layout_is_replayed_as_it_comes(tmp_path):
    sizes = iter([4, 1, 6, 4])
    _, reason, points = train(Linear(), tmp_path, lambda: ((torch.randn(next(sizes), 5, WIDTH),), {}))

    assert reason == "" and set(points["update.feature", "linear", None]) == set(range(STEPS))


@dataclass
class Data:
    x: Tensor


class OfDicts(Linear):
    def forward(self, batch: Any) -> Tensor:
        return self.linear(batch["x"] if isinstance(batch, collections.UserDict) else batch.x)


@pytest.mark.parametrize("wrap", [lambda x: collections.UserDict(x=x), Data], ids=["UserDict", "dataclass"])
def test_wrapped_batches_are_replayed(tmp_path, wrap):
    _, reason, points = train(OfDicts(), tmp_path, lambda: ((wrap(torch.randn(4, WIDTH)),), {}))

    assert reason == "" and ("update.feature", "linear", None) in points


class Positioned(Linear):
    """Takes multimodal position ids (3, batch, sequence)."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        if positions.shape[1:] != x.shape[:2]:
            raise ValueError(f"positions {tuple(positions.shape)} do not fit {tuple(x.shape)}")
        return self.linear(x + positions.float().mean(0)[..., None])


@pytest.mark.parametrize(("size", "length"), [(2, 5), (3, 5), (4, 1_100)])
def test_position_ids_of_three_axes_are_replayed(tmp_path, size, length):
    positions = torch.arange(length).expand(3, size, length)
    _, reason, points = train(Positioned(), tmp_path, lambda: ((torch.randn(size, length, WIDTH), positions), {}))

    assert reason == "" and set(points["update.feature", "linear", None]) == set(range(STEPS))


class Overwriting(Linear):
    """Writes to its input and to the cache it is given."""

    def forward(self, x: Tensor, cache: dict[str, Tensor]) -> Tensor:
        x.mul_(2)
        cache["last"] = self.linear(x).detach()
        return self.linear(x)


def test_a_forward_that_writes_to_its_arguments_writes_to_copies(tmp_path):
    cache: dict[str, Tensor] = {}
    inputs: list[Tensor] = []

    def batch() -> tuple[tuple[Tensor, dict[str, Tensor]], dict[str, Any]]:
        inputs.append(torch.ones(4, WIDTH))
        return (inputs[-1], cache), {}

    _, reason, _ = train(Overwriting(), tmp_path, batch)

    assert reason == ""
    assert all(torch.equal(x, torch.full((4, WIDTH), 2.0)) for x in inputs) and cache["last"].shape == (4, WIDTH)


def test_what_cannot_be_cut_is_said_and_training_goes_on(tmp_path):
    class Edges(Linear):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.linear(x) + 0 * x[edges[0]].sum()

    _, reason, _ = train(
        Edges(), tmp_path, lambda: ((torch.randn(5_000, WIDTH), torch.zeros(2, 7, dtype=torch.long)), {})
    )

    assert "have no batch dimension in common" in reason


def test_the_probe_may_be_taken_inside_a_closure(tmp_path):
    model = Linear()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path, every=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, WIDTH)).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert monitor._observer is not None and monitor._observer._captures.probe.unsupported == ""
    monitor.finish()


def test_a_vmapped_call_gives_no_probe():
    model = Linear()
    replay = part(model)
    torch.vmap(lambda x: replay.take((x,), {}) or model(x))(torch.ones(3, WIDTH))

    assert not replay.ready and replay.unsupported == ""


# ---- switches ------------------------------------------------------------------------------------------------------


def part(model: nn.Module, **options: Any) -> ProbeReplay:
    seen, gate, sampling = outline(model), Gate(), Sampling(every=1, **options)
    book = SeriesBook(sampling.wants)
    activations = ActivationCapture(seen, gate, book=book, faults=Faults(), sampling=sampling, world_size=1)
    return ProbeReplay(seen, gate, activations, book=book, sampling=sampling)


def test_a_replay_that_was_turned_off_takes_nothing_and_says_who_turned_it_off():
    replay = part(Linear(), replay=False)
    replay.take(*rows())
    replay.before(features=True, activations=False)

    assert not replay.ready and replay.unsupported == "watch(replay=False)"


def test_a_sharded_model_is_not_replayed():
    class FullyShardedDataParallel(nn.Module):
        pass

    assert "sharded" in replay_obstacle(nn.Sequential(FullyShardedDataParallel()))
    partitioned = Linear()
    partitioned.linear.weight.ds_id = 3  # type: ignore[attr-defined]
    assert "DeepSpeed" in replay_obstacle(partitioned)
