"""What a run may cost the vendors, counted in the simulators' journals over 300 cases, and storage: counts, never times."""

import math
import threading
import time

import pytest

from sandbox.simulator import Simulator
from tests.flows.world import World

CASES = 300
PAGES = 3
MESSAGES = 6  # fewer than are stored without waiting for others
WINDOW = "last_days:3"
DESK_RECORDS = r"/table/(incident|sys_user|sys_user_group)"  # schemas are read once a process, not once a case


def _calls(simulator: Simulator, path: str, method: str = "") -> int:
    return len(simulator.requests(method, path))


@pytest.fixture
def filled(world: World) -> World:
    """Return a world of 300 cases whose people ServiceNow knows."""
    for number in range(CASES):
        world.add_case(f"Case number {number} of many")
    return world


def test_new_cases_cost_one_call_each_and_a_few_for_the_page(filled: World) -> None:
    """With users known a new case costs ServiceNow 1.1 calls at the most, a page Dynamics one."""
    run = filled.sync(WINDOW)

    assert run.counts == {"created": CASES}
    assert _calls(filled.servicenow, DESK_RECORDS) <= 1.1 * CASES
    assert _calls(filled.dynamics, r"v9\.2/incidents") <= PAGES


def test_unchanged_cases_cost_servicenow_nothing(filled: World) -> None:
    """Where nothing changed a case costs ServiceNow 0.03 calls at the most."""
    filled.sync(WINDOW)
    filled.forget_journal()

    run = filled.sync(WINDOW)

    assert run.counts == {"unchanged": CASES}
    assert _calls(filled.servicenow, DESK_RECORDS) <= 0.03 * CASES
    assert _calls(filled.dynamics, r"v9\.2/incidents") <= PAGES


def test_changed_cases_cost_one_call_each(filled: World) -> None:
    """A changed case costs ServiceNow 1.05 calls at the most."""
    filled.sync(WINDOW)
    for row in list(filled.dynamics.rows("incident")):
        filled.dynamics.update("incident", row["incidentid"], title=f"{row['title']}, changed")
    filled.advance(60)
    filled.forget_journal()

    run = filled.sync(WINDOW)

    assert run.counts == {"updated": CASES}
    assert _calls(filled.servicenow, DESK_RECORDS) <= 1.05 * CASES
    assert _calls(filled.servicenow, DESK_RECORDS, "PATCH") == CASES
    assert _calls(filled.dynamics, r"v9\.2/incidents") <= PAGES


def test_records_that_end_together_share_a_transaction(world: World) -> None:
    """Single messages that end while others of their process are on their way store their results as one."""
    world.add_case()
    world.sync(WINDOW)  # makes the tables
    for number in range(MESSAGES):
        world.add_case(f"Case number {number} of a few")
    run = world.start(WINDOW)
    world.pump.run(until=lambda: sum(each.queue == "items" for each in world.pump.waiting) == MESSAGES)
    items = [each for each in world.pump.waiting if each.queue == "items"]
    results = world.app.results._together
    results._next_at_s = math.inf  # nobody goes before all are there
    world.wire.calls.clear()

    with results.coming():
        threads = [threading.Thread(target=world.pump.deliver, args=(each,)) for each in items]
        for thread in threads:
            thread.start()
        ends_at_s = time.monotonic() + 30
        while results.waiting() < MESSAGES:
            assert time.monotonic() < ends_at_s
            time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    world.pump.run()

    stored = [call for call in world.wire.calls if call.endswith(("$batch", "POST results"))]
    assert stored == ["storage POST $batch"]
    assert (world.run_row(run).counts, world.pump.poisoned) == ({"unchanged": 1, "created": MESSAGES}, [])
