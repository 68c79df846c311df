"""The body of a webhook of the Dynamics 365 simulator: a change as a serialized RemoteExecutionContext.

Dictionaries are lists of key and value, typed values say their type, slashes are escaped, as the vendor's serializer does.
"""

import dataclasses
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sandbox.dynamics365_query import Ref, Row
from sandbox.dynamics365_store import BUSINESS_UNIT, ORGANIZATION_ID, Actor
from sandbox.dynamics365_tables import CHOICES, Column, Table

CONTRACTS = "http://schemas.microsoft.com/xrm/2011/Contracts"
NO_ID = "00000000-0000-0000-0000-000000000000"
LEFT_OUT = ("ParentContext", "InputParameters", "PreEntityImages", "PostEntityImages")  # of a body that is too large
COMPUTED = frozenset({"modifiedon", "modifiedby", "modifiedonbehalfby", "fullname", "yomifullname"})
NEVER_SENT = frozenset({"versionnumber"})


@dataclasses.dataclass(frozen=True)
class Change:
    """One write, as it stood right after it."""

    table: Table
    record_id: str
    message: str  # Create, Update, Delete, Close, Merge
    columns: tuple[str, ...]  # sent by the caller, and those that follow from them
    before: Row | None
    after: Row | None
    actor: Actor
    at: datetime


@dataclasses.dataclass(frozen=True)
class Image:
    """A copy of the record that a step asked for."""

    alias: str
    before: bool
    after: bool
    columns: tuple[str, ...]  # none named: all


@dataclasses.dataclass(frozen=True)
class Ids:
    """The ids of one execution of a step."""

    step: str
    operation: str
    request: str
    correlation: str


def build_context(change: Change, ids: Ids, images: Iterable[Image]) -> dict[str, Any]:
    """Return the context of an asynchronous step after the operation."""
    images = tuple(images)
    typed, sent = _target(change, change.columns), [name for name in change.columns if name not in COMPUTED]
    context = {
        "BusinessUnitId": BUSINESS_UNIT.id,
        "CorrelationId": ids.correlation,
        "Depth": 1,
        "InitiatingUserAgent": "",
        "InitiatingUserAzureActiveDirectoryObjectId": NO_ID,
        "InitiatingUserId": change.actor.user_id,
        "InputParameters": [_pair("Target", typed)],
        "IsExecutingOffline": False,
        "IsInTransaction": False,
        "IsOfflinePlayback": False,
        "IsolationMode": 1,
        "MessageName": change.message,
        "Mode": 1,
        "OperationCreatedOn": f"{_moment(change.at)[:-2]}+0000)/",
        "OperationId": ids.operation,
        "OrganizationId": ORGANIZATION_ID,
        "OrganizationName": f"unq{ORGANIZATION_ID.replace('-', '')[:29]}",
        "OutputParameters": [_pair("id", change.record_id)] if change.message == "Create" else [],
        "OwningExtension": _untyped_reference("sdkmessageprocessingstep", ids.step),
        "ParentContext": None,
        "PostEntityImages": [*_primary_name(change), *_images(change.table, images, change.after, "after")],
        "PreEntityImages": _images(change.table, images, change.before, "before"),
        "PrimaryEntityId": change.record_id,
        "PrimaryEntityName": change.table.name,
        "RequestId": ids.request,
        "SecondaryEntityName": "none",
        "SharedVariables": _shared_variables(change),
        "Stage": 40,
        "UserAzureActiveDirectoryObjectId": NO_ID,
        "UserId": change.actor.user_id,
    }
    parent = {"Stage": 30, "InputParameters": [_pair("Target", _target(change, sent))], "OutputParameters": []}
    context["ParentContext"] = {**context, **parent, "PreEntityImages": [], "PostEntityImages": []}
    return context


def write_context(context: dict[str, Any], max_bytes: int) -> tuple[bytes, bool]:
    """Return the body, and whether it was too large, so that its larger members were taken away."""
    body = _json(context)
    if len(body) <= max_bytes:
        return body, False
    return _json({name: value for name, value in context.items() if name not in LEFT_OUT}), True


def _json(context: dict[str, Any]) -> bytes:
    return json.dumps(context, ensure_ascii=False, separators=(",", ":")).replace("/", "\\/").encode()


def _target(change: Change, columns: Iterable[str]) -> dict[str, Any]:
    """Return what was written: a reference to a deleted record, else the columns that count as changed."""
    if change.after is None:
        return {"__type": _type("EntityReference"), **_untyped_reference(change.table.name, change.record_id)}
    names = [name for name in columns if name not in NEVER_SENT]
    attributes = [_attribute(change.table.columns[name], change.after.get(name)) for name in names]
    if change.table.key not in names:
        attributes.append(_pair(change.table.key, change.record_id))
    if "fullname" in names and change.table.name == "contact":
        attributes.append(_pair("yomifullname", change.after["fullname"]))
    if change.message != "Create" and "modifiedby" in names:
        attributes.append(_pair("modifiedonbehalfby", None))
    return {"__type": _type("Entity"), **_entity(change.table.name, change.record_id, attributes)}


def _primary_name(change: Change) -> list[dict[str, Any]]:
    """Return the image that every asynchronous step has."""
    if change.after is None:
        return []
    columns = (change.table.label, change.table.key)
    return _images(change.table, (Image("AsynchronousStepPrimaryName", False, True, columns),), change.after, "after")


def _images(table: Table, images: Iterable[Image], row: Row | None, when: str) -> list[dict[str, Any]]:
    if row is None:
        return []
    pairs = []
    for image in images:
        if not getattr(image, when):
            continue
        names = [name for name in table.columns if not image.columns or name in {*image.columns, table.key}]
        filled = [name for name in names if row.get(name) is not None and name not in NEVER_SENT]
        attributes = [_attribute(table.columns[name], row[name]) for name in filled]
        pairs.append(_pair(image.alias, _entity(table.name, row[table.key], attributes)))  # the image has no __type
    return pairs


def _entity(name: str, record_id: str, attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "Attributes": attributes,
        "EntityState": None,
        "FormattedValues": [],
        "Id": record_id,
        "KeyAttributes": [],
        "LogicalName": name,
        "RelatedEntities": [],
        "RowVersion": None,
    }


def _attribute(column: Column, value: Any) -> dict[str, Any]:
    if isinstance(value, Ref):
        value = {"__type": _type("EntityReference"), **_untyped_reference(value.table, value.id)}
    elif isinstance(value, datetime):
        value = _moment(value)
    elif value is not None and column.kind in CHOICES:
        value = {"__type": _type("OptionSetValue"), "Value": value}
    elif value is not None and column.kind == "Money":
        value = {"__type": _type("Money"), "Value": value}
    return _pair(column.name, value)


def _shared_variables(change: Change) -> list[dict[str, Any]]:
    pair_type = "KeyValuePairOfstringstring:#System.Collections.Generic"
    changed = [{"__type": pair_type, "key": change.table.name, "value": change.message}]
    tag = [_pair("tag", change.actor.tag)] if change.actor.tag else []
    return [_pair("IsAutoTransact", True), _pair("AcceptLang", ""), _pair("ChangedEntityTypes", changed), *tag]


def _untyped_reference(table: str, record_id: str) -> dict[str, Any]:
    return {"Id": record_id, "KeyAttributes": [], "LogicalName": table, "Name": None, "RowVersion": None}


def _type(name: str) -> str:
    return f"{name}:{CONTRACTS}"


def _moment(value: datetime) -> str:
    return f"/Date({int(value.timestamp()) * 1000})/"


def _pair(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}
