"""The vendor's own Python client, unmodified, against the ServiceNow stand-in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pysnc import ServiceNowClient
from pysnc.exceptions import InsertException, RequestException, RoleException

from sandbox.certificates import make_certificates
from sandbox.servicenow import ADMIN_NAME, ADMIN_PASSWORD, ServiceNow
from sandbox.simulator import Clock, serve_in_thread
from tests.sandbox.servicenow_calls import NOW

COUNT = 25


@pytest.fixture(scope="module")
def sim() -> ServiceNow:
    """Twenty-five incidents of two callers."""
    sim = ServiceNow(Clock(NOW))
    callers = [
        sim.insert("sys_user", user_name=name, first_name=name, email=f"{name}@x.example") for name in ("ann", "bob")
    ]
    for number in range(COUNT):
        sim.insert(
            "incident", number=f"N{number:03d}", short_description=f"title {number}", caller_id=callers[number % 2]
        )
    return sim


@pytest.fixture(scope="module")
def client(sim: ServiceNow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceNowClient]:
    """The client, logged in as the administrator over TLS."""
    context, bundle = make_certificates(Path(tmp_path_factory.mktemp("tls")))
    with serve_in_thread(sim, tls=context) as (port,), pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(bundle))  # the client asks the environment first, then its own setting
        client = ServiceNowClient(f"https://localhost:{port}", (ADMIN_NAME, ADMIN_PASSWORD))
        yield client
        client.session.close()


def test_query_and_or_condition(client: ServiceNowClient) -> None:
    """Conditions added by code find what they name."""
    gr = client.GlideRecord("incident")
    condition = gr.add_query("number", "N001")
    condition.add_or_condition("number", "N002")
    gr.add_query("active", "true")
    gr.query()

    assert sorted(str(record.number) for record in gr) == ["N001", "N002"]
    assert len(gr) == 2


def test_paging_over_several_requests(client: ServiceNowClient) -> None:
    """Iterating reads page after page, each row once."""
    gr = client.GlideRecord("incident", batch_size=10)
    gr.add_query("number", "STARTSWITH", "N0")
    gr.query()

    numbers = [record.get_value("number") for record in gr]

    assert len(numbers) == len(set(numbers)) == COUNT


def test_get_and_dot_walk(client: ServiceNowClient, sim: ServiceNow) -> None:
    """A record is read by id, with fields of what it refers to; an absent one is not found."""
    gr = client.GlideRecord("incident")
    gr.fields = ["number", "caller_id", "caller_id.email"]

    assert gr.get(sim.rows("incident", number="N001")[0]["sys_id"])
    assert gr.get_value("caller_id.email") == "bob@x.example"
    assert gr.get_display_value("caller_id") == "bob"
    assert not client.GlideRecord("incident").get("0" * 32)


def test_insert_update_delete(client: ServiceNowClient, sim: ServiceNow) -> None:
    """A record is made, changed and removed."""
    gr = client.GlideRecord("incident")
    gr.initialize()
    gr.short_description = "by pysnc"
    sys_id = str(gr.insert())
    gr.urgency = "1"
    gr.update()

    assert sim.tables["incident"][sys_id]["urgency"] == "1"
    assert gr.get_value("priority") == "3"
    assert gr.delete()
    assert sys_id not in sim.tables["incident"]


def test_update_and_delete_many_by_batch(client: ServiceNowClient, sim: ServiceNow) -> None:
    """Many records are changed and removed through the Batch API."""
    for number in range(3):
        sim.insert("incident", number=f"M{number}", category="hardware")
    gr = client.GlideRecord("incident")
    gr.add_query("number", "STARTSWITH", "M")
    gr.query()
    for record in gr:
        record.category = "network"

    assert gr.update_multiple()
    assert {row["category"] for row in sim.rows("incident") if row["number"].startswith("M")} == {"network"}
    again = client.GlideRecord("incident")
    again.add_query("number", "STARTSWITH", "M")
    assert again.delete_multiple()
    assert not [row for row in sim.rows("incident") if row["number"].startswith("M")]


def test_long_query_goes_by_batch(client: ServiceNowClient) -> None:
    """A query beyond the URL's limit is sent as a batch and finds the same."""
    gr = client.GlideRecord("incident")
    condition = gr.add_query("bogus", "x")
    for number in range(2000):
        condition.add_or_condition(f"bogus{number}", "x")
    condition.add_or_condition("number", "N003")
    gr.query()

    assert [str(record.number) for record in gr] == ["N003"]


def test_join_and_related_list_queries(client: ServiceNowClient) -> None:
    """Joins select by another table's rows, related lists by their number."""
    joined = client.GlideRecord("incident")
    joined.add_join_query("sys_user", "caller_id", "sys_id").add_query("user_name", "ann")
    joined.query()
    related = client.GlideRecord("sys_user")
    related.add_rl_query("incident", "caller_id", ">=13")
    related.query()

    assert len(joined) == 13
    assert [str(record.user_name) for record in related] == ["ann"]


def test_null_queries_and_order(client: ServiceNowClient) -> None:
    """Empty and not empty are told apart, and orders hold."""
    gr = client.GlideRecord("incident")
    gr.add_null_query("assigned_to")
    gr.add_not_null_query("caller_id")
    gr.order_by_desc("number")
    gr.limit = 2
    gr.query()

    assert [str(record.number) for record in gr] == ["N024", "N023"]


def test_attachments(client: ServiceNowClient, sim: ServiceNow) -> None:
    """A file is attached, listed and read."""
    gr = client.GlideRecord("incident")
    gr.get(sim.rows("incident", number="N001")[0]["sys_id"])

    gr.add_attachment("a.txt", b"one\ntwo", content_type="text/plain")
    attachments = gr.get_attachments()

    assert attachments.next()
    assert (attachments.file_name, attachments.readlines()) == ("a.txt", ["one", "two"])


def test_errors_reach_the_client(client: ServiceNowClient) -> None:
    """A bad table, a refused insert and a data policy are exceptions of the client."""
    with pytest.raises(RequestException, match="Invalid table nope"):
        client.GlideRecord("nope").query()
    gr = client.GlideRecord("sys_user")
    gr.initialize()
    gr.user_name = "ann"
    with pytest.raises((RoleException, InsertException), match="Unique Key violation"):
        gr.insert()
