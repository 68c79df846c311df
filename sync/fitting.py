"""Canonical values against what a target's field takes: harmless differences are bridged, the rest is refused."""

import re
from datetime import UTC, datetime

from shared.clients.system import FieldKind, FieldType, Value
from shared.errors import MappingError
from sync.placeholders import text_of

KINDS = {
    FieldKind.NUMBER: "a number",
    FieldKind.BOOLEAN: "true or false",
    FieldKind.TIME: "a time with its zone",
    FieldKind.OBJECT: "an object",
    FieldKind.LIST: "a list",
    FieldKind.CHOICE: "a choice",
    FieldKind.REFERENCE: "the id of a record",
    FieldKind.TEXT: "a text",
    FieldKind.APPEND: "a text",
}
NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?", re.ASCII)
WRONG_KIND = "wrong_kind"
WORDS = {"true": True, "false": False}


def fit_type(value: Value, field_type: FieldType) -> Value:
    """Return the value in the field's kind: a number's text becomes a number, a number in a text field its digits.

    Length and membership in the known choices are not judged here. Raises MappingError for a value of another kind.
    """
    fitted = _fit(value, field_type)
    if fitted is None and value is not None:
        raise MappingError(f"the target takes {KINDS[field_type.kind]}, and the value is none.", code=WRONG_KIND)
    return fitted


def _fit(value: Value, field_type: FieldType) -> Value:  # one line per kind
    match field_type.kind:
        case FieldKind.NUMBER:
            return _number(value)
        case FieldKind.BOOLEAN:
            return value if isinstance(value, bool) else WORDS.get(text_of(value)) if isinstance(value, str) else None
        case FieldKind.TIME:
            return _time(value)
        case FieldKind.LIST:
            return value if isinstance(value, list) else [value]
        case FieldKind.OBJECT:
            return value if isinstance(value, dict) else None
        case FieldKind.CHOICE:
            return _choice(value, field_type)
        case _:
            return None if isinstance(value, list | dict) else text_of(value)


def _number(value: Value) -> Value:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    match = NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    return float(match[0]) if match[1] else int(match[0])


def _time(value: Value) -> Value:
    if isinstance(value, datetime):
        return value
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment and moment.tzinfo else None


def _choice(value: Value, field_type: FieldType) -> Value:
    if isinstance(value, list | dict):
        return value if isinstance(value, list) else None  # several choices at once
    return next((choice for choice in field_type.choices if text_of(choice) == text_of(value)), value)
