"""Marketo's calls of a day are used up, by us or by other tools: events wait until its midnight, and none is lost."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared import services
from shared.state.permits import SharedPermits
from shared.state.shares import Limits
from tests.flows.contacts import ContactWorld, new_contact_world
from tests.flows.world import Stage

CALLS = 8
RESET = datetime(2026, 3, 11, 5, 0, tzinfo=UTC)  # midnight in US Central, which is on summer time since 8 March
ONE_BY_ONE = {"EVENTS_TOGETHER": "1"}


@pytest.fixture
def world(stage: Stage, tmp_path: Path, prefix: str, request: pytest.FixtureRequest) -> Iterator[ContactWorld]:
    """A world whose Marketo, or whose setting, allows few calls a day."""
    values, switches = request.param
    with new_contact_world(stage, tmp_path / "recipes", prefix, ONE_BY_ONE | values, **switches) as made:
        yield made


@pytest.fixture
def shared_permits(world: ContactWorld) -> Iterator[SharedPermits]:
    """Marketo's permits as `services` builds them, on the world's clock."""
    connection = world.settings.connection("marketo")
    limits = Limits(connection.concurrency, budgets=services._budgets(connection))
    tables = world._open_tables(None)
    tables.now = world.now  # type: ignore[method-assign]  # storage's time, which nobody can move
    call_s = connection.connect_timeout_s + connection.read_timeout_s
    permits = SharedPermits(tables, "marketo", limits, call_s=call_s, wait_s=services._wait_s(limits))
    world.systems["marketo"]._http._permits = permits  # type: ignore[attr-defined]
    yield permits
    permits.close()


def _hook_contacts(world: ContactWorld) -> list[str]:
    return [world.hook("contact", world.contact(f"c{number}@customer.example"), "Create") for number in range(5)]


def _run_until(world: ContactWorld, moment: datetime) -> None:
    world.pump.run(for_s=(moment - world.now()).total_seconds())
    world.advance_to(moment)


def _calls_by_day(world: ContactWorld) -> list[int]:
    return [day["total"] for day in world.marketo.usage.calls_report(2)]


@pytest.mark.parametrize("world", [({"CONNECTIONS__MARKETO__DAILY_BUDGET": str(CALLS)}, {})], indirect=True)
def test_events_wait_for_the_reset_when_our_budget_is_spent(world: ContactWorld, shared_permits: SharedPermits) -> None:
    """What is left of a day's events is worked after Marketo's midnight; no call goes beyond the budget of its day."""
    ids = _hook_contacts(world)

    _run_until(world, RESET - timedelta(seconds=1))
    worked = len(world.events())
    calls_before = _calls_by_day(world)
    _run_until(world, RESET + timedelta(hours=1))

    assert 0 < worked < len(ids)
    assert calls_before == [CALLS, 0]
    assert world.counted([world.event(event_id) for event_id in ids]) == {"created": len(ids)}
    assert len(world.leads()) == len(ids)
    assert max(_calls_by_day(world)) <= CALLS
    assert "607" not in {each["errorCode"] for day in world.marketo.usage.errors_report(2) for each in day["errors"]}


@pytest.mark.parametrize("world", [({}, {"daily_calls": CALLS})], indirect=True)
def test_events_wait_for_the_reset_when_other_tools_spent_the_quota(world: ContactWorld) -> None:
    """607 ends the day for everybody: the events wait until a minute after midnight, which no attempt counts."""
    ids = _hook_contacts(world)

    _run_until(world, RESET)
    worked = len(world.events())
    _run_until(world, RESET + timedelta(hours=2))

    results = [world.event(event_id) for event_id in ids]
    assert 0 < worked < len(ids)
    assert world.counted(results) == {"created": len(ids)}
    assert {result.attempts for result in results} == {1}
    assert len(world.leads()) == len(ids)
