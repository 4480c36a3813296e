"""Alerts as the API answers them, and what becomes of them: messages to receivers, silences."""

from dataclasses import dataclass, field
from typing import Literal

from internist.schema.conditions import Basis
from internist.schema.metrics import Bound, Kind
from internist.schema.rules import Severity
from internist.schema.views import Number

AlertState = Literal["pending", "firing", "resolved", "superseded"]


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
