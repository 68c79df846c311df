"""What each case's incident must look like after a sync, worked out a second time, by hand and by other means.

Nothing of the product is imported here, neither recipe nor mapping: the rules are those of the design's words. `compare`
takes the records of both systems before and after, and returns every difference as a sentence.
"""

import copy
import dataclasses
import html
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sandbox.dynamics365 import Dynamics365
from sandbox.servicenow import ServiceNow
from sandbox.simulator import Entry

Record = dict[str, Any]

CONTACT_TYPES = {1: "phone", 2: "email", 3: "self-service", 2483: "self-service", 3986: "self-service"}
OTHER_CONTACT_TYPE = "self-service"
URGENCIES = {1: "1", 2: "2", 3: "3"}
OTHER_URGENCY = "3"
TITLE_CHARS = 160
DESCRIPTION_CHARS = 4000
WRITTEN = (
    "correlation_id", "correlation_display", "short_description", "description", "opened_at", "contact_type", "urgency",
    "caller_id", "assignment_group", "assigned_to",
)  # fmt: skip
FOLLOWS = {"sys_updated_on", "sys_updated_by", "sys_mod_count", "priority"}  # what ServiceNow changes by itself then
SYNCED = ("created", "adopted", "updated", "unchanged")


@dataclasses.dataclass(frozen=True)
class NewUser:
    """A user that does not exist yet and has to be made, exactly once."""

    email: str  # folded


@dataclasses.dataclass(frozen=True)
class Expected:
    """What has to become of one case."""

    case_id: str
    number: str
    outcomes: frozenset[str]
    reasons: frozenset[str] = frozenset()
    adopts: frozenset[str] = frozenset()  # incidents of which it may take one over
    fields: Mapping[str, "str | NewUser"] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All records of both systems at one moment."""

    dynamics: Mapping[str, list[Record]]  # by table
    servicenow: Mapping[str, Mapping[str, Record]]  # by table and sys_id


def take_snapshot(dynamics: Dynamics365, servicenow: ServiceNow) -> Snapshot:
    """Copy all records of both systems."""
    with servicenow.records.lock:
        tables = copy.deepcopy(servicenow.tables)
    return Snapshot({name: copy.deepcopy(dynamics.rows(name)) for name in dynamics.store.tables}, tables)


def servicenow_writes(entries: Iterable[Entry]) -> list[str]:
    """Return the requests of a journal that change records, also those inside batches, as "METHOD path"."""
    writes = []
    for entry in entries:
        if not entry.path.startswith("/api/") or entry.method == "GET":
            continue
        if not entry.path.endswith("/batch"):
            writes.append(f"{entry.method} {entry.path}")
            continue
        inner = json.loads(entry.body or "{}").get("rest_requests", [])
        writes += [f"{each['method']} {each['url']}" for each in inner if each["method"] != "GET"]
    return writes


# -- what is expected ---------------------------------------------------------------------------------------------------


def expect(before: Snapshot, since: datetime, until: datetime) -> dict[str, Expected]:
    """Return what a first sync of the cases modified from `since` to before `until` has to come to, by case id."""
    world = _World(before)
    chosen = [case for case in before.dynamics["incident"] if since <= _moment(case["modifiedon"]) < until]
    return {case["incidentid"]: world.expect(case) for case in chosen}


class _World:
    """The records before the run, ready to be asked."""

    def __init__(self, before: Snapshot) -> None:
        source, target = before.dynamics, before.servicenow
        self.contacts = {row["contactid"]: row for row in source["contact"]}
        self.owners = {row["systemuserid"]: row for row in source["systemuser"]}
        self.teams = {row["teamid"]: row["name"] for row in source["team"]}
        self.incidents = list(target["incident"].values())
        self.groups = {row["name"]: row["sys_id"] for row in target["sys_user_group"].values()}
        self.users: dict[str, list[Record]] = defaultdict(list)
        for row in target["sys_user"].values():
            if row["email"]:
                self.users[_fold(row["email"])].append(row)

    def expect(self, case: Record) -> Expected:
        case_id, number = case["incidentid"], case["ticketnumber"]
        if case["statecode"] != 0:
            return Expected(case_id, number, frozenset({"skipped"}), frozenset({"case_not_active"}))
        faults = set()
        if not (case["title"] or "").strip():
            faults.add("case_without_title")
        contact = self.contacts.get(case["_customerid_value"])
        if contact is None:
            faults.add("customer_is_account")
        if faults or contact is None:
            return Expected(case_id, number, frozenset({"failed"}), frozenset(faults))
        fields = self._fields(case, contact)
        found = self._find(case, fields["caller_id"])
        if len(found) > 1:
            return Expected(case_id, number, frozenset({"failed"}), frozenset({"ambiguous_match"}), fields=fields)
        outcome = "adopted" if found else "created"
        return Expected(case_id, number, frozenset({outcome}), adopts=frozenset(found), fields=fields)

    def _fields(self, case: Record, contact: Record) -> dict[str, "str | NewUser"]:
        owner = self.owners.get(case["_owninguser_value"] or "", {})
        team = self.teams.get(case["_owningteam_value"] or "")
        return {
            "correlation_id": case["incidentid"],
            "correlation_display": case["ticketnumber"],
            "short_description": _cut(case["title"], TITLE_CHARS),
            "description": _description(case["title"], case["description"]),
            "opened_at": _moment(case["createdon"]).strftime("%Y-%m-%d %H:%M:%S"),
            "contact_type": CONTACT_TYPES.get(case["caseorigincode"], OTHER_CONTACT_TYPE),
            "urgency": URGENCIES.get(case["prioritycode"], OTHER_URGENCY),
            "caller_id": self._user(contact["emailaddress1"]),
            "assignment_group": self.groups.get(team or "", ""),
            "assigned_to": self._user(owner.get("internalemailaddress")),
        }

    def _user(self, email: str | None) -> "str | NewUser":
        """Return a user's id, "" where none may be taken, or the user to be made."""
        if not email:
            return ""
        known = self.users.get(_fold(email), [])
        active = [row["sys_id"] for row in known if row["active"] == "true"]
        if len(active) == 1:
            return str(active[0])
        return "" if known else NewUser(_fold(email))

    def _find(self, case: Record, caller: "str | NewUser") -> list[str]:
        """Return the incidents that the strongest rule with a hit names."""
        by_id = [row["sys_id"] for row in self.incidents if row["correlation_id"] == case["incidentid"]]
        if by_id:
            return by_id
        strangers = [row for row in self.incidents if not row["correlation_id"]]
        by_number = [row["sys_id"] for row in strangers if row["number"] == case["ticketnumber"]]
        if by_number:
            return by_number
        titles = {_fold(case["title"]), _fold(_cut(case["title"], TITLE_CHARS))}
        return [
            row["sys_id"]
            for row in strangers
            if row["active"] == "true"
            and _fold(row["short_description"]) in titles
            and row["caller_id"] in {"", caller if isinstance(caller, str) else ""}
        ]


# -- what is there ------------------------------------------------------------------------------------------------------


def compare(
    before: Snapshot, after: Snapshot, since: datetime, until: datetime, results: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Return in words what differs from what a first sync of a window has to come to; nothing when all is right.

    `results` are the run's results as the API lists them (key, outcome, reason); without any they are not looked at.
    """
    expected = expect(before, since, until)
    return [
        *_compare_results(expected, results),
        *_compare_incidents(expected, before, after),
        *_compare_users(expected, before, after),
        *_compare_rest(before, after),
    ]


def _compare_results(expected: Mapping[str, Expected], results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return []
    said: list[str] = []
    listed = Counter(result["key"] for result in results)
    said += [f"{key} has {count} results." for key, count in listed.items() if count > 1]
    said += [f"{key} has a result and is not in the window." for key in listed.keys() - expected.keys()]
    said += [f"{expected[key].number} has no result." for key in expected.keys() - listed.keys()]
    for result in results:
        case = expected.get(result["key"])
        if case is None:
            continue
        if result["outcome"] not in case.outcomes:
            wanted, why = " or ".join(sorted(case.outcomes)), f" ({result['reason']})" if result["reason"] else ""
            said.append(f"{case.number} is {result['outcome']}{why} and should be {wanted}.")
        elif case.reasons and result["reason"] not in case.reasons:
            wanted = " or ".join(sorted(case.reasons))
            said.append(f"{case.number} is {result['outcome']}: {result['reason']}, and the reason should be {wanted}.")
    return said


def _compare_incidents(expected: Mapping[str, Expected], before: Snapshot, after: Snapshot) -> list[str]:
    old, new = before.servicenow["incident"], after.servicenow["incident"]
    by_case: dict[str, list[Record]] = defaultdict(list)
    for row in new.values():
        if row["correlation_id"]:
            by_case[row["correlation_id"]].append(row)
    said: list[str] = []
    taken: set[str] = set()
    for case in expected.values():
        rows = by_case.pop(case.case_id, [])
        wanted = 1 if case.outcomes & set(SYNCED) else 0
        if len(rows) != wanted:
            numbers = ", ".join(row["number"] for row in rows) or "none"
            said.append(f"{case.number} should have {wanted} incident and has {len(rows)}: {numbers}.")
            taken |= {row["sys_id"] for row in rows}
            continue
        for row in rows:
            taken.add(row["sys_id"])
            said += _compare_incident(case, old.get(row["sys_id"]), row, after)
    for sys_id in new.keys() - taken:
        row = new[sys_id]
        if sys_id not in old:
            said.append(f"Incident {row['number']} was made for no case of the window.")
        elif row != old[sys_id]:
            said.append(f"Incident {row['number']} is a stranger's and was changed: {_changed(old[sys_id], row)}.")
    said += [f"Incident {old[sys_id]['number']} is gone." for sys_id in old.keys() - new.keys()]
    return said


def _compare_incident(case: Expected, old: Record | None, row: Record, after: Snapshot) -> list[str]:
    said: list[str] = []
    if old is None and case.adopts:
        said.append(f"{case.number} has a new incident, and one that was there before should have been adopted.")
    if old is not None and row["sys_id"] not in case.adopts:
        said.append(f"{case.number} has taken over incident {row['number']}, which is a stranger's.")
    number = case.number if old is None else old["number"]
    if row["number"] != number:
        said.append(f"{case.number}: number is {row['number']} and should be {number}.")
    for name in WRITTEN:
        wanted = _resolve(case.fields[name], after)
        if wanted is None:
            said.append(f"{case.number}: {name} should be a user that was made, and there is not exactly one.")
            continue
        if (
            not wanted and old is not None
        ):  # nothing to write: what was there stays, but a new group has no assignee yet
            new_group = name == "assigned_to" and row["assignment_group"] != old["assignment_group"]
            wanted = "" if new_group else old[name]
        if _words(row[name]) != _words(wanted):
            said.append(f"{case.number}: {name} is {row[name]!r} and should be {wanted!r}.")
    if old is not None:
        beside = [name for name in _names_changed(old, row) if name not in {*WRITTEN, *FOLLOWS}]
        said += [f"{case.number}: {name} of the adopted incident was changed." for name in beside]
    return said


def _resolve(wanted: "str | NewUser", after: Snapshot) -> str | None:
    if isinstance(wanted, str):
        return wanted
    found = [row["sys_id"] for row in after.servicenow["sys_user"].values() if _fold(row["email"]) == wanted.email]
    return found[0] if len(found) == 1 else None


def _compare_users(expected: Mapping[str, Expected], before: Snapshot, after: Snapshot) -> list[str]:
    old, new = before.servicenow["sys_user"], after.servicenow["sys_user"]
    needed, allowed = set(), set()
    for case in expected.values():
        emails = {value.email for value in case.fields.values() if isinstance(value, NewUser)}
        allowed |= emails
        needed |= emails if case.outcomes & set(SYNCED) else set()
    made = Counter(_fold(row["email"]) for sys_id, row in new.items() if sys_id not in old)
    said = [f"The user {email} was made {count} times." for email, count in made.items() if count > 1]
    said += [f"The user {email} was made for no case of the window." for email in made.keys() - allowed]
    said += [f"The user {email} was not made." for email in needed - made.keys()]
    said += [f"The user {old[key]['user_name']} was changed." for key in old if new.get(key) != old[key]]
    granted = {row["user"] for row in after.servicenow["sys_user_has_role"].values()}
    for sys_id, row in new.items():
        if sys_id in old:
            continue
        wrong = [
            text
            for text, fault in (
                ("another user_name than the address", _fold(row["user_name"]) != _fold(row["email"])),
                ("another source than concord", row["source"] != "concord"),
                ("a role", sys_id in granted),
                ("a password", bool(row.get("user_password"))),
                ("no last name", not row["last_name"]),
                ("to be active and is not", row["active"] != "true"),
            )
            if fault
        ]
        said += [f"The new user {row['email']} has {text}." for text in wrong]
    return said


def _compare_rest(before: Snapshot, after: Snapshot) -> list[str]:
    said = [
        f"Dynamics 365 changed: {name}." for name in before.dynamics if before.dynamics[name] != after.dynamics[name]
    ]
    rest = before.servicenow.keys() - {"incident", "sys_user"}
    return said + [
        f"ServiceNow's table {name} changed."
        for name in sorted(rest)
        if before.servicenow[name] != after.servicenow[name]
    ]


# -- values -------------------------------------------------------------------------------------------------------------


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _fold(text: str | None) -> str:
    return (text or "").strip().casefold()


def _words(text: str) -> list[str]:
    return text.split()


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"


def _description(title: str, text: str | None) -> str:
    parts = [title] if len(title) > TITLE_CHARS else []
    parts += [_plain(text)] if text else []
    return _cut("\n\n".join(parts), DESCRIPTION_CHARS)


def _plain(text: str) -> str:
    """Return the words of the HTML that the demo's descriptions hold; another text as it is."""
    if not re.search(r"<(p|div|ul|br|a|img)\b|&(amp|lt|gt|nbsp|quot);", text):
        return text.strip()
    text = re.sub(r'<a [^>]*href="([^"]*)"[^>]*>(.*?)</a>', r"\2 (\1)", text)
    text = re.sub(r'<img [^>]*alt="([^"]*)"[^>]*>', r"[\1]", text)
    text = re.sub(r"<li[^>]*>", "\n- ", text)
    text = re.sub(r"</?(b|i|em|strong|span)\b[^>]*>", "", text)
    return html.unescape(re.sub(r"<[^>]+>", "\n", text)).strip()


def _names_changed(old: Record, new: Record) -> list[str]:
    return [name for name in new if new[name] != old.get(name)]


def _changed(old: Record, new: Record) -> str:
    return ", ".join(_names_changed(old, new))
