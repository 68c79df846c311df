"""Dataverse's webhooks: who may call, and which record a serialized RemoteExecutionContext speaks of.

Follows https://learn.microsoft.com/power-apps/developer/data-platform/use-webhooks. There is no signature: the key is all
that proves the caller. Members of the body come and go over the years, and above 256 KB most are missing, so everything
is read by name whatever its case, and only the record's kind, its id and the message's name are needed.
"""

import dataclasses
import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared.clients.dynamics365_query import GUID
from shared.clients.system import Event, Webhook
from shared.errors import AccessError, MappingError

KEY_PARAMETER = "code"  # WebhookKey: Dataverse's own name for it
ORGANIZATION_HEADER = "x-ms-dynamics-organization"
ENTITY_HEADER = "x-ms-dynamics-entity-name"
MESSAGE_HEADER = "x-ms-dynamics-request-name"
NO_ID = "00000000-0000-0000-0000-000000000000"
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}", re.ASCII)  # a table's or a message's name
HOST = re.compile(r"[a-z0-9.-]{1,100}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class WebhookRules:
    """What a webhook must carry to be believed."""

    connection: str
    keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)  # two while they are rotated
    organization: str = ""  # host name of the one environment that may call
    header: str = "x-functions-key"  # HttpHeader: where the key stands; in lower case
    parameter: str = "key"  # HttpQueryString: where the key stands

    def check_key(self, request: Webhook) -> None:
        """Refuse a request without a valid key in one of the three places. Raises AccessError `bad_key`."""
        keys = [_digest(key) for key in self.keys if key]
        if not keys:
            raise self._refusal(
                f"Webhooks of {self.connection} are refused because no key is set: "
                f"set CONNECTIONS__{self.connection.upper()}__WEBHOOK_KEY.",
                "bad_key",
            )
        shown = (
            request.query.get(KEY_PARAMETER),
            request.query.get(self.parameter),
            request.headers.get(self.header.lower()),
        )
        matches = [hmac.compare_digest(_digest(each), key) for each in shown if each for key in keys]
        if not any(matches):  # all were compared: the time says nothing about which one, or how far it fitted
            raise self._refusal(f"A webhook of {self.connection} carries no valid key.", "bad_key")

    def check_origin(self, request: Webhook) -> None:
        """Refuse another environment: a copy keeps calling with the key it was copied with. Raises AccessError."""
        origin = request.headers.get(ORGANIZATION_HEADER, "").strip().lower()
        if not origin or origin != self.organization.lower():
            shown = origin if HOST.fullmatch(origin) else "an environment that does not say its name"
            raise self._refusal(
                f"A webhook of {self.connection} comes from {shown} and not from {self.organization}; if that is right, "
                f"set CONNECTIONS__{self.connection.upper()}__ORIGIN.",
                "foreign_origin",
            )

    def _refusal(self, sentence: str, code: str) -> AccessError:
        return AccessError(sentence, code=code, connection=self.connection)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()  # equal lengths: compared in constant time


def read_event(request: Webhook) -> Event:
    """Read the one event of a request that was let in. Raises MappingError `bad_body` for a body that names no record."""
    context = _members(_load(request.body))
    record = _word(context.get("primaryentityname")) or _word(request.headers.get(ENTITY_HEADER))
    name = _word(context.get("messagename")) or _word(request.headers.get(MESSAGE_HEADER))
    key = next(_record_ids(context), None)
    for what, value in (("PrimaryEntityName", record), ("MessageName", name), ("PrimaryEntityId", key)):
        if not value:
            raise _bad_body(f"it has no valid {what}")
    operation = _guid(context.get("operationid")) or _guid(context.get("requestid"))
    # CorrelationId is no substitute: one user action that changes a record twice has it twice, and the second would be lost.
    operation = operation or hashlib.sha256(request.body).hexdigest()
    return Event(record=record.lower(), key=key or "", name=name, event_id=f"{operation}:{key}:{name}")


def _load(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _bad_body("it is no JSON") from None


def _bad_body(why: str) -> MappingError:
    return MappingError(f"The webhook's body cannot be read: {why}.", code="bad_body")


def _record_ids(context: Mapping[str, Any]) -> Iterator[str]:
    """Yield what may be the record's id: the context's own, its target's, and what a create gave back."""
    inputs, outputs = _pairs(context.get("inputparameters")), _pairs(context.get("outputparameters"))
    for value in (context.get("primaryentityid"), _members(inputs.get("target")).get("id"), outputs.get("id")):
        if guid := _guid(value):
            yield guid


def _members(value: object) -> dict[str, Any]:
    """Return an object's members under lower-case names; anything else has none."""
    return {str(name).lower(): member for name, member in value.items()} if isinstance(value, Mapping) else {}


def _pairs(value: object) -> dict[str, Any]:
    """Return a dictionary that travels as a list of {"key", "value"}; what does not fit is left out."""
    entries = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()
    members = [_members(entry) for entry in entries]
    return {each["key"].lower(): each.get("value") for each in members if isinstance(each.get("key"), str)}


def _guid(value: object) -> str:
    """Return a GUID in lower case, without braces; "" for anything else, and for the one that means none."""
    text = value.strip().strip("{}").lower() if isinstance(value, str) else ""
    return text if GUID.fullmatch(text) and text != NO_ID else ""


def _word(value: object) -> str:
    return value if isinstance(value, str) and WORD.fullmatch(value) else ""
