"""The captures of one outline: made together, reset together, and made anew when the model has changed."""

from internist.model.outline import Outline
from internist.observe.attention import AttentionCapture
from internist.observe.branch_products import BranchProducts
from internist.observe.coverage import Ledger
from internist.observe.faults import Faults
from internist.observe.modules import ActivationCapture
from internist.observe.optimizers import OptimizerCapture
from internist.observe.parameters import ParameterCapture
from internist.observe.probe import ProbeReplay, replay_obstacle
from internist.observe.reduction import Reduction
from internist.observe.replicas import Replicas
from internist.observe.sampling import MATRIX_ROTATION, Due, Sampling
from internist.observe.speaker import Speaker
from internist.observe.taps import Gate
from internist.record.series_book import SeriesBook


class Captures:
    """Everything that measures one outline."""

    def __init__(
        self,
        outline: Outline,
        gate: Gate,
        *,
        book: SeriesBook,
        faults: Faults,
        sampling: Sampling,
        speaker: Speaker,
        reduction: Reduction | None = None,
    ) -> None:
        self.activations = ActivationCapture(
            outline, gate, book=book, faults=faults, sampling=sampling, world_size=speaker.world_size
        )
        self.attention = AttentionCapture(gate, book=book, faults=faults, sampling=sampling)
        self.parameters = ParameterCapture(
            outline,
            self.activations,
            gate.work,
            book=book,
            faults=faults,
            sampling=sampling,
            speaker=speaker,
            reduction=reduction,
        )
        self.optimizers = OptimizerCapture(
            outline, book=book, faults=faults, sampling=sampling, reports_routing=speaker.reports_replicated
        )
        self.branches = BranchProducts(outline, self.attention.known, book=book, sampling=sampling, speaker=speaker)
        self.replicas = Replicas(book=book, sampling=sampling, speaker=speaker)
        self.probe = ProbeReplay(outline, gate, self.activations, book=book, sampling=sampling)
        self.probe.unsupported = replay_obstacle(outline.root) if sampling.replay else "watch(replay=False)"
        if speaker.stage and not self.probe.unsupported:
            self.probe.unsupported = "it is a later stage of a pipeline: what enters it has changed too"

    def reset(self) -> None:
        """Forget the step's measurements."""
        self.activations.reset()
        self.attention.reset()
        self.parameters.reset()
        self.probe.reset()

    def remove(self) -> None:
        """Take everything away that was put anywhere."""
        self.attention.remove()
        self.activations.remove()
        self.parameters.remove()

    def forget(self) -> None:
        """Keep nothing of the model's size any more."""
        self.activations.forget()
        self.parameters.forget()

    def tell(self, ledger: Ledger, due: Due) -> None:
        """Tell which subjects the step that is over has measured."""
        ledger.note("activation", self.activations.measured_now, turns=due.turns)
        ledger.note("update.own", self.parameters.moved_now, turns=self.parameters.turns * due.turns)
        ledger.note("gradient", self.parameters.with_gradient_now)
        ledger.note("update", self.parameters.updated_now, turns=self.parameters.turns * due.turns)
        if due.heavy:
            ledger.note("attention", self.attention.measured_now)
            ledger.note("router", self.activations.routers.measured_now)
            ledger.note("update.feature", self.probe.measured_now, turns=self.probe.turns)
        if due.matrices is not None:
            ledger.note("spectrum", self.parameters.spectra.measured_now, turns=MATRIX_ROTATION)
