"""From a saved contact to its lead: the fields, the company before it, who fails and why, and what is never written."""

from typing import Any

import pytest

from shared.state.rows import Outcome
from tests.flows.contacts import ContactWorld

EMAIL = "ana@customer.example"
LEAD_FIELDS = {
    "email": EMAIL,
    "firstName": "Ana",
    "lastName": "Quill",
    "phone": "+49 30 1",
    "fax": "+49 30 2",
    "mobilePhone": "+49 170 3",
    "address": "Main Street 1\nBack door\nThird bell",
    "city": "Malmö",
    "state": "Skåne",
    "country": "Sweden",
    "postalCode": "211 20",
    "mktoPersonNotes": "Prefers calls & coffee",
    "title": "Buyer",
}
COMPANY_FIELDS = {
    "company": "Fabrikam, Inc.",
    "billingStreet": "Harbour 9\nGate 2",
    "billingCity": "Oslo",
    "billingState": "Viken",
    "billingCountry": "Norway",
    "billingPostalCode": "0150",
    "mainPhone": "+47 22 4",
    "sicCode": "7372",
    "mktoCompanyNotes": "Old customer",
    "annualRevenue": 1_250_000.5,
    "numberOfEmployees": 250,
    "website": "https://fabrikam.example",
}
CONTACT = {
    "firstname": "Ana", "lastname": "Quill", "telephone1": "+49 30 1", "fax": "+49 30 2", "mobilephone": "+49 170 3",
    "address1_line1": "Main Street 1", "address1_line2": "Back door", "address1_line3": "Third bell",
    "address1_city": "Malmö", "address1_stateorprovince": "Skåne", "address1_country": "Sweden",
    "address1_postalcode": "211 20", "description": "<p>Prefers calls &amp; coffee</p>", "jobtitle": "Buyer",
}  # fmt: skip
ACCOUNT = {
    "address1_line1": "Harbour 9", "address1_line2": "Gate 2", "address1_city": "Oslo",
    "address1_stateorprovince": "Viken", "address1_country": "Norway", "address1_postalcode": "0150",
    "telephone1": "+47 22 4", "sic": "7372", "description": "Old customer", "revenue": 1_250_000.5,
    "numberofemployees": 250, "websiteurl": "https://fabrikam.example",
}  # fmt: skip


def _fields(row: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in wanted}


def test_all_fields_of_contact_and_account_arrive(contact_world: ContactWorld) -> None:
    """All 13 contact fields stand on the lead, all 12 account fields on its company, which the lead belongs to."""
    world = contact_world
    account = world.account("Fabrikam, Inc.", **ACCOUNT)
    contact = world.contact("Ana@Customer.example", account, **CONTACT)

    result = world.send("contact", contact, "Create")

    lead = world.lead(EMAIL)
    assert result.outcome is Outcome.CREATED
    assert len(LEAD_FIELDS) == 13
    assert len(COMPANY_FIELDS) == 12
    assert _fields(lead, LEAD_FIELDS) == LEAD_FIELDS
    assert _fields(world.company(account), COMPANY_FIELDS) == COMPANY_FIELDS
    assert lead["externalCompanyId"] == account


def test_company_is_written_before_its_lead(contact_world: ContactWorld) -> None:
    """Marketo links a lead only to a company that is there."""
    world = contact_world
    contact = world.contact(EMAIL, world.account())

    world.send("contact", contact, "Create")

    writes = [entry.path for entry in world.marketo.requests("POST", r"^/rest/v1/(leads|companies)\.json$")]
    assert writes == ["/rest/v1/companies.json", "/rest/v1/leads.json"]


def test_contact_of_nobody_or_of_a_contact_has_no_company(contact_world: ContactWorld) -> None:
    """Only an account becomes a company."""
    world = contact_world
    boss = world.contact("boss@customer.example")
    alone, employee = world.contact(EMAIL), world.contact("employee@customer.example", parentcustomerid_contact=boss)

    results = [world.send("contact", contact, "Create") for contact in (alone, employee)]

    assert [result.outcome for result in results] == [Outcome.CREATED, Outcome.CREATED]
    assert world.companies() == []


def test_existing_lead_is_adopted(contact_world: ContactWorld) -> None:
    """A lead that was there with the email is taken over, whatever the email's case; its own values give way."""
    world = contact_world
    number = world.marketo.insert("leads", email="ANA@customer.example", firstName="Anna", city="Lund")
    contact = world.contact(EMAIL, lastname="Quill")

    result = world.send("contact", contact, "Create")

    assert result.outcome is Outcome.ADOPTED
    [lead] = world.leads()
    assert (lead["id"], lead["firstName"], lead["lastName"], lead["city"]) == (number, "Ana", "Quill", "Lund")


def test_existing_company_is_adopted(contact_world: ContactWorld) -> None:
    """A company that carries the account's id is the account's."""
    world = contact_world
    account = world.account("Fabrikam")
    number = world.marketo.insert("companies", externalCompanyId=account, company="Old name", billingCity="Oslo")

    world.send("contact", world.contact(EMAIL, account), "Create")

    company = world.company(account)
    assert (company["id"], company["company"], company["billingCity"]) == (number, "Fabrikam", "Oslo")


def test_change_writes_only_what_changed(contact_world: ContactWorld) -> None:
    """An update writes the field that changed; what a person changed in Marketo meanwhile stays."""
    world = contact_world
    contact = world.contact(EMAIL, world.account(), jobtitle="Buyer")
    world.send("contact", contact, "Create")
    world.marketo.update("leads", world.lead(EMAIL)["id"], city="Lund", firstName="Anna")
    world.forget_journal()

    world.edit("contact", contact, jobtitle="Head of buying")
    result = world.send("contact", contact)

    lead = world.lead(EMAIL)
    assert result.outcome is Outcome.UPDATED
    assert (lead["title"], lead["firstName"], lead["city"]) == ("Head of buying", "Anna", "Lund")
    assert world.marketo_calls() == {"search leads": 1, "write leads": 1}


def test_emptied_field_is_emptied(contact_world: ContactWorld) -> None:
    """What we once filled is cleared with its source; what Marketo has by itself is not."""
    world = contact_world
    contact = world.contact(EMAIL, jobtitle="Buyer", fax=None)
    world.send("contact", contact, "Create")
    world.marketo.update("leads", world.lead(EMAIL)["id"], fax="+1")

    world.edit("contact", contact, jobtitle=None)
    world.send("contact", contact)

    lead = world.lead(EMAIL)
    assert (lead["title"], lead["fax"]) == (None, "+1")


def test_unchanged_contact_costs_no_marketo_call(contact_world: ContactWorld) -> None:
    """An event without news asks Marketo nothing."""
    world = contact_world
    contact = world.contact(EMAIL, world.account())
    world.send("contact", contact, "Create")
    world.forget_journal()

    result = world.send("contact", contact)

    assert result.outcome is Outcome.UNCHANGED
    assert world.marketo_calls() == {}
    assert world.reads_of("contacts") == 1


# -- who fails, and why -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("email", [None, "  "], ids=["empty", "blank"])
def test_contact_without_email_fails(contact_world: ContactWorld, email: str | None) -> None:
    """A contact without email has no lead: `contact_without_email`, and Marketo is not asked."""
    world = contact_world

    result = world.send("contact", world.contact(email, world.account()), "Create")

    assert (result.outcome, result.reason) == (Outcome.FAILED, "contact_without_email")
    assert world.marketo_calls() == {}
    assert world.open_keys() == [result.record_key]


def test_shared_email_fails_the_second_and_names_the_first(contact_world: ContactWorld) -> None:
    """Two contacts with one address: the first has the lead, the second is told whose it is."""
    world = contact_world
    first, second = world.contact(EMAIL), world.contact(EMAIL.upper())
    world.send("contact", first, "Create")

    result = world.send("contact", second, "Create")

    assert (result.outcome, result.reason) == (Outcome.FAILED, "email_shared")
    assert first in result.message
    assert len(world.leads()) == 1


def test_shared_email_arriving_together(contact_world: ContactWorld) -> None:
    """When both wait together one is first, the other fails; there is one lead."""
    world = contact_world
    contacts = [world.contact(EMAIL), world.contact(EMAIL)]

    ids = [world.hook("contact", contact, "Create") for contact in contacts]
    world.pump.run()

    results = [world.event(event_id) for event_id in ids]
    assert sorted(result.outcome for result in results) == [Outcome.CREATED, Outcome.FAILED]
    failed = next(result for result in results if result.outcome is Outcome.FAILED)
    assert failed.reason == "email_shared"
    assert len(world.leads()) == 1


def test_second_contact_gets_the_lead_when_the_first_gives_the_email_up(contact_world: ContactWorld) -> None:
    """A shared address is mended by changing one of the two; the next sweep takes the failed one along."""
    world = contact_world
    first, second = world.contact(EMAIL), world.contact(EMAIL)
    world.send("contact", first, "Create")
    world.send("contact", second, "Create")

    world.edit("contact", first, emailaddress1="own@customer.example")
    moved = world.send("contact", first)
    world.advance(60)
    run = world.sweep()

    assert moved.outcome is Outcome.UPDATED
    assert world.results(run)[second].outcome is Outcome.CREATED
    assert {lead["email"] for lead in world.leads()} == {EMAIL, "own@customer.example"}
    assert world.open_keys() == []


def test_several_leads_with_the_email_are_ambiguous(contact_world: ContactWorld) -> None:
    """Where Marketo has the email twice nobody guesses, and nothing is written."""
    world = contact_world
    for _ in range(2):
        world.marketo.insert("leads", email=EMAIL)

    result = world.send("contact", world.contact(EMAIL), "Create")

    assert (result.outcome, result.reason) == (Outcome.FAILED, "ambiguous_match")
    assert world.marketo_calls() == {"search leads": 1}


def test_changed_email_moves_the_lead(contact_world: ContactWorld) -> None:
    """The link comes before the search: the lead keeps its id and gets the new email."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.send("contact", contact, "Create")
    number = world.lead(EMAIL)["id"]

    world.edit("contact", contact, emailaddress1="ana.quill@customer.example")
    result = world.send("contact", contact)

    assert result.outcome is Outcome.UPDATED
    [lead] = world.leads()
    assert (lead["id"], lead["email"]) == (number, "ana.quill@customer.example")


def test_changed_email_that_another_lead_has_is_ambiguous(contact_world: ContactWorld) -> None:
    """Two leads are never given one email: the move fails and both stay as they are."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.send("contact", contact, "Create")
    world.marketo.insert("leads", email="taken@customer.example")

    world.edit("contact", contact, emailaddress1="taken@customer.example")
    result = world.send("contact", contact)

    assert (result.outcome, result.reason) == (Outcome.FAILED, "ambiguous_match")
    assert sorted(lead["email"] for lead in world.leads()) == [EMAIL, "taken@customer.example"]


def test_two_contacts_swap_their_emails(contact_world: ContactWorld) -> None:
    """A swap cannot be done without an email in between: both are refused, and nothing is mixed up."""
    world = contact_world
    one, two = world.contact("one@customer.example"), world.contact("two@customer.example")
    for contact in (one, two):
        world.send("contact", contact, "Create")
    before = {lead["id"]: lead["email"] for lead in world.leads()}

    world.edit("contact", one, emailaddress1="two@customer.example")
    world.edit("contact", two, emailaddress1="one@customer.example")
    ids = [world.hook("contact", contact) for contact in (one, two)]
    world.pump.run()

    assert [world.event(event_id).outcome for event_id in ids] == [Outcome.FAILED] * 2
    assert {lead["id"]: lead["email"] for lead in world.leads()} == before


def test_inactive_contact_never_creates(contact_world: ContactWorld) -> None:
    """An inactive contact makes neither lead nor company."""
    world = contact_world

    result = world.send("contact", world.contact(EMAIL, world.account(), statecode=1), "Create")

    assert (result.outcome, result.reason) == (Outcome.SKIPPED, "contact_not_active")
    assert world.marketo_calls() == {}
    assert (world.leads(), world.companies()) == ([], [])


def test_person_who_unsubscribed_stays_so(contact_world: ContactWorld) -> None:
    """`unsubscribed` and `emailInvalid` are the person's and Marketo's own: no request names them."""
    world = contact_world
    contact = world.contact(EMAIL, world.account())
    world.marketo.insert("leads", email=EMAIL, unsubscribed=True, emailInvalid=True)

    world.send("contact", contact, "Create")
    world.edit("contact", contact, jobtitle="Buyer")
    world.send("contact", contact)

    lead = world.lead(EMAIL)
    assert (lead["title"], lead["unsubscribed"], lead["emailInvalid"]) == ("Buyer", True, True)
    bodies = [entry.body for entry in world.marketo.requests("POST", "/rest/")]
    assert not [body for body in bodies if "unsubscribed" in body or "emailInvalid" in body]


# -- accounts -----------------------------------------------------------------------------------------------------------


def test_own_change_of_the_account_reaches_its_company(contact_world: ContactWorld) -> None:
    """An account's event changes its company, and so what all its leads show."""
    world = contact_world
    account = world.account("Fabrikam")
    world.send("contact", world.contact(EMAIL, account), "Create")

    world.edit("account", account, name="Fabrikam Group", numberofemployees=12)
    result = world.send("account", account)

    assert result.outcome is Outcome.UPDATED
    assert world.company(account)["company"] == "Fabrikam Group"
    assert (world.lead(EMAIL)["company"], world.lead(EMAIL)["numberOfEmployees"]) == ("Fabrikam Group", 12)


def test_contact_and_account_created_together_make_one_company(contact_world: ContactWorld) -> None:
    """Whichever recipe comes first makes the company, the other one finds it."""
    world = contact_world
    account = world.account()
    contacts = [world.contact(f"{number}@customer.example", account) for number in range(3)]

    world.hook("account", account, "Create")
    for contact in contacts:
        world.hook("contact", contact, "Create")
    world.pump.run()

    assert len(world.companies()) == 1
    assert {lead["externalCompanyId"] for lead in world.leads()} == {account}
    assert world.counted([*world.events().values()]) == {"created": 3}


def test_contact_moves_to_another_company(contact_world: ContactWorld) -> None:
    """A contact whose account changed belongs to the other company, which is made first."""
    world = contact_world
    old, new = world.account("Fabrikam"), world.account("Contoso")
    contact = world.contact(EMAIL, old)
    world.send("contact", contact, "Create")

    world.edit("contact", contact, parentcustomerid_account=new)
    result = world.send("contact", contact)

    assert result.outcome is Outcome.UPDATED
    assert world.lead(EMAIL)["company"] == "Contoso"
    assert {company["externalCompanyId"] for company in world.companies()} == {old, new}


def test_account_without_a_name_fails(contact_world: ContactWorld) -> None:
    """A company has a name."""
    result = contact_world.send("account", contact_world.account(None), "Create")

    assert (result.outcome, result.reason) == (Outcome.FAILED, "account_without_name")


# -- Delete ---------------------------------------------------------------------------------------------------------------


def test_deleted_contact_leaves_its_lead(contact_world: ContactWorld) -> None:
    """`gone: ignore`: the lead of a deleted contact stays as it is, and the event says so."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.send("contact", contact, "Create")

    world.dynamics.delete("contact", contact)
    result = world.send("contact", contact, "Delete")

    assert (result.outcome, result.reason) == (Outcome.SKIPPED, "left_scope")
    assert world.lead(EMAIL)["firstName"] == "Ana"


def test_deactivated_contact_leaves_its_lead(contact_world: ContactWorld) -> None:
    """The same for one that is only switched off; switched on again it is kept in step as before."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.send("contact", contact, "Create")

    world.edit("contact", contact, statecode=1, jobtitle="Buyer")
    off = world.send("contact", contact)
    title_when_off = world.lead(EMAIL)["title"]
    world.edit("contact", contact, statecode=0)
    on = world.send("contact", contact)

    assert (off.outcome, off.reason, title_when_off) == (Outcome.SKIPPED, "left_scope", None)
    assert (on.outcome, world.lead(EMAIL)["title"]) == (Outcome.UPDATED, "Buyer")


def test_deleted_contact_can_be_marked(contact_world: ContactWorld) -> None:
    """Where `gone` names fields they are written once the contact is deleted."""
    world = contact_world
    world.change_recipe("gone: ignore", 'gone: {mktoPersonNotes: "Deleted in Dynamics 365"}')
    contact = world.contact(EMAIL)
    world.send("contact", contact, "Create")

    world.dynamics.delete("contact", contact)
    result = world.send("contact", contact, "Delete")
    again = world.send("contact", contact, "Delete")

    assert result.outcome is Outcome.UPDATED
    assert again.outcome is Outcome.UNCHANGED
    assert world.lead(EMAIL)["mktoPersonNotes"] == "Deleted in Dynamics 365"


def test_deletion_of_an_unknown_contact_is_skipped(contact_world: ContactWorld) -> None:
    """A contact that never had a lead leaves none."""
    result = contact_world.send("contact", "c0000000-0000-4000-8000-0000000000c1", "Delete")

    assert (result.outcome, result.reason) == (Outcome.SKIPPED, "contact_not_active")
    assert contact_world.marketo_calls() == {}
