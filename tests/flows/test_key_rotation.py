"""Changing the digests' key: two keys hold for a while, and one backfill takes every link over to the new one."""

import pytest

from shared.digests import Digests, parse_digest_keys
from shared.errors import RateLimitedError
from shared.state.rows import IdentityRow, Outcome
from sync import links
from sync.flow import Flow
from tests.flows.world import LEASE_S, TRANSACTION_S, World

OLD, NEW = "test:a-key-that-is-used-in-tests-alone-0001", "next:another-key-that-tests-alone-use-0002"


def _use_keys(world: World, keys: str) -> None:
    """Let the app start anew with these keys."""
    world.change_settings(digest_keys=parse_digest_keys(keys))
    world.app = world.build_app(world.settings)


def test_unchanged_records_go_over_to_the_new_key(world: World) -> None:
    """Nothing is written to the target, and afterwards the old key is not needed any more."""
    cases = [world.add_case() for _ in range(3)]
    world.sync("all")
    _use_keys(world, f"{NEW},{OLD}")
    world.forget_journal()

    rotation = world.sync("all")
    _use_keys(world, NEW)
    after = world.sync("all")

    new = Digests(parse_digest_keys(NEW))
    assert world.writes() == []
    for run in (rotation, after):
        assert {result.outcome for result in world.results(run).values()} == {Outcome.UNCHANGED}
    for case in cases:
        link = world.link_of(case)
        assert link is not None
        assert all(new.is_current(digest.lstrip("!?")) for digest in link.inputs.values())


def test_agents_work_survives_a_rotation(world: World) -> None:
    """What an agent changed in the target while both keys held is not written over when the old one is gone."""
    case = world.add_case()
    world.sync("all")
    world.servicenow.update("incident", world.incident_of(case)["sys_id"], urgency="1")
    _use_keys(world, f"{NEW},{OLD}")
    world.sync("all")
    _use_keys(world, NEW)

    world.edit_case(case, title="Another title")
    world.sync("all")

    incident = world.incident_of(case)
    assert (incident["short_description"], incident["urgency"]) == ("Another title", "1")


def _claim_of(flow: Flow) -> IdentityRow:
    return links.identity(flow, "servicenow.sys_user", ("email",), ["ada@customer.example"])


def test_claim_under_the_older_key_holds(world: World) -> None:
    """While both keys are valid, a worker that began before the change keeps the value; its doubt is not lost either."""
    old = world.app.flow(World.recipe)
    links.claim_identity(old, _claim_of(old), "the one before")
    _use_keys(world, f"{NEW},{OLD}")
    new = world.app.flow(World.recipe)

    with pytest.raises(RateLimitedError, match="Another message"):
        links.claim_identity(new, _claim_of(new), "the one after")
    world.advance(LEASE_S + TRANSACTION_S)
    taken = links.claim_identity(new, _claim_of(new), "the one after")

    assert taken.create_by is not None
    assert world.view.get(IdentityRow, taken.row.partition_key, taken.row.row_key) == taken.row
    assert world.view.get(IdentityRow, _claim_of(old).partition_key, _claim_of(old).row_key) is None
