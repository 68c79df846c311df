"""`$filter` of the simulated Web API: what each expression finds, and what is refused."""

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from tests.sandbox.dynamics365_caller import ACME, ADA, BOB, TEAM, USER, add_case, served


@pytest.fixture(scope="module")
def world():
    """Cases that differ in one thing each; the clock says Thursday 2026-03-12 09:30:15 UTC."""
    with served() as caller:
        sim = caller.sim

        def at(day: int, hour: int = 12, month: int = 3) -> datetime:
            return datetime(2026, month, day, hour, tzinfo=UTC)

        add_case(sim, "now", modifiedon=at(12, 9), prioritycode=1)
        add_case(sim, "early today", modifiedon=at(12, 0), prioritycode=2)
        add_case(sim, "yesterday", modifiedon=at(11, 23), prioritycode=3)
        add_case(sim, "last week", modifiedon=at(7), prioritycode=77)
        add_case(sim, "last month", modifiedon=at(10, month=2), prioritycode=None)
        add_case(sim, "O'Brien's 100% sure_thing, & [x]", modifiedon=at(1, month=1), customerid_contact=BOB)
        sim.insert(
            "incident", title="of Acme", customerid_account=ACME, ownerid=("team", TEAM), modifiedon=at(2, month=1)
        )
        add_case(sim, None, modifiedon=at(3, month=1), ownerid=USER)
        yield caller


def find(world, text: str) -> set:
    return {row["title"] for row in world.get(f"incidents?$select=title&$filter={quote(text, safe='')}")["value"]}


EVERYTHING = {
    "now", "early today", "yesterday", "last week", "last month", "O'Brien's 100% sure_thing, & [x]", "of Acme", None,
}  # fmt: skip
CRM = "Microsoft.Dynamics.CRM."


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        pytest.param("title eq 'NOW'", {"now"}, id="text without regard to case"),
        pytest.param("title eq 'O''Brien''s 100% sure_thing, & [x]'", {"O'Brien's 100% sure_thing, & [x]"}, id="doubled quote"),
        pytest.param("title eq null", {None}, id="empty"),
        pytest.param("title ne null", EVERYTHING - {None}, id="not empty"),
        pytest.param("prioritycode eq 1 or prioritycode eq 3", {"now", "yesterday"}, id="or"),
        pytest.param("prioritycode ge 2 and prioritycode le 3 and modifiedon ge 2026-03-01", {"early today", "yesterday"}, id="and"),
        pytest.param("not (prioritycode eq 2 or prioritycode eq null) and title eq 'now'", {"now"}, id="not"),
        pytest.param("prioritycode eq 1 or prioritycode eq 3 and title eq 'nothing'", {"now"}, id="and before or"),
        pytest.param("prioritycode ne 2", {"now", "yesterday", "last week", "last month"}, id="ne finds empty too"),
        pytest.param("modifiedon ge 2026-03-12T00:00:00Z", {"now", "early today"}, id="moment"),
        pytest.param("modifiedon ge 2026-03-12T01:00:00+01:00", {"now", "early today"}, id="offset"),
        pytest.param("modifiedon gt 2026-03-12T00:00:00.5Z", {"now"}, id="fraction"),
        pytest.param("modifiedon ge 2026-03-12", {"now", "early today"}, id="date"),
        pytest.param(f"_customerid_value eq {ACME}", {"of Acme"}, id="lookup"),
        pytest.param(f"_customerid_value eq {BOB.upper()}", {"O'Brien's 100% sure_thing, & [x]"}, id="upper case id"),
        pytest.param("customerid_contact/lastname eq 'o''brien'", {"O'Brien's 100% sure_thing, & [x]"}, id="through a lookup"),
        pytest.param("customerid_account/primarycontactid/emailaddress1 eq 'ada@acme.example'", {"of Acme"}, id="through two"),
        pytest.param("owningteam/name eq 'Support EMEA'", {"of Acme"}, id="team"),
        pytest.param("contains(title,'TODAY')", {"early today"}, id="contains"),
        pytest.param("startswith(title,'last')", {"last week", "last month"}, id="startswith"),
        pytest.param("endswith(title,'week')", {"last week"}, id="endswith"),
        pytest.param("contains(title,'l%t m_nth')", {"last month"}, id="SQL wildcards"),
        pytest.param("contains(title,'100[%] sure[_]')", {"O'Brien's 100% sure_thing, & [x]"}, id="wildcards as signs"),
        pytest.param("contains(title,'[z-a]') or contains(title,'[a--b]zzz')", set(), id="impossible ranges"),
        pytest.param("not contains(title,'a')", {"now", None, "O'Brien's 100% sure_thing, & [x]"}, id="not contains"),
        pytest.param(f"{CRM}Today(PropertyName='modifiedon')", {"now", "early today"}, id="Today"),
        pytest.param(f"{CRM}Yesterday(PropertyName='modifiedon')", {"yesterday"}, id="Yesterday"),
        pytest.param(f"{CRM}LastWeek(PropertyName='modifiedon')", {"last week"}, id="LastWeek"),
        pytest.param(f"{CRM}LastMonth(PropertyName='modifiedon')", {"last month"}, id="LastMonth"),
        pytest.param(f"{CRM}Last7Days(PropertyName='modifiedon')", {"now", "early today", "yesterday", "last week"}, id="Last7Days"),
        pytest.param(f"{CRM}LastXDays(PropertyName='modifiedon',PropertyValue=1)", {"now", "early today", "yesterday"}, id="LastXDays"),
        pytest.param(f"{CRM}LastXHours(PropertyName='modifiedon',PropertyValue=10)", {"now", "early today", "yesterday"}, id="LastXHours"),
        pytest.param(f"{CRM}OlderThanXDays(PropertyName='modifiedon',PropertyValue=5)", EVERYTHING - {"now", "early today", "yesterday", "last week"}, id="OlderThanXDays"),
        pytest.param(f"{CRM}OlderThanXHours(PropertyName='modifiedon',PropertyValue=9)", EVERYTHING - {"now", "early today"}, id="OlderThanXHours"),
        pytest.param(f"{CRM}OlderThanXMinutes(PropertyName='modifiedon',PropertyValue=10)", EVERYTHING, id="OlderThanXMinutes"),
        pytest.param(f"{CRM}On(PropertyName='modifiedon',PropertyValue='2026-03-11T03:00:00Z')", {"yesterday"}, id="On takes the day"),
        pytest.param(f"{CRM}OnOrAfter(PropertyName='modifiedon',PropertyValue='2026-03-12')", {"now", "early today"}, id="OnOrAfter"),
        pytest.param(f"{CRM}OnOrBefore(PropertyName='modifiedon',PropertyValue='2026-01-02T01:00:00Z')", {"of Acme", "O'Brien's 100% sure_thing, & [x]"}, id="OnOrBefore"),
        pytest.param(f'{CRM}Between(PropertyName=\'modifiedon\',PropertyValues=["2026-03-11T23:00:00Z","2026-03-12T00:00:00Z"])', {"yesterday", "early today"}, id="Between"),
        pytest.param(f"{CRM}In(PropertyName='prioritycode',PropertyValues=[\"1\",\"77\"])", {"now", "last week"}, id="In"),
        pytest.param(f"{CRM}In(PropertyName='title',PropertyValues=[\"now\",\"O'Brien's 100% sure_thing, & [x]\"])", {"now", "O'Brien's 100% sure_thing, & [x]"}, id="In with quotes"),
    ],
)  # fmt: skip
def test_filter_finds(world, text, titles):
    """Each expression finds its rows and no other."""
    assert find(world, text) == titles


def test_alias_stands_for_a_value(world):
    """A parameter alias may carry the value of a function."""
    rows = world.get(f"incidents?$select=title&$filter={CRM}Yesterday(PropertyName=@p1)&@p1='modifiedon'")["value"]

    assert [row["title"] for row in rows] == ["yesterday"]


def test_relative_functions_use_the_users_zone():
    """Today begins at the calling user's midnight."""
    with served(user_zone="America/New_York") as caller:
        add_case(caller.sim, "still yesterday there", modifiedon=datetime(2026, 3, 12, 3, tzinfo=UTC))

        rows = caller.get(f"incidents?$select=title&$filter={CRM}Yesterday(PropertyName='modifiedon')")["value"]

    assert len(rows) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("title eq 'O'Brien'", "unterminated literal", id="quote not doubled"),
        pytest.param("title eq 'open", "unterminated literal", id="open text"),
        pytest.param("prioritycode eq '1'", "incompatible types", id="number in quotes"),
        pytest.param("title eq 1", "incompatible types", id="text without quotes"),
        pytest.param(f"_customerid_value eq '{ADA}'", "incompatible types", id="id in quotes"),
        pytest.param(f"_customerid_value eq {{{ADA}}}", "not valid", id="braces"),
        pytest.param("modifiedon ge '2026-03-12T00:00:00Z'", "incompatible types", id="moment in quotes"),
        pytest.param("modifiedon ge 2026-03-12T01:00:00 01:00", "Syntax error", id="plus became a blank"),
        pytest.param(f"customerid eq {ADA}", "Could not find a property", id="lookup by logical name"),
        pytest.param("customerid/fullname eq 'x'", "Could not find a property", id="no such navigation"),
        pytest.param("ownerid/fullname eq 'x'", "not supported", id="through the principal"),
        pytest.param("Title eq 'x'", "Could not find a property", id="case of a name"),
        pytest.param("title = 'x'", "Syntax error", id="operator"),
        pytest.param("title EQ 'x'", "Syntax error", id="case of an operator"),
        pytest.param("title in ('a','b')", "Syntax error", id="in"),
        pytest.param("(title eq 'x'", "Syntax error", id="parenthesis"),
        pytest.param("title eq 'x' and", "Syntax error", id="nothing after and"),
        pytest.param("", "Syntax error", id="nothing"),
        pytest.param("length(title) gt 3", "unknown function", id="length"),
        pytest.param("contains(prioritycode,'1')", "No function signature", id="contains on a number"),
        pytest.param("Today(PropertyName='modifiedon')", "unknown function", id="function without its namespace"),
        pytest.param(f"{CRM}Tomorow(PropertyName='modifiedon')", "unknown function", id="function misspelt"),
        pytest.param(f"{CRM}Today(PropertyName='title')", "date column", id="function on a text"),
        pytest.param(
            f"{CRM}LastXDays(PropertyName='modifiedon',PropertyValue='3')", "without quotes", id="count in quotes"
        ),
        pytest.param(f"{CRM}LastXDays(PropertyName='modifiedon')", "takes the parameters", id="missing parameter"),
        pytest.param(
            f"{CRM}In(PropertyName='prioritycode',PropertyValues=[1,2])", "double quotes", id="list of numbers"
        ),
        pytest.param(
            f"{CRM}In(PropertyName='prioritycode',PropertyValues=['1'])",
            "Unrecognized literal",
            id="list in single quotes",
        ),
        pytest.param(f"{CRM}Today(PropertyName=@p9)", "has no value", id="unknown alias"),
        pytest.param("(" * 3000 + "title eq 'x'" + ")" * 3000, "too deeply", id="depth"),
        pytest.param("Incident_Annotation/any(n:n/subject eq 'x')", "", id="lambda"),
    ],
)
def test_filter_is_refused(world, text, says):
    """What the grammar or the types do not allow is 400 with the reason."""
    status, code, message = world.refusal("GET", f"incidents?$filter={quote(text, safe='')}")

    assert (status, code) == (400, "0x80060888")
    assert says in message


def test_plus_in_a_url_is_a_blank(world):
    """An offset or address must be encoded, for a plus sign means a blank."""
    status, _, _ = world.refusal("GET", "incidents?$filter=modifiedon ge 2026-03-12T01:00:00+01:00")

    assert status == 400


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(title=strategies.text(strategies.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_text_is_found_by_its_quoted_form(world, title):
    """Doubling quotes and encoding the URL is enough for every text."""
    case = add_case(world.sim, title, description="property")
    literal = title.replace("'", "''")

    query = quote(f"description eq 'property' and title eq '{literal}'", safe="")
    rows = world.get(f"incidents?$select=title&$filter={query}")["value"]
    world.sim.delete("incident", case)

    assert [row["incidentid"] for row in rows] == [case]
