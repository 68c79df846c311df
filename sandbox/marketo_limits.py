"""The limits of the simulated Marketo instance: calls at once, in a sliding window and a day; and its usage reports."""

from collections import Counter, deque
from datetime import date, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from sandbox.simulator import Clock

CENTRAL = ZoneInfo("America/Chicago")  # quotas start anew at its midnight
NOT_COUNTED = frozenset({"601", "602", "604", "605", "608", "611"})  # marked so in the vendor's table


class Bounds(Protocol):
    """What an instance allows; 0 = no bound."""

    calls_per_window: int
    window_s: float
    concurrent_calls: int
    daily_calls: int


class Usage:
    """Counts every call of the instance and says which may not pass."""

    def __init__(self, clock: Clock, bounds: Bounds) -> None:
        self._clock, self._bounds = clock, bounds
        self._recent: deque[datetime] = deque()
        self._calls: Counter[tuple[date, str]] = Counter()  # (day, user)
        self._errors: Counter[tuple[date, str]] = Counter()  # (day, code)
        self.in_flight = 0
        self.most_at_once = 0
        self.most_in_window = 0

    def refuse(self) -> tuple[str, str] | None:
        """Return code and message for a call that may not pass; it has been counted already."""
        bounds = self._bounds
        if bounds.concurrent_calls and self.in_flight > bounds.concurrent_calls:
            return "615", "Concurrent access limit reached"
        if bounds.daily_calls and self.today() > bounds.daily_calls:
            return "607", f"Daily API Request Quota of '{bounds.daily_calls}' reached"
        if bounds.calls_per_window and self._in_window() > bounds.calls_per_window:
            return "606", f"Max rate limit '{bounds.calls_per_window}' exceeded with in '{bounds.window_s:g}' secs"
        return None

    def forget(self) -> None:
        """Begin with a window and a day without a call: for a clock that was set back."""
        self._recent.clear()
        self._calls.clear()

    def enter(self) -> None:
        """Begin a call."""
        self.in_flight += 1
        self.most_at_once = max(self.most_at_once, self.in_flight)

    def leave(self) -> None:
        """End a call."""
        self.in_flight -= 1

    def take(self, user: str) -> None:
        """Count a call, refused ones too: only the codes in NOT_COUNTED are given back."""
        self._recent.append(self._clock.now())
        self.most_in_window = max(self.most_in_window, self._in_window())
        self._calls[self._day(), user] += 1

    def give_back(self, user: str) -> None:
        """Undo the count of a call whose answer turned out not to count."""
        if self._recent:
            self._recent.pop()
        self._calls[self._day(), user] -= 1

    def note_error(self, code: str) -> None:
        """Remember that a call was answered with this code."""
        self._errors[self._day(), code] += 1

    def today(self) -> int:
        """Return the calls that were counted since the last midnight of the vendor's zone."""
        return sum(count for (day, _), count in self._calls.items() if day == self._day())

    def calls_report(self, days: int) -> list[dict[str, Any]]:
        """Return calls by day and user, the newest day first."""
        return [
            {"date": str(day), "total": sum(counts.values()), "users": _listed("userId", counts)}
            for day, counts in self._by_day(self._calls, days)
        ]

    def errors_report(self, days: int) -> list[dict[str, Any]]:
        """Return errors by day and code, the newest day first."""
        return [
            {"date": str(day), "total": sum(counts.values()), "errors": _listed("errorCode", counts)}
            for day, counts in self._by_day(self._errors, days)
        ]

    def _in_window(self) -> int:
        oldest = self._clock.now() - timedelta(seconds=self._bounds.window_s)
        while self._recent and self._recent[0] <= oldest:
            self._recent.popleft()
        return len(self._recent)

    def _day(self) -> date:
        return self._clock.now().astimezone(CENTRAL).date()

    def _by_day(self, counter: Counter[tuple[date, str]], days: int) -> list[tuple[date, Counter[str]]]:
        shown = [self._day() - timedelta(days=back) for back in range(days)]
        return [(day, Counter({name: n for (d, name), n in counter.items() if d == day and n})) for day in shown]


def _listed(key: str, counts: Counter[str]) -> list[dict[str, Any]]:
    return [{key: name, "count": count} for name, count in sorted(counts.items())]
