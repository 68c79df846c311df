"""What each queue's trigger does with a message: read it, set the attempt's bounds, call one function.

A message that is not ours is recorded and dropped at once: no later attempt could read it.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from shared import attempt
from shared.attempt import Lane
from shared.errors import MappingError
from shared.state.messages import EventMessage, ItemsMessage, Message, PageMessage, RunMessage, SummaryMessage
from shared.state.queues import Taken, parse
from shared.telemetry import without_texts
from sync import events, pages, poison, runs, summaries
from sync.app import LEASE_SHARE, App

LOG = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


def on_page(app: App, message_id: str, body: str, dequeue_count: int) -> None:
    """List one page of a run."""
    _work(app, PageMessage, body, lambda app, message: pages.list_page(app, message, message_id), dequeue_count)


def on_items(app: App, message_id: str, body: str, dequeue_count: int) -> None:
    """Work the records of a message."""
    _work(
        app,
        ItemsMessage,
        body,
        lambda app, message: pages.work_items(app, message, message_id, dequeue_count),
        dequeue_count,
    )


def on_event(app: App, message_id: str, body: str, dequeue_count: int) -> None:
    """Work one webhook event, and those that wait behind it."""
    _work(
        app,
        EventMessage,
        body,
        lambda app, message: events.work_event(app, Taken(message, message_id, dequeue_count)),
        dequeue_count,
        Lane.EVENT,
    )


def on_run(app: App, message_id: str, body: str, dequeue_count: int) -> None:  # noqa: ARG001
    """End a run when all its results are in."""
    _work(app, RunMessage, body, runs.check_run, dequeue_count)


def on_summary(app: App, message_id: str, body: str, dequeue_count: int) -> None:
    """Send a run's summary."""
    _work(
        app, SummaryMessage, body, lambda app, message: summaries.send_summary(app, message, message_id), dequeue_count
    )


def on_poison(app: App, queue: str, body: bytes) -> None:
    """Record a message that was delivered too often. Raises only when our own storage refuses."""
    poison.bury(app, queue, body.decode("utf-8", "replace"))


def _work(
    app: App, model: type[M], body: str, step: Callable[[App, M], None], dequeue_count: int, lane: Lane = Lane.RUN
) -> None:
    try:
        message = parse(model, body)
    except MappingError as exc:
        LOG.error("a message that is not ours was dropped", extra={"queue": model.QUEUE, "code": exc.code})  # noqa: TRY400
        return
    if dequeue_count > 1:
        LOG.warning("a message was delivered again", extra={"queue": model.QUEUE, "dequeue_count": dequeue_count})
    ends_at_s = attempt.monotonic_s() + app.settings.queue_lease_s * LEASE_SHARE
    named = {name: getattr(message, name, "") for name in ("run_id", "recipe")}
    facts = {"queue": model.QUEUE} | {name: fact for name, fact in named.items() if fact}
    with without_texts(**facts), attempt.attempt(lane=lane, ends_at_s=ends_at_s):
        step(app, message)
