"""What failed and is still to be mended: the table `open`, of which the next runs take their recipe's records along."""

from collections.abc import Iterable, Mapping
from datetime import timedelta

from shared.state.rows import OpenRow, Outcome, PageRow, ResultRow, RunKind, RunRow
from sync.app import App

OPEN_FOR = timedelta(days=7)  # failed records are taken along this long, then only shown
COUNTED = (
    "run_id", "page", "key", "record_key", "outcome",
    "reason", "message", "warnings", "source_label", "source_url", "ended_at",
)  # fmt: skip


def open_rows(app: App, run: RunRow) -> dict[str, OpenRow]:
    """Return what is noted as failed of a run's recipe, by key; a preview changes nothing of it."""
    return {} if run.preview else {row.key: row for row in app.tables.query(OpenRow, run.recipe)}


def keep_open(app: App, run: RunRow, results: Iterable[ResultRow], known: Mapping[str, OpenRow]) -> None:
    """Note what failed, to be taken along by the next runs, and strike what is in order again.

    A run may be added up late: what another one has failed with since its result stays as it is.
    """
    if run.preview:
        return
    for result in results:
        row = known.get(result.record_key or result.key)
        if row is not None and row.last_failed_at > result.ended_at:
            continue
        if result.outcome is Outcome.FAILED and (row is None or row.last_run_id != run.run_id):
            app.tables.upsert(_open_row(run, result, row))
        elif result.outcome is not Outcome.FAILED and row is not None:
            app.tables.delete_key(OpenRow, row.partition_key, row.row_key)


def _open_row(run: RunRow, result: ResultRow, before: OpenRow | None) -> OpenRow:
    return OpenRow(
        recipe=run.recipe,
        key=result.record_key or result.key,
        reason=result.reason,
        message=result.message,
        label=result.source_label,
        url=result.source_url,
        first_failed_at=before.first_failed_at if before else result.ended_at,
        last_failed_at=result.ended_at,
        last_run_id=run.run_id,
        runs=before.runs + 1 if before else 1,
    )


def open_keys(app: App, run: RunRow) -> list[str]:
    """Return the failed records that a run takes along: not older than seven days."""
    if run.kind is not RunKind.WINDOW:
        return []
    limit = app.now() - OPEN_FOR
    return [row.key for row in app.tables.query(OpenRow, run.recipe) if row.first_failed_at >= limit]


def keep_rest_open(app: App, run: RunRow) -> list[ResultRow]:
    """Keep what failed on the pages of a stopped run that were never complete; return what is known of those pages."""
    known, rest = open_rows(app, run), []
    for page in app.tables.query(PageRow, run.run_id, row_from=f"{run.pages_done:06d}", select=("run_id", "page")):
        found = app.tables.query(ResultRow, f"{run.run_id}!{page.page:06d}", select=COUNTED)
        results = [result for result in found if result.outcome is not Outcome.HELD]
        keep_open(app, run, results, known)
        rest += results
    return rest
