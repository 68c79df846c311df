"""A deployment or a crash of hours: what was under way goes on by itself, and nothing that was found out before is believed."""

from tests.flows.world import CALLER, World

HOURS_S = 5 * 3600.0


def _until_items(world: World) -> None:
    world.pump.run(until=lambda: any(each.queue == "items" for each in world.pump.waiting))


def test_create_of_a_host_that_died_for_hours_is_found(world: World) -> None:
    """The host died when its create had left, and came back when every lease was over: the record is not made twice."""
    case = world.add_case()
    run = world.start()
    world.pump.lease_left_s = HOURS_S
    world.wire.kill_on("servicenow POST api/now/table/incident", after=True)

    world.tick_for(30)
    world.advance(HOURS_S)
    world.tick_for(30)

    assert world.pump.kills == 1
    assert len(world.incidents(correlation_id=case)) == 1
    assert world.run_row(run).counts == {"created": 1}
    assert len(world.mailbox.mails) == 1


def test_newer_state_is_not_overwritten_by_an_old_message(world: World) -> None:
    """A message that carries a case as it was hours ago finds that a newer state was written since, and leaves it."""
    case = world.add_case("As it was")
    run = world.start()
    _until_items(world)
    waiting, world.pump.waiting = world.pump.waiting, []
    world.advance(HOURS_S)
    world.edit_case(case, title="As it is")
    world.sync(f"ids={case}")

    world.pump.waiting = waiting
    world.tick_for(10)

    assert world.incident_of(case)["short_description"] == "As it is"
    assert sum(world.run_row(run).counts.values()) == 1
    assert world.links()[0].claim is None


def test_reference_that_vanished_meanwhile_is_asked_for_anew(world: World) -> None:
    """The caller that the page found was deleted while the message waited: the incident does not refer to nobody."""
    case = world.add_case()
    world.start()
    _until_items(world)
    world.servicenow.delete("sys_user", world.users(CALLER)[0]["sys_id"])
    world.advance(HOURS_S)

    world.tick_for(10)

    (user,) = world.users(CALLER)
    assert world.incident_of(case)["caller_id"] == user["sys_id"]
