"""The root of the model: where a forward begins and ends, eager or compiled."""

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from internist.model.roles import unwrap
from internist.observe.taps import Tap, can_tap, compiled_call, stands

STAGES, REHEARSAL, REHEARSAL_DEPTH = "torch.distributed.pipelining.stage", "_forward_metadata_inference", 128
"""The module and the function in which torch's pipelines run a stage to learn its shapes, and how many callers up it is
looked for."""
SEARCHES = 4
"""Times that a compiled wrapper of an unseen root is looked for: it walks all objects of the process."""


class RootCalls:
    """Tells when a forward of the model begins and ends, whichever of its wrappers is called.

    Args:
        model: as it was watched, wrappers included.
        root: the user's own module inside.
        begins: told of the arguments.
        ends: told of the output; of `RAISED` where the forward raised.

    It hears of nothing until `refresh` was called.
    """

    def __init__(
        self, model: nn.Module, root: nn.Module, *, begins: Callable[[Any, Any], None], ends: Callable[[Any], None]
    ) -> None:
        self._begins, self._ends = begins, ends
        self._places = [weakref.ref(module) for module in chain(model) if can_tap(module)]
        self._root = weakref.ref(root)
        self._taps: dict[int, Tap] = {}
        self.instead: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]] | None = None
        """Says what is to make a call of the model or of its wrappers; taken over at `refresh`."""
        self._depth = 0
        self._searches = 0
        self.calls = 0
        """Forwards that were seen."""

    @property
    def seen(self) -> bool:
        """Whether a forward was ever seen."""
        return self.calls > 0

    def refresh(self) -> None:
        """Stand in front of the model's calls again, where `compile()` has taken the place."""
        for reference in self._places:
            module = reference()
            if module is None:
                continue
            tap = self._taps.get(id(module))
            if tap is None:
                tap = self._taps[id(module)] = Tap(module, self._enter, self._leave)
            tap.instead = self.instead
            if not stands(module, tap):
                tap.insert(outermost=True)

    def search(self) -> bool:
        """Look for a compiled wrapper that was made after the model was watched; whether one was found."""
        root = self._root()
        if root is None or self._searches >= SEARCHES:
            return False
        self._searches += 1
        known = {id(reference()) for reference in self._places}
        found = [
            each
            for each in gc.get_objects()
            if type(each).__name__ == "OptimizedModule" and id(each) not in known and _innermost(each) is root
        ]
        self._places += [weakref.ref(wrapper) for wrapper in found]
        self.refresh()
        return bool(found)

    def is_compiled(self) -> bool:
        """Whether any of the model's forward runs in compiled code, as far as can be seen from here."""
        root = self._root()
        if root is None:
            return False
        places = [module for reference in self._places if (module := reference()) is not None]
        return any(
            type(module).__name__ == "OptimizedModule"
            or compiled_call(module) is not None
            or hasattr(
                vars(module).get("forward"), "_torchdynamo_orig_callable"
            )  # m.forward = torch.compile(m.forward)
            for module in (*places, *root.modules())
        )

    def remove(self) -> None:
        """Take the taps away."""
        for tap in self._taps.values():
            tap.unlink()
        self._taps.clear()

    def _enter(self, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self.calls += 1
            self._begins(args, kwargs)

    def _leave(self, _args: Any, _kwargs: Any, output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._ends(output)


def chain(model: nn.Module) -> Iterator[nn.Module]:
    """A model and, one by one, the modules inside its wrappers, down to the user's own."""
    inner = unwrap(model)
    while model is not inner:
        yield model
        following = getattr(model, "_orig_mod", None)
        model = following if isinstance(following, nn.Module) else model.module  # type: ignore[assignment]
    yield inner


def _innermost(wrapper: Any) -> nn.Module | None:
    module = vars(wrapper).get("_orig_mod") or vars(wrapper).get("_modules", {}).get("_orig_mod")
    return unwrap(module) if isinstance(module, nn.Module) else None


def is_rehearsal() -> bool:
    """Whether a pipeline's schedule is finding out the shapes of its stages: it runs each once on memory that nobody
    has written to."""
    if STAGES not in sys.modules:
        return False
    frame = sys._getframe(1)
    for _ in range(REHEARSAL_DEPTH):
        if frame.f_code.co_name == REHEARSAL and frame.f_globals.get("__name__") == STAGES:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def is_training_call(module: nn.Module) -> bool:
    """Whether a call of a module outside of any forward of the model's root is part of a training step."""
    return module.training and torch.is_grad_enabled() and not is_rehearsal()


def under_transform() -> bool:
    """Whether a function transform (vmap, grad, functionalize) or a tracer is at work: what is called then is no step's
    forward."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None
