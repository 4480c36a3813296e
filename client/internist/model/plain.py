"""Which classes of tensor are memory and nothing else: only their entries are read."""

from torch import Tensor, nn

PLAIN: set[type] = {Tensor, nn.Parameter}
"""Every place that asks does so here: another class (a sharded, traced, quantised tensor) may compute, communicate or
fail when it is read."""
