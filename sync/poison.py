"""What becomes of messages that were delivered too often: their failure becomes a result, and the message is gone.

Only crashes lead here, because an attempt that fails sends its work again by itself. A poison handler records, counts
and deletes, also what is not ours, and never raises.
"""

import logging

from shared.errors import MappingError
from shared.state.queues import parse
from shared.state.rows import (
    EventMessage,
    ItemsMessage,
    MailState,
    Outcome,
    PageMessage,
    ResultRow,
    RunMessage,
    RunState,
    SummaryMessage,
)
from shared.state.tables import RowExistsError
from sync import events, runs
from sync.app import App

LOG = logging.getLogger(__name__)

DIED = "The worker died each time while it worked on this record; its log says more."


def bury(app: App, queue: str, body: str) -> None:
    """Turn a poison message of a queue into what a person can see. Never raises."""
    try:
        HANDLERS[queue](app, body)
    except MappingError as exc:
        LOG.error("a message that is not ours was dropped", extra={"queue": queue, "code": exc.code})  # noqa: TRY400
    except Exception:
        LOG.exception("a poison message could not be recorded and was dropped", extra={"queue": queue})


def _bury_items(app: App, body: str) -> None:
    message = parse(ItemsMessage, body)
    run = app.find_run(message.run_id)
    if run is None:
        return
    for item in message.items:
        result = ResultRow(
            run_id=message.run_id,
            page=message.page,
            key=item.key,
            outcome=Outcome.FAILED,
            reason=message.reason or "worker_died",
            message=message.problem or DIED,
            source_label=item.row.label if item.row else "",
            source_url=item.row.url if item.row else "",
            attempts=message.attempt,
            ended_at=app.now(),
        )
        try:
            app.tables.insert(result)
        except RowExistsError:
            LOG.info("the record has its result already", extra={"run_id": run.run_id})


def _bury_event(app: App, body: str) -> None:
    message = parse(EventMessage, body)
    if message.recipe not in app.recipes:
        return
    run = events.day_run(app, message.recipe, app.now())
    result = ResultRow(
        run_id=run.run_id,
        page=events.page_of(message.event_id),
        key=message.event_id,
        record_key=message.key,
        outcome=Outcome.FAILED,
        reason=message.reason or "worker_died",
        message=message.problem or DIED,
        attempts=message.attempt,
        ended_at=app.now(),
    )
    try:
        app.tables.insert(result)
    except RowExistsError:
        return
    runs.keep_open(app, run, [result])


def _bury_page(app: App, body: str) -> None:
    message = parse(PageMessage, body)
    run = app.find_run(message.run_id)
    if run is not None and not run.state.ended:
        why = message.problem or "The worker died each time while it listed a page; its log says more."
        runs.end_run(app, run, RunState.FAILED, error=why)


def _bury_run(app: App, body: str) -> None:
    message = parse(RunMessage, body)
    app.queues.send(
        RunMessage(run_id=message.run_id, turn=message.turn), delay_s=60
    )  # a run must end: it is looked at for ever


def _bury_summary(app: App, body: str) -> None:
    message = parse(SummaryMessage, body)
    app.change_run(message.run_id, mail_state=MailState.SUMMARY_FAILED)


HANDLERS = {
    EventMessage.QUEUE: _bury_event,
    PageMessage.QUEUE: _bury_page,
    ItemsMessage.QUEUE: _bury_items,
    RunMessage.QUEUE: _bury_run,
    SummaryMessage.QUEUE: _bury_summary,
}
