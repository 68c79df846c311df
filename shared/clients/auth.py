"""Tokens: fetched once per process, renewed before they expire, replaced once when a vendor refuses them.

Microsoft Entra tokens come from msal, ServiceNow's from its own endpoint (`oauth_token.do`), which answers 401 with the
same text to nearly every mistake; so a refusal is reported with everything that may be its cause.
"""

import base64
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import msal  # type: ignore[import-untyped]  # msal ships no types
import requests

from shared import attempt
from shared.clients.http import UNTRUSTED, Answer, Dialect, HttpConnection, Meaning, NoAuth, Reading, is_untrusted
from shared.errors import AccessError, RateLimitedError, RemoteError, TransientError

RENEW_BEFORE_S = 60.0
RENEW_AGAIN_S = 30.0  # after a renewal that failed while the token is still good
DEFAULT_LIFETIME_S = 300.0  # of a token that does not name its own
WAIT_FOR_RENEWAL_S = 90.0


@dataclasses.dataclass(frozen=True)
class Token:
    """An access token as the headers that carry it, and its times on the monotonic clock."""

    headers: Mapping[str, str] = dataclasses.field(repr=False)
    renew_at_s: float
    expires_at_s: float

    @classmethod
    def bearer(cls, answer: Mapping[str, Any], now_s: float) -> "Token":
        """Build a token from a token endpoint's answer; `expires_in` is the life that remains, which may be small."""
        try:
            lifetime_s = max(float(answer.get("expires_in", DEFAULT_LIFETIME_S)), 0.0)
        except (TypeError, ValueError):
            lifetime_s = DEFAULT_LIFETIME_S
        early_s = min(RENEW_BEFORE_S, lifetime_s / 2)
        headers = {"Authorization": f"Bearer {answer['access_token']}"}
        return cls(headers, now_s + lifetime_s - early_s, now_s + lifetime_s)


class TokenAuth:
    """A token shared by all threads of the process; one renewal is in flight at a time."""

    def __init__(self, fetch: Callable[[bool], Token], now_s: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch  # the argument says whether the last token was refused
        self._now_s = now_s
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._failure: tuple[float, RemoteError] | None = None

    def headers(self) -> Mapping[str, str]:
        token, now_s = self._token, self._now_s()
        if token is None or now_s >= token.expires_at_s:
            return self._replace(token, refused=False).headers
        if now_s < token.renew_at_s or self._lock.locked():  # another thread renews, and this token is still good
            return token.headers
        try:
            return self._replace(token, refused=False).headers
        except (RemoteError, TimeoutError):
            self._token = dataclasses.replace(token, renew_at_s=now_s + RENEW_AGAIN_S)
            return token.headers

    def renew(self, refused: Mapping[str, str]) -> None:
        token = self._token
        if token is not None and token.headers == refused:
            self._replace(token, refused=True)

    def _replace(self, old: Token | None, *, refused: bool) -> Token:
        asked_at_s = self._now_s()
        if not self._lock.acquire(timeout=WAIT_FOR_RENEWAL_S):
            raise TransientError("The token is still being renewed by another thread. It is tried again later.")
        try:
            if self._token is not None and self._token is not old:
                return self._token
            if self._failure is not None and self._failure[0] >= asked_at_s:
                raise self._failure[1]  # what the thread met that we waited for
            self._token = self._fetch(refused)
        except RemoteError as exc:
            if exc.code != "no_time_left":  # that is the matter of one thread
                self._failure = (self._now_s(), exc)
            raise
        else:
            return self._token
        finally:
            self._lock.release()


class BasicAuth:
    """User name and password with every call; nothing to renew."""

    def __init__(self, user_name: str, password: str) -> None:
        pair = base64.b64encode(f"{user_name}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {pair}"}

    def headers(self) -> Mapping[str, str]:
        return self._headers

    def renew(self, refused: Mapping[str, str]) -> None:
        """Do nothing: the same credentials would be refused again."""


# -- Microsoft Entra ----------------------------------------------------------------------------------------------------


def build_dynamics365_auth(
    connection: str,
    *,
    authority: str,
    client_id: str,
    client_credential: str | Mapping[str, str],
    organization_url: str,
    instance_discovery: bool | None = None,
    connect_s: float = 10.0,
    read_s: float = 30.0,
    ca_file: str | None = None,
    now_s: Callable[[], float] = time.monotonic,
) -> TokenAuth:
    """Build the authentication of a Dynamics 365 connection by client credentials.

    `authority` is the login host with the tenant; hosts that are not Microsoft's public ones need
    `instance_discovery=False`. `client_credential` is the secret, or a certificate in msal's form.
    """
    scope = f"{organization_url.rstrip('/')}/.default"
    session = _LoginSession(authority, (connect_s, read_s), ca_file)
    apps: list[msal.ConfidentialClientApplication] = []

    def fetch(refused: bool) -> Token:
        whole_s = connect_s + read_s
        if attempt.current().left_s() < whole_s:
            raise RateLimitedError(
                "Not enough time was left to sign in to Microsoft Entra; the work is put back.",
                code="no_time_left", retry_after_s=0.0, connection=connection,
            )  # fmt: skip
        if refused:
            apps.clear()  # msal has no other way to forget a token it believes in
        try:
            if not apps:
                apps.append(
                    msal.ConfidentialClientApplication(
                        client_id, client_credential=client_credential, authority=authority,
                        instance_discovery=instance_discovery, http_client=session,
                    )
                )  # fmt: skip
            answer = apps[0].acquire_token_for_client(scopes=[scope])
        except (requests.RequestException, json.JSONDecodeError, msal.exceptions.MsalError, RuntimeError) as exc:
            untrusted = is_untrusted(exc)
            answer = {
                "error": UNTRUSTED[0] if untrusted else "temporarily_unavailable",
                "error_codes": [type(exc).__name__],
            }
        except (LookupError, TypeError, AttributeError) as exc:  # msal believes that an answer has the form it should
            answer = {"error": "temporarily_unavailable", "error_codes": [type(exc).__name__]}
        except ValueError as exc:  # discovery refused, or not an authority at all
            root = exc.__context__ or exc  # msal's own sentence stands before what happened
            passing = isinstance(root, json.JSONDecodeError) or "HTTP status: 429" in str(root)
            answer = {"error": "temporarily_unavailable" if passing else "invalid_authority"}
        if "access_token" not in answer:
            error = _read_entra_refusal(answer, connection, authority)
            if isinstance(error, AccessError):
                apps.clear()  # msal remembers a refusal for a minute; the pause that a busy login asked for, it may keep
            raise error
        return Token.bearer(answer, now_s())

    return TokenAuth(fetch, now_s)


class _LoginSession(requests.Session):
    """What msal calls with: a time-out for every call, no redirects, and a CA file that wins over the environment's."""

    def __init__(self, authority: str, timeout: tuple[float, float], ca_file: str | None) -> None:
        super().__init__()
        self._timeout = timeout
        environment = self.merge_environment_settings(authority, {}, None, ca_file, None)
        self.proxies, self.verify = environment["proxies"], environment["verify"] or True
        self.trust_env = False
        self.max_redirects = 0  # a redirect is an error: the secret goes to nobody whom an answer names

    def request(self, *args: Any, **facts: Any) -> requests.Response:
        facts.setdefault("timeout", self._timeout)
        return super().request(*args, **facts)


def _read_entra_refusal(answer: Mapping[str, Any], connection: str, authority: str) -> RemoteError:
    codes = ", ".join(f"AADSTS{c}" if isinstance(c, int) else str(c) for c in answer.get("error_codes") or ())
    reason = " ".join(filter(None, (str(answer.get("error") or "no token"), f"({codes})" if codes else "")))
    facts: dict[str, Any] = {
        "connection": connection,
        "method": "POST",
        "path": urlsplit(authority).path,
        "request_id": str(answer.get("correlation_id") or ""),
    }
    if answer.get("error") == UNTRUSTED[0]:
        code, says = UNTRUSTED
        return TransientError(f"Microsoft Entra {says} ({connection}). It is tried again later.", code=code, **facts)
    if answer.get("error") in ("temporarily_unavailable", "server_error", "request_timeout"):
        return TransientError(
            f"Microsoft Entra gave no token: {reason} ({connection}). It is tried again later.", **facts
        )
    return AccessError(
        f"Microsoft Entra refused to give a token: {reason} ({connection}). "
        "Check tenant, client id and client secret of the connection.",
        code="sign_in_refused",
        **facts,
    )


# -- ServiceNow ---------------------------------------------------------------------------------------------------------

TOKEN_PATH = "/oauth_token.do"  # noqa: S105


class NoPermits:
    """Token endpoints are outside of the connection's concurrency: a call that waits for a token holds no permit."""

    def hold(self, *, ahead: bool = False) -> AbstractContextManager[None]:  # noqa: ARG002  # the protocol
        return nullcontext()

    def expect(self, calls: int) -> None:
        """Ask for nothing: there is no limit."""

    def pause(self, seconds: float) -> None:
        """Let the caller wait: the error says how long."""


def _read_token_answer(answer: Answer) -> Reading | None:
    if answer.status in (400, 401, 403):
        return Reading(
            Meaning.NO_ACCESS,
            "sign_in_refused",
            f"refused the sign-in ({answer.status}): client id or secret, user or password (locked, inactive, or allowed "
            "for web services only), an expired refresh token, a grant that is switched off, or a client without an "
            "application user",
        )
    if answer.status == 200 and not (isinstance(answer.data, dict) and answer.data.get("access_token")):
        return Reading(Meaning.LOST, "no_token", "answered the sign-in without a token (is the instance asleep?)")
    return None


@dataclasses.dataclass(frozen=True)
class ServiceNowSignIn:
    """How a connection signs in: `grant` is client_credentials, password or refresh_token."""

    grant: str
    client_id: str
    client_secret: str = dataclasses.field(repr=False)
    user_name: str = ""
    password: str = dataclasses.field(default="", repr=False)
    refresh_token: str = dataclasses.field(default="", repr=False)

    def form(self) -> dict[str, str]:
        """Build the form of the token request for this grant."""
        form = {"grant_type": self.grant, "client_id": self.client_id, "client_secret": self.client_secret}
        if self.grant == "password":
            form |= {"username": self.user_name, "password": self.password}
        if self.grant == "refresh_token":
            form["refresh_token"] = self.refresh_token
        return form


def build_servicenow_auth(
    connection: str,
    base_url: str,
    sign_in: ServiceNowSignIn,
    *,
    connect_s: float = 10.0,
    read_s: float = 30.0,
    ca_file: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now_s: Callable[[], float] = time.monotonic,
) -> TokenAuth:
    """Build the OAuth authentication of a ServiceNow connection.

    A refresh token that came with the last answer is used first; when it is refused, the primary grant follows.
    """
    http = HttpConnection(
        connection,
        base_url,
        NoAuth(),
        NoPermits(),
        Dialect("ServiceNow", _read_token_answer),
        connect_s=connect_s,
        read_s=read_s,
        ca_file=ca_file,
        pool_size=1,
        sleep=sleep,
    )
    kept: list[str] = []  # the refresh token, if the vendor gave one

    def ask(asked: ServiceNowSignIn) -> Token:
        answer = http.call("POST", TOKEN_PATH, action="sign in", safe=True, form=asked.form()).data
        if answer.get("refresh_token"):
            kept[:] = [answer["refresh_token"]]
        return Token.bearer(answer, now_s())

    def fetch(_refused: bool) -> Token:
        if kept:
            try:
                return ask(dataclasses.replace(sign_in, grant="refresh_token", refresh_token=kept[0]))
            except AccessError:
                kept.clear()
        return ask(sign_in)

    return TokenAuth(fetch, now_s)
