"""The bulk lane: whole pages worked at once, with the end state, the failures and the safety of the single lane."""

from collections.abc import Callable
from typing import Any

import pytest

from sandbox.simulator import FaultKind
from shared.state.rows import LinkRow, ResultRow, RunState, TargetRow
from tests.flows.world import World

WINDOW = "last_days:3"
PAIR = "dynamics365.incident+servicenow.incident"


@pytest.fixture
def bulk(world: World) -> World:
    """Return a world in which every run works whole pages."""
    world.change_settings(bulk_above=0)
    return world


def _fill(world: World, count: int = 30) -> list[str]:
    return [world.add_case(f"Bulk case {number}") for number in range(count)]


def _state(world: World, cases: list[str]) -> list[dict[str, Any]]:
    """Return what stands in ServiceNow for each case, without what differs by nature."""
    own = ("sys_id", "sys_created_on", "sys_updated_on", "sys_mod_count")
    return [{name: text for name, text in world.incident_of(case).items() if name not in own} for case in cases]


def _rows(world: World) -> tuple[int, int]:
    """Count settled links and owned targets."""
    links = [row for row in world.view.scan(LinkRow) if row.pair == PAIR and row.other_key and row.claim is None]
    return len(links), len(list(world.view.scan(TargetRow)))


def _item_messages(world: World) -> int:
    return sum(1 for done in world.pump.done if done.queue == "items")


def test_bulk_lane_sends_no_message_for_a_record(bulk: World) -> None:
    """A page's records are created inside its own invocation; links, targets and results are all there."""
    cases = _fill(bulk)

    run = bulk.sync(WINDOW)

    assert (run.state, run.counts) == (RunState.COMPLETED, {"created": 30})
    assert _item_messages(bulk) == 0
    assert _rows(bulk) == (30, 30)
    assert len({bulk.incident_of(case)["sys_id"] for case in cases}) == 30


def test_records_whose_turn_does_not_come_in_time_stay_in_the_bulk_lane(bulk: World) -> None:
    """Where a target allows few calls, a portion's later writes come again with the next one, each once, without messages."""
    cases = _fill(bulk, 80)

    bulk.permits.refuses = lambda ahead: not ahead and bulk.permits.taken % 12 == 0
    first = bulk.sync(WINDOW)
    claims = [row for row in bulk.view.scan(LinkRow) if row.claim is not None]
    for case in cases:
        bulk.edit_case(case, title="Changed by a person")
    second = bulk.sync(WINDOW)

    assert (first.counts, second.counts) == ({"created": 80}, {"updated": 80})
    assert claims == []
    assert _item_messages(bulk) == 0
    assert _rows(bulk) == (80, 80)
    assert len(bulk.servicenow.requests("POST", "/incident")) == 80
    assert {bulk.incident_of(case)["short_description"] for case in cases} == {"Changed by a person"}


def test_record_that_is_worked_between_two_portions_is_not_set_back(bulk: World) -> None:
    """What comes again with the next portion is read again, where another message has written a newer state meanwhile."""
    case, _ = cases = _fill(bulk, 2)
    bulk.sync(WINDOW)
    for each in cases:
        bulk.edit_case(each, title="Older")
    refused, carry = [], bulk.wire.carry

    def refuse(ahead: bool) -> bool:
        refused.extend([] if ahead else ["write"])
        return not ahead

    def carry_between(label: str, call: Callable[[], Any]) -> Any:
        if refused and label == "storage GET links":  # the claims were given up
            bulk.wire.carry, bulk.permits.refuses = carry, lambda _: False
            bulk.edit_case(case, title="Newest")
            bulk.change_settings(bulk_above=1000)
            bulk.start(f"ids={case}")
            bulk.pump.run(until=lambda: bulk.incident_of(case)["short_description"] == "Newest")
            bulk.change_settings(bulk_above=0)
        return carry(label, call)

    bulk.permits.refuses, bulk.wire.carry = refuse, carry_between
    bulk.sync(WINDOW)

    assert bulk.wire.carry == carry
    assert bulk.incident_of(case)["short_description"] == "Newest"


def test_record_whose_reading_finds_no_permit_is_decided_from_the_start(bulk: World) -> None:
    """Where a claim meets another link than was read, and no call is free to look the record up, nothing is left out."""
    case, _ = cases = _fill(bulk, 2)
    bulk.sync(WINDOW)
    for each in cases:
        bulk.edit_case(each, title="Changed by a person")
    carry, refusing = bulk.wire.carry, []

    def carry_and_change(label: str, call: Callable[[], Any]) -> Any:
        if label.startswith("servicenow GET"):  # the links were read
            bulk.wire.carry = carry
            link = next(row for row in bulk.view.scan(LinkRow) if row.key == case)
            bulk.view.replace(link.model_copy(update={"event_id": "another message"}))
            refusing.append("look-up of the target")
            bulk.permits.refuses = lambda ahead: (
                ahead and bulk.wire.calls[-1].startswith("dynamics") and bool(refusing) and bool(refusing.pop())
            )
        return carry(label, call)

    bulk.wire.carry = carry_and_change
    bulk.sync(WINDOW)

    assert bulk.wire.carry == carry
    assert refusing == []
    assert {bulk.incident_of(each)["short_description"] for each in cases} == {"Changed by a person"}


def test_bulk_lane_ends_as_the_single_lane_does(bulk: World) -> None:
    """A second run in the other lane finds nothing to do, after creates as after changes."""
    cases = _fill(bulk, 12)
    bulk.sync(WINDOW)
    bulk.change_settings(bulk_above=1000)
    first = bulk.sync(WINDOW)
    for case in cases[:5]:
        bulk.edit_case(case, title="Changed by a person")
    bulk.change_settings(bulk_above=0)
    second = bulk.sync(WINDOW)
    before = _state(bulk, cases)
    bulk.change_settings(bulk_above=1000)
    third = bulk.sync(WINDOW)

    assert (first.counts, second.counts) == ({"unchanged": 12}, {"updated": 5, "unchanged": 7})
    assert third.counts == {"unchanged": 12}
    assert _state(bulk, cases) == before


def test_bulk_lane_adopts_what_matches(bulk: World) -> None:
    """Incidents of the former integration are adopted together with their neighbours' creation."""
    cases = _fill(bulk, 6)
    bulk.servicenow.insert("incident", number=bulk.number_of(cases[2]), short_description="Old", urgency="1")

    run = bulk.sync(WINDOW)

    assert run.counts == {"created": 5, "adopted": 1}
    assert _rows(bulk) == (6, 6)


def test_bad_record_does_not_touch_its_neighbours(bulk: World) -> None:
    """A record that the vendor fails is sent again alone, as one message; its neighbours are settled at once."""
    cases = _fill(bulk, 20)
    bulk.servicenow.add_fault(FaultKind.STATUS, method="POST", path="/table/incident", skip=7, times=1, status=423)

    run = bulk.sync(WINDOW)

    assert (run.state, run.counts) == (RunState.COMPLETED, {"created": 20})
    assert _item_messages(bulk) == 1
    assert all(bulk.incident_of(case) for case in cases)


def test_refused_record_fails_alone(bulk: World) -> None:
    """A record that the vendor refuses for good fails with its reason, and leaves no claim behind."""
    _fill(bulk, 20)
    bulk.servicenow.add_fault(FaultKind.STATUS, method="POST", path="/table/incident", skip=7, times=1, status=400)

    run = bulk.sync(WINDOW)

    assert run.counts == {"created": 19, "failed": 1}
    assert _rows(bulk) == (19, 19)
    assert not [row for row in bulk.view.scan(LinkRow) if row.claim is not None]


def test_lost_answer_is_looked_up_and_not_repeated(bulk: World) -> None:
    """A create whose answer was lost on a page is found again by its own message: one incident, counted as created."""
    cases = _fill(bulk, 10)
    bulk.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path="/table/incident", skip=4, times=1)

    run = bulk.sync(WINDOW)

    assert run.counts == {"created": 10}
    assert len({bulk.incident_of(case)["sys_id"] for case in cases}) == 10


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(30, 75, 3))
def test_killed_page_goes_on_where_it_was(bulk: World, number: int, after: bool) -> None:
    """A page whose worker dies at any call is delivered again: every case has one incident, and is counted as created."""
    cases = _fill(bulk, 10)
    run = bulk.start(WINDOW)
    bulk.wire.kill_at(number, after=after)

    bulk.pump.run()

    assert bulk.pump.kills == 1
    assert (bulk.run_row(run).counts, bulk.run_row(run).state) == ({"created": 10}, RunState.COMPLETED)
    assert len({bulk.incident_of(case)["sys_id"] for case in cases}) == 10
    assert _rows(bulk) == (10, 10)


def test_unexpected_row_is_stored_by_itself(bulk: World) -> None:
    """Where one row of a shard stands otherwise than expected, the others of the shard are stored all the same."""
    cases = _fill(bulk, 12)
    pairs = [LinkRow(pair=PAIR, side="dynamics365.incident", key=case) for case in cases]
    bulk.view.insert(pairs[3])  # a link that somebody has begun, without a claim

    run = bulk.sync(WINDOW)

    assert run.counts == {"created": 12}
    assert _rows(bulk) == (12, 12)
    assert len(list(bulk.view.scan(ResultRow))) == 12
