"""What the API answers of a run to readers: the board, the command line and scripts.

In JSON, NaN and infinities are the strings "nan", "inf", "-inf"; an absent value is null.
"""

from dataclasses import dataclass
from typing import Literal

from internist.schema.conditions import Basis, State
from internist.schema.metrics import Bound, Kind
from internist.schema.wire import CoverageEntry, Module, Route, Scalar

Number = float | Literal["nan", "inf", "-inf"] | None
RunState = Literal["live", "finished", "failed", "killed", "lost", "stalled"]
RankState = Literal["live", "silent", "finished"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run."""

    id: str
    number: int
    parent: str | None
    world_size: int
    ranks_seen: int
    started_at_ms: int
    start_step: int
    last_step: int | None
    finished_at_ms: int | None
    clock_skew_ms: int | None = None
    """How far the clock of its machine is ahead of the server's, of several the worst; None: not known. What it says is
    told in the server's time."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training job, as the runs table shows it."""

    id: str
    project: str
    name: str
    state: RunState
    state_reason: str
    created_at_ms: int
    last_step: int | None
    last_frame_at_ms: int | None
    heartbeat_at_ms: int | None
    server_time_ms: int
    """The server's clock now: ages are differences to it."""
    steps_per_second: float | None
    loss: Number
    learning_rate: Number
    verdict: State
    sentence: str
    """The worst thing, in words."""
    violated: int
    drifting: int
    open_alerts: int
    series: int
    overhead: float | None
    """Share of the run's time that the monitor took lately."""
    coverage: float | None
    """Share of what could be measured that was, at its last sampled step."""
    config: dict[str, Scalar]
    """Empty in lists of runs."""
    parametrization: str
    optimizers: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    """Empty in lists of runs."""
    cursor: int
    """Rises with every change; what the live stream sends."""
    tags: tuple[str, ...] = ()
    notes: str = ""
    """What people wrote of it; empty in lists of runs."""
    pinned: bool = False
    """Stands before the others in lists."""
    archived: bool = False
    """Left out of lists that do not ask for it; it goes on as before."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes that a run's points and judgements take, without the database's own overhead."""

    run: str
    frames: int
    """Points as they came, which do not lie in tiles yet."""
    tiles: int
    judgements: int
    """Ratios, bases and bands."""
    spans: int
    """What long windows are drawn from."""
    total: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says of one series under one condition at its last judged point."""

    condition: str
    state: State
    basis: Basis | None
    reason: str
    """For `not measured`: why. Else a phrase such as `31x its baseline`."""
    series: int | None
    metric: str
    kind: Kind
    subject: str
    index: int | None
    bound: Bound
    block: str | None
    step: int | None
    value: Number
    ratio: Number
    """Value over the band's centre; with target bands over its warning edge."""
    since_step: int | None
    """First step of the present excursion."""
    band_low: Number = None
    band_high: Number = None
    """The band it was judged by at that point, in the unit of `value`: the one that is drawn, and sent with an alert;
    null: no such edge."""
    crossing_step: int | None = None
    """Where the trend, if it goes on, leaves the band; null without a trend that has gone half of the way. Information:
    what is inside its band is ok."""
    crossing_low: int | None = None
    crossing_high: int | None = None
    source: str = ""
    """Where the band comes from: a publication, or which of its own values."""
    advice: str = ""
    """What to try first, where it is not ok."""
    samples: int | None = None
    """How many values the band rests on; null where it does not rest on the series' own."""
    deviations: Number = None
    """How many of their standard deviations the value is from their middle, what they grow by allowed for."""
    sure: Number = None
    """One less the chance at most that one more value like these would lie so far away; null as `samples`."""
    how_sure: str = ""
    """The same in words, or what stands behind a band that no values made; empty where nothing was judged."""


@dataclass(frozen=True, slots=True)
class Card:
    """One of the six cards of the verdict board."""

    name: str
    title: str
    summary: str
    state: State
    basis: Basis | None
    """The weakest basis among members that are ok: baseline is weaker than target."""
    ok: int
    drifting: int
    violated: int
    not_measured: int
    worst: Verdict | None
    steps: tuple[int, ...]
    sparkline: tuple[Number, ...]
    """Worst absolute log2 ratio to the band at each of `steps`."""


@dataclass(frozen=True, slots=True)
class BlockVerdict:
    """The worst verdict of one block (or of one module outside blocks), per card."""

    name: str
    order: int
    states: dict[str, State]
    """By card."""
    worst: Verdict | None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The verdict board of a run, worst first."""

    run: str
    attempt: str
    step: int | None
    state: State
    sentence: str
    cards: tuple[Card, ...]
    blocks: tuple[BlockVerdict, ...]
    members: tuple[Verdict, ...]
    """All verdicts, worst first; routes may cut it to `limit`."""
    total: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of the model is measured, and what is not and why."""

    run: str
    share: float | None
    """Measured entries over all that could be, as `internist.schema.coverage.share` says; null if there are none."""
    counts: dict[str, int]
    """Entries by state."""
    entries: tuple[CoverageEntry, ...]
    modules: tuple[Module, ...]


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank of an attempt, and how it compares with the others."""

    rank: int
    mesh: dict[str, int]
    """Its place in each dimension of the job's mesh."""
    state: RankState
    """`silent`: nothing was heard of it for a minute while the server listened."""
    heard_at_ms: int
    step: int | None
    """The last step that it is known to have come to."""
    behind: int
    """Steps between that and the furthest rank's."""
    loss: Number = None
    gradient_norm: Number = None
    """Of what it holds: a piece, where the model is sharded."""
    unlike: tuple[str, ...] = ()
    """Metrics whose value of this rank stands out of the others': for `weight.replicas_differ`, ranks whose replica of
    the weights most others do not have; for `monitor.step_ms`, ranks that work longer at a step than the others."""
    pause: str = ""
    """What it says that it pauses for."""
    refusal: str | None = None
    """Why some of its frames were refused."""
    step_ms: Number = None
    """Host time of its steps lately,"""
    waited_ms: Number = None
    """and how much of that its thread waited for other ranks, or for data; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of an attempt, those first that something is to be said of."""

    run: str
    attempt: str
    world_size: int
    step: int | None
    """The last step that they are compared at."""
    unseen: int
    """Ranks that never spoke, ..."""
    first_unseen: tuple[int, ...]
    """and the lowest of them."""
    silent: int
    unlike: int
    server_time_ms: int
    ranks: tuple[RankView, ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """How each parameter of an attempt is stepped, as its optimizers said at its start."""

    run: str
    attempt: str
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One event of the live stream: something of the run is new up to `cursor`."""

    run: str
    cursor: int
    step: int | None
    state: RunState
    verdict: State
    open_alerts: int
    last_frame_at_ms: int | None
    heartbeat_at_ms: int | None
    server_time_ms: int
