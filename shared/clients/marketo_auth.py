"""Tokens of Marketo's identity endpoint, where id and secret travel in the query string.

All processes with one client id share one token, and asking again gives the same one with the life that is left of it:
https://experienceleague.adobe.com/en/docs/marketo-developer/marketo/rest/authentication
"""

import time
from collections.abc import Callable

from shared.clients.auth import NoPermits, Token, TokenAuth
from shared.clients.http import Answer, Dialect, HttpConnection, Meaning, NoAuth, Reading
from shared.errors import RemoteError, TransientError

TOKEN_PATH = "/identity/oauth/token"  # noqa: S105


def build_marketo_auth(
    connection: str,
    base_url: str,
    client_id: str,
    client_secret: str,
    *,
    connect_s: float = 10.0,
    read_s: float = 30.0,
    ca_file: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now_s: Callable[[], float] = time.monotonic,
) -> TokenAuth:
    """Build the authentication of a Marketo connection by client credentials."""
    http = HttpConnection(
        connection,
        base_url,
        NoAuth(),
        NoPermits(),
        Dialect("Marketo", _read_token_answer),
        connect_s=connect_s,
        read_s=read_s,
        ca_file=ca_file,
        pool_size=1,
        sleep=sleep,
    )
    query = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
    last: list[str] = []

    def fetch(refused: bool) -> Token:
        try:
            answer = http.call("GET", TOKEN_PATH, action="sign in", safe=True, query=query).data
        except RemoteError as exc:
            exc.body_excerpt = ""  # half an answer may hold a whole token
            raise
        value = str(answer["access_token"])
        if refused and last == [value]:
            raise TransientError(
                f"Marketo gave out the same token that it had refused ({connection}). It is tried again later.",
                code="credentials_refused",
                connection=connection,
                path=TOKEN_PATH,
            )
        last[:] = [value]
        return Token.bearer(answer, now_s())

    return TokenAuth(fetch, now_s)


def _read_token_answer(answer: Answer) -> Reading | None:
    data = answer.data if isinstance(answer.data, dict) else {}
    if answer.status in (400, 401, 403) or (answer.status == 200 and data.get("error")):
        return Reading(
            Meaning.NO_ACCESS,
            "sign_in_refused",
            f"refused the sign-in ({answer.status}): client id or secret, or the API-only user behind them",
        )
    if answer.status == 200 and answer.data is not None and not data.get("access_token"):
        return Reading(Meaning.LOST, "no_token", "answered the sign-in without a token")
    return None
