"""The monitored run is the unmonitored run: the same losses to the last bit, eager and compiled, dropout on."""

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import internist
from internist.demo.model import ByteGPT, batch, text

STEPS = 20
"""Covers steps that measure everything, and from 17 on some that measure nothing."""


def losses(*, compiled: bool, watched: bool, directory, accumulate: int = 1, how: str = "module") -> list[float]:
    torch.manual_seed(0)
    inner = ByteGPT(width=32, depth=2, heads=2, context=16, dropout=0.2)
    model = inner
    if compiled and how == "module":
        model = torch.compile(inner, backend="aot_eager", fullgraph=True)
    if compiled and how == "method":
        inner.compile(backend="aot_eager", fullgraph=True)
    if compiled and how == "blocks":
        for block in inner.blocks:
            block.compile(backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2)
    monitor = internist.watch(model, optimizer, mode="offline", directory=directory) if watched else None
    generator, corpus = torch.Generator().manual_seed(1), text()
    found: list[float] = []
    for _ in range(STEPS):
        for _ in range(accumulate):
            inputs, targets = batch(corpus, 4, 16, generator)
            loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            found.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if monitor is not None:
            monitor.log(loss=loss)
    if monitor is not None:
        states = {entry.state for entry in monitor.coverage()}
        assert states == {"measured"}, [e for e in monitor.coverage() if e.state != "measured"]
        monitor.finish()
    found.append(float(torch.rand(()).item()))  # the global random state is where it would have been
    return found


@pytest.mark.parametrize("accumulate", [1, 3])
def test_losses_are_the_same_bits_in_eager_mode(tmp_path, accumulate):
    bare = losses(compiled=False, watched=False, directory=tmp_path, accumulate=accumulate)

    assert losses(compiled=False, watched=True, directory=tmp_path, accumulate=accumulate) == bare


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, while it compiles blocks
@pytest.mark.parametrize("how", ["module", "method", "blocks"])
def test_losses_are_the_same_bits_under_compile(tmp_path, how):
    torch._dynamo.reset()
    bare = losses(compiled=True, watched=False, directory=tmp_path, how=how)
    torch._dynamo.reset()

    assert losses(compiled=True, watched=True, directory=tmp_path, how=how) == bare


def test_the_compiled_graph_is_not_rebuilt_for_the_monitor(tmp_path):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses(compiled=True, watched=True, directory=tmp_path)


def test_a_model_compiled_after_watching_is_found_and_measured_by_replay(tmp_path):
    torch._dynamo.reset()
    inner = ByteGPT(width=32, depth=2, heads=2, context=16)
    optimizer = torch.optim.SGD(inner.parameters(), lr=1e-2)
    with internist.watch(inner, optimizer, mode="offline", directory=tmp_path) as monitor:
        compiled = torch.compile(inner, backend="aot_eager")
        for _ in range(3):
            compiled(torch.zeros(2, 16, dtype=torch.long)).sum().backward()
            optimizer.step()

        states = {(entry.subject, entry.family): entry.state for entry in monitor.coverage()}
        assert states["blocks.0", "activation"] == "measured"
        assert states["blocks.0.mlp.fc1.weight", "update"] == "measured"


def test_a_copied_and_a_pickled_model_carry_inert_hooks(tmp_path):
    model = ByteGPT(width=32, depth=1, heads=2, context=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with internist.watch(model, optimizer, mode="offline", directory=tmp_path) as monitor:
        average, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        ids = torch.zeros(1, 4, dtype=torch.long)
        average(ids)
        loaded(ids)

        assert all(e.state == "silent" for e in monitor.coverage() if e.kind == "module")


def test_unwatching_leaves_no_hook_behind(tmp_path):
    model = ByteGPT(width=32, depth=1, heads=2, context=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    original, clip = functional.scaled_dot_product_attention, torch.nn.utils.clip_grad_norm_

    def train() -> None:
        model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
        optimizer.step()

    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path)
    train()
    internist.unwatch(model)
    train()

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert functional.scaled_dot_product_attention is original
    assert torch.nn.utils.clip_grad_norm_ is clip
    assert monitor.is_released


def test_an_exception_inside_the_monitor_never_reaches_training(tmp_path, monkeypatch):
    import internist.measures.activations as activations
    import internist.measures.updates as updates

    def explode(*_: Tensor, **__: Tensor) -> Tensor:
        raise RuntimeError("provoked")

    bare = losses(compiled=False, watched=False, directory=tmp_path)
    monkeypatch.setattr(activations, "extent", explode)
    monkeypatch.setattr(updates, "differences_", explode)
    torch.manual_seed(0)
    model = ByteGPT(width=32, depth=2, heads=2, context=16, dropout=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator, corpus = torch.Generator().manual_seed(1), text()
    found = []
    with internist.watch(model, optimizer, mode="offline", directory=tmp_path) as monitor:
        for _ in range(STEPS):
            inputs, targets = batch(corpus, 4, 16, generator)
            loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        reasons = {e.reason for e in monitor.coverage() if e.state == "unsupported"}

    assert found == bare[:-1]
    assert reasons == {"RuntimeError: provoked"}
