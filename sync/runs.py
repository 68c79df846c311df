"""Life of a run, in the order in which it happens: start, join, list (pages.py), end.

A run's state lives in its row, changed by compare-and-set only. A recipe has one slot for a windowed run and one for a
backfill; whoever holds the slot's row is running.
"""

import dataclasses
import logging
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Literal

from shared.errors import MappingError, StateError
from shared.state.messages import PageMessage, RunMessage, SummaryMessage
from shared.state.rows import (
    AuditRow,
    CursorRow,
    MailState,
    OpenRow,
    Outcome,
    PageRow,
    ResultRow,
    RunKind,
    RunRow,
    RunState,
    SlotRow,
    new_run_id,
)
from shared.state.tables import RowChangedError, RowExistsError
from sync import guards
from sync.app import App
from sync.failures import COUNTED, keep_open, keep_rest_open, open_rows
from sync.outcomes import Again, tally
from sync.recipe import Recipe
from sync.windows import Window, WindowKind, bounds, parse_window

LOG = logging.getLogger(__name__)

OVERLAP = timedelta(minutes=10)  # changes that became visible late are read again
STALLED_AFTER = timedelta(minutes=3)  # a run of which nothing moved is pushed
EVENTS_CHECK_S = 300.0  # how often a day of events is added up
FIRST_CHECK_S = 1.0
LONGEST_CHECK_S = 10.0
SETTLED_AFTER_S = 30.0  # what is in hand when a run is stopped ends until then, and who ended a run has closed it
START_TRIES = 8
IDS_SHOWN = 500  # in a run's window
AGAIN_FOR_SLOT_S = 60.0  # what follows a run waits for a slot that another run holds
PAGES_LOOKED_AT = 100  # by one check: pages are done nearly in order


@dataclasses.dataclass(frozen=True)
class Started:
    """A run that was started, or joined."""

    run: RunRow
    joined: bool


# -- starting -----------------------------------------------------------------------------------------------------


def start_run(
    app: App,
    recipe: Recipe,
    window: Window,
    *,
    started_by: str,
    mail_to: tuple[str, ...] = (),
    preview: bool = False,
    verify: bool = False,
) -> Started:
    """Start a run of a recipe over a window, or join the one that is running over the same window.

    A `preview` decides everything and writes nothing; `verify` compares source and target and writes nothing.

    Raises MappingError `run_in_progress` when another window is running.
    """
    kind = _kind(window)
    for _ in range(START_TRIES):
        run = _new_run(app, recipe, window, kind, started_by, mail_to, preview or verify)
        run = app.tables.insert(run.model_copy(update={"verify": verify}))
        other = _take_slot(app, run) if kind in (RunKind.WINDOW, RunKind.BACKFILL) else None
        if other is None:
            app.queues.send(PageMessage(run_id=run.run_id, first_sent_at=app.now()))
            look_again(app, run, FIRST_CHECK_S)
            audit(app, "start", started_by, run)
            LOG.info("run started", extra={"run_id": run.run_id, "recipe": recipe.name})
            return Started(run, joined=False)
        app.tables.delete(run)
        if (other.window, other.preview, other.verify) != (run.window, run.preview, run.verify):
            raise MappingError(
                f"Run {other.run_id} ({other.window or 'events'}{', preview' if other.preview else ''}) is in progress; "
                f"start again when it has ended.",
                code="run_in_progress",
            )
        joined = _join(app, other.run_id, mail_to)
        if joined is not None:
            return Started(joined, joined=True)
    raise StateError(f"{recipe.name} could not be started: its slot kept changing. Try again.")


def _kind(window: Window) -> RunKind:
    match window.kind:
        case WindowKind.IDS:
            return RunKind.IDS
        case WindowKind.ALL | WindowKind.SPAN:
            return RunKind.BACKFILL
        case _:
            return RunKind.WINDOW


def _new_run(
    app: App, recipe: Recipe, window: Window, kind: RunKind, started_by: str, mail_to: tuple[str, ...], preview: bool
) -> RunRow:
    now = app.now()
    cursor = activate(app, recipe)
    since, until = bounds(window, now, app.settings.zone)
    moves_cursor = window.kind is WindowKind.SINCE_LAST_RUN and not preview
    if window.kind is WindowKind.SINCE_LAST_RUN:
        since, until = _since_last_run(app, recipe, cursor), None  # the end comes from the vendor's clock
    first = not cursor.started
    if first and not preview:
        app.tables.update(CursorRow, cursor.partition_key, cursor.row_key, _mark_started)
    return RunRow(
        run_id=new_run_id(recipe.name, now, secrets.token_hex(2)),
        recipe=recipe.name,
        kind=kind,
        preview=preview,
        window=_window_text(window),
        since=since,
        until=until,
        ids=list(window.ids),
        moves_cursor=moves_cursor,
        first_run=first and kind is not RunKind.IDS and not app.flow(recipe.name).two_way,
        started_by=started_by,
        environment=app.environment(recipe),
        recipe_hash=recipe.hash,
        created_at=now,
        moved_at=now,
        mail_to=list(mail_to),
        mail_state=MailState.OWED if mail_to else MailState.NONE,
    )


def _window_text(window: Window) -> str:
    """Return a window as its run shows it; many ids, which stand in the row already, are only counted."""
    if len(window.ids) > IDS_SHOWN:
        return f"ids: {len(window.ids):,} records"
    return str(window)


def activate(app: App, recipe: Recipe) -> CursorRow:
    """Return the recipe's cursor row, made now if this is the first time that the app sees the recipe."""
    blank = CursorRow(recipe=recipe.name, activated_at=app.now())
    stored = app.tables.get(CursorRow, blank.partition_key, blank.row_key)
    if stored is not None:
        return stored
    try:
        return app.tables.insert(blank)
    except RowExistsError as exc:
        if isinstance(exc.stored, CursorRow):
            return exc.stored
        raise


def note_started(app: App, recipe: Recipe) -> None:
    """Note that a recipe has begun to link records, so that its next run looks links up."""
    cursor = activate(app, recipe)
    if not cursor.started:
        app.tables.update(CursorRow, cursor.partition_key, cursor.row_key, _mark_started)


def note_fired(app: App, recipe: Recipe, name: str, moment: str) -> None:
    """Note the latest occurrence of something that happens once each time; one that is later already stays."""

    def note(row: CursorRow | None) -> CursorRow | None:
        if row is None or row.fired.get(name, "") >= moment:
            return row
        return row.model_copy(update={"fired": row.fired | {name: moment}})

    cursor = activate(app, recipe)
    app.tables.update(CursorRow, cursor.partition_key, cursor.row_key, note)


def _mark_started(row: CursorRow | None) -> CursorRow | None:
    return row.model_copy(update={"started": True}) if row else None


def _since_last_run(app: App, recipe: Recipe, cursor: CursorRow) -> datetime:
    if cursor.read_until is not None:
        return cursor.read_until - OVERLAP
    if recipe.start.start_from is not None:
        since, _ = bounds(recipe.start.start_from, app.now(), app.settings.zone)
        return since or _whole_second(cursor.activated_at)
    return _whole_second(cursor.activated_at)


def _whole_second(moment: datetime) -> datetime:
    """Return a moment as vendors write it: what changed within its second is not before it."""
    return moment.replace(microsecond=0)


def _take_slot(app: App, run: RunRow) -> SlotRow | None:
    """Take the recipe's slot for a run; None when it is ours, else whose it is."""
    slot = SlotRow(
        recipe=run.recipe,
        kind=_slot_kind(run),
        run_id=run.run_id,
        window=run.window,
        preview=run.preview,
        verify=run.verify,
    )
    try:
        app.tables.insert(slot)
    except RowExistsError as exc:
        held = exc.stored
        if not isinstance(held, SlotRow):
            raise
        holder = app.find_run(held.run_id)
        if holder is not None and not holder.state.ended:
            return held
        try:
            app.tables.replace(slot.model_copy(update={"etag": held.etag}))
        except RowChangedError:
            return _take_slot(app, run)
    return None


def never_began(app: App, run: RunRow) -> bool:
    """Tell whether a start was interrupted before it had its slot: nothing of the run was sent, and nobody was told of it."""
    if run.state is not RunState.QUEUED or run.kind not in (RunKind.WINDOW, RunKind.BACKFILL):
        return False
    slot = app.tables.get(SlotRow, run.recipe, f"slot-{_slot_kind(run)}")
    return slot is None or slot.run_id != run.run_id


def _slot_kind(run: RunRow) -> Literal["window", "backfill"]:
    return "window" if run.kind is RunKind.WINDOW else "backfill"


def _join(app: App, run_id: str, mail_to: tuple[str, ...]) -> RunRow | None:
    """Add recipients to a running run; None when it has just ended."""

    def add(run: RunRow) -> RunRow:
        if run.state.ended or not mail_to:
            return run
        everybody = list(dict.fromkeys([*run.mail_to, *mail_to]))
        return run.model_copy(update={"mail_to": everybody, "mail_state": MailState.OWED})

    run = app.update_run(run_id, add)
    return None if run is None or run.state.ended else run


def audit(app: App, action: str, who: str, run: RunRow, detail: str = "") -> None:
    """Write down who did what."""
    app.tables.insert(
        AuditRow(
            at=app.now(),
            action=action,
            who=who,
            recipe=run.recipe,
            run_id=run.run_id,
            detail=detail,
            suffix=secrets.token_hex(4),
        )
    )


# -- ending -------------------------------------------------------------------------------------------------------


def check_run(app: App, message: RunMessage) -> None:
    """Look whether a run has all its results and end it; else look again later, so that a run always ends."""
    run = app.find_run(message.run_id)
    if run is None or message.turn != run.turn:
        return
    if run.state.ended:
        _close_when_settled(app, run)
        return
    if run.state is RunState.AWAITING_CONFIRMATION:
        if run.held_at is not None and app.now() - run.held_at > guards.CONFIRM_WITHIN:
            end_run(app, run, RunState.CANCELLED, error="Nobody confirmed within 7 days.")
        else:
            look_again(app, run, 3600)
        return
    if run.kind is RunKind.EVENTS:
        _account_events(app, run)
        return
    run = _account(app, run)
    if run.last_page is not None and run.pages_done > run.last_page:
        end_run(app, run, _end_state(run))
        return
    run = guards.judge(app, run)
    if run.turn != message.turn:
        return  # it was pushed meanwhile: that check goes on
    if run.state is RunState.AWAITING_CONFIRMATION:
        look_again(app, run, 3600)
        return
    age_s = (app.now() - run.created_at).total_seconds()
    look_again(app, run, min(LONGEST_CHECK_S, max(FIRST_CHECK_S, age_s / 30)))


def look_again(app: App, run: RunRow, delay_s: float) -> None:
    """Have a run looked at later, by the check whose turn it is."""
    app.queues.send(RunMessage(run_id=run.run_id, turn=run.turn), delay_s=delay_s)


def push_run(app: App, run: RunRow, delay_s: float = 0) -> RunRow:
    """Have a run looked at by a new check; the one before, if it still lives, ends."""

    def push(row: RunRow) -> RunRow:
        return row.model_copy(update={"turn": row.turn + 1, "stalls": row.stalls + 1, "moved_at": app.now()})

    run = app.update_run(run.run_id, push) or run
    look_again(app, run, delay_s)
    return run


def _account(app: App, run: RunRow) -> RunRow:
    """Add up the pages whose results are all in, and note whether anything moved."""
    counts, warnings, done, partial = Counter(run.counts), run.warnings, run.pages_done, 0
    pages = list(app.tables.query(PageRow, run.run_id, row_from=f"{done:06d}", limit=PAGES_LOOKED_AT))
    known: dict[str, OpenRow] | None = None
    for page, results in _last_results(app, run, pages):
        if page.page != done or not page.fanned_out or not set(page.keys) <= results.keys():
            partial += len(results)  # counted for good when its turn comes
            continue
        for result in results.values():
            tally(counts, result)
            warnings += 1 if result.warnings else 0
        known = open_rows(app, run) if known is None else known
        keep_open(app, run, _in_full(app, page, results.values()), known)
        done += 1
    seen = sum(count for name, count in counts.items() if ":" not in name) + partial
    if (done, seen) == (run.pages_done, run.results_seen):
        return run
    changes = {
        "counts": dict(counts),
        "warnings": warnings,
        "pages_done": done,
        "results_seen": seen,
        "moved_at": app.now(),
        "stalls": 0,
    }
    if run.state is RunState.WAITING:
        changes |= GOES_ON

    def count(row: RunRow) -> RunRow:
        return row if row.state.ended else row.model_copy(update=changes)  # who closes it counts all of it

    return app.update_run(run.run_id, count, known=run) or run


def _last_results(app: App, run: RunRow, pages: Sequence[PageRow]) -> Iterator[tuple[PageRow, dict[str, ResultRow]]]:
    """Yield each page with its results that are not held, in brief and by key; all pages are read as one range."""
    if not pages:
        return
    first, last = f"{run.run_id}!{pages[0].page:06d}", f"{run.run_id}!{pages[-1].page + 1:06d}"
    found = groupby(app.tables.scan(ResultRow, first, last, select=BRIEF), key=lambda result: result.page)
    number, results = next(found, (-1, iter(())))
    for page in pages:
        here: dict[str, ResultRow] = {}
        while -1 < number < page.page:
            number, results = next(found, (-1, iter(())))
        if number == page.page:
            here = {result.key: result for result in results if result.outcome is not Outcome.HELD}
            number, results = next(found, (-1, iter(())))
        yield page, here


def _in_full(app: App, page: PageRow, brief: Collection[ResultRow]) -> Iterable[ResultRow]:
    """Return a page's results with what is shown of those that failed, if any did."""
    if any(result.outcome is Outcome.FAILED for result in brief):
        return app.tables.query(ResultRow, f"{page.run_id}!{page.page:06d}", select=COUNTED)
    return brief


CANCELLED = "Cancelled by a person."
GOES_ON: dict[str, object] = {"state": RunState.RUNNING, "waiting_since": None, "waiting_for": ""}


def note_outage(app: App, run_id: str, later: Again) -> None:
    """Show on the run that a system does not answer, and since when."""
    if not later.outage_of:
        return
    LOG.warning("a system does not answer", extra={"run_id": run_id, "connection": later.outage_of, "code": later.code})

    def wait(run: RunRow) -> RunRow:
        if run.state not in (RunState.QUEUED, RunState.RUNNING):
            return run
        changes = {"state": RunState.WAITING, "waiting_since": app.now(), "waiting_for": later.outage_of}
        return run.model_copy(update=changes | {"waiting_why": later.message})

    app.update_run(run_id, wait)


def _account_events(app: App, run: RunRow) -> None:
    """Add up a day's events; close the day when it is over."""
    counts: Counter[str] = Counter()
    warnings = 0
    for result in app.tables.scan(ResultRow, f"{run.run_id}!", f"{run.run_id}!~", select=COUNTED):
        tally(counts, result)
        warnings += 1 if result.warnings else 0
    seen = sum(count for name, count in counts.items() if ":" not in name)
    changes = {"counts": dict(counts), "warnings": warnings, "results_seen": seen, "moved_at": app.now()}
    run = app.change_run(run.run_id, **changes) or run
    if run.until is not None and app.now() >= run.until:
        end_run(app, run, _end_state(run))
    else:
        look_again(app, run, EVENTS_CHECK_S)


BRIEF = ("page", "key", "record_key", "outcome", "reason", "warnings", "ended_at")


def confirm_run(app: App, run_id: str, who: str) -> RunRow:
    """Let a run go on that waits for a confirmation.

    Raises MappingError `unknown_run`, or `nothing_to_confirm` when it does not wait.
    """
    run = existing_run(app, run_id)
    if run.state is not RunState.AWAITING_CONFIRMATION:
        raise MappingError(
            f"Run {run_id} does not wait for a confirmation; it is {run.state}.", code="nothing_to_confirm"
        )
    run = guards.release(app, run)
    if run.state.ended:  # cancelled at the same moment
        return run
    run = push_run(app, run, FIRST_CHECK_S)
    audit(app, "confirm", who, run, f"{run.held_for}: {run.held_count}")
    return run


def cancel_run(app: App, run_id: str, who: str) -> RunRow:
    """Stop a run: what is in hand ends, nothing more is started; what became of it is counted and mailed when that is over.

    Raises MappingError `unknown_run`, `run_ended`, or `not_cancellable` for a day of events: they would be worked all the
    same, and the day's failures told to nobody.
    """
    run = existing_run(app, run_id)
    if run.kind is RunKind.EVENTS:
        raise MappingError(
            f"Run {run_id} holds a day's webhooks and cannot be cancelled: stop the webhooks in the system that sends them.",
            code="not_cancellable",
        )
    if run.state.ended:
        raise MappingError(f"Run {run_id} has ended already; it is {run.state}.", code="run_ended")
    if run.state is RunState.AWAITING_CONFIRMATION:  # all that is not held is done
        end_run(app, run, RunState.CANCELLED, error=CANCELLED)
    elif (ended := _mark_ended(app, run, RunState.CANCELLED, CANCELLED)) is not None:
        keep_rest_open(app, ended)  # a run that is started now takes it along
        push_run(app, ended, SETTLED_AFTER_S)
    audit(app, "cancel", who, run)
    return existing_run(app, run_id)


def existing_run(app: App, run_id: str) -> RunRow:
    """Return a run. Raises MappingError `unknown_run`."""
    run = app.find_run(run_id)
    if run is None:
        raise MappingError(f"There is no run {run_id[:80]!r}.", code="unknown_run")
    return run


def _end_state(run: RunRow) -> RunState:
    if run.counts.get(Outcome.FAILED.value):
        return RunState.COMPLETED_WITH_FAILURES
    return RunState.COMPLETED_WITH_WARNINGS if run.warnings else RunState.COMPLETED


def end_run(app: App, run: RunRow, state: RunState, error: str = "") -> None:
    """End a run, once; what follows from its end is done here too, by whoever ended it."""
    ended = _mark_ended(app, run, state, error)
    if ended is not None:
        _close(app, ended)


def _mark_ended(app: App, run: RunRow, state: RunState, error: str) -> RunRow | None:
    """Store that a run has ended; None when there is no such run, or somebody else has ended it."""
    ours: list[bool] = []

    def end(stored: RunRow) -> RunRow:
        ours.append(not stored.state.ended)
        if stored.state.ended:
            return stored
        now = max(app.now(), stored.started_at or stored.created_at)  # each worker estimates storage's clock
        changes = {"state": state, "error": error, "ended_at": now, "moved_at": now}
        return stored.model_copy(update=changes)

    ended = app.update_run(run.run_id, end)
    return ended if ours and ours[-1] else None


def _close_when_settled(app: App, run: RunRow) -> None:
    """Close a run that is stopped, or whose closing was interrupted: not beside the one who is about to close it."""
    ended_s = (app.now() - run.ended_at).total_seconds() if run.ended_at else SETTLED_AFTER_S
    if ended_s >= SETTLED_AFTER_S:
        _close(app, run)
    elif not run.closed:
        look_again(app, run, SETTLED_AFTER_S - ended_s)


def _close(app: App, run: RunRow) -> None:
    """Do what follows from a run's end: move the cursor, owe the summary, free the slot, start what comes after.

    Each step may be repeated; a run whose closing was interrupted is closed by its next check.
    """
    if run.closed:
        return
    stopped = run.state in (RunState.FAILED, RunState.CANCELLED)
    if stopped:
        _count_rest(app, run, keep_rest_open(app, run))
    elif run.moves_cursor and run.until is not None:
        _move_cursor(app, run)
    in_order = run.verify and run.started_by == "backfill" and not run.counts.get(Outcome.FAILED.value) and not stopped
    if run.mail_state is MailState.OWED and in_order:  # nobody asked for it, and there is nothing to say
        app.change_run(run.run_id, mail_state=MailState.NONE)
    elif run.mail_state is MailState.OWED:
        app.queues.send(SummaryMessage(run_id=run.run_id))
    _free_slot(app, run)
    if not stopped and not run.preview and not _start_following(app, run):
        look_again(app, run, AGAIN_FOR_SLOT_S)
        return
    app.change_run(run.run_id, closed=True)
    LOG.info("run ended", extra={"run_id": run.run_id, "recipe": run.recipe, "state": run.state.value})


def _start_following(app: App, run: RunRow) -> bool:
    """Start what follows a run: the recipes that start after its own, a backfill's verification. False: a slot is taken."""
    try:
        if run.kind is RunKind.WINDOW:
            for recipe in app.recipes.values():
                if recipe.start.after == run.recipe:
                    start_run(app, recipe, Window(WindowKind.SINCE_LAST_RUN), started_by=f"after:{run.recipe}")
        elif run.kind is RunKind.BACKFILL:
            window, mail_to = parse_window(run.window), tuple(run.mail_to)
            start_run(app, app.recipe(run.recipe), window, started_by="backfill", mail_to=mail_to, verify=True)
    except MappingError as exc:
        LOG.info("what follows a run has to wait", extra={"run_id": run.run_id, "code": exc.code})
        return exc.code != "run_in_progress"
    return True


def _count_rest(app: App, run: RunRow, rest: Sequence[ResultRow]) -> None:
    """Count what became of the pages of a stopped run that were never complete; repeated it counts nothing twice."""
    counts = Counter(run.counts)
    for result in rest:
        tally(counts, result)
    changes = {
        "counts": dict(counts),
        "warnings": run.warnings + sum(1 for result in rest if result.warnings),
        "pages_done": 1 + max((result.page for result in rest), default=run.pages_done - 1),
        "results_seen": sum(count for name, count in counts.items() if ":" not in name),
    }

    def count(row: RunRow) -> RunRow:
        return row.model_copy(update=changes) if row.pages_done == run.pages_done else row

    app.update_run(run.run_id, count)


def _move_cursor(app: App, run: RunRow) -> None:
    """Move the recipe's cursor to the run's end, never back."""
    until = run.until
    blank = CursorRow(recipe=run.recipe, activated_at=app.now())

    def move(row: CursorRow | None) -> CursorRow | None:
        row = row or blank
        if until is None or (row.read_until is not None and row.read_until >= until):
            return row
        return row.model_copy(update={"read_until": until})

    app.tables.update(CursorRow, blank.partition_key, blank.row_key, move)


def _free_slot(app: App, run: RunRow) -> None:
    if run.kind not in (RunKind.WINDOW, RunKind.BACKFILL):
        return
    blank = SlotRow(recipe=run.recipe, kind=_slot_kind(run), run_id=run.run_id, window="")
    slot = app.tables.get(SlotRow, blank.partition_key, blank.row_key)
    if slot is not None and slot.run_id == run.run_id:
        try:
            app.tables.delete(slot)
        except RowChangedError:
            return  # a new run has taken it already
