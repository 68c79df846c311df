"""The demo records: deterministic, and with every difficulty that a flow has to meet."""

from collections import Counter
from datetime import UTC, date, datetime

import pytest

from sandbox import dynamics365_records as records
from sandbox.dynamics365 import Dynamics365
from sandbox.simulator import Clock
from tests.sandbox.dynamics365_caller import NOW, Caller, serve_in_thread


@pytest.fixture(scope="module")
def sim():
    sim = Dynamics365(Clock(NOW))
    sim.cases = records.seed(sim)
    return sim


def test_records_are_the_same_each_time(sim):
    """Two environments hold the same cases, down to ids and times."""
    other = Dynamics365(Clock(NOW))

    assert records.seed(other) == sim.cases
    assert records.case_facts(sim) == sim.cases


def test_cases_lie_around_yesterday(sim):
    """The asked number was modified yesterday in UTC, the rest before and today, none in the future."""
    days = Counter(case["modifiedon"].date() for case in sim.cases)

    assert days[date(2026, 3, 11)] == 300
    assert days[date(2026, 3, 12)] == records.RECENT
    assert len(sim.cases) == 300 + records.RECENT + records.OLDER
    assert all(case["createdon"] < case["modifiedon"] <= NOW for case in sim.cases)


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(lambda c: c["customer_type"] == "account", id="account as customer"),
        pytest.param(
            lambda c: c["customer_type"] == "contact" and c["contact_email"] is None, id="contact without email"
        ),
        pytest.param(lambda c: c["contact_active"] is False, id="inactive contact"),
        pytest.param(lambda c: c["contact_first_name"] is None and c["customer_type"] == "contact", id="no first name"),
        pytest.param(lambda c: c["owner_active"] is False, id="inactive owner"),
        pytest.param(lambda c: c["owner_name"] and c["owner_email"] is None, id="owner without email"),
        pytest.param(lambda c: c["owner_team"] == "Hardware", id="team"),
        pytest.param(lambda c: c["owner_team"] == "Field Service Nordics", id="team unknown elsewhere"),
        pytest.param(lambda c: c["prioritycode"] == 5, id="unknown priority"),
        pytest.param(lambda c: c["prioritycode"] is None, id="no priority"),
        pytest.param(lambda c: c["caseorigincode"] == 700_610_000, id="unknown origin"),
        pytest.param(lambda c: c["caseorigincode"] is None, id="no origin"),
        pytest.param(lambda c: c["title"] is None, id="no title"),
        pytest.param(lambda c: c["description"] is None, id="no description"),
        pytest.param(lambda c: "<p>" in (c["description"] or ""), id="HTML"),
        pytest.param(lambda c: len(c["description"] or "") == 2000, id="longest description"),
        pytest.param(lambda c: len(c["title"] or "") == 200, id="longest title"),
        pytest.param(lambda c: (c["title"] or "").startswith("javascript:"), id="javascript"),
        pytest.param(lambda c: "\n" in (c["title"] or ""), id="line break in the title"),
        pytest.param(lambda c: "🔥" in (c["title"] or ""), id="emoji"),
        pytest.param(lambda c: c["statecode"] == 1, id="resolved"),
        pytest.param(lambda c: c["statuscode"] == 6, id="cancelled"),
        pytest.param(lambda c: c["statuscode"] == 2000 and c["masterid"], id="merged"),
    ],
)
def test_yesterday_has_each_difficulty(sim, wanted):
    """Every trap is among the cases that the daily run reads."""
    assert any(wanted(case) for case in sim.cases if case["modifiedon"].date() == date(2026, 3, 11))


@pytest.mark.parametrize("sign", ["^", "'", "%", ",", "@", "<script>"])
def test_titles_hold_signs_that_query_languages_use(sim, sign):
    """A title may contain what separates terms elsewhere."""
    assert any(sign in (case["title"] or "") for case in sim.cases)


def test_titles_and_addresses_repeat(sim):
    """There are equal titles, and two contacts with one address."""
    titles = Counter(case["title"] for case in sim.cases)
    addresses = Counter(row["emailaddress1"] for row in sim.rows("contact") if row["emailaddress1"])

    assert titles["Printer offline"] >= 2
    assert max(addresses.values()) == 2


CONTACT_COLUMNS = (
    "emailaddress1", "firstname", "lastname", "telephone1", "fax", "mobilephone", "jobtitle", "description",
    "address1_line1", "address1_line2", "address1_line3", "address1_city", "address1_stateorprovince", "address1_country",
    "address1_postalcode",
)  # fmt: skip
ACCOUNT_COLUMNS = (
    "name", "telephone1", "sic", "description", "revenue", "numberofemployees", "websiteurl",
    "address1_line1", "address1_line2", "address1_line3", "address1_city", "address1_stateorprovince", "address1_country",
    "address1_postalcode",
)  # fmt: skip


@pytest.mark.parametrize(
    ("entity", "columns"), [("contact", CONTACT_COLUMNS), ("account", ACCOUNT_COLUMNS)], ids=["contact", "account"]
)
def test_people_and_companies_have_what_marketo_takes(sim, entity, columns):
    """Every column of the mapping is filled in some records; all but names and websites are empty in others."""
    rows = sim.rows(entity)

    empty = {name for name in columns if all(row[name] is None for row in rows)}
    never_empty = {name for name in columns if all(row[name] is not None for row in rows)}

    assert empty == set()
    assert never_empty <= {"lastname", "name", "websiteurl"}


def test_contacts_of_both_kinds(sim):
    """Some contacts have an account and some have none."""
    parents = Counter(row["_parentcustomerid_value"] is not None for row in sim.rows("contact"))

    assert parents[True] > parents[False] > 0


def test_descriptions_may_be_customised_longer():
    """With the switch the column is longer in the metadata, and some cases use it."""
    sim = Dynamics365(Clock(NOW))

    cases = records.seed(sim, count=60, long_descriptions=True)

    assert sim.store.tables["incident"].columns["description"].max_length == 10_000
    assert max(len(case["description"] or "") for case in cases) == 10_000


def test_a_sync_can_read_yesterday_page_by_page(sim):
    """Pages of 100 with all lookups expanded find each case of the day once."""
    columns = "incidentid,ticketnumber,title,description,prioritycode,caseorigincode,statecode,statuscode,createdon,modifiedon"
    expand = "customerid_contact($select=emailaddress1),customerid_account($select=name),owninguser($select=internalemailaddress),owningteam($select=name)"
    window = "modifiedon ge 2026-03-11T00:00:00Z and modifiedon lt 2026-03-12T00:00:00Z"
    with serve_in_thread(sim) as (port,):
        caller = Caller(sim, port)
        prefer = "odata.maxpagesize=100"
        page = caller.get(
            f"incidents?$select={columns}&$filter={window}&$expand={expand}&$orderby=modifiedon,incidentid", prefer
        )
        found = page["value"]
        while "@odata.nextLink" in page:
            page = caller.get(page["@odata.nextLink"], prefer)
            found += page["value"]
        caller.session.close()

    by_id = {case["incidentid"]: case for case in sim.cases}
    assert len(found) == len({row["incidentid"] for row in found}) == 300
    assert all(
        (row["customerid_contact"] or {}).get("emailaddress1") == by_id[row["incidentid"]]["contact_email"]
        for row in found
    )


def test_records_are_the_same_at_any_time_of_the_day() -> None:
    """What the README shows of the demo is what everybody sees, in the morning and at night."""

    def titles(hour: int) -> list[str]:
        sim = Dynamics365()
        return [case["title"] for case in records.seed(sim, 20, now=datetime(2026, 3, 18, hour, tzinfo=UTC))]

    assert titles(1) == titles(7) == titles(12) == titles(23)
