"""How a parameter is a matrix: its orientation, its parts, its fans."""

from typing import Any

import torch
from torch import Tensor, nn

from internist.model.outline import WatchedParameter
from internist.model.roles import DOWN_WORDS, UP_WORDS
from internist.schema.wire import Facts

UNORIENTED = "unoriented"
"""View of a matrix that fits its module in neither or in both orientations: its spectral norm is known, and no norm
that depends on what is fan-in and what fan-out."""


def matrix_view(parameter: WatchedParameter, tensor: Tensor) -> Tensor:
    """The parameter (or its update) as one matrix, (fan_out, fan_in), or as several, (parts, fan_out, fan_in): one per
    group of a convolution, one per expert of a stack."""
    if "transposed" in parameter.view:
        return tensor.transpose(-1, -2)
    if parameter.view.startswith("convolution"):
        module = parameter.owner.module
        groups = int(getattr(module, "groups", 1))
        if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            tensor = tensor.transpose(0, 1) if groups == 1 else tensor
        return tensor.reshape(groups, tensor.shape[0] // groups, -1) if groups > 1 else tensor.flatten(1)
    return tensor


def resolve_view(parameter: WatchedParameter, input_width: int | None, output_width: int | None) -> None:
    """Settle the orientation of a parameter of an unknown module from the widths its module was seen with.

    Of a stack of matrices (experts) the last two dimensions count. The hidden width of experts is neither the module's
    input nor its output: one side that fits is enough. Where input and output are equally wide, either way round fits,
    and the parameter's name says whether it leads from them or back to them.
    """
    if parameter.view != "unknown":
        return
    shape = parameter.tensor.shape
    rows, columns = shape[-2:]
    stack = "experts, " if len(shape) == 3 else ""
    straight = _fits(columns, rows, input_width, output_width)
    turned = _fits(rows, columns, input_width, output_width)
    if straight and turned and (leads := _leads(parameter.attribute)):
        straight = (columns == input_width) if leads == "up" else (rows == output_width)
        turned = not straight
    if rows == columns:  # its norms are the same either way round
        parameter.roles, parameter.view = {"matrix"}, stack + "square"
        return
    if straight != turned:
        parameter.roles = {"matrix"}
        parameter.view = stack + ("transposed" if turned else "(fan_out, fan_in)")
        return
    parameter.roles, parameter.view = {"matrix"}, stack + UNORIENTED


def _leads(attribute: str) -> str:
    """Whether a parameter of this name leads `up` from the stream or `down` to it; empty where it does not say."""
    if UP_WORDS.search(attribute):
        return "up"
    return "down" if DOWN_WORDS.search(attribute) else ""


def _fits(fan_in: int, fan_out: int, input_width: int | None, output_width: int | None) -> bool:
    """Whether a matrix that takes `fan_in` and gives `fan_out` features fits a module of these widths, with one side at
    least."""
    return fan_in == input_width or fan_out == output_width


def fans(parameter: WatchedParameter) -> tuple[int, int]:
    """(fan_out, fan_in) of the parameter's matrix view; of a vector, its length twice."""
    shape: torch.Size = parameter.tensor.shape
    if len(shape) == 0:
        return 1, 1
    if "embedding" in parameter.roles and "head" not in parameter.roles:
        return int(shape[1]), int(shape[0])
    if "experts" in parameter.view:
        shape = shape[1:]
    if "transposed" in parameter.view:
        return int(shape[1]), int(shape[0])
    if parameter.view.startswith("convolution"):
        module = parameter.owner.module
        groups = int(getattr(module, "groups", 1))
        if getattr(module, "transposed", False):
            return int(shape[1]), int(shape[0]) * int(shape[2:].numel())
        return int(shape[0]) // groups, int(shape[1:].numel())
    return int(shape[0]), int(shape[1:].numel()) if len(shape) > 1 else int(shape[0])


def facts_of(parameter: WatchedParameter, **more: Any) -> Facts:
    """What is known of every series of a parameter, and what a metric adds."""
    fan_out, fan_in = (None, None) if UNORIENTED in parameter.view else fans(parameter)
    return Facts(
        role=parameter.owner.role,
        block=parameter.owner.block,
        module=parameter.owner.name,
        order=parameter.owner.place,
        fan_in=fan_in,
        fan_out=fan_out,
        dtype=str(parameter.tensor.dtype).removeprefix("torch."),
        parameters=parameter.tensor.numel(),
        view=parameter.view or None,
        aliases=tuple(parameter.aliases),
        **more,
    )
