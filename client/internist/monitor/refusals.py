"""Refusals: what `watch` is handed by mistake, and what to hand it instead."""

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from internist.errors import ConfigurationError, NothingToWatch
from internist.model.outline import Outline
from internist.model.roles import unwrap
from internist.observe.optimizer_facts import parameter_groups

_LOG = logging.getLogger("internist")
_SHOWN: Final = 3
_HOLDERS: Final = {
    "Trainer": "the model and the optimizer that it trains (trainer.model, trainer.optimizer)",
    "Accelerator": "the model and the optimizer that accelerator.prepare() returned",
    "Fabric": "the model and the optimizer that fabric.setup() returned",
}
"""Objects that hold a model or an optimizer, by class name: what to pass instead."""


def check_model(model: Any) -> None:
    """Refuse what is no model that can be watched.

    Raises:
        ConfigurationError: it is something else, or its parameters hold no values yet.
        NothingToWatch: it has no parameters.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ConfigurationError(f"watch(model): {model.__name__} is a class; pass an instance of it")
    if isinstance(model, Optimizer):
        raise ConfigurationError(
            f"watch(model): {type(model).__name__} is an optimizer; the model comes first: watch(model, optimizer)"
        )
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"watch(model): expected a torch.nn.Module, got {type(model).__name__}{_instead(model)}"
        )
    if isinstance(unwrap(model), RecursiveScriptModule):
        raise ConfigurationError(
            f"watch(model): {type(model).__name__} is compiled by torch.jit.script: its calls cannot be seen; watch "
            "what it was made of"
        )
    parameters = dict(model.named_parameters())
    if not parameters:
        raise NothingToWatch(
            f"watch(model): {type(model).__name__} has no parameters; build its layers before watching it"
        )
    lazy = [name for name, parameter in parameters.items() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ConfigurationError(
            f"watch(model): {_listed(lazy)} of {type(model).__name__} are lazy and have no shape yet; run one forward"
            " before watching the model"
        )


def checked_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers in what was given as such: one, a list of them, or a dict with names of theirs.

    Raises:
        ConfigurationError: something in it is no optimizer.
    """
    if optimizer is None:
        return []
    if isinstance(optimizer, Mapping):
        named = {f"optimizer[{key!r}]": each for key, each in optimizer.items()}
    elif isinstance(optimizer, list | tuple | set | frozenset):
        named = {f"optimizer[{index}]": each for index, each in enumerate(optimizer)}
    else:
        named = {"optimizer": optimizer}
    for name, each in named.items():
        _check_optimizer(name, each)
    return list(named.values())


def check_choice(plan: Outline, *, include: Sequence[str], exclude: Sequence[str]) -> None:
    """Refuse expressions that choose nothing: a typo in them would measure nothing and say nothing.

    Raises:
        ConfigurationError: an expression of `include` matches no module, or `exclude` leaves none.
    """
    names = [module.name for module in plan.modules]
    for expression in include:
        if not any(re.search(expression, name) for name in names):
            raise ConfigurationError(
                f"include={expression!r} matches none of the model's {len(names)} modules; the nearest names are"
                f" {_nearest(expression, names)}"
            )
    if all(module.excluded for module in plan.modules):
        raise ConfigurationError(
            f"exclude={list(exclude)!r} leaves none of the model's {len(names)} modules"
            + (f" that include={list(include)!r} chooses" if include else "")
            + f"; they are {_listed(names)}"
        )


def note_oddities(model: nn.Module, optimizers: Sequence[Any]) -> None:
    """Say once what will not be measured of a model or an optimizer that is watched nevertheless."""
    name = type(model).__name__
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        _LOG.warning(
            "internist: none of %s's %d parameters requires a gradient: gradients and updates are not measured",
            name, len(parameters),
        )  # fmt: skip
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        _LOG.warning(
            "internist: TorchScript hides the calls of %s's modules: weights, gradients and updates are measured, what"
            " its modules return is not",
            name,
        )
    mine = {id(parameter) for parameter in parameters}
    owned = any(id(t) in mine for o in optimizers for group in parameter_groups(o) for t in group["params"])
    if not owned and any(parameter_groups(o) for o in optimizers):
        # of other tensors (master copies): a good clock, but its updates cannot be seen
        _LOG.warning(
            "internist: %s owns none of %s's %d parameters (another model's optimizer, or master copies?); it is used "
            "as the clock, but updates and gradients cannot be measured",
            ", ".join(type(o).__name__ for o in optimizers), name, len(mine),
        )  # fmt: skip


def _check_optimizer(name: str, value: Any) -> None:
    kind = type(value).__name__
    if value is None:
        raise ConfigurationError(f"watch(model, optimizer): {name} is None; leave it out")
    if isinstance(value, type):
        raise ConfigurationError(
            f"watch(model, optimizer): {name} is the class {value.__name__}; pass an instance of it"
        )
    if isinstance(value, nn.Module):
        raise ConfigurationError(
            f"watch(model, optimizer): {name} is a model ({kind}); the model comes first, its optimizer second"
        )
    if isinstance(value, LRScheduler) or (hasattr(value, "get_last_lr") and not parameter_groups(value)):
        raise ConfigurationError(
            f"watch(model, optimizer): {name} is a learning-rate scheduler ({kind}); pass its optimizer"
        )
    if callable(getattr(value, "unscale_", None)) and callable(getattr(value, "scale", None)):
        raise ConfigurationError(
            f"watch(model, optimizer): {name} is a gradient scaler ({kind}); pass the optimizer that it steps"
        )
    if not callable(getattr(value, "step", None)):
        raise ConfigurationError(
            f"watch(model, optimizer): expected an optimizer with a step() method, got {kind} as {name}"
            + _instead(value)
        )


def _instead(value: Any) -> str:
    """What to pass instead of an object that holds it, where its class is known by name."""
    known = next((c.__name__ for c in type(value).__mro__ if c.__name__ in _HOLDERS), None)
    return f"; pass {_HOLDERS[known]}" if known else ""


def _nearest(expression: str, names: Sequence[str]) -> str:
    return _listed(difflib.get_close_matches(expression, names, n=_SHOWN, cutoff=0.0))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
