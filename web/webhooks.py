"""The receiver of webhooks: who calls and which record it speaks of, then into the queue; the work is done there.

A vendor waits for the answer and asks again only after some statuses, so nothing slow happens here: no vendor is called,
the record is not read, and the one send gives up while somebody still listens. What is refused or ignored is counted.
"""

import dataclasses
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from datetime import time as time_of_day

from shared.clients.system import Event, Sender, Webhook
from shared.errors import AccessError, ConfigError, MappingError, SyncError
from shared.state.messages import EventMessage
from shared.state.rows import AuditRow
from sync.app import App
from sync.recipe import Recipe
from web.api import Request, Response

LOG = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024  # Dataverse strips its bodies above 256 KB
SEND_TIMEOUT_S = 5.0  # Dataverse waits 60 s, asks again after 503 and never after a time-out
STATUS_OF = {"foreign_origin": 403, "bad_body": 400, "body_too_large": 413}  # all others: 401
IGNORED = "ignored"  # what an event is counted under that the recipe does not ask for
COUNT_EVERY_S = 60.0


def receive(app: App, request: Request) -> Response:
    """Take a recipe's events into the queue; 202 only when they are there. Raises StateError when storage refuses."""
    ends_at_s = time.monotonic() + SEND_TIMEOUT_S
    recipe = app.recipes.get(request.route.get("recipe", ""))
    if recipe is None or recipe.start.webhook is None:
        return _problem(404, "unknown_recipe", "No recipe of this name takes webhooks.")
    try:
        events = _read(app, recipe, request)
    except (AccessError, MappingError) as exc:
        return _refuse(app, recipe, exc)
    taken = [event for event in events if _concerns(recipe, event)]
    for event in taken:
        message = EventMessage(
            recipe=recipe.name,
            record=str(recipe.source),
            key=event.key,
            name=event.name,
            event_id=event.event_id,
            received_at=app.now(),
        )
        app.queues.send_event(message, ends_at_s - time.monotonic())
    if len(taken) < len(events) or not events:
        CALLS.add(app, recipe.name, IGNORED)
    return Response(202, json.dumps({"status": "accepted" if taken else "ignored"}))


def _read(app: App, recipe: Recipe, request: Request) -> list[Event]:
    if len(request.body) > MAX_BODY_BYTES:
        raise MappingError(f"The body is larger than {MAX_BODY_BYTES // 1024:,} KiB.", code="body_too_large")
    return _sender(app, recipe).read_events(Webhook(request.headers, request.query, request.body))


def _sender(app: App, recipe: Recipe) -> Sender:
    system = app.system(recipe.source.connection)
    if not hasattr(system, "read_events"):
        raise ConfigError(f"{recipe.source.connection} sends no webhooks that Concord can read.")
    return system  # type: ignore[return-value]  # the attribute proves it


def _concerns(recipe: Recipe, event: Event) -> bool:
    names = recipe.start.webhook or ()  # none named: every event
    return event.record == recipe.source.record and (not names or event.name in names)


def _refuse(app: App, recipe: Recipe, error: SyncError) -> Response:
    # The sentence holds neither key nor body; a foreign origin is what an operator looks for.
    LOG.warning("a webhook was refused", extra={"recipe": recipe.name, "reason": error.code, "problem": error.message})
    CALLS.add(app, recipe.name, error.code)
    return _problem(STATUS_OF.get(error.code, 401), error.code, error.message)


def _problem(status: int, code: str, sentence: str) -> Response:
    return Response(status, json.dumps({"error": code, "message": sentence}))


# -- counting -----------------------------------------------------------------------------------------------------


def _start_timer(delay_s: float, work: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, work)
    timer.daemon = True
    timer.start()


@dataclasses.dataclass(frozen=True)
class _Count:
    """What calls are counted under."""

    day: datetime  # its midnight in the app's zone, as UTC
    recipe: str
    reason: str

    def build_row(self, calls: int) -> AuditRow:
        """Return the row of these calls; its key is the same on every worker."""
        return AuditRow(
            at=self.day,
            action="webhook_ignored" if self.reason == IGNORED else "webhook_refused",
            who="webhook",
            recipe=self.recipe,
            detail=self.reason,
            count=calls,
            suffix=f"{self.recipe}-{self.reason}",
        )


class CallCounts:
    """Counts the calls that were not taken: one audit row per day, recipe and reason.

    Anybody may call, so a call must cost nothing: the rows are written beside the requests, once a minute and process at
    the most. A process that ends first loses its last minute; the log has every call.
    """

    def __init__(self, later: Callable[[float, Callable[[], None]], None] = _start_timer) -> None:
        self._later = later
        self._lock = threading.Lock()
        self._waiting: Counter[_Count] = Counter()
        self._scheduled = False
        self._written_at_s = float("-inf")

    def add(self, app: App, recipe: str, reason: str) -> None:
        """Count one call."""
        today = app.now().astimezone(app.settings.zone).date()
        day = datetime.combine(today, time_of_day(), app.settings.zone).astimezone(UTC)
        with self._lock:
            self._waiting[_Count(day, recipe, reason)] += 1
            if self._scheduled:
                return
            self._scheduled = True
            delay_s = max(0.0, self._written_at_s + COUNT_EVERY_S - time.monotonic())
        self._later(delay_s, lambda: self._write(app))

    def _write(self, app: App) -> None:
        with self._lock:
            counts, self._waiting = self._waiting, Counter()
            self._scheduled, self._written_at_s = False, time.monotonic()
        for count, calls in counts.items():
            try:
                _store(app, count.build_row(calls))
            except Exception:  # nobody waits for it, and nobody could do anything about it
                LOG.exception("refused calls could not be counted", extra={"recipe": count.recipe})


def _store(app: App, new: AuditRow) -> None:
    def add(stored: AuditRow | None) -> AuditRow:
        return stored.model_copy(update={"count": stored.count + new.count}) if stored else new

    app.tables.update(AuditRow, new.partition_key, new.row_key, add)


CALLS = CallCounts()
