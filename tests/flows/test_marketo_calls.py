"""What a backfill of contacts costs Marketo, counted in the simulator's journal over 900 contacts: counts, never times."""

from datetime import timedelta

from tests.flows.contacts import ACCOUNTS, CONTACTS, ContactWorld
from tests.flows.world import NOW

COMPANIES, CONTACTS_IN_ALL = 90, 900
PER_CALL = 300  # records that Marketo takes at once


def _backfill(world: ContactWorld, recipe: str) -> tuple[dict[str, int], dict[str, int]]:
    """Move everything, and return what became of it and which calls of Marketo it took; the verification follows after."""
    world.forget_journal()
    world.recipe = recipe
    run = world.start("all")
    world.pump.run(until=lambda: world.run_row(run).state.ended)
    calls = world.marketo_calls()
    world.pump.run()
    return world.run_row(run).counts, calls


def test_backfill_fills_every_call(contact_world: ContactWorld) -> None:
    """Accounts first, then their contacts: every call is as full as Marketo takes it, and no company is asked for."""
    world = contact_world
    long_ago = NOW - timedelta(days=700)
    accounts = [world.account(f"Company {number}", modifiedon=long_ago) for number in range(COMPANIES)]
    for number in range(CONTACTS_IN_ALL):
        changed = long_ago + timedelta(seconds=number)
        world.contact(f"c{number}@customer.example", accounts[number * 7 % COMPANIES], modifiedon=changed)

    companies = _backfill(world, ACCOUNTS)
    leads = _backfill(world, CONTACTS)

    calls = CONTACTS_IN_ALL // PER_CALL
    assert companies == ({"created": COMPANIES}, {"write companies": 1})
    assert leads == ({"created": CONTACTS_IN_ALL}, {"search leads": calls, "write leads": calls})


def test_companies_that_were_there_cost_a_search_and_a_second_write(contact_world: ContactWorld) -> None:
    """What is refused as existing is looked up together, and only what differs is written."""
    world = contact_world
    accounts = [world.account(f"Company {number}", modifiedon=NOW - timedelta(days=700)) for number in range(COMPANIES)]
    for account in accounts[:60]:
        world.marketo.insert("companies", externalCompanyId=account, company="Was there")

    companies = _backfill(world, ACCOUNTS)

    assert companies == ({"created": 30, "adopted": 60}, {"write companies": 2, "search companies": 1})
