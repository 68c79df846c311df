"""Claims between records: a doubt about another record's create is never lost, and old news about a claim is not believed."""

from datetime import timedelta

from shared.state.rows import Claim, IdentityRow, Outcome
from sync import links
from tests.flows.contacts import ContactWorld
from tests.flows.world import LEASE_S, World

EMAIL = "ana@customer.example"


def _doubtful_value(world: ContactWorld, contact: str, *, until_s: float, create_by_s: float) -> IdentityRow:
    """Store the claim of a message that died with the create of a contact's lead on the way."""
    flow = world.app.flow(world.recipe)
    claim = Claim(
        owner="dead",
        until=world.now() + timedelta(seconds=until_s),
        create_by=world.now() + timedelta(seconds=create_by_s),
    )
    row = links.identity(flow, flow.target_name, ("email",), [EMAIL], contact)
    return world.view.insert(row.model_copy(update={"claim": claim}))


def test_value_whose_create_is_in_doubt_is_looked_up(contact_world: ContactWorld) -> None:
    """Another contact's lead may have arrived after this one's page was matched: it is looked up, not made again."""
    world = contact_world
    dead, contact = world.contact("x@customer.example", statecode=1), world.contact(EMAIL)
    world.advance(60)
    _doubtful_value(world, dead, until_s=LEASE_S / 2, create_by_s=10)
    run = world.start("today", mail_to=())
    world.pump.run(until=lambda: any(each.queue == "items" for each in world.pump.waiting))
    world.marketo.insert("leads", email=EMAIL)
    world.forget_journal()

    world.pump.run()

    assert len(world.leads(email=EMAIL)) == 1
    assert world.results(run)[contact].outcome is Outcome.ADOPTED
    assert world.marketo_calls() == {"search leads": 1, "write leads": 1}


def test_wait_for_a_doubtful_value_keeps_the_doubt(contact_world: ContactWorld) -> None:
    """Whoever takes such a claim over and has to wait leaves the doubt where it was."""
    world = contact_world
    dead, contact = world.contact("x@customer.example"), world.contact(EMAIL)
    row = _doubtful_value(world, dead, until_s=-1, create_by_s=20)

    world.hook("contact", contact, "Create")
    world.pump.run(for_s=1)

    stored = world.view.get(IdentityRow, row.partition_key, row.row_key)
    assert stored is not None
    assert stored.claim is not None
    assert row.claim is not None
    assert stored.claim.create_by == row.claim.create_by
    assert world.leads() == []


def test_loser_of_a_match_looks_again_at_once(world: World) -> None:
    """Two cases match one incident made by hand: the second finds it taken, forgets what its page found, and creates."""
    world.servicenow.insert("incident", short_description="Twice", caller_id="")
    cases = [world.add_case("Twice") for _ in range(2)]

    run = world.sync()

    assert sorted(result.outcome for result in world.results(run).values()) == [Outcome.ADOPTED, Outcome.CREATED]
    assert sorted(world.results(run)) == sorted(cases)
    deliveries = [each for each in world.pump.done if each.queue == "items"]
    assert len(deliveries) <= 4


def test_value_of_a_record_that_moved_on_is_free_again(contact_world: ContactWorld) -> None:
    """A worker died before it forgot a contact's old email: whoever gets that email next is not refused for it."""
    world = contact_world
    first = world.contact(EMAIL)
    world.send("contact", first, "Create")
    world.edit("contact", first, emailaddress1="moved@customer.example")
    world.advance(60)
    world.wire.kill_on("storage DELETE identities", after=False)
    world.send("contact", first)
    assert world.pump.kills == 1

    second = world.send("contact", world.contact(EMAIL), "Create")

    assert (second.outcome, second.reason) == (Outcome.CREATED, "")
    assert [len(world.leads(email=email)) for email in (EMAIL, "moved@customer.example")] == [1, 1]


def test_value_of_a_record_that_has_it_stays_taken(contact_world: ContactWorld) -> None:
    """A second contact with the same email fails by that name, also when the first one's lead was changed by a person."""
    world = contact_world
    world.send("contact", world.contact(EMAIL), "Create")
    (lead,) = world.leads(email=EMAIL)
    world.marketo.update("leads", lead["id"], email="by.hand@customer.example")
    world.advance(60)

    second = world.send("contact", world.contact(EMAIL), "Create")

    assert (second.outcome, second.reason) == (Outcome.FAILED, "email_shared")
