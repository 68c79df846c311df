"""Companies that no link knows are not looked up before they are made: Marketo refuses to make one that is there.

Whatever was there before is found then, and treated as if it had been looked up at once.
"""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from sandbox.simulator import FaultKind
from shared.state.rows import Outcome
from tests.flows.contacts import ACCOUNTS, ContactWorld
from tests.flows.test_contact_to_lead_events import firsts_and_lasts
from tests.flows.test_lost_answers import AFTER_EFFECT

COMPANIES = r"^/rest/v1/companies\.json"
EARLIER_S = 3600.0  # before the run


def _accounts(world: ContactWorld) -> tuple[str, str, str]:
    """Add an account that is new to Marketo, one whose company differs, and one whose company is just as it should be."""
    new, differs, same = (world.account(name) for name in ("New", "Known", "Same"))
    world.marketo.insert("companies", externalCompanyId=differs, company="Old name", billingCity="Oslo")
    world.marketo.insert("companies", externalCompanyId=same, company="Same")
    world.clock.advance(EARLIER_S)
    return new, differs, same


def _told(world: ContactWorld, window: str = "all", **facts: Any) -> dict[str, str]:
    results = world.results(world.sync_recipe(ACCOUNTS, window, **facts))
    return {key: result.reason or str(result.outcome) for key, result in results.items()}


@pytest.mark.parametrize("lane", ["all", "last_days:3"])
def test_companies_that_were_there_are_adopted(contact_world: ContactWorld, lane: str) -> None:
    """They are told from new ones and keep their own values; one that holds everything already is not written."""
    world = contact_world
    new, differs, same = _accounts(world)

    told = _told(world, lane)

    assert told == {new: "created", differs: "adopted", same: "adopted"}
    assert world.company(differs)["company"] == "Known"
    assert world.company(differs)["billingCity"] == "Oslo"
    assert world.company(same)["updatedAt"] < world.company(new)["updatedAt"]
    links = [world.link("account", account) for account in (new, differs, same)]
    assert [link and (link.other_key, link.claim) for link in links] == [(new, None), (differs, None), (same, None)]


def test_value_that_was_there_is_not_cleared_with_its_source(contact_world: ContactWorld) -> None:
    """A field that the company held by itself stays when the account's is emptied."""
    world = contact_world
    account = world.account("Fabrikam", address1_city="Oslo")
    world.marketo.insert("companies", externalCompanyId=account, company="Old name", billingCity="Oslo")
    world.send("account", account, "Create")

    world.edit("account", account, address1_city=None)
    world.send("account", account)

    assert world.company(account)["billingCity"] == "Oslo"


def test_two_companies_of_one_account_are_ambiguous(contact_world: ContactWorld) -> None:
    """Nobody guesses between them, nothing is written, and no claim is left."""
    world = contact_world
    account = world.account("Fabrikam")
    for name in ("one", "two"):
        world.marketo.insert("companies", externalCompanyId=account, company=name)

    result = world.send("account", account, "Create")

    assert (result.outcome, result.reason) == (Outcome.FAILED, "ambiguous_match")
    assert [row["company"] for row in world.companies()] == ["one", "two"]
    assert world.link("account", account) is None


def test_preview_asks_for_companies(contact_world: ContactWorld) -> None:
    """Who writes nothing learns of no refusal: a preview looks companies up, and says which would be made."""
    world = contact_world
    new, differs, same = _accounts(world)
    world.forget_journal()

    told = _told(world, preview=True)

    assert told == {new: "created", differs: "adopted", same: "adopted"}
    assert world.marketo_calls() == {"search companies": 1}


@pytest.mark.parametrize("fault", AFTER_EFFECT)
@pytest.mark.parametrize("skip", [0, 1], ids=["create", "change"])
def test_answers_about_companies_that_are_lost(contact_world: ContactWorld, fault: dict[str, Any], skip: int) -> None:
    """Whichever write has no answer, every account has one company, and is told truly whether that was there before."""
    world = contact_world
    new, differs, same = _accounts(world)
    world.marketo.add_fault(**fault, method="POST", path=COMPANIES, skip=skip)

    told = _told(world)

    assert told == {new: "created", differs: "adopted", same: "adopted"}
    assert [world.company(account)["company"] for account in (new, differs, same)] == ["New", "Known", "Same"]
    assert world.company(differs)["billingCity"] == "Oslo"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_worker_that_dies_among_companies(contact_world: ContactWorld, after: bool) -> None:
    """The same at whichever kind of call the worker dies, at its first and at its last."""
    world = contact_world
    expected, wrong = {"created": 1, "adopted": 2}, []
    labels = _work_events(world, _accounts(world))[1]
    for number in firsts_and_lasts(labels):
        accounts = _accounts(world)
        world.wire.kill_at(number, after=after)
        told, _ = _work_events(world, accounts)
        world.wire.kill_at(-1, after=False)
        names = [[row["company"] for row in world.companies(externalCompanyId=account)] for account in accounts]
        if (told, names) != (expected, [["New"], ["Known"], ["Same"]]):
            wrong.append(f"{labels[number]}: {told}, {names}")

    assert wrong == [], "\n".join(wrong)


def _work_events(world: ContactWorld, accounts: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Work events of accounts that wait together; return what they came to, and the calls that it took."""
    ids = [world.hook("account", account, "Create") for account in accounts]
    world.wire.calls = []
    world.pump.run()
    events = world.events(ACCOUNTS)
    return world.counted([events[event_id] for event_id in ids if event_id in events]), list(world.wire.calls)


def test_company_that_is_said_to_exist_and_is_not_shown_fails(contact_world: ContactWorld) -> None:
    """A refusal without a record behind it is tried again a few times, then told."""
    world = contact_world
    account = world.account("Fabrikam")
    taken = {"seq": 0, "status": "skipped", "reasons": [{"code": "1017", "message": "Object already exists"}]}
    body = json.dumps({"requestId": "a#1", "success": True, "result": [taken]})
    world.marketo.add_fault(kind=FaultKind.STATUS, status=200, body=body, method="POST", path=COMPANIES, times=99)

    result = world.send("account", account, "Create")

    assert (result.outcome, result.reason) == (Outcome.FAILED, "exists_already")
    assert world.companies() == []
