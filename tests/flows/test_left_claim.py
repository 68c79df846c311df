"""A claim that outlived its worker: it says that a create may have left, and holds nobody up."""

from shared.state.rows import Outcome
from tests.flows.contacts import ContactWorld

EMAIL = "ana@customer.example"


def test_claim_left_by_a_record_that_failed_is_taken_over(contact_world: ContactWorld) -> None:
    """The record whose worker died fails for another reason; mended, its create is looked for first, and made once."""
    world = contact_world
    world.send("contact", world.contact("known@customer.example"), "Create")
    second = world.contact(EMAIL)
    event = world.hook("contact", second, "Create")
    world.wire.kill_on("storage PUT links", after=True)
    world.pump.lease_left_s = 60
    world.pump.run(until=lambda: world.pump.kills > 0)
    world.send("contact", world.contact(EMAIL), "Create")

    world.pump.run()
    link = world.link("contact", second)
    world.edit("contact", second, emailaddress1="other@customer.example")
    again = world.send("contact", second)

    assert (world.event(event).outcome, world.event(event).reason) == (Outcome.FAILED, "email_shared")
    assert link is not None
    assert link.claim is not None
    assert link.claim.create_by is not None
    assert again.outcome is Outcome.CREATED
    assert [len(world.leads(email=email)) for email in (EMAIL, "other@customer.example")] == [1, 1]
    assert (mended := world.link("contact", second)) is not None
    assert mended.claim is None
