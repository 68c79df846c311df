"""The encoded query language of the ServiceNow stand-in."""

import pytest

from sandbox.servicenow import ServiceNow
from sandbox.servicenow_query import Asker, Search, parse, split_terms
from sandbox.servicenow_store import UTC_ZONE
from sandbox.simulator import Clock
from tests.sandbox.servicenow_calls import NOW


@pytest.fixture(scope="module")
def sim() -> ServiceNow:
    """Five incidents A to E of two callers; only read."""
    sim = ServiceNow(Clock(NOW))
    boss = sim.insert("sys_user", user_name="boss", email="boss@x.example", first_name="Bo", last_name="Ss")
    beth = sim.insert(
        "sys_user", user_name="beth", email="Beth@X.example", first_name="Beth", last_name="A", manager=boss
    )
    nobody = sim.insert("sys_user", user_name="nomail", last_name="Nomail")
    role = sim.insert("sys_user_role", name="itil")
    sim.insert("sys_user_has_role", user=beth, role=role)
    rows = (
        ("A", "Printer jams", "1", beth, "c-1", "2026-01-31 10:00:00"),
        ("B", "printer JAMS", "2", boss, "c-2", "2026-02-01 00:00:00"),
        ("C", "a^b", "3", nobody, "", "2026-02-10 08:00:00"),
        ("D", "Mail", "3", "", "", "2026-03-01 23:59:59"),
        ("E", "Mail, again", "1", beth, "c-5", "2026-03-02 01:00:00"),
    )
    for number, title, urgency, caller, correlation, opened in rows:
        sim.insert(
            "incident",
            number=number,
            short_description=title,
            urgency=urgency,
            caller_id=caller,
            correlation_id=correlation,
            opened_at=opened,
        )
    return sim


def find(sim: ServiceNow, query: str, table: str = "incident", field: str = "number") -> str:
    asker = Asker(sim.rows("sys_user", user_name="beth")[0]["sys_id"], "beth", UTC_ZONE, NOW)
    return "".join(sorted(row[field] for row in Search(sim.records, asker).run(table, parse(query)).rows))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "ABCDE"),
        ("number=A", "A"),
        ("short_description=PRINTER jams", "AB"),
        ("urgency!=3", "ABE"),
        ("correlation_id!=c-1", "BE"),
        ("correlation_id!=c-1^ORcorrelation_idISEMPTY", "BCDE"),
        ("urgency<2", "AE"),
        ("urgency>=2", "BCD"),
        ("numberINA,e,x", "AE"),
        ("numberNOT INA,E", "BCD"),
        ("short_descriptionLIKEjam", "AB"),
        ("short_descriptionNOT LIKEmail", "ABC"),
        ("short_descriptionSTARTSWITHmail", "DE"),
        ("short_descriptionENDSWITHAGAIN", "E"),
        ("caller_idISEMPTY", "D"),
        ("caller_idISNOTEMPTY^urgency=1", "AE"),
        ("correlation_id=", "CD"),
        ("caller_id.email=", "CD"),
        ("opened_atBETWEEN2026-02-01@2026-03-01", "BC"),
        ("opened_at>=2026-02-01", "BCDE"),
        ("opened_at>2026-02-01 00:00:00", "CDE"),
        ("urgencySAMEASimpact", "CD"),
        ("urgencyANYTHING", "ABCDE"),
        ("active=true^urgency=1", "AE"),
        ("active=1^numberINA,B", "AB"),
        ("urgency=1^ORurgency=2^correlation_id=c-2", "B"),
        ("number=A^NQnumber=D", "AD"),
        ("number=A^urgency=3^NQurgency=2", "B"),
        ("short_description=a^^b", "C"),
        ("number=A^EQ", "A"),
        ("caller_id.email=beth@x.example", "AE"),
        ("caller_id.manager.user_name=boss", "AE"),
        ("caller_id.managerISEMPTY^caller_idISNOTEMPTY", "BC"),
        ("number=A^ORnumber=B^ORcorrelation_id=c-5", "ABE"),
        ("caller_id=javascript:gs.getUserID()", "AE"),
        ("opened_at>=javascript:gs.beginningOfToday()", "E"),
        ("opened_at<javascript:gs.dateGenerate('2026-02-01','00:00:00')", "A"),
        ("opened_at>=javascript:gs.daysAgoStart(1)", "DE"),
        ("number=javascript:new GlideRecord('incident').deleteMultiple()", ""),
        ("123TEXTQUERY321=printer", "AB"),
        ("RLQUERYincident.parent,>=1^ENDRLQUERY", ""),
        ("RLQUERYincident.parent,=0^ENDRLQUERY^urgency=1", "AE"),
        ("JOINincident.caller_id=sys_user.sys_id!user_name=beth^ORDERBYnumber", "AE"),
    ],
)
def test_query_operators(sim: ServiceNow, query: str, expected: str) -> None:
    """Each operator finds what the vendor's finds."""
    assert find(sim, query) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("bogus=1", "ABCDE"),
        ("bogus=1^number=A", "A"),
        ("bogus=1^ORbogus=2^ORnumber=A", "A"),
        ("number=A^ORbogus=1", "A"),
        ("number=A^NQbogus=1", "ABCDE"),
        ("caller_id.bogus=1", "ABCDE"),
        ("short_description.name=1", "ABCDE"),
        ("numberWHATEVERA", "ABCDE"),
        ("Number=A", "ABCDE"),
        ("opened_at>2026-02-01T00:00:00Z", "ABCDE"),
        ("opened_atBETWEEN2026-02-01", "ABCDE"),
        ("urgency>high", "ABCDE"),
        ("nonsense", "ABCDE"),
    ],
)
def test_query_invalid_parts_are_dropped(sim: ServiceNow, query: str, expected: str) -> None:
    """A condition that makes no sense is no condition: the rest runs, or every row comes back."""
    assert find(sim, query) == expected


def test_query_many_bogus_conditions_and_one_good(sim: ServiceNow) -> None:
    """2,300 conditions on unknown fields beside one valid sys_id return that one row."""
    sys_id = sim.rows("incident", number="C")[0]["sys_id"]
    bogus = "^OR".join(f"nothing{n}={n}" for n in range(2300))

    assert find(sim, f"{bogus}^ORsys_id={sys_id}") == "C"


def test_query_roles_filter(sim: ServiceNow) -> None:
    """Users can be filtered by the names of their roles."""
    assert find(sim, "roles=itil", "sys_user", "user_name") == "beth"


def test_query_parent_table_sees_extending_tables(sim: ServiceNow) -> None:
    """A query on task finds incidents, by the columns that task has."""
    assert find(sim, "number=A", "task") == "A"
    assert find(sim, "caller_id=x^number=A", "task") == "A"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("ORDERBYshort_description^ORDERBYnumber", "CDEAB"),
        ("ORDERBYDESCurgency^ORDERBYnumber", "CDBAE"),
        ("ORDERBYcaller_id.user_name^ORDERBYDESCnumber", "DEABC"),
    ],
)
def test_query_order(sim: ServiceNow, query: str, expected: str) -> None:
    """Orders apply in the sequence given, case-insensitive and numeric where the column is."""
    asker = Asker("", "beth", UTC_ZONE, NOW)

    numbers = "".join(row["number"] for row in Search(sim.records, asker).run("incident", parse(query)).rows)

    assert numbers == expected


@pytest.mark.parametrize(
    ("text", "terms"),
    [("a=1^b=2", ["a=1", "b=2"]), ("a=x^^y^b=2", ["a=x^y", "b=2"]), ("^a=1^", ["a=1"]), ("a=^^^b=1", ["a=^", "b=1"])],
)
def test_split_terms(text: str, terms: list[str]) -> None:
    """A doubled caret is a literal caret, a single one separates."""
    assert split_terms(text) == terms


@pytest.mark.parametrize(
    "query",
    [
        "number=A^ORshort_description=mail",
        "numberINA,B^urgency=1",
        "number=A^NQcaller_id.user_name=boss",
        "correlation_id=^ORnumber=A",
        "caller_id.email=^urgency=3",
    ],
)
def test_query_index_finds_what_a_scan_finds(sim: ServiceNow, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexes are only a short cut."""
    with_index = find(sim, query)

    monkeypatch.setattr(sim.records, "lookup", lambda *_: None)

    assert with_index
    assert find(sim, query) == with_index
