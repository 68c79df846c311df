"""Forgetting what is old: runs with their pages and results, and the record of who did what."""

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice

from shared.state.rows import AuditRow, PageRow, ResultRow, RunKind, RunRow, StateRow, new_run_id, newest_first
from sync import summaries
from sync.app import App

LOG = logging.getLogger(__name__)

MOST_RUNS = 200  # per recipe and day: an invocation must end, the next day goes on


def purge(app: App) -> None:
    """Delete what is older than the retention settings; what is interrupted goes on the next day."""
    now = app.now()
    for recipe in app.recipes:
        deleted = 0
        for run in islice(_old_runs(app, recipe, now), MOST_RUNS):
            _delete_run(app, run)
            deleted += 1
        if deleted:
            LOG.info("old runs deleted", extra={"recipe": recipe, "count": deleted})
    _delete_audit(app, now - timedelta(days=app.settings.retention_audit_days))


def _old_runs(app: App, recipe: str, now: datetime) -> Iterator[RunRow]:
    """Yield the runs whose time is over; between the two retentions lie others, which stay."""
    events = now - timedelta(days=app.settings.retention_events_days)
    results = now - timedelta(days=app.settings.retention_results_days)
    newest = newest_first(new_run_id(recipe, max(events, results), "0000"))
    for run in app.tables.query(
        RunRow, recipe, row_from=newest, select=("run_id", "recipe", "kind", "state", "created_at")
    ):
        if run.state.ended and run.created_at < (events if run.kind is RunKind.EVENTS else results):
            yield run


def _delete_run(app: App, run: RunRow) -> None:
    """Delete a run's results and pages, and last its row, by which the others are found."""
    for number in summaries.page_numbers(app, run):
        _delete(app, list(app.tables.query(ResultRow, f"{run.run_id}!{number:06d}")))
    _delete(app, list(app.tables.query(PageRow, run.run_id)))
    app.tables.delete_key(RunRow, run.partition_key, run.row_key)


def _delete_audit(app: App, before: datetime) -> None:
    """Delete the audit of whole months."""
    for row in islice(app.tables.scan(AuditRow, partition_to=f"{before:%Y-%m}"), MOST_RUNS * 10):
        app.tables.delete_key(AuditRow, row.partition_key, row.row_key)


def _delete(app: App, rows: Sequence[StateRow]) -> None:
    if rows:
        app.tables.transact([("delete", row) for row in rows])
