"""How a connection's permits are shared between processes: the row that says who holds what, and the rules; pure.

Permits are in two pools: what runs may use, and what is kept for events. Events may use both. A process holds a block of
each pool for as long as its lease lasts, and of each budget it holds calls that it may still make in the current slot.
All times in the row are the storage's (`Tables.now`), so the machines' clocks do not matter.
"""

import dataclasses
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

from shared.state.rows import StateRow, key_text

Pool = Literal["event", "run"]
POOLS: tuple[Pool, ...] = ("event", "run")

MARGIN_S = 3.0  # after a lease's end before it is believed: the storage's time is known to about a second
WAIT_LEASE_S = 15.0  # how long a process that holds nothing is believed to wait
TURN_S = 5.0  # how long a permit is kept when there are fewer of them than processes that want one
KEPT_ALONE = 0.75  # who is alone and needs so much of what it holds keeps all: it would soon ask for it again
CHUNK = 200  # calls of a budget that a process takes at once, at the most
FEW = (
    16  # … of one of seconds, or four times what it needs: another process has none until these are used or given back
)


class Block(BaseModel):
    """What one process holds, and what it lacks of its fair share."""

    model_config = ConfigDict(frozen=True)

    until: datetime  # end of the lease
    held: dict[Pool, int] = {}
    wants: dict[Pool, int] = {}
    since: datetime | None = None  # when it began to want


class PermitRow(StateRow):
    """A connection's permits, pause and budgets, shared by all workers and instances."""

    TABLE: ClassVar[str] = "permits"

    connection: str
    blocks: dict[str, Block] = Field(default_factory=dict)  # process -> what it holds
    paused_until: datetime | None = None  # nobody calls before
    spent: dict[str, int] = Field(default_factory=dict)  # "<budget>|<slot>|<pool>" -> calls handed out

    @property
    def partition_key(self) -> str:
        return key_text(self.connection)

    @property
    def row_key(self) -> str:
        return "permits"


@dataclasses.dataclass(frozen=True)
class Budget:
    """Calls that may be made in a slot of time: `seconds` long, or a day that begins at midnight in `zone`.

    Slots follow each other without memory, so up to twice the calls can fall into a stretch as long as a slot: give half
    of what a vendor allows in a sliding window.
    """

    calls: int
    seconds: float = 0.0
    zone: str = "UTC"

    @property
    def name(self) -> str:
        """Return what tells the budget from the connection's others."""
        return f"{self.seconds:g}s" if self.seconds else "day"

    def slot(self, now: datetime) -> int:
        """Return the number of the slot that a moment lies in."""
        return int(now.timestamp() // self.seconds) if self.seconds else now.astimezone(ZoneInfo(self.zone)).toordinal()

    def ends_at(self, slot: int) -> datetime:
        """Return the moment at which a slot ends."""
        if self.seconds:
            return datetime.fromtimestamp((slot + 1) * self.seconds, UTC)
        return datetime.combine(date.fromordinal(slot + 1), time(), ZoneInfo(self.zone)).astimezone(UTC)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a connection allows over all processes. `kept` permits are for events only: a quarter unless it is given."""

    concurrency: int
    kept: int | None = None
    budgets: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        if self.concurrency < 1 or not 0 <= self.kept_permits < self.concurrency:
            raise ValueError(f"{self.kept_permits} of {self.concurrency} permits cannot be kept for events")

    @property
    def kept_permits(self) -> int:
        """Return how many permits runs may not use; with one permit in all, none."""
        if self.kept is not None:
            return self.kept
        return max(1, self.concurrency // 4) if self.concurrency > 1 else 0

    def permits(self, pool: Pool) -> int:
        """Return how many permits a pool has."""
        return self.kept_permits if pool == "event" else self.concurrency - self.kept_permits

    def calls(self, budget: Budget, pool: Pool) -> int:
        """Return how many calls of a budget a pool has: as its part of the permits."""
        kept = budget.calls * self.kept_permits // self.concurrency
        return kept if pool == "event" else budget.calls - kept


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a process needs when it looks at the row."""

    holder: str
    now: datetime
    lease_s: float
    in_use: Mapping[Pool, int]  # permits under calls
    demand: Mapping[Pool, int]  # the most calls of a lane, under way or waiting, since it last asked
    held_s: float = 0.0  # how long it has held permits without a break
    calls: Mapping[str, int] = dataclasses.field(default_factory=dict)  # "<budget>|<slot>|<pool>" -> calls in hand
    paused_until: datetime | None = None
    leaving: bool = False  # gives everything back


@dataclasses.dataclass(frozen=True)
class Settled:
    """What the row should say, and what the process may do once it does."""

    row: PermitRow
    limit: dict[Pool, int]  # permits it may use; what is in use beyond that ends and goes back
    calls: dict[str, int]  # calls it gets
    changed: bool  # whether the row says anything new, the end of the lease apart
    alone: bool  # nobody else has a block
    starved: bool  # it lacks permits of its fair share
    scarce: bool  # others want more than they have, or may soon
    room: bool  # permits were left free although it needs more


def settle(row: PermitRow, ask: Ask, limits: Limits) -> Settled:
    """Share a connection's permits and calls between one process that asks and all others that the row knows."""
    margin = timedelta(seconds=MARGIN_S)
    live = {holder: block for holder, block in row.blocks.items() if block.until + margin > ask.now}
    mine = live.get(ask.holder)
    others = [block for holder, block in live.items() if holder != ask.holder]
    since = mine.since if mine and mine.since else ask.now
    limit: dict[Pool, int] = {}
    held: dict[Pool, int] = {}
    wants: dict[Pool, int] = {}
    room = False
    left_over = 0  # events that find no permit among those kept for them use a run's
    for pool in POOLS:
        in_use, asked = ask.in_use.get(pool, 0), ask.demand.get(pool, 0) + left_over
        limit[pool], wants[pool], left = _share(pool, limits.permits(pool), asked, mine, others, since, ask)
        room = room or left
        held[pool] = max(limit[pool], in_use)  # a call under way counts until it ends
        left_over = max(0, asked - held[pool]) if pool == "event" else 0
    wanting = any(wants.values())
    lease_s = ask.lease_s if any(held.values()) else WAIT_LEASE_S
    block = Block(until=ask.now + timedelta(seconds=lease_s), held=held, wants=wants, since=since if wanting else None)
    blocks = {holder: each for holder, each in live.items() if holder != ask.holder}
    if any(held.values()) or wanting:
        blocks[ask.holder] = block
    spent, calls = _hand_out_calls(row.spent, ask, limits, len(others), ends=ask.holder not in blocks)
    paused_until = max((each for each in (row.paused_until, ask.paused_until) if each), default=None)
    same = (mine.held, mine.wants) == (held, wants) if mine else ask.holder not in blocks
    return Settled(
        row=row.model_copy(update={"blocks": blocks, "spent": spent, "paused_until": paused_until}),
        limit=limit,
        calls=calls,
        changed=not same or spent != row.spent or paused_until != row.paused_until,
        alone=not others,
        scarce=_is_scarce(held, others, limits),
        starved=wanting,
        room=room,
    )


def _is_scarce(held: Mapping[Pool, int], others: list[Block], limits: Limits) -> bool:
    """Tell whether others want permits, or there are others and less than a quarter of all is free."""
    taken = sum(sum(each.values()) for each in (held, *(block.held for block in others)))
    wanted = any(any(block.wants.values()) for block in others)
    return wanted or (bool(others) and 4 * taken >= 3 * limits.concurrency)


def _share(
    pool: Pool, permits: int, asked: int, mine: Block | None, others: list[Block], since: datetime, ask: Ask
) -> tuple[int, int, bool]:
    """Return how many permits of a pool the process may use, how many it lacks of its fair share, and if some are left."""
    desired = 0 if ask.leaving else min(asked, permits)
    before = mine.held.get(pool, 0) if mine else 0
    if not others and desired < before <= desired / KEPT_ALONE:
        desired = min(before, permits)
    rivals = [block for block in others if block.held.get(pool) or block.wants.get(pool)]
    starving = [block for block in rivals if block.wants.get(pool)]
    free = max(0, permits - sum(block.held.get(pool, 0) for block in rivals))
    share = permits // (len(rivals) + 1)
    if starving:
        wanted = sum(block.wants.get(pool, 0) for block in starving)
        first = sum(block.wants.get(pool, 0) for block in starving if block.since and block.since < since)
        my_turn_is_over = share == 0 and ask.held_s >= TURN_S
        most = 0 if my_turn_is_over else max(share, 1, free - wanted)
        most = min(most, max(before, free - first))
    elif rivals:
        fair = max(before, share)
        most = fair + math.ceil(max(0, free - fair) / 2)
    else:
        most = free
    limit = min(desired, most, free)
    lacks = max(0, min(desired, max(share, 1)) - max(limit, ask.in_use.get(pool, 0)))
    return limit, lacks, limit < min(desired, free) and not starving


def _hand_out_calls(
    spent: Mapping[str, int], ask: Ask, limits: Limits, rivals: int, *, ends: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the budgets' new state and the calls that the process gets (negative: gives back, all when its block ends)."""
    after: dict[str, int] = {}
    calls: dict[str, int] = {}
    for budget in limits.budgets:
        slot = budget.slot(ask.now)
        for key, count in spent.items():
            name, number, _ = key.split("|")
            if name == budget.name and int(number) >= slot - 1:  # another process may be a second behind
                after[key] = count
        short = 0
        for pool in POOLS:
            key = call_key(budget, slot, pool)
            in_hand, used = ask.calls.get(key, 0), after.get(key, 0)
            if ends:
                got = -min(in_hand, used)
            else:
                left = max(0, limits.calls(budget, pool) - used)
                wanted = ask.demand.get(pool, 0) + short
                most = max(FEW, 4 * wanted) if budget.seconds else CHUNK
                got = min(left, CHUNK, most, max(1, math.ceil(left / (rivals + 1)))) if wanted > in_hand else 0
                short = max(0, wanted - in_hand - got) if pool == "event" else 0
            if got:
                after[key], calls[key] = used + got, got
    return (after, calls) if calls else (dict(spent), calls)


def call_key(budget: Budget, slot: int, pool: Pool) -> str:
    """Return the name under which a budget's calls are counted."""
    return f"{budget.name}|{slot}|{pool}"
