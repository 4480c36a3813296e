"""What an optimizer promises of its updates: how large each is, by the rule and the coefficient set of its group."""

from typing import Any

import torch
from torch import Tensor

from internist.optim.coefficients import longest, norm_band
from internist.optim.constraints import spectral_radius
from internist.optim.matrices import matrix_views
from internist.optim.scaling import scale


def update_promise(parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """The spectral norm of a parameter's update over the learning rate: a scale, and the band it is to be taken times.

    Args:
        parameter: a matrix parameter of the group; of any shape, also a DTensor.
        group: a checked one whose algorithm is not "adamw".

    Returns:
        `update_scale` and `update_band` [lowest, highest], JSON-able. Under Muon++'s policy `decay` the band has room
        for what it takes off the complement (the triangle inequality). Empty where nothing is promised: for a
        parameter of several matrices, whose whole has another norm; a scale that changes as the run goes on; NorMuon;
        Muon++ with a policy that changes the length of steps, or adaptive.
    """
    whole = torch.empty(parameter.shape, device="meta")
    views = matrix_views(whole, whole, group)
    if len(views) != 1 or views[0].shape[0] != 1:
        return {}
    fan_out, fan_in = views[0].shape[1:]
    image = norm_band(group["coefficients"], group["steps"], side=min(fan_out, fan_in))
    if "policy" not in group:
        if group["scale"] == "dynamic" or group.get("normuon") is not None:
            return {}
        return {"update_scale": scale(group["scale"], fan_out, fan_in), "update_band": [image.low, image.high]}
    if group["policy"] not in ("decay", "none") or group["adaptive"]:
        return {}
    decayed = group["decay"] if group["policy"] == "decay" else 0.0
    low = image.low / longest(group["coefficients"], group["steps"], torch.bfloat16)
    return {
        "update_scale": spectral_radius((fan_out, fan_in)),
        "update_band": [max(0.0, low - decayed), 1.0 + decayed],
    }
