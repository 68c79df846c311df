"""What becomes of messages that were delivered too often: their failure becomes a result, and the message is gone.

Only crashes lead here, because an attempt that fails sends its work again by itself. A poison handler records, counts
and deletes, also what is not ours. Only when our own storage refuses does it raise: the message then stays where it is
and comes back when its lease ends, so that a record is never lost for want of a place to write its failure to.
"""

import contextlib
import logging

from shared.errors import ConfigError, MappingError, StateError
from shared.state.messages import EventMessage, ItemsMessage, PageMessage, RunMessage, SummaryMessage
from shared.state.queues import Taken, parse
from shared.state.rows import MailState, Outcome, ResultRow, RunRow, RunState
from shared.state.tables import RowExistsError
from sync import events, failures, outcomes, runs
from sync.app import App

LOG = logging.getLogger(__name__)

WORKER_DIED = "worker_died"
DIED = "The worker died each time while it worked on this record; its log says more."


def bury(app: App, queue: str, body: str) -> None:
    """Turn a poison message of a queue into what a person can see. Raises StateError or ConfigError, nothing else."""
    try:
        HANDLERS[queue](app, body)
    except MappingError as exc:
        LOG.error("a message that is not ours was dropped", extra={"queue": f"{queue}-poison", "code": exc.code})  # noqa: TRY400
    except (StateError, ConfigError):
        raise
    except Exception:
        LOG.exception("a poison message could not be recorded and was dropped", extra={"queue": f"{queue}-poison"})


def _count(app: App, queue: str, run: RunRow | None, count: int, reason: str) -> None:
    """Say in the log, and in the record of who did what, that a message died, and with how many records."""
    facts = {"queue": queue, "count": count, "reason": reason, "run_id": run.run_id if run else ""}
    LOG.error("a message was delivered too often", extra=facts)
    if run is not None:
        runs.audit(app, "buried", "app", run, f"{queue}: {count}, {reason}")


def _bury_items(app: App, body: str) -> None:
    message = parse(ItemsMessage, body)
    run = app.find_run(message.run_id)
    reason = message.reason or WORKER_DIED
    if run is not None and run.recipe in app.recipes:
        results = [
            ResultRow(
                run_id=message.run_id,
                page=message.page,
                key=item.key,
                outcome=Outcome.FAILED,
                reason=reason,
                message=message.problem or DIED,
                source_label=item.row.label if item.row else "",
                source_url=item.row.url if item.row else "",
                attempts=message.attempt,
                ended_at=app.now(),
            )
            for item in message.items
        ]
        outcomes.store_results(app.tables, results)
    _count(app, message.QUEUE, run, len(message.items), reason)


def _bury_event(app: App, body: str) -> None:
    for event in events.split(Taken(parse(EventMessage, body), "")):
        _bury_one(app, event.message)


def _bury_one(app: App, message: EventMessage) -> None:
    if message.recipe not in app.recipes:
        _count(app, message.QUEUE, None, 1, "unknown_recipe")
        return
    run = events.day_run(app, message.recipe, app.now())
    result = ResultRow(
        run_id=run.run_id,
        page=events.page_of(message.event_id),
        key=message.event_id,
        record_key=message.key,
        outcome=Outcome.FAILED,
        reason=message.reason or WORKER_DIED,
        message=message.problem or DIED,
        attempts=message.attempt,
        ended_at=app.now(),
    )
    _count(app, message.QUEUE, run, 1, result.reason)
    if app.tables.get(ResultRow, result.partition_key, result.row_key) is not None:
        return
    failures.keep_open(app, run, [result], failures.open_rows(app, run))
    with contextlib.suppress(RowExistsError):
        app.tables.insert(result)


def _bury_page(app: App, body: str) -> None:
    message = parse(PageMessage, body)
    run = app.find_run(message.run_id)
    if run is not None and not run.state.ended:
        why = message.problem or "The worker died each time while it listed a page; its log says more."
        runs.end_run(app, run, RunState.FAILED, error=why)
    _count(app, message.QUEUE, run, 1, message.reason or WORKER_DIED)


def _bury_run(app: App, body: str) -> None:
    message = parse(RunMessage, body)
    run = app.find_run(message.run_id)
    if run is not None:  # a run must end: it is looked at for ever
        app.queues.send(RunMessage(run_id=message.run_id, turn=message.turn), delay_s=60)
    _count(app, message.QUEUE, run, 1, message.reason or WORKER_DIED)


def _bury_summary(app: App, body: str) -> None:
    message = parse(SummaryMessage, body)
    run = app.find_run(message.run_id)
    if run is not None:
        app.update_run(run.run_id, _mail_failed)
    _count(app, message.QUEUE, run, 1, message.reason or WORKER_DIED)


def _mail_failed(run: RunRow) -> RunRow:
    owed = run.state.ended and run.mail_state is not MailState.SENT  # else it was a question, or has been sent
    return run.model_copy(update={"mail_state": MailState.SUMMARY_FAILED}) if owed else run


HANDLERS = {
    EventMessage.QUEUE: _bury_event,
    PageMessage.QUEUE: _bury_page,
    ItemsMessage.QUEUE: _bury_items,
    RunMessage.QUEUE: _bury_run,
    SummaryMessage.QUEUE: _bury_summary,
}
