"""Tokens, limits, bad days, controls and pages of the Marketo stand-in."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import requests

from sandbox.marketo import API_USER, Marketo
from sandbox.simulator import FaultKind
from tests.sandbox.marketo_calls import NOW, Api, code, outcomes, running
from tests.sandbox.waiting import wait_until

NOBODY = {"filterType": "email", "filterValues": "nobody@x.example"}


@pytest.fixture
def api() -> Iterator[Api]:
    """A fresh instance."""
    with running() as api:
        yield api


# -- tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_same_token_comes_with_less_life_until_it_expires(api: Api, method: str) -> None:
    """Whoever asks with the same client id shares one token."""
    first = api.identity(method).json()
    api.sim.clock.advance(3596)
    second = api.identity(method).json()
    api.sim.clock.advance(4)
    third = api.identity(method).json()

    assert (first["token_type"], first["expires_in"], first["scope"]) == ("bearer", 3600, API_USER)
    assert (second["access_token"], second["expires_in"]) == (first["access_token"], 4)
    assert (third["access_token"] != first["access_token"], third["expires_in"]) == (True, 3600)


@pytest.mark.parametrize("changes", [{"client_secret": "wrong"}, {"client_id": "wrong"}, {"grant_type": "password"}])
def test_bad_credentials_are_http_401_without_an_envelope(api: Api, changes: dict[str, str]) -> None:
    """The identity endpoint is the only one that answers so."""
    answer = api.identity(**changes)

    assert answer.status_code == 401
    assert set(answer.json()) == {"error", "error_description"}


def test_parameters_of_identity_count_in_the_query_only(api: Api) -> None:
    """A form is not what is documented."""
    form = {"grant_type": "client_credentials", "client_id": "x", "client_secret": "y"}

    assert requests.post(f"{api.url}/identity/oauth/token", data=form, timeout=20).status_code == 401


def test_token_is_taken_from_the_header_only(api: Api) -> None:
    """Missing 600, unknown 601, expired 602, each inside HTTP 200."""
    address = f"{api.url}/rest/v1/leads.json"
    as_parameter = requests.get(address, params=NOBODY | {"access_token": api.token}, timeout=20).json()
    as_form = requests.post(
        address, params={"_method": "GET"}, data=NOBODY | {"access_token": api.token}, timeout=20
    ).json()
    unknown = api.call("GET", "leads.json", headers={"Authorization": "Bearer x"}).json()
    api.sim.clock.advance(3600)
    expired = api.get("leads.json", **NOBODY)

    assert [code(envelope) for envelope in (as_parameter, as_form, unknown, expired)] == ["600", "600", "601", "602"]


@pytest.mark.parametrize(("make", "expected"), [("expired", "602"), ("invalid", "601")])
def test_tokens_are_voided_on_demand(api: Api, make: str, expected: str) -> None:
    """The next token is another one."""
    assert api.control("POST", "tokens", json={"make": make}).status_code == 204
    assert code(api.get("leads.json", **NOBODY)) == expected
    assert api.identity().json()["access_token"] != api.token
    assert api.control("POST", "tokens", json={"make": "gold"}).status_code == 400


def test_expiry_strikes_at_one_call_too(api: Api) -> None:
    """The fault of all simulators."""
    api.sim.add_fault(FaultKind.EXPIRE_TOKEN, path="leads.json")

    assert code(api.get("leads.json", **NOBODY)) == "602"


def test_missing_right_is_603(api: Api) -> None:
    """Rights are given by kind of record."""
    api.sim.configure({"denied": ["companies"]})

    assert code(api.get("companies/describe.json")) == "603"
    assert api.get("leads.json", **NOBODY)["success"]


# -- limits ---------------------------------------------------------------------------------------------------------------


def test_window_slides() -> None:
    """100 calls in any 20 seconds, not in slots of 20 seconds; refused calls count."""
    with running(calls_per_window=4) as api:
        first = [api.get("leads.json", **NOBODY)["success"] for _ in range(2)]
        api.sim.clock.advance(15)
        then = [api.get("leads.json", **NOBODY)["success"] for _ in range(2)]
        refused = api.get("leads.json", **NOBODY)
        api.sim.clock.advance(5)
        after = [api.get("leads.json", **NOBODY)["success"] for _ in range(2)]

        assert (first, then, after) == ([True] * 2, [True] * 2, [True, False])
        assert code(refused) == "606"
        assert "'4' exceeded with in '20' secs" in refused["errors"][0]["message"]
        assert api.sim.usage.most_in_window == 5


def test_daily_quota_is_renewed_at_midnight_in_us_central() -> None:
    """607 for the rest of the vendor's day."""
    with running(daily_calls=2) as api:
        for _ in range(2):
            assert api.get("leads.json", **NOBODY)["success"]
        spent = api.get("leads.json", **NOBODY)
        midnight = datetime(2026, 3, 3, 6, tzinfo=UTC)
        api.sim.clock.advance((midnight - NOW).total_seconds() - 1)
        api.token = api.identity().json()["access_token"]
        before = api.get("leads.json", **NOBODY)
        api.sim.clock.advance(1)

        assert (code(spent), code(before)) == ("607", "607")
        assert api.get("leads.json", **NOBODY)["success"]


def test_more_calls_at_once_than_allowed_are_615() -> None:
    """The ones that came first go on."""
    with running(concurrent_calls=2, latency_s=1.0) as api:
        slow = [threading.Thread(target=api.get, args=("leads.json",), kwargs=NOBODY) for _ in range(2)]
        for call in slow:
            call.start()
        wait_until(lambda: api.sim.usage.in_flight == 2)

        assert code(api.get("leads.json", **NOBODY)) == "615"
        for call in slow:
            call.join()
        assert api.sim.usage.most_at_once == 3


def test_codes_marked_so_and_identity_are_not_counted(api: Api) -> None:
    """601, 602, 604, 605, 608 and 611 cost nothing; the others do."""
    for _ in range(3):
        api.identity()
    for number in ("604", "608", "611"):
        api.sim.script_error(number)
        assert code(api.get("leads.json", **NOBODY)) == number
    api.call("GET", "leads.json", headers={"Authorization": "Bearer x"})
    assert code(api.call("DELETE", "leads.json").json()) == "605"
    assert api.sim.usage.today() == 0
    for number in ("713", "614"):
        api.sim.script_error(number)
        api.get("leads.json", **NOBODY)
    api.get("leads.json", **NOBODY)

    assert api.sim.usage.today() == 3


def test_usage_reports_calls_and_errors_by_day(api: Api) -> None:
    """Today, and the last seven days."""
    api.get("leads.json", filterType="nope", filterValues="x")
    api.sim.clock.advance(24 * 3600)
    api.token = api.identity().json()["access_token"]
    api.get("leads.json", **NOBODY)

    today, week = api.get("stats/usage.json")["result"], api.get("stats/usage/last7days.json")["result"]
    errors = api.get("stats/errors/last7days.json")["result"]

    assert today == [{"date": "2026-03-03", "total": 2, "users": [{"userId": API_USER, "count": 2}]}]
    assert [(day["date"], day["total"]) for day in week[:2]] == [("2026-03-03", 3), ("2026-03-02", 1)]
    assert len(week) == 7
    assert errors[1]["errors"] == [{"errorCode": "1011", "count": 1}]
    assert api.get("stats/errors.json")["result"][0]["total"] == 0


# -- bad days -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["604", "608", "611", "614", "713", "502"])
def test_next_calls_are_answered_with_an_error_inside_200(api: Api, number: str) -> None:
    """As often as planned; what it hits has no effect."""
    body = {"code": number, "times": 2, "path": "leads.json", "method": "POST"}
    assert api.control("POST", "errors", json=body).status_code == 201

    envelopes = [api.post("leads.json", {"input": [{"email": f"{i}@x.example"}]}) for i in range(3)]

    assert [code(envelope) for envelope in envelopes[:2]] == [number, number]
    assert outcomes(envelopes[2]["result"]) == ["created"]
    assert [row["email"] for row in api.sim.rows("leads")] == ["2@x.example"]


def test_error_can_hide_that_the_call_took_effect(api: Api) -> None:
    """A timeout on the vendor's side, after the write."""
    api.sim.script_error("604", after=True)

    assert code(api.post("leads.json", {"input": [{"email": "a@x.example"}]})) == "604"
    assert len(api.sim.rows("leads")) == 1


def test_one_record_of_a_call_can_be_skipped(api: Api) -> None:
    """A partial success: the others stand in their places."""
    api.sim.script_error("1014", record=1)
    api.sim.script_error("719", record=0, path="companies")

    leads = api.sync({"email": "a@x.example"}, {"email": "b@x.example"}, {"email": "c@x.example"})
    companies = api.sync_companies({"externalCompanyId": "a"}, {"externalCompanyId": "b"})

    assert outcomes(leads) == ["created", "1014", "created"]
    assert [row["email"] for row in api.sim.rows("leads")] == ["a@x.example", "c@x.example"]
    assert outcomes(companies) == ["719", "created"]
    assert [item["seq"] for item in companies] == [0, 1]


def test_planned_errors_are_listed_checked_and_cleared(api: Api) -> None:
    """A plan that cannot be read is refused."""
    api.control("POST", "errors", json={"code": "604", "times": 9})
    listed = api.control("GET", "errors").json()
    refused = [api.control("POST", "errors", json=body).status_code for body in ({}, {"code": "x"}, {"code": "604", "nope": 1})]  # fmt: skip
    cleared = api.control("DELETE", "errors").status_code

    assert (listed[0]["code"], listed[0]["left"]) == ("604", 9)
    assert (refused, cleared) == ([400, 400, 400], 204)
    assert api.get("leads.json", **NOBODY)["success"]


def test_gateway_errors_are_web_pages(api: Api) -> None:
    """What never reached the application has no envelope."""
    api.sim.add_fault(FaultKind.STATUS, status=502)

    answer = api.call("GET", "leads.json")

    assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (502, "text/html")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [("GET", "nothing.json", "610"), ("PUT", "leads.json", "605"), ("GET", "/leads.json", "610"), ("POST", "leads/describe.json", "605")],
)  # fmt: skip
def test_unknown_addresses_and_methods(api: Api, method: str, path: str, expected: str) -> None:
    """Also inside HTTP 200; a double slash is no address any more."""
    assert code(api.call(method, path).json()) == expected


def test_long_answers_are_compressed_on_request(api: Api) -> None:
    """From 1,024 bytes on."""
    long = api.call("GET", "leads/describe2.json", headers={"Accept-Encoding": "gzip"})
    short = api.call("GET", "leads.json", params=NOBODY, headers={"Accept-Encoding": "gzip"})

    assert long.headers.get("Content-Encoding") == "gzip"
    assert "Content-Encoding" not in short.headers
    assert long.json()["success"]


# -- controls and pages ---------------------------------------------------------------------------------------------------


def test_switches_are_shown_set_and_checked(api: Api) -> None:
    """A wrong name or type sets nothing."""
    assert api.control("POST", "settings", json={"crm_sync": True}).json()["crm_sync"] is True
    assert api.control("POST", "settings", json={"crm_sync": False, "nope": 1}).status_code == 400
    assert api.control("POST", "settings", json={"daily_calls": "many"}).status_code == 400
    assert api.control("GET", "settings").json()["crm_sync"] is True
    with pytest.raises(ValueError, match="no switch"):
        Marketo(nope=1)


@pytest.mark.parametrize(("table", "values", "change"), [("leads", {"email": "a@x.example"}, {"title": "Buyer"}), ("companies", {"externalCompanyId": "a"}, {"company": "Acme"})])  # fmt: skip
def test_records_are_managed_by_controls(api: Api, table: str, values: dict[str, str], change: dict[str, str]) -> None:
    """Create, change, list and remove, past the API; journal and limits do not see it."""
    made = api.control("POST", f"records/{table}", json=values)
    number = made.json()["id"]
    api.sim.clock.advance(5)
    changed = api.control("PATCH", f"records/{table}/{number}", json=change)
    (row,) = api.control("GET", f"records/{table}", params=values).json()
    gone = api.control("DELETE", f"records/{table}/{number}")

    assert (made.status_code, changed.status_code, gone.status_code) == (201, 200, 200)
    assert values.items() | change.items() <= row.items()
    assert row["updatedAt"] == (NOW + timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert api.sim.rows(table) == []
    assert api.control("DELETE", f"records/{table}/{number}").status_code == 404
    assert api.control("POST", f"records/{table}", json={"nope": 1}).status_code == 400
    assert api.control("GET", "records/campaigns").status_code == 404
    assert api.sim.usage.today() == 0


def test_page_lists_leads_and_companies_escaped(api: Api) -> None:
    """A person sees what arrived, finds it and opens it; nothing of it runs."""
    api.sim.insert("companies", externalCompanyId="a", company="<script>alert(1)</script>")
    lead = api.sim.insert("leads", email="ada@x.example", firstName="A&da", externalCompanyId="a")
    api.sim.insert("leads", email="bo@x.example", firstName="Bo")

    whole = requests.get(f"{api.url}/", timeout=20).text
    found = requests.get(f"{api.url}/", params={"q": "ADA", "watch": "1"}, timeout=20).text
    detail = requests.get(f"{api.url}/leadDatabase/loadLeadDetail", params={"leadId": lead}, timeout=20)
    company = requests.get(f"{api.url}/companies/{api.sim.rows('companies')[0]['id']}", timeout=20)
    missing = requests.get(f"{api.url}/leadDatabase/loadLeadDetail", params={"leadId": "x"}, timeout=20)

    assert "<script>" not in whole + detail.text + company.text
    assert "A&amp;da" in whole
    assert 'name="viewport"' in whole
    assert "ada@x.example" in found
    assert "bo@x.example" not in found
    assert 'http-equiv="refresh"' in found
    assert "&lt;script&gt;" in detail.text
    assert (detail.status_code, company.status_code, missing.status_code) == (200, 200, 404)


def test_search_box_shows_what_was_asked_without_running_it(api: Api) -> None:
    """Quotes and brackets of a search stay text."""
    text = requests.get(f"{api.url}/", params={"q": '"><b>x', "watch": ""}, timeout=20).text

    assert '"><b>x' not in text
    assert "&quot;&gt;&lt;b&gt;x" in text
