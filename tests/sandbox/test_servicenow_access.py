"""Tokens, rights, limits and bad days of the ServiceNow stand-in."""

import asyncio
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from multidict import CIMultiDict, MultiDict
from yarl import URL

from sandbox.servicenow import PASSWORD, USER_NAME, ServiceNow
from sandbox.servicenow_access import READABLE, WRITABLE, ApiUser
from sandbox.servicenow_answers import Call
from sandbox.simulator import Clock, FaultKind
from tests.sandbox.servicenow_calls import NOW, Api, running
from tests.sandbox.waiting import wait_until

DENIED = {"error_description": "access_denied", "error": "server_error"}
LOGIN = {"grant_type": "password", "username": USER_NAME, "password": PASSWORD}
CANCELLED = "Transaction cancelled: maximum execution time exceeded"


@pytest.fixture
def api() -> Iterator[Api]:
    """A fresh instance."""
    with running() as api:
        yield api


def bearer(api: Api, token: str) -> int:
    headers = {"Accept": "application/json", "Authorization": f"Bearer {token}"}
    return requests.get(f"{api.url}/api/now/table/incident", headers=headers, timeout=20).status_code


def restrict(api: Api, **rights: Any) -> None:
    api.sim.add_user(ApiUser("poor", "pw", **rights))
    api.auth = ("poor", "pw")


# -- tokens ---------------------------------------------------------------------------------------------------------------


def test_password_grant_gives_the_same_token_until_it_expires(api: Api) -> None:
    """A second request returns the same token with less life left; after expiry there is a new one."""
    first = api.token(**LOGIN).json()
    api.sim.clock.advance(1000)
    second = api.token(**LOGIN).json()
    api.sim.clock.advance(801)
    third = api.token(**LOGIN).json()

    assert (first["token_type"], first["scope"], first["expires_in"]) == ("Bearer", "useraccount", 1800)
    assert (second["access_token"], second["expires_in"]) == (first["access_token"], 800)
    assert third["access_token"] != first["access_token"]
    assert (bearer(api, first["access_token"]), bearer(api, third["access_token"])) == (401, 200)


def test_refresh_grant_keeps_the_refresh_token(api: Api) -> None:
    """A refresh gives an access token and the same refresh token, or none, by the instance's choice."""
    first = api.token(**LOGIN).json()
    api.sim.expire_tokens()

    echoed = api.token(grant_type="refresh_token", refresh_token=first["refresh_token"]).json()
    api.sim.configure({"refresh_echoes_token": False})
    silent = api.token(grant_type="refresh_token", refresh_token=first["refresh_token"]).json()

    assert echoed["refresh_token"] == first["refresh_token"]
    assert echoed["access_token"] != first["access_token"]
    assert "refresh_token" not in silent


def test_client_credentials_need_the_property_and_an_application_user(api: Api) -> None:
    """The grant is off at first; switched on, it runs as the application user and gives no refresh token."""
    off = api.token(grant_type="client_credentials")
    api.sim.configure({"client_credentials_grant": True})
    granted = api.token(grant_type="client_credentials").json()
    api.sim.configure({"application_user": ""})
    nobody = api.token(grant_type="client_credentials")

    assert (off.status_code, nobody.status_code) == (401, 401)
    assert "refresh_token" not in granted
    assert bearer(api, granted["access_token"]) == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"password": "wrong"},
        {"username": "nobody"},
        {"client_secret": "wrong"},
        {"client_id": "wrong"},
        {"grant_type": "magic"},
        {"grant_type": "refresh_token", "refresh_token": "wrong"},
    ],
)
def test_everything_bad_is_access_denied(api: Api, fields: dict[str, str]) -> None:
    """Every refusal of the token endpoint looks the same."""
    response = api.token(**(LOGIN | fields))

    assert (response.status_code, response.json()) == (401, DENIED)


@pytest.mark.parametrize("field", ["active", "locked_out", "web_service_access_only"])
def test_a_user_who_may_not_log_in_gets_no_token(api: Api, field: str) -> None:
    """The password grant needs an active user who may open a session."""
    user = api.sim.rows("sys_user", user_name=USER_NAME)[0]
    api.sim.update("sys_user", user["sys_id"], **{field: "false" if field == "active" else "true"})

    assert api.token(**LOGIN).status_code == 401


def test_parameters_count_only_in_a_form_body(api: Api) -> None:
    """Neither JSON nor the query string is read; a disabled password grant refuses."""
    form = {"client_id": "concord-client", "client_secret": "concord-secret", **LOGIN}

    as_json = requests.post(f"{api.url}/oauth_token.do", json=form, timeout=20)
    as_query = requests.post(f"{api.url}/oauth_token.do", params=form, data={"x": "y"}, timeout=20)
    api.sim.configure({"password_grant": False})

    assert [as_json.status_code, as_query.status_code, api.token(**LOGIN).status_code] == [401, 401, 401]


@pytest.mark.parametrize("auth", [None, (USER_NAME, "wrong"), ("nobody", "x")])
def test_api_without_good_credentials_is_401(api: Api, auth: tuple[str, str] | None) -> None:
    """The API names the missing authentication in the body and a header."""
    api.auth = auth

    response = api.get("incident")

    assert response.status_code == 401
    assert response.json()["error"] == {
        "message": "User Not Authenticated",
        "detail": "Required to provide Auth information",
    }
    assert response.headers["WWW-Authenticate"]


# -- rights ---------------------------------------------------------------------------------------------------------------


def test_unreadable_table_and_fields(api: Api) -> None:
    """A table without read right is 403; unreadable fields are absent, also behind a reference."""
    caller = api.sim.insert("sys_user", user_name="u", email="u@x.example")
    api.sim.insert("incident", caller_id=caller, description="secret")
    restrict(
        api,
        read=READABLE - {"sys_user_role"},
        unreadable={"incident": frozenset({"description"}), "sys_user": frozenset({"email"})},
    )

    row = api.get("incident").json()["result"][0]
    walked = api.get("incident", sysparm_fields="number,description,caller_id.email,caller_id.user_name").json()[
        "result"
    ][0]

    assert "description" not in row
    assert sorted(walked) == ["caller_id.user_name", "number"]
    assert api.get("sys_user_role").status_code == 403
    assert api.get("sys_user_role").json()["error"]["message"] == "User Not Authorized"


def test_filter_on_an_unreadable_field_is_ignored_or_refused(api: Api) -> None:
    """Without query ACLs such a filter matches everything; with them it is 403."""
    api.sim.insert("incident", description="a")
    restrict(api, unreadable={"incident": frozenset({"description"})})

    ignored = api.found("incident", "description=zzz")
    api.sim.configure({"enforce_query_acl": True})
    refused = api.get("incident", sysparm_query="description=zzz")

    assert len(ignored) == 1
    assert (refused.status_code, refused.json()["error"]["message"]) == (403, "Insufficient rights to query records")


def test_unwritable_fields_are_dropped_with_200(api: Api) -> None:
    """A write to such a field looks like a success; the answer shows the old value."""
    sys_id = api.sim.insert("incident", short_description="a", urgency="3")
    restrict(api, unwritable={"incident": frozenset({"urgency"})})

    response = api.call("PATCH", f"incident/{sys_id}", json={"urgency": "1", "short_description": "b"})

    assert response.status_code == 200
    assert (response.json()["result"]["urgency"], response.json()["result"]["short_description"]) == ("3", "b")


def test_missing_rights_to_write(api: Api) -> None:
    """Insert, update and delete are refused by name of the missing right."""
    sys_id = api.sim.insert("incident")
    restrict(api, create=frozenset(), write=frozenset(), delete=frozenset())

    answers = [
        api.call("POST", "incident", json={}),
        api.call("PATCH", f"incident/{sys_id}", json={}),
        api.call("DELETE", f"incident/{sys_id}"),
    ]

    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert [answer.json()["error"]["detail"] for answer in answers] == [
        f"ACL Exception {verb} Failed due to security constraints" for verb in ("Insert", "Update", "Delete")
    ]


def test_pages_are_short_where_rights_hide_rows(api: Api) -> None:
    """Limit and count come before the rights: a page may even be empty while more rows follow."""
    for number in range(6):
        api.sim.insert("incident", number=f"N{number}", urgency="1" if number < 3 else "2")
    restrict(api, visible_rows={"incident": "urgency=2"})

    pages = [
        api.get("incident", sysparm_query="ORDERBYnumber", sysparm_limit=2, sysparm_offset=offset)
        for offset in (0, 2, 4)
    ]

    assert [len(page.json()["result"]) for page in pages] == [0, 1, 2]
    assert [page.headers["X-Total-Count"] for page in pages] == ["6", "6", "6"]
    hidden = api.sim.rows("incident", number="N0")[0]["sys_id"]
    assert api.get(f"incident/{hidden}").status_code == 404


def test_inactive_users_are_hidden_from_all_but_admins(api: Api) -> None:
    """A before-query rule hides them from list, count and single read; the user name still counts as taken."""
    sys_id = api.sim.insert("sys_user", user_name="gone", email="gone@x.example", active="false")
    shown = api.found("sys_user", "email=gone@x.example", "user_name")
    api.sim.configure({"hide_inactive_users": True})

    hidden = api.get("sys_user", sysparm_query="email=gone@x.example")
    again = api.call("POST", "sys_user", json={"user_name": "gone"})

    assert shown == ["gone"]
    assert (hidden.json()["result"], hidden.headers["X-Total-Count"]) == ([], "0")
    assert (api.get(f"sys_user/{sys_id}").status_code, again.status_code) == (404, 403)
    api.auth = ("admin", "admin-password")
    assert api.found("sys_user", "email=gone@x.example", "user_name") == ["gone"]


def test_closed_incidents_are_read_only_for_most(api: Api) -> None:
    """A closed incident refuses an ordinary integration user's change."""
    sys_id = api.sim.insert("incident", state="7", close_code="Duplicate", close_notes="x")

    response = api.call("PATCH", f"incident/{sys_id}", json={"short_description": "x"})

    assert response.status_code == 403


def test_invalid_query_may_return_no_rows(api: Api) -> None:
    """The property turns a dropped condition into an empty answer."""
    api.sim.insert("incident")
    everything = api.found("incident", "bogus=1")
    api.sim.configure({"invalid_query_returns_no_rows": True})

    assert (len(everything), api.found("incident", "bogus=1")) == (1, [])


def test_scripts_in_queries_leave_a_trace(api: Api) -> None:
    """Server-side code that a query's value made run is kept, so a test can demand that there was none."""
    api.found("incident", "caller_id=javascript:gs.getUserID()")
    api.get("incident", short_description="javascript:gs.getUserID()")

    assert api.sim.scripts == ["javascript:gs.getUserID()"]


def test_unordered_rows_come_in_another_order_each_time(api: Api) -> None:
    """Where the query leaves the order open, paging by offset is not safe; a unique order makes it so."""
    api.sim.configure({"shuffle_ties": True})
    for number in range(5):
        api.sim.insert("incident", number=f"N{number}")

    loose = {tuple(api.found("incident", "urgency=3")) for _ in range(4)}
    firm = {tuple(api.found("incident", "urgency=3^ORDERBYsys_id")) for _ in range(4)}

    assert (len(loose) > 1, len(firm)) == (True, 1)


# -- limits ---------------------------------------------------------------------------------------------------------------


def test_rate_limit_per_hour(api: Api) -> None:
    """Requests over the limit get 429 with all headers, until the hour is over."""
    api.sim.configure({"rate_limit_per_hour": 2})

    answers = [api.get("incident") for _ in range(3)]
    other = api.get("/api/now/stats/incident")
    api.sim.clock.advance(int(answers[2].headers["Retry-After"]))
    later = api.get("incident")

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["X-RateLimit-Limit"] for answer in answers] == ["2", "2", "2"]
    assert answers[2].json()["error"]["detail"] == "Rate limit of 2 requests per hour for Table API exceeded"
    assert (other.status_code, later.status_code) == (200, 200)


def post_many(sim: ServiceNow, count: int, session: str | None = None) -> list[Any]:
    """Let requests arrive at the same moment, on one loop, so that no machine's speed matters."""
    user, headers = sim.users[USER_NAME], CIMultiDict({"Accept": "*/*", "Content-Type": "application/json"})

    def call() -> Call:
        return Call("POST", URL("http://sim/api/now/table/incident"), MultiDict(), headers, b"{}", user)

    async def run() -> list[Any]:
        one = sim._in_thread if session is None else functools.partial(sim._in_session, session)
        return await asyncio.gather(*(one(call()) for _ in range(count)))

    return asyncio.run(run())


def test_pool_overflow_is_429_without_headers() -> None:
    """Threads and queue together bound what is in flight; what comes on top is refused at once."""
    sim = ServiceNow(Clock(NOW), pool_size=2, pool_queue=2, latency_s=0.01)

    answers = post_many(sim, 8)

    refused = [answer for answer in answers if answer.status == 429]
    assert [answer.status for answer in answers].count(201) == len(sim.tables["incident"]) == 4
    assert len(refused) == 4
    assert not any("X-RateLimit-Limit" in answer.headers or "Retry-After" in answer.headers for answer in refused)


def test_one_session_works_one_by_one_and_drops_the_rest() -> None:
    """Requests with one cookie wait for each other; beyond ten in the queue they get 202 and are not executed."""
    sim = ServiceNow(Clock(NOW), latency_s=0.01)

    answers = post_many(sim, 16, session="A")

    dropped = [answer for answer in answers if answer.status == 202]
    assert len(dropped) == 5
    assert all(answer.body is None for answer in dropped)
    assert len(sim.tables["incident"]) == 11


def test_session_that_waits_too_long_is_dropped() -> None:
    """A request behind a long transaction of its own session gets 202."""
    sim = ServiceNow(Clock(NOW), latency_s=0.3, session_wait_s=0.02)

    answers = post_many(sim, 2, session="A")

    assert sorted(answer.status for answer in answers) == [201, 202]


def test_session_cookie_is_offered_and_recognised(api: Api) -> None:
    """Who sends no cookie gets one; who sends it back is in that session."""
    cookie = api.get("incident").cookies["JSESSIONID"]

    again = api.call("GET", "incident", cookies={"JSESSIONID": cookie})

    assert (again.status_code, "JSESSIONID" in again.cookies) == (200, False)


@pytest.mark.parametrize("shape", ["500", "truncated", "both"])
def test_too_large_page_is_cancelled(api: Api, shape: str) -> None:
    """A transaction over 60 simulated seconds ends as 500, as half a body, or with result and error; a smaller page works."""
    for _ in range(8):
        api.sim.insert("incident")
    api.sim.configure({"row_cost_s": 10.0, "cancelled_as": shape})

    large, small = api.get("incident", sysparm_limit=8), api.get("incident", sysparm_limit=6)

    assert len(small.json()["result"]) == 6
    if shape == "500":
        assert (large.status_code, large.json()["error"]["message"]) == (500, CANCELLED)
    elif shape == "both":
        assert (large.status_code, large.json()["error"]["message"], len(large.json()["result"])) == (200, CANCELLED, 6)
    else:
        assert large.status_code == 200
        with pytest.raises(requests.exceptions.JSONDecodeError):
            large.json()


def test_rule_touches_the_row_after_our_write(api: Api) -> None:
    """The answer shows our write; the instance's own rule changes the row later and counts as an update."""
    api.sim.configure({"touch_after_write": {"category": "network"}})

    answer = api.call("POST", "incident", json={"category": "software"}).json()["result"]

    row = api.sim.tables["incident"][answer["sys_id"]]
    assert (answer["category"], answer["sys_mod_count"]) == ("software", "0")
    assert (row["category"], row["sys_mod_count"], row["sys_updated_by"]) == ("network", "1", "system")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503])
def test_faults_answer_in_the_vendors_clothes(api: Api, status: int) -> None:
    """Errors on demand have the instance's body; the gateway's are HTML."""
    api.sim.add_fault(FaultKind.STATUS, path="/table/incident", status=status)

    response = api.get("incident")

    assert response.status_code == status
    html = response.headers["Content-Type"].startswith("text/html")
    assert html if status in {429, 502, 503} else response.json()["status"] == "failure"


def test_expired_token_fault(api: Api) -> None:
    """Tokens void from one request on give 401, and a new one works."""
    token = api.token(**LOGIN).json()["access_token"]
    api.sim.add_fault(FaultKind.EXPIRE_TOKEN, path="/table/")

    assert bearer(api, token) == 401
    assert bearer(api, api.token(**LOGIN).json()["access_token"]) == 200


# -- controls and webhooks ------------------------------------------------------------------------------------------------


def test_controls_over_http(api: Api) -> None:
    """Settings, users and records can be changed from another process, without logging in."""
    api.auth = None
    user = {"user_name": "reader", "password": "pw", "read": ["incident"], "unreadable": {"incident": ["description"]}}

    settings = api.call("POST", "/_sandbox/settings", json={"own_number": True})
    wrong = api.call("POST", "/_sandbox/settings", json={"nonsense": 1})
    api.call("POST", "/_sandbox/users", json=user)
    made = api.call("POST", "/_sandbox/records/incident", json={"short_description": "by hand", "number": "X"}).json()
    edited = api.call("PATCH", f"/_sandbox/records/incident/{made['sys_id']}", json={"urgency": "1"}).json()
    old = api.call("POST", "/_sandbox/records/incident", json={"at": "2026-01-01T08:00:00Z", "by": "beth"}).json()
    undated = api.call("POST", "/_sandbox/records/incident", json={"at": "yesterday"})
    refused = api.call("PATCH", f"/_sandbox/records/incident/{made['sys_id']}", json={"state": "7"})
    listed = api.get("/_sandbox/records/incident", urgency="1").json()

    assert (old["sys_created_on"], old["sys_created_by"], undated.status_code) == ("2026-01-01 08:00:00", "beth", 400)
    assert (settings.json()["own_number"], wrong.status_code) == (True, 400)
    assert (made["number"], edited["priority"], edited["sys_updated_by"]) == ("INC0010001", "3", "agent")
    assert (refused.status_code, [row["sys_id"] for row in listed]) == (403, [made["sys_id"]])
    api.auth = ("reader", "pw")
    assert "description" not in api.get(f"incident/{made['sys_id']}").json()["result"]
    assert api.get("sys_user").status_code == 403


def test_webhook_posts_the_capture(api: Api) -> None:
    """A change that meets the hook's condition is posted with all included fields; journal fields only when written."""
    group = api.sim.insert("sys_user_group", name="Hardware")
    with running() as receiver:
        hook = {
            "table": "incident",
            "url": f"{receiver.url}/api/capture",
            "condition": "assignment_group.name=Hardware",
            "fields": ["number", "assignment_group", "comments"],
            "extra": {"process_event": "Request Hardware"},
            "secret": "s",
        }
        api.call("POST", "/_sandbox/hooks", json=hook)
        api.sim.insert("incident", number="OTHER")
        sys_id = api.sim.insert("incident", number="HW", assignment_group=group, comments="please")
        entries = wait_until(lambda: receiver.sim.requests("POST", "/api/capture"))

    assert len(entries) == 1
    assert len(entries[0].headers["x-signature"]) == 64
    assert entries[0].body == (
        '{"capture_metadata":{"changed_by":"admin","timestamp":"2026-03-02 12:00:00"},"changed_fields":['
        f'{{"key":"assignment_group","value":"{group}","display_value":"Hardware"}},'
        '{"key":"number","value":"HW","display_value":""},'
        f'{{"key":"sys_id","value":"{sys_id}","display_value":""}},'
        '{"key":"comments","value":"please","display_value":""}],"process_event":"Request Hardware"}'
    )


def test_default_rights_are_those_of_an_integration(api: Api) -> None:
    """The default user reads and writes what syncs need and deletes no incident."""
    assert "incident" in WRITABLE
    assert "sys_properties" not in READABLE
    assert api.call("DELETE", f"incident/{api.sim.insert('incident')}").status_code == 403
