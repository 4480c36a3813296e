"""Attention logits: `scaled_dot_product_attention` is replaced while a model-heavy step is measured, and only then.

Nothing is installed on other steps, so dormant steps cost nothing and a compiler never sees it.
"""

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from internist.measures import attention as measure
from internist.measures.attention import NOT_MEASURED
from internist.model.outline import WatchedModule
from internist.observe.faults import Faults
from internist.observe.sampling import Sampling
from internist.observe.taps import Gate
from internist.observe.tokens import outside_modes
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.metrics import Bound
from internist.schema.wire import Facts, Series


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
        self._subjects: dict[int, WatchedModule] = {}
        self._scales: dict[int, float] = {}
        self._places: list[tuple[Any, str]] | None = None
        self._original: Any = None
        self.measured_now: set[int] = set()
        """Orders of modules measured in the step that is being closed."""

    @property
    def installed(self) -> bool:
        """Whether attention is replaced now."""
        return self._original is not None

    def install(self) -> None:
        """Replace attention wherever a module has bound it by name."""
        if self.installed or not self._sampling.wants("attention.max_logit", "attention.max_abs_logit"):
            return
        self._original = functional.scaled_dot_product_attention
        if self._places is None:
            self._places = _bindings(self._original)
        watching = self._watching(self._original)
        for module, name in self._places:
            setattr(module, name, watching)

    def remove(self) -> None:
        """Put attention back."""
        if not self.installed:
            return
        for module, name in self._places or ():
            setattr(module, name, self._original)
        self._original = None

    def reset(self) -> None:
        """Forget the step's measurements."""
        self._values.clear()

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:
        """Hand the largest logits of the step to the recorder, one per head."""
        bound: Bound = "sampled" if sampled else "exact"
        self.measured_now = set()
        for order, calls in self._values.items():
            heads = {c.shape[1] for c in calls}
            if len(heads) != 1:
                continue
            largest = torch.stack(calls).amax(0) if len(calls) > 1 else calls[0]
            count = heads.pop()
            layout: list[Series | None] = []
            for metric in ("attention.max_logit", "attention.max_abs_logit"):
                layout += [self._series(order, head, metric, bound) for head in range(count)]
            recorder.add(layout, largest, measured=largest != NOT_MEASURED)
            self.measured_now.add(order)
        self._values.clear()

    def _watching(self, original: Any) -> Any:
        def scaled_dot_product_attention(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
        ) -> Any:
            if not torch.compiler.is_compiling() and self._gate.on and self._gate.heavy:
                self._observe(query, key, attn_mask, is_causal, scale, enable_gqa)
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

        return scaled_dot_product_attention

    def _observe(
        self, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, gqa: bool
    ) -> None:
        if torch._C._current_graph_task_id() != -1 or not self._gate.stack:
            return
        watched = self._gate.stack[-1]
        if watched.excluded or self._faults.is_given_up("attention", watched.name):
            return
        if not self._gate.replay and not self._gate.in_root and not torch.is_grad_enabled():
            return
        try:
            with torch.no_grad(), outside_modes(), torch.autocast(query.device.type, enabled=False):
                values = measure.max_logits(
                    query.detach(),
                    key.detach(),
                    mask=None if mask is None else mask.detach(),
                    is_causal=is_causal,
                    scale=scale,
                    enable_gqa=gqa,
                )
            self._values.setdefault(watched.order, []).append(values)
            self._subjects[watched.order] = watched
            used = query.shape[-1] ** -0.5 if scale is None else float(scale)
            if math.isfinite(used):
                self._scales.setdefault(watched.order, used)
        except Exception as error:
            self._faults.note("attention", watched.name, error)

    def _series(self, order: int, head: int, metric: str, bound: Bound) -> Series | None:
        watched = self._subjects[order]

        def facts() -> Facts:
            return Facts(
                method="chunked",
                role="attention",
                block=watched.block,
                module=watched.name,
                order=watched.order,
                cadence=self._sampling.cadence(metric),
                placement="data_parallel",
                scale=self._scales.get(order),
            )

        return self._book.series(metric, "module", watched.name, facts, index=head, bound=bound)


def _bindings(original: Any) -> list[tuple[Any, str]]:
    """Every module-level name that is bound to the attention function, `torch.nn.functional`'s own first."""
    places: list[tuple[Any, str]] = [(functional, "scaled_dot_product_attention")]
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if (
            module is functional
            or not isinstance(names, dict)
            or getattr(module, "__name__", "").startswith("torch._C")
        ):
            continue
        places += [(module, name) for name, value in list(names.items()) if value is original]
    return places
