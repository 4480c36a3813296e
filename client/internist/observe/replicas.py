"""Replicas: whether the weights that every rank has alike are alike. Where they are not, a rank has gone its own way:
memory or a link that corrupts silently, a step that some ranks skipped."""

from collections.abc import Callable, Sequence

from internist.measures.weights import bit_sum
from internist.model.outline import WatchedParameter
from internist.observe.sampling import Sampling
from internist.observe.speaker import Speaker
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import Facts

METRIC = "weight.replicas_differ"


class Replicas:
    """Tells a checksum of the bits of a rank's weights, which the server holds against those of others."""

    def __init__(self, *, book: SeriesBook, sampling: Sampling, speaker: Speaker) -> None:
        self._book, self._sampling, self._speaker = book, sampling, speaker

    def record(self, parameters: Callable[[], Sequence[WatchedParameter]], recorder: Recorder) -> None:
        """Record the checksum of what the ranks have alike, where a wrapper keeps them so."""
        if not self._speaker.are_replicas or not self._sampling.wants(METRIC):
            return
        tensors = [p.tensor.detach() for p in parameters() if p.shard is None and p.tensor.numel()]
        if not tensors:
            return
        facts = Facts(method="bit-sum", cadence=self._sampling.cadence(METRIC))
        recorder.add([self._book.series(METRIC, "model", "model", lambda: facts)], bit_sum(tensors))
