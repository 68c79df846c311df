"""Service protection limits of the Dynamics 365 simulator: three facets per user over a sliding window (fact sheet, section 4)."""

import collections
import contextlib
import math
from collections.abc import Iterator

from sandbox.dynamics365_calls import Settings
from sandbox.dynamics365_store import ApiError
from sandbox.simulator import Clock


class Protection:
    """Counts each user's requests, their time and how many run at once; refused requests count too, so going on makes it longer."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings, self.clock = settings, clock
        self._arrivals: dict[str, collections.deque[float]] = collections.defaultdict(collections.deque)
        self._spent: dict[str, collections.deque[tuple[float, float]]] = collections.defaultdict(collections.deque)
        self._running: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def admit(self, user: str) -> Iterator[None]:
        """Let one request of a user in, or refuse it with 429."""
        self._check(user)
        self._running[user] += 1
        try:
            yield
        finally:
            self._running[user] -= 1

    def spend(self, user: str, milliseconds: float) -> None:
        """Count execution time."""
        self._spent[user].append((self.clock.now().timestamp(), milliseconds + self.settings.execution_ms_per_request))

    def forget(self) -> None:
        """Begin with a window in which nobody has asked for anything: for a clock that was set back."""
        self._arrivals.clear()
        self._spent.clear()

    def remaining(self, user: str) -> dict[str, str]:
        """Return the headers that tell what is left in the window."""
        spent_s = sum(ms for _, ms in self._spent[user]) / 1000
        return {
            "x-ms-ratelimit-burst-remaining-xrm-requests": str(
                max(0, self.settings.request_limit - len(self._arrivals[user]))
            ),
            "x-ms-ratelimit-time-remaining-xrm-requests": f"{max(0.0, self.settings.execution_limit_ms / 1000 - spent_s):.2f}",
        }

    def _check(self, user: str) -> None:
        now, window_s = self.clock.now().timestamp(), self.settings.window_s
        arrivals, spent = self._arrivals[user], self._spent[user]
        while arrivals and arrivals[0] <= now - window_s:
            arrivals.popleft()
        while spent and spent[0][0] <= now - window_s:
            spent.popleft()
        arrivals.append(now)
        limit = self.settings.request_limit
        if len(arrivals) > limit:
            text = f"Number of requests exceeded the limit of {limit} over time window of {window_s} seconds."
            raise _refuse("0x80072322", text, arrivals[len(arrivals) - limit] + window_s - now)
        limit_ms = self.settings.execution_limit_ms
        if sum(ms for _, ms in spent) > limit_ms:
            text = (
                f"Combined execution time of incoming requests exceeded limit of {limit_ms:,} milliseconds over time window of "
                f"{window_s} seconds. Decrease number of concurrent requests or reduce the duration of requests and try again later."
            )
            raise _refuse("0x80072321", text, spent[0][0] + window_s - now)
        limit = self.settings.concurrency_limit
        if self._running[user] >= limit:
            raise _refuse("0x80072326", f"Number of concurrent requests exceeded the limit of {limit}.", 1)


def _refuse(code: str, text: str, wait_s: float) -> ApiError:
    return ApiError(429, code, text, {"Retry-After": str(max(1, math.ceil(wait_s)))})
