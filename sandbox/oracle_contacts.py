"""What Marketo must look like after contacts and accounts were synced, worked out a second time, by hand and by other means.

Nothing of the product is imported here, neither recipe nor mapping. `compare` takes the records of both systems before and
after and returns every difference as a sentence. In what order things arrived is not its business: where two contacts share
an address either may have been the first.
"""

import copy
import dataclasses
import html
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sandbox.dynamics365 import Dynamics365
from sandbox.marketo import Marketo

Record = dict[str, Any]

PERSON = {
    "firstName": "firstname", "lastName": "lastname", "phone": "telephone1", "fax": "fax", "mobilePhone": "mobilephone",
    "city": "address1_city", "state": "address1_stateorprovince", "country": "address1_country",
    "postalCode": "address1_postalcode", "title": "jobtitle",
}  # fmt: skip
FIRM = {
    "company": "name", "billingCity": "address1_city", "billingState": "address1_stateorprovince",
    "billingCountry": "address1_country", "billingPostalCode": "address1_postalcode", "mainPhone": "telephone1",
    "sicCode": "sic", "annualRevenue": "revenue", "numberOfEmployees": "numberofemployees", "website": "websiteurl",
}  # fmt: skip
STREET = ("address1_line1", "address1_line2", "address1_line3")
TEXT_CHARS = 2000
UNTOUCHED = {"updatedAt"}  # may differ although nothing was written to the record itself


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All records of both systems at one moment."""

    contacts: Mapping[str, Record]  # by id
    accounts: Mapping[str, Record]
    leads: Mapping[int, Record]
    companies: Mapping[int, Record]


def take_snapshot(dynamics: Dynamics365, marketo: Marketo) -> Snapshot:
    """Copy all contacts, accounts, leads and companies."""
    return Snapshot(
        {row["contactid"]: row for row in copy.deepcopy(dynamics.rows("contact"))},
        {row["accountid"]: row for row in copy.deepcopy(dynamics.rows("account"))},
        {row["id"]: row for row in copy.deepcopy(marketo.rows("leads"))},
        {row["id"]: row for row in copy.deepcopy(marketo.rows("companies"))},
    )


def explain(snapshot: Snapshot, contact_id: str) -> str:
    """Return why a contact has no lead of its own by itself; "" when it should have one, or shares one."""
    contact = snapshot.contacts[contact_id]
    if contact["statecode"] != 0:
        return "contact_not_active"
    if not _email(contact):
        return "contact_without_email"
    holders = [lead for lead in snapshot.leads.values() if _fold(lead["email"]) == _email(contact)]
    return "ambiguous_match" if len(holders) > 1 else ""


def compare(
    before: Snapshot,
    after: Snapshot,
    contacts: Collection[str],
    accounts: Collection[str] = (),
    spare: Iterable[str] = (),
) -> list[str]:
    """Return how Marketo differs from what it must be after these contacts and accounts were worked, to their last change.

    `before` is Marketo as it was when none of them was synced; the sources are read from `after`. Leads with one of the
    `spare` addresses may be there or not: of contacts that were active once, or had the address once.
    """
    judge = _Judge(before, after)
    judge.check_leads([each for each in contacts if each in after.contacts], {_fold(each) for each in spare})
    judge.check_companies(accounts)
    return judge.said


class _Judge:
    """Collects the differences."""

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self.before, self.after = before, after
        self.said: list[str] = []
        self.accounts: set[str] = set()  # whose company must be there
        self.tried: set[str] = set()  # whose company may be there: it comes before the lead, which may then fail
        self.former = _by_email(before.leads.values())
        self.now = _by_email(after.leads.values())

    # -- leads

    def check_leads(self, contacts: Collection[str], spare: set[str]) -> None:
        sharing: dict[str, list[Record]] = defaultdict(list)
        for contact_id in contacts:
            contact = self.after.contacts[contact_id]
            if contact["statecode"] == 0 and _email(contact):
                sharing[_email(contact)].append(contact)
                self.tried.add(contact["_parentcustomerid_value"])
        for email, sharers in sharing.items():
            if len(self.former[email]) < 2:
                self._check_lead(email, sharers)
        claimed = {email for email in sharing if len(self.former[email]) < 2}
        for number, lead in self.after.leads.items():
            if _fold(lead["email"]) in claimed | spare:
                continue
            if number not in self.before.leads:
                self.said.append(f"Lead {number} ({lead['email']}) is nobody's.")
            elif changed := _changed(
                self.before.leads[number], lead, set(FIRM) | {"billingStreet", "mktoCompanyNotes"}
            ):
                self.said.append(f"Lead {number} is a stranger's and was changed: {', '.join(changed)}.")
        for number in self.before.leads.keys() - self.after.leads.keys():
            self.said.append(f"Lead {number} is gone.")

    def _check_lead(self, email: str, sharers: list[Record]) -> None:
        found = self.now[email]
        names = " or ".join(contact["contactid"] for contact in sharers)
        if len(found) != 1:
            self.said.append(f"Contact {names} should have 1 lead and has {len(found)}.")
            return
        verdicts = [self._differences(found[0], contact) for contact in sharers]
        best = min(verdicts, key=len)
        owner = sharers[verdicts.index(best)]
        self.said += [f"Contact {owner['contactid']}: {each}" for each in best]
        if owner["_parentcustomerid_value"] in self.after.accounts:
            self.accounts.add(owner["_parentcustomerid_value"])

    def _differences(self, lead: Record, contact: Record) -> list[str]:
        former = self.former[_email(contact)][0] if self.former[_email(contact)] else {}
        wanted = {name: contact[column] for name, column in PERSON.items()}
        wanted |= {"address": _street(contact), "mktoPersonNotes": _text(contact["description"])}
        said = _field_differences(lead, wanted, former)
        if lead["email"] != _email(contact):
            said.append(f"email is {lead['email']!r} and should be {_email(contact)!r}.")
        if former and former["id"] != lead["id"]:
            said.append(f"lead {former['id']} was there and another one was made.")
        account = contact["_parentcustomerid_value"]
        if account in self.after.accounts and lead["externalCompanyId"] != account:
            said.append(f"externalCompanyId is {lead['externalCompanyId']!r} and should be {account!r}.")
        for flag in ("unsubscribed", "emailInvalid"):
            if bool(lead[flag]) != bool(former.get(flag)):
                said.append(f"{flag} was changed.")
        return said

    # -- companies

    def check_companies(self, worked: Collection[str]) -> None:
        active = {
            each for each in worked if each in self.after.accounts and self.after.accounts[each]["statecode"] == 0
        }
        wanted = self.accounts | {each for each in active if self.after.accounts[each]["name"]}
        former = {company["externalCompanyId"]: company for company in self.before.companies.values()}
        found: dict[str, list[Record]] = defaultdict(list)
        for company in self.after.companies.values():
            found[company["externalCompanyId"]].append(company)
        for account_id in sorted(wanted):
            account, companies = self.after.accounts[account_id], found[account_id]
            if len(companies) != 1:
                self.said.append(f"Account {account_id} should have 1 company and has {len(companies)}.")
            elif account["statecode"] == 0:
                differences = self._company_differences(companies[0], former)
                self.said += [f"Account {account_id}: {each}" for each in differences]
        for external_id, companies in found.items():
            if external_id in wanted or (
                external_id in self.tried and not self._company_differences(companies[0], former)
            ):
                continue
            if external_id not in former and external_id not in self.after.accounts:
                self.said.append(f"Company {companies[0]['id']} is nobody's.")
            elif external_id in former and external_id not in worked:
                for name in _changed(former[external_id], companies[0], set()):
                    self.said.append(f"Company {companies[0]['id']} was changed: {name}.")

    def _company_differences(self, company: Record, former: Mapping[str, Record]) -> list[str]:
        account = self.after.accounts[company["externalCompanyId"]]
        fields = {name: account[column] for name, column in FIRM.items()}
        fields |= {"billingStreet": _street(account), "mktoCompanyNotes": _text(account["description"])}
        return _field_differences(company, fields, former.get(company["externalCompanyId"], {}))


# -- small parts --------------------------------------------------------------------------------------------------------


def _field_differences(found: Record, wanted: Mapping[str, Any], former: Record) -> list[str]:
    """Compare fields; an empty source leaves what the record had by itself, or clears what a sync had filled."""
    said = []
    for name, value in wanted.items():
        allowed = [value] if value not in (None, "") else [None, former.get(name)]
        if found.get(name) not in allowed:
            said.append(f"{name} is {found.get(name)!r} and should be {allowed[0]!r}.")
    return said


def _by_email(leads: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for lead in leads:
        found[_fold(lead["email"])].append(lead)
    return found


def _changed(old: Record, new: Record, besides: set[str]) -> list[str]:
    return [name for name in new if new[name] != old.get(name) and name not in UNTOUCHED | besides]


def _email(contact: Record) -> str:
    return _fold(contact["emailaddress1"])


def _fold(text: str | None) -> str:
    return (text or "").strip().lower()


def _street(row: Record) -> str | None:
    lines = (" ".join((row[name] or "").split()) for name in STREET)
    return "\n".join(line for line in lines if line) or None


def _text(marked_up: str | None) -> str | None:
    """Return a description as a reader sees it: paragraphs become lines, tags go, entities become their characters."""
    if not marked_up or "<" not in marked_up:
        return marked_up
    broken = re.sub(r"(?i)<br\s*/?>|</p>\s*<p[^>]*>", "\n", marked_up)
    return html.unescape(re.sub(r"<[^>]+>", "", broken)).strip()[:TEXT_CHARS] or None
