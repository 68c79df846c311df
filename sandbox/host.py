"""A stand-in for `func start` where Core Tools is not installed: `python -m sandbox.host --port 7071`.

One host process serves routes, polls queues and fires timers; worker processes load the app unchanged and run its
functions. `Host` starts the same command as a child, for tests and for the demo.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import requests
from aiohttp import web

from sandbox.host_config import (
    LEVELS,
    HostConfig,
    HostConfigError,
    find_connection,
    read_host_config,
    read_settings,
    resolve_settings,
)  # fmt: skip
from sandbox.host_http import LONGEST_ANSWER_S, HttpFrontend
from sandbox.host_messages import FunctionFacts
from sandbox.host_pool import IndexingError, WorkerPool
from sandbox.host_queue import QueueListener
from sandbox.host_routes import Route, build_route
from sandbox.host_timer import Timer
from sandbox.processes import LOOPBACK, stop_process, tie_to_parent

ROOT = Path(__file__).parent.parent
SETTINGS_FILE = "local.settings.json"
QUEUE_LEASE_S = 600  # Azure's, fixed there
STOP_WAIT_S = 10.0
START_WAIT_S = 60.0
LOOK_S = 0.05
log = logging.getLogger("host")


# -- the host process -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Host an app until a signal; return the exit code."""
    options = _parse(arguments)
    if options.parent:
        tie_to_parent(options.parent)
    try:
        env = _build_env(options)
        config = read_host_config(options.app_dir, env)
        _write_logs(options.log_level or config.log_level)
        return asyncio.run(_host(options, env, config))
    except IndexingError as exc:
        print(f"No job functions found. The app cannot be loaded: {exc}", file=sys.stderr)
    except HostConfigError as exc:
        print(exc, file=sys.stderr)
    except OSError as exc:
        print(
            f"Port {options.port} of {options.address} cannot be used: {os.strerror(exc.errno or 0)}", file=sys.stderr
        )
    return 1


async def _host(options: argparse.Namespace, env: dict[str, str], config: HostConfig) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: os._exit(130) if stop.is_set() else stop.set())
    pool = WorkerPool(options.app_dir, env, _count_workers(options.workers, env), config.function_timeout)
    http_pool = pool
    if options.http_workers:
        http_pool = WorkerPool(options.app_dir, env, options.http_workers, config.function_timeout)
    pools = list(dict.fromkeys((pool, http_pool)))
    listeners: list[QueueListener] = []
    timers: list[asyncio.Task[None]] = []
    with _port(options.address, options.port) as listening:
        try:
            functions, *_ = await asyncio.gather(*(asyncio.to_thread(each.start) for each in pools))
            listeners = _build_listeners(functions, env, config, options.queue_lease_s, pool)
            due = _build_timers(functions, env, options.status_dir, pool)
            routes = [build_route(f, config.extensions.http.route_prefix) for f in _having(functions, "httpTrigger")]
            frontend = HttpFrontend(
                functions,
                routes,
                http_pool.invoke,
                pool.invoke,
                lambda: _state(pool, http_pool, listeners),
                options.enforce_keys,
                options.http_limit_s,
            )
            runner = web.AppRunner(frontend.app, access_log=None, shutdown_timeout=options.stop_wait_s)
            await runner.setup()
            await web.SockSite(runner, listening).start()
            url = (
                f"http://{'localhost' if options.address == LOOPBACK else options.address}:{listening.getsockname()[1]}"
            )
            print(_list_functions(functions, routes, url), flush=True)
            for listener in listeners:
                listener.start()
            timers = [asyncio.create_task(timer.run()) for timer in due]
            _tell_ready(options.ready_fd, url, pool)
            await stop.wait()
            await _drain(runner, listeners, timers, pools, options.stop_wait_s)
        finally:
            for each in pools:
                await asyncio.to_thread(each.stop)
    for listener in listeners:
        listener.join()
    return 0


async def _drain(
    runner: web.AppRunner,
    listeners: list[QueueListener],
    timers: list["asyncio.Task[None]"],
    pools: list[WorkerPool],
    wait_s: float,
) -> None:
    def running() -> int:
        return sum(pool.running() for pool in pools)

    log.info("stopping: %d invocations may take up to %.0f s to finish", running(), wait_s)
    deadline = time.monotonic() + wait_s
    for listener in listeners:
        listener.stop_polling()
    closing = asyncio.create_task(runner.cleanup())
    for timer in timers:
        timer.cancel()
    while time.monotonic() < deadline and (running() or any(listener.in_flight for listener in listeners)):
        await asyncio.sleep(LOOK_S)
    if left := running():
        log.warning("%d invocations did not finish; their messages come back when the lease ends", left)
    for listener in listeners:
        listener.abandon()
    for pool in pools:
        await asyncio.to_thread(pool.stop)
    await closing


def _build_listeners(
    functions: tuple[FunctionFacts, ...], env: dict[str, str], config: HostConfig, lease_s: int, pool: WorkerPool
) -> list[QueueListener]:
    listeners = []
    for function in _having(functions, "queueTrigger"):
        queue = resolve_settings(function.trigger["queueName"], env)
        connection = find_connection(function.trigger.get("connection", ""), env)
        try:
            listener = QueueListener(function.name, queue, connection, config.extensions.queues, lease_s, pool.invoke)
        except ValueError as exc:
            raise HostConfigError(f"{function.name}: {exc}") from None
        listeners.append(listener)
    return listeners


def _build_timers(
    functions: tuple[FunctionFacts, ...], env: dict[str, str], status_dir: Path | None, pool: WorkerPool
) -> list[Timer]:
    timers = []
    for function in _having(functions, "timerTrigger"):
        trigger = function.trigger
        monitored = status_dir is not None and trigger.get("useMonitor", True)
        timers.append(
            Timer(
                function.name,
                resolve_settings(trigger["schedule"], env),
                pool.invoke,
                status_dir / f"{function.name}.json" if status_dir and monitored else None,
                bool(trigger.get("runOnStartup")),
            )
        )
    return timers


def _having(functions: tuple[FunctionFacts, ...], kind: str) -> list[FunctionFacts]:
    return [function for function in functions if function.trigger["type"] == kind]


def _list_functions(functions: tuple[FunctionFacts, ...], routes: list[Route], url: str) -> str:
    lines = ["", "Functions:", ""]
    lines += [f"        {route.function}: {route.label} {url}/{route.template}\n" for route in routes]
    lines += [f"        {f.name}: {f.trigger['type']}\n" for f in functions if f.trigger["type"] != "httpTrigger"]
    return "\n".join(lines)


def _state(pool: WorkerPool, http_pool: WorkerPool, listeners: list[QueueListener]) -> dict[str, Any]:
    in_flight = {listener.function: listener.in_flight for listener in listeners}
    return {
        "workers": list(dict.fromkeys(pool.pids() + http_pool.pids())),
        "running": pool.running(),
        "in_flight": in_flight,
    }


def _tell_ready(fd: int | None, url: str, pool: WorkerPool) -> None:
    if fd is not None:
        with os.fdopen(fd, "w") as stream:
            json.dump({"url": url, "workers": pool.pids()}, stream)


@contextlib.contextmanager
def _port(address: str, port: int) -> Iterator[socket.socket]:
    """Take the port before anything is started, so that a taken one costs nothing."""
    with socket.create_server((address, port), backlog=512) as listening:
        yield listening


def _build_env(options: argparse.Namespace) -> dict[str, str]:
    """Return the app's environment: what is set here wins over the settings file, as with Core Tools."""
    path = options.app_dir / options.settings if options.settings else None
    values = read_settings(path) if path and (path.exists() or options.settings != SETTINGS_FILE) else {}
    env = values | os.environ
    env.setdefault("FUNCTIONS_WORKER_RUNTIME", "python")
    return env


def _count_workers(given: int | None, env: Mapping[str, str]) -> int:
    text = str(given) if given is not None else env.get("FUNCTIONS_WORKER_PROCESS_COUNT", "1")
    if not text.isdigit() or not 1 <= int(text) <= 10:
        raise HostConfigError(f"the number of workers must be from 1 to 10, as in Azure, not {text}")
    return int(text)


def _write_logs(level: int) -> None:
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in ("azure", "urllib3", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.host", description=__doc__)
    add = parser.add_argument
    add("--port", type=int, default=7071, help="0 for any free one")
    add("--address", default=LOOPBACK)
    add("--app-dir", type=lambda text: Path(text).resolve(), default=Path.cwd())
    add("--workers", type=int, help="default: FUNCTIONS_WORKER_PROCESS_COUNT, else 1")
    add("--http-workers", type=int, default=0, help="workers for HTTP alone, as on Flex Consumption; 0: all share")
    add("--settings", default=SETTINGS_FILE, help="settings file in the app folder; '' for none")
    add("--log-level", type=lambda text: LEVELS[text], help=", ".join(LEVELS))
    add("--queue-lease-s", type=int, default=QUEUE_LEASE_S, help="how long a dead host keeps its messages")
    add("--stop-wait-s", type=float, default=STOP_WAIT_S, help="how long running invocations may take to finish")
    add("--http-limit-s", type=float, default=LONGEST_ANSWER_S)
    add(
        "--enforce-keys", metavar="KEY", help="demand this key where the auth level does; without it levels are ignored"
    )
    add("--status-dir", type=Path, help="where timers remember their due dates between starts")
    add("--ready-fd", type=int, help=argparse.SUPPRESS)
    add("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.queue_lease_s < 1:
        parser.error("--queue-lease-s must be at least 1")
    return options


# -- for tests and the demo -------------------------------------------------------------------------------------------


class HostError(RuntimeError):
    """The host did not start; the message holds what it printed."""


class Host:
    """The host as a child process: `with Host(app_dir, env) as host: requests.get(host.url + "/api/…")`.

    `env` goes over this process's own environment; no settings file is read unless `settings` names one. Further facts
    are flags of the command (`enforce_keys="k"` is `--enforce-keys k`). `echo` copies its output to ours, or hands each
    line to a function. It dies with the thread that started it, so start it from one that lives long enough.
    """

    def __init__(
        self,
        app_dir: Path,
        env: Mapping[str, str] | None = None,
        workers: int = 2,
        port: int = 0,
        settings: Path | None = None,
        echo: bool | Callable[[str], None] = False,
        **flags: object,
    ) -> None:
        self._command = [
            sys.executable,
            "-m",
            "sandbox.host",
            "--app-dir",
            str(app_dir.resolve()),
            "--workers",
            str(workers),
        ]
        self._command += [
            "--port",
            str(port),
            "--settings",
            str(settings.resolve()) if settings else "",
            "--parent",
            str(os.getpid()),
        ]
        for name, value in flags.items():
            self._command += [f"--{name.replace('_', '-')}", str(value)]
        self._env = os.environ | dict(env or {})
        self._echo = partial(print, flush=True) if echo is True else echo or None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.lines: list[str] = []  # what it printed, without line ends
        self.url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start and wait until all workers have loaded the app. Raises HostError with what it printed."""
        ready, theirs = os.pipe()
        self._process = subprocess.Popen(
            [*self._command, "--ready-fd", str(theirs)],
            cwd=ROOT, env=self._env, pass_fds=(theirs,), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        with os.fdopen(ready) as stream:
            said = stream.read()  # ends when it is ready or dead
        if not said:
            self.kill()
            raise HostError("\n".join(self.lines))
        self.url = json.loads(said)["url"]
        return self

    @property
    def pid(self) -> int | None:
        """Return the host's process id, which is also its process group; None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def stop(self, wait_s: float = START_WAIT_S) -> int:
        """Stop gracefully and return the exit code."""
        if self._process is None:
            return 0
        code = stop_process(self._process, wait_s)
        self._close()
        return code

    def kill(self) -> None:
        """Kill the host as a power cut would; its workers die with it, its messages keep their leases."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()

    def kill_worker(self, number: int = 1) -> int:
        """Kill one worker process (numbers from 1), and return its process id."""
        pid = self.state()["workers"][number - 1]
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def state(self) -> dict[str, Any]:
        """Return `workers` (process ids), `running` (invocations) and `in_flight` (messages by function)."""
        answer = requests.get(f"{self.url}/_sandbox/host", timeout=10)
        answer.raise_for_status()
        return dict(answer.json())

    def run_by_hand(self, function: str, given: str = "") -> None:
        """Run a timer or queue function now, without waiting for it. Raises requests.HTTPError when refused."""
        url = f"{self.url}/admin/functions/{function}"
        requests.post(url, json={"input": given}, timeout=10).raise_for_status()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                self.lines.append(line)
                if self._echo:
                    self._echo(line)

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.join()
        self._process = self._reader = None


if __name__ == "__main__":
    sys.exit(main())
