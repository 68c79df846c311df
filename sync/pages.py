"""Listing a run's pages and working their records: the two steps between a run's start and its end.

A page's manifest is written once, before anything of it is sent; then the next page is sent, then the records. A repeat
replays the manifest. What a page can settle by itself (unchanged, skipped, unmappable) it settles; every other record
is one message.
"""

import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

from shared import attempt
from shared.clients.system import Changed, Row, System
from shared.errors import ConfigError, RejectedError, RemoteError, SyncError
from shared.state.messages import ItemModel, ItemsMessage, PageMessage, RowModel
from shared.state.queues import again, fit
from shared.state.rows import CursorRow, Outcome, PageRow, ResultRow, RunKind, RunRow, RunState, key_text
from shared.state.storage import SideBySide
from shared.state.tables import RowChangedError, RowExistsError
from sync import bulk, failures, guards, items, outcomes, runs, writing
from sync.app import App
from sync.checks import Severity, validate
from sync.flow import Flow
from sync.outcomes import Again
from sync.portions import ROOM, Listed, Relay, by_shard, permits_of, send_those_in_turn, work_portions
from sync.recipe import GoneAction
from sync.verify import verify
from sync.work import Work

LOG = logging.getLogger(__name__)
M = TypeVar("M", PageMessage, ItemsMessage)

OPEN_LINK = "open"  # page of the failed records that a run takes along
IDS_PAGE = 100
_SIDE_BY_SIDE = SideBySide()


# -- listing ------------------------------------------------------------------------------------------------------


def list_page(app: App, message: PageMessage, message_id: str) -> None:
    """List one page of a run and send its records on. A listing that fails for good ends the run as failed."""
    run = app.find_run(message.run_id)
    if run is None or run.state.ended:
        return
    flow = app.flow(run.recipe)
    with attempt.attempt(run_id=run.run_id, recipe=run.recipe, correlation_id=run.run_id):
        try:
            if message.release:
                _release_page(app, flow, run, message, message_id)
            else:
                _describe_ahead(flow)
                _list_page(app, flow, _begin(app, flow, run), message, message_id)
        except (RemoteError, ConfigError) as exc:
            _later_or_fail(app, flow, run, message, message_id, exc)


def _later_or_fail(app: App, flow: Flow, run: RunRow, message: PageMessage, message_id: str, error: SyncError) -> None:
    work = Work(ItemModel(key=""), attempts=message.attempt, first_sent_at=message.first_sent_at, error=error)
    later = outcomes.settle_error(flow, work)
    if later is None:
        LOG.warning("listing failed", extra={"code": error.code})
        runs.end_run(app, run, RunState.FAILED, error=error.message)
        return
    runs.note_outage(app, run.run_id, later)
    app.queues.send(_again(app, message, message_id, later), delay_s=later.delay_s)


def _begin(app: App, flow: Flow, run: RunRow) -> RunRow:
    """Check the recipe before its first run and fix the run's end by the vendor's clock."""
    if run.started_at is not None:
        return run
    _validate_once(app, flow)
    needs_clock = run.until is None and run.kind is not RunKind.IDS
    until = flow.source.read_clock() if needs_clock else run.until
    listed_until = _note_listing(app, flow, run, until)

    def begin(stored: RunRow) -> RunRow:
        if stored.started_at is not None or stored.state.ended:
            return stored
        changes = {
            "started_at": app.now(),
            "moved_at": app.now(),
            "until": until,
            "listed_until": listed_until,
        }
        return stored.model_copy(update=runs.GOES_ON | changes)

    return app.update_run(run.run_id, begin) or run


def _note_listing(app: App, flow: Flow, run: RunRow, until: datetime | None) -> datetime | None:
    """Note up to when a run is going to list records, and return up to when those before it have."""
    cursor = runs.activate(app, flow.recipe)

    def note(row: CursorRow | None) -> CursorRow | None:
        if row is None or until is None or (row.listed_until is not None and row.listed_until >= until):
            return row
        return row.model_copy(update={"listed_until": until})

    if not run.preview:
        app.tables.update(CursorRow, cursor.partition_key, cursor.row_key, note, known=cursor)
    return cursor.listed_until


def _describe_ahead(flow: Flow) -> None:
    """Have both systems described side by side where this worker does not know them yet.

    What a system refuses to describe is told by whoever needs it.
    """

    def describe(asked: tuple[System, str]) -> None:
        system, record = asked
        with contextlib.suppress(RejectedError):
            system.describe(record)

    source, target = flow.recipe.source.record, flow.recipe.target.record
    _SIDE_BY_SIDE.map(
        describe, [(flow.source, source), *((flow.target, name) for name in (target, *flow.found_records()))]
    )
    _SIDE_BY_SIDE.map(describe, [(flow.source, name) for name in flow.read_along()])


def _validate_once(app: App, flow: Flow) -> None:
    """Compare a recipe with its systems before its first run, and again when it was changed.

    Raises ConfigError with every problem.
    """
    cursor = runs.activate(app, flow.recipe)
    if cursor.validated_hash == flow.recipe.hash:
        return
    problems = [
        problem
        for problem in validate(flow.recipe, lambda connection, record: app.system(connection).describe(record))
        if problem.severity is Severity.ERROR
    ]
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems), code="recipe_invalid")

    def valid(row: CursorRow | None) -> CursorRow | None:
        return row.model_copy(update={"validated_hash": flow.recipe.hash}) if row else None

    app.tables.update(CursorRow, cursor.partition_key, cursor.row_key, valid)


def _list_page(app: App, flow: Flow, run: RunRow, message: PageMessage, message_id: str) -> None:
    owner = message.first_id or message_id
    page, listed = _find_or_list(app, flow, run, message)
    if page.fanned_out:
        return
    in_bulk = bulk.is_bulk(app, run, page)
    relay = Relay(app, flow, page, sent=message.next_sent)
    if page.last:
        app.change_run(run.run_id, last_page=page.page)
    elif in_bulk:
        relay.send_in_turn()
    else:
        relay.send()
    keys, listed = (page.keys, listed) if listed is not None else (_keys_without_result(app, page), Listed(()))

    def work_page(by: Relay | None) -> tuple[list[str], guards.Counted]:
        known, only = listed.by_key(), page.last and page.page == 0
        works = [Work(ItemModel(key=key), page=page.page, owner=owner, row=known.get(key)) for key in keys]
        return _fan_out(app, flow, run, page.page, works, owner, released=run.released, only=only, relay=by)

    try:
        if not in_bulk:
            held, counted = work_page(None)
        else:
            with relay, ROOM.hold(len(keys), listed.pack):
                if _has_ended(app, run):
                    return
                held, counted = work_page(relay)
    except RemoteError as exc:
        waiting = message.model_copy(update={"next_sent": relay.sent})  # else each copy of a page would beget another
        _later_or_fail(app, flow, run, waiting, message_id, exc)
        return
    relay.send()
    _mark_fanned_out(app, page, held, counted)
    if in_bulk:
        send_those_in_turn()


def _find_or_list(app: App, flow: Flow, run: RunRow, message: PageMessage) -> tuple[PageRow, Listed | None]:
    """Return a page's manifest, and its rows where they were listed just now."""
    blank = PageRow(run_id=run.run_id, page=message.page)
    page = app.tables.get(PageRow, blank.partition_key, blank.row_key)
    if page is not None:
        return page, None
    page, listed = _fetch_page(app, flow, run, message)
    try:
        return app.tables.insert(page), listed
    except RowExistsError as exc:
        if not isinstance(exc.stored, PageRow):
            raise
        return exc.stored, None  # another copy of this message was faster: its manifest counts


def _has_ended(app: App, run: RunRow) -> bool:
    """Tell whether a run was ended while its page waited for room, or was worked; it may have been a moment ago."""
    now = app.known_run(run.run_id)
    return now is None or now.state.ended


def _fetch_page(app: App, flow: Flow, run: RunRow, message: PageMessage) -> tuple[PageRow, Listed | None]:
    """Find out what stands on a page. The rows are None where only their keys are known."""
    number = message.page
    if run.kind is RunKind.IDS:
        start = number * IDS_PAGE
        keys = run.ids[start : start + IDS_PAGE]
        last = start + IDS_PAGE >= len(run.ids)
        return PageRow(run_id=run.run_id, page=number, keys=keys, next_link="" if last else "ids", last=last), None
    if message.link == OPEN_LINK:
        pages = app.tables.query(PageRow, run.run_id, select=("keys",))
        listed_before = {key for page in pages for key in page.keys}  # it changed in the window too: once is enough
        keys = [key for key in failures.open_keys(app, run) if key not in listed_before]
        return PageRow(run_id=run.run_id, page=number, keys=keys, last=True), None
    when = flow.recipe.block.when if flow.recipe.gone.action is GoneAction.IGNORE else {}
    changed = Changed(run.since, run.until, when)
    record, paths = flow.recipe.source.record, flow.recipe.read_paths()
    in_bulk = run.kind is RunKind.BACKFILL or app.settings.bulk_above == 0  # the same for all pages of a run
    fetch_page = partial(flow.source.fetch_page, record, paths, in_bulk=in_bulk, fill=flow.target.writes_together)
    try:
        listed = fetch_page(changed, message.link or None)
    except RejectedError as exc:
        before = app.tables.get(PageRow, run.run_id, f"{number - 1:06d}") if number else None
        if exc.code != "page_expired" or before is None or before.reached_at is None:
            raise
        LOG.info("page link expired; listing goes on from the last record's change time")
        changed = Changed(before.reached_at, run.until, when)
        listed = fetch_page(changed, None)
    takes_along = listed.next is None and bool(failures.open_keys(app, run))
    listed_before = _shared_keys(app, run, number, listed.rows)
    page = PageRow(
        run_id=run.run_id,
        page=number,
        keys=[key for key in dict.fromkeys(row.key for row in listed.rows) if key not in listed_before],
        next_link=listed.next or (OPEN_LINK if takes_along else ""),
        last=listed.next is None and not takes_along,
        reached_at=next((row.changed_at for row in reversed(listed.rows) if row.changed_at), None),
    )
    return page, Listed(listed.rows)


def _shared_keys(app: App, run: RunRow, number: int, rows: Sequence[Row]) -> set[str]:
    """Return the keys of earlier pages that may stand on this one again.

    Pages follow the time of change; where a listing had to go on from a moment, that moment's records come twice.
    """
    keys: set[str] = set()
    since = next((row.changed_at for row in rows if row.changed_at), None)
    while since is not None and number:
        number -= 1
        page = app.tables.get(PageRow, run.run_id, f"{number:06d}")
        if page is None or (page.reached_at is not None and page.reached_at < since):
            break
        keys.update(page.keys)
    return keys


def _fan_out(
    app: App,
    flow: Flow,
    run: RunRow,
    page: int,
    works: Sequence[Work],
    owner: str,
    *,
    released: bool,
    only: bool,
    relay: "Relay | None",
) -> tuple[list[str], guards.Counted]:
    """Prepare a page's records together, store what that settled, send the others, or work them here (with a relay).

    Returns the keys that a guard holds, and what it has to count. With `only` the page is all there is, so that the
    guard can be asked at once.
    """
    if run.verify:
        verify(flow, run, works)
    else:
        items.prepare(flow, run, works, create_references=released)
    counted = guards.count(flow, works)
    if not released and only and guards.is_little(app, counted):
        items.create_missing(flow, run, works)
        released = True
    held = [] if released else guards.hold(flow, works)
    results, sending = [], []
    for work in works:
        failed_for_good = work.error is not None and outcomes.settle_error(flow, work) is None
        if work.outcome is not None or failed_for_good:
            results.append(outcomes.result_of(flow, run, work))
        else:
            sending.append(work)
    outcomes.store_results(app.tables, results)
    if relay is not None:
        sending = _work_here(app, flow, run, page, sending, owner, relay)
    app.queues.send_many([_message_for(app, flow, run, page, work) for work in sending])
    return held, counted


def _work_here(
    app: App, flow: Flow, run: RunRow, page: int, works: Sequence[Work], owner: str, relay: "Relay"
) -> list[Work]:
    """Work a page's prepared records in portions; return those that are left for messages of their own.

    The owner of a record's claims is this message and the record: it stays the same when the record goes on alone.
    """
    ready = by_shard([work for work in works if work.error is None])
    unprepared = [work for work in works if work.error is not None]
    message = ItemsMessage(run_id=run.run_id, page=page, items=[], first_sent_at=app.now())

    def work(portion: Sequence[Work]) -> None:
        if _has_ended(app, run):
            return  # what is in hand ends, a page may hold minutes of it
        for each in portion:
            each.owner, each.first_sent_at = f"{owner}:{each.key}", message.first_sent_at
        relay.send_in_turn()
        bulk.finish(flow, run, portion)
        late = [each for each in portion if bulk.came_too_late(each)]
        ended = [each for each in portion if not bulk.came_too_late(each)]
        outcomes.store_results(app.tables, _close(app, flow, run, message, ended))
        portions.put_back(late, written=len(portion) - len(late))

    portions = bulk.Portions(flow, ready, permits_of(app, flow))
    work_portions(portions.take, work)
    return [*portions.left, *unprepared]


def _keys_without_result(app: App, page: PageRow) -> list[str]:
    """Return the records of a page that are still to be worked: all but those that an earlier delivery has ended."""
    stored = app.tables.query(ResultRow, f"{page.run_id}!{page.page:06d}", select=("key", "outcome"))
    ended = {result.key for result in stored if result.outcome is not Outcome.HELD}
    return [key for key in page.keys if key not in ended]


def _message_for(app: App, flow: Flow, run: RunRow, page: int, work: Work) -> ItemsMessage:
    """Build a record's message; a record that the page could not prepare goes without what it found out."""
    item = items.to_item(flow, work) if work.error is None else ItemModel(key=work.key)
    return fit(ItemsMessage(run_id=run.run_id, page=page, items=[item], first_sent_at=app.now()))


def _mark_fanned_out(app: App, page: PageRow, held: list[str], counted: guards.Counted) -> None:
    def mark(row: PageRow | None) -> PageRow | None:
        if row is None or row.fanned_out:
            return row  # another copy of this message has marked it
        return guards.add(row, held, counted).model_copy(update={"fanned_out": True})

    try:
        app.tables.replace(guards.add(page, held, counted).model_copy(update={"fanned_out": True}))
    except RowChangedError:  # or one of its records is held already
        app.tables.update(PageRow, page.partition_key, page.row_key, mark)


def _release_page(app: App, flow: Flow, run: RunRow, message: PageMessage, message_id: str) -> None:
    """Send on what a guard held on a page."""
    page = app.tables.get(PageRow, run.run_id, f"{message.page:06d}")
    if page is None or not page.held_keys:
        return
    owner = message.first_id or message_id
    works = items.works_of([ItemModel(key=key) for key in page.held_keys], page=page.page, owner=owner)
    relay = Relay(app, flow, page, sent=True) if bulk.is_bulk(app, run, page) else None
    with ROOM.hold(len(works) if relay is not None else 0):
        if relay is not None and _has_ended(app, run):
            return
        _fan_out(app, flow, run, page.page, works, owner, released=True, only=False, relay=relay)
    try:
        app.tables.replace(page.model_copy(update={"held_keys": []}))  # until then the watchdog releases it again
    except RowChangedError:
        LOG.info("another copy of this message has released the page")


# -- working ------------------------------------------------------------------------------------------------------


def work_items(app: App, message: ItemsMessage, message_id: str, dequeue_count: int) -> None:
    """Work the records of a message: each ends with its result, or is sent again alone."""
    run = app.known_run(message.run_id)
    if run is not None and not run.state.ended:
        with app.results.coming():
            _work_items(app, run, message, message_id, dequeue_count)


def _work_items(app: App, run: RunRow, message: ItemsMessage, message_id: str, dequeue_count: int) -> None:
    flow = app.flow(run.recipe)
    works = items.works_of(message.items, page=message.page, owner=message.first_id or message_id)
    for work in works:
        work.attempts, work.first_sent_at = message.attempt, message.first_sent_at
    if dequeue_count > 1 or message.attempt > 1 or message.first_id:
        works = _without_result(app, run, message.page, works)
    with attempt.attempt(run_id=run.run_id, recipe=run.recipe, correlation_id=run.run_id):
        fresh = message.attempt == 1 and dequeue_count <= 1  # a wait changes nothing of what the page found out
        known = [work for work in works if fresh and items.restore(flow, work)]
        unknown = [work for work in works if work not in known]
        items.prepare(flow, run, unknown, create_references=run.released)
        _create_or_hold(app, flow, run, message.page, unknown)
        writing.finish(flow, run, works)
        app.results.store(_close(app, flow, run, message, works))


def _close(app: App, flow: Flow, run: RunRow, message: ItemsMessage, works: Sequence[Work]) -> list[ResultRow]:
    """Return the results that are to be stored; what has none is sent again alone, and its claims stay its own."""
    results: list[ResultRow] = []
    outage: Again | None = None
    for work in works:
        later = outcomes.settle_error(flow, work)
        if later is not None:
            outage = later if later.outage_of else outage
            alone = ItemsMessage(
                **message.model_dump(exclude={"items"}),
                items=[_waiting_item(work, later)],
            )
            app.queues.send(fit(_again(app, alone, work.owner, later)), delay_s=later.delay_s)
        elif work.outcome is not None:
            results.append(outcomes.result_of(flow, run, work))
    if outage is not None:
        runs.note_outage(app, run.run_id, outage)
    return results


def _waiting_item(work: Work, later: Again) -> ItemModel:
    """Return the item of a record that goes on later: with its row where it only waits, so that it is not read again.

    Who waits for another's claim reads the record anew: the other may have a newer state in hand. A create that was
    not answered is looked up as it was sent, whatever becomes of the record meanwhile.
    """
    if (later.counted and not outcomes.is_create_in_doubt(work)) or later.code == "claim_held":
        return ItemModel(key=work.key)
    if work.item.row is not None or work.row is None:
        return work.item
    return work.item.model_copy(update={"row": RowModel.of(work.row)})


def _create_or_hold(app: App, flow: Flow, run: RunRow, page: int, works: Sequence[Work]) -> None:
    """Hold what a guard has to count, which the records' page could not tell, until the guard has decided."""
    counted = guards.count(flow, works)
    if not (counted.new_references or counted.removals):
        return
    now = app.find_run(run.run_id)
    if now is not None and now.released:
        items.create_missing(flow, run, works)
        return
    held = guards.hold(flow, works)

    def hold(row: PageRow | None) -> PageRow | None:
        return None if row is None else guards.add(row, held, counted)

    app.tables.update(PageRow, run.run_id, f"{page:06d}", hold)  # before the results, which let the guard decide


def _without_result(app: App, run: RunRow, page: int, works: list[Work]) -> list[Work]:
    """Drop the records that have their final result: a repeated message has nothing to do for them."""
    keys = [(f"{run.run_id}!{page:06d}", key_text(work.key)) for work in works]
    stored = app.tables.get_many(ResultRow, keys)
    return [
        work for work, result in zip(works, stored, strict=True) if result is None or result.outcome is Outcome.HELD
    ]


def _again(app: App, message: M, message_id: str, later: Again) -> M:
    return again(
        message,
        own_id=message_id,
        failed=later.counted,
        reason=later.code,
        problem=later.message,
        now=app.now(),
    )
