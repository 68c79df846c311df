"""Timer triggers: six-field NCRONTAB in UTC, one run at a time, with the schedule's status in a file where one is wanted.

The status plays the part of Azure's blob: a host that starts after a missed due date makes one call with `past_due`.
https://learn.microsoft.com/azure/azure-functions/functions-bindings-timer
"""

import asyncio
import dataclasses
import json
import logging
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from croniter import croniter

from sandbox.host_config import HostConfigError
from sandbox.host_messages import TimerCall
from sandbox.host_pool import InvocationError

# numbers, names, lists, ranges and steps; croniter alone would also take L, H, # and other dialects that Azure refuses
FIELD = r"(?:\*|(?:\d+|[A-Za-z]{3,9})(?:-(?:\d+|[A-Za-z]{3,9}))?)(?:/\d+)?"
NCRONTAB = re.compile(rf"(?:{FIELD}(?:,{FIELD})*(?: +|$)){{6}}")
LONGEST_SLEEP_S = 30.0  # a laptop that slept notices its missed timers
log = logging.getLogger("host")

Invoke = Callable[[str, TimerCall], "Future[Any]"]


def check_schedule(function: str, schedule: str) -> None:
    """Refuse what is not a six-field NCRONTAB. Raises HostConfigError."""
    text = schedule.strip()
    if not NCRONTAB.fullmatch(text) or not croniter.is_valid(text, second_at_beginning=True):
        raise HostConfigError(
            f"{function}: {schedule!r} is no NCRONTAB; six fields, second first, such as '0 30 6 * * *' for 06:30 UTC"
        )


def next_due(schedule: str, after: datetime) -> datetime:
    """Return the first due date after a moment; where day of month and weekday are both given, both must fit."""
    return croniter(schedule.strip(), after, second_at_beginning=True, day_or=False).get_next(datetime)


@dataclasses.dataclass(frozen=True)
class Status:
    """What is remembered of a timer between two starts of the host."""

    schedule: str
    last: datetime
    next: datetime

    def as_call(self, past_due: bool) -> TimerCall:
        """Return the call for a due date."""
        times = {"Last": self.last.isoformat(), "Next": self.next.isoformat(), "LastUpdated": self.last.isoformat()}
        return TimerCall(past_due, times)


class Timer:
    """Fires one function by its schedule."""

    def __init__(
        self,
        function: str,
        schedule: str,
        invoke: Invoke,
        status_file: Path | None = None,
        run_on_startup: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        check_schedule(function, schedule)
        self._function, self._schedule, self._invoke = function, schedule, invoke
        self._file, self._run_on_startup, self._now = status_file, run_on_startup, now
        self._sleep = sleep

    async def run(self) -> None:
        """Fire until cancelled."""
        started = self._now()
        past_due = self._is_past_due(started)
        last = started
        if past_due or self._run_on_startup:
            last = await self._fire(started, past_due)
        while True:
            due = next_due(self._schedule, last)
            self._remember(Status(self._schedule, last, due))
            while (wait_s := (due - self._now()).total_seconds()) > 0:
                await self._sleep(min(wait_s, LONGEST_SLEEP_S))
            last = await self._fire(due, past_due=False)

    async def _fire(self, due: datetime, past_due: bool) -> datetime:
        """Run the function and return the moment after which the next due date is looked for."""
        call = Status(self._schedule, due, next_due(self._schedule, due)).as_call(past_due)
        try:
            await asyncio.wrap_future(self._invoke(self._function, call))
        except InvocationError as exc:
            log.error("timer %s failed; it runs again when it is next due: %s", self._function, exc)
        return max(due, self._now())

    def _is_past_due(self, now: datetime) -> bool:
        if self._file is None or not self._file.exists():
            return False
        kept = json.loads(self._file.read_text())
        return bool(kept["schedule"] == self._schedule and datetime.fromisoformat(kept["next"]) < now)

    def _remember(self, status: Status) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(status), default=datetime.isoformat, indent=1)
        self._file.write_text(text)
