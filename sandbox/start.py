"""The whole sandbox in one process: storage, simulators, mailbox and host, on loopback, all fresh (`make start`).

`running` is the same for the demo, the tests and the benchmarks. Everything that it starts ends with it: child processes
are tied to a thread of this one, so not even a kill leaves one behind.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import certifi
import requests

from sandbox import dynamics365_records, marketo_records, servicenow_records
from sandbox.azurite import Azurite, AzuriteError
from sandbox.certificates import make_certificates
from sandbox.dynamics365 import Dynamics365, EntraLogin
from sandbox.host import Host, HostError
from sandbox.host_config import HostConfigError, read_settings
from sandbox.mailbox import Mailbox
from sandbox.marketo import Marketo
from sandbox.processes import free_ports, port_answers, port_is_free, tied
from sandbox.servicenow import ServiceNow
from sandbox.simulator import Simulator, drop_connections, serve

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".sandbox"
EXAMPLE = ROOT / "local.settings.example.json"
LOCAL = ROOT / "local.settings.json"
OURS = (
    "CONNECTIONS__DYNAMICS365__",
    "CONNECTIONS__SERVICENOW__",
    "CONNECTIONS__MARKETO__",
    "MAIL__",
)  # never taken from a developer's settings
BASE_PORT = 7100
LOWEST_BASE_PORT, HIGHEST_BASE_PORT = 1100, 65529  # the ports beside it are neither reserved nor beyond the last one
RECORDS = 300
WORKERS = 2
DYNAMICS = "CONNECTIONS__DYNAMICS365__"
WEBHOOKS = {"contact": "contact_to_lead", "account": "account_to_company"}  # table -> recipe
UNKNOWN_TEAM = dynamics365_records.TEAMS[-1]  # owns cases, and ServiceNow has no such group
CORE_TOOLS_WAIT_S = 120.0
LOOK_S = 0.2
APP_WAIT_S = 30.0


class SandboxError(RuntimeError):
    """The sandbox cannot be started; the message is one sentence that says why and what to do."""


# -- what runs --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ports:
    """Where everything listens; 0 is any free port."""

    host: int
    dynamics: int
    login: int
    servicenow: int
    smtp: int
    mail_page: int
    marketo: int

    @classmethod
    def of(cls, base: int) -> Self:
        """Return the ports that follow from a base: 7100 gives 7101 to 7106 and 7071 for the host; 0 gives free ones."""
        if base == 0:
            return cls(free_ports(1)[0], 0, 0, 0, 0, 0, 0)
        return cls(base - 29, base + 1, base + 2, base + 3, base + 4, base + 5, base + 6)

    def check(self) -> None:
        """Raise SandboxError for the first port that another program has."""
        for field in dataclasses.fields(self):
            port = getattr(self, field.name)
            if port and not port_is_free(port):
                raise SandboxError(_taken(port, field.name.replace("_", " ")))


@dataclasses.dataclass
class Sandbox:
    """Everything that runs, to be looked at and changed by demo, tests and benchmarks."""

    dynamics: Dynamics365
    login: EntraLogin
    servicenow: ServiceNow
    marketo: Marketo
    mailbox: Mailbox
    azurite: Azurite
    host: "Host | CoreTools | None"  # None: started without an app
    relations: Mapping[str, list[str]]  # which case was seeded how in ServiceNow, by kind
    known: Mapping[str, list[str]]  # which contacts and accounts Marketo knew before, by kind
    env: dict[str, str]  # the app's settings
    app_url: str = ""
    dynamics_url: str = ""
    servicenow_url: str = ""
    marketo_url: str = ""
    mail_url: str = ""

    @property
    def connection_string(self) -> str:
        """Return the storage's connection string."""
        return self.azurite.connection_string

    @property
    def log(self) -> list[str]:
        """Return what the host has printed so far."""
        return list(self.host.lines) if self.host else []

    def sync_url(self, email: str, **parameters: str) -> str:
        """Return the address that starts the sync of cases."""
        query = "&".join(f"{name}={value}" for name, value in {"Email": email, **parameters}.items())
        return f"{self.app_url}/api/sync/case_to_incident?{query}"


@contextlib.asynccontextmanager
async def running(
    *,
    base_port: int = 0,
    records: int = RECORDS,
    seed: int = dynamics365_records.SEED,
    incidents: int = servicenow_records.INCIDENTS,
    workers: int = WORKERS,
    env: Mapping[str, str] | None = None,
    app: bool = True,
    core_tools: bool = False,
    local_settings: bool = False,
    echo: Callable[[str], None] | None = None,
    **host_flags: object,
) -> AsyncIterator[Sandbox]:
    """Run the sandbox with demo records; base port 0 takes free ports.

    `records` cases were modified yesterday, and ServiceNow holds `incidents`. `env` goes over all other settings;
    `host_flags` are flags of `sandbox.host`. With `app` False no host is started: a test calls the functions itself.
    Raises SandboxError.
    """
    ports = Ports.of(base_port)
    ports.check()
    FOLDER.mkdir(exist_ok=True)
    _sweep(FOLDER)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"run-{os.getpid()}-", dir=FOLDER)))
        keeper = stack.enter_context(ThreadPoolExecutor(1, "sandbox-keeper"))  # children live as long as its thread
        azurite = Azurite(folder / "azurite")  # in memory it stands still for seconds each minute to forget messages
        with _as_sandbox_error():
            await _on(keeper, azurite.start)
        stack.push_async_callback(_on, keeper, azurite.stop)

        dynamics = Dynamics365()
        login = EntraLogin(dynamics.tokens)
        servicenow = ServiceNow()
        marketo = Marketo()
        mailbox = Mailbox(smtp_port=ports.smtp)
        relations = fill(dynamics, servicenow, records, seed, incidents)
        known = marketo_records.seed(marketo, dynamics)
        context, bundle = make_certificates(folder)
        plain: list[tuple[Simulator, int]] = [
            (dynamics, ports.dynamics),
            (servicenow, ports.servicenow),
            (marketo, ports.marketo),
            (mailbox, ports.mail_page),
        ]
        sandbox = Sandbox(dynamics, login, servicenow, marketo, mailbox, azurite, None, relations, known, {})
        try:
            listening = await stack.enter_async_context(serve(plain))
            (login_port,) = await stack.enter_async_context(serve([(login, ports.login)], context))
        except OSError as exc:
            raise SandboxError(f"A port was taken while the sandbox started ({exc.strerror}): start it again.") from exc
        urls = [f"http://localhost:{port}" for port in (*listening, ports.host)]
        sandbox.dynamics_url, sandbox.servicenow_url, sandbox.marketo_url, sandbox.mail_url, sandbox.app_url = urls
        with _as_sandbox_error():
            sandbox.env = _build_env(sandbox, login_port, _merge(bundle), local_settings) | dict(env or {})
        if app:
            sandbox.host = _host(sandbox, ports.host, workers, core_tools, echo, host_flags)
            with _as_sandbox_error():
                await _on(keeper, sandbox.host.start)
            stack.push_async_callback(_on, keeper, sandbox.host.stop)
            register_webhooks(sandbox)
        yield sandbox


@contextlib.contextmanager
def running_in_thread(**options: Any) -> Iterator[Sandbox]:
    """Run the sandbox on a loop of its own in a thread, for tests that are not asynchronous; see `running`."""
    answers: queue.SimpleQueue[Sandbox | BaseException] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        async with running(**options) as sandbox:
            answers.put(sandbox)
            await stop.wait()

    def work() -> None:
        with contextlib.closing(loop):
            try:
                loop.run_until_complete(run())
            except BaseException as exc:  # the starting thread raises it
                answers.put(exc)
            finally:
                drop_connections(loop)

    thread = threading.Thread(target=work, name="sandbox", daemon=True)
    thread.start()
    answer = answers.get()
    if isinstance(answer, BaseException):
        thread.join()
        raise answer
    try:
        yield answer
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def fill(
    dynamics: Dynamics365, servicenow: ServiceNow, records: int, seed: int, incidents: int
) -> Mapping[str, list[str]]:
    """Write the demo records of both systems; return which case was seeded how in ServiceNow, by kind."""
    cases = dynamics365_records.seed(dynamics, records, long_descriptions=True, random_seed=seed)
    known = [case | {"owner_team": None} if case["owner_team"] == UNKNOWN_TEAM else case for case in cases]
    return servicenow_records.seed(servicenow, known, incidents)


def register_webhooks(sandbox: Sandbox) -> None:
    """Have Dynamics 365 call the app for every change of a contact or an account from now on."""
    key = sandbox.env[f"{DYNAMICS}WEBHOOK_KEY"].partition(",")[0]
    for entity, recipe in WEBHOOKS.items():
        sandbox.dynamics.register_hook(f"{sandbox.app_url}/api/webhooks/{recipe}", entity, value=key)


# -- settings of the app ----------------------------------------------------------------------------------------------


def _build_env(sandbox: Sandbox, login_port: int, bundle: Path, local_settings: bool) -> dict[str, str]:
    """Return the example's settings with this sandbox's addresses.

    A developer's own settings go over the example's, but never those of the systems that are simulated here: a demo
    must not reach a real one.
    """
    values = read_settings(EXAMPLE)
    if local_settings and LOCAL.exists():
        own = read_settings(LOCAL)
        values |= {name: value for name, value in own.items() if not name.upper().startswith(OURS)}
    return values | {
        "AzureWebJobsStorage": sandbox.connection_string,
        "REQUESTS_CA_BUNDLE": str(bundle),
        "APP_URL": sandbox.app_url,
        "MAIL__HOST": "localhost",
        "MAIL__PORT": str(sandbox.mailbox.smtp_port),
        "CONNECTIONS__DYNAMICS365__URL": sandbox.dynamics_url,
        "CONNECTIONS__DYNAMICS365__AUTHORITY": f"https://localhost:{login_port}",
        "CONNECTIONS__SERVICENOW__URL": sandbox.servicenow_url,
        "CONNECTIONS__MARKETO__URL": sandbox.marketo_url,
        "CONNECTIONS__MARKETO__WEB_URL": sandbox.marketo_url,
    }


def _merge(bundle: Path) -> Path:
    """Write the public authorities and the sandbox's own into one file: REQUESTS_CA_BUNDLE replaces the public ones."""
    merged = bundle.with_name("trusted.pem")
    merged.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + bundle.read_bytes())
    return merged


# -- hosts --------------------------------------------------------------------------------------------------------------


def _host(
    sandbox: Sandbox,
    port: int,
    workers: int,
    core_tools: bool,
    echo: Callable[[str], None] | None,
    flags: Mapping[str, object],
) -> "Host | CoreTools":
    func = shutil.which("func") if core_tools else None
    if func:
        return CoreTools(func, ROOT, sandbox.env, workers, port, echo)
    return Host(ROOT, sandbox.env, workers, port, echo=echo or False, **flags)


class CoreTools:
    """Microsoft's own local host (`func start`) as a child process, with the same face as `sandbox.host.Host`."""

    def __init__(
        self,
        func: str,
        app_dir: Path,
        env: Mapping[str, str],
        workers: int,
        port: int,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        self._command = tied([func, "start", "--port", str(port)])
        self._app_dir, self._port, self._echo = app_dir, port, echo
        beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._env = os.environ | dict(env)
        self._env |= {"FUNCTIONS_WORKER_PROCESS_COUNT": str(workers), "PATH": beside, "VIRTUAL_ENV": sys.prefix}
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.lines: list[str] = []
        self.url = f"http://localhost:{port}"

    def start(self) -> Self:
        """Start and wait until its port answers. Raises HostError with what it printed."""
        self._process = subprocess.Popen(
            self._command, cwd=self._app_dir, env=self._env, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        deadline = time.monotonic() + CORE_TOOLS_WAIT_S
        while not port_answers(self._port):
            if self.pid is None or time.monotonic() > deadline:
                self.stop()
                raise HostError("\n".join(["`func start` did not get ready:", *self.lines[-20:]]))
            time.sleep(LOOK_S)
        return self

    @property
    def pid(self) -> int | None:
        """Return the process id; None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def stop(self) -> int:
        """End it with all its workers, and return the exit code."""
        if self._process is None:
            return 0
        self._signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._signal(signal.SIGKILL)  # workers that it left
        code = self._process.wait()
        if self._reader:
            self._reader.join(5)
        self._process = self._reader = None
        return code

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _read(self, stream: Any) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                self.lines.append(line)
                if self._echo:
                    self._echo(line)


# -- small parts --------------------------------------------------------------------------------------------------------


async def _on(keeper: ThreadPoolExecutor, work: Callable[..., Any], *args: object) -> Any:
    return await asyncio.get_running_loop().run_in_executor(keeper, functools.partial(work, *args))


@contextlib.contextmanager
def _as_sandbox_error() -> Iterator[None]:
    try:
        yield
    except (AzuriteError, HostError, HostConfigError) as exc:
        raise SandboxError(str(exc)) from exc


def _sweep(folder: Path) -> None:
    """Remove what killed sandboxes left; a running one's folder bears its process id."""
    for left in folder.glob("run-*-*"):
        try:
            os.kill(int(left.name.split("-")[1]), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:
            continue  # another user's


def _taken(port: int, what: str) -> str:
    return (
        f"Port {port} ({what}) is in use by another program: end that one, or choose other ports, "
        f"for example `make start PORTS=7200`, `make demo PORTS=7200` or `--base-port 7200`."
    )


# -- make start -----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the sandbox until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.start", description=__doc__)
    add_options(parser)
    parser.add_argument("--verbose", action="store_true", help="print the host's log here too")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(_serve_until_stopped(options))
    except SandboxError as exc:
        print(exc, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nStopped; nothing is left running.")
        return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that start and demo share."""
    parser.add_argument("--records", type=_number(1), default=RECORDS, help="cases that were modified yesterday")
    parser.add_argument("--seed", type=int, default=dynamics365_records.SEED, help="another number, other records")
    parser.add_argument("--workers", type=_number(1), default=WORKERS, help="worker processes of the host")
    parser.add_argument(
        "--base-port",
        type=_base_port,
        default=BASE_PORT,
        help="7100 listens on 7101 to 7106 and 7071; 7200 on 7201 to 7206 and 7171; 0 takes free ports",
    )


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
        return int(text)

    return number


def _base_port(text: str) -> int:
    port = _number(0)(text)
    if port and not LOWEST_BASE_PORT <= port <= HIGHEST_BASE_PORT:
        wanted = f"0, which takes free ports, or {LOWEST_BASE_PORT} to {HIGHEST_BASE_PORT}"
        raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
    return port


def stop_on_signals() -> None:
    """End the running task in good order on Ctrl-C, SIGTERM and when the terminal is closed.

    Ctrl-C too: a shell starts what runs in its background with that signal ignored.
    """
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _serve_until_stopped(options: argparse.Namespace) -> int:
    stop_on_signals()
    print("Starting storage, Dynamics 365, ServiceNow, Marketo, mail and the app …", flush=True)
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "host.log").open("w", buffering=1) as log:

        def note(line: str) -> None:
            print(line, file=log)
            if options.verbose:
                print(line, flush=True)

        async with running(
            base_port=options.base_port,
            records=options.records,
            seed=options.seed,
            workers=options.workers,
            core_tools=True,
            local_settings=True,
            echo=note,
        ) as sandbox:
            print(_what_to_click(sandbox), flush=True)
            if fault := await asyncio.to_thread(_fault_of, sandbox.app_url):
                print(f"The app cannot work yet: {fault}\n", file=sys.stderr, flush=True)
            while sandbox.host is not None and sandbox.host.pid is not None:
                await asyncio.sleep(LOOK_S)
            print("The host has ended by itself; it said last:", *sandbox.log[-20:], sep="\n", file=sys.stderr)
            return 1


def _write_settings(sandbox: Sandbox) -> Path:
    """Write the app's settings beside its certificates, which go when it ends, for `cli.py --settings`."""
    file = Path(sandbox.env["REQUESTS_CA_BUNDLE"]).with_name("settings.json")
    file.write_text(json.dumps({"Values": sandbox.env}, indent=2), encoding="utf-8")
    return file.relative_to(ROOT)


def _fault_of(app_url: str) -> str:
    """Ask the app for its runs and return why it cannot answer; nothing when it can."""
    try:
        answer = requests.get(f"{app_url}/api/runs", params={"limit": "1"}, timeout=APP_WAIT_S)
    except requests.RequestException as exc:
        return f"it does not answer ({type(exc).__name__}); .sandbox/host.log says more."
    if answer.ok:
        return ""
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError):
        return f"it answers {answer.status_code}; .sandbox/host.log says more."


def _what_to_click(sandbox: Sandbox) -> str:
    own_bundle = "REQUESTS_CA_BUNDLE" in os.environ  # it would win over the file's, and does not know the sandbox
    unset = "env -u REQUESTS_CA_BUNDLE " if own_bundle else ""
    host = "func start" if isinstance(sandbox.host, CoreTools) else "the sandbox's own host"
    return f"""
Concord runs on this machine ({host}). Ctrl-C ends it all; nothing is kept.

  Dynamics 365   {sandbox.dynamics_url}/    cases: open one, change it, sync today's changes; edit a contact, watch its lead change
  ServiceNow     {sandbox.servicenow_url}/    incidents: search a case's number, play the agent
  Marketo        {sandbox.marketo_url}/?watch=1    leads and companies, as soon as a contact or an account was saved
  Mailbox        {sandbox.mail_url}/    the summaries

  Start a sync   {sandbox.sync_url("ada@example.com")}
                 takes the cases that changed yesterday; those that you change now are taken by
                 {sandbox.sync_url("ada@example.com", window="today")}
  All runs       {sandbox.app_url}/api/runs
  Health         {sandbox.app_url}/api/health
  Command line   {unset}.venv/bin/python cli.py validate --systems --settings {_write_settings(sandbox)}
  Recipes        are read once: after a change, end this and start it again
  Host's log     .sandbox/host.log   ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC)
"""


if __name__ == "__main__":
    sys.exit(main())
