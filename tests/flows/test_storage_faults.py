"""Storage that refuses in the middle of a record's work: the message comes back, and no record pays for it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from azure.core.exceptions import ServiceRequestError

from shared.state.rows import RunState
from tests.flows.world import StorageEdge, World


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SDK repeat at once."""
    monkeypatch.setattr(StorageEdge, "sleep", lambda *_: None)


def refuse(world: World, label: str, times: int = 10) -> list[str]:
    """Refuse the next calls that match, so many that the SDK gives up at least once; return what was refused."""
    carry, refused = world.wire.carry, []

    def refusing(name: str, call: Callable[[], Any]) -> Any:
        if re.search(label, name) and len(refused) < times:
            refused.append(name)
            raise ServiceRequestError("connection refused")
        return carry(name, call)

    world.wire.carry = refusing  # type: ignore[method-assign]
    return refused


@pytest.mark.parametrize("bulk_above", [1000, 0], ids=["single", "bulk"])
@pytest.mark.parametrize("label", ["POST identities", "PUT identities", "POST links", "POST targets", "POST .batch"])
def test_storage_that_refuses_fails_no_record(world: World, label: str, bulk_above: int) -> None:
    """The claim on a new user's address, the link's or the target's cannot be stored: the record waits and is created."""
    world.change_settings(bulk_above=bulk_above)
    cases = [world.add_case(contact=world.add_contact(f"new{number}@customer.example")) for number in range(3)]
    refuse(world, label)

    run = world.sync()

    assert (run.counts, run.state) == ({"created": 3}, RunState.COMPLETED)
    assert [len(world.incidents(correlation_id=case)) for case in cases] == [1, 1, 1]
    assert [len(world.users(f"new{number}@customer.example")) for number in range(3)] == [1, 1, 1]
