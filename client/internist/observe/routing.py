"""How each parameter is stepped, as its optimizer says: algorithms, the routing table, and what is promised of updates.

An optimizer is known by what it offers, never by its class: `param_groups`, and where it has it `describe()`, with one
line for each parameter in the order of its groups.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from internist.measures.weights import mean_squares
from internist.model.outline import Outline
from internist.model.views import fans
from internist.observe.optimizer_facts import parameter_groups, unwrap_optimizer
from internist.schema.wire import MAX_NAME_LENGTH, Route

log = logging.getLogger("internist")

Promise = tuple[float, tuple[float, float]]
"""Spectral norm of an update over learning rate, were its singular values one; and the band they lie in."""
TORCH_MUON = (3.4445, -4.775, 2.0315)
"""torch.optim.Muon's default coefficients,"""
TORCH_MUON_BAND = (0.68, 1.134)
"""and the singular values that five steps with them leave."""


def algorithm_of(optimizer: Any, group: Mapping[str, Any]) -> str:
    """What steps the parameters of a group: the group's `algorithm` or `kind`, else its `use_muon` (a published
    optimizer with AdamW for the rest), else the optimizer's class in lower case."""
    for key in ("algorithm", "kind"):
        told = group.get(key)
        if isinstance(told, str) and told:
            return told.lower()
    if isinstance(group.get("use_muon"), bool):
        return "muon" if group["use_muon"] else "adamw"
    return type(optimizer).__name__.lower()


def is_matrix_algorithm(algorithm: str) -> bool:
    """Whether an algorithm steps whole matrices: Muon and its family, by name."""
    return "muon" in algorithm


def routing(optimizers: Sequence[Any], outline: Outline) -> tuple[Route, ...]:
    """The routing table of these optimizers, in the order of their groups.

    An optimizer's own `describe()` is the source of roles and of the names of rules, where it has one line for each
    parameter, in the order of its groups; names of parameters are the outline's. Weights are read once, for the RMS
    they begin with.
    """
    names = {id(p.tensor): p.name for p in outline.parameters}
    begins = _initial_rms(outline)
    routes: list[Route] = []
    for optimizer in map(unwrap_optimizer, optimizers):
        lines = iter(_described(optimizer))
        for index, group in enumerate(parameter_groups(optimizer)):
            for place, tensor in enumerate(group["params"]):
                line = next(lines, {})
                name = names.get(id(tensor)) or line.get("parameter") or f"{index}.{place}, of no watched model"
                routes.append(
                    Route(
                        parameter=_text(name),
                        optimizer=_text(type(optimizer).__name__),
                        algorithm=_text(line.get("algorithm") or algorithm_of(optimizer, group)),
                        group=_text(group.get("name") or index),
                        shape=tuple(tensor.shape),
                        role=_text(line.get("role")),
                        scale=_text(line.get("scale")),
                        coefficients=_text(line.get("coefficients")),
                        policy=_text(line.get("policy")),
                        lr=_number(group.get("initial_lr", group.get("lr"))),  # a scheduler keeps it there
                        weight_decay=_number(group.get("weight_decay")),
                        eps=_number(group.get("eps")),
                        init_rms=begins.get(id(tensor)),
                    )
                )
    return tuple(routes)


def promises(optimizers: Sequence[Any], outline: Outline) -> dict[int, Promise]:
    """What optimizers promise of the updates of whole matrices, by the order of the parameter.

    Taken from the lines of an optimizer's `describe()`, as `update_scale` and `update_band`; of torch.optim.Muon, which
    does not describe itself, known here for its default coefficients.
    """
    watched = {id(p.tensor): p for p in outline.parameters if "matrix" in p.roles}
    found: dict[int, Promise] = {}
    for optimizer in map(unwrap_optimizer, optimizers):
        lines = iter(_described(optimizer))
        for group in parameter_groups(optimizer):
            for tensor in group["params"]:
                line, parameter = next(lines, None), watched.get(id(tensor))
                if parameter is None:
                    continue
                promise = _promise_of_torch(optimizer, group, *fans(parameter)) if line is None else _promise(line)
                if promise is not None:
                    found[parameter.order] = promise
    return found


def _promise(line: Mapping[str, Any]) -> Promise | None:
    scale, band = line.get("update_scale"), line.get("update_band")
    if not isinstance(scale, int | float) or not isinstance(band, list | tuple) or len(band) != 2:
        return None
    numbers = float(scale), (float(band[0]), float(band[1]))
    return numbers if all(map(math.isfinite, (numbers[0], *numbers[1]))) else None


def _promise_of_torch(optimizer: Any, group: Mapping[str, Any], fan_out: int, fan_in: int) -> Promise | None:
    if type(optimizer).__name__ != "Muon" or group.get("ns_coefficients") != TORCH_MUON or group.get("ns_steps") != 5:
        return None
    rule = group.get("adjust_lr_fn", "absent")
    if rule in (None, "original"):
        return math.sqrt(max(1.0, fan_out / fan_in)), TORCH_MUON_BAND
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(fan_out, fan_in)), TORCH_MUON_BAND
    return None


def _described(optimizer: Any) -> list[Mapping[str, Any]]:
    """The lines an optimizer describes itself with; none unless there is one for each of its parameters."""
    describe = getattr(optimizer, "describe", None)
    if not callable(describe):
        return []
    try:
        lines = list(describe())
    except Exception as error:
        log.warning("internist: %s does not describe itself: %s", type(optimizer).__name__, error)
        return []
    size = sum(len(group["params"]) for group in parameter_groups(optimizer))
    return lines if len(lines) == size and all(isinstance(line, Mapping) for line in lines) else []


def _initial_rms(outline: Outline) -> dict[int, float]:
    """RMS of the entries of every parameter as it is now, by the tensor's id, where it is finite: one pass over the
    weights, and one wait for each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for p in outline.parameters:
        if not p.unsupported and not p.excluded and p.shard is None:
            by_device.setdefault(p.tensor.device, []).append(p.tensor)
    found: dict[int, float] = {}
    for tensors in by_device.values():
        squares = mean_squares([tensor.detach() for tensor in tensors]).tolist()
        found.update((id(t), math.sqrt(s)) for t, s in zip(tensors, squares, strict=True) if math.isfinite(s))
    return found


def _number(value: object) -> float | None:
    """A finite number of a group, also where it is a tensor; None otherwise."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: object) -> str:
    """A word of the table, short and printable."""
    text = "" if value is None else str(value)
    return "".join(sign if sign.isprintable() else " " for sign in text[:MAX_NAME_LENGTH])
