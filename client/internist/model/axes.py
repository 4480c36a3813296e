"""Where the features of an activation lie: the dimension that a token's numbers run along, as its module says."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from internist.model.roles import is_linear, is_norm, stored_weight


def told_axis(module: nn.Module, tensor: Tensor) -> int | None:
    """The feature dimension of a module's input or output, as its class and attributes tell; None where they do not.

    Args:
        module: that takes or gives the tensor.
        tensor: with a batch dimension, or without one where the module allows that.

    Returns:
        A dimension counted from the end, so that it holds with and without a batch.
    """
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)
    if isinstance(module, _NormBase):  # batch and instance norm: channels come behind the batch
        return 1 - tensor.dim() if tensor.dim() > 1 else -1
    if isinstance(module, nn.GroupNorm | nn.LocalResponseNorm):
        return 1 - tensor.dim() if tensor.dim() > 1 else -1
    if is_linear(module) or isinstance(module, nn.Embedding | nn.EmbeddingBag | nn.MultiheadAttention | nn.RNNBase):
        return -1
    if hasattr(module, "normalized_shape") or is_norm(module):
        return _by_width(module, tensor)
    return None


def _by_width(module: nn.Module, tensor: Tensor) -> int:
    """Of a normalisation layer: the last dimension, unless only the one behind the batch is as wide as its gain."""
    weight = stored_weight(module)
    width = weight.numel() if weight is not None and weight.dim() == 1 else None
    shape = tensor.shape
    if width is not None and tensor.dim() > 2 and shape[-1] != width and shape[1] == width:
        return 1 - tensor.dim()
    return -1


class Axes:
    """Feature dimensions of the tensors of one model: told by modules, and remembered by shape for containers, whose
    outputs have the shape of what is inside them."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[int, ...], int] = {}

    def of(self, module: nn.Module, tensor: Tensor) -> int:
        """The feature dimension of a module's input or output, counted from the end."""
        if tensor.dim() == 0:
            return -1
        told = told_axis(module, tensor)
        shape = tuple(tensor.shape[1:])
        if told is None:
            return self._by_shape.get(shape, -1)
        told = told if -told <= tensor.dim() else -1
        self._by_shape[shape] = told
        return told
