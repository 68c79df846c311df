"""The HTTP interface: what may be asked, what a bad request is told, and what the answers look like.

Knows no Azure types: a request and a response are plain values, so that every host can serve them.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

from shared.addresses import check_recipient
from shared.errors import ConfigError, MappingError, StateError, SyncError
from sync import repairs, runs, views
from sync.app import App
from sync.recipe import Recipe
from sync.windows import FORMS, Window, WindowKind, bounds, build_window

LOG = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
MAX_IDS = 500  # of one start; their text has to fit into the run's row
MAX_VALUE_CHARS = 100  # of a window, a time, an id
KEY = re.compile(r"[A-Za-z0-9_.:-]+", re.ASCII)
MAX_NAMES = 5  # that an answer repeats
START_PARAMETERS = ("email", "window", "from", "to", "ids", "preview", "verify")
LIST_PARAMETERS = ("recipe", "limit")
RESULT_PARAMETERS = ("outcome", "limit", "skip")
REPAIR_PARAMETERS = ("ids",)
KEY_PARAMETERS = ("code", "clientid")  # the host's own: the function key

BODY_FORMS = {
    "application/json": 'send one object, as in {"Email": "you@your-company.com", "window": "today"}.',
    "application/x-www-form-urlencoded": "send names and values, as in Email=you@your-company.com&window=today.",
}

STATUS_OF = {
    "unknown_recipe": 404,
    "unknown_run": 404,
    "unknown_action": 404,
    "run_in_progress": 409,
    "nothing_to_confirm": 409,
    "run_ended": 409,
    "not_cancellable": 409,
    "nothing_to_repair": 409,
    "body_too_large": 413,
    "wrong_content_type": 415,
}


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as any host gets it."""

    method: str
    route: Mapping[str, str]  # parts of the path
    query: Mapping[str, str]
    headers: Mapping[str, str]  # lower-case names
    body: bytes = b""


@dataclasses.dataclass(frozen=True)
class Response:
    """What is answered."""

    status: int
    body: str
    content_type: str = "application/json"

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of every answer: nobody guesses its type or keeps it."""
        return {"Content-Type": self.content_type, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

    @property
    def content(self) -> bytes:
        """Return the body's bytes; half a surrogate pair, which JSON may hold and UTF-8 cannot, becomes a question mark."""
        return self.body.encode("utf-8", "replace")


Handler = Callable[[App, Request], Response]
Answer = Callable[[Callable[[], App], Handler, Request], Response]


def answer(load_app: Callable[[], App], handle: Handler, request: Request) -> Response:
    """Answer a request; every error becomes a status and a sentence that says what to do."""
    try:
        return handle(load_app(), request)
    except MappingError as exc:
        return _problem(request, STATUS_OF.get(exc.code, 400), exc)
    except ConfigError as exc:
        LOG.error("the app is not configured", extra={"code": exc.code, "problem": exc.message})  # noqa: TRY400  # settings stand in the answer
        return _problem(request, 500, exc)
    except StateError as exc:
        LOG.exception("storage refused")
        return _problem(request, 503, exc)
    except Exception:
        LOG.exception("a request failed unexpectedly")
        return _problem(request, 500, SyncError("Concord hit an error of its own; its log says more."))


def answer_anybody(load_app: Callable[[], App], handle: Handler, request: Request) -> Response:
    """Answer a request that needs no key: of what is wrong, nothing is told but its kind. The log says more."""
    try:
        return handle(load_app(), request)
    except ConfigError as exc:
        LOG.error("the app is not configured", extra={"code": exc.code, "problem": exc.message})  # noqa: TRY400  # the starts' answer says more
        return _json(503, {"status": "not configured"})
    except StateError:
        LOG.exception("storage refused")
        return _json(503, {"status": "storage unavailable"})
    except Exception:
        LOG.exception("a request failed unexpectedly")
        return _json(503, {"status": "error"})


def start_sync(app: App, request: Request) -> Response:
    """Start a recipe over a window, or join its running run; the summary goes to the address given."""
    recipe = app.recipe(request.route.get("recipe", ""))
    given = _parameters(request, START_PARAMETERS)
    if not given.get("email", "").strip():
        raise MappingError(
            "An email address is missing: say who gets the summary, as in Email=you@your-company.com.",
            code="email_missing",
        )
    address = check_recipient(given["email"], app.settings.allowed_mail_domains)
    window = _window(recipe, given)
    _refuse_future(window, app)
    preview, verify = _flag(given, "preview"), _flag(given, "verify")
    if preview and verify:
        raise MappingError("preview and verify do not go together: give one of them.", code="bad_parameter")
    started = runs.start_run(app, recipe, window, started_by="http", mail_to=(address,), preview=preview, verify=verify)
    kind = (
        " as a preview, which writes nothing"
        if preview
        else " as a verification, which writes nothing"
        if verify
        else ""
    )
    sentence = (
        f"{recipe.title}: the background job {'is running already; you are told of its result' if started.joined else 'has started'}"
        f"{kind}. The summary goes to the address you gave."
    )
    status_url = f"{app.settings.app_url}/api/runs/{started.run.run_id}"
    if _wants_text(request):
        text = f"{sentence}\n\nRun:    {started.run.run_id}\nStatus: {status_url}\n"
        return Response(202, text, "text/plain; charset=utf-8")
    body = {"run_id": started.run.run_id, "status": status_url, "joined": started.joined, "message": sentence}
    return _json(202, body)


def list_runs(app: App, request: Request) -> Response:
    """List the newest runs; `recipe` and `limit` narrow it."""
    given = _parameters(request, LIST_PARAMETERS)
    return _json(200, {"runs": views.list_runs(app, given.get("recipe", ""), _number(given, "limit", 20, least=1))})


def get_run(app: App, request: Request) -> Response:
    """Show one run."""
    run = app.find_run(request.route.get("run_id", ""))
    if run is None:
        raise MappingError(
            f"There is no run {request.route.get('run_id', '')[:80]!r}; GET /api/runs lists them.", code="unknown_run"
        )
    return _json(200, views.run_view(app, run))


def list_results(app: App, request: Request) -> Response:
    """List a run's results; `outcome` narrows them, `limit` and `skip` page through them, as does `next` while there are more."""
    given = _parameters(request, RESULT_PARAMETERS)
    limit, skip = _number(given, "limit", views.MOST_RESULTS, least=1), _number(given, "skip", 0)
    run_id, outcome = request.route.get("run_id", ""), given.get("outcome", "")
    return _json(200, views.list_results(app, run_id, outcome, limit, skip))


def change_run(app: App, request: Request) -> Response:
    """Confirm or cancel a run, or repair what failed in it: all of it, or the records in `ids`."""
    run_id, action = request.route.get("run_id", ""), request.route.get("action", "")
    actions = {"confirm": runs.confirm_run, "cancel": runs.cancel_run}
    if action in actions:
        _parameters(request, ())
        return _json(200, views.run_view(app, actions[action](app, run_id, "http")))
    if action not in repairs.ACTIONS:
        known = ", ".join((*actions, *repairs.ACTIONS))
        raise MappingError(f"A run knows no {action[:40]!r}; there are {known}.", code="unknown_action")
    given = _parameters(request, REPAIR_PARAMETERS)
    keys = {key.strip() for key in given.get("ids", "").split(",")} - {""}
    if "ids" in given and not keys:
        raise MappingError("ids names no record; leave it out to take all that failed.", code="bad_parameter")
    repaired = repairs.ACTIONS[action](app, runs.existing_run(app, run_id), "http", keys)
    return _json(200, views.run_view(app, repaired.run) | {"repair": {"action": action, "records": repaired.records}})


def health(app: App, request: Request) -> Response:  # noqa: ARG001  # the shape of every handler
    """Say whether storage answers; nothing about the installation, because anyone may ask."""
    app.queues.length("pages")
    return _json(200, {"status": "ok"})


# -- reading requests ---------------------------------------------------------------------------------------------


def _parameters(request: Request, known: Collection[str]) -> dict[str, str]:
    """Return the parameters of a request, from query and body, by lower-case name.

    Raises MappingError for an oversized or unreadable body, for names that mean nothing, for one given twice, and for one
    without a value: a script whose variable is empty must not start what was not meant.
    """
    given: dict[str, str] = {}
    for name, value in [*request.query.items(), *_body_parameters(request)]:
        if given.setdefault(name.lower(), value) != value:
            raise MappingError(
                f"{name[:40]!r} was given twice, with different values; give it once.", code="bad_parameter"
            )
    unknown = sorted(set(given) - set(known) - set(KEY_PARAMETERS))
    if unknown:
        names = ", ".join(repr(name[:40]) for name in unknown[:MAX_NAMES])
        there_are = f"there are {', '.join(known)}" if known else "this call takes no parameters"
        raise MappingError(f"{names} means nothing here; {there_are}.", code="bad_parameter")
    empty = [name for name in known if name != "email" and not given.get(name, "x").strip()]
    if empty:
        raise MappingError(f"{empty[0]} has no value: give it one, or leave it out.", code="bad_parameter")
    return given


def _body_parameters(request: Request) -> list[tuple[str, str]]:
    if not request.body:
        return []
    if len(request.body) > MAX_BODY_BYTES:
        raise MappingError(f"The body is larger than {MAX_BODY_BYTES // 1024} KiB.", code="body_too_large")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return _json_parameters(request.body)
        if kind == "application/x-www-form-urlencoded":
            return parse_qsl(request.body.decode(), strict_parsing=True)
    except (ValueError, TypeError, RecursionError):
        raise MappingError(f"The body cannot be read as {kind}; {BODY_FORMS[kind]}", code="bad_body") from None
    raise MappingError(
        "Send parameters in the query, or a body of application/json or application/x-www-form-urlencoded.",
        code="wrong_content_type",
    )


def _json_parameters(body: bytes) -> list[tuple[str, str]]:
    """Read an object's names and values, also those that stand twice. Raises ValueError or TypeError."""
    values = json.loads(body, object_pairs_hook=tuple)
    if not isinstance(values, tuple):
        raise TypeError("not an object")
    return [(str(name), _text(value)) for name, value in values]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(_text(entry) for entry in value)
    if isinstance(value, tuple):
        raise TypeError("an object inside the object")
    return "" if value is None else str(value)


def _window(recipe: Recipe, given: Mapping[str, str]) -> Window:
    asked = {name: given[name] for name in ("window", "from", "to", "ids") if given.get(name)}
    if not asked:
        return recipe.start.http or Window(WindowKind.SINCE_LAST_RUN)
    ids = asked.get("ids", "").split(",")
    if len(ids) > MAX_IDS:
        raise MappingError(f"{len(ids)} ids were given; one start takes {MAX_IDS}.", code="bad_window")
    if any(len(value) > MAX_VALUE_CHARS for value in [*ids, *(asked[name] for name in asked if name != "ids")]):
        raise MappingError(
            f"A value has more than {MAX_VALUE_CHARS} characters; allowed are {FORMS}", code="bad_window"
        )
    try:
        window = build_window(asked)
    except ValueError as exc:
        text = str(exc)
        raise MappingError(text if FORMS in text else f"{text}; allowed are {FORMS}", code="bad_window") from None
    if not all(KEY.fullmatch(record_id) for record_id in window.ids):
        raise MappingError(
            f"ids are records' ids, not their names or addresses: they are stored with the run; allowed are {FORMS}",
            code="bad_window",
        )
    return window


def _refuse_future(window: Window, app: App) -> None:
    if window.kind is WindowKind.SPAN:
        since, until = bounds(window, app.now(), app.settings.zone)
        if since and until and since >= until:
            raise MappingError(
                f"The window {window} lies in the future: nothing has changed there yet.", code="bad_window"
            )


def _flag(given: Mapping[str, str], name: str) -> bool:
    value = given.get(name, "").lower()
    if value not in ("", "true", "false", "1", "0", "yes", "no"):
        raise MappingError(f"{name} takes true or false.", code="bad_parameter")
    return value in ("true", "1", "yes")


def _number(query: Mapping[str, str], name: str, default: int, *, least: int = 0) -> int:
    text = query.get(name, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) >= least):
        raise MappingError(f"{name} takes a whole number from {least}.", code="bad_parameter")
    return int(text) if text else default


# -- answering ----------------------------------------------------------------------------------------------------


def _wants_text(request: Request) -> bool:
    """Tell a browser, which gets plain text, from a client, which gets JSON."""
    return "text/html" in request.headers.get("accept", "")


def _json(status: int, body: Mapping[str, Any]) -> Response:
    return Response(status, json.dumps(body, ensure_ascii=False, default=str))


def _problem(request: Request, status: int, error: SyncError) -> Response:
    if _wants_text(request):
        return Response(status, f"{error.message}\n", "text/plain; charset=utf-8")
    return _json(status, {"error": error.code, "message": error.message})
