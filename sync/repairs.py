"""What a person can do about records that failed: try them again, skip them, or give up a link whose target is gone."""

import dataclasses
from collections.abc import Collection, Sequence

from shared.errors import MappingError
from shared.state import claims
from shared.state.rows import LinkRow, OpenRow, Outcome, RunRow, TargetRow, key_text
from sync import links, runs
from sync.app import App
from sync.children import forget_links
from sync.doubts import CREATE_IN_DOUBT
from sync.flow import Flow
from sync.summaries import results_of
from sync.windows import Window, WindowKind

RECREATES = ("target_missing", CREATE_IN_DOUBT)  # reasons of the records that `recreate` takes …
UNLINKS = ("target_missing",)  # … and `unlink`
MOST_RECORDS = 10_000  # that one repair takes; a larger failure is a backfill


@dataclasses.dataclass(frozen=True)
class Repaired:
    """What a repair did."""

    run: RunRow  # that works the records again, else the one that they failed in
    records: int


def retry_failed(app: App, run: RunRow, who: str, keys: Collection[str] = ()) -> Repaired:
    """Start a run over the records that failed in a run, or over some of them; the first run's results and mail stand.

    Raises MappingError `nothing_to_repair`.
    """
    return _work_again(app, run, _failed(app, run, keys), "retry", who)


def skip_failed(app: App, run: RunRow, who: str, keys: Collection[str] = ()) -> Repaired:
    """Take the records that failed in a run, or some of them, off the list of what is taken along.

    Raises MappingError `nothing_to_repair`.
    """
    failed = _failed(app, run, keys)
    for key in failed:
        app.tables.delete_key(OpenRow, run.recipe, key_text(key))
    runs.audit(app, "skip", who, run, f"{len(failed)} records")
    return Repaired(run, len(failed))


def recreate_missing(app: App, run: RunRow, who: str, keys: Collection[str] = ()) -> Repaired:
    """Unlink the records whose target was gone in a run, or may have been made, and work them again: matched or created anew.

    Raises MappingError `nothing_to_repair`.
    """
    gone = _unlink_all(app, run, _failed(app, run, keys, reasons=RECREATES))
    return _work_again(app, run, gone, "recreate", who)


def unlink_missing(app: App, run: RunRow, who: str, keys: Collection[str] = ()) -> Repaired:
    """Unlink the records whose target was gone in a run: their next change is matched or created anew.

    Raises MappingError `nothing_to_repair`.
    """
    gone = _unlink_all(app, run, _failed(app, run, keys, reasons=UNLINKS))
    for key in gone:
        app.tables.delete_key(OpenRow, run.recipe, key_text(key))
    runs.audit(app, "unlink", who, run, f"{len(gone)} records")
    return Repaired(run, len(gone))


ACTIONS = {
    "retry": retry_failed,
    "skip": skip_failed,
    "recreate": recreate_missing,
    "unlink": unlink_missing,
}


def _work_again(app: App, run: RunRow, keys: Collection[str], action: str, who: str) -> Repaired:
    window = Window(WindowKind.IDS, ids=tuple(sorted(keys)))
    started = runs.start_run(app, app.recipe(run.recipe), window, started_by="retry", mail_to=tuple(run.mail_to))
    runs.audit(app, action, who, run, f"{len(keys)} records as {started.run.run_id}")
    return Repaired(started.run, len(keys))


def _failed(app: App, run: RunRow, keys: Collection[str], reasons: Sequence[str] = ()) -> list[str]:
    if run.preview and not run.verify:
        text = f"Run {run.run_id} was a preview and wrote nothing: start the run itself, or repair the run that failed."
        raise MappingError(text, code="nothing_to_repair")
    chosen, unknown = dict[str, None](), set(keys)
    for result in results_of(app, run):
        names = {result.key, result.record_key or result.key}  # an event's result is keyed by the event
        fits = not reasons or result.reason in reasons
        if result.outcome is Outcome.FAILED and fits and (not keys or names & set(keys)):
            chosen[result.record_key or result.key] = None
            unknown -= names
    what = f"failed with {' or '.join(reasons)}" if reasons else "failed"
    if unknown:
        text = f"No record {min(unknown)[:80]!r} of run {run.run_id} {what}; take `key` from its results."
        raise MappingError(text, code="nothing_to_repair")
    if not chosen:
        raise MappingError(f"No record of run {run.run_id} {what}.", code="nothing_to_repair")
    if len(chosen) > MOST_RECORDS:
        raise MappingError(
            f"{len(chosen):,} records are more than a repair takes ({MOST_RECORDS:,}); start a backfill.",
            code="too_many_records",
        )
    return list(chosen)


def _unlink_all(app: App, run: RunRow, keys: Collection[str]) -> list[str]:
    """Unlink records from the targets that a run missed, and return which; who has another target by now keeps it.

    Who is being worked just now keeps what there is: another message may be making it.

    Raises MappingError `nothing_to_repair` when all of them have.
    """
    flow = app.flow(run.recipe)
    missed = {result.record_key or result.key: result.target_key for result in results_of(app, run)}
    gone = []
    for key, link in links.find_links(flow, list(keys)).items():
        if link is not None and link.other_key and links.target_key(flow, link) != missed[key]:
            continue
        busy = link is not None and (link.side != flow.source_name or not claims.is_over(link.claim, app.now()))
        if link is not None and not link.other_key and busy:
            continue
        if link is not None:
            _unlink(flow, link)
        gone.append(key)
    if not gone:
        raise MappingError(
            f"What was missing in run {run.run_id} has a new target since, or is being worked: nothing to recreate or unlink.",
            code="nothing_to_repair",
        )
    return gone


def _unlink(flow: Flow, link: LinkRow) -> None:
    """Forget a pair: first the way back and the children's links, last the link, so that it can be repeated."""
    target_key = links.target_key(flow, link)
    if target_key:
        back = TargetRow(pair=flow.pair, side=flow.target_name, key=target_key, link_side="", link_key="")
        flow.tables.delete_key(TargetRow, back.partition_key, back.row_key)
    forget_links(flow, link)
    flow.tables.delete(link)
