"""Demo records for the Dynamics 365 simulator: customers, people and some hundred support cases with everything that goes wrong in real ones.

Everything follows from a fixed random seed and from `now`, so that two runs see the same ids, names and titles.
"""

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.dynamics365 import Dynamics365
from sandbox.dynamics365_query import Ref, Row

SEED = 20260301
OLDER, RECENT = 60, 10  # cases modified before yesterday, and today
LONG_DESCRIPTION = 10_000
CaseFacts = dict[str, Any]

COMPANIES = (
    ("Northwind Logistics", "northwind.example"), ("Müller & Söhne GmbH", "mueller-soehne.example"), ("Fabrikam Energy", "fabrikam.example"),
    ("Ærøskøbing Færger A/S", "aero-ferries.example"), ("Tailspin Toys", "tailspin.example"), ("Grupo Añil S.A.", "anil.example"),
    ("Wingtip Clinics", "wingtip.example"), ("株式会社みどり", "midori.example"), ("Łódź Textiles Sp. z o.o.", "lodz-textiles.example"),
    ("O'Hara & Finch LLP", "ohara-finch.example"), ("Crèmerie du Lac", "cremerie-lac.example"), ("Blue Yonder Airlines", "blueyonder.example"),
    ("Adatum Insurance", "adatum.example"), ("Ostrava Steel a.s.", "ostrava-steel.example"), ("Lucerne Publishing", "lucerne.example"),
    ("Cape Fynbos Wines", "fynbos.example"), ("São Bento Alimentos", "saobento.example"), ("Contoso Retail UK", "contoso-retail.example"),
)  # fmt: skip
FIRST_NAMES = (
    "Ada", "Björn", "Chloé", "Dmitri", "Esperanza", "Fatima", "Grzegorz", "Hiroshi", "Ingrid", "João", "Katarzyna", "Liam", "Mei", "Noor",
    "Oluwaseun", "Priya", "Quentin", "Rosalía", "Søren", "Thandiwe", "Ümit", "Valentina", "Wei", "Xiomara", "Yusuf", "Zoë", "José María", "Siobhán",
)  # fmt: skip
LAST_NAMES = (
    "Quill", "Lindqvist", "Dubois", "Orlov", "García Márquez", "Al-Sayed", "Wiśniewski", "Tanaka", "Sørensen", "Pereira", "Nowak", "O'Brien", "Zhang",
    "van der Berg", "Adeyemi", "Raghunathan", "D'Angelo", "Iglesias", "Kjær", "Mokoena", "Yıldız", "Rossi", "Liu", "Hernández", "Demir", "Müller", "Ní Dhomhnaill",
)  # fmt: skip
JOB_TITLES = (
    "IT Manager",
    "Office Manager",
    "Leiterin Einkauf",
    "Warehouse Lead",
    "Responsable comptable",
    "Plant Engineer",
    "Nurse in charge",
    "CFO",
    None,
)
STREETS = (
    "Harbour Road",
    "Lindenstraße",
    "Rue des Carmes",
    "Storgatan",
    "ul. Piotrkowska",
    "Calle Mayor",
    "Kirkegade",
    "桜通り",
)
PLACES = (  # city, state or province, postal code, country
    ("Berlin", None, "10115", "Germany"), ("Malmö", "Skåne", "211 22", "Sweden"), ("Lyon", None, "69002", "France"),
    ("Chicago", "IL", "60601", "United States"), ("Łódź", None, "90-001", "Poland"), ("名古屋", "愛知県", "460-0008", "Japan"),
)  # fmt: skip
NOTES = (
    "Prefers to be called in the morning.", "<p>Met at the fair, wants a quote for <b>40 seats</b> &amp; training.</p>",
    "Spricht Deutsch und Polnisch.\nUrlaub im August.", "Left the newsletter; do not ask again.",
)  # fmt: skip
TEAMS = (
    "Support EMEA",
    "Support Americas",
    "Hardware",
    "Billing",
    "Field Service Nordics",
)  # the last is unknown to ServiceNow
PROBLEMS = (  # title, opening of the description; {} is filled with something of the customer's
    ("Cannot connect to VPN after password change", "Since the forced password change this morning the VPN client says 'authentication failed' on {}."),
    ("Label printer prints blank pages", "The label printer at gate {} feeds paper but prints nothing. Ribbon and head were exchanged."),
    ("Rechnung {} doppelt abgebucht", "Der Betrag der Rechnung wurde am Monatsende zweimal eingezogen. Bitte um Gutschrift."),
    ("Outlook keeps asking for credentials", "Outlook prompts every few minutes although the password is right. Affects about {} people."),
    ("Scanner {} loses its Wi-Fi in aisle 7", "The hand scanner disconnects each time it is carried behind the cold storage."),
    ("Export to Excel stops at 10,000 rows", "The open orders report {} is cut off without any message."),
    ("Impossible d'ouvrir une session sur le portail", "Message « compte verrouillé » depuis ce matin, poste {}."),
    ("Replacement of power supply needed", "Server {} reports a failed PSU, redundancy lost."),
    ("Wrong VAT rate on invoice {}", "The invoice shows 19 % instead of 7 %. Our auditor needs a corrected copy this week."),
    ("Mobile app crashes when taking a photo", "Version {} closes as soon as the camera opens, on three different phones."),
    ("New starter needs access on Monday", "Please prepare mailbox, shared drive and card reader rights for desk {}."),
    ("Backup job {} failed with code 0x80070005", "The nightly backup has not finished for three nights in a row."),
    ("Pantalla azul al iniciar la caja {}", "El terminal se reinicia solo después de unos segundos con un código de parada."),
    ("Delivery {} arrived incomplete", "Two of five pallets are missing; the driver's note says nothing about it."),
    ("Phone queue plays the wrong greeting", "Callers of extension {} hear the holiday announcement."),
    ("Temperature alarm does not reset", "Sensor {} still shows red after the door was repaired."),
    ("Drukarka {} offline po aktualizacji", "Po aktualizacji sterownika drukarka nie jest widoczna w sieci."),
    ("Portal is slow between 8 and 9", "Pages take {} seconds to load during the morning shift."),
    ("パスワードの再設定ができません", "再設定メールが届きません。端末 {}。"),
    ("Contract renewal: question about seats", "We want to go from {} to 250 seats and keep the old price."),
)  # fmt: skip
ODD_TITLES = (
    "Search for 'O''Brien & Co' finds nothing", "Discount of 100%, charged 50%", "Error ^NQ in field ^ORactive=true", "Re: Re: AW: @all please read, urgent!!",
    "🖨️ printer on fire 🔥 (not really)", "javascript:alert(document.cookie)", "Line one\nline two of the title", "<b>Bold</b> <script>alert('x')</script> in the subject",
    "  leading and trailing blanks  ", "Ticket \"quoted\" \\ backslash; semicolon, comma", "Unicode: ﷽ ñ ß İ ı ﬁ e\u0301", "Printer offline", "Printer offline", "PRINTER OFFLINE",
    "=HYPERLINK(\"http://example.invalid\",\"click\")", "{ticketnumber} ${SETTING} {{ braces }}", "Übergröße: " + "ä" * 189, "A" * 200,
    "The customer writes a whole story into the subject line because the form lets them do so and nobody ever told them that there is also a field for the description of what happened, so here it all is. End",
)  # fmt: skip
HTML_TEXT = (
    '<div style="font-family:Segoe UI"><p>Hello team,</p><p>{opening}</p><ul><li>tried a restart</li><li>tried another cable &amp; port</li></ul>'
    '<p>See <a href="https://status.example.invalid/?a=1&amp;b=2">status</a>.<br>Regards<br><img src="cid:logo" alt="logo"></p></div>'
)


class _Seeder:
    """Makes the records; holds the random source and what was made so far."""

    def __init__(self, sim: Dynamics365, now: datetime, long_descriptions: bool, random_seed: int) -> None:
        self.sim, self.now, self.long_descriptions = sim, now, long_descriptions
        self.random = random.Random(random_seed)
        self.details = random.Random(f"{random_seed} details")  # of its own: what it draws changes nothing else
        self.users: list[str] = []
        self.teams: list[str] = []
        self.accounts: list[str] = []
        self.contacts: list[str] = []
        self.phones = 5_550_100

    def guid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def chance(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def phone(self) -> str | None:
        self.phones += 1
        return None if self.chance(30) else f"+49 30 {self.phones}"

    def maybe(self, value: str) -> str | None:
        return None if self.details.randrange(100) < 20 else value

    def address(self, **given: str | None) -> Row:
        """Return an address in the city or country given, None: anywhere, and left out; other lines may be missing."""
        known = {value for value in given.values() if value}
        fitting = [place for place in PLACES if known <= set(place)]
        city, state, postal_code, country = self.details.choice(fitting or PLACES)
        street = f"{self.details.choice(STREETS)} {self.details.randrange(1, 200)}"
        return {
            "address1_line1": self.maybe(street), "address1_line2": self.maybe("2nd floor") if self.details.random() < 0.4 else None,
            "address1_line3": self.maybe("Gate 3") if self.details.random() < 0.2 else None, "address1_city": self.maybe(city),
            "address1_stateorprovince": state, "address1_postalcode": self.maybe(postal_code), "address1_country": self.maybe(country),
        } | given  # fmt: skip

    def fax(self) -> str | None:
        return self.maybe(f"+49 30 {self.details.randrange(6_000_000, 7_000_000)}")

    # -- people and customers

    def add_owners(self) -> None:
        for number, (first, last) in enumerate(zip(FIRST_NAMES[::2], LAST_NAMES[::2], strict=True)):
            email = None if number == 13 else f"{_ascii(first)}.{_ascii(last)}@contoso.example"
            user = self.sim.insert(
                "systemuser",
                systemuserid=self.guid(),
                firstname=first,
                lastname=last,
                internalemailaddress=email,
                isdisabled=number in (5, 11),
            )
            self.users.append(user)
        for name in TEAMS:
            self.teams.append(self.sim.insert("team", teamid=self.guid(), name=name))

    def add_customers(self) -> None:
        long_ago = self.now - timedelta(days=400)
        for number, (name, domain) in enumerate(COMPANIES):
            account = self.sim.insert(
                "account",
                accountid=self.guid(), name=name, accountnumber=f"A-{1000 + number}", telephone1=self.phone(), websiteurl=f"https://{domain}",
                emailaddress1=None if number % 5 == 4 else f"info@{domain}",
                **self.address(address1_city=self.random.choice(("Berlin", "Malmö", "Lyon", "Chicago", None))),
                numberofemployees=self.random.choice((None, 0, 12, 480, 25_000)), revenue=self.random.choice((None, 20_000, 1_250_000.5)),
                sic=self.random.choice((None, "7372")), fax=self.fax(), description=self.maybe(self.details.choice(NOTES)), createdon=long_ago, modifiedon=long_ago,
            )  # fmt: skip
            self.accounts.append(account)
            people = [self.add_contact(account, domain, number * 5 + place) for place in range(5)]
            if number % 3:
                self.sim.update("account", account, primarycontactid=people[0], modifiedon=long_ago)

    def add_contact(self, account: str, domain: str, number: int) -> str:
        first, last = self.random.choice(FIRST_NAMES), self.random.choice(LAST_NAMES)
        email = f"{_ascii(first)}.{_ascii(last)}{number}@{domain}"
        match number % 20:
            case 7:
                email = None
            case 11 | 12:  # two people share the address of their desk
                email = f"reception@{domain}"
            case 16:
                email = email.upper()
        row = {
            "contactid": self.guid(), "firstname": None if number % 17 == 3 else first, "lastname": last, "emailaddress1": email,
            "telephone1": self.phone(), "mobilephone": self.phone(), "jobtitle": self.random.choice(JOB_TITLES),
            **self.address(address1_country=self.random.choice(("Germany", "France", None))), "fax": self.fax(), "description": self.maybe(self.details.choice(NOTES)),
            "parentcustomerid_account": None if number % 9 == 8 else account, "createdon": self.now - timedelta(days=300), "modifiedon": self.now - timedelta(days=90),
        }  # fmt: skip
        if number % 13 == 6:
            row["statecode"] = 1
        contact = self.sim.insert("contact", **row)
        self.contacts.append(contact)
        return contact

    # -- cases

    def add_cases(self, count: int) -> None:
        midnight = self.now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        times = [midnight - timedelta(days=2 + n % 45, seconds=self.random.randrange(86_400)) for n in range(OLDER)]
        times += [midnight - timedelta(days=1) + timedelta(seconds=self.random.randrange(86_400)) for _ in range(count)]
        today_s = max(1, int((self.now - midnight).total_seconds()))
        # not `randrange`, which draws another number of times for another range: records would depend on the hour
        times += [midnight + timedelta(seconds=int(self.random.random() * today_s)) for _ in range(RECENT)]
        masters: list[str] = []
        for number, modified in enumerate(sorted(times)):
            case = self.add_case(number, modified)
            if number % 40 == 25 and masters:
                self.sim.update(
                    "incident",
                    case,
                    statecode=2,
                    statuscode=2000,
                    masterid=self.random.choice(masters),
                    merged=True,
                    modifiedon=modified,
                )
            elif number % 40 < 20:
                masters.append(case)

    def add_case(self, number: int, modified: datetime) -> str:
        created = modified - timedelta(seconds=self.random.randrange(60, 6 * 86_400))
        title, opening = self.random.choice(PROBLEMS)
        detail = str(self.random.randrange(100, 999))
        text: str | None = title.format(detail)
        if number % 12 == 5:
            text = ODD_TITLES[number // 12 % len(ODD_TITLES)][:200]
        elif number % 97 == 50:
            text = None
        state, status = self.state(number)
        return self.sim.insert(
            "incident",
            incidentid=self.guid(), title=text, description=self.description(number, opening.format(detail)),
            prioritycode=5 if number % 61 == 30 else None if number % 29 == 4 else self.random.choice((1, 2, 2, 2, 3)),
            caseorigincode=700_610_000 if number % 53 == 20 else None if number % 31 == 9 else self.random.choice((1, 1, 2, 2, 2, 3, 3, 2483, 3986)),
            casetypecode=self.random.choice((1, 2, 2, 3, None)), statecode=state, statuscode=status, createdon=created, modifiedon=modified,
            ownerid=self.owner(), **self.customer(number),
        )  # fmt: skip

    def customer(self, number: int) -> Row:
        contact = self.random.choice(self.contacts)
        if number % 11 == 3:
            named = self.random.choice(self.contacts) if number % 2 else None
            return {"customerid_account": self.random.choice(self.accounts), "primarycontactid": named}
        return {"customerid_contact": contact, "primarycontactid": contact if self.chance(25) else None}

    def owner(self) -> tuple[str, str]:
        if self.chance(25):
            return ("team", self.random.choice(self.teams))
        return ("systemuser", self.random.choice(self.users))

    @staticmethod
    def state(number: int) -> tuple[int, int]:
        match number % 20:
            case 6:
                return 1, 5
            case 13:
                return 1, 1000
            case 17:
                return 2, 6
        return 0, (1, 1, 2, 3, 4)[number % 5]

    def description(self, number: int, opening: str) -> str | None:
        longest = LONG_DESCRIPTION if self.long_descriptions else 2000
        match number % 15:
            case 2:
                return None
            case 4 | 8:
                return HTML_TEXT.format(opening=opening)
            case 11:
                return (opening + "\n" + "It happens again and again, every day at the same time. " * 200)[:longest]
        return f"{opening}\n\nReported by phone, call back in the afternoon." if self.chance(60) else opening


def seed(
    sim: Dynamics365,
    count: int = 300,
    now: datetime | None = None,
    long_descriptions: bool = False,
    random_seed: int = SEED,
) -> list[CaseFacts]:
    """Fill a simulator and return its case facts: `count` cases modified yesterday (UTC, before `now`), 60 older, 10 of today.

    With `long_descriptions` the column is customised to hold 10,000 characters, and some cases use them.
    """
    if long_descriptions:
        sim.set_max_length("incident", "description", LONG_DESCRIPTION)
    seeder = _Seeder(sim, now or sim.clock.now(), long_descriptions, random_seed)
    seeder.add_owners()
    seeder.add_customers()
    seeder.add_cases(count)
    return case_facts(sim)


def case_facts(sim: Dynamics365) -> list[CaseFacts]:
    """Return one plain dict per case, oldest insert first, with the people's addresses in place of ids; times are aware UTC."""
    store = sim.store
    facts = []
    for case in store.all("incident"):
        customer: Ref = case["customerid"]
        row = store.find(customer.table, customer.id) or {}
        contact = row if customer.table == "contact" else {}
        user = store.find("systemuser", case["owninguser"].id) if case["owninguser"] else None
        team = store.find("team", case["owningteam"].id) if case["owningteam"] else None
        facts.append(
            {
                **{name: case[name] for name in ("incidentid", "ticketnumber", "title", "description", "prioritycode", "caseorigincode")},
                **{name: case[name] for name in ("casetypecode", "statecode", "statuscode", "createdon", "modifiedon")},
                "masterid": case["masterid"].id if case["masterid"] else None,
                "customer_type": customer.table,
                "contact_id": customer.id if customer.table == "contact" else None,
                "contact_name": contact.get("fullname"),
                "contact_first_name": contact.get("firstname"),
                "contact_last_name": contact.get("lastname"),
                "contact_email": contact.get("emailaddress1"),
                "contact_active": contact.get("statecode") == 0 if contact else None,
                "account_name": row.get("name"),
                "owner_name": user["fullname"] if user else None,
                "owner_email": user["internalemailaddress"] if user else None,
                "owner_active": not user["isdisabled"] if user else None,
                "owner_team": team["name"] if team else None,
            }
        )  # fmt: skip
    return facts


def _ascii(name: str) -> str:
    plain = name.lower().translate(str.maketrans("äåáãéèíïñóöøüúćśłıżæç", "aaaaeeiinooouucslizac"))
    return "".join(char for char in plain if char.isascii() and char.isalnum()) or "user"
