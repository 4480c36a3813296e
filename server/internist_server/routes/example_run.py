"""A run as an example: what it sends, and what is answered of it."""

import struct
from dataclasses import replace
from typing import Final

from internist.schema.views import (
    Attempt,
    BlockVerdict,
    Card,
    Coverage,
    Ranks,
    RankView,
    Routing,
    Run,
    Usage,
    Verdict,
    Verdicts,
)
from internist.schema.windows import Band, Heatmap, HeatmapRow, Points, PointsPage, SeriesPage, SeriesView
from internist.schema.wire import (
    CoverageEntry,
    Directive,
    Facts,
    Frame,
    FramesReply,
    FramesRequest,
    HeartbeatReply,
    Module,
    Plan,
    Record,
    Refused,
    Route,
    RunStart,
    RunStarted,
    Series,
)

NOW: Final = 1_790_000_000_000
RUN: Final = "5f0c1e9a7b3d4c2f8e6a1b0c9d8e7f60"
ATTEMPT: Final = "b1946ac92492d2347c6235b4d2611184"
_FACTS = Facts(role="linear", block="blocks.2", module="blocks.2.mlp.up", order=23, fan_in=256, fan_out=1024)
_SERIES = SeriesView(
    17, "update.own", "activation", "module", "blocks.2.mlp.up", None, "exact", _FACTS, last_step=420, last_value=0.31
)
START = RunStart(
    version=1,
    run=RUN,
    attempt=ATTEMPT,
    rank=0,
    world_size=1,
    project="gpt-small",
    name="lr-sweep-3",
    every=10,
    started_at_ms=NOW,
    config={"lr": 0.0003, "layers": 6},
    optimizers=("AdamW",),
    routing=(Route("blocks.2.mlp.up.weight", "AdamW", "adamw", "0", (1024, 256), "hidden"),),
    modules=(Module("blocks.2.mlp.up", "Linear", "linear", "blocks.2", 262_144),),
)
REQUEST = FramesRequest(
    version=1,
    attempt=ATTEMPT,
    rank=0,
    records=(
        Record(0, series=(Series(0, "update.own", "module", "blocks.2.mlp.up", facts=_FACTS),)),
        Record(1, plan=Plan(0, (0,))),
        Record(2, frame=Frame(0, 420, NOW, struct.pack("<f", 0.31))),
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
SENTENCE: Final = "update: blocks.2 moved 31x its band since step 310. Try: its learning rate."
_RUN_VIEW = Run(
    id=RUN,
    project="gpt-small",
    name="lr-sweep-3",
    state="live",
    state_reason="",
    created_at_ms=NOW,
    last_step=420,
    last_frame_at_ms=NOW,
    heartbeat_at_ms=NOW,
    server_time_ms=NOW,
    steps_per_second=7.1,
    loss=2.41,
    learning_rate=0.0003,
    verdict="violated",
    sentence=SENTENCE,
    violated=1,
    drifting=0,
    open_alerts=1,
    series=412,
    overhead=0.006,
    coverage=0.98,
    config={"lr": 0.0003, "layers": 6},
    parametrization="standard",
    optimizers=("AdamW",),
    attempts=(Attempt(ATTEMPT, 1, None, 1, 1, NOW, 0, 420, None),),
    cursor=57,
)
_BAND = Band("baseline", (0.01, 0.01), (0.005, 0.005), (0.02, 0.02), (0.0025, 0.0025), (0.04, 0.04))
ANSWERS: Final[dict[str, object]] = {
    "RunStarted": RunStarted(RUN, ATTEMPT, 1, -1, f"/runs/{RUN}"),
    "FramesReply": FramesReply(
        2, 2, 1, (Refused(1, "plan 0 names series 9, which was not declared"),), (Directive(440, "a critical alert"),)
    ),
    "HeartbeatReply": HeartbeatReply(),
    "Runs": [replace(_RUN_VIEW, config={}, attempts=())],
    "Run": _RUN_VIEW,
    "Usage": Usage(RUN, 1_048_576, 2_621_440, 851_968, 131_072, 4_653_056),
    "Verdicts": Verdicts(
        RUN,
        ATTEMPT,
        420,
        "violated",
        SENTENCE,
        (_CARD,),
        (BlockVerdict("blocks.2", 20, {"update": "violated", "forward": "ok"}, _VERDICT),),
        (_VERDICT,),
        412,
    ),
    "Coverage": Coverage(
        RUN,
        0.98,
        {"measured": 98, "silent": 2},
        (CoverageEntry("module", "blocks.5.unused", "silent", "never called", "activation"),),
        START.modules,
    ),
    "Ranks": Ranks(
        RUN,
        ATTEMPT,
        8,
        420,
        1,
        (7,),
        0,
        1,
        NOW,
        (
            RankView(3, {"data_parallel": 3}, "live", NOW, 420, 0, 2.31, 0.42, ("weight.replicas_differ",)),
            RankView(0, {"data_parallel": 0}, "live", NOW, 420, 0, 2.29, 0.42),
        ),
    ),
    "Routing": Routing(RUN, ATTEMPT, START.routing),
    "SeriesPage": SeriesPage((_SERIES,), 412),
    "PointsPage": PointsPage(
        RUN,
        ATTEMPT,
        410,
        420,
        (Points(_SERIES, (410, 420), (NOW, NOW), (0.29, "nan"), (0.29, None), (0.29, None), (0, 1), _BAND, False),),
    ),
    "Heatmap": Heatmap(
        RUN,
        ATTEMPT,
        "update.own",
        "activation",
        (410, 420),
        (HeatmapRow("blocks.2", "blocks.2", 20, (17,), (4.8, 4.95), (0.29, 0.31)),),
        "baseline",
        ("activation.rms", "update.own"),
        1,
    ),
}
"""By the name of the answer."""
