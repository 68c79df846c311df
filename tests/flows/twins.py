"""The world of two ServiceNow instances: ours, the vendor's, and recipes between them, both ways and with children."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandbox.dynamics365 import Dynamics365
from sandbox.mailbox import Mailbox
from sandbox.servicenow import CLIENT_ID, CLIENT_SECRET, PASSWORD, USER_NAME, ServiceNow
from sandbox.simulator import Clock, serve_in_thread
from shared.settings import load_settings
from shared.state.messages import EventMessage
from shared.state.rows import EVENT_PAGES, LinkRow, ResultRow, RunKind, RunRow
from sync import repairs
from tests.flows.world import NOW, READ_TIMEOUT_S, TRANSACTION_S, Facts, Killed, Stage, World, usual_settings

OUT, BACK, GROUPS = "incident_to_vendor", "vendor_to_incident", "group_to_group"
JOURNAL = """
children:
  - from: journal
    record: journal
    match: [text]
    write: create
    fields:
      text: {value: "[{author} #{id}] {text}"}
      element: {from: element, choices: {comments: comments, work_notes: work_notes}}
"""
RECIPES = {
    OUT: """
title: Incidents to the vendor
source: servicenow.incident
target: servicenow_vendor.incident
start: {http: today}
match: [correlation_id]
fields:
  correlation_id: {from: sys_id, write: on_create}
  short_description: {from: short_description, write: newest}
"""
    + JOURNAL,
    BACK: """
title: The vendor's incidents to ours
source: servicenow_vendor.incident
target: servicenow.incident
start: {http: today}
write: update
fields:
  short_description: {from: short_description, write: newest}
"""
    + JOURNAL,
    GROUPS: """
title: Groups to the vendor's groups
source: servicenow.sys_user_group
target: servicenow_vendor.sys_user_group
start: {http: today}
match: [name]
fields:
  name: name
  description: description
children:
  - from: sys_user_grmember
    record: sys_user_grmember
    match: [user]
    write: mirror
    fields:
      user:
        from: user
        required: member_without_user
        find: {record: sys_user, match: [email], required: true, fields: {email: email}}
""",
}


class TwinWorld(World):
    """Two instances, the recipes between them, and the app."""

    recipe = OUT

    def __init__(self, *facts: Any, vendor: ServiceNow) -> None:
        self.vendor = vendor
        super().__init__(*facts)

    def settle(self) -> None:
        super().settle()
        self.vendor.settle()

    def sync_recipe(self, recipe: str, window: str = "today", **facts: Any) -> RunRow:
        """Run a recipe over a window until nothing is left; a minute passes before, so that the last changes are in it."""
        self.advance(60)
        before, self.recipe = self.recipe, recipe
        try:
            return self.sync(window, **facts)
        finally:
            self.recipe = before

    def both_ways(self) -> None:
        """Run both recipes between incidents, twice, as polls do."""
        for recipe in (OUT, BACK, OUT, BACK):
            self.sync_recipe(recipe)

    def result(self, run: RunRow) -> ResultRow:
        """Return the one result of a run."""
        (result,) = self.results(run).values()
        return result

    def incident(self, **fields: str) -> str:
        """Open an incident at our side."""
        return self.servicenow.insert("incident", **{"short_description": "Printer jams"} | fields)

    def twin(self, sys_id: str) -> Facts:
        """Return the vendor's one incident of ours."""
        found = self.vendor.rows("incident", correlation_id=sys_id)
        assert len(found) == 1, f"{len(found)} incidents carry the id"
        return dict(found[0])

    def write_entry(self, sim: ServiceNow, sys_id: str, text: str, element: str = "comments", by: str = "ada") -> str:
        """Write into a journal as a person does, a second after the last one, and return the entry's key."""
        self.advance(1)
        before = set(sim.tables["sys_journal_field"])
        sim.update("incident", sys_id, by=by, **{element: text})
        (key,) = set(sim.tables["sys_journal_field"]) - before
        return key

    def entries(self, sim: ServiceNow, sys_id: str) -> list[tuple[str, str]]:
        """Return a record's journal, oldest first, as (journal, text)."""
        rows = sim.rows("sys_journal_field", element_id=sys_id)
        ordered = sorted(
            rows, key=lambda row: (row["sys_created_on"], list(sim.tables["sys_journal_field"]).index(row["sys_id"]))
        )
        return [(row["element"], row["value"]) for row in ordered]

    def people(self, *names: str) -> dict[str, tuple[str, str]]:
        """Add people whom both sides know, and return each one's keys here and there."""
        known = {}
        for name in names:
            fields = {"user_name": name, "email": f"{name}@acme.example", "last_name": name}
            known[name] = (self.servicenow.insert("sys_user", **fields), self.vendor.insert("sys_user", **fields))
        return known

    def join(self, group: str, user: str) -> str:
        """Add a person to a group of ours, which counts as a change of the group."""
        member = self.servicenow.insert("sys_user_grmember", group=group, user=user)
        self.touch(group)
        return member

    def leave(self, group: str, member: str) -> None:
        """Take a person out of a group of ours, which counts as a change of the group."""
        self.servicenow.delete("sys_user_grmember", member)
        self.touch(group)

    def touch(self, group: str) -> None:
        """Change something about a group that no recipe reads."""
        self.advance(1)
        self.servicenow.update("sys_user_group", group, type=f"{self.now():%H%M%S}")

    def members(self, name: str) -> list[str]:
        """Return the emails of the members of the vendor's group."""
        (group,) = self.vendor.rows("sys_user_group", name=name)
        users = self.vendor.tables["sys_user"]
        return sorted(
            users[row["user"]]["email"] for row in self.vendor.rows("sys_user_grmember", group=group["sys_id"])
        )

    def child_links(self) -> list[LinkRow]:
        """Return the links of all children."""
        return [row for row in self.view.scan(LinkRow) if row.parent]

    def sent_to_vendor(self) -> list[Facts]:
        """Return what was sent to the vendor's instance to be written."""
        return [
            json.loads(each.body) for each in self.vendor.requests("", "/table/") if each.method in ("POST", "PATCH")
        ]

    def start_again(self, recipe: str) -> RunRow:
        """Start a recipe as a caller does who asks again when nobody answered."""
        before, self.recipe = self.recipe, recipe
        try:
            return self.start("today")
        except Killed:
            self.restart()
            return self.start("today")
        finally:
            self.recipe = before

    def send_event(self, recipe: str, record: str, key: str, event_id: str) -> None:
        """Put a change of a record into the queue, as a webhook's receiver does."""
        facts = {"recipe": recipe, "record": record, "key": key, "name": "Update", "event_id": event_id}
        self.app.queues.send(EventMessage(**facts, received_at=self.now()))

    def event_results(self, recipe: str) -> list[ResultRow]:
        """Return the results of all events of a recipe."""
        days = [run for run in self.runs_of(recipe) if run.kind is RunKind.EVENTS]
        return [
            result
            for run in days
            for page in range(EVENT_PAGES)
            for result in self.view.query(ResultRow, f"{run.run_id}!{page:06d}")
        ]

    def runs_of(self, recipe: str) -> list[RunRow]:
        """Return all runs of a recipe, newest first."""
        return list(self.view.query(RunRow, recipe))

    def repair(self, run: RunRow, action: str) -> None:
        """Repair what failed in a run, as an operator does."""
        repairs.ACTIONS[action](self.app, self.run_row(run), "operator")
        self.pump.run()

    def calls(self, sim: ServiceNow) -> list[str]:
        """Return an instance's journal of requests to the Table API."""
        return [f"{each.method} {each.path.rpartition('/table/')[2]}" for each in sim.requests("", "/table/")]

    def forget_journal(self) -> None:
        super().forget_journal()
        self.vendor.journal.clear()


@contextlib.contextmanager
def new_twin_world(stage: Stage, folder: Path, prefix: str, values: Facts | None = None) -> Iterator[TwinWorld]:
    """Serve a new world of two instances; `values` are settings."""
    clock = Clock(NOW)
    ours, vendor, mailbox = ServiceNow(clock), ServiceNow(clock, instance="vendor"), Mailbox(clock=clock)
    rights = vendor.users[USER_NAME]
    rights.create |= {"sys_user_group", "sys_user_grmember"}
    rights.write |= {"sys_user_group"}
    rights.delete |= {"sys_user_grmember"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    dynamics = Dynamics365(clock)  # nobody listens there
    with serve_in_thread(ours, vendor, mailbox) as (our_port, vendor_port, _):
        environ = usual_settings(stage, dynamics, our_port, our_port, mailbox)
        for name, port in (("SERVICENOW", our_port), ("SERVICENOW_VENDOR", vendor_port)):
            environ |= {
                f"CONNECTIONS__{name}__SYSTEM": "servicenow",
                f"CONNECTIONS__{name}__ENVIRONMENT": "test",
                f"CONNECTIONS__{name}__URL": f"http://localhost:{port}",
                f"CONNECTIONS__{name}__AUTH": "password",
                f"CONNECTIONS__{name}__CLIENT_ID": CLIENT_ID,
                f"CONNECTIONS__{name}__CLIENT_SECRET": CLIENT_SECRET,
                f"CONNECTIONS__{name}__USER": USER_NAME,
                f"CONNECTIONS__{name}__PASSWORD": PASSWORD,
                f"CONNECTIONS__{name}__READ_TIMEOUT_S": str(READ_TIMEOUT_S),
                f"CONNECTIONS__{name}__TRANSACTION_S": str(TRANSACTION_S),
            }
        settings = load_settings(environ | (values or {}))
        world = TwinWorld(clock, dynamics, ours, mailbox, settings, folder, prefix, vendor=vendor)
        try:
            yield world
        finally:
            world.close()
