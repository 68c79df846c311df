"""Runs and results as JSON, for the status endpoints and whoever polls them."""

from itertools import islice
from typing import Any
from urllib.parse import urlencode

from shared.errors import MappingError
from shared.state.rows import MailState, OpenRow, Outcome, ResultRow, RunRow, RunState
from sync.app import App
from sync.summaries import results_of

MOST_RUNS = 100
MOST_RESULTS = 1000
SUCCESSFUL = (Outcome.CREATED, Outcome.ADOPTED, Outcome.UPDATED, Outcome.UNCHANGED)


def run_view(app: App, run: RunRow) -> dict[str, Any]:
    """Return a run as people ask for it: state, progress, counts, and where its mail stands; no addresses."""
    counts = run.counts_so_far or run.counts
    outcomes = {name: count for name, count in counts.items() if ":" not in name}
    return {
        "run_id": run.run_id,
        "recipe": run.recipe,
        "title": app.recipes[run.recipe].title if run.recipe in app.recipes else run.recipe,
        "state": run.state,
        "environment": run.environment,
        "preview": run.preview,
        "verify": run.verify,
        "window": run.window,
        "since": _time(run.since),
        "until": _time(run.until),
        "started_by": run.started_by,
        "created_at": _time(run.created_at),
        "started_at": _time(run.started_at),
        "ended_at": _time(run.ended_at),
        "progress": {"done": run.results_seen, "pages": run.pages_done, "listed": run.last_page is not None},
        "counts": outcomes,
        "successful": sum(counts.get(outcome.value, 0) for outcome in SUCCESSFUL),
        "skipped": {name.split(":", 1)[1]: count for name, count in counts.items() if name.startswith("skipped:")},
        "warnings": run.warnings,
        "error": run.error,
        "waiting": _waiting(app, run) if run.state is RunState.WAITING else None,
        "held": {"for": run.held_for, "count": run.held_count} if run.held_for and not run.released else None,
        "mail": _mail(run) if run.mail_state is not MailState.NONE else None,
        "links": {
            "self": f"{app.settings.app_url}/api/runs/{run.run_id}",
            "results": f"{app.settings.app_url}/api/runs/{run.run_id}/results",
        },
    }


def _mail(run: RunRow) -> dict[str, Any]:
    facts = {"state": run.mail_state, "sends": run.mail_sends, "undelivered": run.mail_undelivered}
    return facts | {"problem": run.mail_problem if run.mail_state is not MailState.SENT else ""}


def _waiting(app: App, run: RunRow) -> dict[str, Any]:
    return {"for": app.settings.product(run.waiting_for), "since": _time(run.waiting_since), "why": run.waiting_why}


def list_runs(app: App, recipe: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """Return the newest runs of one recipe, or of all. Raises MappingError `unknown_recipe`."""
    names = [app.recipe(recipe).name] if recipe else list(app.recipes)
    limit = min(limit, MOST_RUNS)
    found = [run for name in names for run in app.tables.query(RunRow, name, limit=limit)]
    found.sort(key=lambda run: run.created_at, reverse=True)
    return [run_view(app, run) for run in found[:limit]]


def list_results(app: App, run_id: str, outcome: str = "", limit: int = MOST_RESULTS, skip: int = 0) -> dict[str, Any]:
    """Return a run's results, by choice those of one outcome, and where the next ones are.

    `skip` leaves out the first so many. Raises MappingError `unknown_run` or `bad_outcome`.
    """
    run = app.find_run(run_id)
    if run is None:
        raise MappingError(f"There is no run {run_id[:80]!r}.", code="unknown_run")
    if outcome and outcome not in list(Outcome):
        raise MappingError(f"{outcome[:40]!r} is no outcome; there are {', '.join(Outcome)}.", code="bad_outcome")
    chosen = (result for result in results_of(app, run) if outcome in ("", result.outcome))
    limit = min(limit, MOST_RESULTS)
    found = list(islice(chosen, skip, skip + limit + 1))
    asked = ({"outcome": outcome} if outcome else {}) | {"limit": limit, "skip": skip + limit}
    following = f"{app.settings.app_url}/api/runs/{run.run_id}/results?{urlencode(asked)}"
    return {
        "results": [result_view(result) for result in found[:limit]],
        "next": following if len(found) > limit else None,
    }


def result_view(result: ResultRow) -> dict[str, Any]:
    """Return one result."""
    return result.model_dump(mode="json", exclude={"schema_version", "run_id"})


def list_open(app: App, recipe: str) -> list[dict[str, Any]]:
    """Return a recipe's records that failed and are still to be mended."""
    return [row.model_dump(mode="json", exclude={"schema_version"}) for row in app.tables.query(OpenRow, recipe)]


def _time(value: Any) -> str | None:
    return value.isoformat() if value else None
