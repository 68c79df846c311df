"""Rows as table entities, and the limits of Azure's tables, which the emulator does not check.

Text, numbers, true/false and times are properties of their own type; all else is JSON text, in several properties when
it is long. Errors name the kind of row and the field, never what they hold.
"""

import functools
import json
import re
import types
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from shared.errors import StateError
from shared.state.rows import StateRow

# https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model
MAX_KEY_CHARS = 512  # 1 KiB of UTF-16
MAX_TEXT_CHARS = 32_768  # 64 KiB of UTF-16
MAX_ENTITY_BYTES = 1 << 20
MAX_PROPERTIES = 252
FORBIDDEN_IN_KEYS = re.compile(r"[/\\#?\x00-\x1f\x7f-\x9f]")
PART_CHARS = 30_000
PARTS = "__parts"  # after a field's name: in how many properties its JSON stands
MARK = "write_id"  # a write's own mark: what tells our repeated write from somebody else's equal one
INT32 = range(-(2**31), 2**31)

R = TypeVar("R", bound=StateRow)
Entity = dict[str, Any]


class IncompleteError(Exception):
    """A selected field stands in more properties than were selected."""


def to_entity(row: StateRow, mark: str) -> Entity:
    """Build the entity of a row. Raises StateError when it does not fit Azure's limits."""
    kind = type(row)
    entity: Entity = {"PartitionKey": row.partition_key, "RowKey": row.row_key, MARK: mark}
    check_keys(kind, row.partition_key, row.row_key)
    structured = _structured(kind)
    texts = row.model_dump(mode="json", include=set(structured)) if structured else {}
    for name in kind.model_fields:
        value = getattr(row, name)
        if name == "etag" or value is None:
            continue
        if name in structured:
            _add_parts(entity, name, json.dumps(texts[name], ensure_ascii=True, separators=(",", ":")))
        else:
            entity[name] = _native(kind, name, value)
    if len(entity) - 2 > MAX_PROPERTIES:
        raise StateError(f"A {kind.__name__} has {len(entity) - 2} properties; a table takes {MAX_PROPERTIES}")
    if (size := entity_bytes(entity)) > MAX_ENTITY_BYTES:
        raise StateError(f"A {kind.__name__} has {size:,} bytes; a table takes {MAX_ENTITY_BYTES:,}")
    return entity


def from_entity(model: type[R], entity: Mapping[str, Any], etag: str) -> R:
    """Build the row of an entity. Raises StateError when it was written by a newer app or cannot be read."""
    _check_version(model, entity)
    values = {name: _read(model, name, entity) for name in model.model_fields if entity.get(name) is not None}
    try:
        return model.model_validate(values | {"etag": etag})
    except ValidationError as exc:
        raise _unreadable(model, exc) from None  # pydantic's text shows the values


def from_selected(model: type[R], entity: Mapping[str, Any], etag: str, names: frozenset[str]) -> R:
    """Build a row of selected fields: the others are not there, and reading one raises AttributeError.

    Raises IncompleteError when a field was too long for what was selected.
    """
    _check_version(model, entity)
    row = model.model_construct(etag=etag)
    values: dict[str, Any] = {"etag": etag}
    for name in names:
        if entity.get(name) is None:
            values[name] = model.model_fields[name].get_default(call_default_factory=True)
            continue
        try:
            values[name] = _adapter(model, name).validate_python(_read(model, name, entity))
        except ValidationError as exc:
            raise _unreadable(model, exc) from None
    object.__setattr__(row, "__dict__", values)
    return row


def selected_columns(names: frozenset[str]) -> list[str]:
    """Return the properties to ask for, so that `from_selected` can tell what is missing."""
    return sorted({*names, *(f"{name}{PARTS}" for name in names), "schema_version", "PartitionKey", "RowKey"})


def check_keys(model: type[StateRow], *keys: str) -> None:
    """Raise StateError when a key is one that Azure refuses."""
    for key in keys:
        if not key:
            raise StateError(f"A {model.__name__} has an empty key")
        if utf16_chars(key) > MAX_KEY_CHARS:
            raise StateError(f"A {model.__name__} has a key of {utf16_chars(key)} characters; {MAX_KEY_CHARS} fit")
        if FORBIDDEN_IN_KEYS.search(key):
            raise StateError(f"A {model.__name__} has a key with a character that Azure forbids")


def entity_bytes(entity: Mapping[str, Any]) -> int:
    """Return an entity's size as Azure counts it."""
    size = 4 + 2 * (utf16_chars(entity["PartitionKey"]) + utf16_chars(entity["RowKey"]))
    for name, value in entity.items():
        if name not in ("PartitionKey", "RowKey"):
            size += 8 + 2 * len(name) + (4 + 2 * utf16_chars(value) if isinstance(value, str) else 8)
    return size


def utf16_chars(text: str) -> int:
    """Return how many UTF-16 units a text has: what Azure counts."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _native(model: type[StateRow], name: str, value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        if value not in INT32:
            raise StateError(f"{model.__name__}.{name} is beyond 32 bits; store it as text")
        return value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise StateError(f"{model.__name__}.{name} is a time without a zone")
        return value.astimezone(UTC)
    text = str(value)
    if utf16_chars(text) > MAX_TEXT_CHARS:
        raise StateError(f"{model.__name__}.{name} has {utf16_chars(text):,} characters; {MAX_TEXT_CHARS:,} fit")
    # A vendor's JSON can hold half a surrogate pair, which no UTF-8 body can.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _add_parts(entity: Entity, name: str, text: str) -> None:
    parts = [text[at : at + PART_CHARS] for at in range(0, len(text), PART_CHARS)]
    entity[name] = parts[0]
    for number, part in enumerate(parts[1:], 1):
        entity[f"{name}__{number}"] = part
    if len(parts) > 1:
        entity[f"{name}{PARTS}"] = len(parts)


def _read(model: type[StateRow], name: str, entity: Mapping[str, Any]) -> Any:
    value = entity[name]
    if name not in _structured(model):
        return datetime.combine(value.date(), value.time(), UTC) if isinstance(value, datetime) else value
    count = entity.get(f"{name}{PARTS}") or 1
    parts = [value, *(entity.get(f"{name}__{number}") for number in range(1, count))]
    if None in parts:
        raise IncompleteError(name)
    try:
        return json.loads("".join(parts))
    except (TypeError, ValueError):
        raise StateError(f"{model.__name__}.{name} is stored in a form that cannot be read") from None


def _check_version(model: type[StateRow], entity: Mapping[str, Any]) -> None:
    ours, stored = model.model_fields["schema_version"].default, entity.get("schema_version") or 1
    if stored > ours:
        raise StateError(
            f"A {model.__name__} was written by a newer app (schema version {stored}, this app knows {ours}): "
            "deploy the newer app first",
            code="newer_schema",
        )


def _unreadable(model: type[StateRow], exc: ValidationError) -> StateError:
    where = ", ".join(f"{'.'.join(map(str, error['loc']))}: {error['type']}" for error in exc.errors()[:3])
    return StateError(f"A stored {model.__name__} cannot be read ({where})")


@functools.lru_cache
def _adapter(model: type[StateRow], name: str) -> TypeAdapter[Any]:
    annotation: Any = model.model_fields[name].annotation
    return TypeAdapter(annotation)


@functools.lru_cache
def _structured(model: type[StateRow]) -> frozenset[str]:
    """Return the fields that are stored as JSON."""
    return frozenset(name for name, field in model.model_fields.items() if not _is_native(field.annotation))


def _is_native(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in (Union, types.UnionType):
        return all(each is type(None) or _is_native(each) for each in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, str | int | float | datetime | Enum)
