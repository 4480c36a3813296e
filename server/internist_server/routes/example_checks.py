"""Runs that are held to others, as examples: the scaling check of a family, and the check against a reference run."""

from typing import Final

from internist.schema.check import Check, Deviation
from internist.schema.reference import Curve, Trajectory
from internist.schema.scaling import (
    Cause,
    Diagnosis,
    Excluded,
    Exponent,
    FamilyMember,
    Scaling,
    ScalingFamily,
    ScalingReport,
)
from internist_server.routes.example_run import ATTEMPT, RUN, SENTENCE

_MEMBERS = tuple(
    FamilyMember(f"{RUN[:-2]}{width:02x}", f"mlp-{width}", width, 2, 0, "adamw") for width in (64, 128, 256)
)
_TOO_FAST: Final = (
    "hidden matrices: +0.98 ± 0.03 in width under AdamW: the hidden learning rate is not divided by the width ratio"
)
_SCALING = Scaling(
    families=(
        ScalingFamily(
            "3c1f5a0b9d27", "gpt-small · adamw", "gpt-small", _MEMBERS, (64, 128, 256), (2,), True, "",
            "/api/v1/scaling?family=3c1f5a0b9d27",
        ),
    ),
    excluded=(Excluded(RUN, "lr-sweep-3", "its width cannot be read: it has no residual blocks and no embedding"),),
    family="3c1f5a0b9d27",
    report=ScalingReport(
        family=_MEMBERS,
        excluded=(),
        exponents=(
            Exponent(
                metric="update.own_mean", role="hidden", axis="width", window="early", exponent=0.98,
                standard_error=0.012, low95=0.95, high95=1.01, low90=0.955, high90=1.005, expected=0.0, verdict="FAIL",
                reason="0.98 over what is expected", curvature=None, curvature_warning=False, sizes=(64, 128, 256),
                values=(0.011, 0.0219, 0.0428), members=("mlp-64", "mlp-128", "mlp-256"), judged=True,
            ),
        ),
        diagnoses=(
            Diagnosis(
                1, "width", _TOO_FAST,
                (
                    Cause(
                        "hidden_rate_unscaled", "the hidden learning rate is not divided by the width ratio",
                        "learning rate of the hidden group", "0.003 at every width",
                    ),
                ),
                1.0, ("hidden matrices: update.own_mean",),
            ),
        ),
        verdict="FAIL",
        summary=_TOO_FAST,
    ),
)  # fmt: skip
TRAJECTORY = Trajectory(
    1, RUN, "proxy", 64, 2, 16.0, "mup", 400,
    (Curve("activation.rms", "mlp.fc1", 0.25, (0, 4), (-0.2, -0.1), (0.0, 0.1), (0.2, 0.3)),),
)  # fmt: skip
ANSWERS: Final[dict[str, object]] = {
    "Scaling": _SCALING,
    "Check": Check(
        RUN,
        ATTEMPT,
        "proxy",
        "violated",
        SENTENCE,
        64,
        412,
        (
            Deviation(
                "attention",
                "critical",
                "reference",
                7,
                "attention.max_abs_logit",
                "blocks.2.attn",
                0,
                "blocks.2",
                1,
                None,
                9.1,
                0.4,
                3.6,
                "blocks.2.attn [0]: attention.max_abs_logit is 7.9x the reference run's",
                "QK-norm",
            ),
        ),
    ),
    "Trajectory": TRAJECTORY,
}
"""By the name of the answer."""
