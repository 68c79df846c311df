"""Selecting, expanding, paging, counting and change tracking in the simulated Web API."""

from datetime import timedelta

import pytest

from tests.sandbox.dynamics365_caller import ACME, ADA, NOW, TEAM, USER, add_case, served

FORMATTED = "@OData.Community.Display.V1.FormattedValue"
ALL = 'odata.include-annotations="*"'


@pytest.fixture(scope="module")
def world():
    """Cases of a contact and of an account, of a user and of a team, and many to page through."""
    with served() as caller:
        sim = caller.sim
        caller.case = add_case(
            sim, "Owned by a team", prioritycode=1, caseorigincode=77, ownerid=("team", TEAM), primarycontactid=ADA
        )
        caller.account_case = sim.insert("incident", title="Of an account", customerid_account=ACME, ownerid=USER)
        for number in range(25):
            add_case(sim, f"Many {number % 3}", modifiedon=NOW - timedelta(days=2, seconds=number // 2))
        sim.insert("annotation", subject="First", notetext="Called back", objectid_incident=caller.case)
        yield caller


def test_single_row_has_what_was_selected_and_its_key(world):
    """The key comes unasked, an empty column as null, the tag first."""
    case = world.get(f"incidents({world.case})?$select=title,description,_customerid_value")

    assert list(case)[:2] == ["@odata.context", "@odata.etag"]
    assert {k: v for k, v in case.items() if "@" not in k} == {
        "title": "Owned by a team",
        "description": None,
        "_customerid_value": ADA,
        "incidentid": world.case,
    }


def test_annotations_come_when_asked_before_their_property(world):
    """Labels and lookup facts are annotations; an empty value and an unknown option have none."""
    query = f"incidents({world.case})?$select=prioritycode,caseorigincode,description,modifiedon,_customerid_value,_ownerid_value"

    case = world.get(query, ALL)
    only_labels = world.get(query, 'odata.include-annotations="OData.Community.Display.V1.FormattedValue"')

    assert case[f"prioritycode{FORMATTED}"] == "High"
    assert case["caseorigincode"] == 77
    assert case[f"modifiedon{FORMATTED}"] == "3/12/2026 9:30 AM"
    assert case["modifiedon"] == "2026-03-12T09:30:15Z"
    assert f"description{FORMATTED}" not in case
    assert f"caseorigincode{FORMATTED}" not in case
    assert case["_customerid_value@Microsoft.Dynamics.CRM.associatednavigationproperty"] == "customerid_contact"
    assert case["_ownerid_value@Microsoft.Dynamics.CRM.lookuplogicalname"] == "team"
    assert list(case).index(f"prioritycode{FORMATTED}") < list(case).index("prioritycode")
    assert "_ownerid_value@Microsoft.Dynamics.CRM.lookuplogicalname" not in only_labels


def test_money_brings_its_currency(world):
    """A selected money column adds the currency lookup."""
    account = world.get(f"accounts({ACME})?$select=revenue")

    assert account["revenue"] == 20000.0
    assert account["_transactioncurrencyid_value"]


def test_polymorphic_lookups_expand_by_branch(world):
    """The branch that does not match is null, as is the owner of the other kind; a user comes with both ids."""
    expand = "customerid_contact($select=fullname),customerid_account($select=name;$expand=primarycontactid($select=emailaddress1))"
    owners = "owninguser($select=fullname,internalemailaddress),owningteam($select=name)"

    by_contact, by_account = (
        world.get(f"incidents({case})?$select=title&$expand={expand},{owners}")
        for case in (world.case, world.account_case)
    )

    assert by_contact["customerid_contact"] == {"fullname": "Ada Quill", "contactid": ADA}
    assert (by_contact["customerid_account"], by_contact["owninguser"]) == (None, None)
    assert by_contact["owningteam"]["name"] == "Support EMEA"
    assert by_account["customerid_account"]["primarycontactid"]["emailaddress1"] == "ada@acme.example"
    assert by_account["owningteam"] is None
    assert by_account["owninguser"]["systemuserid"] == by_account["owninguser"]["ownerid"] == USER


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("$select=customerid", id="lookup by its logical name"),
        pytest.param("$select=ownerid", id="owner by its logical name"),
        pytest.param("$select=nosuch", id="unknown column"),
        pytest.param("$select=title,", id="empty term"),
        pytest.param("$expand=customerid($select=fullname)", id="no such navigation"),
        pytest.param("$expand=Customerid_Contact", id="wrong case"),
        pytest.param("$expand=ownerid($select=fullname)", id="owner is a principal"),
        pytest.param("$expand=primarycontactid($select=fullname,$expand=createdby)", id="comma for semicolon"),
        pytest.param("$expand=primarycontactid($top=1)", id="option for collections"),
        pytest.param("$expand=Incident_Annotation($skip=1)", id="skip in expand"),
        pytest.param("$expand=Incident_Annotation($count=true)", id="count in expand"),
        pytest.param("$skip=10", id="skip"),
        pytest.param("$search=printer", id="search"),
        pytest.param("$top=-1", id="negative top"),
        pytest.param("$orderby=title up", id="direction"),
        pytest.param("$count=yes", id="count"),
        pytest.param("$select=title&$select=description", id="option twice"),
        pytest.param("$skiptoken=2", id="made-up token"),
    ],
)
def test_queries_that_the_vendor_refuses(world, query):
    """An illegal name or option is 400, never an empty answer."""
    status, code, message = world.refusal("GET", f"incidents?{query}")

    assert status == 400
    assert code in {"0x80060888", "0x80040216"}
    assert message


def test_at_most_fifteen_expands(world):
    """Nested ones count too."""
    inner = "$expand=parentcustomerid_account($expand=primarycontactid,createdby,modifiedby)"
    names = ["customerid_contact", "primarycontactid", "customerid_account"]
    text = ",".join(
        f"{name}({inner if name != 'customerid_account' else '$expand=createdby,modifiedby,primarycontactid,owninguser'})"
        for name in names
    )

    world.get(f"incidents?$top=1&$expand={text}")
    status, code, _ = world.refusal("GET", f"incidents?$expand={text},createdby,modifiedby,owninguser,owningteam")

    assert (status, code) == (400, "0x80060888")


def test_collections_expand_with_a_link_to_the_rest(world):
    """Notes of a case come with a next link of their own, which goes on after what was shown."""
    case = world.get(f"incidents({world.case})?$select=title&$expand=Incident_Annotation($select=subject,notetext)")

    assert [note["subject"] for note in case["Incident_Annotation"]] == ["First"]
    assert world.get(case["Incident_Annotation@odata.nextLink"])["value"] == []
    assert world.get(f"incidents({world.case})/Incident_Annotation?$select=subject")["value"][0]["subject"] == "First"


def test_reference_segment_is_for_single_lookups(world):
    """`/$ref` gives the address behind a lookup; an empty lookup has no content."""
    reference = world.get(f"incidents({world.case})/primarycontactid/$ref")

    assert reference["@odata.id"] == f"{world.root}contacts({ADA})"
    assert world.call("GET", f"incidents({world.case})/masterid").status_code == 204


def test_paging_follows_opaque_links(world):
    """Each link leads on until there is none; no row twice with a unique order; the page size is asked for each time."""
    prefer = "odata.maxpagesize=10"
    query = "incidents?$select=title&$filter=startswith(title,'Many')&$orderby=modifiedon desc,incidentid asc"

    response = world.call("GET", query, prefer)
    pages = [response.json()]
    while "@odata.nextLink" in pages[-1]:
        pages.append(world.get(pages[-1]["@odata.nextLink"], prefer))
    unasked = world.get(pages[0]["@odata.nextLink"])

    assert response.headers["Preference-Applied"] == prefer
    assert [len(page["value"]) for page in pages] == [10, 10, 5]
    assert len({row["incidentid"] for page in pages for row in page["value"]}) == 25
    assert len(unasked["value"]) == 15
    assert "%3Ccookie%20pagenumber=%222%22" in pages[0]["@odata.nextLink"]


def test_top_ends_the_answer_without_a_page_size(world):
    """$top alone gives so many rows and no link; with a page size it is ignored."""
    alone = world.get("incidents?$select=title&$top=3")
    paged = world.get("incidents?$select=title&$top=3", "odata.maxpagesize=7")

    assert len(alone["value"]) == 3
    assert "@odata.nextLink" not in alone
    assert len(paged["value"]) == 7
    assert "@odata.nextLink" in paged


def test_next_link_must_be_used_as_it_is(world):
    """A link with added parameters, a changed token or an old one is refused."""
    prefer = "odata.maxpagesize=10"
    link = world.get("incidents?$select=title&$orderby=incidentid", prefer)["@odata.nextLink"]

    doubled = world.call("GET", f"{link}&$select=title", prefer)
    changed = world.call("GET", link.replace("$select=title", "$select=title,description"), prefer)
    reencoded = world.call("GET", link.replace("%25", "%2525"), prefer)
    world.sim.settings.paging_cookie_s = 60
    world.sim.clock.advance(61)
    expired = world.call("GET", link, prefer)
    world.sim.clock.freeze(NOW)

    assert [r.status_code for r in (doubled, changed, reencoded, expired)] == [400] * 4


def test_paging_is_no_snapshot_but_ordered_by_key_loses_nothing(world):
    """A row that leaves the filter between two pages does not push another one out."""
    prefer = "odata.maxpagesize=5"
    ids = [add_case(world.sim, "Snapshot") for _ in range(10)]
    query = "incidents?$select=title&$filter=title eq 'Snapshot'&$orderby=modifiedon,incidentid"

    first = world.get(query, prefer)
    world.sim.update("incident", first["value"][0]["incidentid"], title="Gone")
    second = world.get(first["@odata.nextLink"], prefer)

    assert {row["incidentid"] for page in (first, second) for row in page["value"]} == set(ids)


def test_order_that_is_not_unique_repeats_or_loses_rows(world):
    """Equal rows come in any order on each page, so a client must order by the key last."""
    prefer = "odata.maxpagesize=4"
    page = world.get("incidents?$select=title&$filter=startswith(title,'Many')&$orderby=title", prefer)
    seen = [row["incidentid"] for row in page["value"]]

    while "@odata.nextLink" in page:
        page = world.get(page["@odata.nextLink"], prefer)
        seen += [row["incidentid"] for row in page["value"]]

    assert len(seen) == 25
    assert len(set(seen)) < 25


def test_counting(world):
    """The count comes in the body when asked, as text by its own segment, and -1 in the annotations when not asked."""
    query = "incidents?$select=title&$filter=startswith(title,'Many')"

    counted = world.get(f"{query}&$count=true", f"odata.maxpagesize=1,{ALL}")
    uncounted = world.get(query, ALL)
    text = world.call("GET", "incidents/$count?$filter=startswith(title,'Many')")

    assert counted["@odata.count"] == counted["@Microsoft.Dynamics.CRM.totalrecordcount"] == 25
    assert uncounted["@Microsoft.Dynamics.CRM.totalrecordcount"] == -1
    assert (text.text, text.headers["Content-Type"].split(";")[0]) == ("25", "text/plain")


def test_conditional_get(world):
    """An unchanged row is 304, but never with $expand or annotations."""
    path = f"incidents({world.case})?$select=title"
    tag = world.call("GET", path).headers["ETag"]

    statuses = [
        world.call("GET", path, If_None_Match=tag).status_code,
        world.call("GET", path, If_None_Match="null").status_code,
        world.call("GET", f"{path}&$expand=primarycontactid", If_None_Match=tag).status_code,
        world.call("GET", path, ALL, If_None_Match=tag).status_code,
    ]

    assert statuses == [304, 200, 200, 200]


def test_headers_of_every_answer(world):
    """Version, request ids and the vendor's date come with successes and errors."""
    for path in ("WhoAmI", "nosuch"):
        headers = world.call("GET", path).headers

        assert headers["OData-Version"] == "4.0"
        assert headers["x-ms-service-request-id"]
        assert headers["REQ_ID"]
        assert headers["Date"] == "Thu, 12 Mar 2026 09:30:15 GMT"
        assert headers["Content-Type"] == "application/json; odata.metadata=minimal"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        pytest.param("GET", "nosuch", (404, "0x8006088a"), id="segment"),
        pytest.param("GET", "incidents(00000000-0000-0000-0000-000000000000)", (404, "0x80040217"), id="row"),
        pytest.param("GET", "incidents({00000000-0000-0000-0000-000000000000})", (400, "0x80060888"), id="braces"),
        pytest.param("GET", "contacts(emailaddress1='ada@acme.example')", (400, "0x80060888"), id="key not defined"),
        pytest.param("PUT", "incidents", (405, ""), id="method"),
        pytest.param("DELETE", "incidents", (405, ""), id="delete all"),
        pytest.param("POST", "WhoAmI", (405, ""), id="function by POST"),
    ],
)
def test_addresses_that_do_not_exist(world, method, path, expected):
    """Unknown rows, segments and methods have their own errors."""
    assert world.refusal(method, path)[:2] == expected


def test_errors_carry_more_with_all_annotations(world):
    """With annotations `*` the error has the extra members."""
    error = world.call("GET", "nosuch", ALL).json()["error"]

    assert error["@Microsoft.PowerApps.CDS.ErrorDetails.OperationStatus"] == "0"
    assert error["@Microsoft.PowerApps.CDS.InnerError.Message"] == error["message"]


def test_change_tracking_tells_changes_then_deletions():
    """After a first full answer the delta link gives changed rows, deleted ids and the next link; also what came and went between."""
    with served() as caller:
        kept, lost = add_case(caller.sim), add_case(caller.sim)
        track = "odata.track-changes"

        first = caller.get("incidents?$select=title", track)
        caller.sim.update("incident", kept, title="Changed")
        caller.sim.delete("incident", lost)
        short = add_case(caller.sim)
        caller.sim.delete("incident", short)
        delta = caller.get(first["@odata.deltaLink"])
        quiet = caller.get(delta["@odata.deltaLink"])

    assert {row["incidentid"] for row in first["value"]} == {kept, lost}
    assert delta["value"][0]["title"] == "Changed"
    assert [(row["id"], row["reason"]) for row in delta["value"][1:]] == [(lost, "deleted"), (short, "deleted")]
    assert quiet["value"] == []


def test_change_tracking_pages_and_expires():
    """Many changes come by next links, the delta link last; a delta link older than the setting is refused."""
    with served() as caller:
        for _ in range(5):
            add_case(caller.sim)
        prefer = "odata.track-changes,odata.maxpagesize=3"

        first = caller.get("incidents?$select=title", prefer)
        second = caller.get(first["@odata.nextLink"], prefer)
        caller.sim.clock.advance(8 * 86400)
        caller.session.headers["Authorization"] = f"Bearer {caller.sim.tokens.issue(caller.origin)}"
        status, _, _ = caller.refusal("GET", second["@odata.deltaLink"])

    assert (len(first["value"]), len(second["value"])) == (3, 2)
    assert "@odata.deltaLink" not in first
    assert status == 400


@pytest.mark.parametrize("option", ["$filter=statecode eq 0", "$orderby=title", "$expand=primarycontactid", "$top=5"])
def test_change_tracking_takes_no_other_options(world, option):
    """Filter, order, expand and top are refused by name."""
    status, _, message = world.refusal("GET", f"incidents?{option}", Prefer="odata.track-changes")

    assert status == 400
    assert option.split("=", maxsplit=1)[0] in message


def test_change_tracking_must_be_switched_on():
    """A table without it refuses."""
    with served(change_tracking=()) as caller:
        status, _, _ = caller.refusal("GET", "incidents?$select=title", Prefer="odata.track-changes")
        definition = caller.get("EntityDefinitions(LogicalName='incident')?$select=ChangeTrackingEnabled")

    assert status == 400
    assert definition["ChangeTrackingEnabled"] is False


def test_who_am_i_and_organization(world):
    """The application user and the organization can be asked for."""
    who = world.get("WhoAmI")

    assert who["UserId"] == world.sim.application_users[next(iter(world.sim.application_users))].user_id
    assert world.get("organizations?$select=expirechangetrackingindays")["value"][0]["expirechangetrackingindays"] == 7


def test_definitions_describe_a_table(world):
    """Types and rights are on the base; lengths, targets and options need a cast, options also an $expand."""
    base = world.get(
        "EntityDefinitions(LogicalName='incident')/Attributes?$select=LogicalName,AttributeType,IsValidForUpdate"
    )["value"]
    cast = "EntityDefinitions(LogicalName='incident')/Attributes/Microsoft.Dynamics.CRM."
    texts = world.get(f"{cast}StringAttributeMetadata?$select=LogicalName,MaxLength")["value"]
    choices = world.get(f"{cast}PicklistAttributeMetadata?$select=LogicalName&$expand=OptionSet($select=Options)")[
        "value"
    ]
    lookups = world.get(f"{cast}LookupAttributeMetadata?$select=LogicalName,Targets")["value"]

    assert {a["LogicalName"]: a["AttributeType"] for a in base}["customerid"] == "Customer"
    assert {a["LogicalName"]: a["IsValidForUpdate"] for a in base}["ticketnumber"] is False
    assert {a["LogicalName"]: a["MaxLength"] for a in texts}["title"] == 200
    origin = next(a for a in choices if a["LogicalName"] == "caseorigincode")["OptionSet"]["Options"]
    assert [(o["Value"], o["Label"]["UserLocalizedLabel"]["Label"]) for o in origin][:2] == [(1, "Phone"), (2, "Email")]
    assert {a["LogicalName"]: a["Targets"] for a in lookups}["ownerid"] == ["systemuser", "team"]
    assert world.refusal("GET", "EntityDefinitions(LogicalName='incident')/Attributes?$select=MaxLength")[0] == 400
    assert world.refusal("GET", "EntityDefinitions(LogicalName='nosuch')")[0] == 404
