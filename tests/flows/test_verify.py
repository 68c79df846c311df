"""A verification names every difference between source and target, and writes nothing."""

from tests.flows.world import World


def synced(world: World, count: int = 4) -> list[str]:
    cases = [world.add_case(f"Printer {number} is offline") for number in range(count)]
    world.sync("last_days:3")
    world.forget_journal()
    return cases


def found(world: World) -> dict[str, tuple[str, str]]:
    """Return the failures of a verification: reason and message by case."""
    run = world.sync("last_days:3", verify=True)
    return {key: (row.reason, row.message) for key, row in world.results(run).items() if row.outcome == "failed"}


def test_equal_systems_have_no_differences(world):
    """Nothing is named, nothing is written."""
    synced(world)

    assert found(world) == {}
    assert world.writes() == []


def test_deleted_target_is_named(world):
    """An incident that is gone, or hidden, is missing."""
    cases = synced(world)
    world.servicenow.delete("incident", world.incident_of(cases[1])["sys_id"])

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[1]: "target_missing"}
    assert world.writes() == []


def test_altered_target_is_named_with_its_fields(world):
    """An agent's change is a difference, told as what it is."""
    cases = synced(world)
    world.servicenow.update("incident", world.incident_of(cases[2])["sys_id"], short_description="Something else")

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[2]: "target_altered"}
    assert "short_description" in differences[cases[2]][1]


def test_doubled_target_is_named(world):
    """A second incident that carries the case's id is one too many."""
    cases = synced(world)
    world.servicenow.insert("incident", correlation_id=cases[0], short_description="A copy")

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[0]: "target_doubled"}


def test_source_that_is_ahead_is_named(world):
    """A change that was not written yet, and a case that was never synced."""
    cases = synced(world)
    world.edit_case(cases[3], title="Printer 3 burns")
    new = world.add_case("A new one")

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[3]: "target_behind", new: "not_synced"}


def test_backfill_is_verified_by_itself(world):
    """After a backfill a verification follows; it mails only if it found something."""
    world.add_case("Printer is offline")

    world.sync("all")

    assert [run.verify for run in sorted(world.runs(), key=lambda run: run.created_at)] == [False, True]
    assert len(world.mailbox.messages) == 1
