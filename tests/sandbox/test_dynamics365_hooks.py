"""Webhooks of the stand-in: how they are registered, what they carry, and how poorly they are delivered."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from sandbox.dynamics365 import APPLICATION_USER_ID, PERSON_ID
from sandbox.simulator import Entry, Simulator, serve_in_thread
from shared.clients.dynamics365 import DIALECT
from shared.clients.dynamics365 import Dynamics365 as Client
from shared.clients.system import Event, Webhook
from tests.clients.connections import connect
from tests.sandbox.dynamics365_caller import ACME, ADA, Caller, served

CONTRACTS = "http://schemas.microsoft.com/xrm/2011/Contracts"
NOW_MS = 1773307815000
KEY = "sandbox-webhook-key-0001"


class Receiver(Simulator):
    """Somebody who takes webhooks; faults make him fail."""

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        routes.add_post("/hook", self._take)

    async def _take(self, request: web.Request) -> web.Response:
        return web.Response(status=202)

    def took(self) -> list[dict[str, Any]]:
        """Return the bodies that arrived."""
        return [json.loads(entry.body) for entry in self.journal]


class Bench:
    """A served environment and a receiver of its webhooks."""

    def __init__(self, caller: Caller, receiver: Receiver, url: str) -> None:
        self.caller, self.sim, self.receiver, self.url = caller, caller.sim, receiver, url

    def hook(self, entity: str = "contact", *messages: str, **facts: Any) -> list[str]:
        messages = messages or ("Create", "Update", "Delete")
        return self.sim.register_hook(self.url, entity, messages, **{"value": KEY} | facts)

    def arrived(self) -> list[dict[str, Any]]:
        """Wait until nothing is under way and return the bodies that arrived."""
        self.sim.hooks.wait_idle()
        return self.receiver.took()

    def entry(self) -> Entry:
        """Wait for the one request that arrived."""
        self.sim.hooks.wait_idle()
        [entry] = self.receiver.journal
        return entry

    def jobs(self) -> list[dict[str, Any]]:
        return self.sim.rows("asyncoperation")


@pytest.fixture
def bench() -> Iterator[Bench]:
    receiver = Receiver()
    with serve_in_thread(receiver) as (port,), served() as caller:
        yield Bench(caller, receiver, f"http://127.0.0.1:{port}/hook")


def target(context: dict[str, Any]) -> dict[str, Any]:
    [entry] = context["InputParameters"]
    assert entry["key"] == "Target"
    return entry["value"]


def attributes(entity: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: entry["value"] for entry in entity["Attributes"]}


def images(pairs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {pair["key"]: attributes(pair["value"]) for pair in pairs}


# -- registration -----------------------------------------------------------------------------------------------------


def register(bench: Bench, **step: Any) -> Any:
    """Register as the vendor's tool does: message, table, endpoint, step."""
    api = bench.caller
    [message] = api.get("sdkmessages?$select=sdkmessageid&$filter=name eq 'Update'")["value"]
    query = f"primaryobjecttypecode eq 'contact' and _sdkmessageid_value eq {message['sdkmessageid']}"
    [narrowed] = api.get(f"sdkmessagefilters?$select=sdkmessagefilterid&$filter={query}")["value"]
    endpoint = {"name": "Concord", "url": bench.url, "contract": 8, "authtype": 4, "messageformat": 2, "authvalue": KEY}
    created = api.call("POST", "serviceendpoints", "return=representation", endpoint).json()
    values = {
        "name": "Update of contact", "stage": 40, "mode": 1, "rank": 1, "asyncautodelete": False,
        "sdkmessageid@odata.bind": f"/sdkmessages({message['sdkmessageid']})",
        "sdkmessagefilterid@odata.bind": f"/sdkmessagefilters({narrowed['sdkmessagefilterid']})",
        "eventhandler_serviceendpoint@odata.bind": f"/serviceendpoints({created['serviceendpointid']})",
    }  # fmt: skip
    return created, api.call("POST", "sdkmessageprocessingsteps", "return=representation", values | step)


def test_step_is_registered_through_the_web_api(bench):
    """Endpoint and step are rows like any other; a change through the API fires too, and a job tells of its success."""
    endpoint, step = register(bench)

    bench.caller.call("PATCH", f"contacts({ADA})?tag=concord", body={"jobtitle": "Clerk"}, If_Match="*")

    [context] = bench.arrived()
    assert bench.entry().query == f"code={KEY}"
    assert context["OwningExtension"]["Id"] == step.json()["sdkmessageprocessingstepid"]
    assert context["UserId"] == APPLICATION_USER_ID
    assert {"key": "tag", "value": "concord"} in context["SharedVariables"]
    assert endpoint["authvalue"] is None
    [job] = bench.jobs()
    assert (job["statecode"], job["statuscode"]) == (3, 30)


def test_secret_cannot_be_read(bench):
    """`authvalue` is write-only; a later change of another column keeps it."""
    endpoint, _ = register(bench)
    path = f"serviceendpoints({endpoint['serviceendpointid']})"

    bench.caller.call("PATCH", path, body={"name": "Renamed"})
    shown = bench.caller.get(path)
    bench.sim.update("contact", ADA, jobtitle="Clerk")

    assert shown["name"] == "Renamed"
    assert shown["authvalue"] is None
    assert bench.entry().query == f"code={KEY}"


def test_disabled_step_is_silent(bench):
    """A step can be switched off and on."""
    _, step = register(bench)
    path = f"sdkmessageprocessingsteps({step.json()['sdkmessageprocessingstepid']})"

    bench.caller.call("PATCH", path, body={"statecode": 1, "statuscode": 2})
    bench.sim.update("contact", ADA, jobtitle="Silent")
    bench.caller.call("PATCH", path, body={"statecode": 0, "statuscode": 1})
    bench.sim.update("contact", ADA, jobtitle="Heard")

    assert [attributes(target(context))["jobtitle"] for context in bench.arrived()] == ["Heard"]


def test_registration_that_is_not_understood_is_refused(bench):
    """Synchronous steps, other contracts, relative addresses and unreadable pairs: 400, and nothing is left of them."""
    endpoint = {"name": "Bad", "url": bench.url, "contract": 8, "authtype": 5, "authvalue": "k=v"}

    _, step = register(bench, mode=0)
    refusals = [
        bench.caller.call("POST", "serviceendpoints", body=endpoint | changes).status_code
        for changes in ({}, {"authvalue": None, "contract": 7}, {"authvalue": None, "url": "/hook"})
    ]

    assert step.status_code == 400
    assert refusals == [400, 400, 400]
    assert [row["name"] for row in bench.sim.rows("serviceendpoint")] == ["Concord"]
    assert bench.sim.rows("sdkmessageprocessingstep") == []


def test_hooks_are_registered_over_http(bench):
    """The control does in one call what a tool does in many; what it does not know it says."""
    session, address = bench.caller.session, f"{bench.caller.origin}/_sandbox/hooks"

    made = session.post(address, json={"url": bench.url, "entity": "account", "messages": ["Update"]}, timeout=10)
    bad = session.post(address, json={"url": bench.url, "entity": "account", "auth": "hmac"}, timeout=10)
    bench.sim.update("account", ACME, name="Acme Ltd")
    bench.sim.hooks.wait_idle()
    shown = session.get(address, timeout=10).json()
    gone = session.delete(address, timeout=10)

    assert (made.status_code, bad.status_code, gone.status_code) == (201, 400, 204)
    assert "hmac" not in bad.json()["error"]
    assert [(sent["entity"], sent["status"]) for sent in shown["sent"]] == [("account", 202)]
    assert bench.sim.rows("sdkmessageprocessingstep") == []


# -- what is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "query", "header"),
    [
        ({"auth": "key"}, f"code={KEY}", None),
        ({"auth": "header"}, "", ("x-functions-key", KEY)),
        ({"auth": "header", "name": "X-Own"}, "", ("x-own", KEY)),
        ({"auth": "query", "name": "k1"}, f"k1={KEY}", None),
    ],
    ids=["WebhookKey", "HttpHeader", "header of its own", "HttpQueryString"],
)
def test_secret_travels_in_one_of_three_ways(bench, facts, query, header):
    """As `code`, as a header or as a query pair; the facts of the change stand in headers of the vendor's names."""
    bench.sim.hooks.switches.organization = "contoso.crm4.dynamics.com"
    bench.hook(**facts)

    bench.sim.update("contact", ADA, jobtitle="Clerk")

    entry = bench.entry()
    assert entry.query == query
    assert header is None or entry.headers[header[0]] == header[1]
    assert entry.headers["x-ms-dynamics-organization"] == "contoso.crm4.dynamics.com"
    assert entry.headers["x-ms-dynamics-entity-name"] == "contact"
    assert entry.headers["x-ms-dynamics-request-name"] == "Update"
    assert entry.headers["x-ms-correlation-request-id"] == json.loads(entry.body)["CorrelationId"]
    assert "x-ms-dynamics-msg-size-exceeded" not in entry.headers
    assert "http:\\/\\/schemas" in entry.body
    assert KEY not in f"{bench.sim.hooks.sent}"


def test_update_carries_what_was_sent_and_what_follows(bench):
    """Columns of the caller, even when equal, the computed ones, who and when, the id; an emptied one is null."""
    bench.hook()

    bench.sim.update("contact", ADA, firstname="Ada", jobtitle=None, parentcustomerid_account=ACME)

    [context] = bench.arrived()
    entity = target(context)
    values = attributes(entity)
    assert entity["__type"] == f"Entity:{CONTRACTS}"
    assert set(values) == {
        "firstname", "jobtitle", "parentcustomerid", "fullname", "yomifullname", "modifiedon", "modifiedby",
        "modifiedonbehalfby", "contactid",
    }  # fmt: skip
    assert (values["firstname"], values["jobtitle"], values["fullname"]) == ("Ada", None, "Ada Quill")
    assert values["modifiedon"] == f"/Date({NOW_MS})/"
    assert values["modifiedby"]["Id"] == PERSON_ID
    assert values["parentcustomerid"]["__type"] == f"EntityReference:{CONTRACTS}"
    assert (values["parentcustomerid"]["LogicalName"], values["parentcustomerid"]["Id"]) == ("account", ACME)
    assert (context["PrimaryEntityName"], context["PrimaryEntityId"]) == ("contact", ADA)
    assert (context["Mode"], context["Stage"], context["Depth"]) == (1, 40, 1)
    assert context["OperationCreatedOn"] == f"/Date({NOW_MS}+0000)/"
    assert images(context["PostEntityImages"])["AsynchronousStepPrimaryName"]["fullname"] == "Ada Quill"
    parent = context["ParentContext"]
    assert (parent["Stage"], parent["ParentContext"]) == (30, None)
    assert set(attributes(target(parent))) == {"firstname", "jobtitle", "parentcustomerid", "contactid"}


def test_create_carries_defaults(bench):
    """The caller's columns and what the platform adds: owner, state, times; money and choices say their type."""
    bench.hook("account")

    account = bench.sim.insert("account", name="Newcomer", revenue=20000, numberofemployees=12)

    [context] = bench.arrived()
    values = attributes(target(context))
    assert (values["name"], values["numberofemployees"], values["accountid"]) == ("Newcomer", 12, account)
    assert values["revenue"] == {"__type": f"Money:{CONTRACTS}", "Value": 20000.0}
    assert values["statecode"] == {"__type": f"OptionSetValue:{CONTRACTS}", "Value": 0}
    assert values["ownerid"]["LogicalName"] == "systemuser"
    assert values["createdon"] == f"/Date({NOW_MS})/"
    assert "versionnumber" not in values
    assert context["OutputParameters"] == [{"key": "id", "value": account}]


def test_delete_carries_a_reference(bench):
    """No columns are left; only an image taken before tells what they held."""
    bench.hook("contact", "Delete", pre_image=["emailaddress1"])

    bench.sim.delete("contact", ADA)

    [context] = bench.arrived()
    assert target(context)["__type"] == f"EntityReference:{CONTRACTS}"
    assert target(context)["Id"] == ADA
    assert images(context["PreEntityImages"]) == {"PreImage": {"contactid": ADA, "emailaddress1": "ada@acme.example"}}
    assert context["PostEntityImages"] == []


def test_images_show_before_and_after(bench):
    """Registered images hold the columns asked for, filled ones only; the image itself has no type."""
    bench.hook("contact", "Update", pre_image=["jobtitle", "lastname"], post_image=["jobtitle", "lastname"])

    bench.sim.update("contact", ADA, jobtitle="Clerk")

    [context] = bench.arrived()
    assert images(context["PreEntityImages"])["PreImage"] == {"contactid": ADA, "lastname": "Quill"}
    assert images(context["PostEntityImages"])["PostImage"]["jobtitle"] == "Clerk"
    assert "__type" not in context["PreEntityImages"][0]["value"]


def test_filter_looks_at_changed_columns(bench):
    """With filtering attributes an update is told only if one of them was sent; other messages do not care."""
    bench.hook("contact", filtering=["emailaddress1", "jobtitle"])

    bench.sim.update("contact", ADA, telephone1="1")
    bench.sim.update("contact", ADA, jobtitle="Clerk")
    bench.sim.delete("contact", ADA)

    assert sorted(context["MessageName"] for context in bench.arrived()) == ["Delete", "Update"]


def test_large_body_is_stripped(bench):
    """Above 256 KB the larger members are gone, and a header says so; what names the record stays."""
    bench.sim.set_max_length("contact", "description", 1_000_000)
    bench.hook()

    bench.sim.update("contact", ADA, description="x" * 100_000)
    bench.sim.update("contact", ADA, description="x" * 300_000)

    small, large = sorted(bench.arrived(), key=len, reverse=True)
    assert set(small) - set(large) == {"ParentContext", "InputParameters", "PreEntityImages", "PostEntityImages"}
    assert large["PrimaryEntityId"] == ADA
    flags = {entry.headers.get("x-ms-dynamics-msg-size-exceeded") for entry in bench.receiver.journal}
    assert "true" in flags


def test_change_that_was_taken_back_is_not_told(bench):
    """Nothing is sent for what a failed transaction had written."""
    bench.hook()

    def write_then_fail() -> None:
        bench.sim.update("contact", ADA, jobtitle="Clerk")
        raise KeyError

    with pytest.raises(KeyError), bench.sim.store.transaction():
        write_then_fail()

    assert bench.arrived() == []


@pytest.mark.parametrize("auth", ["key", "header", "query"])
def test_our_client_reads_what_is_sent(bench, auth):
    """Create, update, delete and a stripped body, each let in and read as one event with an identity of its own."""
    bench.sim.hooks.switches.max_body_bytes = 4000
    bench.hook(auth=auth)
    client = Client(
        connect("http://localhost:1", DIALECT), organization_url="", webhook_keys=(KEY,), organization="localhost"
    )

    contact = bench.sim.insert("contact", lastname="New", description="y" * 2000)
    bench.sim.update("contact", contact, jobtitle="Clerk")
    bench.sim.delete("contact", contact)
    bench.sim.hooks.wait_idle()

    events: list[Event] = []
    for entry in bench.receiver.journal:
        query = dict(pair.split("=") for pair in entry.query.split("&") if pair)
        events += client.read_events(Webhook(entry.headers, query, entry.body.encode()))
    assert {(event.record, event.key, event.name) for event in events} == {
        ("contact", contact, name) for name in ("Create", "Update", "Delete")
    }
    assert len({event.event_id for event in events}) == 3
    assert any("x-ms-dynamics-msg-size-exceeded" in entry.headers for entry in bench.receiver.journal)


# -- delivery ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "attempts"),
    [
        (202, 1),
        (204, 1),
        (301, 1),
        (400, 1),
        (401, 1),
        (404, 1),
        (408, 1),
        (429, 1),
        (500, 1),
        (502, 2),
        (503, 2),
        (504, 2),
    ],
)
def test_one_more_attempt_and_only_after_a_gateway_error(bench, status, attempts):
    """Two attempts at the most, both with the same operation; a failure is kept as a system job that can be found."""
    [step] = bench.hook("contact", "Update")
    bench.receiver.add_fault("status", times=0, status=status, headers={"Location": "/elsewhere", "Retry-After": "1"})

    bench.sim.update("contact", ADA, jobtitle="Clerk")

    assert len({context["OperationId"] for context in bench.arrived()}) == 1
    assert [sent.attempt for sent in bench.sim.hooks.sent] == list(range(1, attempts + 1))
    query = f"asyncoperations?$filter=statuscode eq 31 and _owningextensionid_value eq {step}&$orderby=completedon desc"
    failed = bench.caller.get(query)["value"]
    assert len(failed) == (0 if status < 300 else 1)
    assert all(str(status) in job["message"] and job["statecode"] == 3 for job in failed)


def test_second_attempt_can_succeed(bench):
    """A receiver that was down for one attempt loses nothing."""
    bench.hook("contact", "Update")
    bench.receiver.add_fault("status", status=503)

    bench.sim.update("contact", ADA, jobtitle="Clerk")

    bench.sim.hooks.wait_idle()
    assert [sent.status for sent in bench.sim.hooks.sent] == [503, 202]
    assert bench.jobs() == []


@pytest.mark.parametrize("fault", ["hang", "refuse"])
def test_call_without_an_answer_is_final(bench, fault):
    """A time-out or a cut connection is never tried again."""
    bench.sim.hooks.switches.timeout_s = 0.05
    bench.hook("contact", "Update")
    bench.receiver.add_fault(fault, seconds=0.2)

    bench.sim.update("contact", ADA, jobtitle="Clerk")

    bench.sim.hooks.wait_idle()
    assert [(sent.status, bool(sent.note)) for sent in bench.sim.hooks.sent] == [(0, True)]
    assert [job["statuscode"] for job in bench.jobs()] == [31]


def edit_many(bench: Bench, count: int = 200) -> None:
    for number in range(count):
        bench.sim.update("contact", ADA, jobtitle=f"Job {number}")


def test_calls_are_lost_and_repeated_from_a_seed(bench):
    """About so many as asked, and the same ones for the same seed."""
    bench.hook("contact", "Update")
    switches = bench.sim.hooks.switches
    switches.drop_percent, switches.duplicate_percent, switches.hold = 10, 20, True
    rounds = []

    for _ in range(2):
        bench.sim.hooks.seed(7)
        edit_many(bench)
        rounds.append([(call.ids.operation, call.note) for call in bench.sim.hooks.held])
        bench.sim.hooks.held.clear()

    assert rounds[0] == rounds[1]
    assert 10 <= sum(sent.note == "dropped" for sent in bench.sim.hooks.sent) / 2 <= 30
    assert 25 <= sum(note == "duplicate" for _, note in rounds[0]) <= 55


def test_held_calls_are_released_in_another_order(bench):
    """Mixed up from the seed, one after the other, each once."""
    bench.hook("contact", "Update")
    bench.sim.hooks.switches.hold = True
    edit_many(bench, 20)

    before = bench.arrived()
    released = bench.sim.hooks.release(shuffle=True)
    jobs = [attributes(target(context))["jobtitle"] for context in bench.arrived()]

    assert before == []
    assert released == 20
    assert sorted(jobs) == sorted(f"Job {number}" for number in range(20))
    assert jobs != [f"Job {number}" for number in range(20)]


def test_switches_are_set_over_http(bench):
    """Every switch has its name; an unknown one is refused."""
    address = f"{bench.caller.origin}/_sandbox/hooks/switches"

    set_ = bench.caller.session.post(address, json={"drop_percent": 100, "seed": 3}, timeout=10)
    bad = bench.caller.session.post(address, json={"drop": 100}, timeout=10)
    bench.hook()
    bench.sim.update("contact", ADA, jobtitle="Clerk")

    assert (set_.status_code, set_.json()["drop_percent"], bad.status_code) == (200, 100, 400)
    assert bench.arrived() == []


def test_calls_may_overtake_each_other(bench):
    """With a delay every call still arrives once."""
    bench.hook("contact", "Update")
    bench.sim.hooks.switches.delay_s = 0.02

    edit_many(bench, 30)

    assert len({context["OperationId"] for context in bench.arrived()}) == 30
