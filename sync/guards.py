"""Guards: what a run that would create many users, or take much away, holds back until all of it is counted.

Such records are held when they are prepared. When every page is listed and worked, little goes on by itself, last of all;
much waits for a person. What only adds an entry takes nothing away, and events are not guarded.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta

from shared.state.messages import PageMessage, SummaryMessage
from shared.state.rows import Outcome, PageRow, ResultRow, RunRow, RunState
from sync import children
from sync.app import App
from sync.decide import Action, appends
from sync.flow import Flow
from sync.outcomes import tally
from sync.recipe import GoneAction
from sync.work import Work

CONFIRM_WITHIN = timedelta(days=7)
BRIEF = ("run_id", "page", "fanned_out", "held_keys")  # of a page: its records' keys are most of it
NEW_USERS, REMOVALS = "new_users", "removals"


@dataclasses.dataclass(frozen=True)
class Counted:
    """What works would create and take away."""

    new_references: tuple[str, ...]  # digests of their values
    removals: int
    removable: int  # out of how many


# -- on a page ----------------------------------------------------------------------------------------------------------


def count(flow: Flow, works: Sequence[Work]) -> Counted:
    """Count what prepared works would create and take away."""
    return Counted(
        tuple(sorted({digest for work in works for digest in work.missing})),
        sum(_removals(flow, work) for work in works),
        sum(_removable(work) for work in works),
    )


def hold(flow: Flow, works: Iterable[Work]) -> list[str]:
    """End the works that a guard has to count first as held, and return their keys."""
    held = []
    for work in works:
        if work.missing:
            work.end(Outcome.HELD, NEW_USERS, "Waits because the run would create many users.")
        elif _removals(flow, work):
            work.end(Outcome.HELD, REMOVALS, "Waits because the run would take much away.")
        else:
            continue
        held.append(work.key)
    return held


def add(page: PageRow, held: Sequence[str], counted: Counted) -> PageRow:
    """Add held records to a page's row; those that it holds already are counted."""
    fresh = [key for key in held if key not in page.held_keys]
    changes = {
        "held_keys": [*page.held_keys, *fresh],
        "new_references": sorted({*page.new_references, *counted.new_references}),
        "removals": page.removals + (counted.removals if fresh else 0),
        "removable": max(page.removable, counted.removable),
    }
    return page.model_copy(update=changes)


def is_little(app: App, counted: Counted) -> bool:
    """Tell whether what one page, which is all there is, would create and take away may go at once."""
    return not _excess(app, len(counted.new_references), counted.removals, counted.removable)


def _removals(flow: Flow, work: Work) -> int:
    """Return how much a work would take away: what its fields replace once it is over, and children that are gone."""
    if not work.open:
        return 0
    is_over = not work.in_scope and flow.recipe.gone.action is GoneAction.WRITE and work.linked_key
    replaces = is_over and work.decision is not None and work.decision.action is Action.UPDATE
    record = flow.target_type() if replaces else None
    own = record is not None and any(not appends(record, name) for name in work.decided.writes)
    return int(own) + children.removals_of(work)


def _removable(work: Work) -> int:
    mirrored = [family for family in work.families or () if family.mirrored]
    linked = sum(child.linked_key for family in mirrored for child in family.works)
    return 1 + linked + sum(len(family.stale) for family in mirrored)


# -- over all pages -----------------------------------------------------------------------------------------------------


def judge(app: App, run: RunRow) -> RunRow:
    """When every page is listed and worked, let what is held go, or ask a person."""
    if run.last_page is None or run.released:
        return run
    # those before are done and hold nothing
    pages = list(app.tables.query(PageRow, run.run_id, row_from=f"{run.pages_done:06d}", select=BRIEF))
    if run.pages_done + len(pages) <= run.last_page or not all(page.fanned_out for page in pages):
        return run
    if not any(page.held_keys for page in pages):
        return run
    pages = list(app.tables.query(PageRow, run.run_id))
    counts: Counter[str] = Counter()
    for page in pages:
        results = list(
            app.tables.query(ResultRow, f"{run.run_id}!{page.page:06d}", select=("key", "outcome", "reason"))
        )
        if not set(page.keys) <= {result.key for result in results}:
            return run  # some may have to be held yet
        for result in results:
            tally(counts, result)
    users = len({digest for page in pages if page.held_keys for digest in page.new_references})
    excess = _excess(app, users, sum(page.removals for page in pages), sum(page.removable for page in pages))
    if not excess:
        return release(app, run)
    changes = {
        "state": RunState.AWAITING_CONFIRMATION,
        "held_for": " and ".join(excess),
        "held_count": sum(number for number, _ in excess.values()),
        "held_text": " ".join(sentence for _, sentence in excess.values()),
        "held_at": app.now(),
        "moved_at": app.now(),
        "counts_so_far": dict(counts),
    }
    asked = app.update_run(run.run_id, lambda row: row if row.state.ended else row.model_copy(update=changes)) or run
    if asked.mail_to and not asked.state.ended:  # else it was cancelled meanwhile, and is mailed when it is counted
        app.queues.send(SummaryMessage(run_id=run.run_id))
    return asked


def _excess(app: App, users: int, removals: int, removable: int) -> dict[str, tuple[int, str]]:
    """Return the guards that are exceeded, each with its number and a sentence."""
    excess = {}
    most_users = app.settings.max_new_users
    if users > most_users:
        what = "1 user" if users == 1 else f"{users:,} users"
        excess[NEW_USERS] = (users, f"The run would create {what}; up to {most_users:,} it does not ask.")
    most = max(app.settings.max_removals, int(removable * app.settings.max_removals_percent / 100))
    if removals > most:
        text = (
            f"The run would take away {removals:,} of {removable:,} (records that are over in the source, and entries that "
            f"it no longer has); up to {most:,} it does not ask."
        )
        excess[REMOVALS] = (removals, text)
    return excess


def missing_keys(app: App, page: PageRow) -> list[str]:
    """Return the records of a page that have no result; a held one is a result."""
    known = {result.key for result in app.tables.query(ResultRow, f"{page.run_id}!{page.page:06d}", select=("key",))}
    return [key for key in page.keys if key not in known]


def release(app: App, run: RunRow) -> RunRow:
    """Let what the guards hold go: send its pages again."""
    changes = {"released": True, "state": RunState.RUNNING, "moved_at": app.now(), "counts_so_far": {}}
    run = app.change_run(run.run_id, **changes) or run
    if not run.state.ended:
        send_held(app, run)
    return run


def send_held(app: App, run: RunRow) -> None:
    """Send the pages that hold something; a page that is released holds nothing any more."""
    pages = [page for page in app.tables.query(PageRow, run.run_id) if page.held_keys]
    app.queues.send_many(
        [PageMessage(run_id=run.run_id, page=page.page, release=True, first_sent_at=app.now()) for page in pages]
    )
