"""A public Python client of Marketo, unmodified, against the stand-in.

It matches what the documentation says of tokens (header only), errors and paging; its habit of naming `_method` in a form
instead of the address works against the vendor too. Only its host is set: it builds it from the Munchkin id.
"""

from collections.abc import Iterator

import pytest
from marketorestpython.client import MarketoClient

from sandbox.marketo import CLIENT_ID, CLIENT_SECRET, Marketo
from sandbox.simulator import Clock, serve_in_thread
from tests.sandbox.marketo_calls import NOW


@pytest.fixture
def sim() -> Marketo:
    """An empty instance."""
    return Marketo(Clock(NOW))


@pytest.fixture
def client(sim: Marketo) -> Iterator[MarketoClient]:
    """The client, with the instance's address in the place of the vendor's."""
    with serve_in_thread(sim) as (port,):
        client = MarketoClient("123-ABC-456", CLIENT_ID, CLIENT_SECRET, max_retry_time=2)
        client.host = f"http://127.0.0.1:{port}"
        yield client


def test_leads_are_created_updated_and_found(client: MarketoClient, sim: Marketo) -> None:
    """Results in the order of the input; a filter by form, a record by id."""
    sim.insert("leads", email="old@x.example")
    leads = [{"email": "new@x.example", "firstName": "Nia"}, {"email": "old@x.example", "nope": 1}, {"email": "old@x.example", "title": "Buyer"}]  # fmt: skip

    results = client.execute(method="create_update_leads", leads=leads, action="createOrUpdate", lookupField="email")
    found = client.execute(
        method="get_multiple_leads_by_filter_type",
        filterType="email",
        filterValues=["new@x.example", "old@x.example"],
        fields="email,title",
        batchSize=1,
    )
    by_id = client.execute(method="get_lead_by_id", id=results[0]["id"], fields=["firstName"])

    assert [item["status"] for item in results] == ["created", "skipped", "updated"]
    assert results[1]["reasons"][0]["code"] == "1006"
    assert sorted(row["email"] for row in found) == ["new@x.example", "old@x.example"]
    assert by_id[0]["firstName"] == "Nia"


def test_companies_are_described_synced_found_and_deleted(client: MarketoClient) -> None:
    """The company interface as a whole."""
    described = client.execute(method="describe_company")
    made = client.execute(
        method="create_update_companies", input=[{"externalCompanyId": "a", "company": "Acme"}], action="createOrUpdate"
    )
    found = client.execute(
        method="get_companies", filterType="externalCompanyId", filterValues=["a"], fields=["company"]
    )
    gone = client.execute(method="delete_companies", input=[{"externalCompanyId": "a"}], deleteBy="dedupeFields")

    assert described[0]["dedupeFields"] == ["externalCompanyId"]
    assert [item["status"] for item in (*made, *gone)] == ["created", "deleted"]
    assert found[0]["company"] == "Acme"


def test_descriptions_partitions_and_usage_are_read(client: MarketoClient) -> None:
    """What the client asks beside records."""
    names = {entry["rest"]["name"] for entry in client.execute(method="describe")}

    assert names == {entry["name"] for entry in client.execute(method="describe2")[0]["fields"]}
    assert client.execute(method="get_lead_partitions") == [{"id": 1, "name": "Default"}]
    assert client.execute(method="get_daily_usage")[0]["total"] == 4
    assert client.execute(method="get_daily_errors")[0]["total"] == 0


def test_refused_token_is_renewed_and_errors_are_raised(client: MarketoClient, sim: Marketo) -> None:
    """601 asks for a token again; another code is the caller's."""
    client.execute(method="describe")
    sim.invalidate_tokens()
    client.valid_until = None  # it believes in its own clock, and would not ask

    assert client.execute(method="describe2")
    with pytest.raises(Exception, match="1011"):
        client.execute(method="get_multiple_leads_by_filter_type", filterType="lastName", filterValues=["x"])
