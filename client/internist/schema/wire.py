"""What client and server say to each other: the types of the wire and of the spool, which are the same.

A spool segment, and the body of `POST /runs/{id}/frames` with content type `application/x-internist-spool`, is a
sequence of records, each `length (u32 LE) | CRC-32 of body (u32 LE) | body`, the body being one msgpack `Record`.
The same records travel as one `FramesRequest` with content type `application/msgpack` or `application/json`
(bytes are base64 there). Unknown fields are ignored; a newer major version is refused.
"""

from dataclasses import dataclass, field
from typing import Literal

from internist.schema.metrics import Bound, Kind, Placement
from internist.schema.reference import TrajectoryPiece

VERSION = 1
"""Major version of this format."""

SPOOL_CONTENT_TYPE = "application/x-internist-spool"
MSGPACK_CONTENT_TYPE = "application/msgpack"
SENT_AT_HEADER = "X-Internist-Sent-At-Ms"
"""Header of starts, frames and heartbeats: the client's clock in ms since 1970, by which the server knows how far it is
off."""

MAX_REQUEST_BYTES = 32 << 20
MAX_RECORD_BYTES = 16 << 20
PIECE_BYTES = 30_000
"""Clients cut what they have to say to records of at most this size: they pass wherever 32 KiB pass, through whatever
proxies lie on the way."""
MAX_SERIES_PER_PLAN = 200_000
MAX_SERIES_PER_RUN = 1_000_000
MAX_NAME_LENGTH = 512
MAX_TEXT_LENGTH = 8_192
MAX_WORLD_SIZE = 1 << 20

Role = Literal["root", "block", "embedding", "head", "norm", "linear", "convolution", "attention", "container", "other"]
CoverageState = Literal["measured", "silent", "frozen", "idle", "not captured", "unsupported", "excluded"]
Outcome = Literal["finished", "failed", "killed"]
"""How a run ended: by itself, by an error, or by a signal."""
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a series besides its values."""

    method: str = ""
    """How it was computed: `gram`, `lanczos-32`, `krylov-8x10`, ..."""
    role: Role = "other"
    block: str | None = None
    """The residual block it belongs to, by module name."""
    module: str | None = None
    """The module that owns it: for a parameter, the module's name."""
    order: int = 0
    """Place in forward order, for display."""
    input_normalized: bool = False
    """Whether the module's input is the output of a normalisation layer."""
    fan_in: int | None = None
    fan_out: int | None = None
    dtype: str | None = None
    group: int | None = None
    """Index of the parameter group."""
    parameters: int | None = None
    """Number of entries: for a group, of all its parameters (the weight of its learning rate in the schedule
    factor)."""
    view: str | None = None
    """Matrix view, e.g. `(fan_out, fan_in)`, `transposed`, `heads`."""
    probe: int | None = None
    """Number of probe tokens; values of different probe sizes are not compared."""
    cadence: int = 1
    """Steps between two points of this series under the default cadence."""
    placement: Placement = "replicated"
    aliases: tuple[str, ...] = ()
    """Other names of the same tensor (tied weights)."""
    update_scale: float | None = None
    """Spectral norm of an update over learning rate that the optimizer promises (Muon's alpha); None where it
    promises none."""
    update_band: tuple[float, float] | None = None
    """Singular values its orthogonalisation leaves, lowest and highest."""
    scale: float | None = None
    """Of attention logits: what the products of queries and keys are multiplied by."""
    axis: str | None = None
    """Of a logged scalar: the name of the scalar, logged at the same step, that says where on its own axis (tokens,
    epoch) it was logged; None: the optimizer step."""


@dataclass(frozen=True, slots=True)
class Series:
    """Declaration of one series by one rank: `number` is what its plans call it."""

    number: int
    metric: str
    kind: Kind
    subject: str
    index: int | None = None
    """Head or expert."""
    bound: Bound = "exact"
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True, slots=True)
class Plan:
    """The series whose values frames of this plan carry, in that order."""

    number: int
    series: tuple[int, ...]
    counts: tuple[int, ...] = ()
    """Entries each part stands for, aligned with `series`; empty: every part counts one."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What one rank measured at one step. `values` is little-endian float32, aligned with the plan; NaN means
    measured NaN."""

    plan: int
    step: int
    measured_at_ms: int
    values: bytes
    skipped: bool = False
    """The optimizer step was skipped (a gradient scaler found infinities): there are no update values."""
    continued: bool = False
    """Frames of other plans follow for this step: the rank has not delivered the step with this one."""


@dataclass(frozen=True, slots=True)
class CoverageEntry:
    """What became of one metric family of one watched module or parameter, or of the run."""

    kind: Kind
    subject: str
    state: CoverageState
    reason: str = ""
    family: str = ""
    """Which metrics of the subject: a key of `internist.schema.coverage.FAMILIES`; empty: all that it has."""


@dataclass(frozen=True, slots=True)
class Note:
    """An alert the user's own code raised."""

    title: str
    text: str
    level: Literal["info", "warning", "error"]
    step: int
    noted_at_ms: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The run ended, as far as its process could say so."""

    step: int
    finished_at_ms: int
    outcome: Outcome = "finished"


@dataclass(frozen=True, slots=True)
class Module:
    """One line of the model's outline, in registration order."""

    name: str
    type: str
    role: Role
    block: str | None = None
    parameters: int = 0
    multiplier: float = 1.0
    """What forward hooks of the module multiply its output by, as far as they say so (`factor`)."""


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the routing table: how one parameter is stepped."""

    parameter: str
    optimizer: str
    """The optimizer's class."""
    algorithm: str
    """What steps it: `muon`, `adamw`, ..."""
    group: str
    """Name of the parameter group, or its index."""
    shape: tuple[int, ...] = ()
    role: str = ""
    """Why it is there, in the words of whoever made the groups: `hidden`, `embedding`, `head`, ..."""
    scale: str = ""
    coefficients: str = ""
    policy: str = ""
    """Names of the scale rule, of the coefficient set and of the gap policy, where the algorithm has them."""
    lr: float | None = None
    weight_decay: float | None = None
    eps: float | None = None
    """Of its group, when the run began, the rate before any schedule; None where the optimizer has no such number."""
    init_rms: float | None = None
    """RMS of its entries when the run began."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit that a run sets for itself: an alert fires where a value of the metric is beyond it."""

    metric: str
    above: float | None = None
    below: float | None = None


@dataclass(frozen=True, slots=True)
class RunStart:
    """Who is speaking: the body of `POST /runs`, and the first record of every spool segment."""

    version: int
    run: str
    attempt: str
    rank: int
    world_size: int
    project: str
    name: str
    every: int
    started_at_ms: int
    start_step: int = 0
    parent: str | None = None
    """The attempt this one resumes."""
    mesh: dict[str, int] = field(default_factory=dict)
    """This rank's coordinates by mesh dimension, e.g. `{"dp": 3, "tp": 0}`."""
    config: dict[str, Scalar] = field(default_factory=dict)
    parametrization: str = "standard"
    """`standard`, `mup` or `spectral`, as the run declares."""
    optimizers: tuple[str, ...] = ()
    routing: tuple[Route, ...] = ()
    """How each parameter is stepped, in the order of the optimizers' groups; empty where no optimizer was named."""
    modules: tuple[Module, ...] = ()
    reference: str | None = None
    """The run that this one is to be held to, by id or by name."""
    trajectory: tuple[TrajectoryPiece, ...] = ()
    """What it is to be held to, where that is not a run that the server holds."""
    client: str = ""
    """Versions of the client and of torch."""
    thresholds: tuple[Threshold, ...] = ()
    """Limits of the run's own."""


@dataclass(frozen=True, slots=True)
class Outline:
    """More of what a start tells, where it would be too large for one record: entries of its config, modules, routes
    and pieces of its reference, which the server adds to those it knows. What it knows already changes nothing."""

    config: dict[str, Scalar] = field(default_factory=dict)
    modules: tuple[Module, ...] = ()
    routing: tuple[Route, ...] = ()
    trajectory: tuple[TrajectoryPiece, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the spool. Exactly one of its contents is present. Sequence numbers rise by one per attempt and
    rank."""

    sequence: int
    start: RunStart | None = None
    series: tuple[Series, ...] | None = None
    plan: Plan | None = None
    frame: Frame | None = None
    coverage: tuple[CoverageEntry, ...] | None = None
    note: Note | None = None
    finish: Finish | None = None
    outline: Outline | None = None


@dataclass(frozen=True, slots=True)
class FramesRequest:
    """Records of one rank, in sequence order: the body of `POST /runs/{id}/frames` as msgpack or JSON."""

    version: int
    attempt: str
    rank: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that was not taken, or a part of one, and why. What stands around it is kept."""

    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Directive:
    """A wish of the server: sample the light class at every step up to and including `until_step`, or as rarely as the
    slowest rank."""

    until_step: int
    """-1: no wish of this kind."""
    reason: str
    powers: tuple[int, ...] | None = None
    """The largest `Heartbeat.powers` of the attempt's ranks: a rank samples no more often. None: no such wish."""


@dataclass(frozen=True, slots=True)
class FramesReply:
    """What is durable now: every record up to `acknowledged` is stored or refused for good."""

    acknowledged: int
    stored: int
    duplicates: int
    refused: tuple[Refused, ...] = ()
    directives: tuple[Directive, ...] = ()


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The server's answer to a start: where to resume sending, and where to look."""

    run: str
    attempt: str
    number: int
    """The attempt's number for display, from 1."""
    acknowledged: int
    """Highest sequence number stored for this attempt and rank; -1: none."""
    url: str
    """Path of the run's page on this server."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent every 15 s by each rank."""

    attempt: str
    rank: int
    step: int
    step_age_ms: int
    """Time since that step ended, or since the model was last run in evaluation after it, by the client's monotonic
    clock."""
    pause: str = ""
    """What the run says that it pauses for; empty: it does not."""
    powers: tuple[int, ...] = ()
    """By how much this rank's own costs ask to thin sampling, in powers of two: distance of light, of model-heavy and
    of matrix-heavy samples, turns of modules. Empty: it does not say."""


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The server's answer to a heartbeat."""

    directives: tuple[Directive, ...] = ()
