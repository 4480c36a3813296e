"""Attention logits: the functions in which attention computes its softmax are listened to while a model-heavy step is
measured, and only then.

Nothing is replaced on other steps, so dormant steps cost nothing and a compiler never sees it.
"""

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internist.measures.attention import NOT_MEASURED, max_entries
from internist.model.outline import WatchedModule
from internist.model.patches import After, Listening, listen_to
from internist.model.plain import PLAIN
from internist.model.roles import is_attention
from internist.observe.attention_calls import AttentionCall
from internist.observe.attention_softmax import logits_of
from internist.observe.attention_sources import Source, sources
from internist.observe.faults import Faults
from internist.observe.pieces import heads_before
from internist.observe.root import is_rehearsal
from internist.observe.sampling import Sampling
from internist.observe.stopwatch import Part
from internist.observe.taps import Gate
from internist.observe.tokens import outside_modes
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.metrics import Bound
from internist.schema.wire import Facts, Series

METRICS = ("attention.max_logit", "attention.max_abs_logit")

_captures: "weakref.WeakSet[AttentionCapture]" = weakref.WeakSet()


@dataclass(slots=True, eq=False)
class _Interface:
    """A call of a function that chooses a kernel, as long as it lasts."""

    keys: int | None
    """How many keys its queries see at most."""
    kernel_seen: bool = False


class AttentionCapture:
    """Measures the logits of every attention call made while it is installed and the gate is on."""

    def __init__(
        self,
        gate: Gate,
        *,
        book: SeriesBook,
        faults: Faults,
        sampling: Sampling,
    ) -> None:
        self._gate, self._book, self._faults, self._sampling = gate, book, faults, sampling
        self._values: dict[int, list[Tensor]] = {}
        self._first_head: dict[int, int] = {}
        """By module order, where its heads lie on several ranks: the number of the first that this one has."""
        self._marked: dict[int, int] = {}
        self._subjects: dict[int, WatchedModule] = {}
        self._scales: dict[int, float] = {}
        self.known: dict[str, tuple[float, int]] = {}
        """By module: what its products of queries and keys are multiplied by, and how many heads it has."""
        self._listeners: list[_Listener] = []
        self._listening: list[Listening] = []
        self._open = threading.local()
        self._depth = 0
        self._thread: int | None = None
        """Where a forward of the root is under way, the thread it is in."""
        self._fast_path: bool | None = None
        self.measured_now: set[int] = set()
        """Orders of the modules whose logits were seen in the step that is being closed."""
        _captures.add(self)

    @property
    def installed(self) -> bool:
        """Whether attention is listened to now."""
        return bool(self._listening)

    def install(self) -> None:
        """Listen to every function of attention that is loaded."""
        if self.installed or not self._sampling.wants(*METRICS):
            return
        self._listeners = [_Listener(self, source) for source in sources()]
        self._listening = listen_to((each.source.function, each.called) for each in self._listeners)

    def remove(self) -> None:
        """Put attention back."""
        for listening in self._listening:
            listening.remove()
        self._listening, self._listeners = [], []

    def enter(self) -> None:
        """A forward of the root begins in this thread: calls of others are not its own. In a replay
        `nn.MultiheadAttention` is kept from its fast path, in which its modules and kernels are not called. Every
        `enter` has its `leave`; they may be nested."""
        self._depth += 1
        self._thread = threading.get_ident()
        if self._depth == 1 and self._gate.replay and torch.backends.mha.get_fastpath_enabled():
            self._fast_path = True
            torch.backends.mha.set_fastpath_enabled(False)

    def leave(self) -> None:
        """The forward is over, however it ended."""
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        self._thread = None
        if self._fast_path is not None:
            torch.backends.mha.set_fastpath_enabled(self._fast_path)
            self._fast_path = None

    def reset(self) -> None:
        """Forget the step's measurements."""
        self._values.clear()

    def mark(self) -> None:
        """A forward begins: `roll_back` forgets what is measured from here on."""
        self._marked = {order: len(calls) for order, calls in self._values.items()}

    def roll_back(self) -> None:
        """The forward raised: its calls are none of the step's."""
        for order, calls in list(self._values.items()):
            del calls[self._marked.get(order, 0) :]
            if not calls:
                del self._values[order]

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:
        """Hand the largest logits of the step to the recorder, one per head."""
        bound: Bound = "sampled" if sampled else "exact"
        self.measured_now = set()
        groups: dict[tuple[int, torch.device], list[int]] = {}
        for order, calls in self._values.items():
            heads = {call.shape[1] for call in calls}
            if len(heads) == 1:
                groups.setdefault((heads.pop(), calls[0].device), []).append(order)
        for (count, _), orders in groups.items():
            every = [
                torch.stack(calls).amax(0) if len(calls := self._values[order]) > 1 else calls[0] for order in orders
            ]
            largest = every[0] if len(every) == 1 else torch.stack(every)
            layout = [
                self._series(order, self._first_head.get(order, 0) + head, metric, bound)
                for order in orders
                for metric in METRICS
                for head in range(count)
            ]
            recorder.add(layout, largest, measured=largest != NOT_MEASURED)
            self.measured_now.update(orders)
            scaled = (order for order in orders if order in self._scales)
            self.known.update({self._subjects[order].name: (self._scales[order], count) for order in scaled})
        self._values.clear()

    # ---- in a forward ----------------------------------------------------------------------------------------------

    def heard(self, source: Source, args: tuple[Any, ...], kwargs: dict[str, Any]) -> After | None:
        """A function of attention is being called."""
        if not self._listens():
            return None
        if source.kind == "interface":
            return self._interface(source, args, kwargs)
        if source.kind == "kernel":
            self._measure(self._enclosing(), lambda: source.read(*args, **kwargs))
        else:
            self._softmax(*source.read(*args, **kwargs))
        return None

    def told(self, module: nn.Module, call: AttentionCall) -> None:
        """The model's own code tells of a call that no function here shows."""
        if not self._gate.stack or not self._listens():
            return
        inside = [w for w in reversed(self._gate.stack) if w.module is module]
        holders = (w for w in reversed(self._gate.stack) if any(each is module for each in w.module.modules()))
        watched = inside[0] if inside else next(holders, None)
        if watched is not None:
            self._measure(watched, lambda: call)

    def _listens(self) -> bool:
        gate = self._gate
        in_backward = torch._C._current_graph_task_id() != -1 and not gate.replay
        if not (gate.on and gate.heavy and gate.stack) or in_backward:
            return False  # also in a backward, where an activation checkpoint is recomputed
        if self._thread not in (None, threading.get_ident()):
            return False
        if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._is_tracing():
            return False
        return gate.replay or gate.in_root or (torch.is_grad_enabled() and not is_rehearsal())

    def _interface(self, source: Source, args: tuple[Any, ...], kwargs: dict[str, Any]) -> After:
        key = kwargs.get("key")
        if key is None and len(args) > 2:
            key = args[2] if isinstance(args[0], nn.Module) else args[1]
        interface = _Interface(key.shape[-2] if isinstance(key, Tensor) and key.ndim > 2 else None)
        watched = self._enclosing()
        self._interfaces.append(interface)

        def after(result: Any) -> None:
            self._interfaces.remove(interface)
            if not interface.kernel_seen and result is not None:
                self._measure(watched, lambda: source.read(*args, **kwargs))

        return after

    def _softmax(self, x: Any, dim: Any) -> None:
        if not isinstance(x, Tensor) or not isinstance(dim, int) or x.ndim < 3:
            return
        interface = self._interfaces[-1] if self._interfaces else None
        if interface is not None and interface.keys is not None and x.shape[dim] != interface.keys:
            return  # logits and sinks: the interface is read instead
        attention = list(self._attention())
        if attention:
            modules = [watched.module for watched in attention]
            self._measure(attention[0], lambda: logits_of(x, dim, modules))

    def _measure(self, watched: WatchedModule | None, read: Callable[[], AttentionCall | Tensor | None]) -> None:
        if watched is None or watched.excluded or self._faults.is_given_up("attention", watched.name):
            return
        began = time.perf_counter()
        try:
            with torch.no_grad(), outside_modes():
                with torch._C.DisableTorchFunction():
                    found = read()
                if found is None or not all(_is_plain(each) for each in _tensors(found)):
                    return
                self._values.setdefault(watched.order, []).append(_largest(found))
            if watched.order not in self._subjects and (before := heads_before(watched.module)):
                self._first_head[watched.order] = round(before * self._values[watched.order][-1].shape[1])
            self._subjects[watched.order] = watched
            if isinstance(found, AttentionCall) and math.isfinite(found.factor):
                self._scales[watched.order] = found.factor  # as it is now: a setting may change
            for interface in self._interfaces:
                interface.kernel_seen = True
            self._faults.well("attention", watched.name)
        except Exception as error:
            self._faults.note("attention", watched.name, error)
        self._gate.work.add(Part.HEAVY, time.perf_counter() - began)

    @property
    def _interfaces(self) -> list[_Interface]:
        """Those under way in this thread, innermost last."""
        found: list[_Interface] | None = getattr(self._open, "interfaces", None)
        if found is None:
            found = self._open.interfaces = []
        return found

    def _enclosing(self) -> WatchedModule | None:
        """The innermost attention module that is being called, or whatever is where none is."""
        stack = self._gate.stack
        return next(self._attention(), stack[-1] if stack else None)

    def _attention(self) -> Iterator[WatchedModule]:
        """The attention modules that are being called, innermost first, of the innermost block: a model that is named
        after attention is not the attention of its blocks."""
        for watched in reversed(self._gate.stack):
            if watched.role == "attention" or is_attention(watched.module):
                yield watched
            if watched.role == "block":
                return

    # ---- series ----------------------------------------------------------------------------------------------------

    def _series(self, order: int, head: int, metric: str, bound: Bound) -> Series | None:
        watched = self._subjects[order]

        def facts() -> Facts:
            return Facts(
                method="chunked",
                role="attention",
                block=watched.block,
                module=watched.name,
                order=watched.place,
                cadence=self._sampling.cadence(metric),
                placement="data_parallel",
                scale=self._scales.get(order),
            )

        return self._book.series(metric, "module", watched.name, facts, index=head, bound=bound)


class _Listener:
    """Listens to one function for a capture, without keeping it alive."""

    __slots__ = ("__weakref__", "_capture", "source")

    def __init__(self, capture: AttentionCapture, source: Source) -> None:
        self._capture, self.source = weakref.ref(capture), source

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> After | None:
        """The function is being called."""
        capture = self._capture()
        return None if capture is None else capture.heard(self.source, args, kwargs)


def attention_logits(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    softcap: float | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> None:
    """Tell the monitor that watches `module` of an attention call in a kernel of one's own.

    Call it in the module's forward with what the kernel gets. It measures `attention.max_logit` on model-heavy steps
    and does nothing otherwise: without a monitor, in evaluation, in compiled code. It never raises.

        def forward(self, x):
            q, k, v = self.project(x)
            internist.attention_logits(self, q, k, is_causal=True)
            return my_kernel(q, k, v)

    Args:
        module: the attention module that is being called.
        q: (..., H, T, D) queries.
        k: (..., K, S, D) keys.
        scale: factor of q.k; None is 1 / sqrt(D).
        mask: bool, True where a key is seen, or floating, added to the logits; broadcast to (..., H, T, S).
        softcap: logits become softcap tanh(logit / softcap).
        is_causal: query i sees keys 0 to i.
        enable_gqa: H is a multiple of K, and neighbouring query heads share a key head.
    """
    if torch.compiler.is_compiling():
        return
    for capture in list(_captures):
        capture.told(module, AttentionCall(q, k, mask, is_causal, scale, enable_gqa, softcap))


def _tensors(found: AttentionCall | Tensor) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found.tensors


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor has entries of its own that can be read: not one of a tracer, of several ranks, or nested."""
    return (
        type(tensor) in PLAIN and tensor.device.type != "meta" and tensor.layout is torch.strided and tensor.numel() > 0
    )


def _largest(found: AttentionCall | Tensor) -> Tensor:
    """(2, H) the largest logit of each head, signed and absolute, whatever precision and modes the code around it has
    asked for."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(_tensors(found)[0].device.type, enabled=False))
        if isinstance(found, AttentionCall) and (found.score_mod is not None or found.mask_mod is not None):
            return found.max_logits()  # FlexAttention's functions need a mode of torch
        stack.enter_context(torch._C.DisableTorchFunction())
        return max_entries(found.detach()) if isinstance(found, Tensor) else found.max_logits()
