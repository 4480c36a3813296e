"""Attention logits: `scaled_dot_product_attention` is replaced while a model-heavy step is measured, and only then.

Nothing is installed on other steps, so dormant steps cost nothing and a compiler never sees it.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from internist.measures import attention as measure
from internist.model.outline import WatchedModule
from internist.observe.taps import Gate
from internist.observe.tokens import outside_modes
from internist.record.recorder import Recorder, Spec
from internist.schema.metrics import Bound
from internist.schema.wire import Facts


class AttentionCapture:
    """Measures the logits of every attention call made while it is installed and the gate is on."""

    def __init__(
        self,
        gate: Gate,
        *,
        fault: Callable[[str, str, BaseException], None],
        wanted: Callable[[str], bool],
        heavy_every: int,
    ) -> None:
        self._gate, self._fault, self._wanted, self._heavy_every = gate, fault, wanted, heavy_every
        self._values: dict[int, list[Tensor]] = {}
        self._subjects: dict[int, WatchedModule] = {}
        self._scales: dict[int, float] = {}
        self._specs: dict[tuple[int, int, str, str], Spec] = {}
        self._places: list[tuple[Any, str]] | None = None
        self._original: Any = None
        self._broken: set[int] = set()
        self.measured: set[int] = set()

    @property
    def installed(self) -> bool:
        """Whether attention is replaced now."""
        return self._original is not None

    def install(self) -> None:
        """Replace attention wherever a module has bound it by name."""
        if self.installed or not (self._wanted("attention.max_logit") or self._wanted("attention.max_abs_logit")):
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
        for order, calls in self._values.items():
            heads = {c.shape[1] for c in calls}
            if len(heads) != 1:
                continue
            largest = torch.stack(calls).amax(0) if len(calls) > 1 else calls[0]
            count = heads.pop()
            layout: list[Spec | None] = []
            for metric in ("attention.max_logit", "attention.max_abs_logit"):
                layout += [self._spec(order, head, metric, bound) for head in range(count)]
            recorder.add(layout, largest)
            self.measured.add(order)
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
        if watched.excluded or watched.order in self._broken:
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
            self._broken.add(watched.order)
            self._fault("attention", watched.name, error)

    def _spec(self, order: int, head: int, metric: str, bound: Bound) -> Spec | None:
        if not self._wanted(metric):
            return None
        key = order, head, metric, bound
        spec = self._specs.get(key)
        if spec is None:
            watched = self._subjects[order]
            facts = Facts(
                method="chunked",
                role="attention",
                block=watched.block,
                module=watched.name,
                order=watched.order,
                cadence=self._heavy_every,
                placement="data_parallel",
                scale=self._scales.get(order),
            )
            spec = self._specs[key] = Spec(metric, "module", watched.name, head, bound, facts)
        return spec


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
