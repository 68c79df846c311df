"""The only reader of the environment: every setting of the app, checked at start, all faults in one error.

Names are read without regard to case; `__` leads into a group. Each field's description and example become the sentence of
its error and its row in `docs/settings.md` (printed by `shared/settings_page.py`).
"""

import difflib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from shared.addresses import check_recipient, parse_address
from shared.connections import LOOPBACK_HOSTS, Connection, need, setting, split_url
from shared.digests import DigestKey, Digests, parse_digest_keys
from shared.errors import ConfigError, MappingError
from shared.ncrontab import check_ncrontab
from shared.settings_faults import describe_faults, nearest

LOG = logging.getLogger(__name__)

PLACEHOLDER = re.compile(r"(\w+:)?<[^<>@]*>")  # as in the examples: <secret>, k1:<random characters>
MISSPELT = 0.82  # how much a name must be like one of ours; other programs' settings stand in the same environment
KEY_VAULT_REFERENCE = "@Microsoft.KeyVault("
STORAGE = "AzureWebJobsStorage"
DEFAULT_PORTS = {"implicit_tls": 465, "starttls": 587, "none": 25}
EVERY_RECIPE = "*"
HEADS = {  # settings that are a value and the head of a group at once: what the bare name stands for
    "notify": f"notify__{EVERY_RECIPE}",
    STORAGE.lower(): f"{STORAGE.lower()}__connectionstring",
}


def _as_value_error(check: Callable[..., str], *args: Any, says: str = "") -> str:
    """Call a check of addresses; its MappingError becomes what pydantic collects."""
    try:
        return check(*args)
    except MappingError as exc:
        raise ValueError(says or f"cannot be used: {exc.message.rstrip('.')}") from None


def _split_commas(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _check_recipients(addresses: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    domains = info.data.get("allowed_mail_domains")
    if domains is None:  # its own error says enough
        return addresses
    return tuple(dict.fromkeys(_as_value_error(check_recipient, each, domains) for each in addresses))


Commas = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
Recipients = Annotated[Commas, AfterValidator(_check_recipients)]


class Storage(BaseModel):
    """Where queues and tables live: a connection string, or addresses that a managed identity signs in to."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True
    )  # the host has keys of its own here

    connection_string: SecretStr | None = setting(
        None,
        f"the storage account's connection string, written as {STORAGE} alone; local work only, in Azure leave it out",
        "UseDevelopmentStorage=true",
        alias="connectionString",
    )
    queue_service_uri: str | None = setting(
        None,
        "the account's queue address, with a managed identity",
        "https://contoso.queue.core.windows.net",
        alias="queueServiceUri",
    )
    table_service_uri: str | None = setting(
        None,
        "the account's table address, with a managed identity",
        "https://contoso.table.core.windows.net",
        alias="tableServiceUri",
    )
    client_id: str | None = setting(
        None,
        "the client id of a user-assigned identity; empty: the app's own identity",
        "66666666-7777-8888-9999-000000000000",
        alias="clientId",
    )

    @field_validator("queue_service_uri", "table_service_uri")
    @classmethod
    def _check_uri(cls, uri: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("connection_string") is None:
            need(uri, f"because {STORAGE} holds no connection string")
        if uri is not None:
            split_url(uri)
        return uri


class Mail(BaseModel):
    """The mail server that summaries go through."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = setting(..., "the mail server", "smtp.example.com", pattern=r"^[A-Za-z0-9.:-]+$")
    security: Literal["implicit_tls", "starttls", "none"] = setting(
        "starttls", "implicit_tls, starttls (never sent unencrypted if the server cannot), or none", "starttls"
    )
    port: int = setting(
        0, "the server's port; default: 465 for implicit_tls, 587 for starttls, 25 for none", "587", ge=0, le=65535
    )
    user: str | None = setting(None, "the user to sign in as; empty: no sign-in", "concord@example.com")
    password: SecretStr | None = setting(None, "the user's password", "a secret")
    sender: str = setting(..., "the address that summaries come from", "concord@example.com")
    timeout_s: float = setting(30, "seconds to wait for the server's answer", "30", gt=0, le=230)

    @field_validator("port")
    @classmethod
    def _default_port(cls, port: int, info: ValidationInfo) -> int:
        return port or DEFAULT_PORTS[info.data.get("security", "starttls")]

    @field_validator("user")
    @classmethod
    def _check_user(cls, user: str | None, info: ValidationInfo) -> str | None:
        if user and info.data.get("security") == "none" and info.data.get("host") not in LOOPBACK_HOSTS:
            raise ValueError("would send the password unencrypted: set MAIL__SECURITY to starttls or implicit_tls")
        return user

    @field_validator("password")
    @classmethod
    def _check_password(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if info.data.get("user"):
            need(password, "because MAIL__USER is set")
        return password

    @field_validator("sender")
    @classmethod
    def _check_sender(cls, sender: str) -> str:
        return _as_value_error(parse_address, sender)


class Settings(BaseSettings):
    """Every setting of the app; frozen, secrets hidden from `repr`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_nested_delimiter="__",
        enable_decoding=False,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    storage: Storage = setting(
        ..., "where queues and tables live: a connection string", "UseDevelopmentStorage=true", alias=STORAGE
    )
    app_url: str = setting(..., "the address of this app, for links in mails", "https://concord.example.com")
    environment: str = setting(
        "production", "the name of this installation, shown in mails and pages", "test", pattern=r"^[\w -]{1,30}$"
    )
    time_zone: str = setting("UTC", "the zone of windows, days and times in mails, an IANA name", "Europe/Berlin")
    daily_sync_schedule: str = setting(
        "0 0 6 * * *", "when daily recipes start: second minute hour day month weekday, in UTC", "0 30 6 * * mon-fri"
    )
    allowed_mail_domains: Commas = setting(
        ..., "the domains that mail may go to, separated by commas; subdomains are listed themselves", "example.com"
    )
    notify: dict[str, Recipients] = setting(
        {},
        "who gets the summaries that nobody asked for by HTTP; NOTIFY__<RECIPE> for one recipe, NOTIFY for all others; "
        "separated by commas",
        "support@example.com",
    )
    mail: Mail = setting({}, "the mail server", "")
    digest_keys: tuple[DigestKey, ...] = setting(
        ...,
        "keys of the digests that stand in for stored values: id:secret of at least 32 characters; while rotating two, "
        "the new one first",
        "k1:<32 or more random characters>",
    )
    bulk_above: int = setting(
        1000, "records in a run above which whole pages are worked at once; 0: always", "1000", ge=0
    )
    events_together: int = setting(
        300, "webhook events that wait which one invocation works together; 1: each by itself", "300", ge=1, le=300
    )
    max_new_users: int = setting(200, "users that a run may create before it asks a person", "200", ge=0)
    max_removals_percent: float = setting(
        5, "share of its records and entries, in percent, that a run may take away before it asks", "5", ge=0, le=100
    )
    max_removals: int = setting(10, "records and entries that a run may take away in any case", "10", ge=0)
    max_attempts: int = setting(5, "attempts at a record before it fails", "5", ge=1, le=100)
    max_wait_s: int = setting(
        86400, "seconds that a record may wait for a system that is down or busy before it fails", "86400", ge=1
    )
    outage_alert_s: int = setting(
        1800, "seconds that a run waits for a system before its readers are told, once an outage", "1800", ge=60
    )
    queue_lease_s: int = setting(
        600, "seconds that the Functions host holds a queue message; only a test host has another value", "600", ge=1
    )
    retention_results_days: int = setting(90, "days that results and runs are kept", "90", ge=1)
    retention_events_days: int = setting(30, "days that events are kept", "30", ge=1)
    retention_audit_days: int = setting(365, "days that the record of who did what is kept", "365", ge=1)
    allow_mixed_environments: Commas = setting(
        (), "recipes that may join a production and a test connection, separated by commas", "case_to_incident"
    )
    allow_unlisted_hosts: bool = setting(
        False, "true allows connections outside the vendors' own hosts; for the sandbox and custom addresses", "false"
    )
    recipe_values: dict[str, str] = setting(
        {}, "what differs per environment: a recipe reads RECIPE__<NAME> as ${NAME}", "concord.default", alias="RECIPE"
    )
    connections: dict[str, Connection] = Field(
        default_factory=dict,
        description="the systems, each as CONNECTIONS__<NAME>__<FIELD>; `SYSTEM` says which one it is unless the name does",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # load_settings hands in what it read: nothing reads the process's environment unasked

    @field_validator("app_url")
    @classmethod
    def _check_app_url(cls, url: str) -> str:
        parts = split_url(url)
        return f"{parts.scheme}://{parts.netloc}"

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, name: str) -> str:
        try:
            return ZoneInfo(name).key
        except (KeyError, ValueError, OSError):  # unknown, not a name at all, a directory of the zone database
            raise ValueError("is no zone of the IANA database") from None

    @field_validator("daily_sync_schedule")
    @classmethod
    def _check_schedule(cls, schedule: str) -> str:
        return check_ncrontab(schedule)

    @field_validator("allowed_mail_domains")
    @classmethod
    def _check_domains(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        for domain in domains:
            _as_value_error(
                parse_address, f"someone@{domain}", says=f"{domain!r} is no domain; write it as example.com"
            )
        return tuple(domain.lower() for domain in domains)

    @field_validator("digest_keys", mode="before")
    @classmethod
    def _parse_keys(cls, value: Any) -> Any:
        return parse_digest_keys(value) if isinstance(value, str) else value

    @field_validator("recipe_values")
    @classmethod
    def _as_recipes_write_them(cls, values: dict[str, str]) -> dict[str, str]:
        return {name.upper(): value for name, value in values.items()}

    @field_validator("connections", mode="before")
    @classmethod
    def _complete(cls, value: dict[str, Any], info: ValidationInfo) -> Any:
        defaults = {"unlisted_host": info.data.get("allow_unlisted_hosts", False)}
        return {
            name: {"system": name, **defaults, **fields} if isinstance(fields, dict) else fields
            for name, fields in value.items()
        }

    @property
    def zone(self) -> ZoneInfo:
        """Return the app's time zone."""
        return ZoneInfo(self.time_zone)

    def digests(self) -> Digests:
        """Return the maker of keyed digests."""
        return Digests(self.digest_keys)

    def recipients(self, recipe: str) -> tuple[str, ...]:
        """Return who gets a recipe's summaries that nobody asked for by HTTP; empty when nobody is named."""
        return self.notify.get(recipe, self.notify.get("*", ()))

    def product(self, name: str) -> str:
        """Return a connection as people are told of it: "ServiceNow (connection servicenow)"."""
        connection = self.connections.get(name)
        return f"{connection.PRODUCT} (connection {name})" if connection else name

    def connection(self, name: str) -> Connection:
        """Return a connection by name. Raises ConfigError that names the nearest one."""
        try:
            return self.connections[name]
        except KeyError:
            raise ConfigError(
                f"There is no connection {name!r}{nearest(name, self.connections)}. "
                f"Set CONNECTIONS__{name.upper()}__URL and its other fields (docs/settings.md)."
            ) from None


class _Environ(EnvSettingsSource):
    """pydantic-settings' reader of nested names over a mapping that was handed in, instead of the process's environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        lowered = {name.lower(): value.strip() for name, value in self._environ.items()}
        return {HEADS.get(name, name): value for name, value in lowered.items() if value}


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read and check all settings. Raises one ConfigError that names every setting that is missing or wrong."""
    unresolved = dict(_unresolved(environ))
    _warn_of_misspelt(environ)
    given = {name: value for name, value in environ.items() if name not in unresolved}
    faults: dict[str, str] = {}
    try:
        settings = Settings(**_Environ(given)())
        if not unresolved:
            return settings
    except ValidationError as exc:
        faults = describe_faults(exc, Settings, environ, HEADS)
    sentences = sorted((faults | unresolved).values())
    count = "One setting is" if len(sentences) == 1 else f"{len(sentences)} settings are"
    listed = "".join(f"\n- {sentence}" for sentence in sentences)
    raise ConfigError(f"{count} missing or wrong (docs/settings.md explains them all):{listed}")


def _unresolved(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield our settings that hold something in place of a value: a Key Vault reference that Azure left, a placeholder."""
    heads = _heads()
    for name, value in environ.items():
        head = name.lower().partition("__")[0]
        if head in heads and value.strip().startswith(KEY_VAULT_REFERENCE):
            says = "is a Key Vault reference that Azure did not resolve: check the secret's name, and that the app's identity"
            yield name, f"{name} {says} has the role Key Vault Secrets User."
        elif head in heads - {"recipe"} and PLACEHOLDER.fullmatch(value.strip()):
            yield name, f"{name} still holds a placeholder in angle brackets: put its value there."


def _warn_of_misspelt(environ: Mapping[str, str]) -> None:
    """Log names that look like one of our settings and are none: they would be passed over in silence."""
    heads = _heads()
    for name in environ:
        head = name.lower().partition("__")[0]
        near = difflib.get_close_matches(head, heads, n=1, cutoff=MISSPELT) if head not in heads else []
        if near:
            LOG.warning("a setting's name looks misspelt", extra={"setting": name, "nearest": near[0].upper()})


def _heads() -> set[str]:
    return {(field.alias or name).lower() for name, field in Settings.model_fields.items()}
