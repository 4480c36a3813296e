"""What users ask for beside Muon's step, each behind a switch of `Muon`: NorMuon's rows, and cautious weight decay."""

import torch
from torch import Tensor, linalg

from internist.optim.bucket import Bucket

EPSILON = 1e-10
"""Added to roots and norms that are divided by, as in NorMuon's own code: a direction of zeros stays one."""


def evened(d: Tensor, squares: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """NorMuon: each row of a direction divided by the root of its running mean of squares, at the direction's length.

        v <- β₂ v + (1 − β₂) mean_j(D_ij²);  D̂ = D / √v by rows;  D̂ ‖D‖_F / ‖D̂‖_F

    The running mean starts from zero and is not corrected for that, which the last factor takes out.

    Args:
        d: (B, fan_out, fan_in) D.
        squares: (B, fan_out) v, float32 or float64.
        beta: β₂.

    Returns:
        (B, fan_out, fan_in) in D's dtype, and the new v. NaN in a matrix makes all of it NaN.

    Source: Li et al. 2025, NorMuon, arXiv:2510.05491; as its authors' public code has it (`normuon_update`), where the
    factor by shape and the learning rate come after. The paper itself was not opened.
    """
    wide = d.to(squares.dtype)
    squares = torch.lerp(squares, wide.square().mean(2), 1.0 - beta)
    even = wide / (squares.sqrt() + EPSILON).unsqueeze(2)
    before, after = (linalg.vector_norm(one, dim=(1, 2), keepdim=True) for one in (wide, even))
    return even.mul_(before / (after + EPSILON)).to(d.dtype), squares


def decay_cautiously(bucket: Bucket, d: Tensor, rate: float | Tensor) -> None:
    """W <- W − rate 1(D ⊙ W ≥ 0) ⊙ W: only entries that the step takes toward zero, or leaves, decay.

    Args:
        bucket: whose weights are decayed, of any shape: entry by entry.
        d: (sum of counts, fan_out, fan_in) D, which is subtracted afterwards.
        rate: learning rate times weight decay, a number or a 0-d tensor.

    Source: Chen et al. 2025, Cautious Weight Decay, arXiv:2510.12402, whose update is x − η (u + λ 1(u ⊙ x ≥ 0) ⊙ x),
    as its abstract and public descriptions have it.
    """
    for weight, part in zip(bucket.weights, bucket.pieces(d), strict=True):
        share = rate.to(weight.device, weight.dtype) if isinstance(rate, Tensor) else rate
        weight.mul_(1.0 - (part * weight >= 0).to(weight.dtype) * share)
