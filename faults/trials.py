"""What the sweep runs: per recipe a run over records of all kinds, and what it has come to, in comparable words.

A recipe that lands later adds a trial here.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from faults.scene import Kept, Scene
from sandbox import dynamics365_records, servicenow_records
from shared.errors import StateError
from shared.state.rows import (
    EVENT_PAGES,
    CursorRow,
    IdentityRow,
    MailState,
    OpenRow,
    ResultRow,
    RunKind,
    RunRow,
    SlotRow,
    TargetRow,
)
from sync import runs
from sync.windows import parse_window
from tests.flows.contacts import ACCOUNTS, CONTACTS, ORIGIN, WEBHOOK_KEY
from web import webhooks
from web.api import Request

Facts = dict[str, Any]
ADA = "ada@example.com"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run to be swept."""

    name: str
    recipes: tuple[str, ...]
    prepare: Callable[[Scene], None]  # fills the systems and does what came before, undisturbed
    work: Callable[[Scene], Facts]  # does what is swept, and returns what it has come to
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    mails: int = 1  # that it owes

    def begin(self, scene: Scene) -> Kept:
        """Make the moment at which every scenario of this trial begins."""
        scene.open(None, self.recipes, self.settings)
        self.prepare(scene)
        return scene.keep()


# -- cases to incidents -------------------------------------------------------------------------------------------------

CASES = "case_to_incident"
LINKED, CLOSED, CHANGED = 18, 5, 7  # of the cases: synced before; of those closed since, changed since


def _fill_cases(scene: Scene, count: int, incidents: int) -> None:
    cases = dynamics365_records.seed(scene.dynamics, count, now=scene.now())
    servicenow_records.seed(scene.servicenow, cases, incidents)


def prepare_new_cases(scene: Scene) -> None:
    """Fill both systems; the app has never run."""
    _fill_cases(scene, 16, 60)


def prepare_cases(scene: Scene) -> None:
    """Fill both systems and sync some cases; since then some changed, some were closed, and most are new.

    A run of the day before lists nothing: cases that were created since can have no link but by the run of chosen ones.
    """
    _sync_cases(scene, "yesterday")
    scene.clock.advance(86_400)
    _fill_cases(scene, 50, 80)
    midnight = scene.now().replace(hour=0)
    rows = sorted(scene.dynamics.rows("incident"), key=lambda row: row["ticketnumber"])
    yesterday = [row for row in rows if midnight - timedelta(days=1) <= _moment(row["modifiedon"]) < midnight]
    for row in yesterday[::3]:
        born = {"createdon": row["modifiedon"], "modifiedon": row["modifiedon"]}
        scene.dynamics.update("incident", row["incidentid"], **born)
    linked = yesterday[:LINKED]
    _sync_cases(scene, "ids=" + ",".join(row["incidentid"] for row in linked))
    scene.clock.advance(3600)
    active = [row for row in linked if row["statecode"] == 0]
    for number, row in enumerate(active[:CLOSED]):
        scene.dynamics.update("incident", row["incidentid"], statecode=1, statuscode=5, modifiedon=row["modifiedon"])
        assert number < CLOSED
    for row in active[CLOSED : CLOSED + CHANGED]:
        changes = {"title": f"{row['title'] or 'Untitled'} (changed)"[:160], "prioritycode": 1}
        scene.dynamics.update("incident", row["incidentid"], modifiedon=row["modifiedon"], **changes)


def _moment(value: Any) -> Any:
    from datetime import datetime  # noqa: PLC0415

    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _sync_cases(scene: Scene, window: str) -> RunRow:
    started = scene.asks(
        lambda: (
            runs.start_run(
                scene.app, scene.app.recipe(CASES), parse_window(window), started_by="http", mail_to=(ADA,)
            ).run
        )
    )

    def ended() -> bool:
        run = scene.run_row(started.run_id)
        return run is not None and run.state.ended and run.closed and run.mail_state is MailState.SENT

    scene.work(ended)
    return scene.run_row(started.run_id) or started


def work_cases(scene: Scene) -> Facts:
    """Sync yesterday's cases."""
    scene.mailbox.mails.clear()
    run = _sync_cases(scene, "yesterday")
    return state_of_cases(scene, run)


def state_of_cases(scene: Scene, run: RunRow) -> Facts:
    """Return what a run has come to, without ids that differ from scenario to scenario."""
    results, wrong = scene.results(run.run_id)
    tables = scene.servicenow.tables
    people = {key: f"user:{row['email'] or row['user_name']}" for key, row in tables["sys_user"].items()}
    incidents = {}
    for key, row in tables["incident"].items():
        notes = sorted(entry["value"] for entry in scene.servicenow.records.journal(row, "work_notes"))
        shown = {name: people.get(value, value) for name, value in row.items() if not name.startswith("sys_")}
        name = f"case {row['correlation_id']}" if row["correlation_id"] else f"stranger {key}"
        while name in incidents:
            name += " again"
        incidents[name] = shown | {"notes": notes}
    of_case = {row["correlation_id"]: key for key, row in tables["incident"].items() if row["correlation_id"]}
    links = {
        link.key: (of_case.get(link.key) == link.other_key, link.claim is None, link.gone, sorted(link.agreed))
        for link in scene.links()
        if link.other_key
    }
    made = sorted({people.get(entry["key"], "?") for row in results.values() for entry in row.created_references})
    return {
        **_of_run(scene, run, results, wrong),
        "made": made,
        "incidents": incidents,
        "users": dict(Counter(row["email"].lower() or row["user_name"] for row in tables["sys_user"].values())),
        "links": links,
        "identities": {row.digest: row.record for row in scene.rows(IdentityRow) if row.key},
        "targets": sorted((row.link_key, of_case.get(row.link_key) == row.key) for row in scene.rows(TargetRow)),
    }


def _of_run(scene: Scene, run: RunRow, results: Facts, wrong: list[str]) -> Facts:
    mails = scene.mailbox.mails
    cursor = scene.view.get(CursorRow, run.recipe, "cursor")
    return {
        "run": (run.state.value, run.error, run.mail_state.value, run.closed, run.counts),
        "wrong": wrong,
        "results": {key: (row.outcome.value, row.reason) for key, row in results.items()},
        "warnings": {f"{key} {warning['code']}": "" for key, row in results.items() for warning in row.warnings},
        "open": sorted((row.key, row.reason, row.runs) for row in scene.rows(OpenRow)),
        "slots": [
            slot.run_id for slot in scene.view.query(SlotRow, run.recipe, "slot-", "slot~") if _lives(scene, slot)
        ],
        "cursor moved": cursor is not None and cursor.read_until is not None and cursor.read_until == run.until,
        "summaries": len({mail.message["Message-ID"] for mail in mails}),
        "repeated mails": max(0, len(mails) - len({mail.message["Message-ID"] for mail in mails})),
        "subject": sorted({str(mail.message["Subject"]) for mail in mails}),
        "poison": [f"{each.queue}: {each.body[:200]}" for each in scene.pump.poisoned],
        "left over": [each.queue for each in scene.pump.waiting if not _looks_at_a_day(scene, each.body)],
    }


# -- contacts to leads, accounts to companies --------------------------------------------------------------------------------------------------

BEFORE, NEW, EVENTS = 14, 22, 12  # records synced before, new ones, and how many of these come by a webhook


def prepare_contacts(scene: Scene) -> None:
    """Fill both systems and sweep once; since then contacts and accounts changed, and new ones came."""
    sim = scene.dynamics
    _sweep(scene, CONTACTS)  # the first one reads nothing that was there before
    scene.clock.advance(60)
    accounts = [sim.insert("account", name=f"Company {n}", address1_city="Delft", revenue=1000 + n) for n in range(6)]
    old = [_add_contact(scene, n, accounts[n % 4] if n % 3 else None) for n in range(BEFORE)]
    scene.marketo.insert("leads", email="person2@customer.example", firstName="Known", lastName="Before")
    scene.marketo.insert("companies", externalCompanyId=accounts[5], company="Was there")
    scene.clock.advance(60)
    _sweep(scene, CONTACTS)
    scene.clock.advance(3600)
    for number, key in enumerate(old[:8]):
        changes = {"jobtitle": "Chief"} if number % 2 else {"emailaddress1": f"moved{number}@customer.example"}
        sim.update("contact", key, **changes)
    sim.update("contact", old[9], statecode=1, statuscode=2)
    sim.update("account", accounts[1], name="Company 1, renamed")
    for number in range(NEW):
        _add_contact(scene, 100 + number, accounts[2 + number % 4] if number % 2 else None)
    _add_contact(scene, 300, None, emailaddress1=None)
    _add_contact(scene, 301, accounts[0], emailaddress1="person100@customer.example")  # another has it
    scene.marketo.insert("leads", email="person104@customer.example", firstName="Was", lastName="There")
    for _ in range(2):
        scene.marketo.insert("leads", email="person105@customer.example", lastName="Twice")
    scene.clock.advance(60)


def _add_contact(scene: Scene, number: int, account: str | None, **columns: Any) -> str:
    named = {"firstname": "Ana", "lastname": f"Quill {number}", "emailaddress1": f"person{number}@customer.example"}
    return scene.dynamics.insert("contact", **named | {"parentcustomerid_account": account} | columns)


def work_contacts(scene: Scene) -> Facts:
    """Receive webhooks of some contacts, work them, and sweep what never arrived."""
    chosen = sorted(scene.dynamics.rows("contact"), key=lambda row: row["lastname"])[2 : 2 + EVENTS]
    found, wrong = _work_events(scene, CONTACTS, [("contact", row["contactid"], "Update") for row in chosen])
    facts = sweep_contacts(scene)
    return facts | {"wrong": wrong + facts["wrong"], "events": found}


def sweep_contacts(scene: Scene) -> Facts:
    """Sweep the contacts that changed since the last run."""
    return _without_order(scene, _state_of_leads(scene, _sweep(scene, CONTACTS)))


def _without_order(scene: Scene, facts: Facts) -> Facts:
    """Leave open which of two contacts with one email comes first: one has the lead, the other is told so."""
    emails = Counter(row["emailaddress1"] for row in scene.dynamics.rows("contact") if row["emailaddress1"])
    rivals = {row["contactid"] for row in scene.dynamics.rows("contact") if emails[row["emailaddress1"]] > 1}
    shared = {email for email, count in emails.items() if count > 1}
    results, links, counts = facts["results"], facts["links"], Counter(facts["run"][4])
    made = ("made" if results[key][0] in ("created", "adopted") else results[key][1] for key in rivals & results.keys())
    counts["made"] = counts.pop("created", 0) + counts.pop("adopted", 0)
    return facts | {
        "run": (*facts["run"][:4], dict(counts)),
        "rivals": sorted(made),
        "rival links": sum(name.split()[-1] in rivals for name in links),
        "results": {key: result for key, result in results.items() if key not in rivals},
        "links": {name: link for name, link in links.items() if name.split()[-1] not in rivals},
        "leads": {name: row if name not in shared else {"email": name} for name, row in facts["leads"].items()},
        "open": sorted(("a rival", *row[1:]) if row[0] in rivals else row for row in facts["open"]),
        "targets": sorted(("a rival", email) if key in rivals else (key, email) for key, email in facts["targets"]),
        "warnings": {name: text for name, text in facts["warnings"].items() if name.split()[0] not in rivals},
    }


def prepare_accounts(scene: Scene) -> None:
    """Fill both systems and sweep once; since then accounts changed, and new ones came."""
    sim = scene.dynamics
    _sweep(scene, ACCOUNTS)
    scene.clock.advance(60)
    old = [sim.insert("account", name=f"Company {n:02d}", revenue=1000 + n) for n in range(BEFORE)]
    scene.marketo.insert("companies", externalCompanyId=old[2], company="Was there")
    scene.clock.advance(60)
    _sweep(scene, ACCOUNTS)
    scene.clock.advance(3600)
    for key in old[:8]:
        sim.update("account", key, address1_city="Gouda")
    sim.update("account", old[9], statecode=1, statuscode=2)
    new = [sim.insert("account", name=f"New company {n:02d}", telephone1=f"+31 10 {n:03d}") for n in range(NEW)]
    for number in (1, 8, 15):
        scene.marketo.insert("companies", externalCompanyId=new[number], company="Was there", billingCity="Oslo")
    sim.insert("account", name=None)
    scene.clock.advance(300)  # longer than clocks may differ


def work_accounts(scene: Scene) -> Facts:
    """Receive webhooks of some accounts, sweep what never arrived, and send the digest of the day."""
    chosen = sorted((row for row in scene.dynamics.rows("account") if row["name"]), key=lambda row: row["name"])
    asked = [("account", row["accountid"], "Update") for row in chosen[4 : 4 + EVENTS]]
    scene.dynamics.delete("account", gone := chosen[-1]["accountid"])
    found, wrong = _work_events(scene, ACCOUNTS, [*asked, ("account", gone, "Delete")])
    run = _sweep(scene, ACCOUNTS)
    scene.advance_to((scene.now() + timedelta(days=1)).replace(hour=0, minute=0, second=30))
    scene.tick()
    scene.work(lambda: bool(scene.mailbox.mails))
    facts = _state_of_leads(scene, run)
    return facts | {"wrong": wrong + facts["wrong"], "events": found}


def _work_events(scene: Scene, recipe: str, asked: list[tuple[str, str, str]]) -> tuple[Facts, list[str]]:
    """Receive webhooks and work them; return what became of each, and what is wrong with their number."""
    events = [_receive(scene, recipe, *each, number) for number, each in enumerate(asked)]
    scene.work(lambda: set(events) <= {row.key for row in _events(scene, recipe)})
    found = _events(scene, recipe)
    counted = Counter(row.key for row in found)
    wrong = [f"event {event} has {counted[event]} results" for event in events if counted[event] != 1]
    return {row.key: (row.outcome.value, row.reason) for row in found}, wrong


def _state_of_leads(scene: Scene, run: RunRow) -> Facts:
    results, wrong = scene.results(run.run_id)
    records = scene.marketo.records.tables
    companies = {row["id"]: row.get("externalCompanyId") or "none" for row in records["companies"].values()}
    leads: Facts = {}
    for row in records["leads"].values():
        name = str(row["email"])
        while name in leads:
            name += " again"
        leads[name] = _plain(row) | {"contactCompany": companies.get(row["contactCompany"], "own")}
    by_id = {str(row["id"]): str(row["email"]) for row in records["leads"].values()}
    links = {
        f"{link.side} {link.key}": (by_id.get(link.other_key, link.other_key), link.claim is None, sorted(link.agreed))
        for link in scene.links()
        if link.other_key  # else a claim that is over, of a record that failed
    }
    return {
        **_of_run(scene, run, results, wrong),
        "leads": leads,
        "companies": dict(
            Counter(str(_plain(row)) for row in records["companies"].values() if row.get("externalCompanyId"))
        ),
        "links": links,
        "identities": {row.digest: row.record for row in scene.rows(IdentityRow) if row.key and _is_new(scene, row)},
        "targets": sorted((row.link_key, by_id.get(row.key, row.key)) for row in scene.rows(TargetRow)),
        "events": {},
    }


def _is_new(scene: Scene, row: IdentityRow) -> bool:
    """Tell whether a match value was noted in the scenario: an old note may outlive a death, and is then not believed."""
    return all(kept["RowKey"] != row.row_key for kept in scene.rows_before(IdentityRow))


def _plain(row: Facts) -> Facts:
    return {
        name: value for name, value in row.items() if name not in ("id", "createdAt", "updatedAt", "contactCompany")
    }


def _sweep(scene: Scene, recipe: str) -> RunRow:
    started = scene.asks(
        lambda: (
            runs.start_run(scene.app, scene.app.recipe(recipe), parse_window("since_last_run"), started_by="daily").run
        )
    )

    def ended() -> bool:
        run = scene.run_row(started.run_id)
        return run is not None and run.state.ended and run.closed

    scene.work(ended)
    return scene.run_row(started.run_id) or started


def _receive(scene: Scene, recipe: str, table: str, key: str, message: str, number: int) -> str:
    operation = f"00000000-0000-4000-8000-{number:012d}"
    body = {
        "PrimaryEntityName": table,
        "PrimaryEntityId": key,
        "MessageName": message,
        "OperationId": operation,
    }
    headers = {"x-ms-dynamics-organization": ORIGIN}
    request = Request("POST", {"recipe": recipe}, {"code": WEBHOOK_KEY}, headers, json.dumps(body).encode())

    def ask() -> None:
        if webhooks.receive(scene.app, request).status != 202:
            raise StateError("the queue refused the event; Dataverse comes again")

    scene.asks(ask)
    return f"{operation}:{key}:{message}"


def _events(scene: Scene, recipe: str) -> list[Any]:
    return [
        result
        for run in scene.view.query(RunRow, recipe)
        if run.kind is RunKind.EVENTS
        for page in range(EVENT_PAGES)
        for result in scene.view.query(ResultRow, f"{run.run_id}!{page:06d}")
    ]


# -- comparing ----------------------------------------------------------------------------------------------------------


def _looks_at_a_day(scene: Scene, body: str) -> bool:
    """Tell whether a message is the check of a day of events, which goes on until midnight."""
    run = scene.run_row(json.loads(body).get("run_id") or "none-20260101T000000000-0000")
    return run is not None and run.kind is RunKind.EVENTS


def _lives(scene: Scene, slot: SlotRow) -> bool:
    """Tell whether a slot keeps others away: one of a run that has ended does not."""
    run = scene.run_row(slot.run_id)
    return run is not None and not run.state.ended


def healthy(trial: Trial, facts: Facts) -> list[str]:
    """Return what is wrong with an undisturbed run, by what must hold for every run."""
    wanted = {"wrong": [], "slots": [], "summaries": trial.mails, "repeated mails": 0, "poison": [], "left over": []}
    return [f"{name}: {facts[name]}" for name, value in wanted.items() if facts[name] != value]


BEST_EFFORT = ("made", "identities", "warnings")  # users made on the way and warnings in the mail; known match values

TRIALS = {
    trial.name: trial
    for trial in (
        Trial("cases", (CASES,), prepare_cases, work_cases),
        Trial("first cases", (CASES,), prepare_new_cases, work_cases),
        Trial("cases in bulk", (CASES,), prepare_cases, work_cases, {"BULK_ABOVE": "0"}),
        Trial("contacts", (CONTACTS, ACCOUNTS), prepare_contacts, work_contacts, mails=0),
        Trial("contacts in bulk", (CONTACTS, ACCOUNTS), prepare_contacts, sweep_contacts, {"BULK_ABOVE": "0"}, mails=0),
        Trial(
            "accounts", (ACCOUNTS,), prepare_accounts, work_accounts, {"BULK_ABOVE": "0"}
        ),  # events one by one, then bulk
    )
}


def difference(found: Facts, expected: Facts, *, mail_struck: bool) -> list[str]:
    """Return in words what differs from the undisturbed run.

    Two things may: a mail whose answer was lost may come twice, and `BEST_EFFORT` may lack something, but never say
    more (see docs/delivery.md).
    """
    said = []
    for name, wanted in expected.items():
        got = found[name]
        if name in BEST_EFFORT and set(got) <= set(wanted):
            continue
        if name == "repeated mails" and mail_struck and got <= 1:
            continue
        if got == wanted:
            continue
        if isinstance(wanted, dict):
            keys = [key for key in {**wanted, **got} if wanted.get(key) != got.get(key)]
            said += [f"{name}[{key}]: {_short(got.get(key))} instead of {_short(wanted.get(key))}" for key in keys[:3]]
        else:
            said.append(f"{name}: {_short(got)} instead of {_short(wanted)}")
    return said


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 400 else text[:400] + "…"
