"""The host's side of its worker processes: starts them, hands invocations out in turn, notices deaths and overruns.

A worker that dies fails its invocations at once and is replaced; a function that runs longer than the host's
functionTimeout takes its whole worker down, its neighbours too, as in Azure.
"""

import collections
import dataclasses
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sandbox.host_messages import Call, Done, Failed, FunctionFacts, Invoke, LogLine, Ready, Refused
from sandbox.skewed_clock import WORKER

ROOT = Path(__file__).parent.parent
START_WAIT_S = 30.0  # the host's MetadataProviderTimeout
RESTART_PAUSE_S = (0.0, 0.5, 1.0, 2.0, 5.0)  # before a replacement, by failed starts in a row
TICK_S = 1.0
log = logging.getLogger("host")


class IndexingError(Exception):
    """The app cannot be loaded; the message is the worker's."""


class InvocationError(Exception):
    """An invocation failed; the message says how."""


class FunctionFailedError(InvocationError):
    """The function raised; the message is its traceback."""


class WorkerDiedError(InvocationError):
    """The worker process ended while the function ran."""


class FunctionTimeoutError(InvocationError):
    """The function ran longer than functionTimeout."""


@dataclasses.dataclass
class Invocation:
    """A call that has not been answered."""

    invoke: Invoke
    future: "Future[Any]"
    deadline: float  # monotonic; infinite without a limit


class Worker:
    """One worker process and what it is working on."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], connection: Connection) -> None:
        self.number, self.process, self.connection = number, process, connection
        self.pending: dict[str, Invocation] = {}
        self.ready = False
        self.sending = threading.Lock()


class WorkerPool:
    """A fixed number of workers; a thread tends them for as long as the pool lives."""

    def __init__(self, app_dir: Path, env: Mapping[str, str], count: int, function_timeout_s: float | None) -> None:
        self._app_dir, self._env, self._count, self._timeout_s = app_dir, dict(env), count, function_timeout_s
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._workers: dict[int, Worker] = {}
        self._turns: collections.deque[Worker] = collections.deque()  # the ready ones, next first
        self._waiting: collections.deque[Invocation] = collections.deque()  # nobody was ready
        self._failed_starts: dict[int, int] = {}
        self._due: dict[int, float] = dict.fromkeys(range(1, count + 1), 0.0)  # when a worker is to be started
        self._indexed: Future[tuple[FunctionFacts, ...]] = Future()
        self._all_up = threading.Event()
        self._stopping = False
        self._tender = threading.Thread(target=self._tend, name="workers", daemon=True)

    # -- for the host -------------------------------------------------------------------------------------------------

    def start(self) -> tuple[FunctionFacts, ...]:
        """Start all workers and return the app's functions. Raises IndexingError when the app cannot be loaded."""
        self._tender.start()
        try:
            functions = self._indexed.result(START_WAIT_S)
        except TimeoutError:
            raise IndexingError(f"the app did not load within {START_WAIT_S:.0f} s") from None
        if not self._all_up.wait(START_WAIT_S):
            raise IndexingError("not all workers came up")
        return functions

    def invoke(self, function: str, call: Call) -> "Future[Any]":
        """Run a function on the worker whose turn it is; the future raises an InvocationError when it fails."""
        deadline = time.monotonic() + self._timeout_s if self._timeout_s else float("inf")
        invocation = Invocation(Invoke(str(uuid.uuid4()), function, call), Future(), deadline)
        invocation.future.set_running_or_notify_cancel()
        self._dispatch(invocation)
        return invocation.future

    def pids(self) -> list[int]:
        """Return the process ids of the workers that are ready, by number."""
        with self._lock:
            return [worker.process.pid for _, worker in sorted(self._workers.items()) if worker.ready]

    def running(self) -> int:
        """Return how many invocations have not been answered."""
        with self._lock:
            return len(self._waiting) + sum(len(worker.pending) for worker in self._workers.values())

    def stop(self) -> None:
        """End all workers; what still runs fails."""
        with self._lock:
            self._stopping = True
            workers = list(self._workers.values())
        self._wake.set()
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.wait()

    # -- handing out --------------------------------------------------------------------------------------------------

    def _dispatch(self, invocation: Invocation) -> None:
        with self._lock:
            if not self._turns:
                self._waiting.append(invocation)
                return
            worker = self._turns[0]
            self._turns.rotate(-1)
            worker.pending[invocation.invoke.invocation_id] = invocation
        self._wake_for(invocation)
        try:
            with worker.sending:
                worker.connection.send(invocation.invoke)
        except OSError:  # it died; whoever takes the entry out of `pending` answers
            if worker.pending.pop(invocation.invoke.invocation_id, None):
                invocation.future.set_exception(_died(worker))

    def _wake_for(self, invocation: Invocation) -> None:
        if invocation.deadline - time.monotonic() < TICK_S:
            self._wake.set()

    # -- listening ----------------------------------------------------------------------------------------------------

    def _listen(self, worker: Worker) -> None:
        try:
            while True:
                self._take(worker, worker.connection.recv())
        except (EOFError, OSError):
            self._bury(worker)

    def _take(self, worker: Worker, message: object) -> None:
        match message:
            case LogLine():
                message.write(worker.number)
            case Done(invocation_id, answer):
                if invocation := worker.pending.pop(invocation_id, None):
                    invocation.future.set_result(answer)
            case Failed(invocation_id, reason):
                if invocation := worker.pending.pop(invocation_id, None):
                    invocation.future.set_exception(FunctionFailedError(reason))
            case Ready(functions):
                self._welcome(worker, functions)
            case Refused(reason):
                log.error("worker %d could not load the app: %s", worker.number, reason)
                if not self._indexed.done():
                    self._indexed.set_exception(IndexingError(reason))

    def _welcome(self, worker: Worker, functions: tuple[FunctionFacts, ...]) -> None:
        with self._lock:
            worker.ready = True
            self._failed_starts[worker.number] = 0
            self._turns.append(worker)
            waiting, self._waiting = self._waiting, collections.deque()
            all_up = len(self._turns) == self._count
        if not self._indexed.done():
            self._indexed.set_result(functions)
        if all_up:
            self._all_up.set()
        for invocation in waiting:
            self._dispatch(invocation)

    def _bury(self, worker: Worker) -> None:
        worker.process.kill()  # it closed its pipe: whatever is left of it works for nobody
        code = worker.process.wait()
        with self._lock:
            self._workers.pop(worker.number, None)
            if worker in self._turns:
                self._turns.remove(worker)
            if not worker.ready:
                self._failed_starts[worker.number] = self._failed_starts.get(worker.number, 0) + 1
            pause_s = RESTART_PAUSE_S[min(self._failed_starts.get(worker.number, 0), len(RESTART_PAUSE_S) - 1)]
            self._due[worker.number] = time.monotonic() + pause_s
            stopping = self._stopping
        for invocation_id in list(worker.pending):
            if invocation := worker.pending.pop(invocation_id, None):
                invocation.future.set_exception(_died(worker))
        worker.connection.close()
        if not self._indexed.done():
            self._indexed.set_exception(IndexingError(f"the worker ended with exit code {code} while loading the app"))
        if not stopping:
            log.error("worker %d (process %d) ended with exit code %s", worker.number, worker.process.pid, code)
            self._wake.set()

    # -- tending ------------------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Start workers and end overrunning ones; children are tied to this thread, so all are started here."""
        while not self._stopping:
            self._start_due()
            self._end_overdue()
            self._wake.wait(self._next_look_s())
            self._wake.clear()

    def _start_due(self) -> None:
        with self._lock:
            numbers = [number for number, due in self._due.items() if due <= time.monotonic()]
            for number in numbers:
                del self._due[number]
        for number in numbers:
            worker = self._spawn(number)
            with self._lock:
                self._workers[number] = worker
                stopping = self._stopping
            if stopping:
                worker.process.kill()
            threading.Thread(target=self._listen, args=(worker,), name=f"worker {number}", daemon=True).start()
            threading.Thread(target=_forward, args=(worker,), name=f"output {number}", daemon=True).start()

    def _spawn(self, number: int) -> Worker:
        ours, theirs = Pipe()
        fd = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.host_worker", "--fd", str(fd), "--app-dir", str(self._app_dir),
             "--parent", str(os.getpid())],
            cwd=ROOT, env=self._env | {WORKER: str(number)}, pass_fds=(fd,),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        theirs.close()
        return Worker(number, process, ours)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        with self._lock:
            workers = list(self._workers.values())
            never_started = [invocation for invocation in self._waiting if invocation.deadline <= now]
            for invocation in never_started:
                self._waiting.remove(invocation)
        for invocation in never_started:
            invocation.future.set_exception(self._timed_out(invocation))
        for worker in workers:
            overdue = [key for key, invocation in list(worker.pending.items()) if invocation.deadline <= now]
            for key in overdue:
                if invocation := worker.pending.pop(key, None):
                    log.error("%s; worker %d is restarted", self._timed_out(invocation), worker.number)
                    invocation.future.set_exception(self._timed_out(invocation))
            if overdue:
                worker.process.kill()

    def _timed_out(self, invocation: Invocation) -> FunctionTimeoutError:
        return FunctionTimeoutError(f"function {invocation.invoke.function} ran longer than {self._timeout_s} s")

    def _next_look_s(self) -> float:
        now = time.monotonic()
        with self._lock:
            moments = [invocation.deadline for w in self._workers.values() for invocation in list(w.pending.values())]
            moments += [invocation.deadline for invocation in self._waiting]
            moments += self._due.values()
        return max(0.0, min([now + TICK_S, *moments]) - now)


def _died(worker: Worker) -> WorkerDiedError:
    return WorkerDiedError(f"worker {worker.number} (process {worker.process.pid}) died")


def _forward(worker: Worker) -> None:
    """Copy what a worker prints into the log, line by line."""
    output = logging.getLogger(f"worker {worker.number}")
    stream = worker.process.stdout
    if stream is None:
        return
    with stream:
        for line in stream:
            output.info("| %s", line.decode("utf-8", "replace").rstrip())
