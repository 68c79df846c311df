"""Permits of a connection, held over all workers and instances: concurrency, pauses, calls per time and per day.

Each process leases a block of permits in one row (`shares.py` has the rules) and hands them to its threads without any
storage call. One thread per connection in use, the keeper, does all that touches storage: it takes, renews, gives back,
and looks for pauses and for processes that wait. It ends when the connection is idle.

Never more than the connection allows is under way, whatever dies or hangs: a permit is handed out only while the lease
lasts longer than a call may (`call_s`), by this machine's steady clock and counted from before the lease was asked for;
a block that shrinks is lowered here before storage hears of it, one that grows is raised after; and a dead process's
block is taken over only when its lease, and so its last call, is over.
"""

import contextlib
import dataclasses
import logging
import random
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from queue import Empty, SimpleQueue

from shared import attempt
from shared.attempt import Lane
from shared.errors import RateLimitedError, StateError, SyncError
from shared.state.shares import POOLS, Ask, Limits, PermitRow, Pool, Settled, call_key, settle
from shared.state.tables import RowError, Tables

CALL_S = 75.0  # the longest that a call takes, its connecting included
SLACK_S = 30.0  # of a lease beyond a call
WAIT_S = 10.0  # that `hold` waits for a permit
LOOK_S = 5.0  # between looks at the row …
SLOW_LOOK = 1.6  # … times this while few calls are made; sooner than others, who wait for their share, give up
CALLS_PER_LOOK = 20
FIRST_LOOK_S = 0.5  # after a block was taken, each next one waits twice as long …
MANY_CALLS, BUSY_LOOK_S = 45, 0.25  # … but with so many calls in between it is soon: what others want changes fast
IDLE_S = 0.5  # without a call, until the block goes back …
IDLE_WITH_FEW_S = (
    2.5  # … where nobody else has one, and a newcomer finds three quarters of all: between a run's pages …
)
IDLE_BESIDE_OTHERS_S = 0.2  # … where others have one too; with half of the calls or fewer, what is left over
RETRY_S = (0.1, 1.0)  # between asks of a process that lacks permits: while others move, and at last where nothing moves
LEAST_GIVEN_BACK = 4  # permits: where we may use fewer, none go back before the next look because half lies idle
MIN_GAP_S = 0.05  # between two exchanges
SAME_PAUSE_S = 0.5  # pauses that differ by less are one
CONFLICTS = 10  # processes that may be faster than us in a row

LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class _Waiter:
    lane: Lane
    need_s: float  # that the lease must last
    ahead: bool = False  # goes before those that are not
    # told of each change; a queue, whose put never waits for a thread that is about to wait
    ready: SimpleQueue[None] = dataclasses.field(default_factory=SimpleQueue)
    pool: Pool | None = None
    error: SyncError | None = None


class SharedPermits:
    """The permits of one connection as this process sees them; used by many threads."""

    def __init__(
        self,
        tables: Tables,
        connection: str,
        limits: Limits,
        *,
        call_s: float = CALL_S,
        wait_s: float = WAIT_S,
        slack_s: float = SLACK_S,
        look_s: float = LOOK_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.connection = connection
        self.limits = limits
        self._tables, self._now_s = tables, now_s
        self._call_s, self._wait_s, self._slack_s, self._look_s = call_s, wait_s, slack_s, look_s
        self._holder = uuid.uuid4().hex[:12]
        self._key = PermitRow(connection=connection)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # wakes the keeper
        self._keeper: threading.Thread | None = None
        self._closing = False
        # what we may use
        self._limit: Counter[Pool] = Counter()
        self._row_held: Counter[Pool] = Counter()  # what the row says of us, at the least
        self._valid_until_s = -1.0
        self._held_since_s = 0.0
        self._calls: Counter[str] = Counter()  # calls of budgets in hand
        self._dry: dict[str, int] = {}  # budget -> slot in which it has no more calls for runs
        self._paused_until_s = -1.0
        # what we use
        self._in_use: Counter[Pool] = Counter()
        self._lanes: Counter[Lane] = Counter()  # calls under way
        self._waiting: dict[Lane, deque[_Waiter]] = {Lane.EVENT: deque(), Lane.RUN: deque()}
        self._peak: Counter[Lane] = Counter()  # most calls under way or waiting since the last exchange
        self._asked: Counter[Lane] = Counter()  # what the last exchange asked for
        self._used_at_s = 0.0
        self._half_idle_since_s: float | None = None
        self._calls_since_look = 0
        # the keeper's
        self._row: PermitRow | None = None
        self._last: Settled | None = None
        self._looked_at_s = -1e9
        self._next_look_s = FIRST_LOOK_S / 2
        self._retry_s = RETRY_S[0]
        self._publish = False  # whether the row still has to hear of our pause
        self._listed = False  # whether the row has a block of ours

    # -- for clients ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(self, *, ahead: bool = False) -> Iterator[None]:
        """Hold one permit during a call that takes `call_s` at the most; with `ahead` before calls that wait without.

        Raises RateLimitedError when none comes free in time: `permits_busy`, `connection_paused`, `budget_spent`.
        """
        lane, left_s = attempt.current().lane, attempt.current().left_s()
        waiter = _Waiter(lane, min(self._call_s, max(left_s, 0.0)), ahead)
        spare_s = max(0.0, left_s - self._call_s)  # a permit that comes later comes too late for the call
        pool = self._acquire(waiter, self._now_s() + min(self._wait_s, spare_s))
        try:
            yield
        finally:
            with self._lock:
                self._in_use[pool] -= 1
                self._lanes[lane] -= 1
                self._used_at_s = self._now_s()
                goes_back = self._in_use[pool] >= self._limit[pool]  # it was one more than we may use
                self._serve()
                if goes_back or not self._in_use.total() or self._out_of_calls():
                    self._changed.notify()

    def expect(self, calls: int) -> None:
        """Ask at once for the permits of so many calls that come now; they would else be asked for as they come."""
        lane = attempt.current().lane
        with self._lock:
            self._peak[lane] = max(self._peak[lane], self._demand(lane) + calls)
            self._used_at_s = self._now_s()  # the block stays until they come
            if self._expects_more():
                self._wake_keeper()

    def pause(self, seconds: float) -> None:
        """Stop every worker's calls: ours at once, the others' when they next look. Never shortens a pause."""
        until_s = self._now_s() + seconds
        with self._lock:
            if until_s <= self._paused_until_s + SAME_PAUSE_S:
                return
            self._paused_until_s = until_s
            self._wake_waiters()
            self._changed.notify()
        try:
            until = self._tables.now() + timedelta(seconds=seconds)

            def paused(row: PermitRow | None) -> PermitRow:
                row = row or self._key
                later = until if row.paused_until is None else max(until, row.paused_until)
                return row.model_copy(update={"paused_until": later})

            self._tables.update(PermitRow, self._key.partition_key, self._key.row_key, paused)
        except SyncError as exc:
            LOG.warning("a pause could not be stored yet", extra={"connection": self.connection, "error": exc.code})
            with self._lock:
                self._publish = True
                self._wake_keeper()

    def close(self) -> None:
        """Give the block back, as far as no call is under way: for an orderly end of the process."""
        with self._lock:
            keeper, self._closing = self._keeper, True
            self._changed.notify()
        if keeper is not None:
            keeper.join(timeout=self._slack_s)

    # -- handing out ----------------------------------------------------------------------------------------------

    def _acquire(self, waiter: _Waiter, deadline_s: float) -> Pool:
        queue = self._waiting[waiter.lane]
        with self._lock:
            queue.insert(sum(other.ahead for other in queue) if waiter.ahead else len(queue), waiter)
            self._note_peak(waiter.lane)
            self._serve()
            alone = waiter.pool is None and len(queue) == 1
            if (
                self._keeper is None
                or not self._keeper.is_alive()
                or alone
                or self._expects_more()
                or self._out_of_calls()
            ):
                self._wake_keeper()
        while waiter.pool is None:
            with self._lock:
                now_s = self._now_s()
                error = waiter.error or self._refusal(waiter, now_s, deadline_s)
                if error is not None and waiter.pool is None:
                    queue.remove(waiter)
                    self._serve()
                    raise error
            with contextlib.suppress(Empty):
                waiter.ready.get(timeout=max(0.0, deadline_s - now_s))
        return waiter.pool

    def _serve(self) -> None:
        """Hand out what can be handed out, to events first."""
        for queue in (self._waiting[Lane.EVENT], self._waiting[Lane.RUN]):
            while queue and queue[0].error is None and (pool := self._free_pool(queue[0])) is not None:
                waiter = queue.popleft()
                waiter.pool = pool
                self._in_use[pool] += 1
                self._lanes[waiter.lane] += 1
                self._calls_since_look += 1
                if self._calls_since_look in (CALLS_PER_LOOK, MANY_CALLS):
                    self._changed.notify()  # the next look is due sooner
                for key in self._call_keys(waiter.lane):
                    self._calls[key] -= 1
                waiter.ready.put(None)
        self._note_idle()

    def _free_pool(self, waiter: _Waiter) -> Pool | None:
        now_s = self._now_s()
        if now_s < self._paused_until_s or self._valid_until_s - now_s < waiter.need_s:
            return None
        if any(self._calls[key] <= 0 for key in self._call_keys(waiter.lane)):
            return None
        pools: tuple[Pool, ...] = POOLS if waiter.lane is Lane.EVENT else ("run",)
        return next((pool for pool in pools if self._in_use[pool] < self._limit[pool]), None)

    def _call_keys(self, lane: Lane) -> list[str]:
        """Return which calls of the budgets a call would use: an event's own, else a run's."""
        keys = []
        for budget in self.limits.budgets:
            slot = budget.slot(self._tables.now())
            own = call_key(budget, slot, "event")
            keys.append(own if lane is Lane.EVENT and self._calls[own] > 0 else call_key(budget, slot, "run"))
        return keys

    def _refusal(self, waiter: _Waiter, now_s: float, deadline_s: float) -> RateLimitedError | None:
        """Return why a waiter need not, or may not, wait any longer."""
        if self._paused_until_s > max(now_s, deadline_s):
            left_s = self._paused_until_s - now_s
            return self._limited("connection_paused", f"Calls to it rest for another {left_s:.0f} s.", left_s)
        dry_s = self._dry_for_s(waiter.lane)
        if dry_s > max(0.0, deadline_s - now_s):
            return self._limited("budget_spent", f"Its calls are used up for another {dry_s:.0f} s.", dry_s)
        if now_s >= deadline_s:
            return self._limited("permits_busy", "All calls that it allows are under way.", random.uniform(2.0, 6.0))
        return None

    def _limited(self, code: str, why: str, retry_after_s: float) -> RateLimitedError:
        text = f"The connection {self.connection} takes no call now. {why} The work is put back."
        return RateLimitedError(text, code=code, retry_after_s=retry_after_s, connection=self.connection)

    def _dry_for_s(self, lane: Lane) -> float:
        now, longest = self._tables.now(), 0.0
        for budget in self.limits.budgets:
            slot = budget.slot(now)
            key = call_key(budget, slot, "run")
            own = call_key(budget, slot, "event")
            in_hand = self._calls[key] + (self._calls[own] if lane is Lane.EVENT else 0)
            if in_hand <= 0 and self._dry.get(f"{budget.name}|{lane}") == slot:
                longest = max(longest, (budget.ends_at(slot) - now).total_seconds())
        return longest

    def _note_peak(self, lane: Lane) -> None:
        self._peak[lane] = max(self._peak[lane], self._demand(lane))

    def _demand(self, lane: Lane) -> int:
        return self._lanes[lane] + len(self._waiting[lane])

    def _wake_waiters(self) -> None:
        for queue in self._waiting.values():
            for waiter in queue:
                waiter.ready.put(None)

    def _wake_keeper(self) -> None:
        """Have the keeper look at what is needed; there is one while a permit is held or wanted."""
        if self._keeper is None or not self._keeper.is_alive():
            self._keeper = threading.Thread(target=self._keep, name=f"permits-{self.connection}", daemon=True)
            self._keeper.start()
        self._changed.notify()

    # -- the keeper -----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while True:
            with self._lock:
                due_s, leaving = self._next_exchange()
                wait_s = due_s - self._now_s()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    self._serve()  # a pause may be over
                    continue
                if leaving and not self._listed and not self._publish:
                    self._end_keeper()
                    return
            try:
                self._exchange(leaving=leaving)
            except Exception as exc:
                if not isinstance(exc, SyncError):
                    LOG.exception("the permits' exchange failed unexpectedly", extra={"connection": self.connection})
                with self._lock:
                    self._fail(exc)
                    if not self._in_use.total():  # storage is away: the lease ends by itself
                        self._end_keeper()
                        return
                    self._changed.wait(RETRY_S[1])

    def _end_keeper(self) -> None:
        self._keeper, self._last, self._row = None, None, None
        self._next_look_s = FIRST_LOOK_S / 2
        self._limit.clear()
        self._asked.clear()
        self._peak.clear()

    def _next_exchange(self) -> tuple[float, bool]:
        """Return when the row must be asked next, and whether to give everything back then."""
        now_s = self._now_s()
        waiting = any(self._waiting.values())
        wanting = waiting or self._expects_more()
        idle = not wanting and not self._in_use.total()
        idle_s = self._idle_s()
        if idle and (self._closing or now_s >= self._used_at_s + idle_s):
            return now_s, True
        paused = now_s < self._paused_until_s
        gap = self._looked_at_s + MIN_GAP_S
        dues = [self._looked_at_s + self._look_due_s()]
        if idle:
            dues.append(self._used_at_s + idle_s)
        if paused:
            dues.append(self._paused_until_s)
        if self._publish or any(self._in_use[pool] < self._row_held[pool] > self._limit[pool] for pool in POOLS):
            dues.append(gap)
        if wanting and not paused:
            dues.append(self._due_for_waiters(gap))
        if self._half_idle_since_s is not None:
            dues.append(max(gap, self._half_idle_since_s + IDLE_BESIDE_OTHERS_S))
        if self._row_held.total():
            dues.append(max(gap, self._valid_until_s - self._call_s - self._slack_s / 2))
        return min(dues), False

    def _idle_s(self) -> float:
        if self._last is not None and not self._last.alone:
            return IDLE_BESIDE_OTHERS_S
        few = 4 * self._row_held.total() <= self.limits.concurrency and not self.limits.budgets  # calls in hand go back
        return IDLE_WITH_FEW_S if few else IDLE_S

    def _due_for_waiters(self, gap: float) -> float:
        dry = [lane for lane in Lane if self._waiting[lane] and self._dry_for_s(lane) > 0]
        if dry and len(dry) == sum(1 for queue in self._waiting.values() if queue):
            return self._now_s() + min(self._dry_for_s(lane) for lane in dry)
        if self._expects_more() or self._out_of_calls():
            return gap
        if self._last is None or self._last.starved or self._last.room:
            return self._looked_at_s + self._retry_s
        return float("inf")

    def _expects_more(self) -> bool:
        """Tell whether more calls are under way, wait or were announced than the last exchange asked permits for."""
        most = self.limits.concurrency
        return any(min(max(self._peak[lane], self._demand(lane)), most) > self._asked[lane] for lane in Lane)

    def _note_idle(self) -> None:
        """Note since when half of what we may use is not used, though others have use for it."""
        wanted = self._last is None or not self._last.scarce or any(self._waiting.values()) or self._expects_more()
        if wanted or self._limit.total() < max(LEAST_GIVEN_BACK, 2 * self._in_use.total()):
            self._half_idle_since_s = None
        elif self._half_idle_since_s is None:
            self._half_idle_since_s = self._now_s()
            self._changed.notify()

    def _out_of_calls(self) -> bool:
        return any(
            queue and any(self._calls[key] <= 0 for key in self._call_keys(lane))
            for lane, queue in self._waiting.items()
        )

    def _look_due_s(self) -> float:
        if self._calls_since_look >= MANY_CALLS:
            return BUSY_LOOK_S
        if self._next_look_s < self._look_s or self._calls_since_look >= CALLS_PER_LOOK:
            return self._next_look_s
        return SLOW_LOOK * self._look_s

    def _exchange(self, *, leaving: bool) -> None:
        """Ask the row for what is needed, and tell it what is used."""
        with self._lock:
            row = self._row if self._last is not None and self._last.alone and self._must_write(leaving) else None
        row = row or self._tables.get(PermitRow, self._key.partition_key, self._key.row_key)
        for _ in range(CONFLICTS):
            with self._lock:
                sent_at_s = self._now_s()
                ask = self._ask(leaving=leaving and not any(map(self._demand, Lane)) and not self._expects_more())
                settled = settle(row or self._key, ask, self.limits)
                for pool in POOLS:  # lowered before storage hears of it
                    self._limit[pool] = min(self._limit[pool], settled.limit[pool])
                if not settled.changed and not self._must_write(leaving):
                    self._adopt(settled, row)
                    return
                gives_back = Counter({key: -count for key, count in settled.calls.items() if count < 0})
                if gives_back:
                    self._calls.clear()
            try:
                row = self._tables.replace(settled.row) if row else self._tables.insert(settled.row)
            except RowError as exc:
                with self._lock:
                    self._row_held |= self._limit
                    self._peak |= self._asked
                    self._calls += gives_back
                row = exc.stored if isinstance(exc.stored, PermitRow) else None
                continue
            with self._lock:
                self._adopt(settled, row, valid_until_s=sent_at_s + self._call_s + self._slack_s)
            return
        raise StateError(f"The permits of {self.connection} change hands too fast")

    def _must_write(self, leaving: bool) -> bool:
        renewal_s = self._valid_until_s - self._call_s - self._slack_s / 2
        renewing = self._row_held.total() > 0 and self._now_s() >= renewal_s
        return self._publish or renewing or (leaving and self._listed)

    def _ask(self, *, leaving: bool) -> Ask:
        self._note_idle()
        idle_s = 0.0 if self._half_idle_since_s is None else self._now_s() - self._half_idle_since_s
        if leaving or idle_s >= IDLE_BESIDE_OTHERS_S:
            self._peak.clear()
        for lane in Lane:
            self._note_peak(lane)
        self._asked, self._peak = self._peak, Counter()
        now_s, now = self._now_s(), self._tables.now()
        paused = now + timedelta(seconds=self._paused_until_s - now_s) if self._publish else None
        return Ask(
            holder=self._holder,
            now=now,
            lease_s=self._call_s + self._slack_s,
            in_use=Counter(self._in_use),
            demand={"event": self._asked[Lane.EVENT], "run": self._asked[Lane.RUN]},
            held_s=now_s - self._held_since_s if self._row_held.total() else 0.0,
            calls=Counter(self._calls),
            paused_until=paused,
            leaving=leaving,
        )

    def _adopt(self, settled: Settled, row: PermitRow | None, valid_until_s: float | None = None) -> None:
        """Use what an exchange came to; `valid_until_s` when it was written."""
        now_s, now = self._now_s(), self._tables.now()
        moved = self._row is None or row is None or row.etag != self._row.etag
        self._row, self._last, self._looked_at_s, self._calls_since_look = row, settled, now_s, 0
        self._next_look_s = min(2 * self._next_look_s, self._look_s)
        self._limit = Counter(settled.limit)  # no more than the row has of us, written now or before
        if valid_until_s is not None:
            block = settled.row.blocks.get(self._holder)
            if block is not None and block.held and not self._row_held.total():
                self._held_since_s = now_s
            self._row_held, self._listed = Counter(block.held if block else {}), block is not None
            self._valid_until_s = valid_until_s
            self._publish = False
            for key, count in settled.calls.items():
                self._calls[key] += count if count > 0 else 0
        if settled.row.paused_until is not None:
            until_s = now_s + (settled.row.paused_until - now).total_seconds()
            if until_s > self._paused_until_s + SAME_PAUSE_S:
                self._paused_until_s = until_s
                self._wake_waiters()
        for budget in self.limits.budgets:
            slot = budget.slot(now)
            spent = {
                pool: settled.row.spent.get(call_key(budget, slot, pool), 0) >= self.limits.calls(budget, pool)
                for pool in POOLS
            }
            for lane, dry in ((Lane.RUN, spent["run"]), (Lane.EVENT, spent["run"] and spent["event"])):
                if dry:
                    self._dry[f"{budget.name}|{lane}"] = slot
                    self._wake_waiters()
                else:
                    self._dry.pop(f"{budget.name}|{lane}", None)
        self._retry_s = RETRY_S[0] if moved else min(self._retry_s * 2, RETRY_S[1])
        self._serve()

    def _fail(self, exc: Exception) -> None:
        """Tell those who wait that storage is away: their messages come back."""
        error = exc
        if not isinstance(error, SyncError):
            error = StateError(f"The permits' exchange failed: {type(exc).__name__}")
            error.__cause__ = exc
        for queue in self._waiting.values():
            for waiter in queue:
                waiter.error = error
                waiter.ready.put(None)
        self._last, self._row, self._looked_at_s = None, None, self._now_s()
