"""Leads and companies of the Marketo stand-in."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sandbox.marketo_calls import Api, code, outcomes, running


@pytest.fixture
def api() -> Iterator[Api]:
    """A fresh instance."""
    with running() as api:
        yield api


def test_envelope_has_a_request_id_and_leaves_out_what_is_empty(api: Api) -> None:
    """Successes and failures are HTTP 200 and say so inside; codes are strings."""
    good = api.get("leads.json", filterType="email", filterValues="nobody@x.example")
    bad = api.get("leads.json", filterType="lastName", filterValues="x")

    assert set(good) == {"requestId", "success", "result"}
    assert (good["success"], good["result"]) == (True, [])
    assert set(bad) == {"requestId", "success", "errors"}
    assert code(bad) == "1011"
    assert good["requestId"] != bad["requestId"]


# -- sync leads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("createOrUpdate", ["created", "updated", "1007"]),
        ("createOnly", ["created", "1005", "1007"]),
        ("updateOnly", ["1004", "updated", "1007"]),
        ("createDuplicate", ["created", "created", "created"]),
    ],
)
def test_actions_tell_new_known_and_doubled_leads_apart(api: Api, action: str, expected: list[str]) -> None:
    """Results stand in the order of the input and name nothing but the id."""
    known = api.sim.insert("leads", email="known@x.example")
    for _ in range(2):
        api.sim.insert("leads", email="twice@x.example")

    results = api.sync(*({"email": f"{who}@x.example"} for who in ("new", "known", "twice")), action=action)

    assert outcomes(results) == expected
    assert all(set(item) <= {"id", "status", "reasons"} for item in results)
    if expected[1] == "updated":
        assert results[1]["id"] == known


def test_email_is_looked_up_without_case(api: Api) -> None:
    """Ada and ADA are one lead."""
    api.sync({"email": "ada@x.example"})

    assert outcomes(api.sync({"email": "ADA@X.example"})) == ["updated"]
    assert len(api.find("Ada@x.example")) == 1


def test_null_and_empty_clear_and_an_omitted_field_stays(api: Api) -> None:
    """Null and "" are both stored as null; an answer leaves null fields out."""
    api.sync({"email": "a@x.example", "title": "Buyer", "phone": "1", "city": "Oslo"})
    api.sync({"email": "a@x.example", "title": None, "phone": ""})

    (row,) = api.find("a@x.example", fields="title,phone,city")

    assert row == {"id": row["id"], "city": "Oslo"}


def test_lead_is_updated_by_id_and_by_other_searchable_fields(api: Api) -> None:
    """The id is allowed with updateOnly only."""
    key = api.sim.insert("leads", email="a@x.example")

    assert outcomes(api.sync({"id": key, "email": "b@x.example"}, action="updateOnly", lookupField="id")) == ["updated"]
    assert outcomes(api.sync({"id": 1, "title": "x"}, action="updateOnly", lookupField="id")) == ["1004"]
    assert outcomes(api.sync({"id": key, "email": "b@x.example"})) == ["1003"]
    assert code(api.post("leads.json", {"lookupField": "id", "input": [{"id": key}]})) == "1003"
    assert code(api.post("leads.json", {"lookupField": "lastName", "input": [{"lastName": "x"}]})) == "1011"
    assert [row["email"] for row in api.sim.rows("leads")] == ["b@x.example"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"email": "a@x.example", "nope": 1}, "1006"),
        ({"email": "a@x.example", "numberOfSpouses": 1, "title": "x"}, "1006"),
        ({"email": "a@x.example", "leadScore": "many"}, "1001"),
        ({"email": "a@x.example", "leadScore": 1.5}, "1001"),
        ({"email": "a@x.example", "leadScore": True}, "1001"),
        ({"email": "a@x.example", "leadScore": "1,000"}, "1001"),
        ({"email": "a@x.example", "leadScore": "10"}, "created"),
        ({"email": "a@x.example", "dateOfBirth": "01.02.1990"}, "1001"),
        ({"email": "a@x.example", "dateOfBirth": "1990-02-01"}, "created"),
        ({"email": "a@x.example", "unsubscribed": "maybe"}, "1001"),
        ({"email": "a@x.example", "title": {"a": 1}}, "1001"),
        ({"email": "a@x.example", "title": "x" * 256}, "1001"),
        ({"email": "a@x.example", "title": "größer"}, "created"),
        ({"email": "größe@x.example"}, "1003"),
        ({"email": "a@x.example", "updatedAt": "2026-01-01T00:00:00Z"}, "1003"),
        ({"email": None, "title": "x"}, "1003"),
        ({"title": "x"}, "1002"),
        ("a@x.example", "1003"),
        ({"email": "a@x.example", "externalCompanyId": "nobody"}, "1013"),
        ({"email": "a@x.example", "company": "Acme"}, "1021"),
    ],
)
def test_record_that_does_not_fit_is_skipped_alone(api: Api, record: Any, expected: str) -> None:
    """The call stays a success, and its neighbours are written."""
    results = api.sync({"email": "before@x.example"}, record, {"email": "after@x.example"})

    assert outcomes(results) == ["created", expected, "created"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": []}, "1002"),
        ({}, "1002"),
        ({"input": [{"email": f"{i}@x.example"} for i in range(301)]}, "1003"),
        ({"action": "upsert", "input": [{"email": "a@x.example"}]}, "1003"),
        ([{"email": "a@x.example"}], "609"),
    ],
)
def test_call_that_cannot_be_read_fails_as_a_whole(api: Api, body: Any, expected: str) -> None:
    """Nothing of it is written."""
    assert code(api.post("leads.json", body)) == expected
    assert api.sim.rows("leads") == []


def test_content_type_and_json_are_checked(api: Api) -> None:
    """612 and 609, inside HTTP 200."""
    wrong = api.call("POST", "leads.json", data="{}", headers={"Content-Type": "text/plain"})
    missing = api.call("POST", "leads.json", data="{}")
    broken = api.call("POST", "leads.json", data="{", headers={"Content-Type": "application/json; charset=utf-8"})

    assert [code(answer.json()) for answer in (wrong, missing, broken)] == ["612", "612", "609"]


def test_body_and_address_have_their_limits(api: Api) -> None:
    """1 MB is HTTP 413, 8 KB of address HTTP 414, and a form asks the same question."""
    emails = [f"person.number{i}@a-rather-long-customer.example" for i in range(300)]
    api.sim.insert("leads", email=emails[299])
    asked = {"filterType": "email", "filterValues": ",".join(emails), "fields": "email"}

    too_large = api.call(
        "POST", "leads.json", json={"input": [{"email": "a@x.example", "mktoPersonNotes": "x" * 2**20}]}
    )
    too_long = api.call("GET", "leads.json", params=asked)
    as_form = api.call("POST", "leads.json", params={"_method": "GET"}, data=asked)

    assert (too_large.status_code, too_long.status_code) == (413, 414)
    assert [row["email"] for row in as_form.json()["result"]] == [emails[299]]


def test_race_mode_doubles_leads_that_are_upserted_at_the_same_time() -> None:
    """Between look-up and insert others may come; createOnly is safe from that."""
    with running(race_delay_s=0.3) as api:
        for action in ("createOrUpdate", "createOnly"):
            calls = [threading.Thread(target=api.sync, args=({"email": f"{action}@x.example"},), kwargs={"action": action}) for _ in range(2)]  # fmt: skip
            for call in calls:
                call.start()
            for call in calls:
                call.join()

        assert len(api.find("createOrUpdate@x.example")) == 2
        assert len(api.find("createOnly@x.example")) == 1
        assert outcomes(api.sync({"email": "createOrUpdate@x.example"})) == ["1007"]


def test_partitions_are_checked() -> None:
    """A lead in another partition is not changed by a call that names one."""
    with running(partitions=["Default", "Europe"]) as api:
        assert outcomes(api.sync({"email": "a@x.example"}, partitionName="Europe")) == ["created"]
        assert outcomes(api.sync({"email": "a@x.example"}, partitionName="Default")) == ["1010"]
        assert outcomes(api.sync({"email": "a@x.example"}, partitionName="Mars")) == ["1008"]
        assert outcomes(api.sync({"email": "a@x.example"})) == ["updated"]
        api.sim.partition_required = True
        assert outcomes(api.sync({"email": "b@x.example"})) == ["1009"]
        assert [each["name"] for each in api.get("leads/partitions.json")["result"]] == ["Default", "Europe"]


def test_asynchronous_sync_shows_no_record(api: Api) -> None:
    """It returns at once, without the truth about each record."""
    assert api.sync({"email": "a@x.example"}, {"nope": 1}, asyncProcessing=True) == []


# -- finding --------------------------------------------------------------------------------------------------------------


def test_find_shows_default_fields_and_those_asked_for(api: Api) -> None:
    """Doubled leads are all returned; a lead is read by its id too."""
    keys = [api.sim.insert("leads", email="a@x.example", firstName="Ada", title="Buyer") for _ in range(2)]

    rows = api.find("a@x.example")

    assert [row["id"] for row in rows] == keys
    assert set(rows[0]) == {"id", "email", "updatedAt", "createdAt", "firstName"}
    assert api.get(f"lead/{keys[0]}.json", fields="title")["result"] == [{"id": keys[0], "title": "Buyer"}]
    assert code(api.get("lead/9.json")) == "1004"
    assert code(api.get("leads.json", filterType="email", filterValues="a@x.example", fields="nope")) == "1006"
    assert code(api.get("leads.json", filterType="email", filterValues="")) == "1002"
    assert code(api.get("leads.json", filterType="id", filterValues=",".join(map(str, range(301))))) == "1003"


def test_comma_in_a_filter_value_parts_it(api: Api) -> None:
    """There is no escape: what is asked for is something else."""
    api.sim.insert("leads", email="a@x.example")

    assert len(api.find("a@x.example,other")) == 1


def test_pages_follow_by_token(api: Api) -> None:
    """The same question with the token gives the next page; another question does not take it."""
    for _ in range(5):
        api.sim.insert("leads", email="a@x.example")
    asked: dict[str, Any] = {"filterType": "email", "filterValues": "a@x.example", "batchSize": 2}

    first = api.get("leads.json", **asked)
    second = api.get("leads.json", **asked, nextPageToken=first["nextPageToken"])
    third = api.get("leads.json", **asked, nextPageToken=second["nextPageToken"])
    foreign = api.get(
        "leads.json", filterType="email", filterValues="b@x.example", nextPageToken=first["nextPageToken"]
    )

    ids = [row["id"] for page in (first, second, third) for row in page["result"]]
    assert (len(set(ids)), first["moreResult"], second["moreResult"]) == (5, True, True)
    assert "moreResult" not in third
    assert "nextPageToken" not in third
    assert code(foreign) == "1003"
    assert code(api.get("leads.json", **asked, nextPageToken="x")) == "1003"


def test_more_than_a_thousand_matches_are_refused(api: Api) -> None:
    """A filter has to be narrower than that."""
    for _ in range(1001):
        api.sim.insert("leads", email="a@x.example")

    envelope = api.get("leads.json", filterType="email", filterValues="a@x.example")

    assert code(envelope) == "1003"
    assert "Too many results" in envelope["errors"][0]["message"]


# -- companies ------------------------------------------------------------------------------------------------------------


def test_companies_are_synced_by_their_external_id(api: Api) -> None:
    """Results carry their place as `seq`; one id twice in a call is refused for the second."""
    acme = {"externalCompanyId": "acme", "company": "Acme, Inc.", "numberOfEmployees": 250}

    first = api.sync_companies(acme, {"externalCompanyId": "ACME", "company": "x"}, {"company": "nobody"}, {"externalCompanyId": "b", "nope": 1})  # fmt: skip
    again = api.sync_companies({"externalCompanyId": "acme", "website": "https://acme.example"})

    assert [item["seq"] for item in first] == [0, 1, 2, 3]
    assert outcomes(first) == ["created", "1036", "1002", "1006"]
    assert outcomes(again) == ["updated"]
    (row,) = api.get("companies.json", filterType="dedupeFields", filterValues="acme", fields="company,website")[
        "result"
    ]
    assert row == {"seq": 0, "id": first[0]["id"], "company": "Acme, Inc.", "website": "https://acme.example"}


def test_company_actions_and_keys(api: Api) -> None:
    """Missing is 1013, existing 1017; the id serves changes only."""
    (made,) = api.sync_companies({"externalCompanyId": "acme"}, action="createOnly")

    assert outcomes(api.sync_companies({"externalCompanyId": "acme"}, action="createOnly")) == ["1017"]
    assert outcomes(api.sync_companies({"externalCompanyId": "b"}, action="updateOnly")) == ["1013"]
    by_id = {"dedupeBy": "idField", "action": "updateOnly"}
    assert outcomes(api.sync_companies({"id": made["id"], "company": "Acme"}, **by_id)) == ["updated"]
    assert outcomes(api.sync_companies({"id": 99}, **by_id)) == ["1013"]
    body = {"dedupeBy": "idField", "action": "createOnly", "input": [{"id": 1}]}
    assert code(api.post("companies.json", body)) == "1003"
    assert code(api.get("companies.json", filterType="billingCity", filterValues="Oslo")) == "1011"


def test_lead_shows_its_company_and_can_be_moved_but_not_unlinked(api: Api) -> None:
    """Company values are the company's, for all of its leads."""
    api.sync_companies({"externalCompanyId": "a", "company": "Acme"}, {"externalCompanyId": "b", "company": "Bolt"})
    api.sync(*({"email": f"{i}@x.example", "externalCompanyId": "a"} for i in range(2)))

    api.sync_companies({"externalCompanyId": "a", "company": "Acme & Sons"})
    both = api.find("0@x.example", "1@x.example", fields="company")
    api.sync({"email": "0@x.example", "externalCompanyId": None})
    kept = api.find("0@x.example", fields="company,externalCompanyId")
    api.sync({"email": "0@x.example", "externalCompanyId": "b"})
    moved = api.find("0@x.example", fields="company")

    assert [row["company"] for row in both] == ["Acme & Sons"] * 2
    assert (kept[0]["company"], kept[0]["externalCompanyId"]) == ("Acme & Sons", "a")
    assert moved[0]["company"] == "Bolt"


def test_company_fields_on_a_lead_change_all_leads_of_the_company() -> None:
    """Where an instance takes them at all."""
    with running(company_fields_on_lead=True) as api:
        api.sync_companies({"externalCompanyId": "a", "company": "Acme"})
        api.sync(*({"email": f"{i}@x.example", "externalCompanyId": "a"} for i in range(2)))

        api.sync({"email": "0@x.example", "company": "Changed"}, {"email": "alone@x.example", "company": "Own"})

        names = [row["company"] for row in api.sim.rows("leads")]
        assert names == ["Changed", "Changed", "Own"]
        assert [row["company"] for row in api.sim.rows("companies")] == ["Changed"]


def test_lead_of_an_unknown_company_is_taken_where_the_instance_does_not_mind() -> None:
    """What the vendor does is not documented: a switch."""
    with running(unknown_company_skips=False) as api:
        assert outcomes(api.sync({"email": "a@x.example", "externalCompanyId": "nobody"})) == ["created"]
        assert api.sim.rows("leads")[0]["externalCompanyId"] is None


def test_companies_are_deleted_unless_in_use(api: Api) -> None:
    """A company with leads stays; one that is not there is said so."""
    api.sync_companies({"externalCompanyId": "used"}, {"externalCompanyId": "free"})
    api.sync({"email": "a@x.example", "externalCompanyId": "used"})
    records = [{"externalCompanyId": name} for name in ("used", "free", "nobody")]

    results = api.post("companies/delete.json", {"deleteBy": "dedupeFields", "input": records})["result"]

    assert outcomes(results) == ["1022", "deleted", "1013"]
    assert [row["externalCompanyId"] for row in api.sim.rows("companies")] == ["used"]


@pytest.mark.parametrize("crm_code", ["1018", "603"])
def test_native_crm_sync_closes_the_company_interface(crm_code: str) -> None:
    """Reading, writing and describing alike; leads go on."""
    with running(crm_sync=True, crm_code=crm_code) as api:
        assert code(api.get("companies/describe.json")) == crm_code
        assert code(api.get("companies.json", filterType="externalCompanyId", filterValues="a")) == crm_code
        assert code(api.post("companies.json", {"input": [{"externalCompanyId": "a"}]})) == crm_code
        assert code(api.post("companies/delete.json", {"input": [{"externalCompanyId": "a"}]})) == crm_code
        assert outcomes(api.sync({"email": "a@x.example"})) == ["created"]


# -- describing -----------------------------------------------------------------------------------------------------------


def test_descriptions_agree_with_each_other_and_with_what_is_taken(api: Api) -> None:
    """Every updateable field of describe2 can be written."""
    old = {entry["rest"]["name"]: entry for entry in api.get("leads/describe.json")["result"]}
    (new,) = api.get("leads/describe2.json")["result"]
    (company,) = api.get("companies/describe.json")["result"]

    fields = {entry["name"]: entry for entry in new["fields"]}
    assert set(old) == set(fields)
    assert all(old[name]["rest"]["readOnly"] is not entry["updateable"] for name, entry in fields.items())
    assert ["email"] in new["searchableFields"]
    assert (company["idField"], company["dedupeFields"]) == ("id", ["externalCompanyId"])
    sent = {"integer": 1, "currency": 1.5, "boolean": True, "date": "2026-01-01", "datetime": "2026-01-01T00:00:00Z"}
    api.sim.company_fields_on_lead = True
    api.sync_companies({"externalCompanyId": "a"})
    values = {name: sent.get(entry["dataType"], "a") for name, entry in fields.items() if entry["updateable"]}
    assert outcomes(api.sync(values)) == ["created"]
    of_company = {entry["name"] for entry in company["fields"]}
    assert {"company", "billingStreet", "mktoCompanyNotes", "sicCode", "mainPhone"} <= of_company & set(fields)
