"""The queries and keys of every training forward, as attention receives them, and the logits they can make.

While an attention layer is called, and only then, `scaled_dot_product_attention` is listened to. Compiled code is
traced with a note inside that is an operator of its own, so the graph stays whole.

Shapes: B batch, H query heads, K key heads, T queries, S keys, D head features.
"""

import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from internist.measures.attention import HIDDEN_BELOW, max_logits
from internist.measures.precision import full_precision
from internist.model.patches import Listening, function

BOUND_SLACK = 1e-4
"""Rounding of float32 norms and products over some hundred features."""

_captures: "weakref.WeakValueDictionary[int, LogitCapture]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Call:
    """One call of attention: the arguments of `scaled_dot_product_attention` that decide its logits."""

    query: Tensor
    """(..., H, T, D)."""
    key: Tensor
    """(..., K, S, D)."""
    mask: Tensor | None = None
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def heads(self) -> int:
        """H; three dimensions and fewer are one head."""
        return self.query.shape[-3] if self.query.ndim > 3 else 1

    @property
    def features(self) -> int:
        """D."""
        return self.query.shape[-1]


def logit_bounds(call: Call) -> Tensor:
    """An upper bound of each head's largest absolute logit, without the logits: scale max|q| max|k| by sequence.

    Returns:
        (H,) float32, never under the exact maximum of `exact_logits`. NaN where a query or key is NaN.

    Source: the Cauchy-Schwarz inequality.
    """
    q_BHT, k_BKS = _norms(_heads(call.query)), _norms(_heads(call.key))
    q_BH, k_BK = q_BHT.amax(-1), k_BKS.amax(-1)
    scale = 1.0 / math.sqrt(call.features) if call.scale is None else abs(call.scale)
    B, K = k_BK.shape
    products_BKG = q_BH.view(B, K, -1) * k_BK.unsqueeze(-1)
    return products_BKG.amax(0).flatten() * (scale * (1 + BOUND_SLACK))


def exact_logits(call: Call, heads: Tensor | None = None) -> Tensor:
    """Each head's largest visible scale q.k, signed, computed in pieces.

    What an additive mask adds is left out: it does not scale with the projections. A key it hides does not count.

    Args:
        call: the attention call.
        heads: (n,) indices of the heads wanted; None is all.

    Returns:
        (n,) or (H,) float32; `NOT_MEASURED` of a head that sees no key, NaN of one with a NaN logit.
    """
    mask = call.mask
    if mask is not None and mask.is_floating_point():
        mask = mask > HIDDEN_BELOW
    query, key, gqa = call.query, call.key, call.enable_gqa
    if heads is not None and len(heads) < call.heads:
        group = call.heads // key.shape[-3]
        query, key, gqa = query.index_select(-3, heads), key.index_select(-3, heads // group), False
        if mask is not None and mask.ndim > 2 and mask.shape[-3] > 1:
            mask = mask.index_select(-3, heads)
    return max_logits(query, key, mask=mask, is_causal=call.is_causal, scale=call.scale, enable_gqa=gqa)[0]


class LogitCapture:
    """Hooks that hand every attention call of a training forward to `observe(layer, call)`.

    A forward trains where the root is in training mode and gradients are on as it begins. What a backward recomputes
    is not handed over again. `project(layer, output)` receives what a layer's query projection gave
    while `wants(layer)` says so, and `left(layer)` ends a layer's forward; neither comes from compiled code.
    """

    def __init__(
        self,
        root: nn.Module,
        layers: Sequence[tuple[nn.Module, nn.Module | None]],
        *,
        observe: Callable[[int, Call], None],
        project: Callable[[int, Tensor], None],
        wants: Callable[[int], bool],
        left: Callable[[int], None],
    ) -> None:
        self.observe, self.project, self.wants, self._left = observe, project, wants, left
        self.number = next(_numbers)
        _captures[self.number] = self
        self._root = root
        self._training: bool | None = None
        self._stack: list[int] = []
        self._modules: list[nn.Module] = []
        self._error: Exception | None = None
        """What noting a call gave, until its layer is left."""
        noting = _Noting(self.number, self._stack, [torch.zeros((), dtype=torch.uint8) for _ in layers])
        self._traced = noting.note
        self._attention = function(functional, "scaled_dot_product_attention")
        self._listening: Listening | None = None
        self._places = self._attention.places()
        self._inners: list[Any] = []
        self._replacements = [self._replacing(place) for place in range(len(self._places))]
        self._handles = [
            root.register_forward_pre_hook(_Hook(self, root, "begin")),
            root.register_forward_hook(_Hook(self, root, "end"), always_call=True),
        ]
        for index, (layer, projection) in enumerate(layers):
            self._handles.append(layer.register_forward_pre_hook(_Hook(self, layer, "enter", index)))
            self._handles.append(layer.register_forward_hook(_Hook(self, layer, "leave", index), always_call=True))
            if projection is not None:
                self._handles.append(projection.register_forward_hook(_Hook(self, projection, "project", index)))

    def remove(self) -> None:
        """Remove every hook. Code compiled meanwhile keeps an operator that does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._listening is not None:
            self._listening.remove()
        _captures.pop(self.number, None)

    def begin(self) -> None:
        """The root's forward begins."""
        self._training = self._root.training and torch.is_grad_enabled()

    def end(self) -> None:
        """The root's forward is over."""
        self._training = None

    def enter(self, module: nn.Module, index: int) -> None:
        """A layer's forward begins."""
        training = self._training
        if training is None:
            training = module.training and torch.is_grad_enabled()
        if not training:
            return
        self._stack.append(index)
        self._modules.append(module)
        if len(self._stack) > 1:
            return
        if not torch.compiler.is_compiling():
            self._listening = self._attention.listen(self._called, traced=self._traced)
            return
        self._inners = [getattr(place, name) for place, name in self._places]
        for (place, name), replacement in zip(self._places, self._replacements, strict=True):
            setattr(place, name, replacement)

    def leave(self, module: nn.Module, *, failed: bool) -> None:
        """A layer's forward is over."""
        if not self._modules or self._modules[-1] is not module:
            return
        index = self._stack.pop()
        self._modules.pop()
        if not self._stack:
            self._restore()
        if torch.compiler.is_compiling():
            return
        error, self._error = self._error, None
        if error is not None:
            raise error
        if not failed:
            self._left(index)

    def note(self, layer: int, call: Call) -> None:
        """One call of attention, outside of any graph."""
        if _in_backward():
            return
        with torch.no_grad(), _outside_modes(), full_precision(call.query):
            self.observe(layer, call)

    def _restore(self) -> None:
        if self._listening is not None:
            self._listening.remove()
            self._listening = None
        for (place, name), inner in zip(self._places, self._inners, strict=False):
            setattr(place, name, inner)
        self._inners = []

    def _replacing(self, place: int) -> Callable[..., Tensor]:
        """What a compiler sees at this place while it traces a layer's call."""

        def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Any:
            self._traced(args, kwargs)
            return self._inners[place](*args, **kwargs)

        return scaled_dot_product_attention

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._stack:
            return
        try:
            self.note(self._stack[-1], _read(*args, **kwargs))
        except Exception as error:  # raised as the layer is left: listening to a function never raises
            self._error = error


class _Noting:
    """What stands in compiled code. It knows no model, so that it may live as long as the code does."""

    def __init__(self, capture: int, stack: list[int], tokens: list[Tensor]) -> None:
        self._capture, self._stack, self._tokens = capture, stack, tokens

    def note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put the note of a call into the graph."""
        if not self._stack:
            return
        layer = self._stack[-1]
        call = _read(*args, **kwargs)
        _note_attention(
            self._tokens[layer],
            call.query,
            call.key,
            call.mask,
            call.is_causal,
            call.scale,
            call.enable_gqa,
            self._capture,
            layer,
        )


def _read(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    mask = None if attn_mask is None else attn_mask.detach()
    return Call(query.detach(), key.detach(), mask, is_causal, scale, enable_gqa)


class _Hook:
    """A hook of a capture. Copies and pickles of the model carry an inert one."""

    __slots__ = ("_capture", "_index", "_kind", "_owner")

    def __init__(self, capture: LogitCapture, owner: nn.Module, kind: str, index: int = 0) -> None:
        self._capture, self._owner = capture, weakref.ref(owner)
        self._kind, self._index = kind, index

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:  # noqa: ARG002
        compiling = torch.compiler.is_compiling()
        if not compiling and self._owner() is not module:
            return
        if self._kind == "enter":
            self._capture.enter(module, self._index)
        elif self._kind == "leave":
            self._capture.leave(module, failed=output is None)
        elif self._kind == "begin":
            self._capture.begin()
        elif self._kind == "end":
            self._capture.end()
        elif not compiling and isinstance(output, Tensor) and self._capture.wants(self._index):
            self._capture.project(self._index, output.detach())

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _Inert, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return _Inert()


class _Inert:
    """A hook that does nothing: what a copy of a model carries."""

    def __call__(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


_TAGS: dict[str, Any] = {"tags": [torch.Tag.cudagraph_unsafe]} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
"""A recorded CUDA graph would replay the kernels and not the note. torch 2.6 takes no tags here."""


@torch.library.custom_op(
    "internist::note_attention",
    mutates_args={"token"},
    **_TAGS,
    schema="(Tensor(a!) token, Tensor query, Tensor key, Tensor? mask, bool is_causal, float? scale, bool enable_gqa, "
    "int capture, int layer) -> ()",
)
def _note_attention(  # `token` is only said to be written, so that a compiler keeps the operator and its order
    token: Tensor,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    capture: int,
    layer: int,
) -> None:
    found = _captures.get(capture)
    if found is not None:
        found.note(layer, Call(query, key, mask, is_causal, scale, enable_gqa))


@_note_attention.register_fake
def _(*_args: Any) -> None:
    return None


def _heads(x: Tensor) -> Tensor:
    """(B, heads, tokens, D) of any layout that attention takes."""
    if x.ndim < 4:
        return x.unsqueeze(-3).reshape(-1, 1, *x.shape[-2:])
    return x.flatten(0, -4)


def _norms(x: Tensor) -> Tensor:
    """Norms over the features, float32: squares of reduced precision overflow."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    return norms.float()


def _in_backward() -> bool:
    """Whether an activation checkpoint is being recomputed."""
    return torch._C._current_graph_task_id() != -1


def _outside_modes() -> AbstractContextManager[Any]:
    """Leaves dispatch modes: selective checkpointing would keep our tensors for the model."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return nullcontext()
    from torch.utils._python_dispatch import _disable_current_modes

    context: AbstractContextManager[Any] = _disable_current_modes()
    return context
