"""No pattern that a reader sends may cost more than its length times the text's: counted, not timed."""

import ast
import fnmatch
from pathlib import Path

import pytest

import internist_dashboard
import internist_server
from internist_dashboard import filters
from internist_server import patterns
from internist_server.errors import Invalid

HOSTILE = ["(a|aa)+$", "(a+)+$", "(a*)*b", "(a|a?)+b$", r"(.*a){40}$", "(x+x+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$"]
"""Each is exponential, or of a high power, in an engine that backtracks."""
STATES = patterns.MAX_MEMORY // 16
"""States of an automaton that a character may cost: RE2 needs 16 bytes of its memory for each."""


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_pattern_that_makes_others_backtrack_is_answered(pattern):
    text = "a" * 512 + "!"

    assert patterns.searcher(pattern, what="subjects")(text) is False
    assert patterns._compiled(pattern, "subjects").programsize <= STATES
    assert filters.compiled(pattern).search(text) is False


@pytest.mark.parametrize("pattern", ["(a{500}){500}", "(((a{30}){30}){30}){30}", "[^x]{1000}" * 20])
def test_a_pattern_that_counts_too_far_is_refused(pattern):
    with pytest.raises(Invalid, match="RE2"):
        patterns.searcher(pattern, what="subjects")

    assert filters.compiled(pattern).search(f"it is {pattern}")


@pytest.mark.parametrize("pattern", ["[^x]{999}", r"\pL{200}", "(.|é){400}", "(?:ab|cd|ef){300}", r"\w{250}\d{250}"])
def test_what_is_taken_has_few_states(pattern):
    try:
        assert patterns._compiled(pattern, "subjects").programsize <= STATES
    except Invalid:
        assert not filters.compiled(pattern).search("ab")


@pytest.mark.parametrize("pattern", ["(", "a{2", r"(a)\1", "(?=a)", "[z-a]", "\ud800", "*"])
def test_what_is_no_regular_expression_of_re2_is_named(pattern):
    try:
        patterns.searcher(pattern, what="subjects")
    except Invalid as error:
        assert str(error).startswith("the pattern for subjects is no regular expression of RE2: ")
    else:
        assert pattern == "a{2"  # which RE2 takes as it is written, as Python does


def test_a_pattern_is_searched_for_as_it_was_before():
    holds = patterns.searcher(r"^blocks\.(1|2)\..*proj$", what="subjects")

    assert [holds(name) for name in ("blocks.1.attn.q_proj", "blocks.3.attn.q_proj", "blocks.1.fc")] == [
        True,
        False,
        False,
    ]
    assert patterns.searcher("ÄÖ", what="subjects")("größe.ÄÖÜ")


def test_the_boards_filter_ignores_case_and_takes_what_does_not_parse_as_it_is_written():
    assert filters.compiled("ATTN").search("blocks.0.attn")
    assert filters.compiled("a(b").search("xA(By")
    assert not filters.compiled("a(b").search("ab")
    assert filters.compiled("\ud800").search("?")
    assert filters.compiled("") is None


def test_globs_are_matched_without_giving_back_what_was_matched():
    """Each piece between two stars is atomic: the cost is the glob's length times the text's."""
    assert fnmatch.translate("*a*b*").count("(?>") == 2
    assert not fnmatch.fnmatchcase("a" * 512, "*a" * 99 + "*b")


def test_the_backtracking_engine_sees_no_pattern_but_our_own():
    found = []
    for package in (internist_server, internist_dashboard):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                is_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
                runs = is_re and node.func.attr != "escape"
                if runs and not isinstance(node.args[0], ast.Constant):
                    found.append(f"{path.name}:{node.lineno}")
                if node.func.attr in ("regexp_match", "regexp_replace"):
                    found.append(f"{path.name}:{node.lineno}")

    assert found == []
