"""How many operators watching adds to a training step on an accelerator: what the host spends its time on there.

    python -m benchmarks.launches [--layers N] [--detail KIND]

A GPT is trained on a device that has no memory: tensors are fake, and every operator that is dispatched, and every
kernel of ours, is counted; a view is not, as it launches nothing. The counts are those of any accelerator, the same on
every machine. What comes of reading a number from such a tensor is an error, so a run is also the proof that nothing
waits for the device.
"""

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import internist
from internist.measures import attention as logits
from internist.model.plain import PLAIN
from internist.observe import attention, modules, routing
from internist.observe.probe import Probe, ProbeReplay
from internist.observe.sampling import Due
from internist.record import recorder, transfer

DEVICE = "imagined"
FIRST_STEP = 20
"""The light steps that are counted then have a block in their turn: large models' updates are measured in rotation."""
KINDS = {
    "dormant": Due(),
    "light": Due(light=True),
    "model-heavy": Due(light=True, heavy=True),
    "matrix-heavy": Due(light=True, matrices=1),
}
"""What a step measures. A heavy step's own count is what it has beyond a light one."""


LAUNCHES_NOTHING = (torch.ops.prim.device.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default)


class Count(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self._fused = _FusedAttention(self)
        self.pauses = False

    def __enter__(self) -> "Count":
        self._fused.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._fused.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (self.pauses or func.is_view or func in LAUNCHES_NOTHING):
            self.operators[str(func)] += 1
        return func(*args, **(kwargs or {}))


class _FusedAttention(TorchFunctionMode):
    """Attention is one operator where there is an accelerator; one without memory takes it apart."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        count = self._count
        if count.pauses or getattr(func, "__name__", "") != "scaled_dot_product_attention":
            return func(*args, **(kwargs or {}))
        count.operators["attention"] += 1
        count.pauses = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            count.pauses = False


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ln2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(self.ln1(x)).split(C, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """A GPT-2."""

    def __init__(self, *, layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 50304) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--metrics", nargs="*", help="only these")
    parser.add_argument("--detail", choices=KINDS, help="list the operators of a kind of step")
    options = parser.parse_args()
    found = added(layers=options.layers, metrics=options.metrics)
    for kind, operators in found.items():
        print(f"{kind:<14} {operators.total():>7}")
    if options.detail:
        for name, number in found[options.detail].most_common():
            print(f"  {number:>6} {name}")
    return 0


def added(*, layers: int = 12, metrics: Sequence[str] | None = None) -> dict[str, Counter[str]]:
    """Operators that watching adds to a step of each kind, by name, once everything is warm.

    Raises:
        AssertionError: something that should be measured was not.
    """
    with accelerator(), tempfile.TemporaryDirectory() as folder:
        bare, _ = steps(layers, None, metrics, Path(folder))
        watched, missing = steps(layers, tuple(KINDS.values()), metrics, Path(folder))
        if missing and metrics is None:
            raise AssertionError(f"{len(missing)} not measured: {missing[::40]}")
    return {kind: operators - bare[0] for kind, operators in zip(KINDS, watched, strict=True)}


def steps(
    layers: int, wishes: Sequence[Due] | None, metrics: Sequence[str] | None, folder: Path
) -> tuple[list[Counter[str]], list[str]]:
    """Operators of one step each that measures what is wished, after two of each kind; and what was not measured."""
    model = on_device(GPT(layers=layers))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    monitor = None
    if wishes is not None:
        monitor = internist.watch(
            model,
            optimizer,
            mode="offline",
            directory=folder,
            max_overhead=0,
            metrics=metrics,
            every=10,
            step=FIRST_STEP,
        )
    ids = torch.zeros(8, 1024, dtype=torch.long, device=DEVICE)
    found = []
    for wish in [*(wishes or [None]) * 2, *(wishes or [None])]:
        if monitor is not None:
            monitor._observer.arm(monitor._observer.clock.step, wish)
        with Count() as count:
            functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
            optimizer.step()
        optimizer.zero_grad()
        found.append(count.operators)
    missing: list[str] = []
    if monitor is not None:
        missing = [
            f"{entry.family} of {entry.subject}: {entry.reason}"
            for entry in monitor.coverage()
            if entry.state not in ("measured", "excluded", "silent")  # silent: its turn has not come
        ]
        monitor.finish()
    return found[-len(wishes or [None]) :], missing


def on_device(model: nn.Module) -> nn.Module:
    """The model with parameters there; `Module.to` cannot move to a device without memory."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device=DEVICE))
    return model


@contextmanager
def accelerator() -> Iterator[None]:
    """A device without memory on which everything runs as on an accelerator; its tensors count as plain ones."""
    if torch._C._get_privateuse1_backend_name() != DEVICE:
        _setup_privateuseone_for_python_backend(DEVICE)
        torch.imagined.get_amp_supported_dtype = lambda: [torch.bfloat16]  # what autocast asks a device for
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(modules, "outside_modes", nullcontext),  # the mode that counts is to see it all
        mock.patch.object(attention, "outside_modes", nullcontext),
        mock.patch.object(logits, "usable", lambda _: True),  # kernels are there, and never launched
        mock.patch.object(routing, "_initial_rms", lambda _: {}),  # read once, in watch()
        mock.patch.object(ProbeReplay, "_rehearse", _know_the_way),  # compares the state, once
        mock.patch.object(transfer, "_bytes_of", lambda host: bytes(4 * host.numel())),
        mock.patch.object(recorder.Recorder, "drain", lambda own, **_: own._queue.clear()),  # another thread, no mode
        mock.patch.object(torch._dynamo.config, "disable", True),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by copy.deepcopy
        PLAIN.add(FakeTensor)
        try:
            yield
        finally:
            PLAIN.remove(FakeTensor)


def _know_the_way(replay: ProbeReplay, found: Probe) -> None:
    """What a rehearsal finds out: how the probe is cut."""
    replay._way = next(iter(found.ways))
    replay._probe = Probe({replay._way: found.ways[replay._way]}, found.autocast)


if __name__ == "__main__":
    raise SystemExit(main())
