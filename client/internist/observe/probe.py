"""Probe replay: the model's own forward on one sequence, before and after a step, without a trace left in the user's
state.

The first replay of a run is a rehearsal: nothing is measured; it finds out how a probe can be cut from this model's
arguments, and a digest of all that the model can reach is compared before and after. Where something stays changed,
where a forward raises, runs out of memory or takes long, the replay switches itself off, says so once, and coverage
tells why.

The user's hooks run in a replay: they may be part of the computation, as those of parametrised weights, adapters and
offloading are. What they reach is put back as `untouched` says; what they print or send cannot be.
"""

import logging
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from internist.measures.updates import feature_change, moved
from internist.model.outline import Outline
from internist.observe.batches import Arguments, Batch, fresh
from internist.observe.digest import difference, digest
from internist.observe.kept_tensors import Trace
from internist.observe.modules import ActivationCapture
from internist.observe.sampling import Sampling
from internist.observe.taps import Gate
from internist.observe.tokens import PROBE_TOKENS
from internist.observe.untouched import untouched
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import Series

log = logging.getLogger("internist")

KEPT_BYTES = 256 << 20
"""Outputs kept between the two replays; beyond, fewer blocks in rotation."""
STACKED_BYTES = 32 << 20
"""Outputs of one shape that are compared by one operator: on an accelerator, where each costs the host time."""
BUFFER_BYTES = 256 << 20
"""Models with more bytes of buffers than this are not replayed: saving them would be felt."""


NAMED = 3
"""Names of things that moved in one message."""
LONG_SECONDS = 20.0
"""A replay that takes longer than this on the host was the last one."""
TURNED_OFF = "watch(replay=False)"
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True, slots=True)
class Probe:
    """Arguments of a forward, cut to the probe, and the autocast state they came under."""

    ways: dict[str, Arguments]
    """By how they were cut, the likeliest first; one way only once it is known to work."""
    autocast: tuple[tuple[str, bool, torch.dtype], ...]


class ProbeReplay:
    """Keeps a step's probe and replays it. None of its methods raises."""

    def __init__(
        self,
        outline: Outline,
        gate: Gate,
        activations: ActivationCapture,
        *,
        book: SeriesBook,
        sampling: Sampling,
    ) -> None:
        self._outline, self._gate, self._activations = outline, gate, activations
        self._book, self._sampling = book, sampling
        self._probe: Probe | None = None
        self._before: dict[int, Tensor] = {}
        self._turn = 0
        self._way: str | None = None
        """How the probe is cut, once a rehearsal has shown that it works."""
        self._written: set[int] = set()
        """Parameters, by id, that the forward itself writes to."""
        self.unsupported = "" if sampling.replay else TURNED_OFF
        """Why the probe is not replayed; empty if it is."""
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
        if self._probe is not None or self.unsupported or _is_traced():
            return
        if any(leaf.numel() == 0 for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)):
            return  # an empty batch: the next one gives it
        try:
            batch = Batch(args, kwargs, self._outline.root)
            cuts = batch.cuts()
            if self._way is not None:
                cuts = [cut for cut in cuts if cut.how == self._way][:1] or cuts[:1]
            self._probe = Probe({cut.how: batch.take(cut) for cut in cuts}, _autocast_state(batch.devices()))
        except Exception as error:
            self._switch_off(str(error) if isinstance(error, ValueError) else _reason(error))

    def before(self, *, features: bool, activations: bool) -> None:
        """Replay with the weights before the step.

        Args:
            features: keep outputs, to be compared with those after the step.
            activations: measure activations and attention in this pass (where a compiler hides the training forward).
        """
        if self._probe is None or self.unsupported:
            return
        try:
            if self._way is None:
                self._rehearse(self._probe)
            if not self.unsupported:
                self._activations.keep = self._chosen() if features else set()
                self._run(activations=activations)
                self._before, self._activations.kept = self._activations.kept, {}
        except Exception as error:
            self._switch_off(_reason(error))

    def after(self, recorder: Recorder) -> None:
        """Replay with the weights after the step and record how far every kept output moved."""
        if not self._before or self.unsupported:
            return
        try:
            self._compare(recorder)
        except Exception as error:
            self._switch_off(_reason(error))

    def reset(self) -> None:
        """Forget the step's probe and kept outputs."""
        self._probe = None
        self._before = {}
        self.measured_now = set()
        self._activations.keep, self._activations.kept = set(), {}

    def _compare(self, recorder: Recorder) -> None:
        self._activations.keep = set(self._before)
        self._run(activations=False)
        after, self._activations.kept, self._activations.keep = self._activations.kept, {}, set()
        pairs: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for order, old in self._before.items():
            new = after.get(order)
            if new is not None and new.shape == old.shape:
                pairs.setdefault((new.shape, new.dtype), []).append(order)
        changes: dict[int, list[tuple[list[int], int, Tensor]]] = {}
        for orders in pairs.values():
            first = after[orders[0]]
            most = 1 if first.device.type == "cpu" else max(1, STACKED_BYTES // (first.numel() * first.element_size()))
            for members in (orders[start : start + most] for start in range(0, len(orders), most)):
                change = feature_change(_stacked(after, members), _stacked(self._before, members))
                change = change.view(len(members), -1)
                changes.setdefault(change.shape[1], []).append((members, first.numel(), change))
        names = "update.feature", "update.feature_mean"
        for found in changes.values():
            values = moved(torch.cat([change for *_, change in found]) if len(found) > 1 else found[0][2])
            layout = [self._series(order, name) for members, *_ in found for order in members for name in names]
            counts = [count for members, entries, _ in found for _ in members for count in (1, entries)]
            recorder.add(layout, values, counts)
            self.measured_now.update(order for members, *_ in found for order in members)

    def _chosen(self) -> set[int]:
        """Blocks and the model's output, as many as fit the budget, blocks in rotation."""
        modules = self._outline.modules
        output = self._outline.head or modules[0]
        blocks = [m.order for m in modules if m.role == "block"] or [
            m.order for m in modules if m.parameters and m is not output
        ]
        size = 4 * PROBE_TOKENS * max((w or 0 for _, w in self._activations.series.widths.values()), default=0)
        room = max(1, KEPT_BYTES // max(size, 1) - 1)
        self.turns = max(1, -(-len(blocks) // room))
        if len(blocks) > room:
            start = self._turn * room % len(blocks)
            blocks = (blocks + blocks)[start : start + room]
            self._turn += 1
        return {output.order, *blocks}

    def _rehearse(self, probe: Probe) -> None:
        """Find the way to cut that works, and whether a forward leaves a trace; nothing is measured."""
        root = self._outline.root
        state = digest(root)
        trace, first = Trace([], set()), ""
        for how, arguments in probe.ways.items():
            try:
                found = self._forward(arguments, probe, written=None, measures=False)
                self._way = how
            except Exception as error:
                first = first or _reason(error)
                log.debug("internist: a replay of %s failed", how, exc_info=True)
                continue
            trace = found
            break
        moved = [*trace.left, *difference(state, digest(root))]
        if moved:
            named = ", ".join(list(dict.fromkeys(moved))[:NAMED])
            self._switch_off(f"a forward in evaluation mode leaves a trace that cannot be undone: {named}")
        elif self._way is None:
            self._switch_off(f"the model's forward on a probe raises {first}")
        else:
            self._written = trace.written
            self._probe = Probe({self._way: probe.ways[self._way]}, probe.autocast)

    def _run(self, *, activations: bool) -> None:
        assert self._probe is not None
        (arguments,) = self._probe.ways.values()
        trace = self._forward(arguments, self._probe, written=self._written, measures=True, activations=activations)
        if trace.left:
            named = ", ".join(list(dict.fromkeys(trace.left))[:NAMED])
            self._switch_off(f"a forward in evaluation mode left a trace that could not be undone: {named}")

    def _forward(
        self, arguments: Arguments, probe: Probe, *, written: set[int] | None, measures: bool, activations: bool = False
    ) -> Trace:
        """One forward of the model, without a trace.

        Args:
            arguments: what it is called with; copied first, as it may write to them.
            probe: the autocast state.
            written: parameters to be put back; None: find out.
            measures: the hooks see it.
            activations: they measure, and not only keep outputs.
        """
        root, gate = self._outline.root, self._gate
        args, kwargs = fresh(arguments)
        saved = gate.on, gate.heavy, gate.replay, gate.in_root, gate.wants_activations
        began = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(self._restore_gate, saved)
            stack.enter_context(torch.no_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # what the model warns of in a forward of ours is nothing for the user
            trace = stack.enter_context(untouched(root, written=written))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            for device, enabled, dtype in probe.autocast:
                # no cache: casts of weights without a graph, or from before the step, must not meet the user's own
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False))
            self.running = True
            stack.callback(self._stop)
            if measures and not self._activations.installed:
                self._activations.install()
                stack.callback(self._activations.remove)
            gate.on, gate.replay, gate.in_root = measures, True, True
            gate.heavy = saved[1] and activations
            gate.wants_activations = True
            self._activations.replay_records(activations)
            root(*args, **kwargs)
        seconds = time.perf_counter() - began
        if seconds > LONG_SECONDS:
            self._switch_off(f"one replay took {seconds:.0f} seconds")
        return trace

    def _switch_off(self, reason: str) -> None:
        self.reset()
        if not self.unsupported:
            self.unsupported = reason[:300]
            log.warning("internist: the probe is not replayed: %s (training is not affected)", self.unsupported)

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


def _stacked(outputs: dict[int, Tensor], orders: list[int]) -> Tensor:
    """These outputs, all of one shape, as one tensor."""
    return outputs[orders[0]] if len(orders) == 1 else torch.stack([outputs[order] for order in orders])


def _autocast_state(devices: set[str]) -> tuple[tuple[str, bool, torch.dtype], ...]:
    return tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in _AUTOCAST_DEVICES
        if device in devices
    )


def _is_traced() -> bool:
    """Whether the call under way is a transform's or a tracer's: its tensors stand for others."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:250]


def replay_obstacle(root: nn.Module) -> str:
    """Why a model cannot be replayed; empty if it can."""
    size = sum(buffer.numel() * buffer.element_size() for buffer in root.buffers())
    if size > BUFFER_BYTES:
        return f"its buffers take {size >> 20} MiB; saving them at each replay would be felt"
    if any(type(p.data).__name__ == "DTensor" for p in root.parameters()):
        return "its parameters are sharded: a forward is a collective there"
    for name, module in root.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            return f"its parameters are sharded ({name or 'the root'}): a forward is a collective there"
    if any(hasattr(p, "ds_id") for p in root.parameters()):
        return "its parameters are partitioned by DeepSpeed: a forward is a collective there"
    return ""
