"""What is known in every round of the model as a whole, and of the monitor itself: loss, gradient norm before and
after clipping, coverage, cadence."""

from collections.abc import Callable, Iterable

from torch import Tensor

from internist.observe.clipping import ClippingCapture
from internist.observe.loss import LossPickup, number_if_near
from internist.observe.sampling import Sampling
from internist.observe.speaker import Speaker
from internist.record.recorder import Recorder
from internist.schema.wire import Facts, Series

NORM = "gradient.norm_before_clip"
CLIPPED = "gradient.norm_after_clip"


class ModelValues:
    """Picks up a round's loss and gradient norm, and records them with what the monitor says of itself.

    Args:
        recorder: takes the values.
        sampling: what is measured.
        speaker: who this rank is: what is the same on all ranks only one of them reports.
        is_watched: whether a tensor is a parameter of the model.
    """

    def __init__(
        self, recorder: Recorder, sampling: Sampling, speaker: Speaker, *, is_watched: Callable[[Tensor], bool]
    ) -> None:
        self._recorder, self._sampling, self._speaker = recorder, sampling, speaker
        self._clipping = ClippingCapture(is_watched)
        self._loss = LossPickup()
        self._lacks_loss = False

    @property
    def has_loss(self) -> bool:
        """Whether one of the last rounds had a loss, picked up or logged."""
        return self._loss.found or "loss" in self._recorder.logged

    def arm(self, *, is_sampled: bool) -> None:
        """Prepare for a round."""
        self._loss.is_sampled = is_sampled and self._sampling.wants("loss")

    def take(self, output: object) -> None:
        """Look for a loss in what the root returned from a training forward."""
        self._loss.take(output)

    def round_ended(self, step: int, *, is_sampled: bool) -> bool:
        """Record the round's loss and its gradient norm, as far as they are read in it; whether something waits now
        that did not before."""
        norm, loss = self._clipping.take(measured=is_sampled), self._loss.mean()
        waited = self._recorder.busy
        if norm is not None and self._speaker.reports_replicated:
            self._record_norm(step, norm, is_sampled=is_sampled)
            self._record_clipped(step, is_sampled=is_sampled)
        is_asked = self._sampling.wants("loss") and not self._recorder.is_logged(step, "loss")
        self._lacks_loss = loss is None and is_asked
        if loss is not None and is_asked:
            self._recorder.log(step, "loss", number_if_near(loss))
        return self._recorder.busy and not waited

    def leave_trail(self, step: int, rates: Iterable[tuple[Series, float]]) -> None:
        """Note what the host knows anyway of a round that was not sampled."""
        scalars: list[tuple[Series, float | Tensor]] = [*rates]
        norm = self._clipping.unread if self._speaker.reports_replicated else None
        for series, value in (
            (None if norm is None else self._series(NORM), norm),
            (self._recorder.book.logged("loss") if self._lacks_loss else None, self._loss.unread),
        ):
            if series is not None and value is not None:
                scalars.append((series, value))
        self._recorder.trail.note(step, scalars)

    def record(self, of_monitor: Iterable[tuple[str, float]], *, coverage: float | None) -> None:
        """Record what the monitor says of itself in a sampled round, and which share of the model it has measured."""
        if self._speaker.reports_replicated and coverage is not None:
            self._add("monitor.coverage", coverage)
        self._add("monitor.dropped", float(self._recorder.dropped))
        for metric, value in of_monitor:
            self._add(metric, value)

    def remove(self) -> None:
        """Listen to torch no longer, and keep nothing of the user's."""
        self._clipping.remove()
        self._loss.remove()
        self._clipping.take()
        self._loss.mean()

    def _record_norm(self, step: int, norm: Tensor, *, is_sampled: bool) -> None:
        """One that lies on the host comes at every step."""
        is_near = norm.device.type == "cpu"
        series = self._series(NORM, at_every_step=is_near)
        if is_sampled:
            self._recorder.add([series], norm)
        elif is_near:
            self._recorder.log_measured(step, series, float(norm))

    def _record_clipped(self, step: int, *, is_sampled: bool) -> None:
        """What clipping has left. On an accelerator `gradient.global_norm` tells it at sampled steps."""
        after = self._clipping.after
        series = self._series(CLIPPED, at_every_step=True) if after is not None else None
        if series is None or after is None:
            return
        if is_sampled:
            self._recorder.add_host(series, after)
        else:
            self._recorder.log_measured(step, series, after)

    def _add(self, metric: str, value: float) -> None:
        self._recorder.add_host(self._series(metric), value)

    def _series(self, metric: str, *, at_every_step: bool = False) -> Series | None:
        facts = Facts(method="as given", cadence=1 if at_every_step else self._sampling.cadence(metric))
        return self._recorder.book.series(metric, "model", "model", lambda: facts)
