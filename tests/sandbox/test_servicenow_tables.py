"""Table, Aggregate, Batch and Attachment API of the ServiceNow stand-in, over HTTP."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.sandbox.servicenow_calls import Api, running

NOT_FOUND = {
    "error": {"message": "No Record found", "detail": "Record doesn't exist or ACL restricts the record retrieval"},
    "status": "failure",
}


@pytest.fixture(scope="module")
def served() -> Iterator[Api]:
    """One server for the module."""
    with running() as api:
        yield api


@pytest.fixture
def api(served: Api) -> Iterator[Api]:
    """The server with no incidents and default switches."""
    yield served
    for sys_id in list(served.sim.tables["incident"]):
        served.sim.delete("incident", sys_id)
    served.sim.faults.clear()


def people(api: Api) -> tuple[str, str]:
    """Return the ids of a user and of the user's manager."""
    rows = api.sim.rows("sys_user", user_name="beth")
    if rows:
        return rows[0]["sys_id"], rows[0]["manager"]
    boss = api.sim.insert("sys_user", user_name="boss", email="boss@x.example", first_name="Bo", last_name="Ss")
    names = {"user_name": "beth", "email": "beth@x.example", "first_name": "Beth", "last_name": "Anglin"}
    return api.sim.insert("sys_user", manager=boss, **names), boss


def test_create_answers_201_with_location_and_strings(api: Api) -> None:
    """A created row comes back with its address; every value is a string."""
    response = api.call("POST", "incident", json={"short_description": "Printer", "urgency": 1, "active": True})

    row = response.json()["result"]
    assert response.status_code == 201
    assert response.headers["Location"] == f"{api.url}/api/now/table/incident/{row['sys_id']}"
    assert (row["urgency"], row["active"], row["sys_mod_count"]) == ("1", "true", "0")
    assert row["sys_created_on"] == row["opened_at"] == "2026-03-02 12:00:00"
    assert row["sys_created_by"] == "concord.integration"


def test_create_of_nothing_known_makes_an_almost_empty_record(api: Api) -> None:
    """Unknown names are ignored, even if nothing is left."""
    response = api.call("POST", "incident", json={"no_such_field": "x"})

    assert response.status_code == 201
    assert response.json()["result"]["short_description"] == ""


def test_create_takes_the_first_of_a_list(api: Api) -> None:
    """One record per write: further array items are ignored."""
    api.call("POST", "incident", json=[{"short_description": "one"}, {"short_description": "two"}])

    assert [row["short_description"] for row in api.sim.rows("incident")] == ["one"]


def test_no_response_body_header_suppresses_the_body(api: Api) -> None:
    """A writer may do without the answer's body."""
    response = api.call("POST", "incident", json={}, headers={"X-no-response-body": "true"})

    assert (response.status_code, response.content) == (201, b"")
    assert response.headers["Location"]


def test_patch_and_put_change_only_what_is_sent(api: Api) -> None:
    """PUT does not clear unsent fields, an empty text does."""
    sys_id = api.sim.insert("incident", short_description="a", description="b", correlation_id="c")

    put = api.call("PUT", f"incident/{sys_id}", json={"description": ""})
    patch = api.call("PATCH", f"incident/{sys_id}", json={"short_description": "z"})

    assert (put.status_code, patch.status_code) == (200, 200)
    row = api.sim.tables["incident"][sys_id]
    assert (row["short_description"], row["description"], row["correlation_id"]) == ("z", "", "c")


def test_choice_is_not_cleared_by_an_empty_text(api: Api) -> None:
    """An empty text leaves a choice field as it is."""
    sys_id = api.sim.insert("incident", urgency="1")

    api.call("PATCH", f"incident/{sys_id}", json={"urgency": ""})

    assert api.sim.tables["incident"][sys_id]["urgency"] == "1"


def test_method_override_turns_a_post_into_a_patch(api: Api) -> None:
    """X-HTTP-Method-Override is honoured."""
    sys_id = api.sim.insert("incident", short_description="a")

    response = api.call(
        "POST", f"incident/{sys_id}", json={"short_description": "b"}, headers={"X-HTTP-Method-Override": "PATCH"}
    )

    assert response.status_code == 200
    assert api.sim.tables["incident"][sys_id]["short_description"] == "b"


def test_delete_answers_204_then_404(api: Api) -> None:
    """A deleted row is gone."""
    sys_id = api.sim.insert("incident")
    api.auth = ("admin", "admin-password")

    first, second = (api.call("DELETE", f"incident/{sys_id}") for _ in range(2))

    assert (first.status_code, first.content) == (204, b"")
    assert (second.status_code, second.json()) == (404, NOT_FOUND)
    api.auth = ("concord.integration", "integration-password")


@pytest.mark.parametrize(
    ("method", "path", "facts", "status", "message"),
    [
        ("GET", "nope", {}, 400, "Invalid table nope"),
        ("GET", "incident/0123", {}, 404, "No Record found"),
        ("GET", "/api/now/tables/incident", {}, 400, "Requested URI does not represent any resource"),
        ("GET", "/api/now/v3/table/incident", {}, 400, "Requested URI does not represent any resource"),
        (
            "POST",
            "incident",
            {"data": "{", "headers": {"Content-Type": "application/json"}},
            400,
            "Exception while reading request",
        ),
        ("POST", "incident", {"data": b"{}"}, 400, "Content-Type header is missing"),
        ("POST", "incident", {"data": {"a": "b"}}, 415, "Unsupported media type"),
        ("GET", "incident", {"headers": {"Accept": "text/csv"}}, 406, "Accept header media type is not supported"),
        ("GET", "incident", {"headers": {"Accept": None}}, 400, "Accept header is missing"),
        ("PATCH", "incident", {"json": {}}, 405, "Method not supported"),
        ("GET", "incident?sysparm_offset=-1", {}, 400, "Invalid value for sysparm_offset"),
    ],
)
def test_errors_have_the_vendor_body(
    api: Api, method: str, path: str, facts: dict[str, Any], status: int, message: str
) -> None:
    """Every refusal is an error object with message, detail and status."""
    session = requests.Session()
    session.headers.clear()
    headers = {"Accept": "application/json"} | facts.pop("headers", {})
    address = api.url + (path if path.startswith("/") else f"/api/now/table/{path}")

    response = session.request(method, address, auth=api.auth, headers=headers, timeout=20, **facts)

    assert response.status_code == status
    assert response.json()["error"]["message"] == message
    assert response.json()["status"] == "failure"


def test_list_pages_with_links_and_count(api: Api) -> None:
    """Links appear as far as such pages exist and repeat the caller's parameters."""
    for number in range(5):
        api.sim.insert("incident", short_description=f"t{number}")

    middle = api.get("incident", sysparm_query="ORDERBYshort_description", sysparm_limit=2, sysparm_offset=2)
    whole = api.get("incident", sysparm_limit=5)

    assert middle.headers["X-Total-Count"] == "5"
    rels = {name: link["url"] for name, link in middle.links.items()}
    assert list(rels) == ["first", "prev", "next", "last"]
    assert rels["next"].endswith("sysparm_query=ORDERBYshort_description&sysparm_limit=2&sysparm_offset=4")
    assert rels["prev"].endswith("sysparm_offset=0")
    assert [row["short_description"] for row in middle.json()["result"]] == ["t2", "t3"]
    assert "Link" not in whole.headers


def test_list_flags_drop_link_and_count(api: Api) -> None:
    """Both headers can be switched off."""
    api.sim.insert("incident")
    api.sim.insert("incident")

    response = api.get("incident", sysparm_limit=1, sysparm_suppress_pagination_header="true", sysparm_no_count="true")

    assert "Link" not in response.headers
    assert "X-Total-Count" not in response.headers


def test_list_without_rows_is_404_in_v1_only(api: Api) -> None:
    """Version 1 has no empty lists."""
    statuses = [api.get(f"/api/now/{version}table/incident").status_code for version in ("v1/", "v2/", "")]

    assert statuses == [404, 200, 200]


def test_list_by_field_value_pairs(api: Api) -> None:
    """Pairs select by equality, taken literally; sysparm_query excludes them."""
    api.sim.insert("incident", number="A", short_description="x^ORnumber=B")
    api.sim.insert("incident", number="B")

    pairs = api.get("incident", short_description="x^ORnumber=B").json()["result"]
    both = api.get("incident", sysparm_query="number=B", number="A").json()["result"]

    assert [row["number"] for row in pairs] == ["A"]
    assert [row["number"] for row in both] == ["B"]


def test_reference_forms(api: Api) -> None:
    """A reference is link and value, a plain id, a display value, or all of them."""
    beth, _ = people(api)
    sys_id = api.sim.insert("incident", number="A", caller_id=beth)
    link = f"{api.url}/api/now/table/sys_user/{beth}"

    def caller(**params: str) -> Any:
        return api.get(f"incident/{sys_id}", sysparm_fields="caller_id", **params).json()["result"]["caller_id"]

    assert caller() == {"link": link, "value": beth}
    assert caller(sysparm_exclude_reference_link="true") == beth
    assert caller(sysparm_display_value="true") == {"display_value": "Beth Anglin", "link": link}
    assert caller(sysparm_display_value="true", sysparm_exclude_reference_link="true") == "Beth Anglin"
    assert caller(sysparm_display_value="all") == {"display_value": "Beth Anglin", "value": beth, "link": link}
    assert api.get(f"incident/{sys_id}").json()["result"]["assigned_to"] == ""


def test_fields_dot_walk_to_flat_keys(api: Api) -> None:
    """Dotted names give flat keys over two steps; unknown names are absent."""
    beth, _ = people(api)
    sys_id = api.sim.insert("incident", caller_id=beth)

    row = api.get(
        f"incident/{sys_id}", sysparm_fields="caller_id.email,caller_id.manager.user_name,bogus,assigned_to.email"
    ).json()["result"]

    assert row == {"caller_id.email": "beth@x.example", "caller_id.manager.user_name": "boss", "assigned_to.email": ""}


def test_display_values_use_labels_and_the_users_zone(api: Api) -> None:
    """Dates move into the API user's zone, choices become labels."""
    sys_id = api.sim.insert("incident", urgency="1", opened_at="2026-03-02 12:00:00")

    row = api.get(f"incident/{sys_id}", sysparm_display_value="true").json()["result"]

    assert row["opened_at"] == "2026-03-02 04:00:00"
    assert (row["state"], row["urgency"], row["sys_class_name"]) == ("New", "1 - High", "Incident")


def test_input_display_values(api: Api) -> None:
    """With the flag, dates are the user's local time, references names, choices labels."""
    beth, _ = people(api)
    body = {"opened_at": "2026-03-02 04:00:00", "caller_id": "Beth Anglin", "urgency": "1 - High"}

    row = api.call("POST", "incident", {"sysparm_input_display_value": "true"}, json=body).json()["result"]

    assert (row["opened_at"], row["caller_id"]["value"], row["urgency"]) == ("2026-03-02 12:00:00", beth, "1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("opened_at", "2026-01-31T00:00:00Z"),
        ("caller_id", "Beth Anglin"),
        ("impact", "high"),
        ("opened_at", "yesterday"),
    ],
)
def test_values_that_a_column_cannot_take_are_dropped(api: Api, field: str, value: str) -> None:
    """ISO dates, names for references and words for numbers leave the field as it was, with 200."""
    people(api)
    sys_id = api.sim.insert("incident")
    before = api.sim.tables["incident"][sys_id][field]

    response = api.call("PATCH", f"incident/{sys_id}", json={field: value})

    assert response.status_code == 200
    assert api.sim.tables["incident"][sys_id][field] == before


def test_system_fields_are_ignored_unless_the_flag_is_set(api: Api) -> None:
    """sys_ columns are set by the server, or by sysparm_suppress_auto_sys_field."""
    body = {"sys_id": "a" * 32, "sys_created_on": "2020-01-01 00:00:00"}

    plain = api.call("POST", "incident", json=body).json()["result"]
    flagged = api.call("POST", "incident", {"sysparm_suppress_auto_sys_field": "true"}, json=body).json()["result"]

    assert plain["sys_id"] != "a" * 32
    assert plain["sys_created_on"] == "2026-03-02 12:00:00"
    assert (flagged["sys_id"], flagged["sys_created_on"]) == ("a" * 32, "2020-01-01 00:00:00")


def test_dictionary_describes_incident_and_task_apart(api: Api) -> None:
    """A table's own rows name only its own columns; inherited ones stand under the parent."""
    own = api.found("sys_dictionary", "name=incident^elementISNOTEMPTY", "element")
    inherited = api.get("sys_dictionary", sysparm_query="name=task^element=short_description").json()["result"][0]
    parent = api.get("sys_db_object", sysparm_query="name=incident", sysparm_fields="super_class.name").json()[
        "result"
    ][0]
    codes = api.found("sys_choice", "name=incident^element=close_code^inactive=false", "value")

    assert "caller_id" in own
    assert "short_description" not in own
    assert (inherited["internal_type"]["value"], inherited["max_length"]) == ("string", "160")
    assert parent == {"super_class.name": "task"}
    assert "Solution provided" in codes


def test_stats_count_and_group(api: Api) -> None:
    """Counts are strings, groups come as a list."""
    for urgency in ("1", "1", "3"):
        api.sim.insert("incident", urgency=urgency)

    plain = api.get("/api/now/stats/incident", sysparm_count="true", sysparm_avg_fields="urgency").json()["result"]
    grouped = api.get("/api/now/stats/incident", sysparm_count="true", sysparm_group_by="urgency").json()["result"]

    assert plain == {"stats": {"count": "3", "avg": {"urgency": "1.6667"}}}
    assert grouped[0] == {"stats": {"count": "2"}, "groupby_fields": [{"field": "urgency", "value": "1"}]}


def batch_item(number: int, method: str, url: str, body: Any = None) -> dict[str, Any]:
    headers = [{"name": "Accept", "value": "application/json"}, {"name": "Content-Type", "value": "application/json"}]
    item = {"id": number, "method": method, "url": url, "headers": headers}
    return item if body is None else item | {"body": base64.b64encode(json.dumps(body).encode()).decode()}


def test_batch_works_each_item_by_itself(api: Api) -> None:
    """The outer 200 says nothing about the items; ids come back as strings."""
    items = [
        batch_item(1, "POST", "/api/now/table/incident", {"short_description": "x"}),
        batch_item(2, "GET", "/api/now/table/nope"),
        batch_item(3, "GET", "/api/now/table/incident?sysparm_query=short_description%3Dx"),
    ]

    response = api.call("POST", "/api/now/v1/batch", json={"batch_request_id": 7, "rest_requests": items})

    body = response.json()
    assert (response.status_code, body["batch_request_id"], body["unserviced_requests"]) == (200, "7", [])
    assert [(item["id"], item["status_code"]) for item in body["serviced_requests"]] == [
        ("1", 201),
        ("2", 400),
        ("3", 200),
    ]
    listed = json.loads(base64.b64decode(body["serviced_requests"][2]["body"]))
    assert [row["short_description"] for row in listed["result"]] == ["x"]
    assert {"name": "X-Total-Count", "value": "1"} in body["serviced_requests"][2]["headers"]


def test_batch_leaves_the_rest_unserviced(api: Api) -> None:
    """What lies over the batch's time limit is named, not done."""
    api.sim.configure({"batch_item_cost_s": 11.0})
    items = [batch_item(n, "POST", "/api/now/table/incident", {}) for n in range(4)]

    body = api.call("POST", "/api/now/v1/batch", json={"batch_request_id": "b", "rest_requests": items}).json()

    assert body["unserviced_requests"] == ["2", "3"]
    assert len(api.sim.tables["incident"]) == 2
    api.sim.configure({"batch_item_cost_s": 0.0})


def test_attachment_upload_read_delete(api: Api) -> None:
    """A file goes up raw, is listed with its metadata, comes down and can be deleted."""
    sys_id = api.sim.insert("incident")
    params = {"table_name": "incident", "table_sys_id": sys_id, "file_name": "a.bin"}

    created = api.call(
        "POST", "/api/now/attachment/file", params, data=b"\x00\xff\r\n", headers={"Content-Type": "image/png"}
    )
    listed = api.get("/api/now/attachment", sysparm_query=f"table_sys_id={sys_id}").json()["result"]
    file = api.get(f"/api/now/attachment/{listed[0]['sys_id']}/file", headers={"Accept": "*/*"})
    deleted = api.call("DELETE", f"/api/now/attachment/{listed[0]['sys_id']}")

    assert created.status_code == 201
    assert created.headers["Location"].endswith(listed[0]["sys_id"])
    assert (listed[0]["file_name"], listed[0]["size_bytes"], listed[0]["content_type"]) == ("a.bin", "4", "image/png")
    assert (file.content, file.headers["Content-Type"]) == (b"\x00\xff\r\n", "image/png")
    assert json.loads(file.headers["X-Attachment-Metadata"])["hash"] == listed[0]["hash"]
    assert (deleted.status_code, api.get(f"/api/now/attachment/{listed[0]['sys_id']}").status_code) == (204, 404)


def test_attachment_form_and_missing_record(api: Api) -> None:
    """A form's file must come last; a file for an absent record is refused."""
    sys_id = api.sim.insert("incident")
    form = {"table_name": "incident", "table_sys_id": sys_id}
    content = bytes(range(256)) * 3

    good = api.call(
        "POST", "/api/now/attachment/upload", data=form, files={"uploadFile": ("b.bin", content, "application/pdf")}
    )
    bad = api.call(
        "POST", "/api/now/attachment/upload", data=form | {"table_sys_id": "0" * 32}, files={"f": ("b", b"x")}
    )

    assert good.status_code == 201
    assert api.sim.table_api.attachments.files[good.json()["result"]["sys_id"]] == content
    assert bad.status_code == 404


def test_url_of_nine_thousand_characters_works_and_a_huge_one_is_html(api: Api) -> None:
    """Long queries pass up to the instance's limit, then an HTML page answers."""
    api.sim.insert("incident", number="A")

    long = api.get("incident", sysparm_query="number=A^ORnumber=" + "x" * 9000)
    huge = api.get("incident", sysparm_query="number=A^ORnumber=" + "x" * 20_000)

    assert [row["number"] for row in long.json()["result"]] == ["A"]
    assert huge.status_code == 414
    assert huge.headers["Content-Type"].startswith("text/html")
