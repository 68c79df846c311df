"""The demo's second part: a handful of contacts is saved in Dynamics 365, and Marketo follows by webhooks alone.

Nothing here starts anything in the app: the simulated Dynamics 365 calls it as Dataverse does.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from sandbox.oracle_contacts import compare, take_snapshot
from sandbox.start import WEBHOOKS, Sandbox

WAIT_S = 120.0  # for all events of a step to be worked: only a machine that is short of breath needs seconds
LOOK_S = 0.1
Json = dict[str, Any]
Get = Callable[[str], Awaitable[Json]]


@dataclasses.dataclass(frozen=True)
class Saved:
    """A record that the demo saved, and what has to become of it."""

    what: str
    recipe: str
    key: str
    expected: str  # outcome, or the reason of one that failed or was skipped; several: any of them


@dataclasses.dataclass(frozen=True)
class Told:
    """What the app says became of it."""

    saved: Saved
    outcome: str
    reason: str
    message: str

    @property
    def as_expected(self) -> bool:
        """Whether it came out as it should."""
        return (self.reason or self.outcome) in self.saved.expected.split(" or ")


@dataclasses.dataclass(frozen=True)
class ContactsReport:
    """What the contacts came to."""

    told: list[Told]
    differences: list[str]  # from what is expected, in words
    seconds: float  # from the first save to the last result
    calls: int  # to Marketo


async def demonstrate_contacts(sandbox: Sandbox, get: Get) -> ContactsReport:
    """Save contacts, wait until the app has a result for each, and compare Marketo with the oracle."""
    before = take_snapshot(sandbox.dynamics, sandbox.marketo)
    seen, started_s = len(sandbox.marketo.journal), time.monotonic()
    told: list[Told] = []
    for step in (_create, _edit):  # the edits wait until the contacts are there
        known = {event for event, _, _ in await _results(sandbox, get)}
        saved = await asyncio.to_thread(step, sandbox)
        told += await await_results(sandbox, get, saved, known)
    seconds = time.monotonic() - started_s
    after = take_snapshot(sandbox.dynamics, sandbox.marketo)
    contacts = {each.saved.key for each in told if each.saved.recipe == WEBHOOKS["contact"]}
    accounts = {each.saved.key for each in told if each.saved.recipe == WEBHOOKS["account"]}
    differences = [_wrong(each) for each in told if not each.as_expected]
    differences += compare(before, after, contacts, accounts)
    calls = [entry for entry in sandbox.marketo.journal[seen:] if entry.path.startswith("/rest/")]
    return ContactsReport(told, differences, seconds, len(calls))


def _create(sandbox: Sandbox) -> list[Saved]:
    dynamics = sandbox.dynamics
    account = dynamics.insert(
        "account", name="Alpine Ski House", address1_city="Innsbruck", numberofemployees=42, websiteurl="https://alpine.example"
    )  # fmt: skip
    people = {
        "a new contact with its account": (_person("Mona", "mona@alpine.example", account), "created"),
        "one whose email will change": (_person("Nils", "nils@alpine.example", account), "created"),
        "one whose email another contact has": (_person("Olga", "olga@alpine.example", account), "created"),
        "one without email": (_person("Pavel", None, account), "contact_without_email"),
        "an inactive one": (_person("Rosa", "rosa@alpine.example", account) | {"statecode": 1}, "contact_not_active"),
    }
    saved = [Saved("the new account", WEBHOOKS["account"], account, "created or unchanged")]
    for what, (columns, expected) in people.items():
        saved.append(Saved(what, WEBHOOKS["contact"], dynamics.insert("contact", **columns), expected))
    return saved


def _edit(sandbox: Sandbox) -> list[Saved]:
    dynamics, contact = sandbox.dynamics, WEBHOOKS["contact"]
    row = {each["firstname"]: each for each in dynamics.rows("contact") if each["lastname"] == "Demo"}
    known, doubled = sandbox.known["lead"][0], sandbox.known["doubled"][0]
    dynamics.update("contact", row["Nils"]["contactid"], emailaddress1="nils.berg@alpine.example", jobtitle="Guide")
    second = dynamics.insert("contact", **_person("Olga the second", "OLGA@alpine.example", None))
    dynamics.update("contact", known, jobtitle="Head of buying", description="<p>Prefers calls &amp; coffee</p>")
    dynamics.update("contact", doubled, jobtitle="Reads every newsletter")
    dynamics.update("account", row["Mona"]["_parentcustomerid_value"], name="Alpine Ski House AG")
    return [
        Saved("its email changed", contact, row["Nils"]["contactid"], "updated"),
        Saved("a second one with an email", contact, second, "email_shared"),
        Saved("an edited one whose lead was there", contact, known, "adopted"),
        Saved("an edited one whom Marketo has twice", contact, doubled, "ambiguous_match"),
        Saved(
            "the account was renamed",
            WEBHOOKS["account"],
            row["Mona"]["_parentcustomerid_value"],
            "updated or unchanged",
        ),
    ]


def _person(first_name: str, email: str | None, account: str | None) -> Json:
    named = {"firstname": first_name, "lastname": "Demo", "emailaddress1": email, "jobtitle": "Buyer"}
    return named | {"parentcustomerid_account": account}


async def await_results(sandbox: Sandbox, get: Get, saved: list[Saved], known: Collection[str]) -> list[Told]:
    """Wait for the result of each record's new event; what has none in time is told as missing.

    Which events are new is told by their keys: workers' clocks differ by a second, so times of different workers do not
    say which of a record's results came last.
    """
    ends_at_s = time.monotonic() + WAIT_S
    while True:
        results = await _results(sandbox, get)
        new = {(recipe, result["record_key"]): result for event, recipe, result in results if event not in known}
        if all((each.recipe, each.key) in new for each in saved) or time.monotonic() > ends_at_s:
            return [_told(each, new.get((each.recipe, each.key), {})) for each in saved]
        await asyncio.sleep(LOOK_S)


async def _results(sandbox: Sandbox, get: Get) -> list[tuple[str, str, Json]]:
    """Return the results of today's events, each with its event's key and recipe."""
    found = []
    for recipe in WEBHOOKS.values():
        runs = (await get(f"{sandbox.app_url}/api/runs?recipe={recipe}"))["runs"]
        for run in (each for each in runs if each["window"] == "events"):
            results = (await get(run["links"]["results"]))["results"]
            found += [(str(result["key"]), recipe, result) for result in results]
    return found


def _told(saved: Saved, result: Json) -> Told:
    names = ("outcome", "reason", "message")
    return Told(saved, *(str(result.get(name) or "") for name in names))


def _wrong(told: Told) -> str:
    got = told.reason or told.outcome or "without a result"
    return f"{told.saved.what.capitalize()} is {got} and should be {told.saved.expected}."


def describe_contacts(report: ContactsReport) -> str:
    """Return what the demo says of the contacts."""
    lines = [
        f"Leads    {len(report.told)} contacts and accounts were saved in Dynamics 365, which called the app for each:"
    ]
    for each in report.told:
        reason = f"{each.reason}: {each.message}" if each.reason else ""
        lines.append(f"  {each.saved.what:<37} {each.outcome or 'no result'}  {reason}".rstrip())
    lines.append(
        f"Time     {report.seconds:.1f} s from the first save to the last result, {report.calls} Marketo calls"
    )
    if not report.differences:
        return "\n".join(
            [*lines, "Oracle   each lead, company and stranger is exactly as it should be, field by field"]
        )
    lines.append(f"Oracle   {len(report.differences)} DIFFERENCES from what should be there:")
    return "\n".join([*lines, *(f"  {each}" for each in report.differences[:20])])
