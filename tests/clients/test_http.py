"""One connection: what each outcome means, and what a call never does."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
import responses
import urllib3

from shared import attempt
from shared.clients.http import Answer, Dialect, HttpConnection, Meaning, Reading, read_retry_after
from shared.errors import (
    AccessError,
    AmbiguousWriteError,
    RateLimitedError,
    RejectedError,
    RemoteError,
    TransientError,
)
from tests.clients.connections import Permits, connect

URL = "https://vendor.example"


class Renewable:
    """Credentials that change with every renewal."""

    def __init__(self) -> None:
        self.renewed = 0

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer token-{self.renewed}"}

    def renew(self, refused: Any) -> None:
        self.renewed += 1


def ask(http: HttpConnection, method: str = "GET", safe: bool = True, **facts: Any) -> Answer:
    return http.call(method, "/records", action="read records", safe=safe, **facts)


def refused(method: str = "GET", safe: bool = True, http: HttpConnection | None = None, **answer: Any) -> RemoteError:
    """Return the error that a stubbed answer becomes."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as stub:
        stub.add(method, f"{URL}/records", **answer)
        with pytest.raises(RemoteError) as caught:
            ask(http or connect(URL), method, safe)
    return caught.value


@pytest.mark.parametrize(
    ("status", "read", "create"),
    [
        (301, AccessError, AccessError),
        (400, RejectedError, RejectedError),
        (401, AccessError, AccessError),
        (403, AccessError, AccessError),
        (404, RejectedError, RejectedError),
        (408, TransientError, AmbiguousWriteError),
        (413, RejectedError, RejectedError),
        (423, TransientError, TransientError),
        (429, RateLimitedError, RateLimitedError),
        (500, TransientError, AmbiguousWriteError),
        (502, TransientError, AmbiguousWriteError),
        (503, TransientError, AmbiguousWriteError),
        (504, TransientError, AmbiguousWriteError),
    ],
)
def test_status_becomes_the_error_of_what_happens_next(
    status: int, read: type[RemoteError], create: type[RemoteError]
) -> None:
    """A status that may hide a success is ambiguous for a create and transient for a read."""
    answer = {"status": status, "json": {"oops": True}}

    errors = refused(**answer), refused("POST", safe=False, **answer)

    assert [type(error) for error in errors] == [read, create]
    assert [error.status for error in errors] == [status, status]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("html", {"body": "<html>asleep</html>", "content_type": "text/html"}),
        ("empty", {"body": ""}),
        ("cut json", {"body": '{"result": [{"a": '}),
        ("scalar", {"body": "17"}),
        ("not utf-8", {"body": b'{"a": "\xff"}'}),
        ("202", {"status": 202, "body": ""}),
        ("204", {"status": 204, "body": ""}),
    ],
)
def test_success_that_is_none_is_not_believed(name: str, answer: dict[str, Any]) -> None:
    """A 2xx without the data that was asked for is a lost answer."""
    read, create = refused(**answer), refused("POST", safe=False, **answer)

    assert type(read) is TransientError
    assert type(create) is AmbiguousWriteError


@pytest.mark.parametrize(
    ("name", "cause", "create"),
    [
        ("refused", urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.NewConnectionError(None, "refused")), TransientError),
        ("no such name", urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.NameResolutionError("h", None, socket.gaierror())), TransientError),
        ("bad certificate", urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED")), TransientError),
        ("tls broke off", urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.SSLError("EOF")), AmbiguousWriteError),
        ("reset", urllib3.exceptions.ProtocolError("aborted", ConnectionResetError()), AmbiguousWriteError),
    ],
)  # fmt: skip
def test_error_before_the_request_left_is_safe_for_a_create(
    name: str, cause: Exception, create: type[RemoteError]
) -> None:
    """Only what broke after the request may have left makes a create ambiguous."""
    wrapped = requests.exceptions.ConnectionError(cause)

    errors = refused(body=wrapped), refused("POST", safe=False, body=wrapped)

    assert [type(error) for error in errors] == [TransientError, create]


def test_timeouts_before_and_after_connecting_differ_for_a_create() -> None:
    """A connect time-out has sent nothing; a read time-out may have."""
    connecting = refused("POST", safe=False, body=requests.exceptions.ConnectTimeout())
    reading = refused("POST", safe=False, body=requests.exceptions.ReadTimeout())

    assert type(connecting) is TransientError
    assert type(reading) is AmbiguousWriteError
    assert type(refused(body=requests.exceptions.ReadTimeout())) is TransientError


@responses.activate
def test_harmless_call_is_repeated_twice_and_each_time_with_a_permit() -> None:
    """A read survives two failures in a row within the call; every attempt holds its own permit."""
    permits, waits = Permits(), []
    for status in (503, 500):
        responses.get(f"{URL}/records", status=status)
    responses.get(f"{URL}/records", json={"ok": 1})

    answer = ask(connect(URL, permits=permits, sleep=waits.append))

    assert answer.data == {"ok": 1}
    assert (permits.taken, permits.held, len(responses.calls)) == (3, 0, 3)
    assert len(waits) == 2
    assert max(waits) < 3


@responses.activate
def test_create_is_never_repeated() -> None:
    """A call that is not harmless is sent once."""
    responses.post(f"{URL}/records", status=503)

    with pytest.raises(AmbiguousWriteError):
        ask(connect(URL), "POST", safe=False, json_body={"a": 1})

    assert len(responses.calls) == 1


@responses.activate
def test_call_does_not_start_when_its_answer_could_not_be_awaited() -> None:
    """Less time than connect and read time-out together: put back, nothing sent."""
    responses.get(f"{URL}/records", json={"ok": 1})
    http = connect(URL, connect_s=2.0, read_s=60.0)

    with attempt.attempt(ends_at_s=time.monotonic() + 30), pytest.raises(RateLimitedError) as caught:
        ask(http)

    assert (caught.value.code, caught.value.retry_after_s) == ("no_time_left", 0.0)
    assert len(responses.calls) == 0


@responses.activate
def test_repeat_does_not_go_beyond_the_deadline() -> None:
    """The last failure is told when the time for another attempt is gone, not that time is short."""
    responses.get(f"{URL}/records", status=503)
    http = connect(URL, connect_s=1.0, read_s=9.0)

    with attempt.attempt(ends_at_s=time.monotonic() + 10.1), pytest.raises(TransientError):
        ask(http)

    assert len(responses.calls) == 1


@responses.activate
def test_token_is_renewed_once_and_the_call_repeated_once() -> None:
    """401 renews and repeats, also a create: it was not carried out."""
    responses.post(f"{URL}/records", status=401)
    responses.post(f"{URL}/records", json={"ok": 1})

    ask(connect(URL, auth=(auth := Renewable())), "POST", safe=False, json_body={})

    assert auth.renewed == 1
    assert [call.request.headers["Authorization"] for call in responses.calls] == ["Bearer token-0", "Bearer token-1"]


@responses.activate
def test_token_refused_again_is_an_access_error() -> None:
    """A second 401 is the connection's fault."""
    responses.get(f"{URL}/records", status=401)

    with pytest.raises(AccessError) as caught:
        ask(connect(URL, auth=(auth := Renewable())))

    assert (caught.value.status, auth.renewed, len(responses.calls)) == (401, 1, 2)


def test_retry_after_pauses_the_entire_connection() -> None:
    """The vendor's seconds go to the permits and into the error."""
    http = connect(URL, permits=(permits := Permits()))

    error = refused(http=http, status=429, headers={"Retry-After": "23"})

    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s == 23
    assert permits.pauses == [23]


def test_pause_without_a_named_length_grows_once_per_refusal() -> None:
    """Calls that were refused together count once; the next refusal after the pause doubles it."""
    clock = iter([0.0, 0.5, 10.0, 100.0])
    http = connect(URL, permits=(permits := Permits()), now_s=lambda: next(clock))

    for _ in range(4):
        refused(http=http, status=429)

    assert [round(pause / base, 2) for pause, base in zip(permits.pauses, (2, 2, 4, 8), strict=True)] == pytest.approx(
        [1, 1, 1, 1], abs=0.26
    )


def test_service_unavailable_with_retry_after_pauses_too() -> None:
    """A 503 that names a time is obeyed by all workers, and is still a failure of this call."""
    http = connect(URL, permits=(permits := Permits()))

    error = refused("POST", safe=False, http=http, status=503, headers={"Retry-After": "7"})

    assert isinstance(error, AmbiguousWriteError)
    assert permits.pauses == [7]


def test_refused_certificate_says_what_to_set() -> None:
    """Nothing mends a certificate that is not trusted but a person: the setting that does stands in the message."""
    cause = urllib3.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate")

    error = refused(body=requests.exceptions.SSLError(urllib3.exceptions.MaxRetryError(None, "/", cause)))

    assert (type(error), error.code) == (TransientError, "untrusted_certificate")
    assert "REQUESTS_CA_BUNDLE" in error.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("Mon, 02 Mar 2026 12:01:30 GMT", 90.0),
        ("Mon, 02 Mar 2026 11:00:00 GMT", 0.0),
        ("999999999", 86400.0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("٣", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(text: str, expected: float | None) -> None:
    """Both forms of the header count, bounded by a day; anything else is as good as absent."""
    now = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)

    assert read_retry_after({"Retry-After": text}, lambda: now) == expected


def test_retry_after_date_is_measured_on_the_vendors_clock() -> None:
    """A vendor whose clock is off still gets the pause it meant."""
    headers = {"Retry-After": "Mon, 02 Mar 2026 12:01:30 GMT", "Date": "Mon, 02 Mar 2026 12:01:00 GMT"}

    assert read_retry_after(headers) == 30.0


def test_vendor_reads_its_own_answers_first() -> None:
    """A dialect may find a failure in a 200, and the code and sentence are its own."""
    dialect = Dialect("Vendor", lambda _: Reading(Meaning.EXISTS, "exists_already", "has it already"))

    error = refused("POST", safe=False, http=connect(URL, dialect), status=200, json={"ok": 1})

    assert isinstance(error, AmbiguousWriteError)
    assert error.code == "exists_already"
    assert "Vendor has it already" in error.message


@responses.activate
def test_error_texts_hold_neither_values_nor_tokens() -> None:
    """Query, body and Authorization never reach a message or a chained exception; the path does as a fact."""
    secret = "ada@customer.example"
    responses.get(f"{URL}/records", body=requests.exceptions.ConnectionError(secret))
    responses.get(f"{URL}/records", status=400, json={"error": secret})

    errors = []
    for _ in range(2):
        with pytest.raises(RemoteError) as caught:
            connect(URL, auth=Renewable()).call(
                "GET", "/records", action="read records", safe=False, query={"email": secret}
            )
        errors.append(caught.value)

    for error in errors:
        assert secret not in str(error)
        assert "token-" not in str(error)
        assert (error.__cause__, error.__context__) == (None, None)
        assert error.path == "/records"
    assert secret in errors[1].body_excerpt


@responses.activate
def test_correlation_id_and_request_id_travel() -> None:
    """Our id goes out where the vendor accepts one; the vendor's comes back in the error."""
    dialect = Dialect("Vendor", request_id_header="x-request", correlation_header="x-correlation")
    responses.get(f"{URL}/records", status=400, headers={"X-Request": "r-17"})

    with attempt.attempt(correlation_id="c-1"), pytest.raises(RejectedError) as caught:
        ask(connect(URL, dialect))

    assert responses.calls[0].request.headers["x-correlation"] == "c-1"
    assert caught.value.request_id == "r-17"
    assert "r-17" in caught.value.message


@pytest.mark.parametrize("link", ["https://elsewhere.example/x", "http://vendor.example/x", "https://vendor.example.evil/x", "https://vendor.example@evil.example/x", "//evil.example/x", "ftp:x"])  # fmt: skip
def test_link_to_another_host_is_not_followed(link: str) -> None:
    """Our credentials go to our host only, whatever an answer says."""
    with responses.RequestsMock(), pytest.raises((AccessError, RemoteError)):
        connect(URL).call("GET", link, action="read", safe=False)


# -- over a real socket ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def raw_server(*answers: bytes, drip_s: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """Serve fixed bytes, one answer per request on one connection at a time; yield address and requests seen."""
    seen: list[bytes] = []
    connections: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        left = list(answers)
        with contextlib.suppress(OSError):
            while left:
                peer, _ = listener.accept()
                connections.append(peer)
                while left and (data := peer.recv(65536)):
                    seen.append(data)
                    answer = left.pop(0)
                    for part in [answer] if not drip_s else [answer[i : i + 1] for i in range(len(answer))]:
                        peer.sendall(part)
                        if drip_s:
                            time.sleep(drip_s)
                    if b"keep" not in answer:
                        break
                peer.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        for sock in [listener, *connections]:
            sock.close()
        thread.join(5)


def plain(body: bytes, length: int | None = None, *headers: bytes) -> bytes:
    """Write an HTTP answer."""
    size = len(body) if length is None else length
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % size, *headers, b"", body])


def test_body_shorter_than_announced_is_a_lost_answer() -> None:
    """A body that ends early is never taken for an answer, even where its beginning parses."""
    with raw_server(plain(b'{"a": 1}', 500)) as (url, _):
        http = connect(url)

        with pytest.raises(AmbiguousWriteError) as caught:
            ask(http, "POST", safe=False, json_body={})

    assert caught.value.code == "connection_cut"


def test_connection_cut_without_an_answer_is_ambiguous_for_a_create() -> None:
    """The vendor took the request and closed."""
    with raw_server(b"") as (url, _):
        http = connect(url)

        with pytest.raises(AmbiguousWriteError):
            ask(http, "POST", safe=False, json_body={})


def test_refused_connection_is_safe_for_a_create() -> None:
    """Nobody listens: nothing left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(TransientError) as caught:
        ask(connect(f"http://127.0.0.1:{port}"), "POST", safe=False, json_body={})

    assert caught.value.code == "unreachable"


def test_dripping_answer_ends_with_the_whole_timeout() -> None:
    """Each read is within its time-out, and still the call ends."""
    with raw_server(plain(b'{"a": "' + b"x" * 400 + b'"}'), drip_s=0.01) as (url, _):
        http = connect(url, connect_s=0.5, read_s=1.0)

        with pytest.raises(AmbiguousWriteError) as caught:
            ask(http, "POST", safe=False, json_body={})

    assert caught.value.code == "no_answer"


def test_connection_is_kept_and_cookies_are_not() -> None:
    """The second call goes over the same connection and sends no cookie back."""
    answer = plain(b'{"a": 1}', None, b"Set-Cookie: JSESSIONID=1; Path=/", b"X: keep")
    with raw_server(answer, answer) as (url, seen):
        http = connect(url)

        for _ in range(2):
            ask(http)
        http.close()

    assert len(seen) == 2
    assert b"cookie" not in seen[1].lower()


def test_page_link_goes_out_as_it_came() -> None:
    """A link of the vendor's is neither decoded nor encoded again."""
    link = "/records?$skiptoken=%3Ccookie%20pagenumber=%222%22%20x=%253c%2F%3E&$filter=a%20eq%20'b'"
    with raw_server(plain(b"{}")) as (url, seen):
        http = connect(url)

        http.call("GET", url + link, action="list", safe=True)
        http.close()

    assert seen[0].split(b" ")[1].decode() == link
