"""The mark that a planned model leaves in its state: without the same multipliers its weights are another function.

`state_dict()` has one more entry, at the root. A model without a plan refuses it as an unexpected key, one that is
planned otherwise by what it says; a state without it is taken and told of.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("internist")

KEY = "mup_multipliers"
"""The entry: the factors of a plan's multipliers, in the order of its modules."""


class _Saving:
    """A hook that adds the mark to a state."""

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        state[prefix + KEY] = getattr(module, KEY).clone()


class _Loading:
    """A hook that takes the mark out of a state and compares it."""

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        errors: list[str] = rest[-1]
        own: Tensor = getattr(module, KEY)
        said = state.pop(prefix + KEY, None)
        if said is None:
            log.warning(
                "the state that was loaded says nothing of multipliers, and the model has a plan's: if a model without "
                "that plan saved it, its weights are another function here"
            )
        elif said.shape != own.shape or not torch.allclose(said.to(own), own, rtol=1e-6):
            errors.append(
                f"the state was saved under a plan with other multipliers: {said.tolist()} there, {own.tolist()} here"
            )


def mark(root: nn.Module, factors: Sequence[float]) -> None:
    """Mark a model with these factors in place of any others. None: it has no multipliers, and no mark."""
    for hooks in (root._state_dict_hooks, root._load_state_dict_pre_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "hook", hook), _Saving | _Loading)]:
            del hooks[key]
    vars(root).pop(KEY, None)
    if factors:
        # an attribute and no buffer: data parallelism sends buffers around, and casts round them
        setattr(root, KEY, torch.tensor(factors, dtype=torch.float64, device="cpu"))
        root.register_state_dict_post_hook(_Saving())  # type: ignore[no-untyped-call]
        root.register_load_state_dict_pre_hook(_Loading())  # type: ignore[no-untyped-call]
