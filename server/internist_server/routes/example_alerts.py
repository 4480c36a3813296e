"""Alerts as examples, with rules, silences and messages; and tokens of those who handle them."""

from typing import Final

from internist.schema.access import Act, Identity, NewToken, Token
from internist.schema.alerts import Alert, AlertsPage, Delivery, Silence
from internist.schema.wire import Threshold
from internist_server.routes.example_run import ATTEMPT, NOW, RUN, SENTENCE

_ALERT = Alert(
    id=3,
    run=RUN,
    run_name="lr-sweep-3",
    project="gpt-small",
    attempt=ATTEMPT,
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
    opened_at_ms=NOW,
    closed_at_ms=None,
    message=SENTENCE,
    advice="its learning rate",
    acknowledged_by=None,
    acknowledged_at_ms=None,
    notified=True,
)
_SILENCE = Silence(1, {"run": RUN, "condition": "attention"}, "ada", "clipped on purpose", NOW, NOW + 7_200_000)
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
_TOKEN = Token(3, "cluster", ("ingest",), "production", "bootstrap", NOW, None, NOW, None)
ANSWERS: Final[dict[str, object]] = {
    "AlertsPage": AlertsPage((_ALERT,), 1, 1),
    "Alert": _ALERT,
    "Deliveries": (
        Delivery(
            7,
            RUN,
            "update",
            "firing",
            "http://pager.local",
            "failing",
            3,
            NOW,
            NOW + 8_000,
            None,
            None,
            "answered 503",
        ),
    ),
    "Silence": _SILENCE,
    "Silences": (_SILENCE,),
    "Rules": {"file": [], "rules": [_RULE], "receivers": ["oncall"]},
    "RuleSet": {"rules": [_RULE]},
    "Limits": {"thresholds": [Threshold("gradient.global_norm", above=5.0)]},
    "Token": _TOKEN,
    "Tokens": (_TOKEN,),
    "NewToken": NewToken("int_0000000000000000000000000000000000000000000", _TOKEN),
    "Identity": Identity("ada", ("read",), "vision", None),
    "Acts": (Act(NOW, "bootstrap", "127.0.0.1", "revoke_token", "3", ""),),
}
"""By the name of the answer."""
