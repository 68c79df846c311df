"""The one place that builds everything: from settings to clients, tables, queues and mail; lazily and once a process."""

import functools
import threading
from collections.abc import Callable, Collection

from azure.core.credentials import TokenCredential
from azure.identity import ManagedIdentityCredential

from shared.clients.auth import BasicAuth, ServiceNowSignIn, build_dynamics365_auth, build_servicenow_auth
from shared.clients.dynamics365 import DIALECT as DYNAMICS365
from shared.clients.dynamics365 import Dynamics365
from shared.clients.http import Auth, Dialect, HttpConnection
from shared.clients.marketo import DIALECT as MARKETO
from shared.clients.marketo import Marketo
from shared.clients.marketo_auth import build_marketo_auth
from shared.clients.servicenow import DIALECT as SERVICENOW
from shared.clients.servicenow import ServiceNow
from shared.clients.system import Permits, System
from shared.connections import Connection, Dynamics365Connection, MarketoConnection, ServiceNowConnection
from shared.mail import Delivery, Email, SmtpMailer
from shared.settings import Settings
from shared.state.permits import WAIT_S, SharedPermits
from shared.state.queues import Queues
from shared.state.shares import Budget, Limits
from shared.state.storage import connect_queues, connect_tables
from shared.state.tables import Tables

MARKETO_ZONE = "America/Chicago"  # where Marketo's day ends
SLOT_SLACK_S = 2.0  # after a slot's end: storage's time is known to about a second
MICROSOFT_LOGIN = "https://login.microsoftonline.com"  # the one authority that msal discovers others through


class Services:
    """Everything that reaches the world, built from settings when it is first asked for."""

    def __init__(self, settings: Settings, event_connections: Collection[str] = ()) -> None:
        self.settings = settings
        self._event_connections = frozenset(event_connections)  # those keep a share of their permits for events
        self._systems: dict[str, System] = {}
        self._permits: list[SharedPermits] = []
        self._lock = threading.Lock()

    @functools.cached_property
    def tables(self) -> Tables:
        """Return the tables."""
        return Tables(
            connect_tables(
                self._connection_string, endpoint=self.settings.storage.table_service_uri, credential=self._credential
            )
        )

    @functools.cached_property
    def queues(self) -> Queues:
        """Return the queues."""
        return Queues(
            connect_queues(
                self._connection_string, endpoint=self.settings.storage.queue_service_uri, credential=self._credential
            )
        )

    @functools.cached_property
    def send_mail(self) -> Callable[[Email], Delivery]:
        """Return what sends a mail."""
        return SmtpMailer(self.settings.mail).send

    @property
    def _connection_string(self) -> str | None:
        text = self.settings.storage.connection_string
        return text.get_secret_value() if text else None

    @functools.cached_property
    def _credential(self) -> TokenCredential | None:
        if self.settings.storage.connection_string:
            return None
        return ManagedIdentityCredential(client_id=self.settings.storage.client_id)

    def system(self, name: str) -> System:
        """Return a connection's client. Raises ConfigError when there is no such connection."""
        with self._lock:
            if name not in self._systems:
                self._systems[name] = self._build(name, self.settings.connection(name))
            return self._systems[name]

    def close(self) -> None:
        """Give the permits back: those of a process that just ends are missing to all others until their lease is over."""
        with self._lock:
            held = list(self._permits)
        for permits in held:
            permits.close()

    def _build(self, name: str, connection: Connection) -> System:
        call_s = connection.connect_timeout_s + connection.read_timeout_s
        kept = None if name in self._event_connections else 0
        limits = Limits(connection.concurrency, kept=kept, budgets=_budgets(connection))
        permits = SharedPermits(self.tables, name, limits, call_s=call_s, wait_s=_wait_s(limits))
        self._permits.append(permits)
        match connection:
            case Dynamics365Connection():
                return _build_dynamics365(name, connection, permits)
            case ServiceNowConnection():
                return _build_servicenow(name, connection, permits)
            case MarketoConnection():
                return _build_marketo(name, connection, permits)


def _wait_s(limits: Limits) -> float:
    """Return how long a call waits for its permit: until the next slot of a budget of seconds begins, never until a new day.

    Work that one worker puts back until then is missing to another one that still has calls of the slot in hand.
    """
    return max([WAIT_S, *(budget.seconds + SLOT_SLACK_S for budget in limits.budgets)])


def _budgets(connection: Connection) -> tuple[Budget, ...]:
    """Return how many calls a connection allows in a stretch of time, over all workers."""
    zone = MARKETO_ZONE if isinstance(connection, MarketoConnection) else "UTC"
    daily = (Budget(connection.daily_budget, zone=zone),) if connection.daily_budget else ()
    if isinstance(connection, MarketoConnection):
        return (Budget(connection.calls_per_20s, 20.0), *daily)
    return daily


def _connect(name: str, connection: Connection, auth: Auth, permits: Permits, dialect: Dialect) -> HttpConnection:
    return HttpConnection(
        name,
        connection.url,
        auth,
        permits,
        dialect,
        connect_s=connection.connect_timeout_s,
        read_s=connection.read_timeout_s,
    )


def _build_dynamics365(name: str, connection: Dynamics365Connection, permits: Permits) -> System:
    auth = build_dynamics365_auth(
        name,
        authority=f"{connection.authority}/{connection.tenant_id}",
        client_id=connection.client_id,
        client_credential=connection.client_secret.get_secret_value(),
        organization_url=connection.url,
        instance_discovery=None if connection.authority == MICROSOFT_LOGIN else False,
        connect_s=connection.connect_timeout_s,
        read_s=min(30.0, connection.read_timeout_s),
    )
    http = _connect(name, connection, auth, permits, DYNAMICS365)
    return Dynamics365(
        http,
        organization_url=connection.url,
        page_size=connection.page_size,
        bulk_page_size=connection.bulk_page_size,
        webhook_keys=connection.webhook_keys,
        organization=connection.organization,
        webhook_header=connection.webhook_header,
        webhook_parameter=connection.webhook_parameter,
    )


def _build_servicenow(name: str, connection: ServiceNowConnection, permits: Permits) -> System:
    http = _connect(name, connection, _servicenow_auth(name, connection), permits, SERVICENOW)
    return ServiceNow(
        http,
        page_size=connection.page_size,
        bulk_page_size=connection.bulk_page_size,
        transaction_s=connection.transaction_s,
        parallel=connection.concurrency,
    )


def _servicenow_auth(name: str, connection: ServiceNowConnection) -> Auth:
    user, password = connection.user or "", connection.password.get_secret_value() if connection.password else ""
    if connection.auth == "basic":
        return BasicAuth(user, password)
    secret = connection.client_secret.get_secret_value() if connection.client_secret else ""
    sign_in = ServiceNowSignIn(connection.auth, connection.client_id or "", secret, user, password)
    return build_servicenow_auth(
        name,
        connection.url,
        sign_in,
        connect_s=connection.connect_timeout_s,
        read_s=min(30.0, connection.read_timeout_s),
    )


def _build_marketo(name: str, connection: MarketoConnection, permits: Permits) -> System:
    auth = build_marketo_auth(
        name,
        connection.url,
        connection.client_id,
        connection.client_secret.get_secret_value(),
        connect_s=connection.connect_timeout_s,
        read_s=min(30.0, connection.read_timeout_s),
    )
    http = _connect(name, connection, auth, permits, MARKETO)
    return Marketo(
        http,
        lookup_field="" if connection.lookup_field == "instance" else connection.lookup_field,
        web_url=connection.web_url,
        transaction_s=connection.transaction_s,
    )
