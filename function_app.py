"""Triggers only: parse, call one function, answer. Nothing here decides anything.

Everything is built at the first call (`get_app`), so that indexing needs no settings and no network.
"""

import functools
import gc
import os
import threading
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

import azure.functions as func

from shared.settings import load_settings
from shared.telemetry import configure_logging
from sync import messages, ticks
from sync.app import App, build_app
from web import api, webhooks

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)

STORAGE = "AzureWebJobsStorage"  # name of the setting, not its value
OBJECTS_PER_COLLECTION = 5_000  # a page in hand has many objects, and little of it is garbage
_BUILDING = threading.Lock()


def get_app() -> App:
    """Return the worker's app, built at the first call. Raises ConfigError that says all that is missing or wrong."""
    with _BUILDING:
        return _build_app()


@functools.cache
def _build_app() -> App:
    configure_logging()
    built = build_app(load_settings(os.environ))
    # What was loaded stays: looking through it again stopped all threads for 0.1 s, four times in 2,000 records.
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    return built


def _answer(req: func.HttpRequest, handle: api.Handler, answer: api.Answer = api.answer) -> func.HttpResponse:
    request = api.Request(
        method=req.method,
        route=dict(req.route_params),
        query=_blanks(req.url) | dict(req.params),
        headers={name.lower(): value for name, value in req.headers.items()},
        body=req.get_body(),
    )
    response = answer(get_app, handle, request)
    return func.HttpResponse(response.content, status_code=response.status, headers=response.headers)


def _blanks(url: str) -> dict[str, str]:
    """Return the parameters that stand in an address without a value: the host leaves them out, and `ids=` is no `ids`."""
    return {name: "" for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True) if not value}


# -- HTTP -----------------------------------------------------------------------------------------------------------


@app.route(route="sync/{recipe}", methods=["GET", "POST"])
def start_sync(req: func.HttpRequest) -> func.HttpResponse:
    """Start a recipe, or join its running run; the summary goes to `Email`."""
    return _answer(req, api.start_sync)


@app.route(route="runs", methods=["GET"])
def list_runs(req: func.HttpRequest) -> func.HttpResponse:
    """List the newest runs."""
    return _answer(req, api.list_runs)


@app.route(route="runs/{run_id}", methods=["GET"])
def get_run(req: func.HttpRequest) -> func.HttpResponse:
    """Show one run."""
    return _answer(req, api.get_run)


@app.route(route="runs/{run_id}/results", methods=["GET"])
def list_results(req: func.HttpRequest) -> func.HttpResponse:
    """List a run's results."""
    return _answer(req, api.list_results)


@app.route(route="runs/{run_id}/{action}", methods=["POST"])
def change_run(req: func.HttpRequest) -> func.HttpResponse:
    """Confirm or cancel a run, or repair what failed in it."""
    return _answer(req, api.change_run)


@app.route(route="webhooks/{recipe}", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)  # carries a key of its own
def receive_webhook(req: func.HttpRequest) -> func.HttpResponse:
    """Take the events of a system that calls us."""
    return _answer(req, webhooks.receive, api.answer_anybody)


@app.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def health(req: func.HttpRequest) -> func.HttpResponse:
    """Say whether the app and its storage answer."""
    return _answer(req, api.health, api.answer_anybody)


# -- timers ---------------------------------------------------------------------------------------------------------


@app.timer_trigger(arg_name="timer", schedule="%DAILY_SYNC_SCHEDULE%")
def daily_sync(timer: func.TimerRequest) -> None:  # noqa: ARG001  # the binding's name
    """Start the recipes that run once a day."""
    ticks.start_daily(get_app())


@app.timer_trigger(arg_name="timer", schedule="0 * * * * *")
def poll(timer: func.TimerRequest) -> None:  # noqa: ARG001  # the binding's name
    """Start what recipes' own schedules ask for, and push runs that stopped moving."""
    ticks.tick(get_app())


# -- queues ---------------------------------------------------------------------------------------------------------


def _work(on_message: Callable[[App, str, str, int], None], msg: func.QueueMessage) -> None:
    # A body that is no text is not ours; it is told so like any other, instead of dying five times.
    on_message(get_app(), msg.id or "", msg.get_body().decode("utf-8", "replace"), msg.dequeue_count or 1)


@app.queue_trigger(arg_name="msg", queue_name="pages", connection=STORAGE)
def list_page(msg: func.QueueMessage) -> None:
    """List one page of a run and send its records on."""
    _work(messages.on_page, msg)


@app.queue_trigger(arg_name="msg", queue_name="items", connection=STORAGE)
def sync_items(msg: func.QueueMessage) -> None:
    """Work the records of a message."""
    _work(messages.on_items, msg)


@app.queue_trigger(arg_name="msg", queue_name="events", connection=STORAGE)
def sync_events(msg: func.QueueMessage) -> None:
    """Work one webhook event."""
    _work(messages.on_event, msg)


@app.queue_trigger(arg_name="msg", queue_name="runs", connection=STORAGE)
def finish_run(msg: func.QueueMessage) -> None:
    """End a run when all its results are in, else look again later."""
    _work(messages.on_run, msg)


@app.queue_trigger(arg_name="msg", queue_name="summaries", connection=STORAGE)
def send_summary(msg: func.QueueMessage) -> None:
    """Send a run's summary."""
    _work(messages.on_summary, msg)


# -- poison ---------------------------------------------------------------------------------------------------------


def _bury(queue: str, msg: func.QueueMessage) -> None:
    messages.on_poison(get_app(), queue, msg.get_body())


@app.queue_trigger(arg_name="msg", queue_name="pages-poison", connection=STORAGE)
def bury_page(msg: func.QueueMessage) -> None:
    """End the run whose page could not be listed."""
    _bury("pages", msg)


@app.queue_trigger(arg_name="msg", queue_name="items-poison", connection=STORAGE)
def bury_items(msg: func.QueueMessage) -> None:
    """Record the failure of records that killed their workers."""
    _bury("items", msg)


@app.queue_trigger(arg_name="msg", queue_name="events-poison", connection=STORAGE)
def bury_event(msg: func.QueueMessage) -> None:
    """Record the failure of an event."""
    _bury("events", msg)


@app.queue_trigger(arg_name="msg", queue_name="runs-poison", connection=STORAGE)
def bury_run(msg: func.QueueMessage) -> None:
    """Look at the run again later."""
    _bury("runs", msg)


@app.queue_trigger(arg_name="msg", queue_name="summaries-poison", connection=STORAGE)
def bury_summary(msg: func.QueueMessage) -> None:
    """Note that a summary could not be sent."""
    _bury("summaries", msg)
