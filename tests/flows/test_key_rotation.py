"""Changing the digests' key: two keys hold for a while, and one backfill takes every link over to the new one."""

from shared.digests import Digests, parse_digest_keys
from shared.state.rows import Outcome
from tests.flows.world import World

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
