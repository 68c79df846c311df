"""Dataverse's webhooks as the client reads them: who is let in, and what is made of any body at all."""

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.clients.dynamics365 import DIALECT, Dynamics365
from shared.clients.system import Event, Webhook
from shared.errors import AccessError, MappingError, SyncError
from tests.clients.connections import connect

KEY, NEXT_KEY = "first-key-0123456789", "second-key-9876543210"
ORGANIZATION = "contoso.crm4.dynamics.com"
CONTACT = "c0000000-0000-4000-8000-0000000000c1"
OPERATION = "77777777-0000-4000-8000-000000000001"
REQUEST = "88888888-0000-4000-8000-000000000001"
UPDATE = """{"BusinessUnitId":"44444444-0000-4000-8000-0000000000b1","CorrelationId":"55555555-0000-4000-8000-000000000001","Depth":1,
 "InitiatingUserId":"66666666-0000-4000-8000-000000000001","InputParameters":[{"key":"Target","value":{"__type":"Entity:http:\\/\\/schemas.microsoft.com\\/xrm\\/2011\\/Contracts",
 "Attributes":[{"key":"jobtitle","value":"Clerk"},{"key":"contactid","value":"c0000000-0000-4000-8000-0000000000c1"},
 {"key":"modifiedon","value":"\\/Date(1773307815000)\\/"},
 {"key":"statecode","value":{"__type":"OptionSetValue:http:\\/\\/schemas.microsoft.com\\/xrm\\/2011\\/Contracts","Value":0}}],
 "EntityState":null,"Id":"c0000000-0000-4000-8000-0000000000c1","LogicalName":"contact"}}],"MessageName":"Update","Mode":1,"OperationId":"77777777-0000-4000-8000-000000000001",
 "OutputParameters":[],"ParentContext":null,"PrimaryEntityId":"c0000000-0000-4000-8000-0000000000c1","PrimaryEntityName":"contact","RequestId":"88888888-0000-4000-8000-000000000001",
 "SharedVariables":[{"key":"IsAutoTransact","value":true}],"Stage":40}"""  # fmt: skip


def client(*keys: str, **facts: Any) -> Dynamics365:
    facts = {"organization": ORGANIZATION, "webhook_keys": keys} | facts
    return Dynamics365(connect("http://localhost:1", DIALECT), organization_url="http://localhost:1", **facts)


def webhook(body: str | bytes = UPDATE, query: dict | None = None, **headers: str) -> Webhook:
    named = {"x-ms-dynamics-organization": ORGANIZATION} | {k.replace("_", "-"): v for k, v in headers.items()}
    return Webhook(named, {"code": KEY} if query is None else query, body if isinstance(body, bytes) else body.encode())


def changed(**members: Any) -> str:
    """Return the update's body with other members; `...` takes one away."""
    context = json.loads(UPDATE) | members
    return json.dumps({name: value for name, value in context.items() if value is not ...})


# -- who is let in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(webhook(query={"code": KEY}), id="WebhookKey"),
        pytest.param(webhook(query={}, x_functions_key=KEY), id="HttpHeader"),
        pytest.param(webhook(query={"key": KEY, "k2": "v2"}), id="HttpQueryString"),
        pytest.param(webhook(query={"code": "stale"}, x_functions_key=KEY), id="a wrong one beside the right one"),
        pytest.param(webhook(query={"code": NEXT_KEY}), id="the next key while they are rotated"),
        pytest.param(webhook(x_ms_dynamics_organization=ORGANIZATION.upper()), id="the origin in capitals"),
    ],
)
def test_webhook_with_a_valid_key_is_read(request_):
    """Any of Dataverse's three ways is taken, with any of the keys that are valid."""
    events = client(KEY, NEXT_KEY).read_events(request_)

    assert events == [Event("contact", CONTACT, "Update", f"{OPERATION}:{CONTACT}:Update")]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(webhook(query={}), id="none"),
        pytest.param(webhook(query={"code": ""}), id="empty"),
        pytest.param(webhook(query={"code": KEY[:-1]}), id="cut"),
        pytest.param(webhook(query={"code": KEY + "x"}), id="longer"),
        pytest.param(webhook(query={"code": KEY.upper()}), id="other case"),
        pytest.param(webhook(query={"code": f"{KEY},{NEXT_KEY}"}), id="both at once"),
        pytest.param(webhook(query={"other": KEY}), id="another parameter"),
        pytest.param(webhook(query={}, authorization=KEY), id="another header"),
        pytest.param(webhook(query={"code": "schlüssel \ud800"}), id="no text at all"),
    ],
)
def test_webhook_without_a_valid_key_is_refused(request_):
    """Whatever stands in its place, nothing of the keys is told."""
    with pytest.raises(AccessError) as caught:
        client(KEY, NEXT_KEY).read_events(request_)

    assert caught.value.code == "bad_key"
    assert KEY[:-1] not in caught.value.message


def test_names_of_header_and_parameter_are_settings():
    """A header or a query pair of the customer's own choice carries the key."""
    own = client(KEY, webhook_header="X-Concord-Key", webhook_parameter="secret")

    by_header, by_parameter = webhook(query={}, x_concord_key=KEY), webhook(query={"secret": KEY})

    assert own.read_events(by_header) == own.read_events(by_parameter)
    with pytest.raises(AccessError):
        own.read_events(webhook(query={"key": KEY}, x_functions_key=KEY))


@pytest.mark.parametrize("keys", [(), ("",)], ids=["none", "an empty one"])
def test_without_a_key_every_webhook_is_refused(keys):
    """The sentence names the setting; an empty key opens nothing."""
    with pytest.raises(AccessError, match="CONNECTIONS__VENDOR__WEBHOOK_KEY") as caught:
        client(*keys).read_events(webhook(query={"code": ""}))

    assert caught.value.code == "bad_key"


@pytest.mark.parametrize(
    "origin", ["contoso-copy.crm4.dynamics.com", "", "contoso", "<script>"], ids=["copy", "missing", "part", "no name"]
)
def test_webhook_of_another_environment_is_refused(origin):
    """A copied environment keeps calling with the copied key: it is told from ours by its name."""
    with pytest.raises(AccessError) as caught:
        client(KEY).read_events(webhook(x_ms_dynamics_organization=origin))

    assert caught.value.code == "foreign_origin"
    assert "<script>" not in caught.value.message


def test_without_an_organization_nobody_is_ours():
    """A client that was not told its environment takes no webhook, also not one without an origin."""
    with pytest.raises(AccessError) as caught:
        client(KEY, organization="").read_events(webhook(x_ms_dynamics_organization=""))

    assert caught.value.code == "foreign_origin"


def test_key_is_checked_before_the_body():
    """A stranger learns nothing of how bodies are read."""
    with pytest.raises(AccessError):
        client(KEY).read_events(webhook(b"not json", query={}))


# -- what is read -----------------------------------------------------------------------------------------------------


def read(body: str | bytes, **headers: str) -> Event:
    [event] = client(KEY).read_events(webhook(body, **headers))
    return event


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(UPDATE.replace("\\/", "/"), id="slashes not escaped"),
        pytest.param("\ufeff" + UPDATE, id="byte order mark"),
        pytest.param(re.sub(r'"(\w+)":', lambda m: f'"{m[1].lower()}":', UPDATE), id="names in small letters"),
        pytest.param(re.sub(r'"(\w+)":', lambda m: f'"{m[1].capitalize()}":', UPDATE), id="Key and Value"),
        pytest.param(changed(PrimaryEntityId=CONTACT.upper()), id="id in capitals"),
        pytest.param(changed(PrimaryEntityId=f"{{{CONTACT}}}"), id="id in braces"),
        pytest.param(changed(InputParameters=..., ParentContext=..., PreEntityImages=...), id="stripped"),
        pytest.param(changed(InputParameters=None, OutputParameters=None, Depth=None), id="null members"),
        pytest.param(changed(InitiatingUserAgent="", Future={"a": [1, {}]}), id="members to come"),
        pytest.param(changed(InputParameters="text", SharedVariables=7, Stage=[{}]), id="members of other types"),
        pytest.param(changed(PrimaryEntityId=...), id="id in the target alone"),
        pytest.param(changed(PrimaryEntityId="00000000-0000-0000-0000-000000000000"), id="the id that means none"),
        pytest.param(
            changed(PrimaryEntityId=None, InputParameters=[], OutputParameters=[{"key": "id", "value": CONTACT}]),
            id="id of a create",
        ),
    ],
)
def test_body_is_read_in_all_its_forms(body):
    """Members come and go over the years; only kind, id and message are needed."""
    event = read(body)

    assert event == Event("contact", CONTACT, "Update", f"{OPERATION}:{CONTACT}:Update")


def test_deleted_record_is_a_reference():
    """A delete's target is a reference without columns."""
    target = {"__type": "EntityReference:x", "Id": CONTACT, "LogicalName": "contact", "Name": None}

    event = read(
        changed(MessageName="Delete", PrimaryEntityId=None, InputParameters=[{"key": "Target", "value": target}])
    )

    assert (event.name, event.key) == ("Delete", CONTACT)


def test_headers_stand_in_for_missing_names():
    """Record and message stand in the headers too."""
    headers = {"x_ms_dynamics_entity_name": "contact", "x_ms_dynamics_request_name": "Update"}

    event = read(changed(PrimaryEntityName=..., MessageName=None), **headers)

    assert (event.record, event.name) == ("contact", "Update")


def test_event_without_operation_keeps_its_identity():
    """Without OperationId (synchronous steps) the request's id counts, else the body itself: a repeat is a repeat."""
    by_request, by_body = changed(OperationId=...), changed(OperationId=None, RequestId=None)
    other = changed(OperationId=None, RequestId=None, Depth=2)

    ids = [read(body).event_id for body in (by_request, by_request, by_body, by_body, other)]

    assert ids[0] == ids[1] == f"{REQUEST}:{CONTACT}:Update"
    assert ids[2] == ids[3] != ids[4]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"PrimaryEntityId":' + b"9" * 5000 + b"}", id="a number without end"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'"text"', id="a text"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="nothing in it"),
        pytest.param(changed(PrimaryEntityId="1", InputParameters=[]), id="no GUID"),
        pytest.param(changed(PrimaryEntityId={"a": 1}, InputParameters=[[], None, {"key": []}]), id="object for id"),
        pytest.param(changed(PrimaryEntityName="contact'; drop"), id="no name of a table"),
        pytest.param(changed(MessageName=["Update"]), id="list for message"),
        pytest.param(changed(MessageName="Update\ud800"), id="half a character"),
    ],
)
def test_unreadable_body_says_so(body):
    """What names no record is refused with one code, and nothing of it is shown."""
    with pytest.raises(MappingError) as caught:
        read(body)

    assert caught.value.code == "bad_body"
    assert "drop" not in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(CONTACT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = sorted(json.loads(UPDATE))


@st.composite
def twisted(draw: st.DrawFn) -> bytes:
    """Return the update's body with members replaced, taken away or written otherwise, and perhaps cut."""
    context = json.loads(UPDATE)
    for name in draw(st.lists(st.sampled_from(MEMBERS), max_size=6)):
        value = context.pop(name, None)
        if draw(st.booleans()):
            context[draw(st.sampled_from([name, name.lower(), name.upper()]))] = draw(st.just(value) | JSON)
    body = json.dumps(context).encode()
    return body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 9)) == 0 else body


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()) | twisted())
def test_no_body_breaks_the_reader(body):
    """Every body is an event with a valid id, or an error of ours."""
    try:
        [event] = client(KEY).read_events(webhook(body))
    except SyncError as exc:
        code = exc.code
    else:
        code = ""
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", event.key)
        assert event.record == event.record.lower()
        assert all(part.isascii() and len(part) < 300 for part in dataclasses.astuple(event))

    assert code in ("", "bad_body")


@settings(deadline=None, max_examples=300)
@given(
    query=st.dictionaries(st.sampled_from(["code", "key", "k1"]), st.text(st.characters(), max_size=20), max_size=3),
    headers=st.dictionaries(
        st.sampled_from(["x-functions-key", "x-ms-dynamics-organization"]), st.text(st.characters(), max_size=20)
    ),
)
def test_no_guess_is_let_in(query, headers):
    """Whatever stands in query and headers, without the key it is refused, and never breaks anything."""
    with pytest.raises(AccessError) as caught:
        client(KEY).read_events(Webhook(headers, query, UPDATE.encode()))

    assert caught.value.code == "bad_key"
