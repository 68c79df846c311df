"""What the host and its workers say to each other over their pipe: frozen values, pickled by `multiprocessing.connection`."""

import dataclasses
import logging
from typing import Any


@dataclasses.dataclass(frozen=True)
class FunctionFacts:
    """One indexed function, as the host needs to know it."""

    name: str
    trigger: dict[str, Any]  # the trigger's binding: type, name, and the keys of that type


@dataclasses.dataclass(frozen=True)
class HttpCall:
    """A request on its way to an httpTrigger."""

    method: str
    url: str
    headers: dict[str, str]
    query: dict[str, str]
    route_params: dict[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True)
class HttpAnswer:
    """What an httpTrigger returned."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclasses.dataclass(frozen=True)
class QueueCall:
    """A message on its way to a queueTrigger; times are ISO 8601 UTC."""

    body: str
    id: str
    dequeue_count: int
    pop_receipt: str
    insertion_time: str
    expiration_time: str
    next_visible_time: str


@dataclasses.dataclass(frozen=True)
class TimerCall:
    """A due date on its way to a timerTrigger."""

    past_due: bool
    status: dict[str, str]  # Last, Next, LastUpdated; empty when not monitored


Call = HttpCall | QueueCall | TimerCall


@dataclasses.dataclass(frozen=True)
class Invoke:
    """Host to worker: run a function."""

    invocation_id: str
    function: str
    call: Call


@dataclasses.dataclass(frozen=True)
class Ready:
    """Worker to host: the app is loaded."""

    functions: tuple[FunctionFacts, ...]


@dataclasses.dataclass(frozen=True)
class Refused:
    """Worker to host: the app cannot be indexed; all its functions are off."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Done:
    """Worker to host: the function returned."""

    invocation_id: str
    answer: HttpAnswer | None


@dataclasses.dataclass(frozen=True)
class Failed:
    """Worker to host: the function raised; the reason ends with its traceback."""

    invocation_id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class LogLine:
    """Worker to host: a log record of the app."""

    level: int
    logger: str
    function: str  # empty outside an invocation
    invocation_id: str
    text: str

    def write(self, worker: int) -> None:
        """Hand the record to this process's logging."""
        where = f"{self.function} {self.invocation_id[:8]}" if self.function else f"worker {worker}"
        logging.getLogger(where).log(self.level, "%s: %s", self.logger, self.text)
