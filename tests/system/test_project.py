"""Guards of prose and packaging: what the pages promise is what the code does."""

import math
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import internist
from docs import catalogue
from internist.schema.conditions import CARDS, CONDITIONS, CRITERIA
from internist.schema.metrics import CATALOGUE, METRICS
from internist.schema.rules import RULES
from tests.speed import SLOW_PATHS
from tests.workers import TOGETHER

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [ROOT / package for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
VARIABLE = re.compile(r"\bINTERNIST_[A-Z][A-Z_]*[A-Z]\b")
CLIENT_VARIABLES = {
    f"INTERNIST_{name}"
    for name in ("SERVER", "TOKEN", "PROJECT", "NAME", "RUN_ID", "ATTEMPT", "STEP", "MODE", "DIR")
}  # fmt: skip


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter of its own, where nothing was imported yet."""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)


def server_variables() -> set[str]:
    """What the server reads from the environment."""
    from internist_server.settings import Settings

    prefix = Settings.model_config.get("env_prefix", "")
    return {f"{prefix}{name}".upper() for name in Settings.model_fields}


# Packaging


def test_the_version_is_written_once():
    home = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]

    assert "version" in PROJECT["project"]["dynamic"]
    assert [path for path in SOURCES if f'"{internist.__version__}"' in path.read_text()] == [home]


def test_the_wheel_holds_every_package_of_the_project():
    packages = {path.parent for path in ROOT.glob("*/internist*/__init__.py")}

    assert set(PACKAGES) == packages


def test_every_dependency_is_pinned_within_its_bounds():
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [Requirement(line) for lines in [PROJECT["project"]["dependencies"], *extras.values()] for line in lines]
    pins = dict(read_pins())

    for requirement in wanted:
        if requirement.name != PROJECT["project"]["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_pins_name_no_build_and_no_package_location():
    text = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()

    assert not [version for _, version in read_pins() if "+" in version]
    assert not re.search(r"index-url|find-links|https?://\S*(whl|simple)", text)


def test_what_users_install_is_under_licences_that_were_looked_at():
    result = subprocess.run(
        [sys.executable, ROOT / ".ci" / "licences.py"], capture_output=True, text=True, timeout=120, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "sqlalchemy" in result.stdout.lower() and "psycopg" in result.stdout


def test_the_bill_of_materials_and_the_licences_are_of_the_same_extras():
    (told,) = re.findall(r"^RELEASED := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (checked,) = re.findall(r"^EXTRAS = \(([^)]+)\)$", (ROOT / ".ci" / "licences.py").read_text(), re.MULTILINE)

    assert told.split(",") == re.findall(r'"(\w+)"', checked)
    assert set(told.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_the_citation_is_of_this_version():
    assert f"\nversion: {internist.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("command", sorted(entry_points(group="internist.commands").names))
def test_every_subcommand_can_be_loaded(command):
    [entry] = entry_points(group="internist.commands", name=command)

    assert callable(entry.load())


def read_pins() -> list[tuple[str, str]]:
    """Name and version of every line of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return [(canonicalize_name(name), version) for name, version in (line.split("==") for line in lines)]


# Imports


def test_importing_the_client_loads_neither_torch_nor_msgspec():
    result = run_python("import internist, sys; print(sorted({'torch', 'msgspec', 'urllib3'} & set(sys.modules)))")

    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_the_server_and_the_board_import_where_torch_is_absent():
    result = run_python(
        "import sys, pkgutil, importlib\n"
        "sys.modules['torch'] = None\n"
        "for name in ('internist_server', 'internist_dashboard'):\n"
        "    package = importlib.import_module(name)\n"
        "    for module in pkgutil.walk_packages(package.__path__, name + '.'):\n"
        "        if '.pages.' not in module.name: importlib.import_module(module.name)\n"
    )

    assert result.returncode == 0, result.stderr


def test_the_public_names_are_what_the_package_lists():
    assert {name: callable(getattr(internist, name)) for name in internist.__all__} == dict.fromkeys(
        internist.__all__, True
    )


# The schema


def test_every_metric_is_described():
    for metric in CATALOGUE:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*(\.[a-z0-9]+(_[a-z0-9]+)*)?", metric.name)
        assert metric.summary.endswith("."), metric.name
        assert metric.unit == metric.unit.strip(), metric.name
    assert len(METRICS) == len(CATALOGUE)


def test_every_metric_has_its_place_on_the_page():
    listed = {subject for subjects in catalogue.SUBJECTS.values() for subject in subjects}

    assert {metric.name.split(".")[0] for metric in CATALOGUE} == listed


def test_the_page_of_metrics_and_conditions_is_the_schema_s():
    assert catalogue.PAGE.read_text() == catalogue.page(), "write it anew: python -m docs.catalogue"


def test_conditions_criteria_and_rules_know_one_another():
    conditions = {condition.name for condition in CONDITIONS}

    assert {condition.card for condition in CONDITIONS} == set(CARDS)
    assert {criterion.metric for criterion in CRITERIA} <= set(METRICS)
    assert {criterion.condition for criterion in CRITERIA} <= conditions
    assert [rule.condition for rule in RULES if rule.condition not in conditions] == []
    assert {rule.condition for rule in RULES} == conditions


def test_every_condition_says_what_to_try():
    assert all(condition.summary and condition.advice for condition in CONDITIONS)


# Prose


def test_every_setting_is_documented_and_every_documented_setting_is_read():
    documented = set(VARIABLE.findall((ROOT / "docs/settings.md").read_text()))
    spelled_out = {name for path in SOURCES for name in VARIABLE.findall(path.read_text())}
    read = spelled_out | server_variables() | CLIENT_VARIABLES

    assert read - documented == set(), "not documented in docs/settings.md"
    assert documented - read == set(), "documented, but nothing reads it"


def test_the_page_of_settings_says_of_the_server_s_what_the_server_says():
    from internist_server.settings import Settings

    page = (ROOT / "docs/settings.md").read_text()
    described = {name: field.description for name, field in Settings.model_fields.items()}

    assert [name for name, description in described.items() if f"| {description} |" not in page] == []


def test_the_client_reads_the_variables_it_promises():
    client = "\n".join(path.read_text() for path in SOURCES if "client" in path.parts)

    assert set(VARIABLE.findall(client)) >= CLIENT_VARIABLES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_command_of_a_page_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"(?:`|^ {4}|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_the_readme_shows_the_two_commands_and_the_two_lines():
    readme = (ROOT / "README.md").read_text()

    assert all(part in readme for part in ("make demo", "make test", "import internist", "internist.watch("))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_of_a_page_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]

    assert broken == []


def test_the_page_of_optimizers_names_every_public_one_and_every_rule():
    from internist import optim
    from internist.optim.coefficients import COEFFICIENTS
    from internist.optim.scaling import SCALES

    words = set(re.findall(r"\w+", (ROOT / "docs/optimizers.md").read_text()))

    assert {*optim.__all__, *COEFFICIENTS, *SCALES} - words == set()


def test_the_page_of_optimizers_states_the_thresholds_that_are_judged():
    page = (ROOT / "docs/optimizers.md").read_text()
    for criterion in CRITERIA:
        if criterion.metric.startswith("optimizer.") and criterion.condition not in ("routing", "no_data"):
            (line,) = [line for line in page.splitlines() if line.startswith(f"| `{criterion.metric}`")]
            warns, violated = (cell.strip() for cell in line.split("|")[2:4])
            target = criterion.target
            assert target is not None and float(warns) == target.warn_above
            critical = math.inf if violated == "never" else float(violated)
            assert critical == (math.inf if target.critical_above is None else target.critical_above)


def test_every_room_stands_on_the_page_of_the_architecture():
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = [path for package in PACKAGES for path in package.iterdir() if path.suffix == ".py" or path.is_dir()]
    names = {f"{room.name}/" if room.is_dir() else room.name for room in rooms if not room.name.startswith("__")}

    assert {name for name in names if name not in page} == set()


@pytest.mark.parametrize("room", ["schema", "measures", "model", "observe", "record", "ship", "monitor", "commands"])
def test_every_file_of_the_client_stands_in_its_room_on_the_page_of_the_architecture(room):
    page = (ROOT / "docs/architecture.md").read_text()
    _, _, after = page.partition(f"\n  {room}/ ")
    here = re.split(r"\n  \S", after)[0]
    files = {path.name for path in (ROOT / "client/internist" / room).glob("*.py")} - {"__init__.py"}

    assert files == set(re.findall(r"\b[a-z_]+\.py\b", here))


def test_every_word_of_the_glossary_means_one_thing():
    words = re.findall(r"^\| \*\*([^*]+)\*\*", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)

    assert len(words) > 30
    assert [word for word in words if words.count(word) > 1] == []


def test_make_help_lists_every_command():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)$", makefile, re.MULTILINE))

    assert phony - set(re.findall(r"^([a-z-]+):.* ## \w", makefile, re.MULTILINE)) == {
        "alertmanager",
        "browser",
        "compiler",
        "prometheus",
    }


def test_places_that_are_named_for_the_sake_of_speed_exist():
    assert [place for place in (*SLOW_PATHS, *TOGETHER) if not (ROOT / place).exists()] == []
