"""Rights and service protection limits of the simulated environment."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox.dynamics365 import DEFAULT_CLIENT
from tests.sandbox.dynamics365_caller import ADA, NOW, add_case, served


@pytest.mark.parametrize(
    ("method", "path", "body", "missing"),
    [
        pytest.param("GET", "contacts?$top=1", None, "prvReadContact", id="read"),
        pytest.param(
            "GET", "incidents?$expand=customerid_contact($select=fullname)", None, "prvReadContact", id="expand"
        ),
        pytest.param("POST", "incidents", {"title": "x"}, "prvCreateIncident", id="create"),
        pytest.param("PATCH", "incidents({case})", {"title": "x"}, "prvWriteIncident", id="write"),
        pytest.param("DELETE", "incidents({case})", None, "prvDeleteIncident", id="delete"),
        pytest.param(
            "PATCH", "incidents(e0000000-0000-4000-8000-00000000000e)", {"title": "x"}, "prvCreateIncident", id="upsert"
        ),
    ],
)
def test_missing_right_is_named(method, path, body, missing):
    """Each table and action needs its right; the refusal names it."""
    with served() as caller:
        case = add_case(caller.sim)
        caller.sim.set_rights({"incident": "r"})

        status, code, message = caller.refusal(method, path.replace("{case}", case), body)
        allowed = caller.call("GET", "incidents?$top=1").status_code

    assert (status, code, allowed) == (403, "0x80040220", 200)
    assert missing in message


def test_requests_in_the_window_are_limited():
    """Over the limit comes 429 with the wait; going on makes the wait no shorter; after it the door is open."""
    with served(request_limit=3) as caller:
        statuses = [caller.call("GET", "WhoAmI").status_code for _ in range(3)]
        caller.sim.clock.advance(100)
        response = caller.call("GET", "WhoAmI")
        body, wait_s = response.json()["error"], int(response.headers["Retry-After"])
        caller.sim.clock.advance(wait_s)
        after = caller.call("GET", "WhoAmI").status_code

    assert statuses == [200, 200, 200]
    assert (response.status_code, body["code"], wait_s) == (429, "0x80072322", 200)
    assert body["message"] == "Number of requests exceeded the limit of 3 over time window of 300 seconds."
    assert after == 200


def test_execution_time_in_the_window_is_limited():
    """Long requests use up the time of the window."""
    with served(execution_limit_ms=1000, execution_ms_per_request=600) as caller:
        statuses = [caller.call("GET", "WhoAmI").status_code for _ in range(2)]
        response = caller.call("GET", "WhoAmI")

    assert statuses == [200, 200]
    assert (response.status_code, response.json()["error"]["code"]) == (429, "0x80072321")
    assert response.headers["Retry-After"] == "300"


def test_concurrent_requests_are_limited():
    """Requests beyond the limit at the same time are refused at once."""
    with served(concurrency_limit=2, latency_s=0.3) as caller, ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda _: caller.call("GET", "WhoAmI"), range(6)))

    codes = [response.json()["error"]["code"] for response in responses if response.status_code == 429]
    assert codes == ["0x80072326"] * 4


def test_users_have_their_own_window():
    """What one application user has used up is not missing for another."""
    with served(request_limit=1) as caller:
        other = "bbbbbbbb-0000-0000-0000-000000000002"
        caller.sim.add_application_user(other, "s")
        caller.call("GET", "WhoAmI")
        refused = caller.call("GET", "WhoAmI").status_code
        caller.session.headers["Authorization"] = f"Bearer {caller.sim.tokens.issue(caller.origin, other)}"
        allowed = caller.call("GET", "WhoAmI").status_code

    assert (refused, allowed) == (429, 200)


def test_long_urls_are_refused():
    """A query beyond the limit has to go into a batch."""
    with served() as caller:
        query = "incidents?$select=title&$filter=" + " or ".join(f"title eq '{number:040d}'" for number in range(700))

        status, _, _ = caller.refusal("GET", query)

    assert status == 414


def test_settings_change_while_it_runs():
    """Switches, rights and the tokens' lifetime can be set over HTTP; unknown names are refused."""
    with served() as caller:
        url = f"{caller.origin}/_sandbox/settings"

        changed = caller.call(
            "POST", url, body={"request_limit": 5, "token_lifetime_s": 60, "rights": {DEFAULT_CLIENT: {"contact": "r"}}}
        )
        refused = caller.call("POST", url, body={"request_limits": 5})
        statuses = [caller.call("GET", path).status_code for path in (f"contacts({ADA})", "incidents")]

    assert changed.json()["request_limit"] == caller.sim.settings.request_limit == 5
    assert caller.sim.tokens.lifetime_s == 60
    assert (refused.status_code, refused.json()) == (400, {"error": "unknown: request_limits"})
    assert statuses == [200, 403]
    assert caller.sim.clock.now() == NOW
