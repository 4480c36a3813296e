"""What the API answers to readers: the board, the command line and scripts.

In JSON, NaN and infinities are the strings "nan", "inf", "-inf"; an absent value is null.
"""

from dataclasses import dataclass, field
from typing import Literal

from internist.schema.conditions import Basis, State
from internist.schema.metrics import Bound, Kind
from internist.schema.rules import Severity
from internist.schema.wire import CoverageEntry, Facts, Module, Route, Scalar

Number = float | Literal["nan", "inf", "-inf"] | None
RunState = Literal["live", "finished", "failed", "killed", "lost", "stalled"]
RankState = Literal["live", "silent", "finished"]
AlertState = Literal["pending", "firing", "resolved", "superseded"]
Scope = Literal["ingest", "read", "admin"]
"""What a token is for: to send what runs measure, to read, or everything."""


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
class SeriesView:
    """One series of a run."""

    id: int
    metric: str
    unit: str
    kind: Kind
    subject: str
    index: int | None
    bound: Bound
    facts: Facts
    last_step: int | None
    last_value: Number


@dataclass(frozen=True, slots=True)
class SeriesPage:
    """Series that match a question, in forward order."""

    series: tuple[SeriesView, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Band:
    """The band of a series at each step of its points, as it was judged there; null where there was none. What is
    judged by its own baseline has critical edges alone."""

    basis: Basis
    centre: tuple[Number, ...]
    warn_low: tuple[Number, ...]
    warn_high: tuple[Number, ...]
    critical_low: tuple[Number, ...]
    critical_high: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Points:
    """A window of one series. Where points outnumber the pixel budget, each bucket keeps its low, high and last
    value."""

    series: SeriesView
    steps: tuple[int, ...]
    times_ms: tuple[int, ...]
    values: tuple[Number, ...]
    low: tuple[Number, ...]
    high: tuple[Number, ...]
    nonfinite: tuple[int, ...]
    """Number of NaN and infinite points in each bucket."""
    band: Band | None
    thinned: bool


@dataclass(frozen=True, slots=True)
class PointsPage:
    """Windows of several series over the same steps."""

    run: str
    attempt: str
    first_step: int | None
    last_step: int | None
    windows: tuple[Points, ...]


@dataclass(frozen=True, slots=True)
class HeatmapRow:
    """One row: a block, or a module or parameter in it."""

    subject: str
    block: str | None
    order: int
    series: tuple[int, ...]
    ratios: tuple[Number, ...]
    """log2 of value over the band's centre at each step (the largest in magnitude where steps were thinned); null:
    not judged."""
    values: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Layers x steps of one metric."""

    run: str
    attempt: str
    metric: str
    unit: str
    steps: tuple[int, ...]
    rows: tuple[HeatmapRow, ...]
    basis: Basis | None
    metrics: tuple[str, ...]
    """The metrics of this run that can be drawn so."""
    total: int = 0
    """Rows that there are; the answer has the first of them where it was asked for fewer."""


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
    the weights most others do not have."""
    pause: str = ""
    """What it says that it pauses for."""
    refusal: str | None = None
    """Why some of its frames were refused."""


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
class Alert:
    """A rule firing on a series (or on the run: series is null)."""

    id: int
    run: str
    run_name: str
    project: str
    attempt: str
    rule: str
    condition: str
    severity: Severity
    state: AlertState
    series: int | None
    metric: str
    subject: str
    index: int | None
    kind: Kind | None
    """What the subject is; null: the run itself, or its user's code."""
    module: str | None
    """The module that owns the subject."""
    block: str | None
    cause: Literal["own", "weight", "learning_rate", "feature", "model", "run", "user"]
    value: Number
    ratio: Number
    """How many times its baseline, or the edge of its target (over one, also for values that are too small)."""
    worst_ratio: Number
    basis: Basis | None
    band_low: Number
    band_high: Number
    pending_step: int | None
    opened_step: int | None
    closed_step: int | None
    opened_at_ms: int | None
    closed_at_ms: int | None
    message: str
    advice: str
    acknowledged_by: str | None
    acknowledged_at_ms: int | None
    notified: bool
    """Whether receivers of this server's own know of it."""
    bound: Bound | None = None
    """What the value is of what was measured; null without a series."""
    labels: dict[str, str] = field(default_factory=dict)
    """Those that rules add to its own."""
    annotations: dict[str, str] = field(default_factory=dict)
    receivers: tuple[str, ...] = ()
    """Who is told, as rules name them; empty: all."""


@dataclass(frozen=True, slots=True)
class AlertsPage:
    """Alerts, open ones first, then newest first."""

    alerts: tuple[Alert, ...]
    total: int
    open: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to one receiver."""

    notification: int
    run: str
    condition: str
    """Or the rule, where a rule of the user's own is told of."""
    status: Literal["firing", "resolved"]
    receiver: str
    """Its name in the file of rules, else its host or its service."""
    state: Literal["waiting", "failing", "delivered", "given up"]
    attempts: int
    queued_at_ms: int
    due_at_ms: int
    """When it is tried next."""
    delivered_at_ms: int | None
    given_up_at_ms: int | None
    error: str | None
    """Why the last try failed."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A promise not to notify about matching alerts until it expires."""

    id: int
    matchers: dict[str, str]
    """Globs by label, all of which match; a label that an alert does not have is empty."""
    author: str
    reason: str
    created_at_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token. The token itself is told once, when it is made."""

    id: int
    name: str
    scopes: tuple[Scope, ...]
    project: str | None
    """The only one whose runs it is for; None: all."""
    created_by: str
    created_at_ms: int
    expires_at_ms: int | None
    last_used_ms: int | None
    """To about a minute."""
    revoked_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Identity:
    """For whom a server takes whoever asks."""

    name: str
    """Of the token; `anyone` where the server asks for none."""
    scopes: tuple[Scope, ...]
    project: str | None
    """The only one whose runs it is for; None: all."""
    expires_at_ms: int | None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was made just now."""

    secret: str
    """What is presented. The server keeps its hash alone."""
    token: Token


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody did who administers the server: a line of its audit log."""

    at_ms: int
    actor: str
    """The name of the token that was presented."""
    address: str
    """Where the request came from."""
    act: str
    target: str
    """Whom it was done to: ids of the request's path."""
    detail: str
    """What was sent."""


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
