"""What every matrix optimizer asks of a parameter group: clear errors before the first step."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from internist.optim.arrivals import has_numbers
from internist.optim.bucket import Group, learning_rate
from internist.optim.coefficients import coefficients
from internist.optim.constraints import spectral_radius
from internist.optim.matrices import check_matrices
from internist.optim.newton_schulz import GROWTH_BEFORE_RESTART
from internist.optim.scaling import known_scale
from internist.optim.spectral_init import is_zero

ALGORITHMS = ("muon", "adamw")
ADAMW_DEFAULTS = {"betas": (0.9, 0.999), "eps": 1e-8}
OF_EVERY_GROUP = ("params", "param_names", "algorithm", "row_blocks", "layout", "name")


def check_group(group: Group, defaults: Mapping[str, Any]) -> None:
    """Fill in what a group leaves open, and refuse bad values.

    Args:
        group: changed in place.
        defaults: the optimizer's; their keys are known.

    Raises:
        ValueError: a value out of range, a key near a known one, or a parameter that is no matrix in a group whose
            algorithm is not "adamw".
        TypeError: a parameter that is complex or not floating.
    """
    algorithm = group.setdefault("algorithm", "muon")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"expected an algorithm of {ALGORITHMS}, got {algorithm!r}")
    group.setdefault("row_blocks", None)
    group.setdefault("layout", "out_in")
    if algorithm == "adamw":
        _check_adamw(group)
    _check_keys(group, {*defaults, *ADAMW_DEFAULTS, *OF_EVERY_GROUP})
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"expected a learning rate of one element, got shape {tuple(lr.shape)}")
    for key in ("lr", "weight_decay"):
        _check_at_least_zero(group, key)
    names = group.get("param_names") or [None] * len(group["params"])
    for name, parameter in zip(names, group["params"], strict=True):
        what = f"parameter {name!r}" if name else "a parameter"
        if not parameter.is_floating_point():
            shape = tuple(parameter.shape)
            raise TypeError(f"{what} of shape {shape} is {parameter.dtype}, expected a real floating type")
        if algorithm == "muon":
            try:
                check_matrices(parameter, group)
            except ValueError as error:
                raise ValueError(f'{what}: {error}; use a group with algorithm="adamw" for it') from None
    if algorithm == "muon":
        _check_muon(group)


def check_decay(group: Group) -> None:
    """Refuse a weight decay that takes more than all of a weight in a step: it would change every sign.

    Asked before every step, as schedules change rates. One on an accelerator is not read.

    Raises:
        ValueError: lr times weight_decay is above 1, or under Muon++'s `decay`, lr times decay above the radius.
    """
    lr, weight_decay = learning_rate(group), group["weight_decay"]
    if isinstance(lr, Tensor) or isinstance(weight_decay, Tensor):
        return
    if lr * weight_decay > 1.0:
        raise ValueError(f"expected lr * weight_decay of at most 1, got {lr} * {weight_decay} = {lr * weight_decay:g}")
    if group.get("policy") == "decay" and lr * group["decay"] > group["radius"]:
        decay, c = group["decay"], group["radius"]
        raise ValueError(f"expected lr * decay / radius of at most 1, got {lr} * {decay} / {c} = {lr * decay / c:g}")


def check_pair_keeping(group: Group, policies: tuple[str, ...]) -> None:
    """Refuse what Muon++ cannot keep a weight's top pair with.

    Args:
        group: of matrices, with every key.
        policies: what may be done about a gap.

    Raises:
        ValueError: a value out of range, or a matrix of zeros.
    """
    policy, decay, share = group["policy"], group["decay"], group["open_gap"]
    if policy not in policies:
        raise ValueError(f"expected a policy of {policies}, got {policy!r}")
    if float(group["weight_decay"]) != 0.0:
        raise ValueError(
            f"weight decay shrinks the radius S and breaks ‖W‖₂ = S, got {group['weight_decay']}; "
            'policy="decay" decays the complement, by `decay`'
        )
    if group["scale"] != "spectral_mup":
        raise ValueError(f"the update is lr times the radius, expected scale 'spectral_mup', got {group['scale']!r}")
    spectral_radius((1, 1), group["radius"])
    if policy == "decay" and not decay >= 1.0:
        raise ValueError(f"expected a decay of at least 1, got {decay}")
    check_decay(group)
    if not 0.0 <= group["drive"] < 1.0 or (group["drive"] and policy != "retract"):
        raise ValueError(f"expected a drive in [0, 1), and 0 but under policy 'retract', got {group['drive']}")
    if share is not None and not (group["initialize"] and 0.0 < share < 1.0):
        raise ValueError(f"expected an open_gap in (0, 1) together with initialize=True, got {share}")
    if not isinstance(group["audit_every"], int) or group["audit_every"] < 1:
        raise ValueError(f"expected a positive number of steps between audits, got {group['audit_every']!r}")
    if not group["adaptive_cap"] >= 1.0:
        raise ValueError(f"expected an adaptive_cap of at least 1, got {group['adaptive_cap']}")
    names = group.get("param_names") or [None] * len(group["params"])
    for name, parameter in zip(names, group["params"], strict=True):
        if policy != "retract" and has_numbers(parameter) and is_zero(parameter):
            what = f"parameter {name!r}" if name else f"a parameter of shape {tuple(parameter.shape)}"
            raise ValueError(
                f"{what} is all zeros and has no top singular pair to keep; initialise it, or use policy='retract'"
            )


def _check_adamw(group: Group) -> None:
    for key, value in ADAMW_DEFAULTS.items():
        group.setdefault(key, value)
    if not all(0.0 <= beta < 1.0 for beta in group["betas"]):
        raise ValueError(f"expected betas in [0, 1), got {group['betas']}")
    _check_at_least_zero(group, "eps")


def _check_muon(group: Group) -> None:
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"expected a momentum in [0, 1), got {group['momentum']}")
    if group["dtype"] not in (None, *GROWTH_BEFORE_RESTART):
        raise ValueError(f"expected a dtype of {list(GROWTH_BEFORE_RESTART)} or None, got {group['dtype']!r}")
    known_scale(group["scale"])
    coefficients(group["coefficients"]).of_length(group["steps"])


def _check_keys(group: Group, known: set[str]) -> None:
    for key in group:
        near = get_close_matches(key, known, n=1, cutoff=0.8)
        if key not in known and near and near[0] not in ("lr",):
            raise ValueError(f"no group key {key!r}; did you mean {near[0]!r}?")


def _check_at_least_zero(group: Group, key: str) -> None:
    if not float(group[key]) >= 0.0:
        raise ValueError(f"expected {key} of at least 0, got {group[key]}")
