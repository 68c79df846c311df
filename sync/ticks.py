"""What the timers do: start what is due, once, and push what stopped moving."""

import logging
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from shared.errors import MappingError
from shared.state.rows import CursorRow, PageMessage, PageRow, RunKind, RunRow, RunState
from shared.telemetry import without_texts
from sync import runs
from sync.app import App
from sync.recipe import Recipe
from sync.retention import purge
from sync.schedules import DailyAt, Every, Schedule, due
from sync.summaries import owe_digest
from sync.windows import Window

LOG = logging.getLogger(__name__)

POLL_S = 300  # of recipes that poll without saying how often
EVENTS_STALLED = timedelta(seconds=3 * runs.EVENTS_CHECK_S)
WATCHED_RUNS = 20  # newest runs per recipe that the watchdog looks at


@without_texts()
def start_daily(app: App) -> None:
    """Start the recipes that run at the app's daily time, then forget what is old."""
    for recipe in app.recipes.values():
        daily = recipe.start.daily
        if daily is not None and daily.at is None:
            _start(app, recipe, daily.window, "daily")
    purge(app)


@without_texts()
def tick(app: App) -> None:
    """Start what recipes' own schedules ask for, then look after runs that stopped moving."""
    now = app.now()
    for recipe in app.recipes.values():
        for name, schedule, window in schedules_of(app, recipe):
            if _fire(app, recipe, name, schedule, now):
                _start(app, recipe, window, name)
        _owe_digest(app, recipe, now)
        _push_stalled(app, recipe, now)


def _owe_digest(app: App, recipe: Recipe, now: datetime) -> None:
    """Once a day, for recipes whose runs owe no mail of their own: polls, webhooks and sweeps."""
    quiet = recipe.start.webhook is not None or recipe.start.poll is not None
    if quiet and _fire(app, recipe, "digest", DailyAt(time(), app.settings.zone), now):
        yesterday = now.astimezone(app.settings.zone).date() - timedelta(days=1)
        owe_digest(app, recipe, yesterday)


def schedules_of(app: App, recipe: Recipe) -> list[tuple[str, Schedule, Window]]:
    """Return a recipe's own schedules: their name, when they are due, and the window they start."""
    found: list[tuple[str, Schedule, Window]] = []
    daily, poll = recipe.start.daily, recipe.start.poll
    if daily is not None and daily.at is not None:
        zone = ZoneInfo(daily.zone) if daily.zone else app.settings.zone
        found.append(("daily", DailyAt(daily.at, zone, daily.days), daily.window))
    if poll is not None:
        found.append(("poll", Every(poll.every_s or POLL_S), poll.window))
    return found


def _fire(app: App, recipe: Recipe, name: str, schedule: Schedule, now: datetime) -> bool:
    """Note by compare-and-set that a schedule's occurrence is started; False when none is due or another worker was faster."""
    cursor = runs.activate(app, recipe)
    last = datetime.fromisoformat(cursor.fired[name]) if name in cursor.fired else cursor.activated_at
    occurrence = due(schedule, last, now)
    if occurrence is None:
        return False
    fired = occurrence.isoformat()

    def note(row: CursorRow | None) -> CursorRow | None:
        if row is None or row.fired.get(name, "") >= fired:
            return row
        return row.model_copy(update={"fired": row.fired | {name: fired}})

    stored = app.tables.get(CursorRow, cursor.partition_key, cursor.row_key)
    if stored is None or stored.fired.get(name, "") >= fired:
        return False
    app.tables.update(CursorRow, cursor.partition_key, cursor.row_key, note)
    return True


def _start(app: App, recipe: Recipe, window: Window, started_by: str) -> None:
    mail_to = app.settings.recipients(recipe.name) if recipe.start.timed and started_by == "daily" else ()
    try:
        runs.start_run(app, recipe, window, started_by=started_by, mail_to=mail_to)
    except MappingError as exc:
        LOG.warning("a scheduled start was refused", extra={"recipe": recipe.name, "code": exc.code})


def _push_stalled(app: App, recipe: Recipe, now: datetime) -> None:
    """Send the messages of a run again that has not moved for a while: a lost message must not hold it for ever."""
    for run in app.tables.query(RunRow, recipe.name, limit=WATCHED_RUNS):
        if run.state.ended and run.closed:
            continue
        moved = run.moved_at or run.created_at
        if run.state is RunState.AWAITING_CONFIRMATION or now - moved < (
            EVENTS_STALLED if run.kind is RunKind.EVENTS else runs.STALLED_AFTER
        ):
            continue
        if runs.never_began(app, run):
            LOG.warning("a start was interrupted; its run is dropped", extra={"run_id": run.run_id})
            app.tables.delete_key(RunRow, run.partition_key, run.row_key)
            continue
        LOG.warning("run stopped moving; it is pushed", extra={"run_id": run.run_id, "recipe": recipe.name})
        if run.last_page is None and run.kind is not RunKind.EVENTS:
            app.queues.send(_next_page(app, run))
        if run.released:
            runs.send_held(app, run)
        runs.push_run(app, run)


def _next_page(app: App, run: RunRow) -> PageMessage:
    """Build the message of the page at which the listing stands."""
    pages = list(app.tables.query(PageRow, run.run_id, select=("run_id", "page", "next_link", "fanned_out", "last")))
    unfinished = next((page for page in pages if not page.fanned_out), None)
    if unfinished is not None or not pages:
        number = unfinished.page if unfinished else 0
        link = pages[number - 1].next_link if number and number <= len(pages) else ""
        return PageMessage(run_id=run.run_id, page=number, link=link, first_sent_at=app.now())
    return PageMessage(run_id=run.run_id, page=pages[-1].page + 1, link=pages[-1].next_link, first_sent_at=app.now())
