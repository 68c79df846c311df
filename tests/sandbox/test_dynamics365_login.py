"""The simulated login authority, seen by the real msal and by bare requests."""

import uuid

import msal
import pytest
import requests

from sandbox.certificates import make_certificates
from sandbox.dynamics365 import DEFAULT_CLIENT, DEFAULT_SECRET, DEFAULT_TENANT, Dynamics365, EntraLogin
from sandbox.simulator import Clock, serve_in_thread
from tests.sandbox.dynamics365_caller import NOW, served


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Serve the login host over TLS beside an environment over http."""
    context, bundle = make_certificates(tmp_path_factory.mktemp("tls"))
    sim = Dynamics365(Clock(NOW))
    patch = pytest.MonkeyPatch()
    patch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with serve_in_thread(EntraLogin(sim.tokens), tls=context) as (login_port,), serve_in_thread(sim) as (port,):
        yield sim, f"https://localhost:{login_port}/{DEFAULT_TENANT}", f"http://localhost:{port}"
    patch.undo()


def sign_in(authority: str, secret: str, environment: str) -> dict:
    """Ask the real msal for a token."""
    with requests.Session() as session:
        app = msal.ConfidentialClientApplication(
            DEFAULT_CLIENT, secret, authority=authority, instance_discovery=False, http_client=session
        )
        return app.acquire_token_for_client([f"{environment}/.default"])


def ask(authority: str, **changes: str) -> requests.Response:
    form = {"grant_type": "client_credentials", "client_id": DEFAULT_CLIENT, "client_secret": DEFAULT_SECRET, **changes}
    return requests.post(f"{authority}/oauth2/v2.0/token", data=form, timeout=10)


def test_msal_gets_a_token_that_works_until_it_expires(world):
    """The unmodified msal finds the endpoints over TLS; the token opens the Web API for its lifetime only."""
    sim, authority, environment = world
    app = msal.ConfidentialClientApplication(
        DEFAULT_CLIENT, DEFAULT_SECRET, authority=authority, instance_discovery=False
    )

    answer = app.acquire_token_for_client([f"{environment}/.default"])
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    before = requests.get(f"{environment}/api/data/v9.2/WhoAmI", headers=headers, timeout=10)
    sim.clock.advance(answer["expires_in"] + 1)
    after = requests.get(f"{environment}/api/data/v9.2/WhoAmI", headers=headers, timeout=10)

    assert (before.status_code, after.status_code) == (200, 401)
    assert after.content == b""
    assert after.headers["WWW-Authenticate"].startswith("Bearer authorization_uri=")


def test_msal_reports_the_error_of_a_bad_secret(world):
    """A refused client is told by error and code, not by an exception."""
    _, authority, environment = world

    answer = sign_in(authority, "wrong", environment)

    assert answer["error"] == "invalid_client"
    assert answer["error_codes"] == [7000215]


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        pytest.param({"client_secret": "wrong"}, 401, "invalid_client", id="secret"),
        pytest.param({"client_id": "bbbb"}, 400, "unauthorized_client", id="app"),
        pytest.param({"scope": "https://contoso.example"}, 400, "invalid_scope", id="no .default"),
        pytest.param({"scope": "https://contoso.example//.default"}, 400, "invalid_scope", id="trailing slash"),
        pytest.param(
            {"scope": "https://contoso.example/api/data/v9.2/.default"}, 400, "invalid_scope", id="not the root"
        ),
        pytest.param({"grant_type": "password"}, 400, "unsupported_grant_type", id="grant"),
    ],
)
def test_token_request_is_refused(world, changes, status, error):
    """Each mistake in the request has its own error and status."""
    response = ask(world[1], **{"scope": "https://contoso.example/.default", **changes})

    assert (response.status_code, response.json()["error"]) == (status, error)
    assert response.json()["error_description"].startswith(f"AADSTS{response.json()['error_codes'][0]}: ")


def test_token_for_another_environment_is_refused(world):
    """The audience must be the environment that is called."""
    sim, _, environment = world
    token = sim.tokens.issue("https://other.crm4.dynamics.com")

    response = requests.get(
        f"{environment}/api/data/v9.2/WhoAmI", headers={"Authorization": f"Bearer {token}"}, timeout=10
    )

    assert response.status_code == 401


def test_token_alone_is_not_enough():
    """An app registration without application user, or one off the allow list, is refused with 403."""
    with served() as caller:
        stranger, blocked = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
        caller.sim.tokens.secrets[stranger] = "s"
        caller.sim.add_application_user(blocked, "s", allowed=False)
        codes = []
        for client in (stranger, blocked):
            caller.session.headers["Authorization"] = f"Bearer {caller.sim.tokens.issue(caller.origin, client)}"
            codes.append(caller.refusal("GET", "WhoAmI")[:2])

    assert codes == [(403, "0x80072560"), (403, "0x80095ffc")]


def test_fault_expires_tokens():
    """The shared fault voids what was given out, so a client has to log in again."""
    with served() as caller:
        caller.sim.add_fault("expire_token", path="WhoAmI")

        response = caller.call("GET", "WhoAmI")

    assert response.status_code == 401
