"""What the stand-in host is told: host.json, the Values of local.settings.json, and %SETTING% inside bindings.

Names, defaults and limits are those of host.json v2:
https://learn.microsoft.com/azure/azure-functions/functions-host-json
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

OVERRIDE_PREFIX = "AzureFunctionsJobHost__"
SETTING = re.compile(r"%([^%]+)%")
TIME_SPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2})(\.\d+)?")
LEVELS = {"Trace": 10, "Debug": 10, "Information": 20, "Warning": 30, "Error": 40, "Critical": 50, "None": 60}


class HostConfigError(Exception):
    """The app cannot be hosted as it is configured; the message names the setting."""


def parse_time_span(text: Any) -> float | None:
    """Read a .NET TimeSpan (`[d.]hh:mm:ss[.f]`) as seconds; `-1` means no limit and gives None."""
    if str(text) == "-1":
        return None
    match = TIME_SPAN.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is no TimeSpan such as 00:00:30")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    return days * 86400 + hours * 3600 + minutes * 60 + seconds + float(match[5] or 0)


Seconds = Annotated[float, BeforeValidator(parse_time_span)]


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class QueueRules(_Section):
    """`extensions.queues`: one set of rules for all queue functions of the app."""

    batch_size: int = Field(16, ge=1, le=32)
    given_threshold: int | None = Field(None, alias="newBatchThreshold", ge=0)
    max_dequeue_count: int = Field(5, ge=1)
    visibility_timeout: Seconds = Field(0.0, ge=0)  # before a FAILED message is seen again
    max_polling_interval: Seconds = Field(60.0, ge=0.1)
    message_encoding: str = Field("base64", pattern="^(base64|none)$")

    @property
    def new_batch_threshold(self) -> int:
        """Return how many messages may still be in work when the next batch is fetched."""
        if self.given_threshold is not None:
            return self.given_threshold
        return self.batch_size // 2 * (os.cpu_count() or 1)


class HttpRules(_Section):
    """`extensions.http`."""

    route_prefix: str = "api"


class _Extensions(_Section):
    queues: QueueRules = QueueRules()
    http: HttpRules = HttpRules()


class _Logging(_Section):
    log_level: dict[str, str] = Field(default_factory=dict)


class HostConfig(_Section):
    """The parts of host.json that this host follows; the rest is for Azure."""

    version: str = Field(pattern="^2\\.0$")
    function_timeout: Annotated[float | None, BeforeValidator(parse_time_span)] = 1800.0
    extensions: _Extensions = _Extensions()
    logging: _Logging = _Logging()

    @property
    def log_level(self) -> int:
        """Return the level of `logging.logLevel.default` in Python's numbers."""
        return LEVELS.get(self.logging.log_level.get("default", "Information"), LEVELS["Information"])


def read_host_config(app_dir: Path, env: Mapping[str, str]) -> HostConfig:
    """Read host.json, with `AzureFunctionsJobHost__a__b` of the environment over it. Raises HostConfigError."""
    path = app_dir / "host.json"
    document = _read_json(path)
    for name, value in env.items():
        if name.startswith(OVERRIDE_PREFIX):
            _override(document, name.removeprefix(OVERRIDE_PREFIX).split("__"), value)
    try:
        return HostConfig.model_validate(document)
    except ValidationError as exc:
        faults = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
        raise HostConfigError(f"{path}: {faults}") from None


def read_settings(path: Path) -> dict[str, str]:
    """Return the Values of a local.settings.json. Raises HostConfigError when a value is not text."""
    document = _read_json(path)
    if document.get("IsEncrypted"):
        raise HostConfigError(f"{path} is encrypted; decrypt it with Core Tools first")
    values = document.get("Values") or {}
    wrong = sorted(name for name, value in values.items() if not isinstance(value, str))
    if wrong:
        raise HostConfigError(f"{path}: Values must be text in quotation marks: {', '.join(wrong)}")
    return dict(values)


def resolve_settings(text: str, env: Mapping[str, str]) -> str:
    """Put app settings in the place of `%NAME%`. Raises HostConfigError when one is missing."""

    def value(match: re.Match[str]) -> str:
        try:
            return env[match[1]]
        except KeyError:
            raise HostConfigError(f"{text!r} needs the app setting {match[1]}, which is not set") from None

    return SETTING.sub(value, text)


def find_connection(name: str, env: Mapping[str, str]) -> str:
    """Return the connection string that a binding's `connection` names. Raises HostConfigError."""
    name = name or "AzureWebJobsStorage"
    for setting in (f"AzureWebJobs{name}", name):  # the host looks in this order
        if env.get(setting):
            return env[setting]
    if any(setting.startswith(f"{name}__") for setting in env):
        raise HostConfigError(
            f"connection {name} needs a managed identity; the stand-in host takes a connection string"
        )
    raise HostConfigError(f"connection {name} is not set: it must hold a storage connection string")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise HostConfigError(f"{path} is missing") from None
    except ValueError as exc:
        raise HostConfigError(f"{path} is not JSON: {exc}") from None
    if not isinstance(document, dict):
        raise HostConfigError(f"{path} must hold a JSON object")
    return document


def _override(document: dict[str, Any], keys: list[str], value: str) -> None:
    for key in keys[:-1]:
        document = document.setdefault(key, {})
        if not isinstance(document, dict):
            raise HostConfigError(f"{OVERRIDE_PREFIX}{'__'.join(keys)} does not fit host.json")
    document[keys[-1]] = value
