"""Credentials stay with their host: base addresses, redirects, page links and the addresses that callers hand in."""

import contextlib
import dataclasses
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.certificates import make_certificates
from shared.clients import dynamics365
from shared.clients.auth import BasicAuth, ServiceNowSignIn, build_dynamics365_auth, build_servicenow_auth
from shared.clients.http import read_date, read_retry_after
from shared.clients.marketo_auth import build_marketo_auth
from shared.clients.system import Changed
from shared.errors import AccessError, ConfigError, RemoteError, SyncError
from shared.settings import load_settings
from tests.clients.connections import connect, servicenow_bench
from tests.flows.test_webhooks_http import environ

SECRET = "a-secret-that-stays-here"
REDIRECTS = (301, 302, 303, 307, 308)
Answer = tuple[int, dict[str, str], bytes]


@dataclasses.dataclass
class Server:
    """A server on this machine that notes every request."""

    answer: Callable[[str], Answer]
    requests: list[tuple[str, dict[str, str], bytes]] = dataclasses.field(default_factory=list)
    port: int = 0

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}"


@contextlib.contextmanager
def serving(
    answer: Callable[[str], Answer] = lambda _: (200, {}, b"{}"), tls: ssl.SSLContext | None = None
) -> Iterator[Server]:
    """Serve answers by path."""
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append((f"{self.command} {self.path}", dict(self.headers), body))
            status, headers, content = server.answer(self.path)
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
            }.items() | headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = _handle  # noqa: N815  # the names are the library's

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        if tls:
            httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
        server.port = httpd.server_port
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        httpd.shutdown()
        thread.join(5)


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    """Another host, which must never hear from us."""
    with serving(lambda _: (200, {}, json.dumps({"access_token": "x", "value": [], "result": []}).encode())) as server:
        yield server
        assert server.requests == []


def redirect(to: Server, status: int = 302) -> Callable[[str], Answer]:
    return lambda path: (status, {"Location": to.url() + path}, b"")


# -- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("status", REDIRECTS)
def test_redirect_of_a_call_is_not_followed(elsewhere: Server, status: int, method: str) -> None:
    """Neither the credentials nor the record reach another host: the call ends as the connection's fault."""
    with serving(redirect(elsewhere, status)) as vendor:
        http = connect(vendor.url(), auth=BasicAuth("user", SECRET))

        with pytest.raises(AccessError) as caught:
            http.call(method, "/records", action="write", safe=method == "GET", json_body={"title": SECRET})

    assert caught.value.code == "redirected"
    assert len(vendor.requests) == 1


@pytest.mark.parametrize("status", REDIRECTS)
def test_redirect_of_a_sign_in_is_not_followed(elsewhere: Server, status: int) -> None:
    """ServiceNow's and Marketo's token endpoints get client id and secret, and nobody whom they name does."""
    with serving(redirect(elsewhere, status)) as vendor:
        sign_in = ServiceNowSignIn("client_credentials", "id", SECRET)
        servicenow_auth = build_servicenow_auth("servicenow", vendor.url(), sign_in, sleep=lambda _: None)
        marketo_auth = build_marketo_auth("marketo", vendor.url(), "id", SECRET, sleep=lambda _: None)

        for auth in (servicenow_auth, marketo_auth):
            with pytest.raises(RemoteError) as caught:
                auth.headers()
            assert SECRET not in str(caught.value)


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("step", ["openid-configuration", "token"])
def test_redirect_of_microsofts_sign_in_is_not_followed(
    elsewhere: Server, tmp_path: Path, step: str, status: int
) -> None:
    """Neither the discovery nor the request that carries the secret follows a redirect."""
    context, bundle = make_certificates(tmp_path)
    port: list[int] = []

    def answer(path: str) -> Answer:
        if step in path:
            return redirect(elsewhere, status)(path)
        root = f"https://localhost:{port[0]}/tenant"
        found = {"issuer": root, "token_endpoint": f"{root}/oauth2/v2.0/token", "authorization_endpoint": f"{root}/a"}
        return 200, {}, json.dumps(found).encode()

    with serving(answer, context) as login:
        port.append(login.port)
        auth = build_dynamics365_auth(
            "dynamics365", authority=f"https://localhost:{login.port}/tenant", client_id="id", client_credential=SECRET,
            organization_url="https://contoso.crm4.dynamics.com", instance_discovery=False, ca_file=str(bundle),
        )  # fmt: skip

        with pytest.raises(RemoteError) as caught:
            auth.headers()

    assert SECRET not in str(caught.value)
    assert any(step in line for line, _, _ in login.requests)


# -- links that a vendor gives --------------------------------------------------------------------------------------------


def foreign_links(own: str, other: str) -> list[str]:
    """Return links that look like our own host's to one reader or another, and are not."""
    bare_own, bare_other = own.removeprefix("http://"), other.removeprefix("http://")
    return [
        other,
        f"{other}/{own}",
        f"{own}@{bare_other}/",
        f"{own}\\@{bare_other}/",
        f"{own}\t@{bare_other}/",
        f"{own}\n@{bare_other}/",
        f"http://{bare_other}#@{bare_own}/",
        f"http://{bare_other}?@{bare_own}/",
        f"http://{bare_other}\\{bare_own}/",
        f"http:/{bare_other}/",
        f"http:{bare_other}/",
        f"http:///{bare_other}/",
        f"https://{bare_own}/",
        f"http://user:pass@{bare_own}/",
        f"{own}0/",
        f"{own}.evil.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "ftp://127.0.0.1/x",
        "x",
        "",
        " ",
    ]


@pytest.mark.parametrize("index", range(len(foreign_links("http://a", "http://b"))))
def test_page_link_to_another_host_is_not_followed(elsewhere: Server, index: int) -> None:
    """Given by an answer or come back through the queue: refused before anything is sent."""
    with serving() as vendor:
        http = connect(vendor.url(), dynamics365.DIALECT, BasicAuth("user", SECRET))
        link = foreign_links(vendor.url(), elsewhere.url())[index]

        with pytest.raises(AccessError) as caught:
            http.call("GET", link, action="list", safe=True)

    assert caught.value.code == "foreign_link"
    assert vendor.requests == []


@pytest.mark.parametrize(
    "tail",
    ["//127.0.0.1:1/x", "/x\r\nX-Evil: 1", "/x y", "/x\x00", "/x?a=\u202e", "/../../x", "#@x/", "?@x/", "/\udcff"],
)
def test_own_link_with_odd_signs_adds_no_header_and_goes_nowhere_else(elsewhere: Server, tail: str) -> None:
    """Whatever stands behind our own host is sent there as an address, or refused; it never becomes a header."""
    with serving() as vendor:
        http = connect(vendor.url(), auth=BasicAuth("user", SECRET))

        with contextlib.suppress(SyncError):
            http.call("GET", vendor.url() + tail, action="list", safe=True)

    assert not any("X-Evil" in headers for _, headers, _ in vendor.requests)
    assert all(line.startswith("GET /") for line, _, _ in vendor.requests)


def test_next_link_of_an_answer_is_checked_at_once(elsewhere: Server) -> None:
    """A page whose next link leads elsewhere fails, so that the link never reaches the queue."""

    def answer(path: str) -> Answer:
        if "EntityDefinitions" in path:
            return 200, {}, json.dumps({"value": [{"LogicalName": "title", "AttributeType": "String"}]}).encode()
        return 200, {}, json.dumps({"value": [], "@odata.nextLink": f"{elsewhere.url()}{path}"}).encode()

    with serving(answer) as vendor:
        http = connect(vendor.url(), dynamics365.DIALECT, BasicAuth("user", SECRET))
        client = dynamics365.Dynamics365(http, organization_url=vendor.url())

        with pytest.raises(AccessError) as caught:
            client.fetch_page("incident", frozenset({"title"}), Changed(None, None), None)

    assert caught.value.code == "foreign_link"


# -- headers of answers ---------------------------------------------------------------------------------------------------

DATES = (
    "Mon, 99999999999999999999 Jan 2026 00:00:00 GMT",
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Mon, 01 Jan 0001 00:00:00 +2359",
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
    "9" * 5000,
    "²",
    "-1",
    "NaN",
    "1e999",
    "",
)


@given(st.one_of(st.sampled_from(DATES), st.text(max_size=60)))
def test_times_of_an_answer_are_read_or_left(text: str) -> None:
    """No date and no Retry-After, however odd, raises; a pause is never longer than a day nor negative."""
    read_date({"Date": text})

    pause_s = read_retry_after({"Retry-After": text, "Date": DATES[2]})

    assert pause_s is None or 0 <= pause_s <= 86_400


@pytest.mark.parametrize("total", ["²", "9" * 5000, "-1", "1e3", "١", " "])
def test_total_of_a_list_is_a_number_or_nothing(total: str) -> None:
    """A count that is none is no reason to fail: the list is read as if there was none."""
    with servicenow_bench() as bench:
        bench.client.describe("incident")
        facts = {"status": 200, "headers": {"X-Total-Count": total}, "body": '{"result": []}'}
        bench.sim.add_fault("status", path="/table/incident", times=0, **facts)

        page = bench.client.fetch_page("incident", frozenset({"number"}), Changed(None, None), None)
        rows = bench.client.fetch_rows("incident", frozenset({"number"}), ("number",), [("INC1",)])

    assert page.total is None
    assert rows == []


# -- addresses in settings -------------------------------------------------------------------------------------------------

BAD_URLS = (
    "http://contoso.service-now.com",
    "https://evil.example",
    "https://contoso.service-now.com.evil.example",
    "https://evil.example/contoso.service-now.com",
    "https://evil.example?contoso.service-now.com",
    "https://evil.example#contoso.service-now.com",
    "https://contoso.service-now.com@evil.example",
    "https://user:pass@contoso.service-now.com",
    "https://contoso.service-now.com\\@evil.example",
    "https://contoso.service-now.com:443@evil.example",
    "https://evilservice-now.com",
    "https://a.b.service-now.com",
    "https://.service-now.com",
    "https://contoso.service-now.com.",
    "https://contoso。service-now.com",
    "https://сontoso.service-now.com",  # Cyrillic
    "https://127.0.0.1",
    "https://169.254.169.254",
    "https://[::1]",
    "https://localhost",
    "http://localhost:7071",
    "https://contoso.service-now.com/path",
    "https://contoso.service-now.com:port",
    "javascript:alert(1)",
    "file:///etc/passwd",
    "//contoso.service-now.com",
)


@pytest.mark.parametrize("url", BAD_URLS)
@pytest.mark.parametrize("name", ["SERVICENOW__URL", "DYNAMICS365__URL", "DYNAMICS365__AUTHORITY"])
def test_credentials_are_configured_for_vendors_hosts_only(name: str, url: str) -> None:
    """An address outside the vendor's hosts is a settings error, so a planted or mistyped one never gets a secret."""
    with pytest.raises(ConfigError) as caught:
        load_settings(environ("UseDevelopmentStorage=true", **{f"CONNECTIONS__{name}": url}))

    assert f"CONNECTIONS__{name}" in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example",
        "http://10.0.0.1",
        "https://a:b@evil.example",
    ],
)
def test_unlisted_hosts_still_need_https(url: str) -> None:
    """Where other hosts are allowed, plain http remains a matter of this machine alone."""
    changes = {"ALLOW_UNLISTED_HOSTS": "true", "CONNECTIONS__SERVICENOW__URL": url}

    with pytest.raises(ConfigError):
        load_settings(environ("UseDevelopmentStorage=true", **changes))


def test_one_connection_may_leave_the_list_alone() -> None:
    """A custom address of one system is allowed for it and for no other."""
    custom = {
        "CONNECTIONS__SERVICENOW__URL": "https://support.contoso.example",
        "CONNECTIONS__SERVICENOW__UNLISTED_HOST": "true",
    }

    settings = load_settings(environ("UseDevelopmentStorage=true", **custom))
    with pytest.raises(ConfigError):
        load_settings(
            environ("UseDevelopmentStorage=true", **custom, CONNECTIONS__DYNAMICS365__URL="https://evil.example")
        )

    assert settings.connection("servicenow").host == "support.contoso.example"
