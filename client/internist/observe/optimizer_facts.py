"""What is read of an optimizer, whatever its class: groups, parameters, steps made, whether a call has a closure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from internist.model.plain import PLAIN


def unwrap_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside a wrapper that is an `Optimizer` without hooks of its own (Accelerate's)."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(optimizer, Optimizer) and isinstance(inner, Optimizer):
        return unwrap_optimizer(inner)
    return optimizer


def has_closure(args: Any, kwargs: Any) -> bool:
    """Whether a `step` call carries a closure. A hook's `args` may begin with the optimizer itself."""
    if kwargs.get("closure") is not None:
        return True
    rest = args[1:] if args and isinstance(args[0], Optimizer) else args
    return bool(rest) and callable(rest[0])


def parameter_groups(optimizer: Any) -> list[dict[str, Any]]:
    """The optimizer's parameter groups; empty where it shows none."""
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        return []
    return [group for group in groups if isinstance(group, dict) and isinstance(group.get("params"), Iterable)]


def parameters_of(optimizer: Any) -> Iterator[Tensor]:
    """The tensors that an optimizer's groups name."""
    for group in parameter_groups(optimizer):
        for tensor in group["params"]:
            if isinstance(tensor, Tensor):
                yield tensor


def steps_of_group(optimizer: Any, group: Mapping[str, Any]) -> float | Tensor | None:
    """The `step` in the state of the first of a group's parameters that has a state; None where it counts none."""
    state = getattr(unwrap_optimizer(optimizer), "state", None)
    if not isinstance(state, Mapping):
        return None
    entries = (state.get(tensor) for tensor in group["params"] if isinstance(tensor, Tensor))
    own = next((entry for entry in entries if isinstance(entry, Mapping) and entry), {})
    steps = own.get("step")
    if isinstance(steps, Tensor):
        return steps if type(steps) in PLAIN and steps.numel() == 1 and not steps.is_meta else None
    return float(steps) if isinstance(steps, int | float) else None


def step_of_state(optimizers: Sequence[Any]) -> int | None:
    """The largest `step` in the optimizers' states: how many updates a resumed optimizer has made."""
    steps: list[int] = []
    for optimizer in optimizers:
        state = getattr(unwrap_optimizer(optimizer), "state", None)
        if not isinstance(state, Mapping) or not state:
            continue
        for entry in list(state.values()):
            value = entry.get("step") if isinstance(entry, Mapping) else None
            if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_meta:
                steps.append(int(value.item()))
            elif isinstance(value, int | float):
                steps.append(int(value))
    return max(steps, default=None)
