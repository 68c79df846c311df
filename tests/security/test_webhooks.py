"""Hostile webhooks: forged, replayed, oversized, deep, and full of addresses that nobody may fetch."""

import json
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.state.messages import EventMessage
from shared.state.queues import parse
from tests.flows.test_webhooks_http import CONTACT, KEY, OPERATION, Receiver, body, changes, receiver
from tests.flows.world import NOW, RECIPE, World
from tests.security.payloads import HEADERS, MARKUP, PATHS
from web.webhooks import MAX_BODY_BYTES

__all__ = ["changes", "receiver"]

BOUNDED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CANARY = "canary.contact@customer.example"


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"query": {}}, id="none"),
        pytest.param({"query": {"code": ""}}, id="empty"),
        pytest.param({"query": {"code": f"{KEY} "}}, id="space"),
        pytest.param({"query": {"code": KEY.upper()}}, id="capitals"),
        pytest.param({"query": {"code": KEY[:-1]}}, id="short"),
        pytest.param({"query": {"code": f"{KEY},{KEY}"}}, id="both at once"),
        pytest.param({"query": {"Code": KEY}}, id="other name"),
        pytest.param({"query": {"code": "\ud800"}}, id="half a character"),
        pytest.param({"query": {"code": "x" * 100_000}}, id="giant"),
        pytest.param({"query": {"code": "ｔhe-first-webhook-key-0001"}}, id="look-alike"),
        pytest.param({"query": {}, "headers": {"Authorization": f"Bearer {KEY}"}}, id="other header"),
        pytest.param({"query": {}, "content": body(code=KEY)}, id="in the body"),
    ],
)
def test_forged_call_is_refused_before_its_body_is_read(receiver: Receiver, facts: dict[str, Any]) -> None:
    """Without the key in its place: 401, one sentence, nothing queued, whatever the body is."""
    for content in (body(), b"no json", b"[" * 100_000):
        status, answer = receiver.post(**{"content": content} | facts)

        assert (status, answer["error"]) == (401, "bad_key")
        assert KEY not in json.dumps(answer)
    assert receiver.messages() == []


@pytest.mark.parametrize(
    "origin",
    [
        "contoso.crm4.dynamics.com.evil.example",
        "xcontoso.crm4.dynamics.com",
        "",
        "contoso.crm4.dynamics.com, evil.example",
        *HEADERS,
        *MARKUP[:4],
    ],
)
def test_copy_of_the_environment_is_refused(receiver: Receiver, origin: str) -> None:
    """The right key from another environment, or from one that hides its name: 403, nothing queued, nothing repeated."""
    status, answer = receiver.post(organization=origin)

    assert (status, answer["error"]) == (403, "foreign_origin")
    assert "<" not in answer["message"]
    assert "\n" not in answer["message"]
    assert receiver.messages() == []


def test_oversized_body_is_refused_before_its_key_is_read(receiver: Receiver) -> None:
    """Above the limit nothing is parsed or compared; at the limit it is."""
    over = receiver.post(content=b" " * (MAX_BODY_BYTES + 1))
    forged = receiver.post(content=b" " * (MAX_BODY_BYTES + 1), query={})
    at_limit = receiver.post(content=body().ljust(MAX_BODY_BYTES))

    assert [over[0], forged[0], at_limit[0]] == [413, 413, 202]


DEEP = {
    "lists": b"[" * 500_000,
    "objects": b'{"PrimaryEntityName":' * 40_000,
    "inside": body().replace(b'"Update"', b"[" * 90_000 + b"]" * 90_000),
    "number": body().replace(b'"Update"', b"9" * 500_000),
    "not a number": body().replace(b'"Update"', b"NaN"),
    "names twice": b'{"MessageName":"Update","messagename":"Delete","PrimaryEntityName":"contact"}',
}


@pytest.mark.parametrize("content", DEEP.values(), ids=DEEP.keys())
def test_deep_body_is_400(receiver: Receiver, content: bytes) -> None:
    """A body that would break a reader is a bad body, and the worker lives."""
    status, answer = receiver.post(content=content)

    assert (status, answer["error"]) == (400, "bad_body")
    assert receiver.messages() == []


@BOUNDED
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.text(max_size=60), st.sampled_from([*PATHS, *HEADERS, CONTACT]), st.integers(), st.none())
            for name in ("PrimaryEntityName", "MessageName", "PrimaryEntityId", "OperationId", "RequestId", "CorrelationId")
        },
    )
)  # fmt: skip
def test_what_is_queued_is_an_id_and_a_word(receiver: Receiver, context: dict[str, Any]) -> None:
    """Whatever a body says: refused, ignored, or one message of ids and words; no text of a body becomes a key."""
    status, _ = receiver.post(content=json.dumps(context).encode())

    assert status in (202, 400)
    for message in receiver.messages():
        assert message.key == CONTACT
        assert message.name in ("Create", "Update")
        assert len(message.event_id) < 200
        assert message.event_id.isascii()


def test_nothing_that_a_body_names_is_fetched_or_kept(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses in a body are never called, and its values are not in the message: the record is read from its source."""
    context = {
        "OrganizationUri": "http://169.254.169.254/latest", "@odata.nextLink": "http://evil.example/x",
        "InputParameters": [{"key": "Target", "value": {"emailaddress1": CANARY, "websiteurl": "http://evil.example"}}],
        "PreEntityImages": [{"key": "x", "value": {"emailaddress1": CANARY}}],
    }  # fmt: skip
    asked: list[Any] = []
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host) or resolve(host, *rest, **more))  # fmt: skip

    status, _ = receiver.post(
        content=body(**context), headers={"Referer": "http://evil.example", "X-Forwarded-Host": "evil.example"}
    )
    stored = receiver.app.queues.peek("events", 32)

    assert status == 202
    assert set(asked) <= {"127.0.0.1", "localhost"}
    assert len(stored) == 1
    assert CANARY not in stored[0]
    assert "evil" not in stored[0]


def test_replayed_call_is_one_event(receiver: Receiver, world: World) -> None:
    """A call recorded and sent again is taken again, as nobody can tell; it has one result and writes nothing twice."""
    for _ in range(3):
        receiver.post()
    identities = {message.event_id for message in receiver.messages()}
    case = world.add_case()
    event = EventMessage(
        recipe=RECIPE,
        record="dynamics365.incident",
        key=case,
        name="Update",
        event_id=f"{OPERATION}:{case}:Update",
        received_at=NOW,
    )

    for _ in range(3):
        world.queues.send(parse(EventMessage, event.body()))
    world.pump.run(for_s=600)

    assert len(identities) == 1
    assert len(world.incidents(correlation_id=case)) == 1
    assert [call for call in world.writes() if "incident" in call] == ["POST /api/now/table/incident"]
