"""Which forwards are training: the model's mode says it, unless the run trains in evaluation mode."""

from typing import Literal

Answer = Literal["yes", "no", "perhaps"]


class TrainingMode:
    """Learns from the rounds whether the run trains with its root in evaluation mode.

    A forward with gradients on is training where the root is in training mode. In evaluation mode it is training where
    the last round had no other forward; before a round has ended it may be, until one in training mode comes.
    """

    def __init__(self) -> None:
        self._trains_in_eval: bool | None = None
        self._forwards = {True: 0, False: 0}
        """Of this round, with gradients on, by the root's mode."""

    def begins(self, *, in_training_mode: bool, gradients: bool) -> Answer:
        """Whether the forward that begins is training."""
        if not gradients:
            return "no"
        self._forwards[in_training_mode] += 1
        if in_training_mode:
            return "yes"
        if self._trains_in_eval is None and self._forwards[True] == 0:
            return "perhaps"
        return "yes" if self._trains_in_eval else "no"

    @property
    def mistaken(self) -> bool:
        """Whether a forward that was `perhaps` training turns out to have been none: one in training mode has come."""
        return self._trains_in_eval is None and self._forwards == {True: 1, False: self._forwards[False]} != {
            True: 1,
            False: 0,
        }

    def round_ended(self) -> None:
        """An optimizer round is over."""
        if self._forwards[True]:
            self._trains_in_eval = False
        elif self._forwards[False]:
            self._trains_in_eval = True
        self._forwards = {True: 0, False: 0}
