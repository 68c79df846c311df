"""What the timers do: start what is due, once, and push what stopped moving."""

import logging
from collections.abc import Callable
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from shared.errors import MappingError
from shared.state.rows import RunRow
from shared.telemetry import without_texts
from sync import runs
from sync.app import App
from sync.recipe import Recipe
from sync.retention import purge
from sync.schedules import DailyAt, Every, Schedule, due
from sync.summaries import owe_digest
from sync.watchdog import push_stalled
from sync.windows import Window

LOG = logging.getLogger(__name__)

POLL_S = 300  # of recipes that poll without saying how often
DAILY_DUE, DAILY_DONE = "daily due", "daily done"  # among what has fired: the app's daily time, and what came of it
STARTS_LOOKED_AT = 20  # newest runs among which an occurrence's own is looked for


@without_texts()
def start_daily(app: App) -> None:
    """Start the recipes that run at the app's daily time, then forget what is old."""
    now = app.now()

    def start(recipe: Recipe) -> None:
        daily = recipe.start.daily
        if daily is not None and daily.at is None:
            _note(app, recipe, DAILY_DUE, now)  # before it is tried: a tick makes up for what is refused or dies
            _start_daily_due(app, recipe)

    try:
        _each(app, start)
    finally:
        purge(app)


@without_texts()
def tick(app: App) -> None:
    """Start what recipes' own schedules ask for, then look after runs that stopped moving."""
    now = app.now()

    def look_after(recipe: Recipe) -> None:
        for name, schedule, window in schedules_of(app, recipe):
            _start_due(app, recipe, name, schedule, window, now)
        _start_daily_due(app, recipe)
        _owe_digest(app, recipe, now)
        push_stalled(app, recipe, now)

    _each(app, look_after)


def _start_daily_due(app: App, recipe: Recipe) -> None:
    """Start what the app's daily time owes a recipe and could not start then: another run was in the way."""
    daily = recipe.start.daily
    fired = runs.activate(app, recipe).fired
    if daily is None or daily.at is not None or fired.get(DAILY_DUE, "") <= fired.get(DAILY_DONE, ""):
        return
    occurrence = datetime.fromisoformat(fired[DAILY_DUE])
    if _was_started(app, recipe, "daily", occurrence) or _start(app, recipe, daily.window, "daily"):
        _note(app, recipe, DAILY_DONE, occurrence)


def _each(app: App, step: Callable[[Recipe], None]) -> None:
    """Do a step for every recipe, whatever becomes of the others; then raise the first error, for the host's log."""
    errors = []
    for recipe in app.recipes.values():
        try:
            step(recipe)
        except Exception as exc:
            LOG.exception("a recipe's timer failed", extra={"recipe": recipe.name})
            errors.append(exc)
    if errors:
        raise errors[0]


def _owe_digest(app: App, recipe: Recipe, now: datetime) -> None:
    """Once a day, for recipes whose runs owe no mail of their own: polls, webhooks and sweeps.

    It is noted after it is sent: a digest that is sent twice goes out once (`summaries`), one that is lost never does.
    """
    quiet = recipe.start.webhook is not None or recipe.start.poll is not None
    midnight = _due(app, recipe, "digest", DailyAt(time(), app.settings.zone), now) if quiet else None
    if midnight is not None:
        yesterday = now.astimezone(app.settings.zone).date() - timedelta(days=1)
        owe_digest(app, recipe, yesterday)
        _note(app, recipe, "digest", midnight)


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


def _start_due(app: App, recipe: Recipe, name: str, schedule: Schedule, window: Window, now: datetime) -> None:
    """Start a schedule's latest occurrence; it is noted once that is done, so that neither a crash nor a refusal loses it."""
    occurrence = _due(app, recipe, name, schedule, now)
    if occurrence is None:
        return
    if _was_started(app, recipe, name, occurrence) or _start(app, recipe, window, name):
        _note(app, recipe, name, occurrence)


def _was_started(app: App, recipe: Recipe, name: str, occurrence: datetime) -> bool:
    """Tell whether an occurrence has its run already: another worker was faster, or one died before it could note that."""
    newest = app.tables.query(RunRow, recipe.name, limit=STARTS_LOOKED_AT)
    return any(
        run.started_by == name and run.created_at >= occurrence and not runs.never_began(app, run) for run in newest
    )


def _due(app: App, recipe: Recipe, name: str, schedule: Schedule, now: datetime) -> datetime | None:
    cursor = runs.activate(app, recipe)
    last = datetime.fromisoformat(cursor.fired[name]) if name in cursor.fired else cursor.activated_at
    return due(schedule, last, now)


def _note(app: App, recipe: Recipe, name: str, occurrence: datetime) -> None:
    runs.note_fired(app, recipe, name, occurrence.isoformat())


def _start(app: App, recipe: Recipe, window: Window, started_by: str) -> bool:
    """Start a run, or join it; False when another one is in its way."""
    mail_to = app.settings.recipients(recipe.name) if recipe.start.timed and started_by == "daily" else ()
    try:
        runs.start_run(app, recipe, window, started_by=started_by, mail_to=mail_to)
    except MappingError as exc:
        LOG.warning("a scheduled start was refused", extra={"recipe": recipe.name, "code": exc.code})
        return False
    return True
