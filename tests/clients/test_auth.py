"""Tokens: fetched once, renewed early, replaced once when refused; refusals that name the cause."""

import base64
import threading
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from sandbox.certificates import make_certificates
from sandbox.dynamics365 import DEFAULT_CLIENT, DEFAULT_SECRET, DEFAULT_TENANT, EntraLogin
from sandbox.dynamics365_login import TokenStore
from sandbox.servicenow import CLIENT_ID, CLIENT_SECRET
from sandbox.simulator import FaultKind, serve_in_thread
from shared import attempt
from shared.clients.auth import (
    BasicAuth,
    ServiceNowSignIn,
    Token,
    TokenAuth,
    build_dynamics365_auth,
    build_servicenow_auth,
)
from shared.errors import AccessError, RateLimitedError, RemoteError, TransientError
from tests.clients.connections import oauth, servicenow_bench

ORGANIZATION = "https://contoso.crm4.dynamics.example"


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Source:
    """Gives out numbered tokens that live for a while, or fails."""

    def __init__(self, clock: Clock, lifetime_s: float = 1800) -> None:
        self.clock, self.lifetime_s, self.given = clock, lifetime_s, 0
        self.failure: RemoteError | None = None
        self.told: list[bool] = []

    def __call__(self, refused: bool) -> Token:
        self.told.append(refused)
        if self.failure:
            raise self.failure
        self.given += 1
        return Token.bearer({"access_token": f"t{self.given}", "expires_in": self.lifetime_s}, self.clock())


def held(auth: TokenAuth) -> str:
    return auth.headers()["Authorization"]


def test_token_is_fetched_once_and_renewed_before_it_expires() -> None:
    """A token of half an hour is renewed a minute early."""
    auth = TokenAuth(source := Source(clock := Clock()), clock)

    seen = []
    for at_s in (0, 1700, 1739, 1741):
        clock.s = at_s
        seen.append(held(auth))

    assert seen == ["Bearer t1", "Bearer t1", "Bearer t1", "Bearer t2"]
    assert source.given == 2


def test_small_remaining_life_is_used_for_half() -> None:
    """The vendor gives the same token again while it lives: asking at every call would gain nothing."""
    auth = TokenAuth(source := Source(clock := Clock(), lifetime_s=10), clock)

    for at_s in (0, 4, 4.9, 5.1):
        clock.s = at_s
        auth.headers()

    assert source.given == 2


@pytest.mark.parametrize("lifetime", [None, "soon", -5, "1799"])
def test_lifetime_that_is_odd_does_not_stop_anything(lifetime: object) -> None:
    """Only what can be read as seconds counts; the rest lives for a default."""
    token = Token.bearer({"access_token": "t", "expires_in": lifetime}, 100.0)

    assert 100.0 <= token.renew_at_s <= token.expires_at_s


def test_failed_early_renewal_keeps_the_good_token() -> None:
    """While the token lives, a failure to renew is nobody's problem; it is tried again after a while."""
    auth = TokenAuth(source := Source(clock := Clock()), clock)
    auth.headers()
    source.failure = TransientError("login down")

    seen = []
    for at_s in (1750, 1760, 1781):
        clock.s = at_s
        seen.append(held(auth))

    assert seen == ["Bearer t1"] * 3
    assert len(source.told) == 3


def test_expired_token_is_not_used_when_renewal_fails() -> None:
    """Without a valid token there is no call."""
    auth = TokenAuth(source := Source(clock := Clock()), clock)
    auth.headers()
    source.failure, clock.s = TransientError("login down"), 1801.0

    with pytest.raises(TransientError):
        auth.headers()


def test_refused_token_is_replaced_once_for_all_threads() -> None:
    """Many calls meet 401 together; one asks for a new token, and it is told that the last was refused."""
    auth = TokenAuth(source := Source(clock := Clock()), clock)
    refused = auth.headers()

    threads = [threading.Thread(target=auth.renew, args=(refused,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)

    assert source.told == [False, True]
    assert held(auth) == "Bearer t2"


def test_waiting_threads_share_a_failure() -> None:
    """Threads that waited for a renewal that failed do not each try again."""
    entered, go = threading.Event(), threading.Event()
    calls, caught = [], []

    def fetch(_refused: bool) -> Token:
        calls.append(1)
        entered.set()
        go.wait(5)
        raise AccessError("no")

    auth = TokenAuth(fetch, lambda: 0.0)

    def work() -> None:
        try:
            auth.headers()
        except AccessError as exc:
            caught.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    threads[0].start()
    entered.wait(5)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(5)

    assert len(calls) == 1
    assert len(caught) == 4


def test_basic_credentials_are_utf8_and_not_renewed() -> None:
    """Nothing changes by asking again."""
    auth = BasicAuth("jürgen", "p:w")

    auth.renew(auth.headers())

    assert base64.b64decode(auth.headers()["Authorization"].removeprefix("Basic ")).decode() == "jürgen:p:w"


def test_secrets_do_not_show() -> None:
    """Neither a token nor a sign-in prints its secrets."""
    sign_in = ServiceNowSignIn("password", "client", "s3cret", user_name="u", password="pw-value", refresh_token="rt")

    shown = repr(sign_in) + repr(Token.bearer({"access_token": "abc-token", "expires_in": 1}, 0.0))

    assert not any(secret in shown for secret in ("s3cret", "pw-value", "'rt'", "abc-token"))


# -- ServiceNow's own endpoint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grant", ["password", "client_credentials"])
def test_servicenow_signs_in_by_its_grants(grant: str) -> None:
    """Both grants give a token that the API takes."""
    with servicenow_bench(switches={"client_credentials_grant": True}) as bench:
        bench.http._auth = oauth(bench.base_url, grant)

        clock = bench.client.read_clock()

        assert clock == bench.sim.clock.now_s()
        assert len(bench.sim.requests("POST", "oauth_token")) == 1


def test_servicenow_refused_sign_in_names_what_may_be_wrong() -> None:
    """The vendor says the same to every mistake, so all are named; no secret is."""
    with servicenow_bench() as bench:
        auth = build_servicenow_auth(
            "servicenow", bench.base_url, ServiceNowSignIn("password", CLIENT_ID, CLIENT_SECRET, "who", "wrong-pw")
        )

        with pytest.raises(AccessError) as caught:
            auth.headers()

    assert caught.value.code == "sign_in_refused"
    assert "wrong-pw" not in str(caught.value)
    assert CLIENT_SECRET not in str(caught.value)


def test_servicenow_expired_token_is_renewed_by_refresh_token() -> None:
    """A token that the vendor voids is replaced with the refresh token that came with it; the call succeeds."""
    with servicenow_bench() as bench:
        bench.http._auth = oauth(bench.base_url)
        bench.client.read_clock()
        bench.sim.add_fault(FaultKind.EXPIRE_TOKEN, path="/api/")

        bench.client.read_clock()

        forms = [entry.body for entry in bench.sim.requests("POST", "oauth_token")]
        assert [form.partition("&")[0] for form in forms] == ["grant_type=password", "grant_type=refresh_token"]


def test_servicenow_refused_refresh_token_falls_back_to_the_primary_grant() -> None:
    """A refresh token ends after months, or is revoked."""
    with servicenow_bench() as bench:
        auth = oauth(bench.base_url)
        first = auth.headers()
        bench.sim.tokens.expire_refresh()
        bench.sim.expire_tokens()

        auth.renew(first)

        assert auth.headers() != first
        forms = [entry.body.partition("&")[0] for entry in bench.sim.requests("POST", "oauth_token")]
        assert forms == ["grant_type=password", "grant_type=refresh_token", "grant_type=password"]


def test_servicenow_keeps_the_refresh_token_when_none_comes_back() -> None:
    """A refresh that returns only an access token does not end refreshing."""
    with servicenow_bench(switches={"refresh_echoes_token": False}) as bench:
        auth = oauth(bench.base_url)
        for _ in range(3):
            used = auth.headers()
            bench.sim.expire_tokens()
            auth.renew(used)

        forms = [entry.body.partition("&")[0] for entry in bench.sim.requests("POST", "oauth_token")]
        assert forms == ["grant_type=password"] + ["grant_type=refresh_token"] * 3


@pytest.mark.parametrize("fault", [FaultKind.HTML, FaultKind.TRUNCATED, FaultKind.REFUSE])
def test_servicenow_sign_in_that_breaks_is_transient(fault: FaultKind) -> None:
    """A hibernating or broken instance is no reason to doubt the credentials."""
    with servicenow_bench() as bench:
        bench.sim.add_fault(fault, path="oauth_token", times=0)

        with pytest.raises(TransientError):
            oauth(bench.base_url).headers()


def test_servicenow_sign_in_is_asked_to_wait() -> None:
    """A limit at the token endpoint puts the work back."""
    with servicenow_bench() as bench:
        bench.sim.add_fault(FaultKind.STATUS, path="oauth_token", status=429, headers={"Retry-After": "9"}, times=0)

        with pytest.raises(RateLimitedError) as caught:
            oauth(bench.base_url).headers()

    assert caught.value.retry_after_s == 9


# -- Microsoft Entra ------------------------------------------------------------------------------------------------------


class Login:
    """A served login host and how to reach it."""

    def __init__(self, sim: EntraLogin, port: int, ca_file: Path) -> None:
        self.sim, self.port, self.ca_file = sim, port, ca_file

    def auth(
        self, secret: str = DEFAULT_SECRET, tenant: str = DEFAULT_TENANT, client: str = DEFAULT_CLIENT
    ) -> TokenAuth:
        return build_dynamics365_auth(
            "dynamics365",
            authority=f"https://localhost:{self.port}/{tenant}",
            client_id=client,
            client_credential=secret,
            organization_url=ORGANIZATION,
            instance_discovery=False,
            connect_s=2.0,
            read_s=5.0,
            ca_file=str(self.ca_file),
        )

    def asked(self) -> int:
        return len(self.sim.requests("POST", "oauth2/v2.0/token"))


@pytest.fixture
def login(tmp_path: Path) -> Iterator[Login]:
    """Serve the login over TLS: msal takes nothing else."""
    tls, bundle = make_certificates(tmp_path)
    sim = EntraLogin(TokenStore())
    with serve_in_thread(sim, tls=tls) as (port,):
        yield Login(sim, port, bundle)


def test_entra_token_is_fetched_once(login: Login) -> None:
    """Calls after the first take the token from memory."""
    auth = login.auth()

    tokens = {auth.headers()["Authorization"] for _ in range(3)}

    assert len(tokens) == 1
    assert login.asked() == 1


def test_entra_refused_token_is_replaced_although_msal_believes_in_it(login: Login) -> None:
    """After a 401 msal's own cache must not answer."""
    auth = login.auth()
    first = auth.headers()

    auth.renew(first)

    assert auth.headers() != first
    assert login.asked() == 2


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"secret": "wrong-secret"}, "AADSTS7000215"),
        ({"client": "bbbbbbbb-0000-0000-0000-00000000c0de"}, "AADSTS700016"),
        ({"tenant": "99999999-2222-3333-4444-555555555555"}, "refused to give a token"),
    ],
)
def test_entra_refusal_names_its_code_and_no_secret(login: Login, facts: dict[str, str], said: str) -> None:
    """Bad secret, unknown app, unknown tenant: the connection is at fault, and the code says how."""
    auth = login.auth(**facts)

    with pytest.raises(AccessError) as caught:
        auth.headers()

    assert said in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


def test_entra_refusal_is_not_remembered_by_msal(login: Login) -> None:
    """A secret that was put right works at once, not a minute later."""
    auth = login.auth()
    login.sim.tokens.secrets[DEFAULT_CLIENT] = "other"
    with pytest.raises(AccessError):
        auth.headers()

    login.sim.tokens.secrets[DEFAULT_CLIENT] = DEFAULT_SECRET

    assert auth.headers()["Authorization"].startswith("Bearer ")


@pytest.mark.parametrize("path", ["openid-configuration", "oauth2/v2.0/token"])
@pytest.mark.parametrize(
    ("kind", "status"),
    [(FaultKind.STATUS, 503), (FaultKind.STATUS, 429), (FaultKind.HTML, 200), (FaultKind.REFUSE, 0)],
)
def test_entra_that_is_down_is_transient(login: Login, path: str, kind: FaultKind, status: int) -> None:
    """What goes wrong while discovering or signing in is tried again later."""
    login.sim.add_fault(kind, path=path, status=status, times=0)

    with pytest.raises(TransientError):
        login.auth().headers()


def test_entra_that_cannot_be_reached_is_transient() -> None:
    """Nobody listens at the login host."""
    login = Login(EntraLogin(TokenStore()), 1, Path("/dev/null"))

    with pytest.raises(RemoteError) as caught:
        login.auth().headers()

    assert type(caught.value) is TransientError


def test_entra_with_a_certificate_of_nobody_s_says_what_to_set(login: Login) -> None:
    """A proxy that opens TLS shows its own certificate: that is mended by a setting, not by waiting."""
    login.ca_file = Path(certifi.where())

    with pytest.raises(TransientError) as caught:
        login.auth().headers()

    assert caught.value.code == "untrusted_certificate"
    assert "REQUESTS_CA_BUNDLE" in caught.value.message


def test_entra_is_not_asked_when_time_is_short(login: Login) -> None:
    """A sign-in could take longer than the attempt lasts."""
    auth = login.auth()

    with attempt.attempt(ends_at_s=0.0), pytest.raises(RateLimitedError) as caught:
        auth.headers()

    assert caught.value.code == "no_time_left"
    assert login.asked() == 0
