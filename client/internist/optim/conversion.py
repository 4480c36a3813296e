"""State of other Muons turned into ours and back: torch.optim.Muon's, Keller Jordan's and dion's.

All keep one momentum per matrix. Ours and torch's is a moving average, M <- μ M + (1 − μ) G; Keller Jordan's since
2024-11 (and modded-nanogpt's) is the same, dion's is a sum, M <- μ M + G, which is 1 / (1 − μ) times as long, and is
rescaled: directions do not depend on a momentum's length, but on how it compares with the next gradient.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Kind = Literal["torch", "keller_jordan", "dion"]

OURS = "momentum_buffer"
NAMES: dict[Kind, str] = {"torch": "momentum_buffer", "keller_jordan": "momentum_buffer", "dion": "momentum"}
SUMS: tuple[Kind, ...] = ("dion",)


def convert_state(
    state_dict: Mapping[str, Any], like: Mapping[str, Any], *, source: Kind | None = None, target: Kind | None = None
) -> dict[str, Any]:
    """A state that an optimizer of one kind gave, as one of another kind takes it.

    Args:
        state_dict: what `state_dict()` of the source gave. Not changed; tensors are shared unless rescaled.
        like: what `state_dict()` of the new optimizer gives, over the same parameters in the same order, in groups cut
            as it likes: its groups, with the source's learning rates, momenta and decays where they are named alike.
        source: whose state it is; None is ours (`Muon`, `MuonPlusPlus`).
        target: whose it is to be; None is ours.

    Returns:
        What the new optimizer's `load_state_dict` takes. AdamW's state of other parameters goes along as it is.

    Raises:
        ValueError: no such kind, neither or both are ours, or the numbers of parameters differ.
    """
    for kind in (source, target):
        if kind is not None and kind not in get_args(Kind):
            raise ValueError(f"expected a kind of {get_args(Kind)} or None, got {kind!r}")
    if (source is None) == (target is None):
        raise ValueError(f"expected either source or target, and the other to be ours, got {source!r} and {target!r}")
    old, new = _order(state_dict), _order(like)
    if len(old) != len(new):
        raise ValueError(f"expected as many parameters, got {len(old)} in the state and {len(new)} in the optimizer")
    groups = [dict(group) for group in like["param_groups"]]
    of_old = {index: group for group in state_dict["param_groups"] for index in group["params"]}
    state: dict[int, dict[str, Any]] = {}
    at = 0
    for group in groups:
        given = of_old[old[at]] if group["params"] else {}
        group.update({key: given[key] for key in ("lr", "momentum", "weight_decay", "nesterov") if key in given})
        for index in group["params"]:
            entries = state_dict["state"].get(old[at])
            if entries:
                mu = float(of_old[old[at]].get("momentum", of_old[old[at]].get("mu", 0.95)))
                state[index] = _converted(entries, source, target, mu)
            at += 1
    return {"state": state, "param_groups": groups}


def _order(state_dict: Mapping[str, Any]) -> list[int]:
    return [index for group in state_dict["param_groups"] for index in group["params"]]


def _converted(entries: Mapping[str, Any], source: Kind | None, target: Kind | None, mu: float) -> dict[str, Any]:
    was, is_now = (OURS if kind is None else NAMES[kind] for kind in (source, target))
    if was not in entries or "exp_avg" in entries:  # a parameter that AdamW steps
        return dict(entries)
    momentum: Tensor = entries[was]
    if source in SUMS:
        momentum = momentum * (1.0 - mu)
    if target in SUMS:
        momentum = momentum / (1.0 - mu)
    kept = {} if target is not None else {"step": _steps(entries)}
    return kept | {is_now: momentum}


def _steps(entries: Mapping[str, Any]) -> Tensor:
    return torch.as_tensor(float(entries.get("step", 0.0)), dtype=torch.float32)
