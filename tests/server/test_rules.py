"""Rules of the user's own, as data: what a file may say, and what is said of its mistakes."""

from pathlib import Path

import pytest

from internist.schema.wire import Threshold
from internist_server.alerts.rule_files import line_of, parse_rules, read_rules, require_thresholds
from internist_server.alerts.rules import Rule, Terms, rule_of, terms_of
from internist_server.errors import Invalid, RulesError

EXAMPLE = Path(__file__).parents[2] / "examples/internist.toml"
FILE = """\
[[receiver]]
name = "oncall"
webhook_url = "https://example.org/hook"

[[rule]]
name = "gradient_large"
metric = "gradient.*norm*"
above = 5.0          # the norm before clipping, too
for = "200 steps"
recovery = 4.0
severity = "critical"
labels = { team = "pretraining" }
annotations.advice = "the batches of these steps"
receivers = ["oncall"]

[[rule]]
name = "quiet_attention"
condition = "attention"
module = "blocks.?.attn"
enabled = false
"""


def mistakes(text):
    with pytest.raises(RulesError) as caught:
        parse_rules(text, name="internist.toml")
    return str(caught.value).splitlines()


def test_a_file_of_rules_is_read_as_it_is_written():
    found = parse_rules(FILE, name="internist.toml")

    large, quiet = found.rule
    assert (large.above, large.apart, large.samples, large.recovery, large.severity) == (5.0, 200, 2, 4.0, "critical")
    assert (large.labels, large.annotations["advice"]) == ({"team": "pretraining"}, "the batches of these steps")
    assert large.is_on("gradient.global_norm", "") and not large.is_on("gradient.rms", "")
    assert (quiet.condition, quiet.enabled) == ("attention", False)
    assert quiet.is_on("attention.max_logit", "blocks.3.attn") and not quiet.is_on("", "blocks.13.attn")
    assert [receiver.name for receiver in found.receiver] == ["oncall"]


@pytest.mark.parametrize(
    ("before", "after", "line", "said"),
    [
        ("above = 5.0", "abov = 5.0", 8, "`abov` is not known; did you mean `above`?"),
        ("severity =", "sevrity =", 11, "`sevrity` is not known; did you mean `severity`?"),
        ('"critical"', '"loud"', 11, "`severity`: input should be 'info', 'warning' or 'critical', got 'loud'"),
        ('"200 steps"', '"for ever"', 9, "`for`"),
        ('"oncall"]', '"nobody"]', 1, "rule 'gradient_large' names the receiver 'nobody'; there are: oncall"),
        ('"attention"', '"atention"', 18, "`condition`"),
        ("recovery = 4.0", "recovery = 6.0", 5, "`recovery` is at most `above`, got 6 and 5"),
        ("above = 5.0 ", "above = nan ", 8, "a threshold is a finite number"),
        ("enabled = false", "above = 1.0", 16, "one of `condition`, `absent`, and a threshold"),
        ('team = "pre', 'severity = "pre', 5, "the label 'severity' is set by the server"),
        ('"gradient_large"', '"update"', 5, "'update' is that of a built in rule or condition"),
        ('"quiet_attention"', '"gradient_large"', 1, "there are two rules named 'gradient_large'"),
        ("[[receiver]]", "[[reciever]]", 1, "`reciever` is not known; did you mean `receiver`?"),
        ("https://", "ftp://", 1, "a webhook begins with http:// or https://, got 'ftp'"),
        ("module = ", "modul = ", 19, "`modul` is not known; did you mean `module`?"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_was_expected(before, after, line, said):
    assert before in FILE

    told = mistakes(FILE.replace(before, after, 1))

    assert any(one.startswith(f"internist.toml:{line}: ") and said in one for one in told), told


def test_every_mistake_of_a_file_is_told_at_once():
    told = mistakes(FILE.replace("above", "abov", 1).replace("module =", "modul =", 1))

    assert len(told) == 2


def test_what_is_no_toml_is_told_with_its_place():
    assert mistakes('[[rule]]\nname = "a\n') == ["internist.toml: Illegal character '\\n' (at line 2, column 10)"]


def test_rules_that_are_written_in_line_are_told_of_at_their_array():
    assert line_of(['rule = [{name = "a"}]'], ("rule", 0, "above")) == 1


def test_a_file_that_is_not_there_is_an_error_and_no_set_of_no_rules(tmp_path):
    with pytest.raises(RulesError, match="cannot be read: No such file"):
        read_rules(tmp_path / "internist.toml")


def test_a_later_rule_wins_and_labels_of_all_are_kept():
    rules = [
        Rule(name="loud", condition="update", severity="critical", labels={"team": "a"}),
        Rule(name="elsewhere", condition="attention", severity="info"),
        Rule(name="last", condition="update", module="blocks.*", labels={"page": "no"}, receivers=("ada",)),
    ]

    def terms(subject):
        return terms_of(rules, name="update_out_of_band", condition="update", metric="update.own", subject=subject)

    assert terms("blocks.1") == Terms("critical", {"team": "a", "page": "no"}, {}, ("ada",), False)
    assert terms("head") == Terms("critical", {"team": "a"}, {}, (), False)


def test_a_threshold_of_a_run_is_a_rule_on_that_metric_alone():
    rule = rule_of(Threshold("odd[name]*", above=2.0))

    assert rule.is_on("odd[name]*", "anywhere") and not rule.is_on("odd[name]x", "anywhere")
    assert rule.name == "threshold_odd_name__"


@pytest.mark.parametrize(
    "thresholds",
    [
        [Threshold("loss")],
        [Threshold("loss", above=float("inf"))],
        [Threshold("loss", above=1.0, below=2.0)],
        [Threshold("loss", above=1.0), Threshold("loss", below=0.0)],
        [Threshold("", above=1.0)],
    ],
)
def test_a_threshold_that_cannot_be_is_refused(thresholds):
    with pytest.raises(Invalid, match="threshold"):
        require_thresholds(thresholds)


def test_the_example_is_right():
    assert len(read_rules(EXAMPLE).rule) == 5
