"""A field belongs to one recipe pair: what another pair's recipe has filled is not written over, and both recipes are named."""

from collections.abc import Callable

import pytest

from shared.state.rows import Outcome, ResultRow
from tests.flows.world import CALLER, YESTERDAY, World

RIVAL = """\
title: Contacts to incidents
source: dynamics365.contact
target: servicenow.incident
start: {http: yesterday}
match: [short_description]
write: update
fields:
  short_description: lastname
  FIELD: {value: "1"}
"""


def _add_rival(world: World, field: str) -> None:
    (world._folder / "contact_to_incident.yaml").write_text(RIVAL.replace("FIELD", field))
    world.app = world.build_app(world.settings)


def _sync_rival(world: World, *, preview: bool = False) -> ResultRow:
    """Run the recipe that finds a case's incident by its title; return its one result."""
    world.add_contact(None, lastname="Broken printer", modifiedon=YESTERDAY)
    world.recipe = "contact_to_incident"
    run = world.sync(preview=preview)
    world.recipe = World.recipe
    (result,) = (each for each in world.results(run).values() if each.outcome is not Outcome.SKIPPED)
    return result


@pytest.mark.parametrize("preview", [False, True], ids=["run", "preview"])
def test_field_that_another_recipe_filled_is_not_written(world: World, preview: bool) -> None:
    """The record fails with the field and the recipe it belongs to; nothing of it is written."""
    case = world.add_case("Broken printer")
    world.sync()
    _add_rival(world, "urgency")
    world.forget_journal()

    result = _sync_rival(world, preview=preview)

    assert (result.outcome, result.reason) == (Outcome.FAILED, "owned_by_other_recipe")
    assert "urgency" in result.message
    assert "Dynamics 365 cases to ServiceNow incidents" in result.message
    assert (world.incident_of(case)["urgency"], world.writes()) == ("2", [])


def test_field_that_nobody_else_filled_is_written(world: World) -> None:
    """Two recipes may keep different fields of one record; each goes on with its own."""
    case = world.add_case("Broken printer")
    world.sync()
    _add_rival(world, "impact")

    result = _sync_rival(world)
    world.edit_case(case, prioritycode=1)
    run = world.sync("today")

    assert result.outcome is Outcome.ADOPTED
    assert world.results(run)[case].outcome is Outcome.UPDATED
    incident = world.incident_of(case)
    assert (incident["impact"], incident["urgency"]) == ("1", "1")


def test_field_that_the_target_held_by_itself_belongs_to_nobody(world: World) -> None:
    """A value that was there when the other recipe adopted the record is not that recipe's."""
    case = world.add_case("Broken printer")
    held = {"short_description": "Broken printer", "caller_id": world.users(CALLER)[0]["sys_id"]}
    world.servicenow.insert("incident", urgency="2", **held)
    world.sync()
    _add_rival(world, "urgency")

    result = _sync_rival(world)

    assert result.outcome is Outcome.ADOPTED
    assert world.incident_of(case)["urgency"] == "1"


@pytest.mark.parametrize("first", [World.recipe, "contact_to_incident"])
def test_field_that_two_recipes_fill_in_the_same_moment_belongs_to_one(world: World, first: str) -> None:
    """Neither saw the other's write; whichever came first, the pair whose name comes first keeps the field, and goes on."""
    incident = world.servicenow.insert(
        "incident", short_description="Broken printer", urgency="3", caller_id=world.users(CALLER)[0]["sys_id"]
    )
    case = world.add_case("Broken printer")
    contact = world.add_contact(None, lastname="Broken printer", jobtitle="1", modifiedon=YESTERDAY)
    (world._folder / "contact_to_incident.yaml").write_text(RIVAL.replace('FIELD: {value: "1"}', "urgency: jobtitle"))
    world.app = world.build_app(world.settings)
    second = next(name for name in world.app.recipes if name != first)
    _before_write(world, lambda: _run(world, second, "yesterday"))

    _run(world, first, "yesterday")
    world.pump.run()
    world.edit_case(case, prioritycode=3)
    world.dynamics.update("contact", contact, jobtitle="3")
    world.advance(60)
    loser, winner = (_run(world, name, "today") for name in (World.recipe, "contact_to_incident"))

    assert (loser[case].reason, winner[contact].outcome) == ("owned_by_other_recipe", Outcome.UPDATED)
    assert world.servicenow.tables["incident"][incident]["urgency"] == "3"


def _before_write(world: World, happen: Callable[[], object]) -> None:
    """Let something happen once, right before the next change of an incident leaves."""
    carry, waiting = world.wire.carry, [happen]

    def carry_later(said: str, call: Callable[[], object]) -> object:
        if said.startswith("servicenow PATCH") and waiting:
            waiting.pop()()
        return carry(said, call)

    world.wire.carry = carry_later  # type: ignore[method-assign]


def _run(world: World, recipe: str, window: str) -> dict[str, ResultRow]:
    """Run one of the recipes and return its results."""
    before, world.recipe = world.recipe, recipe
    run = world.start(window)
    world.recipe = before
    world.pump.run(for_s=30)
    return world.results(run)
