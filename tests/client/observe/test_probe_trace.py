"""A replay leaves no trace: a watched run has the bits of an unwatched one, whatever the model's forward does."""

import collections
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import internist
from internist.observe.digest import difference, digest
from internist.observe.untouched import untouched
from tests.client.points import read

STEPS = 20
"""Covers steps that replay the probe, and from 17 on some that do not."""
WIDTH = 8


def build_and_train(build: Callable[[], nn.Module], directory, *, watched: bool, autocast: bool = False) -> list[Any]:
    """Losses, the model's state afterwards, and the next draws of every global generator."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = internist.watch(model, optimizer, mode="offline", directory=directory, every=1) if watched else None
    generator = torch.Generator().manual_seed(1)
    found: list[Any] = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(torch.randn(4, WIDTH, generator=generator)).float().square().mean()
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    if monitor is not None:
        assert monitor._observer is not None and monitor._observer._captures.probe.unsupported == ""
        monitor.finish()
        points, _, _ = read(monitor.directory)
        assert any(metric == "update.feature" for metric, _, _ in points)
    found += [plain(value) for module in model.modules() for value in vars(module).items() if not hidden(value[0])]
    return [*found, torch.rand(2).tolist(), random.random(), np.random.rand()]


def hidden(name: str) -> bool:
    """Whether an attribute belongs to torch's bookkeeping of hooks."""
    return "hooks" in name or name in ("_modules", "_is_full_backward_hook")


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | collections.deque):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    return value if isinstance(value, int | float | str | bool | None) else type(value).__name__


def around(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), layer(), nn.Linear(WIDTH, 2))


# ---- random states -------------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Leaves itself out at random, by a generator of the kind asked for."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.linear, self.source = nn.Linear(WIDTH, WIDTH), source
        self.own = {"torch": torch.Generator().manual_seed(5)}
        self.pythons = [random.Random(5)]
        self.numpys = (np.random.default_rng(5), np.random.RandomState(5))

    def draw(self) -> float:
        return {
            "python": random.random,
            "numpy": np.random.rand,
            "torch": lambda: torch.rand(()).item(),
            "own torch": lambda: torch.rand((), generator=self.own["torch"]).item(),
            "own python": self.pythons[0].random,
            "own numpy": self.numpys[0].random,
            "own legacy numpy": self.numpys[1].rand,
        }[self.source]()

    def forward(self, x: Tensor) -> Tensor:
        return x if self.draw() < 0.5 and self.training else x + self.linear(x)


@pytest.mark.parametrize(
    "source", ["python", "numpy", "torch", "own torch", "own python", "own numpy", "own legacy numpy"]
)
def test_a_forward_that_draws_from_any_generator_draws_the_same_when_watched(tmp_path, source):
    build = around(lambda: Dropping(source))
    bare = build_and_train(build, tmp_path, watched=False)

    assert build_and_train(build, tmp_path, watched=True) == bare


# ---- counters, caches, memories ------------------------------------------------------------------------------------


@dataclass
class Statistics:
    calls: int = 0
    seen: list[float] = field(default_factory=list)


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Counting(nn.Module):
    """Counts its tokens in a place of the kind asked for, also in evaluation mode, and lets the count act."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(WIDTH, WIDTH), how
        self.register_buffer("buffer", torch.zeros(4))
        self.tensor, self.list, self.number, self.dict = torch.zeros(4), [0.0], 0, {"calls": 0}
        self.deque, self.set, self.array = collections.deque([0.0], maxlen=5), {0}, np.zeros(4)
        self.default, self.counter = collections.defaultdict(int), collections.Counter()
        self.statistics, self.slotted = Statistics(), Slotted()
        self.nested = {"a": [(Statistics(),)]}

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        counts = torch.bincount(y.detach().argmax(-1).flatten() % 4, minlength=4).float()
        total = float(counts.sum())
        match self.how:
            case "buffer in place":
                self.buffer += counts
            case "buffer behind autograd's back":
                self.buffer.data.add_(counts)
            case "buffer reassigned":
                self.buffer = self.buffer + counts
            case "buffer exchanged":
                self.buffer.data = self.buffer.data + counts
            case "tensor":
                self.tensor += counts
            case "list":
                self.list.append(total)
            case "number":
                self.number += 1
            case "dict":
                self.dict["calls"] += 1
                self.dict[f"at {self.dict['calls']}"] = total
            case "deque":
                self.deque.append(total)
            case "set":
                self.set.add(len(self.set))
            case "array":
                self.array += counts.numpy()
            case "default dict":
                self.default[len(self.default)] += 1
            case "counter":
                self.counter.update(counts.tolist())
            case "object":
                self.statistics.calls += 1
                self.statistics.seen.append(total)
            case "slots":
                self.slotted.calls += 1
            case "nested":
                self.nested["a"][0][0].seen.append(total)
            case "created":
                self.created = getattr(self, "created", 0) + 1
            case "cached":
                if not hasattr(self, "table"):
                    self.table = torch.full((WIDTH,), 1.0 + 0.1 * self.training)
                y = y * self.table
            case "class":
                type(self).calls = getattr(type(self), "calls", 0) + 1
        reach = self.number + self.dict["calls"] + len(self.list) + len(self.deque) + self.slotted.calls
        return y * (1 + 0.01 * float(self.buffer.mean() + self.tensor.mean() + self.array.mean() + reach))


COUNTERS = [
    "buffer in place", "buffer behind autograd's back", "buffer reassigned", "buffer exchanged", "tensor", "list",
    "number", "dict", "deque", "set", "array", "default dict", "counter", "object", "slots", "nested", "created",
    "cached",
]  # fmt: skip


@pytest.mark.parametrize("how", COUNTERS)
def test_a_forward_that_counts_anywhere_counts_the_same_when_watched(tmp_path, how):
    build = around(lambda: Counting(how))
    bare = build_and_train(build, tmp_path, watched=False)

    assert build_and_train(build, tmp_path, watched=True) == bare


def test_a_counter_of_the_class_counts_the_same_when_watched(tmp_path):
    build = around(lambda: Counting("class"))
    build_and_train(build, tmp_path, watched=False)
    bare, Counting.calls = Counting.calls, 0
    build_and_train(build, tmp_path, watched=True)

    assert Counting.calls == bare == STEPS


@pytest.mark.parametrize("how", COUNTERS)
def test_containers_keep_their_identity_and_their_content(how):
    layer = Counting(how)
    before = {name: id(value) for name, value in vars(layer).items()}
    state = digest(layer)

    with untouched(layer) as trace, torch.no_grad():
        layer(torch.ones(4, WIDTH))

    assert {name: id(value) for name, value in vars(layer).items()} == before
    assert difference(state, digest(layer)) == [] and trace.left == []


class Recurrent(nn.Module):
    """Carries its hidden state from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.hidden = nn.GRUCell(WIDTH, WIDTH), None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden if self.hidden is not None and len(self.hidden) == len(x) else x.new_zeros(len(x), WIDTH)
        out = self.cell(x, hidden)
        self.hidden = out.detach()
        return out


class Codebook(nn.Module):
    """A vector quantiser whose codes follow their inputs, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(6, WIDTH))
        self.register_buffer("sizes", torch.ones(6))
        self.embedding = nn.Embedding(6, WIDTH)
        self.embedding.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach(), self.codes).argmin(-1)
        hits = functional.one_hot(nearest, 6).float()
        self.sizes.data.mul_(0.9).add_(hits.sum(0), alpha=0.1)
        self.codes.data.lerp_((hits.t() @ x.detach()) / self.sizes[:, None].clamp(min=0.1), 0.1)
        self.embedding.weight.data.copy_(self.codes)
        return x + (self.embedding(nearest) - x).detach()


class Renormalised(nn.Module):
    """Writes to its parameter before it uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.mul_(0.99)
        return self.linear(x)


class Swapping(nn.Module):
    """Exchanges its submodule at every call, and drops a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out = self.now(x)
        self.now, self.other = self.other, self.now
        return out


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, WIDTH, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.embedding((x.detach().abs() * 7).long()[:, 0] % 16)


CALLS = {"helper": 0}


def helper() -> int:
    CALLS["helper"] += 1
    return CALLS["helper"]


class Global(nn.Module):
    """Counts in a dictionary of its file, by a function of its file, and in one of its class."""

    shared: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        CALLS["helper"] = 0
        self.shared.clear()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.shared["calls"] = self.shared.get("calls", 0) + 1
        return self.linear(x) * (1 + 0.01 * helper() + 0.01 * self.shared["calls"])


class Hidden(nn.Module):
    """Keeps modules where `modules()` does not see them: they stay in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.hidden = nn.Linear(WIDTH, WIDTH), [nn.BatchNorm1d(WIDTH), nn.Dropout(0.3)]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.hidden[1](self.hidden[0](x)))


class Experts(nn.Module):
    """Balances its experts by a bias that every forward moves, and remembers auxiliary losses."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 4), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("bias", torch.zeros(4))
        self.auxiliary: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.gate(x) + self.bias).softmax(-1)
        self.load = torch.bincount(weights.argmax(-1), minlength=4).float()
        self.bias -= 0.01 * torch.sign(self.load - self.load.mean())
        self.auxiliary.append(weights.mean())
        return sum(weights[:, j : j + 1] * expert(x) for j, expert in enumerate(self.experts))


class Training(nn.Module):
    """Trains a layer of its own in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.fast = nn.Linear(WIDTH, WIDTH), [nn.Linear(WIDTH, WIDTH)]
        self.optimizer = torch.optim.AdamW(self.fast[0].parameters(), lr=0.1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            self.optimizer.zero_grad()
            self.fast[0](x.detach()).square().mean().backward()
            self.optimizer.step()
        return self.linear(x) + self.fast[0](x).detach()


class Functional(nn.Module):
    """Dropout and normalisation as functions, which no flag of a submodule turns off."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.3, training=True)


@pytest.mark.parametrize(
    "layer",
    [
        Recurrent,
        Codebook,
        Renormalised,
        Swapping,
        Table,
        Functional,
        Global,
        Hidden,
        Experts,
        Training,
        lambda: nn.BatchNorm1d(WIDTH),
        lambda: nn.BatchNorm1d(WIDTH, momentum=None),
        lambda: nn.Dropout(0.5),
        lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        lambda: parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)),
        lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    ],
    ids=[
        "carried state", "codebook", "writes to a parameter", "swaps its submodule", "max_norm", "functional dropout",
        "globals", "hidden modules", "experts", "trains itself",
        "batch norm", "cumulative batch norm", "dropout", "weight norm", "orthogonal", "old spectral norm",
    ],
)  # fmt: skip
def test_a_layer_with_a_state_of_its_own_trains_to_the_same_bits_when_watched(tmp_path, layer):
    bare = build_and_train(around(layer), tmp_path, watched=False)

    assert build_and_train(around(layer), tmp_path, watched=True) == bare


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm_trains_to_the_same_bits_when_watched(tmp_path):
    build = around(lambda: nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)))
    bare = build_and_train(build, tmp_path, watched=False)

    assert build_and_train(build, tmp_path, watched=True) == bare


def test_a_step_inside_autocast_leaves_no_cached_cast_behind(tmp_path):
    build = around(lambda: nn.Linear(WIDTH, WIDTH))
    bare = build_and_train(build, tmp_path, watched=False, autocast=True)

    assert build_and_train(build, tmp_path, watched=True, autocast=True) == bare


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_trains_to_the_same_bits_with_forwards_that_leave_no_trace_in_between(wrap):
    def losses(*, replayed: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(wrap(nn.Linear(WIDTH, WIDTH)), nn.Linear(WIDTH, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        for _ in range(STEPS):
            loss = model(torch.randn(4, WIDTH)).square().mean()
            loss.backward()
            if replayed:
                with untouched(model), torch.no_grad():
                    model(torch.randn(1, WIDTH))
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    assert losses(replayed=True) == losses(replayed=False)


def test_weights_cached_by_parametrize_are_not_seen_by_a_replay_nor_left_by_it():
    layer = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
    with parametrize.cached():
        with untouched(layer), torch.no_grad():
            layer(torch.ones(1, WIDTH))

        assert parametrize._cache == {}
        assert layer(torch.ones(1, WIDTH)).requires_grad


def test_a_graph_that_saved_a_buffer_can_still_be_walked_after_a_replay():
    layer = Counting("buffer in place")
    x = torch.ones(4, WIDTH, requires_grad=True)
    loss = (x * layer.buffer[:1]).sum()
    with untouched(layer), torch.no_grad():
        layer(torch.ones(4, WIDTH))
    loss.backward()

    assert torch.equal(x.grad, torch.zeros(4, WIDTH))


# ---- hooks ---------------------------------------------------------------------------------------------------------

SEEN_BY_HOOK: list[float] = []
CALLS_OF_HOOK = 0


def global_hook(module: nn.Module, args: Any, output: Tensor) -> None:
    global CALLS_OF_HOOK
    CALLS_OF_HOOK += 1
    SEEN_BY_HOOK.append(output.mean().item())


class Recorder:
    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}

    def hook(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        self.seen.setdefault("all", []).append(output.mean().item())
        return output * (1 + 0.01 * len(self.seen["all"]))


def test_what_hooks_of_the_user_remember_is_the_same_when_watched(tmp_path):
    def remembered(*, watched: bool) -> list[Any]:
        global CALLS_OF_HOOK
        CALLS_OF_HOOK = 0
        SEEN_BY_HOOK.clear()
        recorder, seen, calls = Recorder(), [], 0

        def closure(module: nn.Module, args: Any, output: Tensor) -> None:
            nonlocal calls
            calls += 1
            seen.append(output.mean().item())

        def into(store: list[float], module: nn.Module, args: Any) -> None:
            store.append(args[0].mean().item())

        store: list[float] = []

        def build() -> nn.Module:
            model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
            model[0].register_forward_hook(recorder.hook)
            model[0].register_forward_hook(closure)
            model[1].register_forward_hook(global_hook)
            model[1].register_forward_pre_hook(functools.partial(into, store))
            return model

        handle = nn.modules.module.register_module_forward_hook(lambda *_: store.append(1.0))
        losses = build_and_train(build, tmp_path, watched=watched)
        handle.remove()
        return [losses, recorder.seen, seen, calls, store, list(SEEN_BY_HOOK), CALLS_OF_HOOK]

    assert remembered(watched=True) == remembered(watched=False)


# ---- what is left alone --------------------------------------------------------------------------------------------


def test_modules_keep_their_flags_their_gradients_and_torch_its_switches():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH).eval(), nn.Dropout(0.1))
    model(torch.ones(4, WIDTH)).sum().backward()
    gradients = [p.grad for p in model.parameters()]

    class Switching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.set_default_dtype(torch.float64)
            torch.use_deterministic_algorithms(True)
            model[0].weight.grad = None
            model[0].weight.requires_grad_(False)
            return model(x)

    whole = nn.ModuleList([Switching(), model])
    with untouched(whole), torch.no_grad():
        whole[0](torch.ones(4, WIDTH))

    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(
        p.grad is gradient and p.requires_grad for p, gradient in zip(model.parameters(), gradients, strict=True)
    )
    assert torch.get_default_dtype() is torch.float32 and not torch.are_deterministic_algorithms_enabled()


def test_everything_is_put_back_when_the_forward_raises():
    class Failing(Counting):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("provoked")

    layer = Failing("buffer reassigned")
    state = digest(layer)
    with pytest.raises(RuntimeError, match="provoked"), untouched(layer):
        layer(torch.ones(4, WIDTH))

    assert difference(state, digest(layer)) == []


def test_a_tensor_that_is_too_large_to_copy_is_named_when_it_moves(monkeypatch):
    monkeypatch.setattr("internist.observe.kept_tensors.SAVED_BYTES", 8)
    layer = Counting("buffer in place")
    with untouched(layer) as trace, torch.no_grad():
        layer(torch.ones(4, WIDTH))

    assert trace.left == ["buffer"]


def test_an_object_that_other_threads_use_is_left_alone():
    import threading

    class Queue:
        def __init__(self) -> None:
            self.lock, self.entries = threading.Lock(), [1]

    layer = nn.Linear(2, 2)
    layer.queue = Queue()
    with untouched(layer):
        layer.queue.entries.append(2)  # as another thread would

    assert layer.queue.entries == [1, 2]


# ---- odd things ----------------------------------------------------------------------------------------------------


def test_tensors_of_every_kind_are_put_back():
    layer = nn.Linear(WIDTH, WIDTH)
    layer.register_buffer("float8", torch.randn(4, 4).to(torch.float8_e4m3fn))
    layer.register_buffer("expanded", torch.zeros(1).expand(4))
    layer.register_buffer("sparse", torch.eye(3).to_sparse())
    layer.register_buffer("complex", torch.ones(3, dtype=torch.complex64))
    layer.register_buffer("nan", torch.full((3,), torch.nan))
    layer.register_buffer("meta", torch.zeros(3, device="meta"))
    layer.register_buffer("none", torch.zeros(0))
    layer.register_buffer("bits", torch.zeros(3, dtype=torch.bool))
    layer.lazy = nn.LazyLinear(3)
    with torch.inference_mode():
        layer.register_buffer("inference", torch.ones(3))
    state = digest(layer)
    with untouched(layer, written=None) as trace, torch.no_grad():
        layer.float8.data.copy_(torch.zeros(4, 4).to(torch.float8_e4m3fn))
        layer.expanded[:1] += 1
        layer.complex.zero_()
        layer.nan.zero_()
        layer.bits.logical_not_()
        layer.weight.data.zero_()
        with torch.inference_mode():
            layer.inference.add_(1)

    assert trace.left == [] and trace.written == {id(layer.weight)}
    assert difference(state, digest(layer)) == []
    assert torch.equal(layer.inference, torch.ones(3)) and layer.nan.isnan().all() and not layer.bits.any()
    assert layer.expanded.tolist() == [0.0] * 4 and layer.weight.any()


class Hostile(dict):
    """Refuses whatever could be asked of it."""

    def refuse(self, *_: Any) -> Any:
        raise AssertionError("the user's code was called")

    items = keys = values = __len__ = __iter__ = __eq__ = __repr__ = __bool__ = __contains__ = refuse  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Guarded:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")

    __eq__ = __bool__ = __repr__ = Hostile.refuse  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def test_no_code_of_the_user_runs_while_we_look():
    layer = nn.Linear(2, 2)
    layer.hostile, layer.guarded, layer.keyed = Hostile(x=1), Guarded(), {1: Guarded()}
    state = digest(layer)
    with untouched(layer) as trace:
        dict.__setitem__(layer.hostile, "y", 2)
        layer.guarded.z = 3

    assert trace.left == [] and difference(state, digest(layer)) == []
    assert list(dict.items(layer.hostile)) == [("x", 1)] and vars(layer.guarded) == {}


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_scripted_model_gets_its_mode_and_its_buffers_back():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)))
    before = [b.clone() for b in scripted.buffers()]
    with untouched(scripted), torch.no_grad():
        scripted.train()
        scripted(torch.randn(4, WIDTH))

    assert scripted.training and all(map(torch.equal, scripted.buffers(), before))
