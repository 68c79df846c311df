"""Demo records of the simulated ServiceNow: an instance that has been in use for a year, and its relations to Dynamics cases.

Everything is derived from the clock and the cases given, so two runs make the same records. `seed` tells which case was
seeded how, so that an expectation can be computed without asking the sync.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.servicenow import ServiceNow

Case = Mapping[str, Any]

INCIDENTS = 2_000
HISTORY_DAYS = 420
SHARES = {  # how many cases of each kind with 450 cases or more; fewer cases, fewer of each
    "vendor_recipe": 40,
    "same_title": 40,
    "ambiguous_title": 6,
    "same_title_closed": 8,
    "same_title_other_caller": 8,
}
CONTACT_SHARES = {"inactive_caller": 6, "duplicate_caller": 6}  # counted in contacts, each with all its cases
FULL_AT = 450

CITIES = (
    ("Berlin", "Germany", "Europe/Berlin"),
    ("London", "United Kingdom", "Europe/London"),
    ("Boston", "United States", "US/Eastern"),
    ("Austin", "United States", "US/Central"),
    ("Singapore", "Singapore", "Asia/Singapore"),
)
DEPARTMENTS = ("Customer Support", "Development", "Finance", "Human Resources", "IT", "Sales")
ROLES = (
    "admin",
    "itil",
    "itil_admin",
    "approver_user",
    "major_incident_manager",
    "user_admin",
    "rest_service",
    "snc_internal",
)
GROUPS = {  # name: roles
    "Support EMEA": ("itil",),
    "Support Americas": ("itil",),
    "Support APAC": ("itil",),
    "Hardware": ("itil",),
    "Network": ("itil",),
    "Database": ("itil",),
    "Service Desk": ("itil",),
    "Major Incident": ("major_incident_manager",),
    "Change Advisory Board": ("approver_user",),
}
FIRST_NAMES = (
    "Abel", "Beth", "Carla", "David", "Elena", "Fred", "Grace", "Hiro", "Ines", "Jonas", "Kavya", "Lars", "Mina", "Nils",
    "Olga", "Pedro", "Quinn", "Rosa", "Samir", "Tessa", "Ulf", "Vera", "Wanda", "Xenia", "Yusuf", "Zoë",
)  # fmt: skip
LAST_NAMES = (
    "Anders", "Brandt", "Costa", "Dietrich", "Evans", "Fischer", "Gupta", "Hansen", "Ito", "Jensen", "Kowalski", "Larsen",
    "Müller", "Novak", "O'Neill", "Petrov", "Quist", "Rossi", "Santos", "Tanaka", "Ueda", "Vogel", "Weber", "Yilmaz",
)  # fmt: skip
COMPLAINTS = (
    ("hardware", "Laptop does not start"),
    ("hardware", "Docking station loses the second screen"),
    ("hardware", "Printer on the third floor jams"),
    ("network", "VPN drops every few minutes"),
    ("network", "Wireless network is slow in the meeting rooms"),
    ("network", "Shared drive cannot be reached"),
    ("software", "Mail client asks for the password again and again"),
    ("software", "Spreadsheet crashes when saving"),
    ("software", "Cannot install the update"),
    ("database", "Nightly report shows yesterday's figures twice"),
    ("database", "Query on the sales database times out"),
    ("inquiry", "Request for access to the finance folder"),
    ("inquiry", "New employee needs an account"),
    ("inquiry", "How do I forward my calls?"),
)
CHANNELS = ("phone", "email", "self-service", "walk-in", "chat")
SOLUTION = {"close_code": "Solution provided", "close_notes": "Settled with the caller."}


def seed(sim: ServiceNow, cases: Sequence[Case] = (), incidents: int = INCIDENTS) -> dict[str, list[str]]:
    """Fill an instance and return the ids of the cases that were given a counterpart, by kind of relation.

    A case has the keys incidentid, ticketnumber, title, contact_email, owner_email, owner_team and createdon (ISO text or
    datetime). `inactive_caller` and `duplicate_caller` list every case of such a contact, the other kinds one case each.
    """
    office = _Office(sim)
    relations = _choose(cases)
    office.seed_people(cases, relations)
    office.seed_relations({case["incidentid"]: case for case in cases}, relations)
    taken = {_folded(case["title"]) for case in cases}
    office.seed_others()
    office.seed_history(incidents - len(sim.tables["incident"]), taken)
    return relations


def _choose(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Deal cases out to the kinds of relations, by ticket number; no case has two."""
    ordered = sorted(cases, key=lambda case: case["ticketnumber"])
    scale = min(1.0, len(ordered) / FULL_AT)
    owners = {_folded(case["owner_email"]) for case in ordered}
    contacts = list(dict.fromkeys(_folded(case["contact_email"]) for case in ordered if case["contact_email"]))
    contacts = [email for email in contacts if email not in owners]
    relations: dict[str, list[str]] = {}
    special: set[str] = set()
    stride = max(1, len(contacts) // (sum(CONTACT_SHARES.values()) + 1))
    spread = contacts[::stride]
    for kind, share in CONTACT_SHARES.items():
        emails = {spread.pop() for _ in range(min(len(spread), _scaled(share, scale)))}
        special |= emails
        relations[kind] = [case["incidentid"] for case in ordered if _folded(case["contact_email"]) in emails]
    titles: dict[str, int] = {}
    for case in ordered:
        titles[_folded(case["title"])] = titles.get(_folded(case["title"]), 0) + 1
    usable = [
        case
        for case in ordered
        if case["contact_email"]
        and _folded(case["contact_email"]) not in special
        and 0 < len(case["title"] or "") <= 160
        and titles[_folded(case["title"])] == 1
    ]
    random.Random(len(ordered)).shuffle(usable)
    for kind, share in SHARES.items():
        count = _scaled(share, scale)
        relations[kind], usable = sorted(case["incidentid"] for case in usable[:count]), usable[count:]
    return relations


class _Office:
    """Writes the demo records of one instance."""

    def __init__(self, sim: ServiceNow) -> None:
        self.sim = sim
        self.random = random.Random(2026)
        self.now = sim.clock.now_s()
        self.start = self.now - timedelta(days=HISTORY_DAYS)
        self.agents: list[str] = []
        self.staff: list[str] = []
        self.groups: dict[str, str] = {}
        self.places: list[tuple[str, str]] = []  # location, time zone
        self.departments: list[str] = []
        self.company = ""

    # -- people -------------------------------------------------------------------------------------------------------

    def seed_people(self, cases: Sequence[Case], relations: Mapping[str, list[str]]) -> None:
        """Write places, roles, groups and users: staff, owners of cases, and the contacts that the relations need."""
        sim, start = self.sim, self.start
        self.company = sim.insert(
            "core_company", at=start, name="Acme Service", website="https://acme.example", customer="true"
        )
        for city, country, zone in CITIES:
            self.places.append(
                (sim.insert("cmn_location", at=start, name=city, city=city, country=country, time_zone=zone), zone)
            )
        self.departments = [
            sim.insert("cmn_department", at=start, name=name, company=self.company) for name in DEPARTMENTS
        ]
        roles = {name: sim.insert("sys_user_role", at=start, name=name) for name in ROLES}
        sim.insert("sys_user_role_contains", at=start, role=roles["itil_admin"], contains=roles["itil"])
        teams = {case["owner_team"] for case in cases if case["owner_team"]} - set(GROUPS)
        for name, held in {**GROUPS, **dict.fromkeys(sorted(teams), ("itil",))}.items():
            self.groups[name] = sim.insert("sys_user_group", at=start, name=name, email=f"{_slug(name)}@acme.example")
            for role in held:
                sim.insert("sys_group_has_role", at=start, group=self.groups[name], role=roles[role])
        self._seed_staff(roles)
        owners = sorted({_folded(case["owner_email"]) for case in cases if case["owner_email"]})
        for email in owners[::2]:  # the others are unknown here until a sync makes them
            self.agents.append(self._by_email(email) or self._user(email, _name_from(email)))
        self._seed_contacts({case["incidentid"]: case for case in cases}, relations)

    def _seed_staff(self, roles: Mapping[str, str]) -> None:
        sim = self.sim
        for number in range(120):
            first = FIRST_NAMES[number % len(FIRST_NAMES)]
            last = LAST_NAMES[(number * 7 + number // len(FIRST_NAMES)) % len(LAST_NAMES)]
            name = f"{_slug(first)}.{_slug(last)}"
            email = f"{name}@service.acme.example" if not sim.rows("sys_user", user_name=name) else ""
            location, zone = self.places[number % len(self.places)]
            sys_id = self._user(
                email,
                (first, last),
                user_name=name if email else f"{name}{number}",
                location=location,
                time_zone=zone if number % 3 else "",
                department=self.departments[number % len(self.departments)],
                manager=self.staff[number // 10] if number >= 10 else "",
                mobile_phone=f"+1 555 01{number:02d}" if number % 2 else "",
                employee_number=f"E{1000 + number}",
                vip="true" if number % 40 == 0 else "false",
                active="false" if number % 15 == 14 else "true",
            )
            self.staff.append(sys_id)
            if number < 40:
                self.agents.append(sys_id)
                team = list(self.groups.values())[number % len(self.groups)]
                sim.insert("sys_user_grmember", at=self.start, user=sys_id, group=team)
                if number % 4 == 0:  # the same role twice: granted directly as well
                    sim.insert("sys_user_has_role", at=self.start, user=sys_id, role=roles["itil"])
        for sys_id, role in zip(self.staff, ("admin", "itil_admin", "user_admin", "approver_user"), strict=False):
            sim.insert("sys_user_has_role", at=self.start, user=sys_id, role=roles[role])
        for group, manager in zip(self.groups.values(), self.agents, strict=False):
            sim.update("sys_user_group", group, by="admin", at=self.start, manager=manager)
        for number in range(4):  # two active users with one address
            twin = self.sim.tables["sys_user"][self.staff[50 + number]]
            if twin["email"]:
                self._user(
                    twin["email"],
                    (twin["first_name"], f"{twin['last_name']} (old)"),
                    user_name=f"{twin['user_name']}.old",
                )

    def _seed_contacts(self, cases: Mapping[str, Case], relations: Mapping[str, list[str]]) -> None:
        for email in self._emails(cases, relations["inactive_caller"]):
            self._user(email, _name_from(email), active="false")
        for email in self._emails(cases, relations["duplicate_caller"]):
            self._user(email, _name_from(email))
            self._user(email, _name_from(email), user_name=f"{email}.2")
        for kind in SHARES:
            for email in self._emails(cases, relations[kind]):
                if not self._by_email(email):
                    self._user(email, _name_from(email), source="vendor recipe")

    @staticmethod
    def _emails(cases: Mapping[str, Case], case_ids: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(_folded(cases[case_id]["contact_email"]) for case_id in case_ids))

    def _user(self, email: str, name: tuple[str, str], **fields: str) -> str:
        cells = {
            "user_name": email,
            "email": email,
            "first_name": name[0],
            "last_name": name[1],
            "company": self.company,
        }
        return self.sim.insert("sys_user", at=self.start, **(cells | fields))

    def _by_email(self, email: str) -> str:
        found = self.sim.records.lookup("sys_user", "email", [email]) or []
        return found[0]["sys_id"] if found else ""

    # -- counterparts of cases ----------------------------------------------------------------------------------------

    def seed_relations(self, cases: Mapping[str, Case], relations: Mapping[str, list[str]]) -> None:
        """Write the incidents that stand for cases in one way or another."""
        writers: dict[str, Callable[[Case, int], None]] = {
            "vendor_recipe": self._vendor_recipe,
            "same_title": self._same_title,
            "ambiguous_title": self._ambiguous_title,
            "same_title_closed": self._same_title_closed,
            "same_title_other_caller": self._same_title_other_caller,
        }
        for kind, write in writers.items():
            for place, case_id in enumerate(relations[kind]):
                write(cases[case_id], place)

    def _vendor_recipe(self, case: Case, place: int) -> None:
        opened = self._moment(case["createdon"])
        self._for_case(
            case, number=case["ticketnumber"], opened_at=_text(opened), by="vendor.recipe", caller_id=self._caller(case)
        )

    def _same_title(self, case: Case, place: int) -> None:
        self._for_case(case, caller_id=self._caller(case) if place % 2 else "")

    def _ambiguous_title(self, case: Case, place: int) -> None:
        for _ in range(2):
            self._for_case(case, caller_id=self._caller(case))

    def _same_title_closed(self, case: Case, place: int) -> None:
        self._for_case(case, caller_id=self._caller(case), state="7", **SOLUTION)

    def _same_title_other_caller(self, case: Case, place: int) -> None:
        others = [sys_id for sys_id in self.staff if sys_id != self._caller(case)]
        self._for_case(case, caller_id=others[place % len(others)])

    def _for_case(self, case: Case, by: str = "beth.kowalski", **fields: str) -> None:
        created = min(self._moment(case["createdon"]) + timedelta(hours=5), self.now)
        cells = {
            "short_description": case["title"],
            "contact_type": "phone",
            "assignment_group": self.groups["Service Desk"],
        }
        self.sim.insert("incident", by=by, at=created, **(cells | fields))

    def _caller(self, case: Case) -> str:
        return self._by_email(_folded(case["contact_email"]))

    def _moment(self, value: str | datetime) -> datetime:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return min(moment if moment.tzinfo else moment.replace(tzinfo=UTC), self.now).replace(microsecond=0)

    # -- other tables -------------------------------------------------------------------------------------------------

    def seed_others(self) -> None:
        """Write change requests in several stages and assets, for the recipes that read them."""
        for number, (state, approval) in enumerate(
            (("-5", "not requested"), ("-4", "requested"), ("-2", "approved"), ("3", "approved"))
        ):
            self.sim.insert(
                "change_request",
                at=self.now - timedelta(days=9 - number),
                short_description=f"Replace switch {number + 1} in the server room",
                state=state,
                approval=approval,
                assignment_group=self.groups["Network"],
                requested_by=self.staff[number],
                company=self.company,
            )
        for number in range(12):
            self.sim.insert(
                "alm_asset",
                at=self.start,
                display_name=f"P10{number:02d} - Laptop 14",
                asset_tag=f"P10{number:02d}",
                serial_number=f"SN-7A{number:03d}",
                model="Laptop 14",
                company=self.company,
                assigned_to=self.staff[number],
                purchase_date=f"{self.start:%Y-%m-%d}",
            )

    # -- the year before ----------------------------------------------------------------------------------------------

    def seed_history(self, count: int, taken: set[str]) -> None:
        """Write the instance's own incidents, the older the more of them closed; none has the title of a case."""
        groups, span_s = list(self.groups.values()), HISTORY_DAYS * 86_400
        titles = [(kind, f"{text} (office)" if _folded(text) in taken else text) for kind, text in COMPLAINTS]
        for number in range(max(0, count)):
            opened = self.start + timedelta(seconds=int(span_s * (number + self.random.random()) / max(1, count)))
            category, title = self.random.choice(titles)
            fields = {
                "category": category,
                "short_description": title,
                "description": f"{title}. Reported by {self.random.choice(CHANNELS)}.",
                "caller_id": self.random.choice(self.staff),
                "contact_type": self.random.choice(CHANNELS),
                "urgency": self.random.choice("1223333"),
                "impact": self.random.choice("122333"),
                "severity": self.random.choice("1233333333"),
                "assignment_group": self.random.choice(groups),
                "opened_at": _text(opened),
                "company": self.company,
            }
            sys_id = self.sim.insert("incident", by="beth.kowalski", at=opened, **fields)
            self._work(sys_id, opened)

    def _work(self, sys_id: str, opened: datetime) -> None:
        age = self.now - opened
        if age < timedelta(hours=6):
            return
        begun = opened + min(age, timedelta(minutes=self.random.randint(10, 300)))
        agent = self.random.choice(self.agents)
        change = {"state": "2", "assigned_to": agent}
        if self.random.random() < 0.2:
            change["comments"] = "We are looking into it."
        self.sim.update("incident", sys_id, at=begun, **change)
        if self.random.random() < 0.1:
            change = {"state": "3", "hold_reason": "4", "work_notes": "Waiting for the vendor."}
            self.sim.update("incident", sys_id, at=min(self.now, begun + timedelta(hours=3)), **change)
        if age > timedelta(days=self.random.randint(2, 40)):
            solved = begun + min(self.now - begun, timedelta(hours=self.random.randint(1, 40)))
            self.sim.update("incident", sys_id, at=solved, state="6", **SOLUTION)
            if age > timedelta(days=60):
                self.sim.update(
                    "incident", sys_id, by="system", at=min(self.now, solved + timedelta(days=7)), state="7"
                )


def _scaled(share: int, scale: float) -> int:
    return max(1, round(share * scale))


def _folded(text: str | None) -> str:
    return (text or "").strip().casefold()


def _slug(text: str) -> str:
    plain = text.lower().translate({ord("ü"): "ue", ord("ë"): "e", ord("'"): None, ord(" "): "."})
    return "".join(letter for letter in plain if letter.isascii())


def _name_from(email: str) -> tuple[str, str]:
    first, _, last = email.partition("@")[0].replace("_", ".").partition(".")
    return (first.title(), last.title()) if last else ("", first.title())


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")
