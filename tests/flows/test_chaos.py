"""Realistic records under seeded chaos: deaths, faults, repeats and any order; an independent oracle judges the end.

A seed that fails replays: everything that is random here comes from it. FAULTS=1 (make faults) tries many more.
"""

import dataclasses
import os
import random
from datetime import timedelta

import pytest

from sandbox import dynamics365_records, servicenow_records
from sandbox.oracle import Snapshot, compare, expect, take_snapshot
from sandbox.simulator import FaultKind
from shared.state.rows import MailState, RunRow
from tests.flows.world import ENDED, NOW, Delivery, Killed, World

MIDNIGHT = NOW.replace(hour=0)
DOUBLED = 60
SEEDS = range(40) if os.environ.get("FAULTS") else range(3)
FAULTS = (
    {"kind": FaultKind.RESET_AFTER},
    {"kind": FaultKind.STATUS_AFTER, "status": 502},
    {"kind": FaultKind.TRUNCATED},
    {"kind": FaultKind.HTML},
    {"kind": FaultKind.REFUSE},
    {"kind": FaultKind.STATUS, "status": 503},
    {"kind": FaultKind.STATUS, "status": 500},
    {"kind": FaultKind.STATUS, "status": 429, "headers": {"Retry-After": "20"}},
    {"kind": FaultKind.EXPIRE_TOKEN},
)


def _fill(world: World) -> Snapshot:
    facts = dynamics365_records.seed(world.dynamics, 40, now=world.now())
    servicenow_records.seed(world.servicenow, facts, incidents=150)
    return take_snapshot(world.dynamics, world.servicenow)


def _differences(world: World, before: Snapshot, run: RunRow) -> list[str]:
    results = [dataclasses.asdict(_Plain(r.key, r.outcome.value, r.reason)) for r in world.results(run).values()]
    after = take_snapshot(world.dynamics, world.servicenow)
    return compare(before, after, MIDNIGHT - timedelta(days=1), MIDNIGHT, results)


@dataclasses.dataclass
class _Plain:
    key: str
    outcome: str
    reason: str


def _unleash(world: World, chance: random.Random) -> None:
    """Let everything go wrong by chance, but no message die so often that the host gives it up.

    Messages are doubled so often and no more: one that waits is sent again each time, and its doubles would double.
    """
    for _ in range(8):
        fault = chance.choice(FAULTS)
        sim = chance.choice((world.servicenow, world.servicenow, world.dynamics))
        world_path = "/table/(incident|sys_user)" if sim is world.servicenow else "/incidents"
        sim.add_fault(**fault, path=world_path, skip=chance.randrange(25))
    world.pump.shuffle = chance
    doubled = 0

    def before(delivery: Delivery) -> None:
        nonlocal doubled
        once = (
            delivery.queue == "runs" or doubled >= DOUBLED
        )  # a check that comes twice goes on twice until its run ends
        world.pump.repeats = 0 if once else chance.choice((0, 0, 1))
        world.pump.copies = 1 if once else chance.choice((1, 1, 1, 2))
        doubled += world.pump.repeats + world.pump.copies - 1
        world.pump.lease_left_s = chance.choice((0, 0, 120))
        if delivery.count < 3 and world.pump.kills < 25 and chance.random() < 0.15:
            world.wire.kill_at(chance.randrange(25), after=chance.random() < 0.5)
        else:
            world.wire.kill_at(-1, after=False)

    world.pump.before = before


@pytest.mark.parametrize("bulk_above", [1000, 0], ids=["single", "bulk"])
@pytest.mark.parametrize("seed", SEEDS)
def test_chaos_ends_as_the_oracle_says(world: World, seed: int, bulk_above: int) -> None:
    """Whatever happens on the way, each case ends as it should, once, and one summary tells of it."""
    world.change_settings(bulk_above=bulk_above)
    before = _fill(world)
    _unleash(world, random.Random(seed))

    try:
        run = world.start()
    except Killed:
        world.restart()
        run = world.start()
    for _ in range(45):
        world.tick_for(1)
        if world.run_row(run).mail_state is MailState.SENT:
            break

    run = world.run_row(run)
    assert run.state in ENDED
    assert _differences(world, before, run) == []
    assert len({mail.message["Message-ID"] for mail in world.mailbox.mails}) == 1
    assert run.counts.get("failed", 0) == world.outcomes(run).get("failed", 0)


@pytest.mark.parametrize("bulk_above", [1000, 0], ids=["single", "bulk"])
def test_calm_run_ends_as_the_oracle_says(world: World, bulk_above: int) -> None:
    """The same without any chaos; the run after it changes nothing."""
    world.change_settings(bulk_above=bulk_above)
    before = _fill(world)

    run = world.sync()
    differences = _differences(world, before, run)
    world.forget_journal()
    again = world.sync()

    assert differences == []
    assert len(expect(before, MIDNIGHT - timedelta(days=1), MIDNIGHT)) == len(world.results(run)) == 40
    assert world.writes() == []
    assert again.counts["unchanged"] == run.counts["created"] + run.counts.get("adopted", 0)


def test_backfill_and_windowed_run_over_the_same_records(world: World) -> None:
    """Both work on the same cases at once, in both lanes; each case still has one incident."""
    before = _fill(world)
    world.pump.shuffle = random.Random(7)

    window, backfill = world.start(), world.start("from=2026-03-09 to=2026-03-09")
    world.pump.run()

    assert [world.run_row(run).state in ENDED for run in (window, backfill)] == [True, True]
    after = take_snapshot(world.dynamics, world.servicenow)
    assert compare(before, after, MIDNIGHT - timedelta(days=1), MIDNIGHT) == []
