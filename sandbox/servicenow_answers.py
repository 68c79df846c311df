"""One call of the simulated instance's API and its answer, free of HTTP so that a batch can make calls too."""

import dataclasses
import json
from typing import Any

from multidict import CIMultiDict, MultiDict
from yarl import URL

from sandbox.servicenow_access import ApiUser
from sandbox.servicenow_store import RefusedError
from sandbox.simulator import json_text

JSON_TYPE = "application/json;charset=UTF-8"
_ACCEPTED = {"*/*", "application/*", "application/json", "text/json"}


@dataclasses.dataclass
class Call:
    """A request as the API sees it, from an authenticated user."""

    method: str
    url: URL
    query: MultiDict[str]
    headers: CIMultiDict[str]
    body: bytes
    user: ApiUser

    @property
    def content_type(self) -> str:
        """Return the media type of the body without its parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def flag(self, name: str) -> bool:
        """Tell whether a sysparm is true."""
        return self.query.get(name, "").lower() == "true"

    def number(self, name: str, default: int) -> int:
        """Return a sysparm as a number, the default when it is none.

        Raises RefusedError for a negative number.
        """
        try:
            number = int(self.query.get(name, ""))
        except ValueError:
            return default
        if number < 0:
            raise RefusedError(400, f"Invalid value for {name}", "Negative values are not allowed")
        return number

    def check_headers(self) -> None:
        """Refuse what the API cannot read or answer; raises RefusedError."""
        accept = self.headers.get("Accept")
        if accept is None and self.method != "DELETE":
            raise RefusedError(400, "Accept header is missing", None)
        kinds = {part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")}
        if not kinds & _ACCEPTED:
            raise RefusedError(406, "Accept header media type is not supported", accept)
        if self.method in {"POST", "PUT", "PATCH"}:
            if not self.content_type:
                raise RefusedError(400, "Content-Type header is missing", None)
            if self.content_type != "application/json":
                raise RefusedError(415, "Unsupported media type", self.content_type)

    def json(self) -> Any:
        """Return the body's JSON; raises RefusedError when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as exc:
            raise RefusedError(400, "Exception while reading request", f"The payload is not valid JSON: {exc}") from exc


@dataclasses.dataclass
class Answer:
    """An answer: JSON payload or raw bytes, or nothing."""

    status: int
    payload: Any = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    raw: bytes | None = None
    content_type: str = JSON_TYPE

    def content(self) -> bytes:
        """Return the body as it goes over the wire."""
        if self.raw is not None:
            return self.raw
        return b"" if self.payload is None else json_text(self.payload).encode()


def failure(status: int, message: str, detail: str | None) -> Answer:
    """Return the vendor's error body."""
    return Answer(status, {"error": {"message": message, "detail": detail}, "status": "failure"})
