"""Who a rank is, as far as what it reports goes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who a rank is, as far as what it reports goes."""

    rank: int = 0
    world_size: int = 1
    reports_replicated: bool = True
    """Whether it reports what every rank has alike: weights, gradients, updates."""
    apart: frozenset[str] = frozenset()
    """Modules whose parameters are this rank's alone: it reports them whatever the others do."""
    are_replicas: bool = False
    """Whether a wrapper keeps the weights of all ranks alike (DistributedDataParallel)."""
    stage: int = 0
    """Of a pipeline: which stage it trains."""
