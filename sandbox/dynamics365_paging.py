"""The opaque tokens in next and delta links of the Dynamics 365 simulator: signed, bound to their URL, expiring."""

import base64
import dataclasses
import hashlib
import hmac
import json
import re
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

SKIP_TOKEN = re.compile(r'<cookie pagenumber="\d+" pagingcookie="([^"]+)" istracking="False" />')
INNER_COOKIE = re.compile(r'<cookie page="\d+"><row last="([\w-]+)\.([0-9a-f]{32})" /></cookie>')
DELTA_TOKEN = re.compile(r"(\d+)!(\d+)!([0-9a-f]{32})")


class TokenError(ValueError):
    """The token is not one that was given out for this URL, or it is too old."""


@dataclasses.dataclass(frozen=True)
class Cookies:
    """Writes and reads tokens for one root URL at one moment."""

    secret: bytes
    root: str
    now: datetime

    def link(self, path: str, options: list[str], place: dict[str, Any]) -> str:
        """Return a next link: the options as the caller wrote them, then a token for the place to go on from."""
        payload = {**place, "at": int(self.now.timestamp())}
        text = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
        page = place["page"]
        inner = f'<cookie page="{page}"><row last="{text}.{self._sign(path, options, text)}" /></cookie>'
        token = (
            f'<cookie pagenumber="{page}" pagingcookie="{quote(quote(inner, safe=""), safe="")}" istracking="False" />'
        )
        return self._join(path, [*options, f"$skiptoken={quote(token, safe='=')}"])

    def read(self, token: str, path: str, options: list[str], lifetime_s: int) -> dict[str, Any]:
        """Return the place that a next link's token names. Raises TokenError."""
        outer = SKIP_TOKEN.fullmatch(token)
        inner = INNER_COOKIE.fullmatch(unquote(unquote(outer[1]))) if outer else None
        if inner is None or not hmac.compare_digest(self._sign(path, options, inner[1]), inner[2]):
            raise TokenError(
                "Malformed XML in the Paging Cookie: the $skiptoken is not one that was returned for this query."
            )
        place: dict[str, Any] = json.loads(base64.urlsafe_b64decode(inner[1] + "=" * (-len(inner[1]) % 4)))
        if self.now.timestamp() - place["at"] > lifetime_s:
            raise TokenError("The Paging Cookie has expired. Start again with the first page.")
        return place

    def delta_link(self, path: str, options: list[str], version: int) -> str:
        """Return a delta link for everything that changes after a version."""
        at = int(self.now.timestamp())
        token = f"{version}!{at}!{self._sign(path, options, f'{version}!{at}')}"
        return self._join(path, [*options, f"$deltatoken={quote(token, safe='')}"])

    def read_delta(self, token: str, path: str, options: list[str], lifetime_s: int) -> int:
        """Return the version of a delta link's token. Raises TokenError."""
        match = DELTA_TOKEN.fullmatch(token)
        if match is None or not hmac.compare_digest(self._sign(path, options, f"{match[1]}!{match[2]}"), match[3]):
            raise TokenError("The delta token is not one that was returned for this query.")
        if self.now.timestamp() - int(match[2]) > lifetime_s:
            raise TokenError("The delta token has expired: retrieve all rows again.")
        return int(match[1])

    def _join(self, path: str, options: list[str]) -> str:
        return f"{self.root}{path}?{'&'.join(options)}"

    def _sign(self, path: str, options: list[str], text: str) -> str:
        signed = "\n".join([self.root, path, *map(unquote_plus, options), text])
        return hmac.new(self.secret, signed.encode(), hashlib.sha256).hexdigest()[:32]
