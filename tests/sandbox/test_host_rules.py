"""The host's decisions, without a host: indexing, routes, schedules, settings, what becomes of a message."""

import asyncio
import json
import sys
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import azure.functions as func
import pytest

from sandbox.host_config import (
    HostConfigError,
    find_connection,
    parse_time_span,
    read_host_config,
    read_settings,
    resolve_settings,
)  # fmt: skip
from sandbox.host_index import FunctionLoadError, check_function, find_app, load_functions
from sandbox.host_messages import FunctionFacts, TimerCall
from sandbox.host_pool import FunctionFailedError
from sandbox.host_queue import Verdict, judge_failed, judge_received, poison_name, polling_pause_s
from sandbox.host_routes import build_route, find_route
from sandbox.host_timer import Timer, check_schedule, next_due

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday


# -- indexing ---------------------------------------------------------------------------------------------------------


def other_name(message: func.QueueMessage) -> None: ...
def surplus(msg: func.QueueMessage, case_id: str) -> None: ...
def wrong_type(msg: func.HttpRequest) -> None: ...
def no_type(msg: "func.QueueMessage | None") -> None: ...
def out_of_place(msg: func.Out[str]) -> None: ...
def unresolvable(msg: "NotImported") -> None: ...  # noqa: F821 - the case under test
def wrong_context(msg: func.QueueMessage, context: str) -> None: ...
def fine(msg: func.QueueMessage, context: func.Context) -> None: ...
def text(msg: str) -> None: ...
def bare(msg): ...


def index(run: Callable[..., Any]) -> Any:
    """Return what the loader makes of a queue function."""
    app = func.FunctionApp()
    app.queue_trigger(arg_name="msg", queue_name="queue", connection="AzureWebJobsStorage")(run)
    (function,) = app.get_functions()
    return check_function(function)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        pytest.param(other_name, "parameters without a binding: message", id="other name"),
        pytest.param(surplus, "parameters without a binding: case_id", id="surplus parameter"),
        pytest.param(wrong_type, "binding msg of type queueTrigger cannot be HttpRequest", id="other type"),
        pytest.param(no_type, "annotation that is no type", id="no type"),
        pytest.param(out_of_place, "its annotation is azure.functions.Out", id="Out on an input"),
        pytest.param(unresolvable, "annotations cannot be resolved: .*NotImported", id="unresolvable"),
        pytest.param(wrong_context, "must be azure.functions.Context", id="context of another type"),
    ],
)
def test_function_that_does_not_fit_its_bindings_is_refused(run: Callable[..., Any], reason: str) -> None:
    """The worker's checks name the function and what is wrong with it."""
    with pytest.raises(FunctionLoadError, match=f"cannot load the {run.__name__} function: .*{reason}"):
        index(run)


@pytest.mark.parametrize("run", [fine, text, bare])
def test_function_that_fits_is_loaded(run: Callable[..., Any]) -> None:
    """Context, text and missing annotations are allowed."""
    loaded = index(run)

    assert loaded.facts.name == run.__name__
    assert loaded.facts.trigger["queueName"] == "queue"
    assert loaded.argument == "msg"
    assert not loaded.returns


def test_missing_parameter_is_refused() -> None:
    """A binding that no parameter takes is an error too."""
    with pytest.raises(FunctionLoadError, match="bindings without a parameter: msg"):
        index(lambda: None)


@pytest.mark.parametrize(
    ("count", "reason"), [(0, "no function app"), (2, "more than one function app .*: app_0, app_1")]
)
def test_module_holds_exactly_one_app(count: int, reason: str) -> None:
    """The loader counts module attributes."""
    module = ModuleType("function_app")
    for number in range(count):
        setattr(module, f"app_{number}", func.FunctionApp())

    with pytest.raises(ValueError, match=reason):
        find_app(module)


def test_two_functions_of_one_name_refuse_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself demands unique names."""
    trigger = "@app.queue_trigger(arg_name='msg', queue_name='queue', connection='C')\ndef same(msg): ...\n"
    (tmp_path / "doubled_app.py").write_text(f"import azure.functions as func\napp = func.FunctionApp()\n{trigger * 2}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "doubled_app", raising=False)

    with pytest.raises(ValueError, match="same"):
        load_functions(tmp_path, "doubled_app.py")


# -- routes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        pytest.param("cases/{id}", "/api/cases/a%20b", {"id": "a b"}, id="unquoted"),
        pytest.param("cases/{id}", "/api/cases", None, id="required"),
        pytest.param("cases/{id}", "/api/cases/a/b", None, id="one segment only"),
        pytest.param("cases/{id?}", "/api/cases", {}, id="optional"),
        pytest.param("cases/{id:int}", "/api/cases/a", None, id="int"),
        pytest.param("cases/{id:guid}", "/api/cases/6f9619ff-8b86-d011-b42d-00c04fc964ff",
                     {"id": "6f9619ff-8b86-d011-b42d-00c04fc964ff"}, id="guid"),
        pytest.param("files/{*rest}", "/api/files/a/b", {"rest": "a/b"}, id="rest"),
        pytest.param("Cases", "/API/cases", {}, id="case"),
    ],
)  # fmt: skip
def test_template_takes_only_fitting_paths(template: str, path: str, values: dict[str, str] | None) -> None:
    """Parameters, constraints and optional parts follow ASP.NET's rules."""
    route = build_route(FunctionFacts("f", {"route": template}), "api")

    found = find_route([route], "GET", path)

    assert (found[1] if found else None) == values


def test_unknown_constraint_is_refused() -> None:
    """A constraint that we do not know must not quietly match everything."""
    with pytest.raises(HostConfigError, match="constraint 'regex' is none of alpha"):
        build_route(FunctionFacts("f", {"route": "{id:regex}"}), "api")


# -- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        pytest.param("0 30 6 * * *", "2026-03-03T06:30:00", id="daily"),
        pytest.param("*/5 * * * * *", "2026-03-02T12:00:05", id="seconds come first"),
        pytest.param("0 0 9 * * 1-5", "2026-03-03T09:00:00", id="weekdays"),
        pytest.param("0 0 0 13 * Fri", "2026-03-13T00:00:00", id="both day fields must fit"),
    ],
)
def test_next_due_date_follows_ncrontab(schedule: str, due: str) -> None:
    """Six fields, UTC, strictly after the given moment."""
    check_schedule("f", schedule)

    assert next_due(schedule, NOON) == datetime.fromisoformat(due).replace(tzinfo=UTC)


@pytest.mark.parametrize("schedule", ["0 6 * * *", "00:05:00", "@daily", "0 0 0 L * *", "61 * * * * *", ""])
def test_other_schedules_are_refused(schedule: str) -> None:
    """Five fields, TimeSpans and other dialects of cron are refused by name."""
    with pytest.raises(HostConfigError, match=r"tick: .* is no NCRONTAB"):
        check_schedule("tick", schedule)


class Clockwork:
    """Drives a Timer by a clock that jumps, until a number of calls was made."""

    def __init__(self, start: datetime, calls: int, run_s: float = 0, error: Exception | None = None) -> None:
        self.at, self.left, self.run_s, self.error = start, calls, run_s, error
        self.calls: list[tuple[datetime, bool]] = []

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)

    def invoke(self, function: str, call: TimerCall) -> "Future[Any]":
        if not self.left:
            raise asyncio.CancelledError
        self.left -= 1
        self.calls.append((self.at, call.past_due))
        self.at += timedelta(seconds=self.run_s)
        done: Future[Any] = Future()
        if self.error:
            done.set_exception(self.error)
        else:
            done.set_result(None)
        return done

    def drive(self, schedule: str, **facts: Any) -> list[tuple[datetime, bool]]:
        """Run a timer to its end and return moment and `past_due` of each call."""
        timer = Timer("tick", schedule, self.invoke, now=self.now, sleep=self.sleep, **facts)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(timer.run())
        return self.calls


def test_long_run_delays_the_next() -> None:
    """Runs do not overlap; due dates that a run covered are not made up for."""
    calls = Clockwork(NOON, 3, run_s=90).drive("0 * * * * *")

    assert [at for at, _ in calls] == [NOON + timedelta(minutes=minute) for minute in (1, 3, 5)]


def test_failed_run_waits_for_the_next_due_date() -> None:
    """A failure is not retried."""
    calls = Clockwork(NOON, 2, error=FunctionFailedError("no")).drive("0 0 6 * * *")

    assert [at.day for at, _ in calls] == [3, 4]


def test_run_on_startup_comes_first() -> None:
    """The first call is at once, the second when it is due."""
    calls = Clockwork(NOON, 2).drive("0 0 6 * * *", run_on_startup=True)

    assert [at for at, _ in calls] == [NOON, datetime(2026, 3, 3, 6, tzinfo=UTC)]


def test_missed_due_date_is_made_up_for_once(tmp_path: Path) -> None:
    """However many were missed, the start makes one call with past_due; a changed schedule makes none."""
    status = tmp_path / "tick.json"
    Clockwork(NOON, 1).drive("0 0 6 * * *", status_file=status)

    late = Clockwork(NOON + timedelta(days=9), 2).drive("0 0 6 * * *", status_file=status)
    changed = Clockwork(NOON + timedelta(days=30), 1).drive("0 0 7 * * *", status_file=status)

    assert late == [(NOON + timedelta(days=9), True), (datetime(2026, 3, 12, 6, tzinfo=UTC), False)]
    assert [past_due for _, past_due in changed] == [False]


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dequeue_count", "has_poison", "verdict"),
    [
        (1, True, Verdict.SHOW_AGAIN),
        (4, True, Verdict.SHOW_AGAIN),
        (5, True, Verdict.POISON),
        (1, False, Verdict.LEAVE),
    ],
)
def test_failed_message_is_shown_again_until_the_limit(dequeue_count: int, has_poison: bool, verdict: Verdict) -> None:
    """With a limit of 5 the fifth failure is poison; a poison queue's message is left alone."""
    assert judge_failed(dequeue_count, 5, has_poison) is verdict


def test_received_message_above_the_limit_is_poison() -> None:
    """Only a count above the limit tells that earlier attempts died."""
    assert judge_received(5, 5, has_poison=True) is None
    assert judge_received(6, 5, has_poison=True) is Verdict.POISON
    assert judge_received(6, 5, has_poison=False) is None


def test_pause_on_an_empty_queue_doubles_up_to_the_maximum() -> None:
    """100 ms at first, then 0.2, 0.3, 0.5, 0.9 … up to maxPollingInterval."""
    pauses = [round(polling_pause_s(looks, 2.0, jitter=1.0), 3) for looks in range(1, 9)]

    assert pauses == [0.1, 0.2, 0.3, 0.5, 0.9, 1.7, 2.0, 2.0]


@pytest.mark.parametrize(("queue", "poison"), [("items", "items-poison"), ("items-poison", None), ("i" * 57, None)])
def test_poison_queue_has_no_poison_queue(queue: str, poison: str | None) -> None:
    """Nor has a queue whose poison queue's name would exceed 63 characters."""
    assert poison_name(queue) == poison


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:00:30", 30), ("1.00:00:01", 86401), ("00:00:00.1", 0.1), ("-1", None)]
)
def test_time_span_is_read_as_seconds(text: str, seconds: float | None) -> None:
    """.NET writes days before a point; -1 is no limit."""
    assert parse_time_span(text) == seconds


def test_environment_overrides_host_json(tmp_path: Path) -> None:
    """AzureFunctionsJobHost__ settings win, as in Azure; the threshold follows the batch size unless given."""
    (tmp_path / "host.json").write_text('{"version": "2.0", "extensions": {"queues": {"batchSize": 8}}}')
    prefix = "AzureFunctionsJobHost__extensions__queues__"

    config = read_host_config(tmp_path, {prefix + "newBatchThreshold": "0", prefix + "visibilityTimeout": "00:01:00"})

    queues = config.extensions.queues
    assert (queues.batch_size, queues.new_batch_threshold, queues.visibility_timeout) == (8, 0, 60)
    assert config.function_timeout == 1800


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "is missing", id="missing"),
        pytest.param("{", "is not JSON", id="not JSON"),
        pytest.param('{"version": "1.0"}', "version", id="version 1"),
        pytest.param('{"version": "2.0", "functionTimeout": 5}', "functionTimeout: .*TimeSpan", id="no TimeSpan"),
    ],
)
def test_wrong_host_json_is_explained(tmp_path: Path, content: str | None, reason: str) -> None:
    """The message names the file and the field."""
    if content is not None:
        (tmp_path / "host.json").write_text(content)

    with pytest.raises(HostConfigError, match=f"host.json.*{reason}"):
        read_host_config(tmp_path, {})


def test_settings_are_texts(tmp_path: Path) -> None:
    """Values that are no text are refused by name."""
    file = tmp_path / "local.settings.json"
    file.write_text(json.dumps({"Values": {"NAME": "a", "COUNT": 5}}))

    with pytest.raises(HostConfigError, match="COUNT"):
        read_settings(file)


def test_percent_names_are_resolved() -> None:
    """A binding may name a setting; a missing one is an error that names it."""
    assert resolve_settings("%NAME%-poison", {"NAME": "items"}) == "items-poison"
    with pytest.raises(HostConfigError, match="app setting NAME"):
        resolve_settings("%NAME%", {})


def test_connection_is_the_name_of_a_setting() -> None:
    """The name with the host's prefix is looked up first; an identity's settings are not enough here."""
    assert find_connection("Storage", {"AzureWebJobsStorage": "text"}) == "text"
    with pytest.raises(HostConfigError, match="managed identity"):
        find_connection("AzureWebJobsStorage", {"AzureWebJobsStorage__queueServiceUri": "https://x"})
