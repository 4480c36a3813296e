"""torch.compile in its four ways, before and after watching: the same bits, and activations by replay."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

import internist
from tests.client.points import read
from tests.stacks.models import ATTENTIONS, BLOCKS, Attention, Gpt, sentences
from tests.stacks.twin import Run, assert_coverage_is_honest, missing, train

STEPS = 3
BACKEND = "aot_eager"  # the graphs of inductor without its compiler, which takes a minute
pytestmark = [  # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]


def script(how: str, *, watch_first: bool) -> Callable[[Run], None]:
    def run_it(run: Run) -> None:
        torch._dynamo.reset()
        inner = Gpt(lambda: Attention(dropout=0.1))
        optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2)
        if watch_first:
            run.watch(inner, optimizer)
        model: Callable = inner
        if how == "module":
            model = torch.compile(inner, backend=BACKEND)
        if how == "method":
            inner.compile(backend=BACKEND)
        if how == "blocks":
            for block in inner.blocks:
                block.compile(backend=BACKEND)
        if how == "function":
            model = torch.compile(lambda ids, targets: inner(ids, targets), backend=BACKEND)
        if not watch_first:
            run.watch(model if how == "module" else inner, optimizer)
        for ids, targets in sentences(STEPS):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    return run_it


@pytest.mark.parametrize(
    ("how", "watch_first"),
    [("module", False), ("module", True), ("method", True), ("blocks", False), ("function", True)],
)
def test_a_compiled_model_is_the_same_bits_and_measured(tmp_path, how, watch_first):
    run = train(script(how, watch_first=watch_first), tmp_path, reference=False)

    names = {name for name, _ in Gpt().named_parameters()}
    assert run.measured("update.rms") == run.measured("gradient.rms") == names
    assert run.steps("update.rms", "head.weight") == list(range(STEPS))
    assert run.measured("weight.spectral_norm") >= {"blocks.0.attn.q.weight"}
    if how == "function":  # which calls the model within its graph: there is nothing to stand in front of
        assert {*BLOCKS, "head"} <= missing(run, "activation").keys() & missing(run, "feature").keys()
        return
    assert run.measured("activation.rms") >= {*BLOCKS, "head", "blocks.0.attn.q", "blocks.1.mlp.2"}
    assert run.measured("attention.max_logit") == set(ATTENTIONS)
    assert run.measured("update.own") >= {"blocks.0.attn.q", "head", "embed"}
    assert run.measured("update.feature") >= {*BLOCKS, "head"}
    assert_coverage_is_honest(run)


def test_a_compiled_step_function_is_the_same_bits_and_what_it_hides_is_said(tmp_path):
    def whole_step(run: Run) -> None:
        torch._dynamo.reset()
        model = Gpt()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run.watch(model, optimizer)

        @torch.compile(backend=BACKEND)
        def forward_backward(ids, targets):
            _, loss = model(ids, targets)
            loss.backward()
            return loss.detach()

        for ids, targets in sentences(STEPS):
            run.loss(forward_backward(ids, targets))
            optimizer.step()
            optimizer.zero_grad()

    run = train(whole_step, tmp_path, reference=False)

    names = {name for name, _ in Gpt().named_parameters()}
    assert run.measured("update.rms") == names
    assert run.steps("update.rms", "head.weight") == list(range(STEPS))
    silent = {*BLOCKS, "head"} - run.measured("activation.rms")
    states = {e.subject: e.state for e in run.coverage if e.family == "activation"}
    assert {states[name] for name in silent} <= {"not captured"}


def test_a_compiled_optimizer_step_is_the_same_bits(tmp_path):
    def compiled_step(run: Run) -> None:
        torch._dynamo.reset()
        model = Gpt()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2))
        run.watch(model, optimizer)
        step = torch.compile(lambda: optimizer.step(), backend="eager")
        for ids, targets in sentences(STEPS):
            _, loss = model(ids, targets)
            loss.backward()
            step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(compiled_step, tmp_path, reference=False)

    assert run.steps("activation.rms", "blocks.1") == list(range(STEPS))
    assert run.steps("update.rms", "head.weight") == list(range(STEPS))
    assert_coverage_is_honest(run)


def test_activations_of_a_compiled_model_are_those_of_its_probe_in_eager_mode(tmp_path):
    seen: dict[str, float] = {}

    def with_reference(run: Run) -> None:
        torch._dynamo.reset()
        inner = Gpt()
        if not run.is_watched:
            ids, _ = next(sentences(1))
            for name in (*BLOCKS, "head", "blocks.0.attn.q"):
                handle = inner.get_submodule(name).register_forward_hook(
                    lambda _, __, out, name=name: seen.update({name: out.double().square().mean().sqrt().item()})
                )
                inner(ids[:1])
                handle.remove()
        model = torch.compile(inner, backend=BACKEND)
        optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2)
        run.watch(model, optimizer)
        for ids, targets in sentences(3):
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(with_reference, tmp_path, reference=False)

    assert {name: run.points["activation.rms", name, None][0] for name in seen} == pytest.approx(seen, rel=2e-4)
    assert {run.series["activation.rms", name, None].bound for name in seen} == {"sampled"}


LIGHT = ("activation.rms", "activation.abs_max", "activation.input_rms_max", "block.contribution", "output.log_z_max")


@pytest.mark.parametrize("how", ["module", "method"])
def test_a_graph_with_statistics_says_what_the_eager_model_says_over_the_whole_batch(tmp_path, how):
    def run_it(inline: bool) -> Callable[[Run], None]:
        def script(run: Run) -> None:
            torch._dynamo.reset()
            inner = Gpt()
            optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2)
            model: Callable = inner
            if inline and how == "module":
                model = torch.compile(inner, backend=BACKEND)
            elif inline:
                inner.compile(backend=BACKEND)
            run.watch(model, optimizer, **({"compile": "inline"} if inline else {}))
            for ids, targets in sentences(2 * STEPS):
                for rows in (slice(0, 1), slice(1, 2)):  # two micro-batches a step
                    _, loss = model(ids[rows], targets[rows])
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                run.loss(loss)

        return script

    eager = train(run_it(inline=False), tmp_path / "eager", reference=False)
    compiled = train(run_it(inline=True), tmp_path / "inline", reference=False)  # these graphs keep the bits

    for metric in (*LIGHT, "update.own"):
        assert compiled.measured(metric) == eager.measured(metric) != set()
        for name in eager.measured(metric):
            expected, found = eager.points[metric, name, None], compiled.points[metric, name, None]
            assert found == pytest.approx(expected, rel=1e-3), (metric, name)  # float32, in another order
            assert compiled.series[metric, name, None].bound == "exact"
    assert compiled.measured("attention.max_logit") == set(ATTENTIONS)
    assert_coverage_is_honest(compiled)


def test_one_more_graph_is_compiled_and_no_hook_stays(tmp_path):
    graphs: list[int] = []

    def counting(graph, _):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    compiled = torch.compile(model, backend=counting)
    monitor = internist.watch(
        compiled, optimizer, mode="offline", directory=tmp_path, every=5, max_overhead=0, compile="inline"
    )
    for ids, targets in sentences(30):
        compiled(ids, targets)[1].backward()
        assert not any(module._forward_hooks for module in model.modules())
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish()

    assert len(graphs) == 2  # that of the sampled steps, which come first, and the user's own


def test_where_no_graph_with_statistics_can_be_made_a_probe_is_replayed_and_it_is_said(tmp_path, caplog):
    def picky(graph, _):
        if len(graph.graph.nodes) > 200:  # the model's own has 85
            raise RuntimeError("too many nodes")
        return graph.forward

    torch._dynamo.reset()
    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    compiled = torch.compile(model, backend=picky)
    monitor = internist.watch(
        compiled, optimizer, mode="offline", directory=tmp_path, every=1, max_overhead=0, compile="inline"
    )
    for ids, targets in sentences(3):
        compiled(ids, targets)[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish()

    assert "picky" in caplog.text
    assert "a probe is replayed instead" in caplog.text
    entries = {(entry.family, entry.subject): entry.state for entry in monitor.coverage()}
    assert entries["activation", "blocks.0"] == "measured"


class Broken(nn.Module):
    """A block in whose middle the compiler begins a new graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.a(x)
        torch._dynamo.graph_break()
        return x + self.b(hidden)


def test_a_model_that_is_no_single_graph_stays_compiled_and_is_measured_by_a_replay(tmp_path, caplog):
    calls = [0]

    def counting(graph, _):
        def run(*args):
            calls[0] += 1
            return graph.forward(*args)

        return run

    torch._dynamo.reset()
    torch.manual_seed(0)
    blocks = 10  # more than the variants of one code that a compiler keeps
    model = nn.Sequential(*(Broken() for _ in range(blocks)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    compiled = torch.compile(model, backend=counting)
    monitor = internist.watch(
        compiled, optimizer, mode="offline", directory=tmp_path, every=1, max_overhead=0, compile="inline"
    )
    of_steps = []
    for _ in range(3):
        before = calls[0]
        compiled(torch.ones(2, 8)).square().mean().backward()
        of_steps.append(calls[0] - before)
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish()

    assert of_steps == [2 * blocks] * 3
    assert "a probe is replayed instead" in caplog.text
    assert read(monitor.directory)[0]["activation.rms", "0", None].keys() == {0, 1, 2}


def test_a_model_that_is_measured_in_its_graph_is_let_go_with_its_user(tmp_path):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend=BACKEND)
    monitor = internist.watch(
        compiled, optimizer, mode="offline", directory=tmp_path, every=1, max_overhead=0, compile="inline"
    )
    for _ in range(2):
        compiled(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    gone = weakref.ref(model)
    del model, compiled, optimizer
    torch._dynamo.reset()
    gc.collect()

    assert gone() is None
    monitor.finish()


def test_an_error_of_the_users_own_in_a_sampled_step_is_raised_once_and_the_next_step_is_the_same(tmp_path):
    def script(run: Run) -> None:
        torch._dynamo.reset()
        torch.manual_seed(2)
        inner = Gpt(lambda: Attention(dropout=0.5))
        optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2)
        model = torch.compile(inner, backend=BACKEND)
        run.watch(model, optimizer, compile="inline")
        for step, (ids, targets) in enumerate(sentences(2 * STEPS)):
            if step == STEPS:
                with pytest.raises(IndexError):
                    model(ids + 1_000, targets)
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.loss(loss)

    run = train(script, tmp_path, reference=False)

    assert run.steps("activation.rms", "blocks.0") == list(range(2 * STEPS))
