"""Creating, changing, closing and deleting rows through the simulated Web API."""

import pytest

from tests.sandbox.dynamics365_caller import ACME, ADA, BOB, TEAM, USER, add_case, served

UNKNOWN = "e0000000-0000-4000-8000-00000000000e"


@pytest.fixture
def world():
    with served(alternate_keys={"contact": (("emailaddress1",), ("firstname", "lastname"))}) as caller:
        caller.case = add_case(caller.sim)
        yield caller


def row_of(world, entity: str, row_id: str) -> dict:
    key = world.sim.store.tables[entity].key
    return next(row for row in world.sim.rows(entity) if row[key] == row_id)


def test_create_answers_with_the_address_only(world):
    """A created row is 204 with OData-EntityId; defaults, owner and ticket number are filled in."""
    body = {"title": "From outside", "customerid_contact@odata.bind": f"/contacts({ADA})"}

    response = world.call("POST", "incidents", body=body)
    row = world.sim.rows("incident")[-1]

    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["OData-EntityId"] == f"{world.root}incidents({row['incidentid']})"
    assert (row["statecode"], row["statuscode"], row["prioritycode"]) == (0, 1, 2)
    assert row["ticketnumber"].startswith("CAS-")
    assert row["_ownerid_value"] == row["_owninguser_value"] == world.get("WhoAmI")["UserId"]
    assert row["modifiedon"] == "2026-03-12T09:30:15Z"


def test_representation_comes_when_preferred(world):
    """With return=representation a create is 201 and an update 200, with the selected columns."""
    body = {"lastname": "New", "firstname": "Ann"}

    created = world.call("POST", "contacts?$select=fullname", "return=representation", body)
    path = f"contacts({created.json()['contactid']})?$select=fullname"
    updated = world.call("PATCH", path, "return=representation", {"lastname": "Newer"}, If_Match="*")

    assert (created.status_code, created.json()["fullname"]) == (201, "Ann New")
    assert (updated.status_code, updated.json()["fullname"]) == (200, "Ann Newer")
    assert created.headers["Preference-Applied"] == "return=representation"
    assert created.json()["@odata.etag"] != updated.json()["@odata.etag"]


def test_patch_without_condition_creates(world):
    """An unknown id is created by PATCH, unless If-Match says update only; If-None-Match says create only."""
    body = {"lastname": "Back again"}

    missing = world.refusal("PATCH", f"contacts({UNKNOWN})", body, If_Match="*")
    created = world.call("PATCH", f"contacts({UNKNOWN})", body=body)
    twice = world.refusal("PATCH", f"contacts({UNKNOWN})", body, If_None_Match="*")

    assert missing[:2] == (404, "0x80040217")
    assert created.status_code == 204
    assert row_of(world, "contact", UNKNOWN)["lastname"] == "Back again"
    assert twice[0] == 412


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_writes_may_depend_on_the_version(world, method):
    """A tag that is no longer the row's is 412 and changes nothing."""
    path = f"incidents({world.case})"
    tag = world.call("GET", path).headers["ETag"]
    world.sim.update("incident", world.case, title="Changed meanwhile")

    status, _, message = world.refusal(method, path, {"title": "Mine"}, If_Match=tag)

    assert status == 412
    assert "RowVersion" in message
    assert row_of(world, "incident", world.case)["title"] == "Changed meanwhile"


def test_alternate_keys_work_where_they_are_defined(world):
    """A defined key finds, and creates with its own values; quotes in it are doubled."""
    found = world.get("contacts(emailaddress1='ada@acme.example')?$select=fullname")
    both = world.get("contacts(firstname='Bob',lastname='O''Brien')?$select=fullname")
    missing = world.refusal("GET", "contacts(emailaddress1='nobody@acme.example')")
    created = world.call("PATCH", "contacts(emailaddress1='new@acme.example')", body={"lastname": "New"})
    undefined = world.refusal("GET", "contacts(lastname='Quill')")

    assert (found["contactid"], both["contactid"]) == (ADA, BOB)
    assert missing[0] == 404
    assert created.status_code == 204
    assert world.sim.rows("contact")[-1]["emailaddress1"] == "new@acme.example"
    assert undefined[0] == 400


def test_binding_one_branch_clears_the_other(world):
    """A polymorphic lookup holds one row; owners are users or teams."""
    body = {"customerid_account@odata.bind": f"/accounts({ACME})", "ownerid@odata.bind": f"/teams({TEAM})"}

    world.call("PATCH", f"incidents({world.case})", body=body, If_Match="*").raise_for_status()
    row = row_of(world, "incident", world.case)
    case = world.get(f"incidents({world.case})?$expand=customerid_contact,customerid_account")

    assert (row["_customerid_value"], row["_owningteam_value"], row["_owninguser_value"]) == (ACME, TEAM, None)
    assert (case["customerid_contact"], case["customerid_account"]["name"]) == (None, "Acme")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({"nosuch": 1}, 400, "0x80048d19", id="unknown column"),
        pytest.param({"Title": "x"}, 400, "0x80048d19", id="case of a column"),
        pytest.param({"title": "x" * 201}, 400, "0x80044331", id="title too long"),
        pytest.param({"description": "x" * 2001}, 400, "0x80044331", id="memo too long"),
        pytest.param({"title": 5}, 400, "0x80048d19", id="number for text"),
        pytest.param({"prioritycode": "1"}, 400, "0x80048d19", id="text for option"),
        pytest.param({"prioritycode": 99}, 400, "0x8004431a", id="unknown option"),
        pytest.param({"ticketnumber": "CAS-1"}, 400, "0x80048d19", id="ticket number is fixed"),
        pytest.param({"createdon": "2026-01-01T00:00:00Z"}, 400, "0x80048d19", id="read-only"),
        pytest.param({"_primarycontactid_value": ADA}, 400, "0x80048d19", id="lookup by its value"),
        pytest.param({"primarycontactid": ADA}, 400, "0x80048d19", id="lookup without bind"),
        pytest.param({"customerid@odata.bind": f"/contacts({ADA})"}, 400, "0x80048d19", id="bind without branch"),
        pytest.param(
            {"primarycontactid@odata.bind": f"/accounts({ACME})"}, 400, "0x80048d19", id="bind to the wrong table"
        ),
        pytest.param({"primarycontactid@odata.bind": f"/contacts({UNKNOWN})"}, 404, "0x80040217", id="bind to nothing"),
        pytest.param({"customerid_contact@odata.bind": None}, 400, "0x80040203", id="no customer"),
        pytest.param({"statecode": 1, "statuscode": 5}, 400, "0x80048408", id="resolve by state"),
        pytest.param({"statuscode": 5}, 400, "0x80048408", id="status of another state"),
    ],
)
def test_updates_that_are_refused(world, body, status, code):
    """What a row cannot hold is refused as a whole and changes nothing."""
    before = row_of(world, "incident", world.case)

    refused = world.refusal("PATCH", f"incidents({world.case})", body, If_Match="*")

    assert refused[:2] == (status, code)
    assert row_of(world, "incident", world.case) == before


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"title": "No customer"}, id="no customer"),
        pytest.param(
            {"title": "x", "customerid_contact@odata.bind": f"/contacts({ADA})", "statecode": 1}, id="state on create"
        ),
    ],
)
def test_creates_that_are_refused(world, body):
    """A case needs a customer and begins active."""
    assert world.refusal("POST", "incidents", body)[0] == 400


def test_bodies_must_be_json(world):
    """Another content type, broken JSON and a list are refused; so is a body that is too large."""
    path = f"incidents({world.case})"
    send = world.session.patch

    statuses = [
        send(world.root + path, data="title=x", headers={"Content-Type": "text/plain"}, timeout=10).status_code,
        send(world.root + path, data="{", headers={"Content-Type": "application/json"}, timeout=10).status_code,
        send(world.root + path, json=[1], timeout=10).status_code,
    ]
    world.sim.settings.max_body_bytes = 10
    statuses.append(send(world.root + path, json={"title": "long enough"}, timeout=10).status_code)

    assert statuses == [415, 400, 400, 413]


def close(world, case: str, **changes):
    resolution = {
        "@odata.type": "Microsoft.Dynamics.CRM.incidentresolution",
        "subject": "Fixed",
        "incidentid@odata.bind": f"/incidents({case})",
    }
    return world.call("POST", "CloseIncident", body={"IncidentResolution": resolution, "Status": 5, **changes})


def test_a_case_is_resolved_by_its_action_and_then_read_only(world):
    """CloseIncident resolves and leaves an activity; changes need a reactivation first."""
    path = f"incidents({world.case})"

    closed = close(world, world.case)
    again = close(world, world.case)
    refused = world.refusal("PATCH", path, {"title": "Late"}, If_Match="*")
    reactivated = world.call("PATCH", path, body={"statecode": 0, "statuscode": 1}, If_Match="*")
    changed = world.call("PATCH", path, body={"title": "Later"}, If_Match="*")

    assert (closed.status_code, closed.content, again.status_code) == (204, b"", 400)
    assert world.sim.rows("incidentresolution")[0]["subject"] == "Fixed"
    assert refused[0] == 400
    assert (reactivated.status_code, changed.status_code) == (204, 204)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(-1, 5, id="default"),
        pytest.param(1000, 1000, id="information"),
        pytest.param(1, None, id="active"),
        pytest.param("5", None, id="text"),
    ],
)
def test_close_takes_a_resolved_status(world, status, expected):
    """Minus one means the default; a reason of another state is refused."""
    response = close(world, world.case, Status=status)

    assert response.status_code == (204 if expected else 400)
    assert row_of(world, "incident", world.case)["statuscode"] == (expected or 1)


def test_cancel_and_merge(world):
    """A case is cancelled by its state; a merged one is cancelled too and names its master."""
    other = add_case(world.sim, "Duplicate")

    cancelled = world.call("PATCH", f"incidents({world.case})", body={"statecode": 2, "statuscode": 6}, If_Match="*")
    world.sim.merge(world.case, other)
    merged = world.get(f"incidents({other})?$select=statecode,statuscode,_masterid_value")

    assert cancelled.status_code == 204
    assert (merged["statecode"], merged["statuscode"], merged["_masterid_value"]) == (2, 2000, world.case)


def test_equal_values_are_a_change_too(world):
    """A write moves version and modified time even when nothing differs; one second is the finest step."""
    world.sim.clock.advance(61.7)

    world.call("PATCH", f"incidents({world.case})", body={"title": "Printer offline"}, If_Match="*").raise_for_status()
    row = row_of(world, "incident", world.case)

    assert row["modifiedon"] == "2026-03-12T09:31:16Z"
    assert row["_modifiedby_value"] == world.get("WhoAmI")["UserId"]


def test_deleted_parents_take_their_cases_along(world):
    """A deleted contact takes its cases; where it was only named, the lookup becomes empty."""
    response = world.call("DELETE", f"contacts({ADA})")

    assert response.status_code == 204
    assert world.sim.rows("incident") == []
    assert row_of(world, "account", ACME)["_primarycontactid_value"] is None
    assert world.refusal("DELETE", f"contacts({ADA})")[:2] == (404, "0x80040217")


def test_notes_hang_on_a_case(world):
    """A note is bound to its case and read back through it; a file makes it a document."""
    body = {
        "subject": "Log",
        "notetext": "See file",
        "filename": "a.txt",
        "mimetype": "text/plain",
        "documentbody": "YQ==",
    }

    created = world.call(
        "POST", "annotations", body={**body, "objectid_incident@odata.bind": f"/incidents({world.case})"}
    )
    notes = world.get(f"incidents({world.case})/Incident_Annotation?$select=subject,isdocument")["value"]

    assert created.status_code == 204
    assert [(note["subject"], note["isdocument"]) for note in notes] == [("Log", True)]


def test_the_seam_hears_of_every_write(world, monkeypatch):
    """Each write tells message, columns and the row before, and who wrote with which tag."""
    heard = []
    monkeypatch.setattr(world.sim.store, "changed", lambda *event: heard.append((*event, world.sim.store.actor)))

    world.call("PATCH", f"contacts({ADA})?tag=concord", body={"firstname": "Augusta"}, If_Match="*").raise_for_status()
    world.sim.delete("incident", world.case)
    close(world, add_case(world.sim))
    (entity, row_id, message, columns, before, actor), deletion, *_, closing = heard

    assert (entity, row_id, message, before["firstname"]) == ("contact", ADA, "Update", "Ada")
    assert columns == ["firstname", "fullname", "modifiedon", "modifiedby"]
    assert (actor.tag, actor.user_id) == ("concord", world.get("WhoAmI")["UserId"])
    assert deletion[:4] == ("incident", world.case, "Delete", [])
    assert closing[2] == "Close"


def test_a_call_can_act_for_a_user(world):
    """CallerObjectId names the user that a write is attributed to; an unknown one is refused."""
    world.sim.update("systemuser", USER, azureactivedirectoryobjectid=UNKNOWN)

    written = world.call("PATCH", f"contacts({ADA})", body={"jobtitle": "CTO"}, If_Match="*", CallerObjectId=UNKNOWN)
    refused = world.refusal("GET", "WhoAmI", CallerObjectId=ADA)

    assert written.status_code == 204
    assert row_of(world, "contact", ADA)["_modifiedby_value"] == USER
    assert refused[0] == 403


def test_several_rows_are_written_together_or_not_at_all(world):
    """CreateMultiple and UpdateMultiple hold together."""
    kind = {"@odata.type": "Microsoft.Dynamics.CRM.contact"}
    path = "contacts/Microsoft.Dynamics.CRM."

    created = world.call(
        "POST", f"{path}CreateMultiple", body={"Targets": [{**kind, "lastname": "A"}, {**kind, "lastname": "B"}]}
    )
    ids = created.json()["Ids"]
    targets = [{**kind, "contactid": ids[0], "lastname": "C"}, {**kind, "contactid": ids[1], "lastname": "x" * 51}]
    failed = world.refusal("POST", f"{path}UpdateMultiple", {"Targets": targets})

    assert len(ids) == 2
    assert failed[:2] == (400, "0x80044331")
    assert row_of(world, "contact", ids[0])["lastname"] == "A"
