"""Examples for the API's description, made of the very types they stand for."""

import struct
from dataclasses import replace
from typing import Any, Final

import msgspec

from internist.schema.check import Check, Deviation
from internist.schema.conditions import CONDITIONS, CRITERIA
from internist.schema.metrics import METRICS
from internist.schema.reference import Curve, Trajectory
from internist.schema.rules import RULES
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
from internist.schema.views import (
    Act,
    Alert,
    AlertsPage,
    Attempt,
    Band,
    BlockVerdict,
    Card,
    Change,
    Coverage,
    Delivery,
    Heatmap,
    HeatmapRow,
    Identity,
    NewToken,
    Points,
    PointsPage,
    Ranks,
    RankView,
    Routing,
    Run,
    SeriesPage,
    SeriesView,
    Silence,
    Token,
    Usage,
    Verdict,
    Verdicts,
)
from internist.schema.wire import (
    CoverageEntry,
    Directive,
    Facts,
    Frame,
    FramesReply,
    FramesRequest,
    Heartbeat,
    HeartbeatReply,
    Module,
    Plan,
    Record,
    Refused,
    Route,
    RunStart,
    RunStarted,
    Series,
    Threshold,
)

_NOW: Final = 1_790_000_000_000
_RUN: Final = "5f0c1e9a7b3d4c2f8e6a1b0c9d8e7f60"
_ATTEMPT: Final = "b1946ac92492d2347c6235b4d2611184"
_FACTS = Facts(role="linear", block="blocks.2", module="blocks.2.mlp.up", order=23, fan_in=256, fan_out=1024)
_SERIES = SeriesView(
    17, "update.own", "activation", "module", "blocks.2.mlp.up", None, "exact", _FACTS, last_step=420, last_value=0.31
)
_START = RunStart(
    version=1,
    run=_RUN,
    attempt=_ATTEMPT,
    rank=0,
    world_size=1,
    project="gpt-small",
    name="lr-sweep-3",
    every=10,
    started_at_ms=_NOW,
    config={"lr": 0.0003, "layers": 6},
    optimizers=("AdamW",),
    routing=(Route("blocks.2.mlp.up.weight", "AdamW", "adamw", "0", (1024, 256), "hidden"),),
    modules=(Module("blocks.2.mlp.up", "Linear", "linear", "blocks.2", 262_144),),
)
_REQUEST = FramesRequest(
    version=1,
    attempt=_ATTEMPT,
    rank=0,
    records=(
        Record(0, series=(Series(0, "update.own", "module", "blocks.2.mlp.up", facts=_FACTS),)),
        Record(1, plan=Plan(0, (0,))),
        Record(2, frame=Frame(0, 420, _NOW, struct.pack("<f", 0.31))),
    ),
)
_VERDICT = Verdict(
    condition="update",
    state="violated",
    basis="baseline",
    reason="31x its baseline",
    series=17,
    metric="update.own",
    kind="module",
    subject="blocks.2.mlp.up",
    index=None,
    bound="exact",
    block="blocks.2",
    step=420,
    value=0.31,
    ratio=31.0,
    since_step=310,
)
_CARD = Card(
    name="update",
    title="Update stability",
    summary="One step moves the output by the same amount at every width and depth.",
    state="violated",
    basis="baseline",
    ok=41,
    drifting=0,
    violated=1,
    not_measured=0,
    worst=_VERDICT,
    steps=(400, 410, 420),
    sparkline=(0.2, 4.8, 4.95),
)
_SENTENCE: Final = "update: blocks.2 moved 31x its band since step 310. Try: its learning rate."
_ALERT = Alert(
    id=3,
    run=_RUN,
    run_name="lr-sweep-3",
    project="gpt-small",
    attempt=_ATTEMPT,
    rule="update_out_of_band",
    condition="update",
    severity="critical",
    state="firing",
    series=17,
    metric="update.own",
    subject="blocks.2.mlp.up",
    index=None,
    kind="module",
    module="blocks.2.mlp.up",
    block="blocks.2",
    cause="own",
    value=0.31,
    ratio=31.0,
    worst_ratio=33.5,
    basis="baseline",
    band_low=0.0025,
    band_high=0.04,
    pending_step=310,
    opened_step=330,
    closed_step=None,
    opened_at_ms=_NOW,
    closed_at_ms=None,
    message=_SENTENCE,
    advice="its learning rate",
    acknowledged_by=None,
    acknowledged_at_ms=None,
    notified=True,
)
_SILENCE = Silence(1, {"run": _RUN, "condition": "attention"}, "ada", "clipped on purpose", _NOW, _NOW + 7_200_000)
_RULE: Final = {
    "name": "gradient_large",
    "metric": "gradient.*norm*",
    "above": 5.0,
    "for": 3,
    "severity": "critical",
    "labels": {"team": "pretraining"},
    "annotations": {"advice": "the batches of these steps"},
    "receivers": ["oncall"],
}
_RUN_VIEW = Run(
    id=_RUN,
    project="gpt-small",
    name="lr-sweep-3",
    state="live",
    state_reason="",
    created_at_ms=_NOW,
    last_step=420,
    last_frame_at_ms=_NOW,
    heartbeat_at_ms=_NOW,
    server_time_ms=_NOW,
    steps_per_second=7.1,
    loss=2.41,
    learning_rate=0.0003,
    verdict="violated",
    sentence=_SENTENCE,
    violated=1,
    drifting=0,
    open_alerts=1,
    series=412,
    overhead=0.006,
    coverage=0.98,
    config={"lr": 0.0003, "layers": 6},
    parametrization="standard",
    optimizers=("AdamW",),
    attempts=(Attempt(_ATTEMPT, 1, None, 1, 1, _NOW, 0, 420, None),),
    cursor=57,
)
_MEMBERS = tuple(
    FamilyMember(f"{_RUN[:-2]}{width:02x}", f"mlp-{width}", width, 2, 0, "adamw") for width in (64, 128, 256)
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
    excluded=(Excluded(_RUN, "lr-sweep-3", "its width cannot be read: it has no residual blocks and no embedding"),),
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
_BAND = Band("baseline", (0.01, 0.01), (0.005, 0.005), (0.02, 0.02), (0.0025, 0.0025), (0.04, 0.04))
_TRAJECTORY = Trajectory(
    1, _RUN, "proxy", 64, 2, 16.0, "mup", 400,
    (Curve("activation.rms", "mlp.fc1", 0.25, (0, 4), (-0.2, -0.1), (0.0, 0.1), (0.2, 0.3)),),
)  # fmt: skip
_TOKEN = Token(3, "cluster", ("ingest",), "production", "bootstrap", _NOW, None, _NOW, None)
_EXAMPLES: dict[str, object] = {
    "RunStarted": RunStarted(_RUN, _ATTEMPT, 1, -1, f"/runs/{_RUN}"),
    "FramesReply": FramesReply(
        2, 2, 1, (Refused(1, "plan 0 names series 9, which was not declared"),), (Directive(440, "a critical alert"),)
    ),
    "HeartbeatReply": HeartbeatReply(),
    "Runs": [replace(_RUN_VIEW, config={}, attempts=())],
    "Run": _RUN_VIEW,
    "Usage": Usage(_RUN, 1_048_576, 2_621_440, 851_968, 131_072, 4_653_056),
    "Verdicts": Verdicts(
        _RUN,
        _ATTEMPT,
        420,
        "violated",
        _SENTENCE,
        (_CARD,),
        (BlockVerdict("blocks.2", 20, {"update": "violated", "forward": "ok"}, _VERDICT),),
        (_VERDICT,),
        412,
    ),
    "Coverage": Coverage(
        _RUN,
        0.98,
        {"measured": 98, "silent": 2},
        (CoverageEntry("module", "blocks.5.unused", "silent", "never called", "activation"),),
        _START.modules,
    ),
    "Ranks": Ranks(
        _RUN,
        _ATTEMPT,
        8,
        420,
        1,
        (7,),
        0,
        1,
        _NOW,
        (
            RankView(3, {"data_parallel": 3}, "live", _NOW, 420, 0, 2.31, 0.42, ("weight.replicas_differ",)),
            RankView(0, {"data_parallel": 0}, "live", _NOW, 420, 0, 2.29, 0.42),
        ),
    ),
    "Routing": Routing(_RUN, _ATTEMPT, _START.routing),
    "SeriesPage": SeriesPage((_SERIES,), 412),
    "PointsPage": PointsPage(
        _RUN,
        _ATTEMPT,
        410,
        420,
        (Points(_SERIES, (410, 420), (_NOW, _NOW), (0.29, "nan"), (0.29, None), (0.29, None), (0, 1), _BAND, False),),
    ),
    "Heatmap": Heatmap(
        _RUN,
        _ATTEMPT,
        "update.own",
        "activation",
        (410, 420),
        (HeatmapRow("blocks.2", "blocks.2", 20, (17,), (4.8, 4.95), (0.29, 0.31)),),
        "baseline",
        ("activation.rms", "update.own"),
        1,
    ),
    "Scaling": _SCALING,
    "Check": Check(
        _RUN,
        _ATTEMPT,
        "proxy",
        "violated",
        _SENTENCE,
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
    "Trajectory": _TRAJECTORY,
    "AlertsPage": AlertsPage((_ALERT,), 1, 1),
    "Alert": _ALERT,
    "Deliveries": (
        Delivery(
            7,
            _RUN,
            "update",
            "firing",
            "http://pager.local",
            "failing",
            3,
            _NOW,
            _NOW + 8_000,
            None,
            None,
            "answered 503",
        ),
    ),
    "Silence": _SILENCE,
    "Silences": (_SILENCE,),
    "Token": _TOKEN,
    "Tokens": (_TOKEN,),
    "NewToken": NewToken("int_0000000000000000000000000000000000000000000", _TOKEN),
    "Identity": Identity("ada", ("read",), "vision", None),
    "Acts": (Act(_NOW, "bootstrap", "127.0.0.1", "revoke_token", "3", ""),),
    "Rules": {"file": [], "rules": [_RULE], "receivers": ["oncall"]},
    "RuleSet": {"rules": [_RULE]},
    "Limits": {"thresholds": [Threshold("gradient.global_norm", above=5.0)]},
    "Catalogue": {
        "metrics": [METRICS["update.own"]],
        "conditions": [CONDITIONS[2]],
        "criteria": [CRITERIA[5]],
        "rules": [RULES[2]],
    },
    "Health": {"status": "ok", "service": "internist"},
}
_CHANGE = Change(_RUN, 57, 420, "live", "violated", 1, _NOW, _NOW, _NOW)

REQUESTS: Final[dict[str, Any]] = {
    "RunStart": msgspec.to_builtins(_START),
    "FramesRequest": msgspec.to_builtins(_REQUEST),
    "Heartbeat": msgspec.to_builtins(Heartbeat(_ATTEMPT, 0, 420, 120)),
    "Trajectory": msgspec.to_builtins(_TRAJECTORY),
}


def of(name: str) -> dict[str, Any]:
    """A response with its example."""
    return {"content": {"application/json": {"example": msgspec.to_builtins(_EXAMPLES[name])}}}


def stream() -> dict[str, Any]:
    """The live stream's response."""
    text = f"id: 57\nevent: change\ndata: {msgspec.json.encode(_CHANGE).decode()}\n\n"
    return {
        "description": "Server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": text}},
    }


def metrics() -> dict[str, Any]:
    """The response for Prometheus."""
    text = "# TYPE internist_open_alerts gauge\ninternist_open_alerts 1.0\n"
    return {
        "description": "Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}, "example": text}},
    }
