"""Webhooks that are lost, come twice or in any order, and processes that die: after the sweep Marketo is as the oracle says.

Everything that is random here comes from the seed, so one that fails replays. FAULTS=1 (make faults) tries many more.
"""

import os
import random
from typing import Any

import pytest

from sandbox.oracle_contacts import Snapshot, compare, take_snapshot
from tests.flows.contacts import ACCOUNTS, CONTACTS, ContactWorld
from tests.flows.world import Delivery

SEEDS = range(30) if os.environ.get("FAULTS") else range(2)
DROPPED, DOUBLED = 0.10, 0.20
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "reset_after"},
    {"kind": "status_after", "status": 502},
    {"kind": "truncated"},
    {"kind": "html"},
    {"kind": "refuse"},
    {"kind": "status", "status": 503},
    {"kind": "expire_token"},
)
CODES = ("604", "606", "608", "611", "713")


class Story:
    """Contacts and accounts that come, change and go, each change told by a webhook that may be lost or doubled."""

    def __init__(self, world: ContactWorld, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.accounts = [world.account(f"Company {number}") for number in range(6)]
        self.contacts: list[str] = []
        self.told: list[tuple[str, str, str, str]] = []
        self.spare: set[str] = set()
        self.dropped = 0
        for account in self.accounts:
            self._tell("account", account, "Create")

    def _tell(self, table: str, key: str, message: str) -> None:
        operation = f"{self.chance.getrandbits(32):08x}-0000-4000-8000-000000000000"
        copies = 0 if self.chance.random() < DROPPED else 2 if self.chance.random() < DOUBLED else 1
        self.dropped += not copies
        self.told += [(table, key, message, operation)] * copies

    def add(self, number: int) -> None:
        """Save a new contact: of an account or none, some without email, inactive, or sharing an address."""
        email: str | None = f"c{number}@customer.example"
        if number % 11 == 5:
            email = None
        elif number % 13 == 7:
            email = f"c{number - 1}@customer.example"
        state = {"statecode": 1} if number % 9 == 8 else {}
        account = self.chance.choice([*self.accounts, None])
        contact = self.world.contact(email, account, jobtitle=f"Job {number}", **state)
        self.contacts.append(contact)
        self._tell("contact", contact, "Create")

    def edit(self) -> None:
        """Save a change of a contact or an account; some contacts move to an address that nobody had."""
        if self.chance.random() < 0.25:
            account = self.chance.choice(self.accounts)
            self.world.edit("account", account, name=f"Renamed {self.chance.randrange(1000)}")
            self._tell("account", account, "Update")
            return
        contact = self.chance.choice(self.contacts)
        changes: dict[str, Any] = {"jobtitle": f"Job {self.chance.randrange(1000)}"}
        row = next(each for each in self.world.dynamics.rows("contact") if each["contactid"] == contact)
        if row["emailaddress1"] and self.chance.random() < 0.2:
            changes = {"emailaddress1": f"moved{self.chance.randrange(10**6)}@customer.example"}
        elif self.chance.random() < 0.2:
            changes = {"parentcustomerid_account": self.chance.choice(self.accounts)}
        self.world.edit("contact", contact, **changes)
        self._tell("contact", contact, "Update")

    def deliver(self, portion: int) -> None:
        """Let the next webhooks come, in any order."""
        self.chance.shuffle(self.told)
        for table, key, message, operation in [self.told.pop() for _ in range(min(portion, len(self.told)))]:
            self.world.hook(table, key, message, operation)


def _unleash(world: ContactWorld, chance: random.Random) -> None:
    """Let calls fail and processes die by chance, but no message so often that the host gives it up."""
    for _ in range(6):
        path = "/rest/v1/(leads|companies).json" if chance.random() < 0.7 else "/contacts"
        sim = world.dynamics if path == "/contacts" else world.marketo
        sim.add_fault(**chance.choice(FAULTS), path=path, skip=chance.randrange(20))
    for _ in range(3):
        world.marketo.script_error(chance.choice(CODES), times=chance.randrange(1, 3), after=chance.random() < 0.3)
    world.pump.shuffle = chance

    def before(delivery: Delivery) -> None:
        world.pump.lease_left_s = chance.choice((0, 0, 120))
        if delivery.count < 3 and chance.random() < 0.1:
            world.wire.kill_at(chance.randrange(25), after=chance.random() < 0.5)
        else:
            world.wire.kill_at(-1, after=False)

    world.pump.before = before


def _calm(world: ContactWorld) -> None:
    world.pump.before = lambda _: world.wire.kill_at(-1, after=False)
    world.wire.kill_at(-1, after=False)
    for sim in (world.marketo, world.dynamics):
        sim.faults.clear()
    world.marketo.errors.clear()


@pytest.mark.parametrize("bulk_above", [1000, 0], ids=["single", "bulk"])
@pytest.mark.parametrize("seed", SEEDS)
def test_marketo_equals_the_oracle_after_the_sweep(contact_world: ContactWorld, seed: int, bulk_above: int) -> None:
    """One in ten webhooks never comes, one in five comes twice, none in order, processes die: the sweep leaves nothing wrong."""
    world, chance = contact_world, random.Random(seed)
    world.change_settings(bulk_above=bulk_above)
    world.tick()  # the app knows its recipes before anything happens
    before = take_snapshot(world.dynamics, world.marketo)
    story = Story(world, chance)
    _unleash(world, chance)
    for number in range(40):
        story.add(number)
        if number % 2:
            story.edit()
        if number % 8 == 7:
            story.deliver(12)
            world.pump.run(for_s=20)
    story.deliver(1000)
    world.pump.run(for_s=4000)
    _calm(world)
    world.pump.run(for_s=4000)
    world.advance(3600)

    for recipe in (ACCOUNTS, CONTACTS, CONTACTS):  # an address that was shared is free at the second
        world.sweep(recipe)
        world.advance(60)

    after = take_snapshot(world.dynamics, world.marketo)
    assert story.dropped > 0
    assert _differences(before, after, story) == []
    assert all(link.claim is None for link in world.links() if link.other_key)


def _differences(before: Snapshot, after: Snapshot, story: Story) -> list[str]:
    return compare(before, after, story.contacts, story.accounts)


def test_killed_receiver_is_called_again(contact_world: ContactWorld) -> None:
    """When the process dies while it takes a webhook in, Dataverse calls again: two messages, one lead."""
    world = contact_world
    contact = world.contact("ana@customer.example")
    world.wire.kill_on("storage POST events", after=True)

    event_id = world.hook("contact", contact, "Create")
    world.pump.run()

    assert world.event(event_id).outcome == "created"
    assert len(world.leads()) == 1
