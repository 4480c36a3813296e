"""What older versions of torch have not: tests that need it are skipped there (`make oldest`)."""

import pytest
import torch

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

needs_torchs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has a Muon from 2.9 on")
needs_fsdp_on_a_cpu = pytest.mark.skipif(VERSION < (2, 7), reason="fully_shard trains on a CPU from torch 2.7 on")
needs_the_warning_of_no_parameters = pytest.mark.skipif(
    VERSION < (2, 7), reason="clip_grad_norm_ warns of an empty generator from a later torch on"
)
