"""AdamW for the groups of a matrix optimizer that are no matrices: torch's own, fused where it can be."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def step_adamw(params: list[Tensor], states: dict[Tensor, Any], group: dict[str, Any]) -> None:
    """One step of torch.optim.AdamW on parameters that have a gradient.

    Args:
        params: of the group.
        states: parameter -> its state, made here when it is first stepped: step, exp_avg, exp_avg_sq.
        group: with lr, betas, eps, weight_decay, maximize.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    if not params:
        return
    meshes = dict.fromkeys(getattr(parameter, "device_mesh", None) for parameter in params)
    if len(meshes) > 1:  # no kernel takes DTensors and plain tensors, or two meshes, at once
        for mesh in meshes:
            step_adamw([p for p in params if getattr(p, "device_mesh", None) == mesh], states, group)
        return
    fused = all(parameter.device.type in FUSED_DEVICES for parameter in params)
    for parameter in params:
        state = states[parameter]
        if "exp_avg" not in state:
            # torch's fused kernels count on the device, the others on the host
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else None)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    adamw(
        params,
        [parameter.grad for parameter in params if parameter.grad is not None],
        [states[parameter]["exp_avg"] for parameter in params],
        [states[parameter]["exp_avg_sq"] for parameter in params],
        [],
        [states[parameter]["step"] for parameter in params],
        fused=fused,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )
