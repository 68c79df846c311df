"""The storage account as tables and queues share it: connecting, counting, its clock, and what its errors mean.

SDK errors end here: they become StateError (the queue delivers the work again) or ConfigError (a person must act).
"""

import contextlib
import contextvars
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import requests
from azure.core.credentials import TokenCredential
from azure.core.exceptions import (
    AzureError,
    DecodeError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.transport import HttpTransport, RequestsTransport
from azure.data.tables import TableServiceClient
from azure.storage.queue import LinearRetry, QueueServiceClient
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from shared.errors import ConfigError, StateError, SyncError

SETTING = "AzureWebJobsStorage"
AZURE_ADDRESS = "https://core.windows.net"  # of accounts that a connection string names without an address
CONNECT_S = 5.0
READ_S = 15.0
CONNECTIONS = 64  # kept open per service and process
SIDE_BY_SIDE = 16  # threads for calls that belong together
MAX_DATE_ERROR_S = 1.0  # the Date header has whole seconds

# Few and short: a message that fails here is delivered again anyway.
_TABLE_RETRIES = {
    "retry_total": 3,
    "retry_connect": 2,
    "retry_read": 1,
    "retry_status": 2,
    "retry_backoff_factor": 0.2,
    "retry_backoff_max": 2,
}

A = TypeVar("A")
B = TypeVar("B")


def connect_tables(
    connection_string: str | None = None,
    *,
    endpoint: str | None = None,
    credential: TokenCredential | None = None,
    transport: HttpTransport[Any, Any] | None = None,
) -> TableServiceClient:
    """Return a client of the account's tables; nothing is sent yet. Raises ConfigError when the setting is no good."""
    options: dict[str, Any] = {"transport": transport or _transport(connection_string, endpoint), **_TABLE_RETRIES}
    with _setting_errors():
        if connection_string:
            return TableServiceClient.from_connection_string(connection_string.rstrip("; "), **options)
        return TableServiceClient(endpoint or "", credential=credential, **options)


def connect_queues(
    connection_string: str | None = None,
    *,
    endpoint: str | None = None,
    credential: TokenCredential | None = None,
    transport: HttpTransport[Any, Any] | None = None,
) -> QueueServiceClient:
    """Return a client of the account's queues; nothing is sent yet. Raises ConfigError when the setting is no good."""
    retries = LinearRetry(backoff=1, retry_total=2, random_jitter_range=1)  # the SDK's own wait for half a minute
    options: dict[str, Any] = {
        "transport": transport or _transport(connection_string, endpoint),
        "retry_policy": retries,
    }
    with _setting_errors():
        if connection_string:
            return QueueServiceClient.from_connection_string(connection_string.rstrip("; "), **options)
        if not endpoint:
            raise ValueError("no address")
        return QueueServiceClient(endpoint, credential=credential, **options)


@contextlib.contextmanager
def _setting_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError):
        # The cause's text may hold the account key.
        raise ConfigError(
            f"{SETTING} names no storage account: it needs a connection string, or the addresses of its queues and tables"
        ) from None


class StorageTransport(RequestsTransport):  # type: ignore[misc]  # the SDK loads it lazily, without its type
    """Believes no web page to be storage's answer: something in between has spoken, such as a proxy's sign-in."""

    def send(self, request: Any, **kwargs: Any) -> Any:
        """Send a request and return storage's answer. Raises ServiceResponseError for a success that is a web page."""
        response = super().send(request, **kwargs)
        if response.status_code < 400 and "html" in (response.headers.get("Content-Type") or "").lower():
            response.internal_response.close()
            raise ServiceResponseError("a web page came in the place of storage's answer")
        return response


class StorageSession(requests.Session):
    """Sends what the SDK made as it is: no cookies, no redirects, and nothing merged in that was told once for all."""

    def request(  # type: ignore[override]  # the SDK names all that it gives
        self, method: str, url: str, *, headers: Mapping[str, str], data: Any, stream: bool = False, **options: Any
    ) -> requests.Response:
        """Send a request and return its answer, which is read unless it is to be streamed."""
        request = requests.PreparedRequest()
        request.prepare_method(method)
        request.prepare_url(url, None)
        request.headers = CaseInsensitiveDict({"Accept-Encoding": "gzip, deflate", **headers})
        request.prepare_body(data, options["files"])
        told = {name: options[name] for name in ("timeout", "verify", "cert")}
        response = self.get_adapter(url).send(request, stream=stream, proxies=self.proxies, **told)
        if not stream:
            response.content  # noqa: B018  # reads it
        return response


def _transport(connection_string: str | None, endpoint: str | None) -> RequestsTransport:
    session = StorageSession()
    # Proxies and CA bundle of the environment, read once: requests would look for them, and for a netrc, at every call.
    named = re.search(r"https?://[^;]+", connection_string or "")
    address = endpoint or (named[0] if named else AZURE_ADDRESS)
    environment = session.merge_environment_settings(address, {}, True, None, None)
    session.trust_env, session.proxies = False, environment["proxies"]
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS, max_retries=0))
    return StorageTransport(
        session=session,
        session_owner=True,
        connection_timeout=CONNECT_S,
        read_timeout=READ_S,
        connection_verify=environment["verify"],
    )


# -- errors -------------------------------------------------------------------------------------------------------


def status_of(exc: AzureError) -> int:
    """Return the HTTP status of an answer, 0 when there was none."""
    return exc.status_code or 0 if isinstance(exc, HttpResponseError) else 0


def code_of(exc: AzureError) -> str:
    """Return the storage's own code of an error, such as TableNotFound; "" when it gave none.

    Queues name it in a header, Azure's tables in the body alone, and the SDK has not read it in all of its errors.
    """
    code = getattr(exc, "error_code", None) or _headers(exc).get("x-ms-error-code") or _code_in_body(exc)
    return str(getattr(code, "value", code))


def _code_in_body(exc: AzureError) -> str:
    response = exc.response if isinstance(exc, HttpResponseError) else None
    try:
        return str(json.loads(response.text())["odata.error"]["code"]) if response is not None else ""
    except (AzureError, AttributeError, KeyError, TypeError, ValueError):
        return ""


def _headers(exc: AzureError) -> Mapping[str, str]:
    response = exc.response if isinstance(exc, HttpResponseError) else None
    headers: Mapping[str, str] = getattr(response, "headers", {})
    return headers


def is_unsure(exc: AzureError) -> bool:
    """Tell whether a write may have taken effect although its answer says nothing of the kind, or never came."""
    if isinstance(exc, ServiceRequestError | ServiceResponseError | DecodeError):
        return True
    status = status_of(exc)  # below 400: something between us and storage answered in its place
    return isinstance(exc, HttpResponseError) and (status < 400 or status in (408, 429) or status >= 500)


def state_error(exc: AzureError, doing: str) -> SyncError:
    """Return what an SDK error means for us; `doing` says what was tried, without anything of the row's content.

    Raise it `from None`: the SDK's text can hold addresses with signatures.
    """
    status, code = status_of(exc), code_of(exc)
    if status in (401, 403):
        return ConfigError(
            f"The storage account refuses to {doing}: {status} {code or 'no code'}. "
            f"Check {SETTING}, and that the app's identity may change data of queues and tables",
            code="storage_access",
        )
    if status:
        request_id = _headers(exc).get("x-ms-request-id", "-")
        return StateError(f"Storage did not {doing}: {status} {code} (request {request_id})")
    return StateError(f"Storage did not {doing}: no answer ({type(exc).__name__}); check {SETTING} if this lasts")


# -- shared parts -------------------------------------------------------------------------------------------------


class Operations:
    """Counts storage operations by kind; used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        """Count one operation."""
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> Counter[str]:
        """Return a copy of the counts so far."""
        with self._lock:
            return self._counts.copy()

    def total(self) -> int:
        """Return how many operations there were."""
        return self.counts().total()


class ServerClock:
    """The storage's clock as its answers' Date headers show it: the one clock that all instances share.

    Right to about a second. Until the first answer it is the machine's own. An answer that came late says what the time
    was when it left, so it never puts the clock back.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._base = datetime.now(UTC), monotonic_s()
        self._known = False

    def now(self) -> datetime:
        """Return the storage's time, aware UTC."""
        base, at_s = self._base
        return base + timedelta(seconds=self._monotonic_s() - at_s)

    def note(self) -> Callable[[PipelineResponse[Any, Any]], None]:
        """Return what reads the Date header of a call that is made now (the SDK's `raw_response_hook`)."""
        asked_at_s = self._monotonic_s()
        return lambda response: self._read(response, asked_at_s)

    def _read(self, response: PipelineResponse[Any, Any], asked_at_s: float) -> None:
        header = response.http_response.headers.get("Date")
        if not header:
            return
        try:
            shown = parsedate_to_datetime(header).astimezone(UTC) + timedelta(seconds=0.5)
        except ValueError:
            return
        ahead_s = (shown - self.now()).total_seconds()
        late = self._monotonic_s() - asked_at_s > MAX_DATE_ERROR_S
        if not self._known or ahead_s > MAX_DATE_ERROR_S or (ahead_s < -MAX_DATE_ERROR_S and not late):
            self._base, self._known = (shown, self._monotonic_s()), True


class SideBySide:
    """Runs calls that belong together in a few threads, started at first use; each sees the caller's context."""

    def __init__(self, threads: int = SIDE_BY_SIDE) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def map(self, call: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """Call once per item and return the answers in order; after all have ended, raise the first error."""
        if len(items) <= 1:
            return [call(item) for item in items]
        futures = [self.start(partial(call, item)) for item in items]
        errors = [future.exception() for future in futures]
        if error := next((each for each in errors if each is not None), None):
            raise error
        return [future.result() for future in futures]

    def start(self, call: Callable[[], B]) -> Future[B]:
        """Begin one call; whoever does waits for its end."""
        with self._lock:
            pool = self._pool = self._pool or ThreadPoolExecutor(self._threads, thread_name_prefix="storage")
        return pool.submit(contextvars.copy_context().run, call)
