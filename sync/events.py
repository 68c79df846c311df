"""Webhook events: each re-reads its record and goes through the same engine as a run's records.

A recipe's events of a day form one run, closed after midnight in the app's zone; a late event belongs to the day on which
it is worked. A result is keyed by its event's id, so a repeat changes nothing. When many events wait, one invocation
takes more of them along and works them together: every event keeps its own result, its own claims and its own retry,
also one of a message that holds several.
"""

import contextlib
import dataclasses
import hashlib
import logging
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, time, timedelta

from shared import attempt
from shared.errors import MappingError
from shared.state.messages import EventMessage, ItemModel, RowModel
from shared.state.queues import FITTING_BYTES, MOST_TAKEN, Taken, again, sent_bytes
from shared.state.rows import EVENT_PAGES, Outcome, ResultRow, RunKind, RunRow, RunState, key_text, new_run_id
from shared.state.tables import RowExistsError
from sync import bulk, failures, items, outcomes, runs
from sync.app import App
from sync.flow import Flow
from sync.outcomes import Again, store_results
from sync.work import Work

LOG = logging.getLogger(__name__)

SUFFIX = "events"  # of a day's run id
DELETED = "Delete"
TURNS = threading.BoundedSemaphore(2)  # of a process
TURN_WAIT_S = 10.0
OUTAGE_FACTS = ("waiting_since", "waiting_for", "waiting_why", "outage_told")  # of a run
REPEATED_WITHIN = timedelta(hours=1)  # of midnight: an event may have been worked the day before


def work_event(app: App, first: Taken[EventMessage]) -> None:
    """Work an event, and those that wait behind it.

    A process works few lots at a time: what comes meanwhile stays in the queue, and the next lot takes it along. One
    whose worker died may be what killed it: it takes nobody along, and is worked alone after those it came with.
    """
    turn = contextlib.nullcontext() if app.settings.events_together == 1 else _turn()
    with turn:
        _work_lot(app, first)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Wait for one of the process's turns; not for long, as a slow system's events must not keep the others waiting."""
    taken = TURNS.acquire(timeout=min(TURN_WAIT_S, max(0.0, attempt.current().left_s() / 4)))
    try:
        yield
    finally:
        if taken:
            TURNS.release()


def _work_lot(app: App, first: Taken[EventMessage]) -> None:
    waiting = [] if first.dequeue_count > 1 else _take_along(app, first)
    together = [first, *(taken for taken in waiting if taken.dequeue_count == 1)]
    for group in [together, *([taken] for taken in waiting if taken.dequeue_count > 1)]:
        if group[0].dequeue_count > 1 and group[0].message.others:
            _take_apart(app, group[0])
        else:
            for recipe, events in _by_recipe([event for taken in group for event in split(taken)]).items():
                with attempt.attempt(recipe=recipe):
                    _work_together(app, recipe, events)
        for taken in group:
            if taken is not first:
                app.queues.done(taken)


def _take_along(app: App, first: Taken[EventMessage]) -> list[Taken[EventMessage]]:
    """Take what waits until there are events enough; the last messages may hold some more."""
    waiting: list[Taken[EventMessage]] = []
    while (wanted := app.settings.events_together - sum(len(split(taken)) for taken in [first, *waiting])) > 0:
        found = app.queues.take_more(EventMessage, wanted, app.settings.queue_lease_s)
        waiting += found
        if len(found) < min(wanted, MOST_TAKEN):
            break
    return waiting


def split(taken: Taken[EventMessage]) -> list[Taken[EventMessage]]:
    """Return the events of a message, each as if it had a message of its own, with an id that a redelivery has too."""
    first, others = taken.message, taken.message.others
    if not others:
        return [taken]
    events = [first.model_copy(update={"others": []}), *others]
    return [dataclasses.replace(taken, message=event, id=f"{taken.id}.{n}") for n, event in enumerate(events)]


def _take_apart(app: App, taken: Taken[EventMessage]) -> None:
    """Send each event of a message whose worker died on by itself: one of them may have killed it.

    Each keeps its claims. A repeat sends them twice, of which the second finds what the first one did.
    """
    events = [
        event.message.model_copy(update={"first_id": event.message.first_id or event.id}) for event in split(taken)
    ]
    app.queues.send_many(events)


def _by_recipe(events: Sequence[Taken[EventMessage]]) -> dict[str, list[Taken[EventMessage]]]:
    groups: dict[str, list[Taken[EventMessage]]] = {}
    for taken in events:
        groups.setdefault(taken.message.recipe, []).append(taken)
    return groups


def _work_together(app: App, name: str, events: Sequence[Taken[EventMessage]]) -> None:
    try:
        recipe = app.recipe(name)
    except MappingError:
        LOG.error("events of a recipe that is not there any more were dropped", extra={"count": len(events)})  # noqa: TRY400
        return
    flow, run = app.flow(name), day_run(app, recipe.name, app.now())
    events = list({taken.message.event_id: taken for taken in reversed(events)}.values())[::-1]  # a repeat says no more
    works = [_work_of(taken) for taken in events]
    works = _without_result(app, run, works, [taken.repeated for taken in events])
    with attempt.attempt(run_id=run.run_id, correlation_id=run.run_id):
        for batch in _one_each(works, app.settings.events_together):  # the events of one record follow each other
            bulk.claim_ahead(flow, batch)
            items.prepare(flow, run, batch, create_references=True)
            bulk.give_up_ahead(flow, batch)
            bulk.finish(flow, run, batch)
            _end(app, flow, run, batch, events)


def _work_of(taken: Taken[EventMessage]) -> Work:
    message = taken.message
    return Work(
        ItemModel(key=message.key, row=message.row),
        row=message.row.row() if message.row else None,
        page=page_of(message.event_id),
        event_id=message.event_id,
        owner=message.first_id or taken.id,
        attempts=message.attempt,
        first_sent_at=message.first_sent_at or message.received_at,
        deleted=message.name == DELETED,
    )


def page_of(event_id: str) -> int:
    """Return the page under which an event's result is kept."""
    return int(hashlib.sha256(event_id.encode()).hexdigest(), 16) % EVENT_PAGES


def _without_result(app: App, run: RunRow, works: list[Work], repeated: Sequence[bool]) -> list[Work]:
    """Drop the events that have their result already: repeats of a message, or of the vendor's.

    One of the first hour may have its result in the run of the day before.
    """
    asked = [work for work, again_ in zip(works, repeated, strict=True) if again_]
    midnight = run.since or run.created_at
    early = app.now() - midnight < REPEATED_WITHIN
    days = [(run.run_id, asked), (day_id(app, run.recipe, midnight - timedelta(hours=1)), works if early else asked)]
    done = set()
    for run_id, some in days:
        stored = app.tables.get_many(
            ResultRow, [(f"{run_id}!{work.page:06d}", key_text(work.event_id)) for work in some]
        )
        done |= {id(work) for work, result in zip(some, stored, strict=True) if result is not None}
    return [work for work in works if id(work) not in done]


def _one_each(works: Sequence[Work], most: int) -> list[list[Work]]:
    """Split works so that no batch holds a record twice, or more than `most`."""
    batches: list[dict[str, Work]] = []
    for work in works:
        batch = next((batch for batch in batches if work.key not in batch and len(batch) < most), None)
        if batch is None:
            batches.append(batch := {})
        batch[work.key] = work
    return [list(batch.values()) for batch in batches]


def _end(app: App, flow: Flow, run: RunRow, works: Sequence[Work], events: Sequence[Taken[EventMessage]]) -> None:
    """Store results, and send again what has to wait.

    What failed is kept as open before its result is there: a repeat finds the result and does nothing any more.
    """
    by_event = {taken.message.event_id: taken for taken in events}
    outage: Again | None = None
    waiting: dict[int, list[EventMessage]] = defaultdict(list)  # by their delay in seconds
    for work in works:
        later = outcomes.settle_error(flow, work)
        if later is not None:
            outage = later if later.outage_of else outage
            taken = by_event[work.event_id]
            message = again(
                taken.message,
                own_id=taken.id,
                failed=later.counted,
                reason=later.code,
                problem=later.message,
                now=app.now(),
            )
            message = _with_row(message, work, later)
            if later.counted:
                app.queues.send(message, delay_s=later.delay_s)
            else:  # nothing is wrong with it: it waits together with others
                waiting[math.ceil(later.delay_s)].append(message)
    for delay_s, messages in waiting.items():
        app.queues.send_events(messages, delay_s)
    if outage is not None:
        runs.note_outage(app, run.run_id, outage)
    elif run.state is RunState.WAITING and any(_was_answered(flow, run, work) for work in works):
        app.change_run(run.run_id, **runs.GOES_ON)
    results = [outcomes.result_of(flow, run, work) for work in works if work.outcome is not None]
    failures.keep_open(app, run, results, failures.open_rows(app, run))
    store_results(app.tables, results)


def _with_row(message: EventMessage, work: Work, later: Again) -> EventMessage:
    """Return a message that carries on an event, with its record as it was sent until its create was looked up.

    Afterwards the record is read anew, as it is by who waits for another's claim, and where it makes the message too large.
    """
    looked_up = work.item.row is None
    if later.code != "claim_held" and outcomes.is_create_in_doubt(work) and work.row is not None:
        sent = message.model_copy(update={"row": RowModel.of(work.row)})
        return sent if sent_bytes(sent.body()) <= FITTING_BYTES else message.model_copy(update={"row": None})
    return message.model_copy(update={"row": None}) if looked_up or later.code == "claim_held" else message


def _was_answered(flow: Flow, run: RunRow, work: Work) -> bool:
    """Tell whether the system for which a day waits has answered for an event: that it was not needed says nothing."""
    if work.outcome in (None, Outcome.FAILED):
        return False
    if run.waiting_for == flow.recipe.source.connection:
        return not work.deleted
    return work.written is not None or work.target is not None


# -- the day's run ------------------------------------------------------------------------------------------------


def day_id(app: App, recipe: str, now: datetime) -> str:
    """Return the id of the run that a recipe's events of a day belong to."""
    return new_run_id(recipe, _midnight(app, now), SUFFIX)


def _midnight(app: App, now: datetime) -> datetime:
    return datetime.combine(now.astimezone(app.settings.zone).date(), time(), app.settings.zone)


def day_run(app: App, recipe: str, now: datetime) -> RunRow:
    """Return the run that a recipe's events of today belong to, made now if this is the first one."""
    midnight, run_id = _midnight(app, now), day_id(app, recipe, now)
    known = app.known_run(run_id)
    if known is not None:
        return known
    declared = app.recipe(recipe)
    runs.note_started(app, declared)
    run = RunRow(
        run_id=run_id,
        recipe=recipe,
        kind=RunKind.EVENTS,
        state=RunState.RUNNING,
        window="events",
        since=midnight,
        until=midnight + timedelta(days=1),
        started_by="webhook",
        environment=app.environment(declared),
        recipe_hash=declared.hash,
        created_at=now,
        started_at=now,
        moved_at=now,
    )
    before = app.find_run(day_id(app, recipe, midnight - timedelta(hours=1)))
    if before is not None and before.waiting_since is not None:  # an outage goes on over midnight
        outage = {name: getattr(before, name) for name in OUTAGE_FACTS}
        run = run.model_copy(update=outage | {"state": RunState.WAITING})
    try:
        run = app.tables.insert(run)
    except RowExistsError as exc:
        return exc.stored if isinstance(exc.stored, RunRow) else run
    runs.look_again(app, run, runs.EVENTS_CHECK_S)
    return run
