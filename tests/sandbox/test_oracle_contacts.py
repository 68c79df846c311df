"""The oracle of contacts: it finds nothing where all is right, and says in words what is wrong."""

import copy
from collections.abc import Callable

import pytest

from sandbox.dynamics365 import Dynamics365
from sandbox.marketo import Marketo
from sandbox.oracle_contacts import Snapshot, compare, explain, take_snapshot

EMAIL = "ana@customer.example"


def _synced() -> tuple[Snapshot, Snapshot, str, str]:
    """Return before and after of one contact with its account, written by hand as a sync should."""
    dynamics, marketo = Dynamics365(), Marketo()
    account = dynamics.insert("account", name="Fabrikam", address1_line1="Harbour 9", numberofemployees=12)
    contact = dynamics.insert(
        "contact", firstname="Ana", emailaddress1=EMAIL.upper(), description="<p>A &amp; B</p>", parentcustomerid_account=account
    )  # fmt: skip
    marketo.insert("leads", email="stranger@customer.example")
    before = take_snapshot(dynamics, marketo)
    marketo.insert(
        "companies", externalCompanyId=account, company="Fabrikam", billingStreet="Harbour 9", numberOfEmployees=12
    )
    marketo.insert("leads", email=EMAIL, firstName="Ana", mktoPersonNotes="A & B", externalCompanyId=account)
    return before, take_snapshot(dynamics, marketo), contact, account


def _lead(after: Snapshot) -> dict[str, object]:
    return next(lead for lead in after.leads.values() if lead["email"] == EMAIL)


def _stranger(after: Snapshot) -> dict[str, object]:
    return next(lead for lead in after.leads.values() if lead["email"] != EMAIL)


FAULTS: dict[str, tuple[Callable[[Snapshot], object], str]] = {
    "wrong field": (lambda after: _lead(after).update(firstName="Eve"), "firstName is 'Eve'"),
    "wrong company": (lambda after: _lead(after).update(externalCompanyId=None), "externalCompanyId is None"),
    "flag": (lambda after: _lead(after).update(unsubscribed=True), "unsubscribed was changed"),
    "lost lead": (lambda after: after.leads.pop(_lead(after)["id"]), "should have 1 lead and has 0"),
    "doubled lead": (lambda after: after.leads.update({1: _lead(after) | {"id": 1}}), "should have 1 lead and has 2"),
    "nobody's lead": (lambda after: after.leads.update({1: _stranger(after) | {"id": 1}}), "is nobody's"),
    "touched stranger": (lambda after: _stranger(after).update(city="Oslo"), "is a stranger's and was changed: city"),
    "lost stranger": (lambda after: after.leads.pop(_stranger(after)["id"]), "is gone"),
    "company field": (lambda after: next(iter(after.companies.values())).update(company="X"), "company is 'X'"),
    "lost company": (lambda after: after.companies.clear(), "should have 1 company and has 0"),
}


def test_oracle_is_content_with_what_is_right() -> None:
    """A lead and a company that are as they should be raise no word."""
    before, after, contact, account = _synced()

    assert compare(before, after, [contact], [account]) == []


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.values(), ids=FAULTS)
def test_oracle_notices(fault: Callable[[Snapshot], object], sentence: str) -> None:
    """Each way to get it wrong is said in words."""
    before, after, contact, account = _synced()
    after = copy.deepcopy(after)

    fault(after)

    assert any(sentence in said for said in compare(before, after, [contact], [account]))


def test_oracle_knows_why_a_contact_has_no_lead() -> None:
    """Inactive, without email, or ambiguous."""
    dynamics, marketo = Dynamics365(), Marketo()
    for _ in range(2):
        marketo.insert("leads", email=EMAIL)
    contacts = [
        dynamics.insert("contact", lastname="A", emailaddress1="a@customer.example", statecode=1),
        dynamics.insert("contact", lastname="B"),
        dynamics.insert("contact", lastname="C", emailaddress1=EMAIL),
        dynamics.insert("contact", lastname="D", emailaddress1="d@customer.example"),
    ]

    reasons = [explain(take_snapshot(dynamics, marketo), contact) for contact in contacts]

    assert reasons == ["contact_not_active", "contact_without_email", "ambiguous_match", ""]
