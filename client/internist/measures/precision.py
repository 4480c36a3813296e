"""The precision that measures compute in, whatever autocast the training code around them has asked for.

Only `torch.set_float32_matmul_precision` reaches in: a run that allows TF32 or bfloat16 products gets them here too,
at a relative error of about 1e-3. The exact spectral norm is then computed in float64 and is spared.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Autocast off on the device of x: hooks run inside a forward, where it would turn our products to bfloat16."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()
