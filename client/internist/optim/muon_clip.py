"""MuonClip: Muon and QK-Clip in one optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from internist.optim.groups import split_parameters
from internist.optim.muon import Muon
from internist.optim.projections import Projections
from internist.optim.qk_clip import QKClip


class MuonClip(Muon):
    """Muon whose every step is followed by a QK-Clip of the model's attention.

    The clip is at `clip`; a checkpoint holds its counts, `diagnostics` what it did, `remove_clip` leaves Muon.

    Source: Kimi Team 2025, arXiv:2507.20534, section 2.1, algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Any = None,
        lr: float | Tensor = 1e-3,
        *,
        clip_tau: float = 100.0,
        projections: Mapping[str, Projections] | None = None,
        exclude: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Build both.

        Args:
            model: whose attention is clipped, before it is compiled.
            params: as of `Muon`; None is `split_parameters(model)`.
            lr: as of `Muon`.
            clip_tau: `QKClip`'s tau, the largest logit allowed.
            projections: as of `QKClip`.
            exclude: as of `QKClip`.
            options: further arguments of `Muon`; a `process_group` is the clip's too.

        Raises:
            ValueError, TypeError: as `Muon` and `QKClip` do.
        """
        super().__init__(split_parameters(model) if params is None else params, lr, **options)
        self.clip = QKClip(
            model,
            self,
            tau=clip_tau,
            projections=projections,
            exclude=exclude,
            process_group=options.get("process_group"),
        )

    def remove_clip(self) -> None:
        """Take the clip away."""
        self.clip.remove()

    def diagnostics(self) -> dict[Tensor, dict[str, Tensor]]:
        """What the last step and the clip after it noted: parameter -> metric -> 0-d tensor. The clip's are always
        there, the step's if they were asked for."""
        told = {parameter: dict(values) for parameter, values in super().diagnostics().items()}
        for parameter, values in self.clip.diagnostics().items():
            told.setdefault(parameter, {}).update(values)
        return told

    def state_dict(self) -> dict[str, Any]:
        """torch's, and the clip's under `qk_clip`."""
        return {**super().state_dict(), "qk_clip": self.clip.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint; Muon's own, without counts of clips, will do.

        Raises:
            ValueError: as `Muon` and `QKClip` do.
        """
        super().load_state_dict(state_dict)
        if "qk_clip" in state_dict:
            self.clip.load_state_dict(state_dict["qk_clip"])
