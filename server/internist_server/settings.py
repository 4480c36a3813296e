"""Everything that can be set, read from the environment in one place."""

import json
import re
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from internist.schema.rules import REPEAT_AFTER_S, RESOLVE_AFTER_S
from internist.schema.wire import MAX_REQUEST_BYTES, MAX_SERIES_PER_RUN
from internist_server.alerts.addresses import is_local, receiver_name
from internist_server.alerts.incidents import Policy
from internist_server.errors import SettingsError
from internist_server.logs import LogFormat

DEFAULT_PORT = 8237


class Settings(BaseSettings):
    """The settings of one server. Each is read from `INTERNIST_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="INTERNIST_", frozen=True, extra="ignore")

    database_url: str = Field(
        default="sqlite:///internist.db",
        description="Where runs are kept: a SQLite file (a path or `sqlite:///…`) or `postgresql://…`.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on. Beyond loopback a token is required.")
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    token: str | None = Field(
        default=None, description="If set, everyone must present it, or a token that was made with it."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names by which this server may be asked, separated by commas, beside its own; `*`: any. "
        "Without it a server on loopback takes loopback's names and that of its external address, one beyond it any.",
    )
    webhook_url: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Receivers of notifications (Alertmanager webhook, version 4), separated by commas or a JSON list.",
    )
    apprise_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Receivers of notifications as Apprise URLs, separated by commas or, with commas in them, as JSON.",
    )
    local_webhooks: bool | None = Field(
        default=None,
        description="Whether webhooks may be on this machine or its link; without it, where the server itself listens "
        "on loopback.",
    )
    alertmanager_url: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Alertmanagers to tell of what fires, separated by commas: all of a cluster, as with Prometheus.",
    )
    alertmanager_refresh_s: float = Field(
        default=60.0,
        ge=1.0,
        le=3600.0,
        description="Seconds after which Alertmanagers are told again of all that fires; what they are not told of for "
        "four times as long is resolved there.",
    )
    rules: Path | None = Field(
        default=None,
        description="File with rules and receivers of your own; one with a mistake is refused at the start.",
    )
    resolve_after_s: float = Field(
        default=RESOLVE_AFTER_S,
        ge=0.0,
        le=86_400.0,
        description="Seconds without an alert after which receivers are told that it is over; what comes and goes is "
        "one incident, and this wait doubles with each of its ends within an hour.",
    )
    repeat_after_s: float = Field(
        default=REPEAT_AFTER_S,
        ge=60.0,
        le=31_536_000.0,
        description="Seconds after which receivers are told again of what still fires and nobody has acknowledged.",
    )
    external_url: str | None = Field(
        default=None, description="Address of this server as people reach it; links in notifications begin with it."
    )
    base_path: str = Field(
        default="",
        description="Path under which people reach this server, such as `/internist`, or `/proxy/8237` behind a "
        "notebook's proxy; whether the proxy takes it off does not matter.",
    )
    log_format: LogFormat = Field(
        default="text", description="How lines of the log are written: `text`, or `json` for whoever collects them."
    )
    access_log: bool = Field(
        default=False, description="Whether every request is a line of the log; probes that find all well are not."
    )
    max_request_bytes: int = Field(
        default=MAX_REQUEST_BYTES, ge=1024, description="Largest body of one request that is read."
    )
    max_series_per_run: int = Field(
        default=MAX_SERIES_PER_RUN, ge=1, description="A run's series beyond this are refused."
    )

    keep_points_days: float | None = Field(
        default=None,
        gt=0,
        description="Days after which points are told by spans of 64 steps alone (lows, highs, means); without it "
        "every point is kept.",
    )
    keep_points_days_of: dict[str, float] = Field(
        default_factory=dict, description='The same by project, as JSON: `{"sweeps": 7, "production": 365}`.'
    )

    keep_points_mib: float | None = Field(
        default=None,
        gt=0,
        description="MiB that the packed points of each project may take; of what is beyond, the oldest are told by "
        "spans alone.",
    )
    keep_points_mib_of: dict[str, float] = Field(default_factory=dict, description="The same by project, as JSON.")

    @field_validator("allowed_hosts", "webhook_url", "apprise_urls", "alertmanager_url", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Addresses as JSON where they hold commas, else separated by commas."""
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith("["):
            return tuple(part for part in (part.strip() for part in value.split(",")) if part)
        try:
            return tuple(json.loads(value))
        except ValueError as error:
            raise ValueError(f'expected a JSON list such as ["https://host/hook"]: {error}') from error

    @field_validator("webhook_url")
    @classmethod
    def _is_webhook(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
                raise ValueError(f"expected addresses such as https://host/hook, got {url.rpartition('@')[2]!r}")
        return value

    @field_validator("alertmanager_url")
    @classmethod
    def _is_reached_by_http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.query:
                shown = url.rpartition("@")[2]  # before it is a password
                raise ValueError(f"expected addresses such as http://alertmanager:9093, got {shown!r}")
        return value

    @field_validator("token", "external_url", "rules", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("base_path")
    @classmethod
    def _is_path(cls, value: str) -> str:
        path = value.strip().rstrip("/")
        if path and not re.fullmatch(r"(/[A-Za-z0-9._~@:+-]+)+", path):
            raise ValueError(f"expected a path such as /internist or /user/ann/proxy/8237, got {value!r}")
        return path

    @field_validator("database_url")
    @classmethod
    def _to_url(cls, value: str) -> str:
        return database_url(value)

    @property
    def policy(self) -> Policy:
        """When receivers are told of an end, and when once more of what goes on."""
        return Policy(int(self.resolve_after_s * 1000), int(self.repeat_after_s * 1000))

    @property
    def may_call_itself(self) -> bool:
        """Whether webhooks may be on this machine or its link."""
        return is_loopback(self.host) if self.local_webhooks is None else self.local_webhooks

    @property
    def address(self) -> str:
        """Where people reach this server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.external_url or f"http://{host}:{self.port}{self.base_path}").rstrip("/")


def database_url(place: str) -> str:
    """The URL of a database that is given as a URL or as the path of a SQLite file."""
    if place.startswith("postgres://"):
        return "postgresql://" + place.removeprefix("postgres://")
    if "://" in place:
        return place
    return f"sqlite:///{Path(place).expanduser()}"


def require_safe(settings: Settings) -> None:
    """Refuse to listen where strangers may reach the server without a token.

    Raises:
        SettingsError: the host is not loopback and there is no token, or a webhook may not be where it is.
    """
    if settings.token is None and not is_loopback(settings.host):
        raise SettingsError(
            f"refusing to listen on {settings.host} without a token: anyone on the network could read and write runs. "
            "Set INTERNIST_TOKEN (or --token), or listen on 127.0.0.1"
        )
    require_allowed(settings, settings.webhook_url)


def require_allowed(settings: Settings, webhooks: Iterable[str]) -> None:
    """Refuse webhooks on this machine or its link, where others reach the server.

    Raises:
        SettingsError: one is, and nobody said that it may.
    """
    local = next((url for url in webhooks if is_local(url)), None)
    if local is not None and not settings.may_call_itself:
        raise SettingsError(
            f"the webhook {receiver_name(local)} is on this machine or its link: set INTERNIST_LOCAL_WEBHOOKS=true if "
            "that is meant"
        )


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
