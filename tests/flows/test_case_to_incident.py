"""Cases become incidents: each rule of the recipe with a case of its own, from the start of a run to the mail."""

import dataclasses

import pytest

from shared.state.rows import ResultRow, RunRow, RunState
from tests.flows.world import CALLER, OWNER, RECIPIENT, YESTERDAY, World

NEW = "new.person@customer.example"


def _codes(result: ResultRow) -> list[str]:
    return [warning["code"] for warning in result.warnings]


def _only(world: World, run: RunRow) -> ResultRow:
    (result,) = world.results(run).values()
    return result


# -- fields ---------------------------------------------------------------------------------------------------------


def test_new_case_becomes_incident(world: World) -> None:
    """Every mapped field of a new case arrives, and nothing else is said about it."""
    case = world.add_case("VPN is down", description="Since Monday.", prioritycode=1, caseorigincode=1)

    run = world.sync()

    incident = world.incident_of(case)
    assert (incident["short_description"], incident["description"]) == ("VPN is down", "Since Monday.")
    assert (incident["number"], incident["correlation_display"]) == (world.number_of(case),) * 2
    assert (incident["urgency"], incident["contact_type"]) == ("1", "phone")
    assert incident["opened_at"] == world.case(case)["createdon"].replace("T", " ").rstrip("Z")
    assert (world.user_name(incident["caller_id"]), world.user_name(incident["assigned_to"])) == (CALLER, OWNER)
    assert incident["assignment_group"] == ""
    assert (run.state, run.counts, run.warnings) == (RunState.COMPLETED, {"created": 1}, 0)


def test_summary_tells_counts_to_who_asked(world: World) -> None:
    """A run started by HTTP ends in one mail to the address that asked, with its counts."""
    world.add_case()
    world.add_case()

    run = world.sync()

    (mail,) = world.mailbox.mails
    assert mail.recipients == (RECIPIENT,)
    assert "2" in mail.text
    assert "created" in mail.text.lower()
    assert (run.mail_state, run.mail_sends) == ("sent", 1)


def test_run_without_cases_sends_its_summary_too(world: World) -> None:
    """Zero records are a result, and somebody waits for it."""
    run = world.sync()

    assert (run.state, run.counts) == (RunState.COMPLETED, {})
    assert len(world.mailbox.mails) == 1


@pytest.mark.parametrize(
    ("column", "value", "field", "expected", "codes"),
    [
        pytest.param("caseorigincode", 1, "contact_type", "phone", [], id="phone"),
        pytest.param("caseorigincode", 3, "contact_type", "self-service", [], id="web"),
        pytest.param("caseorigincode", 2483, "contact_type", "self-service", [], id="facebook"),
        pytest.param("caseorigincode", 700610000, "contact_type", "self-service", ["unknown_choice"], id="iot"),
        pytest.param("caseorigincode", None, "contact_type", "self-service", [], id="no origin"),
        pytest.param("prioritycode", 3, "urgency", "3", [], id="low"),
        pytest.param("prioritycode", 5, "urgency", "3", ["unknown_choice"], id="unknown priority"),
        pytest.param("prioritycode", None, "urgency", "3", [], id="no priority"),
    ],
)
def test_options_become_choices(
    world: World, column: str, value: int | None, field: str, expected: str, codes: list[str]
) -> None:
    """An option becomes the incident's choice; one that stands in no table becomes the default, with a warning."""
    case = world.add_case(**{column: value})

    run = world.sync()

    assert world.incident_of(case)[field] == expected
    assert _codes(_only(world, run)) == codes


def test_cut_title_opens_the_description(world: World) -> None:
    """A title that does not fit is cut with a warning, and stands whole at the head of the description."""
    title = "Printer " + "x" * 180
    case = world.add_case(title, description="It smokes.")

    run = world.sync()

    incident = world.incident_of(case)
    assert len(incident["short_description"]) == 160
    assert title.startswith(incident["short_description"][:-1])
    assert incident["description"].startswith(title)
    assert incident["description"].endswith("It smokes.")
    assert _codes(_only(world, run)) == ["truncated"]
    assert run.state is RunState.COMPLETED_WITH_WARNINGS


def test_html_description_becomes_text(world: World) -> None:
    """People in ServiceNow read text and no tags."""
    case = world.add_case(description="<div><p>Hello &amp; good day</p><script>alert(1)</script><p>Regards</p></div>")

    world.sync()

    text = world.incident_of(case)["description"]
    assert "Hello & good day" in text
    assert "<" not in text
    assert "alert" not in text


@pytest.mark.parametrize("title", ["a^ORactive=true", "100% 'sure'", "javascript:gs.log(1)", "🖨️ on fire", "a,b,c"])
def test_odd_titles_arrive_as_they_are(world: World, title: str) -> None:
    """A value never changes a query or a payload."""
    case = world.add_case(title)

    run = world.sync()

    assert world.incident_of(case)["short_description"] == title
    assert run.counts == {"created": 1}
    assert world.servicenow.scripts == []


def test_case_without_title_fails(world: World) -> None:
    """An incident without a title helps nobody: the record fails, and the mail says why."""
    case = world.add_case(title="")

    run = world.sync()

    result = _only(world, run)
    assert (result.outcome, result.reason) == ("failed", "case_without_title")
    assert world.incidents() == []
    assert run.state is RunState.COMPLETED_WITH_FAILURES
    assert world.number_of(case) in world.mailbox.mails[0].text


def test_own_numbers_of_an_instance_are_left_alone(world: World) -> None:
    """An instance that gives its own numbers keeps them; the case's number stands beside it."""
    world.servicenow.own_number = True
    case = world.add_case()

    run = world.sync()
    again = world.sync()

    incident = world.incident_of(case)
    assert incident["number"].startswith("INC")
    assert incident["correlation_display"] == world.number_of(case)
    assert run.counts == {"created": 1}
    assert again.counts == {"unchanged": 1}


def test_field_that_is_not_taken_is_a_warning(world: World) -> None:
    """ServiceNow drops what the user may not write, with 200: the answer is read, and the next run does not try again."""
    user = world.servicenow.users["concord.integration"]
    world.servicenow.users[user.user_name] = dataclasses.replace(
        user, unwritable={**user.unwritable, "incident": frozenset({"contact_type"})}
    )
    case = world.add_case(caseorigincode=1)

    run = world.sync()
    world.forget_journal()
    again = world.sync()

    result = _only(world, run)
    assert _codes(result) == ["field_not_written"]
    assert "contact_type" in result.warnings[0]["text"]
    assert world.incident_of(case)["contact_type"] != "phone"
    assert again.counts == {"unchanged": 1}
    assert world.writes() == []


# -- people ---------------------------------------------------------------------------------------------------------


def test_caller_is_found_by_email_whatever_its_case(world: World) -> None:
    """One active user with the contact's email is the caller, and nobody is created."""
    contact = world.add_contact(CALLER.upper())
    case = world.add_case(contact=contact)

    run = world.sync()

    assert world.user_name(world.incident_of(case)["caller_id"]) == CALLER
    assert len(world.users(CALLER)) == 1
    assert _only(world, run).created_references == []


def test_missing_users_are_created_once_and_listed(world: World) -> None:
    """A caller that ServiceNow does not know is created without role or password, and the mail lists it."""
    contact = world.add_contact(NEW, firstname="Nina", lastname="Neu")
    cases = [world.add_case(contact=contact) for _ in range(3)]

    run = world.sync()

    (user,) = world.users(NEW)
    assert (user["user_name"], user["first_name"], user["last_name"]) == (NEW, "Nina", "Neu")
    assert (user["source"], user["user_password"], user["active"]) == ("concord", "", "true")
    assert world.servicenow.rows("sys_user_has_role", user=user["sys_id"]) == []
    assert {world.incident_of(case)["caller_id"] for case in cases} == {user["sys_id"]}
    assert run.counts == {"created": 3}
    assert user["sys_id"] in world.mailbox.mails[0].html


def test_missing_owner_is_created(world: World) -> None:
    """An owner is treated as a caller is."""
    owner = world.add_owner("new.owner@contoso.example", firstname="Otto", lastname="Neu")
    case = world.add_case(ownerid=("systemuser", owner))

    world.sync()

    (user,) = world.users("new.owner@contoso.example")
    assert world.incident_of(case)["assigned_to"] == user["sys_id"]
    assert (user["first_name"], user["source"]) == ("Otto", "concord")


def test_one_person_as_caller_and_owner_is_created_once(world: World) -> None:
    """Caller and owner may be one new person, on the same case."""
    owner, contact = world.add_owner(NEW), world.add_contact(NEW)
    case = world.add_case(contact=contact, ownerid=("systemuser", owner))

    run = world.sync()

    (user,) = world.users(NEW)
    incident = world.incident_of(case)
    assert incident["caller_id"] == incident["assigned_to"] == user["sys_id"]
    assert run.counts == {"created": 1}


def test_several_users_with_one_email_leave_the_caller_empty(world: World) -> None:
    """Between several nobody guesses: the caller stays empty, with a warning."""
    for name in ("one", "two"):
        world.add_servicenow_user(NEW, user_name=name)
    case = world.add_case(contact=world.add_contact(NEW))

    run = world.sync()

    assert world.incident_of(case)["caller_id"] == ""
    assert _codes(_only(world, run)) == ["user_ambiguous"]
    assert len(world.users(NEW)) == 2


def test_one_active_user_among_inactive_ones_is_taken(world: World) -> None:
    """Who has left does not stand in the way of who has the address now."""
    world.add_servicenow_user(NEW, user_name="left", active="false")
    active = world.add_servicenow_user(NEW, user_name="here")
    case = world.add_case(contact=world.add_contact(NEW))

    world.sync()

    assert world.incident_of(case)["caller_id"] == active


@pytest.mark.parametrize("hidden", [False, True], ids=["shown", "hidden by a rule"])
def test_inactive_user_is_neither_used_nor_made_again(world: World, hidden: bool) -> None:
    """An inactive user stays what it is, also where the instance does not show it to us."""
    world.servicenow.hide_inactive_users = hidden
    world.add_servicenow_user(NEW, active="false")
    case = world.add_case(contact=world.add_contact(NEW))

    run = world.sync()

    assert world.incident_of(case)["caller_id"] == ""
    assert _codes(_only(world, run)) == ["user_inactive"]
    assert len(world.users(NEW)) == 1


def test_contact_without_email_is_never_searched_nor_created(world: World) -> None:
    """Without an email there is nobody to look for: the caller stays empty, with a warning."""
    users = len(world.servicenow.rows("sys_user"))
    case = world.add_case(contact=world.add_contact(None))

    run = world.sync()

    assert world.incident_of(case)["caller_id"] == ""
    assert _codes(_only(world, run)) == ["caller_id_without_email"]
    assert len(world.servicenow.rows("sys_user")) == users


def test_default_caller_stands_in_for_a_contact_without_email(world: World) -> None:
    """The recipe's default is looked up like a value, and the warning stays."""
    world.change_recipe("    # default: guest@example.com", "    default: guest@example.com")
    guest = world.add_servicenow_user("guest@example.com")
    case = world.add_case(contact=world.add_contact(None))

    run = world.sync()

    assert world.incident_of(case)["caller_id"] == guest
    assert "caller_id_without_email" in _codes(_only(world, run))


def test_team_goes_to_the_group_of_its_name(world: World) -> None:
    """A case that a team owns is assigned to the group, and to nobody in it."""
    group = world.servicenow.insert("sys_user_group", name="Hardware")
    team = world.dynamics.insert("team", name="Hardware")
    case = world.add_case(ownerid=("team", team))

    run = world.sync()

    incident = world.incident_of(case)
    assert (incident["assignment_group"], incident["assigned_to"]) == (group, "")
    assert _codes(_only(world, run)) == []


def test_unknown_team_is_a_warning_and_no_group_is_made(world: World) -> None:
    """Groups are never created; which one is wanted stands in the warning: a group's name is nobody's own."""
    team = world.dynamics.insert("team", name="Unheard of")
    case = world.add_case(ownerid=("team", team))

    run = world.sync()

    assert world.incident_of(case)["assignment_group"] == ""
    assert _codes(_only(world, run)) == ["group_not_found"]
    assert _only(world, run).warnings[0]["text"] == 'assignment_group: no group is called "Unheard of".'
    assert '"Unheard of"' in world.mailbox.mails[0].text
    assert world.servicenow.rows("sys_user_group", name="Unheard of") == []


def test_account_customer_fails(world: World) -> None:
    """A case whose customer is a company has no caller."""
    account = world.dynamics.insert("account", name="Northwind")
    world.add_case(customerid_account=account)

    run = world.sync()

    assert (_only(world, run).outcome, _only(world, run).reason) == ("failed", "customer_is_account")
    assert world.incidents() == []


def test_primary_contact_is_the_caller_where_the_recipe_says_so(world: World) -> None:
    """One path in the recipe takes the account's primary contact."""
    world.change_recipe(
        "from: customerid_contact\n", "from: [customerid_contact, customerid_account.primarycontactid]\n"
    )
    account = world.dynamics.insert("account", name="Northwind", primarycontactid=world.caller)
    case = world.add_case(customerid_account=account)

    run = world.sync()

    assert world.user_name(world.incident_of(case)["caller_id"]) == CALLER
    assert run.counts == {"created": 1}


# -- which cases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "status"), [(1, 5), (2, 6)], ids=["resolved", "cancelled"])
def test_closed_case_without_incident_is_skipped(world: World, state: int, status: int) -> None:
    """A case that is over creates nothing; the mail counts it."""
    world.add_case(statecode=state, statuscode=status)

    run = world.sync()

    result = _only(world, run)
    assert (result.outcome, result.reason) == ("skipped", "case_not_active")
    assert world.incidents() == []
    assert run.counts == {"skipped": 1, "skipped:case_not_active": 1}
    assert run.state is RunState.COMPLETED


def test_only_cases_of_the_window_are_taken(world: World) -> None:
    """A window begins with its first instant and ends before its last."""
    midnight = YESTERDAY.replace(hour=0)
    inside = [world.add_case(modifiedon=midnight), world.add_case(modifiedon=midnight.replace(hour=23, minute=59))]
    world.add_case(modifiedon=midnight.replace(day=10))
    world.add_case(modifiedon=midnight.replace(day=8, hour=23, minute=59, second=59))

    run = world.sync()

    assert sorted(world.results(run)) == sorted(inside)


def test_many_pages_are_all_listed(world: World) -> None:
    """Pages follow each other until the last; every case has one result."""
    for _ in range(130):
        world.add_case()

    run = world.sync()

    assert (run.counts, run.last_page) == ({"created": 130}, 1)
    assert len(world.results(run)) == len(world.incidents()) == 130


# -- incidents that are there already -------------------------------------------------------------------------------


def _stranger(world: World, **fields: str) -> str:
    return world.servicenow.insert("incident", **{"short_description": "Printer offline"} | fields)


def _caller_id(world: World) -> str:
    return world.users(CALLER)[0]["sys_id"]


def test_incident_with_the_cases_id_is_adopted(world: World) -> None:
    """What carries the case's id belongs to it."""
    case = world.add_case()
    theirs = _stranger(world, correlation_id=case)

    run = world.sync()

    assert world.incident_of(case)["sys_id"] == theirs
    assert (run.counts, len(world.incidents())) == ({"adopted": 1}, 1)


def test_incident_of_the_former_integration_is_adopted_by_number(world: World) -> None:
    """An incident with the case's number is the one that the former integration made: it gets the case's id."""
    case = world.add_case("New title")
    theirs = _stranger(world, number=world.number_of(case), short_description="Old title")

    run = world.sync()

    incident = world.incident_of(case)
    assert (incident["sys_id"], incident["short_description"]) == (theirs, "New title")
    assert (run.counts, len(world.incidents())) == ({"adopted": 1}, 1)


@pytest.mark.parametrize("caller", [True, False], ids=["same caller", "no caller"])
def test_incident_with_the_title_is_adopted(world: World, caller: bool) -> None:
    """One active incident with the case's title, and with its caller or none, was made by hand for it."""
    case = world.add_case("Printer offline")
    theirs = _stranger(world, caller_id=_caller_id(world) if caller else "")

    run = world.sync()

    incident = world.incident_of(case)
    assert (incident["sys_id"], incident["caller_id"]) == (theirs, _caller_id(world))
    assert (run.counts, len(world.incidents())) == ({"adopted": 1}, 1)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "as we cut it"])
def test_incident_with_a_long_title_is_adopted(world: World, whole: bool) -> None:
    """A long title is looked for as it is and as we would cut it."""
    title = "Printer " + "offline " * 21
    case = world.add_case(title.strip())
    theirs = _stranger(world, short_description=title.strip() if whole else title[:159].rstrip() + "…")

    run = world.sync()

    assert world.incident_of(case)["sys_id"] == theirs
    assert world.results(run)[case].outcome == "adopted"


def test_several_incidents_with_the_title_fail(world: World) -> None:
    """Between several nobody guesses: the case fails with their numbers, and none is touched."""
    case = world.add_case("Printer offline")
    before = [dict(world.servicenow.tables["incident"][_stranger(world)]) for _ in range(2)]

    run = world.sync()

    result = world.results(run)[case]
    assert (result.outcome, result.reason) == ("failed", "ambiguous_match")
    assert all(row["number"] in result.message for row in before)
    assert sorted(world.incidents(), key=str) == sorted(before, key=str)


@pytest.mark.parametrize("kind", ["closed", "other caller", "other case"])
def test_strangers_with_the_title_are_untouched(world: World, kind: str) -> None:
    """A closed incident, one of another caller and one of another case only happen to have the same title."""
    fields = {
        "closed": {"state": "7", "close_code": "Solution provided", "close_notes": "Done."},
        "other caller": {"caller_id": world.add_servicenow_user("somebody@else.example")},
        "other case": {"correlation_id": "something-else"},
    }[kind]
    theirs = _stranger(world, **fields)
    before = dict(world.servicenow.tables["incident"][theirs])
    case = world.add_case("Printer offline")

    run = world.sync()

    assert world.servicenow.tables["incident"][theirs] == before
    assert world.incident_of(case)["sys_id"] != theirs
    assert run.counts == {"created": 1}


def test_two_cases_do_not_share_an_incident(world: World) -> None:
    """Two cases with one title find the same incident; one adopts it, the other gets its own."""
    cases = [world.add_case("Printer offline") for _ in range(2)]
    theirs = _stranger(world)

    run = world.sync()

    assert {world.incident_of(case)["sys_id"] for case in cases} >= {theirs}
    assert len(world.incidents()) == 2
    assert sum(run.counts.get(name, 0) for name in ("created", "adopted")) == 2


# -- the preview ----------------------------------------------------------------------------------------------------


def test_preview_decides_the_same_and_writes_nothing(world: World) -> None:
    """A preview shows the outcomes that a run then has, and changes nothing in ServiceNow nor in what we remember."""
    adopted = world.add_case("Printer offline")
    _stranger(world)
    world.add_case(contact=world.add_contact(NEW))
    world.add_case(title="")
    world.add_case(statecode=1, statuscode=5)

    preview = world.sync(preview=True)
    written, links, kept = world.writes(), world.links(), world.open_keys()
    shown = {key: result.outcome for key, result in world.results(preview).items()}
    fields = world.results(preview)[adopted].fields
    run = world.sync()

    assert (written, links, kept) == ([], [], [])
    assert shown == {key: result.outcome for key, result in world.results(run).items()}
    assert fields == world.results(run)[adopted].fields
    assert len(world.mailbox.mails) == 2
