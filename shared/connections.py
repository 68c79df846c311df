"""One settings model per system: what a connection needs, and on which hosts it may be.

A new system is one model here and one name in `Connection`; each field's description and example become the sentence of
its error and its row in `docs/settings.md`.
"""

import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from shared.settings_faults import NEEDED

Environment = Literal["production", "test"]
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


def setting(default: Any, says: str, example: str, **limits: Any) -> Any:
    """Return a pydantic field that people read about: what it says and an example; `...` as default: required."""
    return Field(default, description=says, examples=[example], validate_default=True, **limits)


def need(value: Any, because: str) -> None:
    """Refuse an empty value with the reason why it is needed."""
    if value is None:
        raise PydanticCustomError(NEEDED, "{because}", {"because": because})


def split_url(url: str) -> SplitResult:
    """Return the parts of `scheme://host[:port]`. Raises ValueError with a sentence for anything more or less."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("should be an address that begins with https://")
    if parts.username or parts.password is not None or parts.query or parts.fragment or parts.path.strip("/"):
        raise ValueError("should end after the host: no path, no question mark, no user name")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
        raise ValueError("should begin with https://; plain http is only for this machine (localhost)")
    _ = parts.port  # raises ValueError for a port that is none
    return parts


class BaseConnection(BaseModel):
    """What every connection has."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    PRODUCT: ClassVar[str]  # the name that people know
    HOSTS: ClassVar[tuple[str, ...]]  # patterns of the vendor's own hosts
    HOST_HINT: ClassVar[str]

    environment: Environment = setting(
        ...,
        "whether records of the production or of a test environment lie behind it; recipes never mix the two by accident",
        "test",
    )
    unlisted_host: bool = setting(
        False,
        "true allows an address outside the vendor's own hosts for this connection alone; default: ALLOW_UNLISTED_HOSTS",
        "true",
    )
    url: str = setting(..., "the address of the system", "https://contoso.example.com")
    webhook_key: SecretStr | None = setting(
        None,
        "the key that this system's webhooks must carry; while rotating two, separated by a comma; empty: its webhooks "
        "are refused",
        "a long random text",
    )
    origin: str = setting(
        "", "the name by which its webhooks say where they come from; default: taken from the address", "contoso"
    )
    daily_budget: int | None = setting(
        None, "calls a day at the most, over all workers; empty: no bound of ours", "20000", ge=1
    )
    connect_timeout_s: float = setting(10, "seconds to wait for a connection", "10", gt=0, le=60)
    read_timeout_s: float = setting(65, "seconds to wait for an answer", "65", gt=0, le=230)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str, info: ValidationInfo) -> str:
        return check_host(url, cls.HOSTS, cls.HOST_HINT, allowed=bool(info.data.get("unlisted_host")))

    @property
    def webhook_keys(self) -> tuple[str, ...]:
        """Return the keys that its webhooks may carry; empty: none may."""
        text = self.webhook_key.get_secret_value() if self.webhook_key else ""
        return tuple(key.strip() for key in text.split(",") if key.strip())

    @property
    def host(self) -> str:
        """Return the host name of the address."""
        return urlsplit(self.url).hostname or ""


def check_host(url: str, hosts: tuple[str, ...], hint: str, *, allowed: bool) -> str:
    """Return an address without its closing slash if it is on the vendor's hosts, or any host is allowed.

    Without this a mistyped or planted address would be handed the connection's credentials.
    """
    parts = split_url(url)
    listed = parts.scheme == "https" and any(re.fullmatch(pattern, parts.hostname or "") for pattern in hosts)
    if not (listed or allowed):
        raise ValueError(
            f"is not one of the vendor's addresses ({hint}); if it is meant, set UNLISTED_HOST of this connection, or "
            "ALLOW_UNLISTED_HOSTS, to true"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}"


_LABEL = r"[a-z0-9][a-z0-9-]*"


class Dynamics365Connection(BaseConnection):
    """Dynamics 365 over the Dataverse Web API, signed in as an application user."""

    PRODUCT = "Dynamics 365"
    HOSTS = (
        rf"{_LABEL}(\.api)?\.crm\d*\.dynamics\.com",
        rf"{_LABEL}(\.api)?\.crm\d*\.(microsoftdynamics|appsplatform)\.us",
        rf"{_LABEL}(\.api)?\.crm\.dynamics\.cn",
    )
    HOST_HINT = "https://<organization>.crm4.dynamics.com"
    LOGIN_HOSTS: ClassVar[tuple[str, ...]] = (
        r"login\.microsoftonline\.(com|us)",
        r"login\.partner\.microsoftonline\.cn",
    )

    system: Literal["dynamics365"]
    url: str = setting(..., "the address of the environment", "https://contoso.crm4.dynamics.com")
    tenant_id: str = setting(
        ...,
        "the Microsoft Entra tenant of the application",
        "11111111-2222-3333-4444-555555555555",
        pattern=r"^[A-Za-z0-9.-]+$",
    )
    client_id: str = setting(..., "the application (client) id", "66666666-7777-8888-9999-000000000000")
    client_secret: SecretStr = setting(..., "the application's secret, best as a Key Vault reference", "a secret")
    authority: str = setting(
        "https://login.microsoftonline.com",
        "the sign-in address of the Microsoft cloud",
        "https://login.microsoftonline.us",
    )
    page_size: int = setting(100, "records per page", "100", ge=1, le=5000)
    bulk_page_size: int = setting(
        250,
        "records per page of runs that work whole pages from the first; 400 where the target takes 32 calls at once",
        "250",
        ge=1,
        le=5000,
    )
    concurrency: int = setting(8, "calls at the same time over all workers; the vendor allows 52", "8", ge=1, le=52)
    transaction_s: float = setting(
        120, "seconds after which a request that was given up can no longer take effect", "120", gt=0
    )

    webhook_header: str = setting(
        "x-functions-key",
        "the header that carries the webhooks' key, where they are registered with HttpHeader",
        "x-functions-key",
        pattern=r"^[A-Za-z0-9-]+$",
    )
    webhook_parameter: str = setting(
        "key",
        "the name before the webhooks' key, where they are registered with HttpQueryString; WebhookKey needs none",
        "key",
        pattern=r"^[A-Za-z0-9_.-]+$",
    )

    @field_validator("authority")
    @classmethod
    def _check_authority(cls, url: str, info: ValidationInfo) -> str:
        hint = "https://login.microsoftonline.com"
        return check_host(url, cls.LOGIN_HOSTS, hint, allowed=bool(info.data.get("unlisted_host")))

    @property
    def organization(self) -> str:
        """Return the host name that this environment's webhooks carry in x-ms-dynamics-organization."""
        return self.origin or self.host.replace(".api.", ".", 1)


class ServiceNowConnection(BaseConnection):
    """A ServiceNow instance over its Table, Batch and import interfaces."""

    PRODUCT = "ServiceNow"
    HOSTS = (rf"{_LABEL}\.service-now\.com", rf"{_LABEL}\.servicenowservices\.com")
    HOST_HINT = "https://<instance>.service-now.com"

    system: Literal["servicenow"]
    url: str = setting(..., "the address of the instance", "https://contoso.service-now.com")
    auth: Literal["client_credentials", "password", "basic"] = setting(
        "client_credentials", "how to sign in: client_credentials, password (both OAuth) or basic", "client_credentials"
    )
    client_id: str | None = setting(None, "the OAuth client id; not with basic", "0123456789abcdef0123456789abcdef")
    client_secret: SecretStr | None = setting(None, "the OAuth client's secret; not with basic", "a secret")
    user: str | None = setting(None, "the user to sign in as, with password and basic", "concord.integration")
    password: SecretStr | None = setting(None, "the user's password, with password and basic", "a secret")
    page_size: int = setting(200, "records per page", "200", ge=1, le=10000)
    bulk_page_size: int = setting(
        250,
        "records per page of runs that work whole pages from the first; 400 where the target takes 32 calls at once",
        "250",
        ge=1,
        le=10000,
    )
    concurrency: int = setting(
        4, "calls at the same time over all workers; an instance has few threads for interfaces", "4", ge=1, le=100
    )
    transaction_s: float = setting(
        60, "seconds after which the instance has ended every transaction (its quota rule)", "60", gt=0
    )

    @field_validator("client_id", "client_secret")
    @classmethod
    def _check_client(cls, value: Any, info: ValidationInfo) -> Any:
        if (auth := info.data.get("auth")) in ("client_credentials", "password"):
            need(value, f"because AUTH is {auth}")
        return value

    @field_validator("user", "password")
    @classmethod
    def _check_user(cls, value: Any, info: ValidationInfo) -> Any:
        if (auth := info.data.get("auth")) in ("password", "basic"):
            need(value, f"because AUTH is {auth}")
        return value

    @property
    def instance(self) -> str:
        """Return the instance name that its webhooks carry."""
        return self.origin or self.host.partition(".")[0]


class MarketoConnection(BaseConnection):
    """A Marketo instance over its REST interface, signed in as an API-only user of its own."""

    PRODUCT = "Marketo"
    HOSTS = (r"\d{3}-[a-z]{3}-\d{3}\.mktorest\.com",)
    HOST_HINT = "https://<Munchkin id, as 123-ABC-456>.mktorest.com"

    system: Literal["marketo"]
    url: str = setting(..., "the address of the instance: its Munchkin id", "https://123-ABC-456.mktorest.com")
    client_id: str = setting(
        ..., "the client id of the API-only user's custom service", "0a1b2c3d-0000-4000-8000-0123456789ab"
    )
    client_secret: SecretStr = setting(..., "the custom service's secret", "a secret")
    web_url: str = setting(
        "", "the address at which people see the instance, for links; empty: no links", "https://app-ab12.marketo.com"
    )
    lookup_field: str = setting(
        "email",
        "the field by which leads are deduplicated; `instance` leaves it to the instance's own rules",
        "email",
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
    )
    calls_per_20s: int = setting(
        50,
        "calls in 20 seconds over all workers; the vendor allows 100 for all tools of an instance",
        "50",
        ge=1,
        le=100,
    )
    concurrency: int = setting(
        5,
        "calls at the same time over all workers; the vendor allows 10 for all tools of an instance",
        "5",
        ge=1,
        le=10,
    )
    daily_budget: int | None = setting(
        25_000,
        "calls a day (US Central) at the most; the vendor allows 50000, shared by all tools of an instance",
        "25000",
        ge=1,
    )
    read_timeout_s: float = setting(
        100, "seconds to wait for an answer; a sync of leads may take the vendor 90", "100", gt=0, le=230
    )
    transaction_s: float = setting(
        90, "seconds after which a call that was given up can no longer take effect", "90", gt=0
    )

    @field_validator("web_url")
    @classmethod
    def _check_web_url(cls, url: str) -> str:
        if url:
            split_url(url)
        return url.rstrip("/")


Connection = Annotated[
    Dynamics365Connection | ServiceNowConnection | MarketoConnection,  # a new system: its model here
    Field(discriminator="system"),
]
