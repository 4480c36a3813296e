"""The root of the model: where a forward begins and ends, outside of compiled code."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from internist.model.roles import unwrap
from internist.observe.taps import inert_hook


class _RootHook:
    """A hook on the root; inert in copies and while a compiler traces."""

    __slots__ = ("_call", "_end")

    def __init__(self, call: Callable[..., None], *, end: bool) -> None:
        self._call, self._end = call, end

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:  # noqa: ARG002
        if torch.compiler.is_compiling():
            return
        if self._end:
            self._call(output)
        else:
            self._call(args, kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return inert_hook, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return inert_hook()


class RootHooks:
    """Tells when a forward of the model begins and ends, eager or compiled."""

    def __init__(
        self, model: nn.Module, root: nn.Module, *, begins: Callable[[Any, Any], None], ends: Callable[[Any], None]
    ) -> None:
        self._model, self._root = model, root
        self.seen = False

        def begin(args: Any, kwargs: Any) -> None:
            self.seen = True
            begins(args, kwargs)

        self._begins, self._ends = begin, ends
        place = next((m for m in chain(model) if type(m).__name__ == "OptimizedModule"), root)
        self._handles = [
            place.register_forward_pre_hook(_RootHook(begin, end=False), with_kwargs=True),
            place.register_forward_hook(_RootHook(ends, end=True), with_kwargs=True, always_call=True),
        ]
        self._wrapped: list[tuple[nn.Module, Any, Any]] = []
        self.refresh()

    def refresh(self) -> None:
        """`model.compile()` puts compiled code in front of all hooks: stand in front of it, outside the graph."""
        for module in chain(self._model):
            compiled = getattr(module, "_compiled_call_impl", None)
            if compiled is None or any(compiled is ours for _, _, ours in self._wrapped):
                continue
            if any(module is known for known, _, _ in self._wrapped):
                self._wrapped = [entry for entry in self._wrapped if entry[0] is not module]
            wrapper = self._wrap(compiled)
            module._compiled_call_impl = wrapper
            self._wrapped.append((module, compiled, wrapper))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        for module, original, ours in self._wrapped:
            if module._compiled_call_impl is ours:
                module._compiled_call_impl = original

    def _wrap(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._begins(args, kwargs)
            output = None
            try:
                output = compiled(*args, **kwargs)
            finally:
                self._ends(output)
            return output

        return call


def chain(model: nn.Module) -> Iterator[nn.Module]:
    """A model and, one by one, the modules inside its wrappers, down to the user's own."""
    inner = unwrap(model)
    while model is not inner:
        yield model
        following = getattr(model, "_orig_mod", None)
        model = following if isinstance(following, nn.Module) else model.module  # type: ignore[assignment]
    yield inner


def is_compiled(model: nn.Module, root: nn.Module) -> bool:
    """Whether any of the model's forward runs in compiled code, as far as can be seen from here."""
    wrapped = any(type(m).__name__ == "OptimizedModule" for m in chain(model))
    return wrapped or any(
        getattr(m, "_compiled_call_impl", None) is not None
        or type(m).__name__ == "OptimizedModule"
        or hasattr(vars(m).get("forward"), "_torchdynamo_orig_callable")  # m.forward = torch.compile(m.forward)
        for m in root.modules()
    )
