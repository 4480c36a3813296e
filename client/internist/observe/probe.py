"""Probe replay: the model's own forward on one sequence, before and after a step, without a trace left in the user's
state."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from internist.measures.updates import feature_change, moved
from internist.model.outline import Outline
from internist.observe.modules import ActivationCapture
from internist.observe.sampling import Sampling
from internist.observe.taps import Gate
from internist.observe.tokens import PROBE_TOKENS
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import Series

WHOLE_BATCH_TOKENS = 4_096
"""A micro-batch that cannot be cut by rows is replayed whole up to this many tokens."""
KEPT_BYTES = 256 << 20
"""Outputs kept between the two replays; beyond, fewer blocks in rotation."""
BUFFER_BYTES = 256 << 20
"""Models with more bytes of buffers than this are not replayed: saving them would be felt."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Arguments of a forward, cut to the probe, and the autocast state they came under."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, torch.dtype] | None


class ProbeReplay:
    """Keeps a step's probe and replays it."""

    def __init__(
        self, outline: Outline, gate: Gate, activations: ActivationCapture, *, book: SeriesBook, sampling: Sampling
    ) -> None:
        self._outline, self._gate, self._activations = outline, gate, activations
        self._book, self._sampling = book, sampling
        self._probe: Probe | None = None
        self._before: dict[int, Tensor] = {}
        self._turn = 0
        self.unsupported = ""
        self.running = False
        self.turns = 1
        """Replays in which every block has its turn."""
        self.measured_now: set[int] = set()
        """Orders of modules whose change was measured in the step that is being closed."""

    @property
    def ready(self) -> bool:
        """Whether this step's probe has been taken."""
        return self._probe is not None

    def take(self, args: Any, kwargs: Any) -> None:
        """Copy the probe out of a forward's arguments; the first micro-batch of a step gives it."""
        if self._probe is not None or self.unsupported:
            return
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
        if not leaves:
            self.unsupported = "the forward has no tensor argument to take a probe from"
            return
        batch = leaves[0].shape[0]
        by_rows = all(leaf.shape[0] == batch for leaf in leaves)
        if not by_rows and leaves[0].numel() > WHOLE_BATCH_TOKENS:
            sizes = sorted({leaf.shape[0] for leaf in leaves})
            self.unsupported = (
                f"arguments have different first dimensions {sizes} and more than {WHOLE_BATCH_TOKENS} tokens"
            )
            return

        def cut(tensor: Tensor) -> Tensor:
            return (tensor[:1] if by_rows and tensor.dim() else tensor).detach().clone()

        kept_args, kept_kwargs = pytree.tree_map_only(Tensor, cut, (tuple(args), dict(kwargs)))
        device = leaves[0].device.type
        autocast = (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        self._probe = Probe(kept_args, kept_kwargs, autocast)

    def before(self, *, features: bool, activations: bool) -> None:
        """Replay with the weights before the step.

        Args:
            features: keep outputs, to be compared with those after the step.
            activations: measure activations and attention in this pass (where a compiler hides the training forward).
        """
        self._activations.keep = self._chosen() if features else set()
        self._run(activations=activations)
        self._before, self._activations.kept = self._activations.kept, {}

    def after(self, recorder: Recorder) -> None:
        """Replay with the weights after the step and record how far every kept output moved."""
        if not self._before:
            return
        self._activations.keep = set(self._before)
        self._run(activations=False)
        after, self._activations.kept, self._activations.keep = self._activations.kept, {}, set()
        changes: dict[int, list[tuple[int, int, Tensor]]] = {}
        for order, old in self._before.items():
            new = after.get(order)
            if new is not None and new.shape == old.shape:
                change = feature_change(new, old)
                changes.setdefault(change.numel(), []).append((order, new.numel(), change))
        for members in changes.values():
            values = moved(torch.stack([change for _, _, change in members]))
            for (order, entries, _), value in zip(members, values.unbind(), strict=True):
                names = "update.feature", "update.feature_mean"
                recorder.add([self._series(order, name) for name in names], value, [1, entries])
                self.measured_now.add(order)

    def reset(self) -> None:
        """Forget the step's probe and kept outputs."""
        self._probe = None
        self._before = {}
        self.measured_now = set()
        self._activations.keep, self._activations.kept = set(), {}

    def _chosen(self) -> set[int]:
        """Blocks and the model's output, as many as fit the budget, blocks in rotation."""
        modules = self._outline.modules
        output = self._outline.head or modules[0]
        blocks = [m.order for m in modules if m.role == "block"] or [
            m.order for m in modules if m.parameters and m is not output
        ]
        size = 4 * PROBE_TOKENS * max((w or 0 for _, w in self._activations.series.widths.values()), default=0)
        room = max(1, KEPT_BYTES // max(size, 1) - 1)
        self.turns = -(-len(blocks) // room)
        if len(blocks) > room:
            start = self._turn * room % len(blocks)
            blocks = (blocks + blocks)[start : start + room]
            self._turn += 1
        return {output.order, *blocks}

    def _run(self, *, activations: bool) -> None:
        assert self._probe is not None
        root, probe, gate = self._outline.root, self._probe, self._gate
        saved = gate.on, gate.heavy, gate.replay, gate.in_root, gate.wants_activations
        with ExitStack() as stack:
            stack.callback(self._restore_gate, saved)
            stack.enter_context(torch.no_grad())
            stack.enter_context(_untouched(root))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            if probe.autocast is not None:
                stack.enter_context(torch.autocast(probe.autocast[0], dtype=probe.autocast[1]))
            self.running = True
            stack.callback(self._stop)
            if not self._activations.installed:
                self._activations.install()
                stack.callback(self._activations.remove)
            gate.on, gate.replay, gate.in_root = True, True, True
            gate.heavy = saved[1] and activations
            gate.wants_activations = True
            self._activations.replay_records(activations)
            root(*probe.args, **probe.kwargs)

    def _stop(self) -> None:
        self.running = False
        self._activations.replay_records(True)

    def _restore_gate(self, saved: tuple[bool, bool, bool, bool, bool]) -> None:
        gate = self._gate
        gate.on, gate.heavy, gate.replay, gate.in_root, gate.wants_activations = saved
        gate.stack.clear()

    def _series(self, order: int, metric: str) -> Series | None:
        watched = self._outline.modules[order]
        return self._book.series(
            metric,
            "module",
            watched.name,
            lambda: self._activations.series.facts(watched, metric, probe=PROBE_TOKENS, method="probe replay"),
        )


@contextmanager
def _untouched(root: nn.Module) -> Iterator[None]:
    """Evaluation mode within; every module's flag, every buffer and all random states as they were afterwards."""
    modules = list(root.modules())
    flags = [module.training for module in modules]
    buffers = list(root.buffers())
    saved = [buffer.detach().clone() for buffer in buffers]
    versions = [-1 if buffer.is_inference() else buffer._version for buffer in buffers]
    devices = sorted({p.device.index or 0 for p in root.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag
            for buffer, copy, version in zip(buffers, saved, versions, strict=True):
                if version < 0 or buffer._version != version:
                    buffer.copy_(copy)


def replay_obstacle(root: nn.Module) -> str:
    """Why a model cannot be replayed; empty if it can."""
    size = sum(buffer.numel() * buffer.element_size() for buffer in root.buffers())
    if size > BUFFER_BYTES:
        return f"its buffers take {size >> 20} MiB; saving them at each replay would be felt"
    if any(type(p.data).__name__ == "DTensor" for p in root.parameters()):
        return "its parameters are sharded: a forward is a collective there"
    return ""
