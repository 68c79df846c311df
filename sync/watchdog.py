"""The watchdog: finds runs that stopped moving and sends again what they may have lost.

Once a minute. Everything that is sent may be there already: a second copy finds what the first one did. But copies of
what only waits would add up, so the records of a listed page are sent again late, and during an outage later still.
"""

import logging
from datetime import datetime, timedelta

from shared.state.messages import ItemModel, ItemsMessage, PageMessage, SummaryMessage
from shared.state.rows import MailState, PageRow, RunKind, RunRow, RunState
from sync import events, guards, runs
from sync.app import App
from sync.recipe import Recipe

LOG = logging.getLogger(__name__)

EVENTS_STALLED = timedelta(seconds=3 * runs.EVENTS_CHECK_S)
WATCHED_RUNS = 20  # newest runs per recipe that are looked at
WATCHED_DAYS = 3  # newest days of events
# Pushes are STALLED_AFTER apart: the sixth comes when every claim of a dead worker is over, then about one an hour; in an
# outage, in which everything waits and nothing may be lost, one in six hours.
RESENDING_PUSH, RESEND_EVERY, RESEND_EVERY_WAITING = 5, 20, 120


def push_stalled(app: App, recipe: Recipe, now: datetime) -> None:
    """Push each run of a recipe that has not moved for a while: a lost message must not hold it for ever."""
    for run in _watched(app, recipe, now):
        _tell_outage(app, run, now)
        if run.state is RunState.AWAITING_CONFIRMATION or not _is_stalled(run, now):
            continue
        if run.state.ended and run.closed:
            if run.mail_state is MailState.OWED:
                app.queues.send(SummaryMessage(run_id=run.run_id))
                app.change_run(run.run_id, moved_at=now)
        elif runs.never_began(app, run):
            LOG.warning("a start was interrupted; its run is dropped", extra={"run_id": run.run_id})
            app.tables.delete_key(RunRow, run.partition_key, run.row_key)
        else:
            LOG.warning("run stopped moving; it is pushed", extra={"run_id": run.run_id, "recipe": recipe.name})
            _send_lost(app, run)
            runs.push_run(app, run)


def _tell_outage(app: App, run: RunRow, now: datetime) -> None:
    """Have a run's readers told of an outage that lasts, every minute until they are."""
    since = run.waiting_since if run.state is RunState.WAITING else None
    over = run.kind is RunKind.EVENTS and run.until is not None and run.until <= now  # the next day goes on with it
    if since is None or run.outage_told == since or over:
        return
    if (now - since).total_seconds() >= app.settings.outage_alert_s:
        app.queues.send(SummaryMessage(run_id=run.run_id))


def _watched(app: App, recipe: Recipe, now: datetime) -> list[RunRow]:
    """Return a recipe's newest runs, and the days of events that polls may have pushed down the list."""
    newest = list(app.tables.query(RunRow, recipe.name, limit=WATCHED_RUNS))
    if recipe.start.webhook is None or len(newest) < WATCHED_RUNS:
        return newest
    known = {run.run_id for run in newest}
    days = [events.day_id(app, recipe.name, now - timedelta(days=ago)) for ago in range(WATCHED_DAYS)]
    return newest + [run for day in days if day not in known and (run := app.find_run(day)) is not None]


def _is_stalled(run: RunRow, now: datetime) -> bool:
    patience = EVENTS_STALLED if run.kind is RunKind.EVENTS else runs.STALLED_AFTER
    return now - (run.moved_at or run.created_at) >= patience


def _send_lost(app: App, run: RunRow) -> None:
    if run.state.ended or run.kind is RunKind.EVENTS:
        return
    waiting = run.state is RunState.WAITING
    resends = run.stalls % (RESEND_EVERY_WAITING if waiting else RESEND_EVERY) == RESENDING_PUSH
    if resends or (run.stalls == 0 and not waiting):
        _send_listing(app, run)
    if resends:
        _send_records(app, run)
    if run.released:
        guards.send_held(app, run)


def _send_listing(app: App, run: RunRow) -> None:
    """Send the message of the page at which the listing stands, if it has not come to its end."""
    pages = list(app.tables.query(PageRow, run.run_id, select=("run_id", "page", "next_link", "fanned_out", "last")))
    unfinished = next((page for page in pages if not page.fanned_out), None)
    if unfinished is None and pages and pages[-1].last:
        return
    number = unfinished.page if unfinished else len(pages)
    link = pages[number - 1].next_link if number else ""
    app.queues.send(PageMessage(run_id=run.run_id, page=number, link=link, first_sent_at=app.now()))


def _send_records(app: App, run: RunRow) -> None:
    """Send each record of a listed page that has no result yet; its wait counts from the run's start."""
    for page in app.tables.query(PageRow, run.run_id, row_from=f"{run.pages_done:06d}"):
        if page.fanned_out:
            keys = guards.missing_keys(app, page)
            app.queues.send_many(
                [
                    ItemsMessage(
                        run_id=run.run_id, page=page.page, items=[ItemModel(key=key)], first_sent_at=run.created_at
                    )
                    for key in keys
                ]
            )
