"""Products of operator norms along a residual branch: what the spectral conditions under width and depth ask for.

A model of depth L adds branches h <- h + alpha W_k ... W_1 h to its stream. For k >= 2 the conditions are that
alpha ||W_k|| ... ||W_1||, and the same product with any one norm or any two replaced by those of the updates, are of
order 1 / L; for k = 1 that alpha ||W|| is of order 1 / sqrt(L) (random branches add in quadrature) and alpha ||dW|| of
order 1 / L (updates add coherently). Here each is multiplied by what it is held against, so that all are of order one
at every depth. ||A|| is the RMS-to-RMS operator norm.

Source: arXiv:2603.00541, conditions 3.1, B.1 and B.2, as reported in notes on it; the update of k = 1 is derived.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations


def largest(norms: Iterable[float]) -> float:
    """The norm of a stage whose matrices lie side by side: the largest of theirs. NaN in, NaN out."""
    listed = list(norms)
    return math.nan if any(map(math.isnan, listed)) else max(listed)


def branch_product(weights: Sequence[float], *, alpha: float, depth: int) -> float:
    """L alpha ||W_k|| ... ||W_1||; of one stage sqrt(L) alpha ||W||. Of order one at every width and depth.

    Args:
        weights: R(W) of each stage.
        alpha: what the branch is multiplied by before it is added.
        depth: residual blocks of the model, L.
    """
    return alpha * (math.sqrt(depth) if len(weights) == 1 else depth) * math.prod(weights)


def first_order(weights: Sequence[float], stage: int, update: float, *, alpha: float, depth: int) -> float:
    """L alpha ||dW_i|| and the norms of all other stages: how far one matrix's update moves the branch.

    Args:
        weights: R(W) of each stage.
        stage: where the matrix is.
        update: R(dW) of the matrix.
        alpha: what the branch is multiplied by before it is added.
        depth: residual blocks of the model, L.
    """
    return alpha * depth * update * math.prod(norm for i, norm in enumerate(weights) if i != stage)


def second_order(weights: Sequence[float], updates: Sequence[float], *, alpha: float, depth: int) -> float | None:
    """L alpha ||dW_j|| ||dW_i|| and the norms of all other stages, of the two stages for which it is largest.

    Args:
        weights: R(W) of each stage.
        updates: R(dW) of each stage.
        alpha: what the branch is multiplied by before it is added.
        depth: residual blocks of the model, L.

    Returns:
        None for one stage, which has no second order.
    """
    pairs = list(combinations(range(len(weights)), 2))
    if not pairs:
        return None
    return largest(
        alpha * depth * math.prod(updates[i] if i in pair else norm for i, norm in enumerate(weights)) for pair in pairs
    )
