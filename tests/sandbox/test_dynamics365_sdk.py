"""Microsoft's own Python client for Dataverse, unmodified, against the simulator."""

import pytest
from azure.core.credentials import AccessToken
from PowerPlatform.Dataverse.client import DataverseClient
from PowerPlatform.Dataverse.core.errors import HttpError

from sandbox.certificates import make_certificates
from sandbox.dynamics365 import Dynamics365
from sandbox.simulator import Clock, serve_in_thread
from tests.sandbox.dynamics365_caller import ADA, NOW, TEAM, add_case


class Credential:
    """What the client takes tokens from."""

    def __init__(self, sim: Dynamics365) -> None:
        self.sim = sim

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        return AccessToken(self.sim.tokens.issue(scopes[0].removesuffix("/.default")), 0)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    context, bundle = make_certificates(tmp_path_factory.mktemp("tls"))
    sim = Dynamics365(Clock(NOW), alternate_keys={"contact": (("emailaddress1",),)})
    sim.insert("team", teamid=TEAM, name="Billing")
    sim.insert("contact", contactid=ADA, firstname="Ada", lastname="Quill", emailaddress1="ada@acme.example")
    for number in range(23):
        add_case(sim, f"Case {number:02d}", ownerid=("team", TEAM), prioritycode=1 + number % 3)
    patch = pytest.MonkeyPatch()
    patch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with (
        serve_in_thread(sim, tls=context) as (port,),
        DataverseClient(f"https://localhost:{port}", Credential(sim)) as client,
    ):
        yield sim, client
    patch.undo()


def test_listing_pages_through_everything(served):
    """The client follows the links and sends its preferences again; labels come on every page."""
    sim, client = served
    sim.journal.clear()

    rows = list(
        client.records.list(
            "incident",
            select=["title", "prioritycode", "_ownerid_value"],
            filter="prioritycode eq 1 or contains(title,'Case 1')",
            orderby=["title desc"],
            expand=["customerid_contact($select=fullname)", "owningteam($select=name)"],
            page_size=5,
            include_annotations="OData.Community.Display.V1.FormattedValue",
        )
    )

    assert [row["title"] for row in rows] == sorted({row["title"] for row in rows}, reverse=True)
    assert len(rows) == 15
    assert {row["owningteam"]["name"] for row in rows} == {"Billing"}
    assert all(row["_ownerid_value@OData.Community.Display.V1.FormattedValue"] == "Billing" for row in rows)
    assert len(sim.requests("GET", "/incidents")) == 3


def test_one_record_lives_and_dies(served):
    """Create with labels in place of numbers, read, change and delete one row."""
    sim, client = served
    data = {"title": "By the client", "prioritycode": "High", "customerid_contact@odata.bind": f"/contacts({ADA})"}

    case = client.records.create("incident", data)
    created = client.records.retrieve("incident", case, select=["title", "prioritycode"])
    client.records.update("incident", case, {"title": "Changed"})
    changed = client.records.retrieve("incident", case, select=["title"])
    client.records.delete("incident", case)

    assert (created["title"], created["prioritycode"]) == ("By the client", 1)
    assert changed["title"] == "Changed"
    assert client.records.retrieve("incident", case) is None
    assert case not in {row["incidentid"] for row in sim.rows("incident")}


def test_several_records_at_once(served):
    """The client's collection actions and its upsert by alternate key work."""
    _, client = served

    ids = client.records.create("contact", [{"lastname": "One"}, {"lastname": "Two"}])
    client.records.update("contact", ids, {"jobtitle": "Pair"})
    client.records.upsert(
        "contact", [{"alternate_key": {"emailaddress1": "up@acme.example"}, "record": {"lastname": "Upserted"}}]
    )
    pair = client.records.list("contact", select=["lastname"], filter="jobtitle eq 'Pair'", orderby=["lastname"])
    upserted = client.records.list("contact", select=["lastname"], filter="emailaddress1 eq 'up@acme.example'")

    assert [row["lastname"] for row in pair] == ["One", "Two"]
    assert [row["lastname"] for row in upserted] == ["Upserted"]


def test_batch_and_change_set(served):
    """The client's multipart bodies are understood, its references too."""
    _, client = served
    batch = client.batch.new()
    with batch.changeset() as changes:
        contact = changes.records.create("contact", {"lastname": "Batched"})
        changes.records.create("incident", {"title": "In a batch", "customerid_contact@odata.bind": contact})
    batch.records.list(
        "incident", filter="title eq 'In a batch'", select=["title"], expand=["customerid_contact($select=lastname)"]
    )

    result = batch.execute()

    assert [response.status_code for response in result.responses] == [204, 204, 200]
    assert result.responses[-1].data["value"][0]["customerid_contact"]["lastname"] == "Batched"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        pytest.param({"select": ["nosuch"]}, 400, "0x80060888", id="column"),
        pytest.param({"filter": "title eq 'O'Brien'"}, 400, "0x80060888", id="quote"),
        pytest.param({"expand": ["customerid($select=fullname)"]}, 400, "0x80060888", id="expand"),
    ],
)
def test_errors_arrive_with_their_facts(served, query, status, code):
    """A refusal becomes the client's own error with status, code and request id."""
    _, client = served

    with pytest.raises(HttpError) as caught:
        list(client.records.list("incident", **query))

    assert caught.value.status_code == status
    assert caught.value.details["service_error_code"] == code
    assert caught.value.details["service_request_id"]


def test_limit_is_transient_with_its_wait(served):
    """The client reads 429 as transient and hands on the wait."""
    sim, client = served
    fault = sim.add_fault("status", path="/incidents", status=429, headers={"Retry-After": "23"})

    with pytest.raises(HttpError) as caught:
        list(client.records.list("incident", select=["title"]))
    sim.faults.remove(fault)

    assert caught.value.is_transient
    assert caught.value.details["retry_after"] == 23
    assert caught.value.details["service_error_code"] == "0x80072322"
