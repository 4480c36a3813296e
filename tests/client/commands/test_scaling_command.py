"""`internist scaling` against a real server: a table, a verdict as an exit code, refusals in one line."""

import json
from dataclasses import replace

import httpx
import pytest

from internist.commands import scaling as scaling_command
from internist.commands.scaling import FAILED, INCONCLUSIVE, PASSED, USAGE, command
from internist.errors import TokenRefused
from internist.scaling.words import WIDTH, table
from internist.schema.scaling import Cause, Diagnosis, Exponent, FamilyMember, Scaling, ScalingReport
from tests.dashboard.serving import served
from tests.server.families import hidden_too_fast, send_family, send_run

TOKEN = "s3cret"
EXPONENT = Exponent(
    metric="update.own_mean", role="hidden", axis="width", window="early", exponent=0.984, standard_error=0.01,
    low95=0.955, high95=1.013, low90=0.96, high90=1.008, expected=0.0, verdict="FAIL", reason="+0.98 off",
    curvature=None, curvature_warning=False, sizes=(64, 128, 256), values=(0.1, 0.2, 0.4), members=("a", "b", "c"),
    judged=True, label="hidden matrices",
)  # fmt: skip
MEMBER = FamilyMember("run-a", "a", 64, 2, 0, "adamw")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A server with a family that is well, and one whose hidden rate is not scaled."""
    with served(tmp_path_factory.mktemp("scaling")) as address, httpx.Client(base_url=address, timeout=60) as api:
        well = send_family(api, prefix="well-", project="well")
        sick = send_family(api, prefix="sick-", project="sick", law=hidden_too_fast)
        yield address, well, sick


def report_with(*exponents, **changes):
    plain = ScalingReport((MEMBER,), (), tuple(exponents), (), "FAIL", "One of 1 exponents is wrong.")
    return replace(plain, **changes)


def test_a_sound_family_is_exit_code_0_and_every_line_fits(house, capsys):
    address, well, _ = house

    assert command([*well, "--server", address]) == PASSED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PASS") and max(map(len, lines)) <= WIDTH
    assert any(line.startswith("logits at init ") and "−0.5" in line and "PASS" in line for line in lines)


def test_a_mistake_is_exit_code_1_and_its_sentence_comes_before_the_table(house, capsys):
    address, _, sick = house

    assert command([*sick, "--server", address]) == FAILED
    out = capsys.readouterr().out
    assert out.index("the hidden learning rate is not divided") < out.index("against width: 128, 256, 512")


def test_without_runs_the_families_are_listed_with_the_command_that_checks_each(house, capsys):
    address, _, _ = house

    assert command(["--server", address]) == PASSED
    out = capsys.readouterr().out
    assert out.startswith("2 families") and "widths 128, 256, 512; depth 2" in out
    family = next(line.split()[-1] for line in out.splitlines() if "--family" in line)
    assert command(["--server", address, "--family", family]) in (PASSED, FAILED)
    assert command(["--server", address, "--project", "sick"]) == PASSED
    assert capsys.readouterr().out.count("\n1 family") == 1


def test_json_is_the_report_as_the_api_gives_it(house, capsys):
    address, well, _ = house

    assert command([*well, "--server", address, "--json"]) == PASSED
    printed = json.loads(capsys.readouterr().out)
    told = httpx.get(f"{address}/api/v1/scaling", params={"runs": well}).json()
    assert printed == told["report"]


@pytest.mark.parametrize("runs", [["nope"], ["well-128"], ["well-128", "well-256"]])
def test_an_unknown_run_and_too_few_sizes_are_exit_code_2_and_one_line(house, capsys, runs):
    address, _, _ = house

    assert command([*runs, "--server", address]) == USAGE
    error = capsys.readouterr().err
    assert error.startswith("internist scaling: ") and error.count("\n") == 1
    assert "nope" in error or "more width" in error


def test_a_run_with_nan_is_named_among_the_left_out(house, capsys):
    address, well, _ = house
    with httpx.Client(base_url=address, timeout=60) as api:
        send_run(api, "lost", width=1024, project="spoiled", spoil=lambda _one, step: step > 2)

    assert command([*well, "lost", "--server", address]) == PASSED
    assert "left out lost: " in capsys.readouterr().out


def test_a_server_that_wants_a_token_gets_it_or_says_so(tmp_path, capsys):
    with served(tmp_path, token=TOKEN) as address:
        assert command(["--server", address, "--token", TOKEN]) == PASSED
        assert "holds no family" in capsys.readouterr().out
        with pytest.raises(TokenRefused):
            command(["--server", address])


def test_an_address_that_is_none_is_exit_code_2(capsys):
    assert command(["--server", "not an address"]) == USAGE
    assert "is not a server's address" in capsys.readouterr().err


def test_every_verdict_has_its_exit_code():
    assert scaling_command.EXIT_CODES == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3} and INCONCLUSIVE == 3


def test_the_exponent_stands_with_half_of_its_95_percent_interval():
    (row,) = [line for line in table(report_with(EXPONENT)).splitlines() if line.startswith("hidden matrices")]

    assert "+0.98 ± 0.03" in row and row.endswith("FAIL")


def test_an_unknown_interval_is_left_out_and_a_bend_is_told():
    unknown = replace(EXPONENT, low95="-inf", high95="inf", curvature=0.21, curvature_warning=True)

    lines = table(report_with(unknown)).splitlines()

    row = next(place for place, line in enumerate(lines) if line.startswith("hidden matrices"))
    assert "+0.98" in lines[row] and "±" not in lines[row]
    assert "the points bend (curvature +0.21)" in lines[row + 1]


def test_what_is_not_judged_says_why():
    lines = table(report_with(replace(EXPONENT, judged=False, expected=None, reason="shown only"))).splitlines()

    row = next(place for place, line in enumerate(lines) if line.startswith("hidden matrices"))
    assert lines[row].endswith("not judged") and lines[row + 1].strip() == "shown only"


def test_causes_that_look_the_same_are_listed_with_the_fact_that_tells_them_apart():
    causes = (
        Cause("a", "the output multiplier is missing", "output multiplier at each size", ""),
        Cause("b", "the head's rate is not divided", "learning rate of the head", "0.003 at every width"),
    )
    diagnosis = Diagnosis(1, "width", "logits' change: +1.00 ± 0.02 in width: one of two", causes, 1.0, ("logits",))

    out = table(report_with(EXPONENT, diagnoses=(diagnosis,)))

    assert "1. logits' change" in out
    assert "the output multiplier is missing (not recorded: output multiplier at each size)" in out
    assert "learning rate of the head: 0.003 at every width" in " ".join(out.split())


def test_an_answer_without_families_says_what_is_missing():
    (line,) = scaling_command.list_families(Scaling((), (), None, None))

    assert "no family" in line


def test_wrong_arguments_are_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        command(["--no-such-option"])
