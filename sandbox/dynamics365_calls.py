"""A call to the Dataverse Web API and its answer, free of any HTTP server: a $batch part is the same kind of call as a request."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote_plus

from sandbox import dynamics365_query as q
from sandbox.dynamics365_paging import Cookies
from sandbox.dynamics365_query import Asker, QueryError
from sandbox.dynamics365_render import Annotations, Renderer
from sandbox.dynamics365_store import ApiError

BAD_QUERY = "0x80060888"
NO_SEGMENT = "0x8006088a"
JSON_TYPE = "application/json; odata.metadata=minimal"


MAX_PAGE = 5000


@dataclasses.dataclass
class Settings:
    """What differs between organizations, and what tests want to turn; all changeable while the simulator runs."""

    request_limit: int = 6000  # per user and window
    execution_limit_ms: int = 1_200_000  # per user and window
    concurrency_limit: int = 52  # per user
    window_s: int = 300
    latency_s: float = 0.0  # every Web API request takes this long
    execution_ms_per_request: float = 0.0  # added to the measured time
    max_page_size: int = MAX_PAGE
    max_url_chars: int = 32_768
    max_batch_url_chars: int = 65_536
    max_body_bytes: int = 16 * 1024 * 1024
    paging_cookie_s: int = 3600
    delta_days: int = 7
    user_zone: str = "UTC"  # of application users; relative date functions use it
    change_tracking: tuple[str, ...] = ("incident", "contact", "account")
    alternate_keys: dict[str, tuple[tuple[str, ...], ...]] = dataclasses.field(default_factory=dict)  # table -> keys


@dataclasses.dataclass(frozen=True)
class ApplicationUser:
    """An application user of the environment and what its roles allow."""

    client_id: str
    user_id: str
    rights: Mapping[str, str] | None = None  # table -> some of "crwd" (create, read, write, delete); None: everything
    allowed: bool = True  # the app id is on the environment's allow list

    def may(self, right: str, table: str) -> bool:
        """Tell whether a right ("read", "create", "write", "delete") is held on a table."""
        return self.rights is None or right[0] in self.rights.get(table, "")


@dataclasses.dataclass(frozen=True)
class Call:
    """One request to the Web API, from HTTP or from a $batch part."""

    method: str
    target: str  # raw path below the API root, with the query
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    root: str  # https://host/api/data/v9.2/
    user: ApplicationUser

    @property
    def path(self) -> str:
        """Return the raw path."""
        return self.target.partition("?")[0]

    @property
    def options(self) -> list[str]:
        """Return the query's options as they were written."""
        query = self.target.partition("?")[2]
        return [option for option in query.split("&") if option]


@dataclasses.dataclass
class Answer:
    """One answer; a dict becomes JSON, a text is sent as it is."""

    status: int
    body: dict[str, Any] | str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return the body as it goes over the wire."""
        if self.body is None or isinstance(self.body, str):
            return self.body or ""
        return json.dumps(self.body, ensure_ascii=False, separators=(",", ":"))


@dataclasses.dataclass(frozen=True)
class Preferences:
    """The Prefer header."""

    page_size: int | None = None
    annotations: str | None = None
    representation: bool = False
    track_changes: bool = False
    continue_on_error: bool = False

    @property
    def pattern(self) -> Annotations:
        """Return which annotations are wanted."""
        return Annotations(tuple(part.strip() for part in (self.annotations or "").split(",") if part.strip()))

    def applied(self, *names: str) -> dict[str, str]:
        """Return the Preference-Applied header for those of the named preferences that were given."""
        parts = {
            "page": f"odata.maxpagesize={self.page_size}" if self.page_size else "",
            "annotations": f'odata.include-annotations="{self.annotations}"' if self.annotations else "",
            "representation": "return=representation" if self.representation else "",
            "track": "odata.track-changes" if self.track_changes else "",
        }
        applied = ",".join(parts[name] for name in names if parts[name])
        return {"Preference-Applied": applied} if applied else {}


def read_preferences(header: str) -> Preferences:
    """Return what a Prefer header asks for; what is not known is ignored."""
    values: dict[str, str] = {}
    for part in re.findall(r'(?:[^,"]|"[^"]*")+', header):
        name, _, value = part.strip().partition("=")
        values[name.strip().lower()] = value.strip().strip('"')
    size = values.get("odata.maxpagesize")
    if size is not None and not re.fullmatch(r"[1-9]\d{0,8}", size):
        raise ApiError(400, BAD_QUERY, f"Invalid value '{size}' for the preference odata.maxpagesize.")
    return Preferences(
        int(size) if size else None,
        values.get("odata.include-annotations"),
        values.get("return") == "representation",
        "odata.track-changes" in values,
        "odata.continue-on-error" in values,
    )


def read_options(call: Call) -> dict[str, str]:
    """Return the decoded query options; each may stand once. Unknown ones that start with `$` are refused."""
    options: dict[str, str] = {}
    for option in call.options:
        name, _, value = option.partition("=")
        name = unquote_plus(name)
        if name in options:
            raise QueryError(
                f"Query option '{name}' was specified more than once, but it must be specified at most once."
            )
        if name.startswith("$") and name not in q.SYSTEM_OPTIONS:
            raise QueryError(f"The query parameter {name} is not supported")
        options[name] = unquote_plus(value)
    for name in ("fetchXml", "sql", "savedQuery", "userQuery", "$apply"):
        if name in options:
            raise ApiError(501, "", f"The sandbox does not know the query option {name}.")
    return options


@dataclasses.dataclass
class Request:
    """A call with its headers and options read."""

    call: Call
    options: dict[str, str]
    prefer: Preferences
    renderer: Renderer
    asker: Asker
    cookies: Cookies

    @property
    def aliases(self) -> dict[str, str]:
        """Return the parameter aliases (`@p1=…`)."""
        return {name: value for name, value in self.options.items() if name.startswith("@")}

    def allow_options(self, *names: str) -> None:
        """Refuse system options other than the named ones."""
        for name in self.options:
            if name.startswith("$") and name not in names:
                raise QueryError(f"The query parameter {name} is not supported here.")


def write_error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an error body; callers who want all annotations get the extra members."""
    error: dict[str, Any] = {"code": code, "message": message}
    with contextlib.suppress(ApiError):
        if "*" in (read_preferences((headers or {}).get("prefer", "")).annotations or ""):
            error["@Microsoft.PowerApps.CDS.ErrorDetails.OperationStatus"] = "0"
            error["@Microsoft.PowerApps.CDS.HelpLink"] = (
                f"http://go.microsoft.com/fwlink/?LinkID=398563&error={quote(code)}"
            )
            error["@Microsoft.PowerApps.CDS.InnerError.Message"] = message
    return Answer(status, {"error": error}, {"OData-Version": "4.0", "Content-Type": JSON_TYPE})
