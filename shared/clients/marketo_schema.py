"""What a Marketo instance says about leads and companies, and how its values become canonical ones and back.

Follows describe2 of leads and describe of companies:
https://experienceleague.adobe.com/en/docs/marketo-developer/marketo/rest/lead-database/leads
"""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from shared.clients.lookups import as_text
from shared.clients.system import FieldKind, FieldType, RecordType, Value
from shared.errors import MappingError

KINDS = {
    "boolean": FieldKind.BOOLEAN,
    **dict.fromkeys(("integer", "float", "currency", "percent", "score", "number"), FieldKind.NUMBER),
    **dict.fromkeys(("date", "datetime"), FieldKind.TIME),
}
NEVER_WRITTEN = frozenset({"unsubscribed", "emailInvalid"})  # a person's own choice, and Marketo's own finding


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a record type is reached."""

    record: str
    noun: str
    path: str
    describe_path: str
    key: str  # the field whose value other records refer to
    extra: tuple[str, ...]  # what is read besides the fields asked for
    makes_only_new: bool = False  # creates are always `createOnly` by the key


KIND_OF = {
    "lead": Kind("lead", "lead", "/rest/v1/leads.json", "/rest/v1/leads/describe2.json", "id", ("id", "updatedAt")),
    "company": Kind(
        "company",
        "company",
        "/rest/v1/companies.json",
        "/rest/v1/companies/describe.json",
        "externalCompanyId",
        ("id", "externalCompanyId", "updatedAt"),
        makes_only_new=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Schema:
    """A described record type, with the vendor's own type names."""

    record_type: RecordType
    types: Mapping[str, str]

    @property
    def fields(self) -> Mapping[str, FieldType]:
        """Return the fields by REST name."""
        return self.record_type.fields


def build_schema(kind: Kind, described: Mapping[str, Any]) -> Schema:
    """Build a schema from the one result of a describe call."""
    searchable = {names[0] for names in described.get("searchableFields") or () if len(names) == 1}
    fields, types = {}, {}
    for entry in described.get("fields") or ():
        name, data_type = str(entry["name"]), str(entry.get("dataType") or "string")
        length = entry.get("length")
        types[name] = data_type
        fields[name] = FieldType(
            name=name,
            kind=KINDS.get(data_type, FieldKind.TEXT),
            length=length if isinstance(length, int) and data_type not in KINDS else None,
            writable=bool(entry.get("updateable")) and name not in NEVER_WRITTEN,
            searchable=name in searchable,
            unique=kind.makes_only_new and name == kind.key,
        )
    return Schema(RecordType(kind.record, kind.noun, fields), types)


def read_value(field: FieldType, raw: Any) -> Value:
    """Return a field's JSON value as a canonical one; a value that is not of its field's type stays as it is."""
    if raw is None or raw == "":
        return None
    if field.kind is FieldKind.TIME and isinstance(raw, str):
        return read_time(raw) or raw
    if field.kind is FieldKind.TEXT and isinstance(raw, int | float):
        return as_text(raw)
    return raw  # type: ignore[no-any-return]  # JSON values are canonical


def read_time(text: str) -> datetime | None:
    """Return a time or a date (midnight) as aware UTC; None when it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def write_value(schema: Schema, name: str, value: Value) -> Any:
    """Return a canonical value as Marketo takes it. Raises MappingError for a form that the field cannot hold."""
    match value:
        case datetime():
            moment = value.astimezone(UTC)
            return moment.date().isoformat() if schema.types[name] == "date" else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        case list() | dict():
            raise MappingError(f"A value of this form cannot be written to {name} in Marketo.", code="unwritable_value")
        case str() if schema.types[name] == "email" and not value.isascii():
            raise MappingError(
                f"Marketo takes only ASCII in {name}; write the part after the @ in its xn-- form.",
                code="unwritable_value",
            )
    return value
