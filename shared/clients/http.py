"""One HTTP connection to a vendor: a permit and a deadline for every call, and every outcome as an error of the tree.

A client says what a call does and whether it is harmless to repeat (`safe`); this module decides what an answer, or
its absence, means. It speaks through requests' transport adapter and not through a Session: so there is no cookie jar
(ServiceNow runs the calls of one session one after another), no redirect is followed, no netrc replaces our headers,
and threads share nothing but the connection pool.
"""

import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, NoReturn, Protocol
from urllib.parse import quote, urlencode, urlsplit

import requests
import tenacity
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from shared import attempt
from shared.clients.breaker import OUTAGES, Breaker
from shared.clients.system import Permits
from shared.errors import (
    AccessError,
    AmbiguousWriteError,
    RateLimitedError,
    RejectedError,
    RemoteError,
    TransientError,
)

USER_AGENT = "Concord/1.0"
MAX_BODY_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 24 * 3600.0
MIN_PAUSE_S, MAX_DEFAULT_PAUSE_S = 1.0, 60.0  # a pause that the vendor does not name doubles in between
UNTRUSTED = (
    "untrusted_certificate",
    "shows a certificate that is not trusted here: check the address, or name the file that it can be checked by in REQUESTS_CA_BUNDLE",
)
REPEATS = 2  # of a harmless call, within the call; longer waits are the queue's business
REPEAT_WITHIN_S = 10.0  # a call that failed slowly is not repeated here


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: headers by any case, and the body as JSON where it is JSON."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    data: Any = None  # parsed JSON; None when empty or not JSON


class Meaning(StrEnum):
    """What an answer means for the call, named after what happens next."""

    LOST = "lost"  # may have taken effect: again when harmless, looked up when not
    NOT_DONE = "not_done"  # has certainly not taken effect: again
    LIMITED = "limited"  # has not taken effect: after a pause of the entire connection
    EXISTS = "exists"  # the vendor says that the record is there already
    REJECTED = "rejected"  # this record
    NO_ACCESS = "no_access"  # this connection
    TOKEN_REFUSED = "token_refused"  # noqa: S105  # once more with a new token


@dataclasses.dataclass(frozen=True)
class Reading:
    """An answer that is not a success, as its vendor means it."""

    meaning: Meaning
    code: str = ""  # reason code of the error; empty: the error's own
    reason: str = ""  # what happened, to follow "ServiceNow ", without any value of a record
    pause_s: float | None = None  # of LIMITED, where the vendor has no Retry-After; None: a short one that grows


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How one vendor speaks HTTP."""

    system: str  # the name people know: "ServiceNow"
    read_answer: Callable[[Answer], Reading | None] = lambda _: None  # None: as its status says
    request_id_header: str = ""  # of answers
    request_id_member: str = ""  # of answers that are JSON objects
    correlation_header: str = ""  # of requests, where the vendor accepts one


class Auth(Protocol):
    """What proves to a vendor who is calling."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a call, from a valid token. Raises AccessError, TransientError or RateLimitedError."""

    def renew(self, refused: Mapping[str, str]) -> None:
        """Replace the token that was refused, unless another thread has done so already."""


class NoAuth:
    """Calls without credentials: token endpoints."""

    def headers(self) -> Mapping[str, str]:
        return {}

    def renew(self, refused: Mapping[str, str]) -> None:
        """Do nothing: there is nothing to renew."""


@dataclasses.dataclass(frozen=True)
class _Call:
    method: str
    url: str  # complete and encoded
    path: str  # without query: what errors and logs may show
    action: str  # what people read: "read incident"
    safe: bool
    wants_json: bool
    headers: Mapping[str, str]
    body: bytes | None


class HttpConnection:
    """The calls of one connection; used by many threads at once."""

    def __init__(
        self,
        connection: str,
        base_url: str,
        auth: Auth,
        permits: Permits,
        dialect: Dialect,
        *,
        connect_s: float = 10.0,
        read_s: float = 60.0,
        pool_size: int = 64,
        ca_file: str | None = None,
        user_agent: str = USER_AGENT,
        sleep: Callable[[float], None] = time.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.connection = connection
        self.base_url = base_url.rstrip("/")
        self.dialect = dialect
        self.whole_s = connect_s + read_s
        self._auth, self._permits, self._sleep, self._now_s = auth, permits, sleep, now_s
        self._timeout, self._user_agent = (connect_s, read_s), user_agent
        self._adapter = HTTPAdapter(pool_connections=2, pool_maxsize=pool_size)
        # Proxies and CA bundle of the environment, read once: requests would do so at every call.
        environment = requests.Session().merge_environment_settings(self.base_url, {}, True, ca_file, None)
        self._proxies: dict[str, str] = dict(environment["proxies"])
        self._verify = environment["verify"] or True
        self._lock = threading.Lock()
        self._default_pause_s, self._pause_ends_at_s = MIN_PAUSE_S, 0.0
        self._breaker = Breaker(permits, now_s)

    def call(
        self,
        method: str,
        target: str,
        *,
        action: str,
        safe: bool,
        query: Mapping[str, str] | None = None,
        json_body: Any = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        wants_json: bool = True,
    ) -> Answer:
        """Call the vendor and return its answer if it is a success.

        `target` is a path below the base URL, or a complete URL that the vendor gave us: followed as it is, and only
        to the same host. `safe` says that the call is harmless to repeat; only then is it repeated, briefly.
        Raises RemoteError and its kinds; RateLimitedError with code `no_time_left` when the attempt could not wait
        for the answer.
        """
        url = self._resolve(target, query)
        body, content_type = _encode_body(json_body, form)
        all_headers = {"Accept": "application/json", "User-Agent": self._user_agent} | content_type
        if self.dialect.correlation_header and (correlation_id := attempt.current().correlation_id):
            all_headers[self.dialect.correlation_header] = correlation_id
        path = urlsplit(url).path
        call = _Call(method, url, path, action, safe, wants_json, all_headers | dict(headers or {}), body)
        if not safe:
            return self._call_once(call)
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=self._stops_repeating,
            wait=tenacity.wait_exponential(multiplier=0.2, max=2.0) + tenacity.wait_random(0.0, 0.2),
            sleep=self._sleep,
            reraise=True,
        )(self._call_once, call)

    def expect(self, calls: int) -> None:
        """Get ready for so many calls that are made now, side by side."""
        self._permits.expect(calls)

    def close(self) -> None:
        """Close the pool's idle connections."""
        self._adapter.close()

    def check_own_host(self, url: str) -> None:
        """Raise AccessError when a URL that the vendor gave leads to another host than our own."""
        if urlsplit(url)[:2] != urlsplit(self.base_url)[:2]:
            raise AccessError(
                f"{self.dialect.system} gave a link to another host, which is not followed ({self.connection}). "
                "Check the base URL of the connection.",
                code="foreign_link",
                connection=self.connection,
            )

    def _resolve(self, target: str, query: Mapping[str, str] | None) -> str:
        if not target.startswith("/"):
            self.check_own_host(target)
            return target
        return self.base_url + quote(target, safe="/()',=:@$") + (f"?{encode_query(query)}" if query else "")

    def _stops_repeating(self, state: tenacity.RetryCallState) -> bool:
        too_late = attempt.current().left_s() - state.upcoming_sleep < self.whole_s
        return state.attempt_number > REPEATS or (state.seconds_since_start or 0.0) > REPEAT_WITHIN_S or too_late

    # -- one call -----------------------------------------------------------------------------------------------------

    def _call_once(self, call: _Call) -> Answer:
        answer, reading = self._send(call, used := self._auth.headers())
        if reading is not None and reading.meaning is Meaning.TOKEN_REFUSED:
            self._auth.renew(used)
            if (renewed := self._auth.headers()) != used:
                answer, reading = self._send(call, renewed)
        if reading is None:
            return answer
        return self._fail(call, answer, reading)

    def _send(self, call: _Call, auth_headers: Mapping[str, str]) -> tuple[Answer, Reading | None]:
        self._check_time(call)
        request = _build_request(call, auth_headers)
        with self._permits.hold(ahead=call.method == "GET"):  # many writes wait for what a page still has to look up
            self._check_time(call)  # a permit may have taken a while
            answer = self._exchange(call, request)
        answer = dataclasses.replace(answer, data=_parse_json(answer.body))  # others have the permit meanwhile
        if answer.status in OUTAGES:
            self._breaker.unanswered()
        else:
            self._breaker.answered()
        reading = self.dialect.read_answer(answer) or read_status(answer, wants_json=call.wants_json)
        if reading is None:
            self._default_pause_s = MIN_PAUSE_S
        return answer, reading

    def _check_time(self, call: _Call) -> None:
        if attempt.current().left_s() < self.whole_s:
            raise RateLimitedError(
                f"Not enough time was left to {call.action} in {self.dialect.system}; the work is put back.",
                code="no_time_left",
                retry_after_s=0.0,
                **self._facts(call),
            )

    def _exchange(self, call: _Call, request: requests.PreparedRequest) -> Answer:
        """Send a request and return its answer, not parsed yet."""
        ends_at_s = time.monotonic() + self.whole_s
        try:
            response = self._adapter.send(
                request, stream=True, timeout=self._timeout, verify=self._verify, proxies=self._proxies
            )
            try:
                body = _read_body(response, ends_at_s)
            finally:
                response.close()  # gives the connection back when the body was read to its end, else closes it
            return Answer(response.status_code, response.headers, body)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            reading = read_exception(exc)
        self._breaker.unanswered()
        # Outside of the except block: the cause's text holds the URL, and with it the values that were asked for.
        return self._fail(call, None, reading)

    # -- errors -------------------------------------------------------------------------------------------------------

    def _fail(self, call: _Call, answer: Answer | None, reading: Reading) -> NoReturn:
        pause_s = self._pause_if_asked(answer, reading)
        system, facts = self.dialect.system, self._facts(call, answer)
        where = f"({self.connection}: {call.action}{', request ' + str(i) if (i := facts['request_id']) else ''})"
        what = f"{system} {reason}" if (reason := reading.reason) else f"{system} answered {facts['status']}"
        code = reading.code or None
        error: RemoteError
        match reading.meaning:
            case Meaning.LIMITED:
                error = RateLimitedError(
                    f"{what} {where}. Calls to it rest for {pause_s:.0f} s.", code=code, retry_after_s=pause_s, **facts
                )
            case Meaning.LOST if not call.safe:
                error = AmbiguousWriteError(
                    f"{what}, so the write may have taken effect {where}. It is looked up before anything is repeated.",
                    code=code,
                    **facts,
                )
            case Meaning.LOST | Meaning.NOT_DONE:
                error = TransientError(f"{what} {where}. It is tried again later.", code=code, **facts)
            case Meaning.EXISTS:
                error = AmbiguousWriteError(f"{what} {where}. The record is looked up.", code=code, **facts)
            case Meaning.NO_ACCESS | Meaning.TOKEN_REFUSED:
                error = AccessError(
                    f"{what} {where}. Check the connection's address, credentials and roles.", code=code, **facts
                )
            case Meaning.REJECTED:
                error = RejectedError(f"{what} {where}. Another attempt would be refused too.", code=code, **facts)
        raise error

    def _pause_if_asked(self, answer: Answer | None, reading: Reading) -> float:
        limited = reading.meaning is Meaning.LIMITED
        named_s = read_retry_after(answer.headers) if answer and (limited or answer.status == 503) else None
        if named_s is None:
            named_s = reading.pause_s
        if named_s is None and not limited:
            return 0.0
        pause_s = max(named_s, MIN_PAUSE_S) if named_s is not None else self._grow_pause()
        self._permits.pause(pause_s)
        return pause_s

    def _grow_pause(self) -> float:
        now_s = self._now_s()
        with self._lock:
            if now_s >= self._pause_ends_at_s:  # calls that were under way together are one refusal
                self._default_pause_s = min(self._default_pause_s * 2, MAX_DEFAULT_PAUSE_S)
                self._pause_ends_at_s = now_s + self._default_pause_s
            return self._default_pause_s * random.uniform(0.75, 1.25)

    def _facts(self, call: _Call, answer: Answer | None = None) -> dict[str, Any]:
        request_id = answer.headers.get(self.dialect.request_id_header, "") if answer else ""
        if answer and isinstance(answer.data, dict):
            request_id = request_id or str(answer.data.get(self.dialect.request_id_member) or "")
        return {
            "connection": self.connection,
            "method": call.method,
            "path": call.path,
            "status": answer.status if answer else 0,
            "request_id": request_id,
            "body_excerpt": answer.body[:2000].decode("utf-8", "replace") if answer else "",
        }


STATUS_READINGS = {
    401: Reading(Meaning.TOKEN_REFUSED, "credentials_refused", "refused the credentials (401)"),
    403: Reading(Meaning.NO_ACCESS, "", "refused access (403)"),
    404: Reading(Meaning.REJECTED, "not_found", "has no such record (404)"),
    408: Reading(Meaning.LOST, "", "gave up on the call (408)"),
    410: Reading(Meaning.REJECTED, "not_found", "has no such record any more (410)"),
    423: Reading(Meaning.NOT_DONE, "locked", "has locked the record (423)"),
    425: Reading(Meaning.NOT_DONE, "", "did not take the call yet (425)"),
    429: Reading(Meaning.LIMITED, "", "asks for fewer calls (429)"),
}

# -- reading what came back, pure ---------------------------------------------------------------------------------------


def read_status(answer: Answer, *, wants_json: bool) -> Reading | None:
    """Read an answer by HTTP alone; None: a success."""
    status = answer.status
    if 200 <= status < 300:
        return _read_body_of_success(answer) if wants_json else None
    if 300 <= status < 400:
        return Reading(Meaning.NO_ACCESS, "redirected", f"answered {status}: a redirect, which is not followed")
    if status >= 500:
        return Reading(Meaning.LOST, "", f"failed ({status})")
    return STATUS_READINGS.get(status) or Reading(Meaning.REJECTED, "", f"refused the call ({status})")


def read_exception(exc: Exception) -> Reading:
    """Read the absence of an answer; an error before the request left is safe for creates too."""
    root = _root_of(exc)
    if is_untrusted(exc):
        return Reading(Meaning.NOT_DONE, *UNTRUSTED)
    if _never_left(exc, root):
        return Reading(Meaning.NOT_DONE, "unreachable", f"could not be reached ({type(root).__name__})")
    if isinstance(exc, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return Reading(Meaning.LOST, "no_answer", "did not answer in time")
    return Reading(Meaning.LOST, "connection_cut", f"broke off before its answer was complete ({type(root).__name__})")


def is_untrusted(exc: Exception) -> bool:
    """Tell whether a certificate was refused: of TLS errors the one that is surely before the request."""
    root = _root_of(exc)
    return isinstance(root, urllib3.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(root)


def read_retry_after(
    headers: Mapping[str, str], now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> float | None:
    """Return the seconds of a Retry-After header, given in seconds or as a date; None when absent or not readable."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        until = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    # A date is on the vendor's clock: measured from the answer's own Date where it has one.
    return min(max((until - (read_date(headers) or now())).total_seconds(), 0.0), MAX_RETRY_AFTER_S)


def read_date(headers: Mapping[str, str]) -> datetime | None:
    """Return the vendor's time from a Date header, aware UTC; None when absent or not readable."""
    try:
        date = parsedate_to_datetime(headers.get("Date", ""))
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def encode_query(query: Mapping[str, str]) -> str:
    """Encode query parameters, once; only characters that cannot end a parameter or a literal stay as they are."""
    return urlencode(query, quote_via=quote, safe="$():'")


def _read_body_of_success(answer: Answer) -> Reading | None:
    if answer.data is not None:
        return None
    if not answer.body.strip():
        return Reading(Meaning.LOST, "empty_answer", f"answered {answer.status} without content")
    if "html" in answer.headers.get("Content-Type", "").lower() or answer.body.lstrip().startswith(b"<"):
        return Reading(
            Meaning.LOST, "html_answer", "answered with a web page instead of data (asleep, or under maintenance?)"
        )
    return Reading(Meaning.LOST, "unreadable_answer", "answered with data that is cut or not JSON")


def _root_of(exc: Exception) -> Exception:
    root = exc.args[0] if exc.args and isinstance(exc.args[0], Exception) else exc
    return root.reason or root if isinstance(root, urllib3.exceptions.MaxRetryError) else root


def _never_left(exc: Exception, root: Exception) -> bool:
    if isinstance(exc, requests.exceptions.ConnectTimeout | requests.exceptions.ProxyError):
        return True
    return isinstance(root, urllib3.exceptions.NewConnectionError)  # refused, no route, no such name


def _build_request(call: _Call, auth_headers: Mapping[str, str]) -> requests.PreparedRequest:
    request = requests.PreparedRequest()
    request.prepare_method(call.method)
    request.url = call.url  # as it is: a page link must not be encoded again
    request.headers = CaseInsensitiveDict(
        {"Accept-Encoding": "gzip, deflate"} | dict(call.headers) | dict(auth_headers)
    )
    request.prepare_body(call.body, None)
    return request


def _read_body(response: requests.Response, ends_at_s: float) -> bytes:
    body = bytearray()
    while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
        body += chunk
        left_s = ends_at_s - time.monotonic()
        if left_s <= 0:  # a vendor that drips keeps every single read within its time-out
            raise TimeoutError("the answer took too long")
        if len(body) > MAX_BODY_BYTES:
            raise OSError("the answer is too large")
    return bytes(body)


def _encode_body(json_body: Any, form: Mapping[str, str] | None) -> tuple[bytes | None, dict[str, str]]:
    if form is not None:
        return urlencode(form).encode(), {"Content-Type": "application/x-www-form-urlencoded"}
    if json_body is not None:
        return json.dumps(json_body).encode(), {"Content-Type": "application/json"}
    return None, {}


def _parse_json(body: bytes) -> Any:
    if body.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # also bytes that are not UTF-8
        return None
