"""What a check trains on where it is given nothing: a few tokens, or a few Gaussian vectors, and the loss that fits."""

from typing import Any

import torch
from torch import Tensor, nn

from internist.model.roles import is_linear

SEQUENCES, LENGTH = 2, 8
"""Of tokens: few, since exponents are those of one example, blurred by a batch of more tokens than the width."""
VECTORS = 16
REPEATS = 0.75
"""Share of tokens that follow from the one before: what there is to learn."""


def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs and targets for a model, on its device, from torch's random state.

    Models whose first layer is an embedding get sequences of tokens of a random chain, and the next token as target;
    models whose first layer is linear get Gaussian vectors, and as targets a smooth random function of them.

    Raises:
        ValueError: the first layer with parameters is neither; give `batch`.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Embedding) or is_linear(m)), None)
    device = next(model.parameters()).device
    if isinstance(first, nn.Embedding):
        tokens = _chain(first.num_embeddings)
        return tokens[:, :-1].to(device), tokens[:, 1:].to(device)
    if isinstance(first, nn.Linear):
        inputs = torch.randn(VECTORS, first.in_features)
        with torch.no_grad():
            outputs = model(inputs.to(device, first.weight.dtype))
        if isinstance(outputs, Tensor) and outputs.dim() == 2:
            mixing = torch.randn(first.in_features, outputs.shape[-1]) * first.in_features**-0.5
            targets = torch.sin(2 * inputs @ mixing)
            return inputs.to(device, first.weight.dtype), targets.to(device, outputs.dtype)
    what = "no embedding or linear layer" if first is None else f"a {type(first).__name__} first"
    raise ValueError(
        f"batch: cannot make one for a {type(model).__name__} ({what}, and one tensor in and out wanted): give "
        "batch=, a function of the model that returns its inputs and targets"
    )


def loss(output: Any, targets: Tensor) -> Tensor:
    """Cross entropy for whole-numbered targets, mean squared error for others; of `output.logits` where it has that.

    Raises:
        ValueError: the output is no tensor; give `loss`.
    """
    output = getattr(output, "logits", output)
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"loss: cannot be made from a {type(output).__name__}: give loss=, a function of (output, targets)"
        )
    if targets.is_floating_point():
        return nn.functional.mse_loss(output, targets)
    return nn.functional.cross_entropy(output.flatten(0, -2).float(), targets.flatten())


def _chain(size: int) -> Tensor:
    """(sequences, length + 1) tokens, each of which mostly is the last one's successor in a random order."""
    successor = torch.randperm(size)
    tokens = torch.randint(size, (SEQUENCES, LENGTH + 1))
    follows = torch.rand(SEQUENCES, LENGTH + 1) < REPEATS
    for place in range(1, LENGTH + 1):
        tokens[:, place] = torch.where(follows[:, place], successor[tokens[:, place - 1]], tokens[:, place])
    return tokens
