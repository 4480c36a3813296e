"""A forward of a model that is looked at: the heads of its attention, and what it multiplies its logits by itself.

What a layer is called decides nothing: heads are what `scaled_dot_product_attention` receives, and the module that made
them is found by following the graph of gradients back from there.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from internist.model.heads import HeadRows, makes
from internist.model.patches import Arguments, function
from internist.model.roles import is_attention, plain_name, unwrap

NODES = 96
"""How many operations are followed back at most from what attention received: from a projection there are some ten."""
ALIKE = 1e-3
"""How far a tensor may be, relatively, from a multiple of another one to be told as that: rounding of float32."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one attention layer."""

    layer: str
    """The module in whose forward attention was called."""
    size: int
    """Features of a head."""
    scale: float
    """What is between the queries' module and the softmax, as a factor of the logits."""
    queries: str
    """The module whose output the queries are; of torch's own attention that itself, whose input makes them."""
    rows: HeadRows | None
    """Which of its outputs; None: all."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a forward told."""

    heads: tuple[Heads, ...]
    unread: dict[str, str]
    """Attention layer to why its heads are not told."""
    logits: float
    """What the model multiplies by itself what enters or leaves its head."""
    answers: dict[str, str]
    """Module that was watched to the type of its output, where that does not begin with a tensor."""


@dataclass(slots=True)
class _Call:
    """One call of attention, with what the modules around it had given by then, the innermost first."""

    stack: tuple[str, ...]
    query: Tensor
    key: Tensor
    scale: float
    given: tuple[tuple[tuple[str, Tensor], ...], ...]


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Forward:
    """What hooks saw of a forward."""

    stack: list[tuple[str, list[tuple[str, Tensor]]]] = field(default_factory=lambda: [("", [])])
    calls: list[_Call] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    outputs: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    before_head: list[Tensor] = field(default_factory=list)
    """What modules gave before the head was called, of which one may be what entered it."""

    def attention(self, args: Arguments, kwargs: dict[str, Any]) -> None:
        """A call of attention."""
        query, key = (kwargs[name] if name in kwargs else args[place] for place, name in enumerate(("query", "key")))
        scale = kwargs.get("scale")
        given = tuple(tuple(frame) for _, frame in reversed(self.stack))
        names = tuple(name for name, _ in reversed(self.stack))
        self.calls.append(_Call(names, query, key, query.shape[-1] ** -0.5 if scale is None else float(scale), given))


@contextmanager
def as_it_was(root: nn.Module) -> Iterator[None]:
    """A model in evaluation, with gradients' graphs; afterwards its modes, buffers and torch's random states as they
    were."""
    modes = {module: module.training for module in root.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in root.buffers()]
    devices = sorted({p.device.index or 0 for p in root.parameters() if p.device.type == "cuda"})
    try:
        root.eval()
        with torch.random.fork_rng(devices), torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def probed(model: nn.Module, inputs: Any, *, head: str | None, watched: Iterable[str] = ()) -> Probed:
    """Call a model once, in evaluation, and say what was seen. Weights, buffers, gradients, modes and random states
    stay as they are.

    Args:
        model: with storage; wrappers of compilation and data parallelism are looked through.
        inputs: what it is called with: a tensor, a tuple of arguments, or a mapping of keywords.
        head: name of the module that makes its logits; None without.
        watched: modules whose output has to begin with a tensor.

    Raises:
        ValueError: the forward raised.
    """
    root = unwrap(model)
    names = {module: plain_name(raw) for raw, module in root.named_modules()}
    seen = _Forward()
    with as_it_was(root), _hooked(names, seen, head):
        try:
            output = _called(root, inputs)
        except Exception as error:
            raise ValueError(
                f"the forward that looks at the model's heads raised {type(error).__name__}: {error}. Give what the "
                "model is called with as probe=: a tensor, a tuple of arguments or a dict of keywords"
            ) from error
    heads, unread = _heads(names, seen)
    watch = {name: type(seen.outputs[name]).__name__ for name in watched if name in seen.outputs}
    answers = {name: kind for name, kind in watch.items() if _first(seen.outputs[name]) is None}
    return Probed(tuple(heads), unread, _own_factor(seen, head, output), answers)


# -- the forward


@contextmanager
def _hooked(names: Mapping[nn.Module, str], seen: _Forward, head: str | None) -> Iterator[None]:
    def enter(module: nn.Module, args: Any) -> None:
        name = names[module]
        if name == head and args and isinstance(args[0], Tensor):
            seen.inputs.setdefault(name, args[0])
        seen.stack.append((name, []))

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        name = seen.stack.pop()[0]
        seen.called.add(name)
        seen.outputs.setdefault(name, output)
        tensor = _first(output)
        if tensor is not None:
            seen.stack[-1][1].append((name, tensor))
            if head is not None and head not in seen.outputs:
                seen.before_head.append(tensor)

    handles = [module.register_forward_pre_hook(enter, prepend=True) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    heard = function(functional, "scaled_dot_product_attention").listen(seen.attention)
    try:
        yield
    finally:
        heard.remove()
        for handle in handles:
            handle.remove()


def _called(root: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return root(**inputs)
    return root(*inputs) if isinstance(inputs, tuple) else root(inputs)


def _first(output: Any) -> Tensor | None:
    """The tensor that an output is or begins with."""
    found = output[0] if isinstance(output, tuple) and output else output
    return found if isinstance(found, Tensor) else None


# -- heads


def _heads(names: Mapping[nn.Module, str], seen: _Forward) -> tuple[list[Heads], dict[str, str]]:
    found: dict[str, Heads] = {}
    unread: dict[str, str] = {}
    own = {name: module for module, name in names.items() if isinstance(module, nn.MultiheadAttention)}
    for call in seen.calls:
        layer = call.stack[0]
        if layer in own or layer in found:
            continue
        made = _made(call)
        if isinstance(made, Heads):
            found[layer] = made
        else:
            unread[layer] = made
    for name, torchs in own.items():
        if name in seen.called:
            found[name] = Heads(name, torchs.head_dim, torchs.head_dim**-0.5, name, None)
    for module, name in names.items():
        read = any(_is_around(name, one) or _is_around(one, name) for one in (*found, *unread))
        if name and is_attention(module) and not read and any(True for _ in module.parameters()):
            unread[name] = "it calls no scaled_dot_product_attention"
    return list(found.values()), unread


def _made(call: _Call) -> Heads | str:
    """The heads of a call, or why they cannot be told."""
    size, count = call.query.shape[-1], call.query.shape[-3] if call.query.ndim > 3 else 1
    for frame in call.given:
        name = _nearest(call.query, dict(frame))
        if name is None:
            continue
        output = dict(frame)[name]
        if output.shape[-1] in (size, count * size):
            if _nearest(call.key, dict(frame)) == name:
                return f"its queries and keys are made of the same output, of {name!r}"
            return Heads(call.stack[0], size, call.scale * _ratio(call.query, output), name, None)
        for rows in _fused(output.shape[-1], count, size):
            ratio = _ratio(call.query, rows.take(output))
            if makes(rows, output.detach() * ratio, call.query.detach()):
                return Heads(call.stack[0], size, call.scale * ratio, name, rows)
        return f"which of the {output.shape[-1]} outputs of {name!r} are {count} heads of {size} queries is not told"
    return "no module was found whose output its queries are"


def _fused(rows: int, count: int, size: int) -> Iterator[HeadRows]:
    """The ways in which the rows of one projection can hold the queries beside as many keys as values."""
    keys = (rows // size - count) // 2
    if rows % size or keys < 1 or count + 2 * keys != rows // size or count % keys:
        return
    yield HeadRows(0, 1, 0, count, size, 1.0)
    yield HeadRows(0, keys, 0, count // keys, size, 1.0)


def _nearest(tensor: Tensor, given: Mapping[str, Tensor]) -> str | None:
    """The module of those whose output is nearest behind a tensor, by the graph of gradients; None where none is."""
    nodes = {output.grad_fn: name for name, output in given.items() if output.grad_fn is not None}
    waiting: deque[Any] = deque([tensor.grad_fn])
    known: set[Any] = set()
    while waiting and len(known) < NODES:
        node = waiting.popleft()
        if node is None or node in known:
            continue
        if node in nodes:
            return nodes[node]
        known.add(node)
        waiting.extend(following for following, _ in node.next_functions)
    return None


def _ratio(seen: Tensor, made: Tensor) -> float:
    """By how much the first is longer than the second; one where they are alike, or are nothing."""
    one, other = (float(tensor.detach().double().square().mean().sqrt()) for tensor in (seen, made))
    ratio = one / other if other > 0.0 else 1.0
    return ratio if math.isfinite(ratio) and ratio > 0.0 and abs(ratio - 1.0) > ALIKE else 1.0


def _is_around(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer + ".")


# -- logits


def _own_factor(seen: _Forward, head: str | None, output: Any) -> float:
    """The constants between the last module before the head and the head, and between the head and the answer."""
    if head is None:
        return 1.0
    factor = 1.0
    entered, left = seen.inputs.get(head), _first(seen.outputs.get(head))
    if entered is not None:
        factor *= next((c for t in reversed(seen.before_head) if (c := _multiple(entered, t)) is not None), 1.0)
    if left is not None:
        answers = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else [output]
        answers = [answer for answer in answers if isinstance(answer, Tensor)]
        factor *= next((c for t in answers if (c := _multiple(t, left)) is not None), 1.0)
    return factor


def _multiple(tensor: Tensor, of: Tensor) -> float | None:
    """c, where a tensor is c times another one; None where it is not."""
    if tensor.shape != of.shape or not tensor.is_floating_point():
        return None
    a, b = tensor.detach().double().flatten(), of.detach().double().flatten()
    below = float(b @ b)
    c = float(a @ b) / below if below > 0.0 else math.nan
    if not math.isfinite(c) or c == 0.0 or float((a - c * b).norm()) > ALIKE * float(a.norm()):
        return None
    return 1.0 if abs(c - 1.0) <= ALIKE else c
