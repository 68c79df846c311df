"""One worker process of the stand-in host: loads the app and runs its functions when the host says so.

As in Microsoft's worker, sync functions share one thread pool and async ones one event loop; functions get the argument
objects that the azure-functions library itself builds. The host's end of the pipe closing ends the process.
"""

import argparse
import asyncio
import contextvars
import json
import logging
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import azure.functions as func
from azure.functions.meta import Datum, get_binding_registry

from sandbox.host_index import LoadedFunction, load_functions
from sandbox.host_messages import (
    Call,
    Done,
    Failed,
    HttpAnswer,
    HttpCall,
    Invoke,
    LogLine,
    QueueCall,
    Ready,
    Refused,
)  # fmt: skip
from sandbox.processes import tie_to_parent
from sandbox.skewed_clock import skew_clock

CURRENT: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar("invocation", default=("", ""))


class Pipe:
    """The worker's end of the pipe; many threads send, one receives."""

    def __init__(self, fd: int) -> None:
        self._connection = Connection(fd)
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message; a host that is gone needs none."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(1)

    def receive(self) -> Any:
        """Wait for the next message. Raises EOFError when the host closed its end."""
        return self._connection.recv()


class LogToHost(logging.Handler):
    """Sends log records to the host, with the invocation they belong to."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            function, invocation_id = CURRENT.get()
            self._pipe.send(LogLine(record.levelno, record.name, function, invocation_id, self.format(record)))
        except Exception:
            self.handleError(record)


class InvocationContext(func.Context):
    """What a function gets as its `context` parameter."""

    def __init__(self, function: str, invocation_id: str, app_dir: Path) -> None:
        self._function, self._invocation_id, self._app_dir = function, invocation_id, app_dir
        self._local = threading.local()
        self._local.invocation_id = invocation_id

    @property
    def invocation_id(self) -> str:
        return self._invocation_id

    @property
    def thread_local_storage(self) -> Any:
        return self._local

    @property
    def function_name(self) -> str:
        return self._function

    @property
    def function_directory(self) -> str:
        return str(self._app_dir)

    @property
    def trace_context(self) -> Any:
        return SimpleNamespace(trace_parent="", trace_state="", attributes={})

    @property
    def retry_context(self) -> Any:
        return None


class Worker:
    """Runs invocations until the host closes the pipe."""

    def __init__(self, pipe: Pipe, app_dir: Path, functions: dict[str, LoadedFunction]) -> None:
        self._pipe, self._app_dir, self._functions = pipe, app_dir, functions
        self._pool = ThreadPoolExecutor(thread_count(), thread_name_prefix="function")
        self._loop = asyncio.new_event_loop()
        if any(function.is_async for function in functions.values()):
            threading.Thread(target=self._loop.run_forever, name="functions", daemon=True).start()

    def work(self) -> None:
        """Take invocations from the pipe, for ever."""
        while True:
            invoke: Invoke = self._pipe.receive()
            if self._functions[invoke.function].is_async:
                asyncio.run_coroutine_threadsafe(self._run_async(invoke), self._loop)
            else:
                self._pool.submit(self._run, invoke)

    def _run(self, invoke: Invoke) -> None:
        CURRENT.set((invoke.function, invoke.invocation_id))
        function = self._functions[invoke.function]
        try:
            self._report(invoke, function.run(**self._arguments(function, invoke)))
        except BaseException:
            self._pipe.send(Failed(invoke.invocation_id, _reason()))

    async def _run_async(self, invoke: Invoke) -> None:
        CURRENT.set((invoke.function, invoke.invocation_id))
        function = self._functions[invoke.function]
        try:
            self._report(invoke, await function.run(**self._arguments(function, invoke)))
        except BaseException:
            self._pipe.send(Failed(invoke.invocation_id, _reason()))

    def _arguments(self, function: LoadedFunction, invoke: Invoke) -> dict[str, Any]:
        arguments = {function.argument: build_argument(function, invoke.call)}
        if function.takes_context:
            arguments["context"] = InvocationContext(invoke.function, invoke.invocation_id, self._app_dir)
        return arguments

    def _report(self, invoke: Invoke, result: Any) -> None:
        if not self._functions[invoke.function].returns:
            if result is not None:
                raise RuntimeError(
                    f"function {invoke.function} has no $return binding and returned {type(result).__name__}"
                )
            self._pipe.send(Done(invoke.invocation_id, None))
            return
        self._pipe.send(Done(invoke.invocation_id, build_answer(result)))


def thread_count() -> int | None:
    """Return PYTHON_THREADPOOL_THREAD_COUNT, None for Python's own default."""
    text = os.environ.get("PYTHON_THREADPOOL_THREAD_COUNT")
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"PYTHON_THREADPOOL_THREAD_COUNT must be a number from 1, not {text!r}")
    return int(text)


def build_argument(function: LoadedFunction, call: Call) -> Any:
    """Return what the function's parameter gets, made by the library's own converter."""
    if isinstance(call, QueueCall) and function.annotation in (str, bytes):
        return call.body if function.annotation is str else call.body.encode()
    datum, metadata = _datum(call)
    converter = get_binding_registry().get(function.facts.trigger["type"])
    return converter.decode(datum, trigger_metadata=metadata)


def _datum(call: Call) -> tuple[Datum, dict[str, Datum]]:
    if isinstance(call, HttpCall):
        value = {
            "method": _text(call.method),
            "url": _text(call.url),
            "headers": {name: _text(text) for name, text in call.headers.items()},
            "query": {name: _text(text) for name, text in call.query.items()},
            "params": {name: _text(text) for name, text in call.route_params.items()},
            "body": Datum(call.body, "bytes"),
        }
        return Datum(value, "http"), {}
    if isinstance(call, QueueCall):
        metadata = {
            "Id": _text(call.id),
            "DequeueCount": Datum(call.dequeue_count, "int"),
            "PopReceipt": _text(call.pop_receipt),
            "InsertionTime": _text(call.insertion_time),
            "ExpirationTime": _text(call.expiration_time),
            "NextVisibleTime": _text(call.next_visible_time),
        }
        return _text(call.body), metadata
    timer = {"IsPastDue": call.past_due, "Schedule": {"AdjustForDST": True}, "ScheduleStatus": call.status}
    return Datum(json.dumps(timer), "json"), {}


def _text(value: str) -> Datum:
    return Datum(value, "string")


def build_answer(result: Any) -> HttpAnswer:
    """Turn what an HTTP function returned into an answer: an HttpResponse, a text, or nothing (204)."""
    if result is None:
        return HttpAnswer(204, (), b"")
    if isinstance(result, str):
        return HttpAnswer(200, (("content-type", "text/plain; charset=utf-8"),), result.encode())
    if not isinstance(result, func.HttpResponse):
        raise TypeError(f"an HTTP function cannot return {type(result).__name__}")
    datum = get_binding_registry().get("http").encode(result, expected_type=None).value
    cookies: list[SimpleCookie] = datum["cookies"] or []
    headers = [(name, header.value) for name, header in datum["headers"].items()]
    headers += [("set-cookie", morsel.OutputString()) for cookie in cookies for morsel in cookie.values()]
    return HttpAnswer(int(datum["status_code"].value), tuple(headers), datum["body"].value)


def _reason() -> str:
    return traceback.format_exc().strip()


def _log_to(pipe: Pipe) -> None:
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if os.environ.get("PYTHON_ENABLE_DEBUG_LOGGING") == "1" else logging.INFO)
    root.addHandler(LogToHost(pipe))
    logging.captureWarnings(True)


def main() -> None:
    """Load the app, tell the host, and work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--app-dir", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    tie_to_parent(options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to answer: running invocations finish
    pipe = Pipe(options.fd)
    _log_to(pipe)
    sys.path[0] = str(options.app_dir)
    os.chdir(options.app_dir)
    try:
        script = os.environ.get("PYTHON_SCRIPT_FILE_NAME", "function_app.py")
        functions = load_functions(options.app_dir, script)
        skew_clock()
        worker = Worker(pipe, options.app_dir, functions)
    except BaseException as exc:
        pipe.send(Refused(f"{type(exc).__name__}: {exc}\n{_reason()}"))
        return
    pipe.send(Ready(tuple(function.facts for function in functions.values())))
    try:
        worker.work()
    except EOFError:
        os._exit(0)


if __name__ == "__main__":
    main()
