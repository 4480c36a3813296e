"""Rules of the user's own: which series, which threshold or condition, how long, how loudly, and who is told."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from internist.schema.conditions import CONDITION
from internist.schema.rules import ABSENT, OF_RUN, RULES, RUN_RULE, THRESHOLD, Severity
from internist.schema.wire import Threshold as RunThreshold
from internist_server.alerts.labels import LABELS
from internist_server.inputs import LINE, PROSE

MAX_RULES: Final = 1_000
MAX_STEPS: Final = 1 << 40
_BUILT_IN: Final = frozenset({*CONDITION, *RUN_RULE, *(rule.name for rule in RULES), "user", THRESHOLD, ABSENT})
_LABEL: Final = StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=64)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a threshold is a finite number; values that are NaN are beyond every one of them")
    return value


Threshold = Annotated[float, AfterValidator(_finite)]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=200), LINE]
"""A name with `*` for any signs, `?` for any one and `[abc]` for one of these."""
Text = Annotated[str, StringConstraints(max_length=2_000), PROSE]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Steps = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,9} steps?$")]
Judged = Literal[(*CONDITION, *RUN_RULE)]  # type: ignore[valid-type]


class Strict(BaseModel):
    """What is read from a file or a request: a field that is not known is refused, not left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(Strict):
    """A threshold on series, or a change to the alerts of a condition that is judged anyway."""

    name: Name = Field(description="What alerts of it are called: `alertname`.")
    metric: Glob = Field(default="*", description="Metrics it is on: a name, or a glob such as `gradient.*`.")
    module: Glob = Field(default="*", description="Modules, parameters or groups it is on; the model's name is empty.")
    project: Glob = Field(default="*", description="Projects whose runs it is on.")
    condition: Judged | None = Field(default=None, description="Changes the alerts of this condition.")
    above: Threshold | None = Field(default=None, description="Fires where the value is larger than this.")
    below: Threshold | None = Field(default=None, description="Fires where the value is smaller than this.")
    absent: int | None = Field(default=None, ge=1, le=MAX_STEPS, description="Fires after so many steps without one.")
    for_: Annotated[int, Field(ge=1, le=10_000)] | Steps = Field(
        default=1, alias="for", description='Samples (`3`) or steps (`"200 steps"`) that a breach must last.'
    )
    recovery: Threshold | None = Field(default=None, description="It resolves only when the value is past this again.")
    severity: Severity | None = Field(default=None, description="`warning` where nothing is said.")
    labels: dict[Annotated[str, _LABEL], Text] = Field(default={}, description="Added to those of each alert.")
    annotations: dict[Annotated[str, _LABEL], Text] = Field(default={}, description="Likewise; `advice` is shown.")
    receivers: tuple[Name, ...] = Field(default=(), description="Who is told, by name; all where nothing is said.")
    enabled: bool = Field(default=True, description="Where not, its alerts are recorded and nobody is told.")

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        has_edge = self.above is not None or self.below is not None
        if (self.condition is not None) + has_edge + (self.absent is not None) != 1:
            raise ValueError("a rule has one of `condition`, `absent`, and a threshold (`above`, `below` or both)")
        if self.name in _BUILT_IN:
            raise ValueError(f"the name {self.name!r} is that of a built in rule or condition")
        if self.above is not None and self.below is not None and self.above <= self.below:
            raise ValueError(f"`above` lies above `below`, got above = {self.above:g}, below = {self.below:g}")
        if not has_edge and (self.recovery is not None or self.for_ != 1):
            raise ValueError("`for` and `recovery` belong to a threshold: conditions are judged by their own")
        if self.recovery is not None and self.above is not None and self.below is not None:
            raise ValueError("`recovery` belongs to a threshold with one edge")
        if self.recovery is not None and self.above is not None and self.recovery > self.above:
            raise ValueError(f"`recovery` is at most `above`, got {self.recovery:g} and {self.above:g}")
        if self.recovery is not None and self.below is not None and self.recovery < self.below:
            raise ValueError(f"`recovery` is at least `below`, got {self.recovery:g} and {self.below:g}")
        taken = sorted(set(self.labels) & LABELS)
        if taken:
            raise ValueError(f"the label {taken[0]!r} is set by the server")
        return self

    @property
    def samples(self) -> int:
        """Points that count before it fires."""
        return self.for_ if isinstance(self.for_, int) else 2

    @property
    def apart(self) -> int:
        """Steps between two points that count: with a `for` in steps the second one is that far from the first."""
        return 1 if isinstance(self.for_, int) else int(self.for_.split()[0])

    @property
    def recovery_samples(self) -> int:
        """Points past the recovery before it resolves."""
        return self.for_ if isinstance(self.for_, int) else 1

    @property
    def key(self) -> str:
        """The same for rules that fire for the same reason: what is told of it, and to whom, does not count."""
        same = (self.name, self.metric, self.module, self.above, self.below, self.absent, self.for_, self.recovery)
        return f"{self.name}/{hashlib.sha256(repr(same).encode()).hexdigest()[:16]}"

    def is_on(self, metric: str, subject: str) -> bool:
        """Whether it is on a series."""
        return fnmatchcase(metric, self.metric) and fnmatchcase(subject, self.module)


class Receiver(Strict):
    """Someone to be told, by the name that rules call them."""

    name: Name = Field(description="What `receivers` of rules name.")
    webhook_url: str | None = Field(
        default=None, max_length=2_000, description="Gets a body of Alertmanager's by POST."
    )
    apprise_url: str | None = Field(default=None, max_length=2_000, description="A chat service in Apprise's notation.")
    default: bool = Field(default=True, description="Whether it is told of alerts whose rules name nobody.")

    @model_validator(mode="after")
    def _has_one_address(self) -> Self:
        if (self.webhook_url is None) == (self.apprise_url is None):
            raise ValueError("a receiver has a `webhook_url` or an `apprise_url`")
        if self.webhook_url is not None and not self.webhook_url.startswith(("http://", "https://")):
            raise ValueError(f"a webhook begins with http:// or https://, got {self.webhook_url.partition(':')[0]!r}")
        return self


class RuleSet(Strict):
    """Rules as they are set through the API."""

    rules: tuple[Rule, ...] = Field(default=(), max_length=MAX_RULES)

    @model_validator(mode="after")
    def _have_names_of_their_own(self) -> Self:
        _require_names(self.rules)
        return self


class RuleFile(Strict):
    """The file `internist.toml`: tables `[[rule]]` and `[[receiver]]`."""

    rule: tuple[Rule, ...] = Field(default=(), max_length=MAX_RULES)
    receiver: tuple[Receiver, ...] = Field(default=(), max_length=MAX_RULES)

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        _require_names(self.rule)
        require_unique("receiver", [receiver.name for receiver in self.receiver])
        require_known(self.rule, [receiver.name for receiver in self.receiver])
        return self


def run_rule_name(metric: str) -> str:
    """What the rule of a run's own threshold on a metric is called."""
    return OF_RUN + "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in metric.lower())[:50]


def rule_of(threshold: RunThreshold) -> Rule:
    """The rule that a threshold of a run's own is."""
    return Rule(
        name=run_rule_name(threshold.metric),
        metric=_literal(threshold.metric),
        above=threshold.above,
        below=threshold.below,
    )


def _literal(name: str) -> str:
    """A glob that matches this name alone."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


@dataclass(frozen=True, slots=True)
class Terms:
    """What rules say of one alert beyond what the judge says."""

    severity: Severity | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    receivers: tuple[str, ...] = ()
    is_quiet: bool = False
    """It is recorded, and nobody is told."""


def terms_of(rules: Sequence[Rule], *, name: str, condition: str, metric: str, subject: str) -> Terms:
    """What the rules say of an alert: its own rule, or those on its condition, of which a later one wins."""
    found = Terms()
    for rule in rules:
        if rule.name != name and (rule.condition != condition or not rule.is_on(metric, subject)):
            continue
        found = Terms(
            rule.severity or found.severity,
            found.labels | rule.labels,
            found.annotations | rule.annotations,
            rule.receivers or found.receivers,
            not rule.enabled,
        )
    return found


def require_unique(what: str, names: Sequence[str]) -> None:
    """Refuse two of a name.

    Raises:
        ValueError: there are.
    """
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ValueError(f"there are two {what}s named {twice!r}")


def _require_names(rules: Sequence[Rule]) -> None:
    require_unique("rule", [rule.name for rule in rules])
    taken = next((rule.name for rule in rules if rule.name.startswith(OF_RUN)), None)
    if taken is not None:
        raise ValueError(f"names that begin with {OF_RUN!r} are those of thresholds of single runs, got {taken!r}")


def require_known(rules: Sequence[Rule], receivers: Sequence[str]) -> None:
    """Refuse rules that would tell nobody, because nobody has that name.

    Raises:
        ValueError: a receiver of a rule is not among these.
    """
    for rule in rules:
        unknown = next((one for one in rule.receivers if one not in receivers), None)
        if unknown is not None:
            there = ", ".join(receivers) or "none"
            raise ValueError(f"rule {rule.name!r} names the receiver {unknown!r}; there are: {there}")
