"""The circuit breaker of a connection: after several calls in a row that nobody answered, all calls rest for a while.

The rest is a pause of the connection's permits, so it holds over all workers; work that meets it is put back and does not
count as a failed attempt. When the pause ends calls try again: one that is answered closes the circuit, one that is not
begins the next, longer rest.
"""

import random
import threading
from collections.abc import Callable

from shared.clients.system import Permits

OPEN_AFTER = 5  # calls in a row without an answer
FIRST_REST_S = 5.0
LONGEST_REST_S = 60.0
OUTAGES = frozenset({502, 503, 504})  # a gateway answered, the vendor did not


class Breaker:
    """Counts calls in a row that nobody answered; used by many threads."""

    def __init__(self, permits: Permits, now_s: Callable[[], float]) -> None:
        self._permits = permits
        self._now_s = now_s
        self._lock = threading.Lock()
        self._unanswered = 0
        self._rest_s = FIRST_REST_S
        self._rests_until_s = 0.0

    def answered(self) -> None:
        """Note a call that the vendor answered, whatever it said."""
        if self._unanswered:  # read without the lock: a call more or less does not matter
            with self._lock:
                self._unanswered, self._rest_s = 0, FIRST_REST_S

    def unanswered(self) -> None:
        """Note a call that nobody answered; rest when there were several in a row."""
        with self._lock:
            self._unanswered += 1
            now_s = self._now_s()
            if self._unanswered < OPEN_AFTER or now_s < self._rests_until_s:
                return
            rest_s = self._rest_s * random.uniform(0.8, 1.2)
            self._rests_until_s = now_s + rest_s
            self._rest_s = min(self._rest_s * 2, LONGEST_REST_S)
        self._permits.pause(rest_s)
