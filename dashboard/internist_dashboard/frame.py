"""What all charts of a page share."""

from dataclasses import dataclass

from internist_dashboard.theme import Scheme


@dataclass(frozen=True, slots=True)
class Ticks:
    """Ticks of a step axis that is told in something else."""

    title: str
    at: tuple[float, ...]
    """Steps."""
    text: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """What all charts of a page share: the window of steps, the colour scheme, and whether the screen is narrow."""

    first: int
    last: int
    scheme: Scheme = "light"
    narrow: bool = False
    attempts: tuple[int, ...] = ()
    """First steps of the attempts after the first: where the run was resumed, or went back."""
    ticks: Ticks | None = None
    """None: the axis is told in steps."""

    @property
    def span(self) -> tuple[float, float]:
        """Ends of the step axis, with room for the outermost points."""
        pad = max(0.5, 0.012 * (self.last - self.first))
        return self.first - pad, self.last + pad
