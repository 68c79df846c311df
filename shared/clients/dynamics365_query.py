"""Dataverse's OData: paths become `$select` and `$expand`, conditions and values become `$filter`.

Literals are escaped here and nowhere else: quotes are doubled, and the connection encodes the finished query once.
See https://learn.microsoft.com/power-apps/developer/data-platform/webapi/query/filter-rows.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from shared.clients.lookups import as_text, split_terms
from shared.clients.system import Changed, Condition, FieldKind, Key, Scalar, Test, Value
from shared.errors import RejectedError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
MOST_CHARS = 5_500  # of a filter, encoded; with columns and expands the URL stays below 8,000
MOST_TERMS = 100

KINDS = {
    **dict.fromkeys(("Integer", "BigInt", "Decimal", "Double", "Money"), FieldKind.NUMBER),
    **dict.fromkeys(("Lookup", "Customer", "Owner", "Uniqueidentifier"), FieldKind.REFERENCE),
    **dict.fromkeys(("Picklist", "State", "Status"), FieldKind.CHOICE),
    "Boolean": FieldKind.BOOLEAN,
    "DateTime": FieldKind.TIME,
}
LOOKUPS = ("Lookup", "Customer", "Owner")


@dataclasses.dataclass(frozen=True)
class Column:
    """One column by its logical name, with its AttributeType."""

    name: str
    type: str
    targets: tuple[str, ...] = ()  # of a lookup
    writable: bool = False

    @property
    def kind(self) -> FieldKind:
        """Return the canonical type."""
        return KINDS.get(self.type, FieldKind.TEXT)

    @property
    def property_name(self) -> str:
        """Return the name under which the Web API shows the value."""
        return f"_{self.name}_value" if self.type in LOOKUPS else self.name


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: its address, its key and its columns."""

    name: str
    set_name: str
    key: str
    columns: Mapping[str, Column]

    def find_column(self, name: str) -> Column | None:
        """Return a column by its logical name or by the name that the Web API shows."""
        bare = name[1:-6] if name.startswith("_") and name.endswith("_value") else name
        return self.columns.get(bare)

    def find_target(self, navigation: str) -> tuple[Column, str] | None:
        """Return the lookup behind a single-valued navigation property and the table that it leads to.

        A lookup with several targets has one property for each, `<column>_<target>`; an owner has none
        (`owninguser` and `owningteam` are lookups of their own).
        """
        column = self.columns.get(navigation.lower())  # custom properties are spelled in capitals and small letters
        if column is not None and column.type != "Owner" and len(column.targets) == 1:
            return column, column.targets[0]
        for column in self.columns.values():
            for target in column.targets if column.type != "Owner" else ():
                if navigation.lower() == f"{column.name}_{target}":
                    return column, target
        return None


@dataclasses.dataclass
class Selection:
    """What is asked of one table: its own columns, and what hangs on its navigation properties."""

    columns: set[str] = dataclasses.field(default_factory=set)
    expands: dict[str, "Selection"] = dataclasses.field(default_factory=dict)

    def write(self) -> dict[str, str]:
        """Return the query options of this level."""
        options = {"$select": ",".join(sorted(self.columns))}
        if self.expands:
            inner = (
                f"{name}({';'.join(f'{k}={v}' for k, v in one.write().items())})"
                for name, one in sorted(self.expands.items())
            )
            options["$expand"] = ",".join(inner)
        return options


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a path's value stands in an answer, and its column."""

    steps: tuple[str, ...]  # navigation properties, then the property
    column: Column

    def read(self, record: Mapping[str, Any]) -> Value:
        """Return the value at this place; through an empty reference there is nothing."""
        here: Any = record
        for step in self.steps:
            here = here.get(step) if isinstance(here, Mapping) else None
        return read_value(self.column, here)

    def compare(self) -> str:
        """Return the place as a filter names it."""
        return "/".join(self.steps)


def read_value(column: Column, value: Any) -> Value:
    """Return a raw value as a canonical one: times are aware UTC, ids lower case, empty text is None.

    Text that is no time stays text.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        if column.kind is FieldKind.TIME:
            return read_time(value) or value
        return value.lower() if column.kind is FieldKind.REFERENCE else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, bool | int | float | list | dict) else str(value)


def read_time(text: str) -> datetime | None:
    """Return a time, or a date as its midnight, aware UTC; None when it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def write_literal(column: Column, value: Scalar) -> str:
    """Return a value as a filter's literal, not yet encoded.

    Raises ValueError for an empty value, RejectedError with code `unsearchable_value` for one that cannot be of the
    column's type.
    """
    if value is None or value == "":
        raise ValueError("an empty value is never searched for")
    match column.kind:
        case FieldKind.REFERENCE if GUID.fullmatch(str(value)):
            return str(value).lower()
        case FieldKind.TIME if isinstance(value, datetime) and value.tzinfo is not None:
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case FieldKind.NUMBER | FieldKind.CHOICE if re.fullmatch(r"-?\d{1,20}(\.\d{1,10})?", as_text(value), re.ASCII):
            return as_text(value)
        case FieldKind.BOOLEAN if isinstance(value, bool):
            return as_text(value)
        case FieldKind.TEXT:
            return f"'{as_text(value).replace(chr(39), chr(39) * 2)}'"
    raise RejectedError(
        f"Dynamics 365 cannot search {column.name} for a value of this form.", code="unsearchable_value"
    )


def build_condition(places: Mapping[str, Place], when: Condition) -> str:
    """Build the filter of a condition; "" if it is empty."""
    return " and ".join(_build_test(places[path], test) for path, test in when.items())


def build_window(changed: Changed) -> str:
    """Build the filter of a window on `modifiedon`: explicit UTC bounds, rounded up to its whole seconds."""
    bounds = (("ge", changed.since), ("lt", changed.until))
    return " and ".join(f"modifiedon {operator} {_write_bound(at)}" for operator, at in bounds if at is not None)


def build_lookup(places: Sequence[Place], keys: Sequence[Key]) -> Iterator[str]:
    """Build the filters that find records by one property or by several together, each short enough for a URL."""
    terms = (
        " and ".join(f"{p.compare()} eq {write_literal(p.column, v)}" for p, v in zip(places, key, strict=True))
        for key in keys
    )
    if len(places) > 1:
        terms = (f"({term})" for term in terms)
    sized = ((term, len(quote(f"{term} or ", safe="$():'"))) for term in terms)
    for group in split_terms(sized, MOST_CHARS, MOST_TERMS):
        yield " or ".join(group)


def join_filters(filters: Iterable[str]) -> str:
    """Join filters by AND."""
    kept = [one for one in filters if one]
    return kept[0] if len(kept) == 1 else " and ".join(f"({one})" for one in kept)


def _write_bound(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("a time without zone")
    whole = moment.astimezone(UTC)
    if whole.microsecond:
        whole = datetime.fromtimestamp(int(whole.timestamp()) + 1, UTC)
    return whole.strftime("%Y-%m-%dT%H:%M:%SZ")


def _build_test(place: Place, test: Test) -> str:
    values = [value for value in test.any_of if value is not None and value != ""]
    empty, name = len(values) < len(test.any_of), place.compare()
    literals = [write_literal(place.column, value) for value in values]
    if not test.negated:
        return f"({' or '.join([*(f'{name} eq {one}' for one in literals), *([f'{name} eq null'] if empty else [])])})"
    lines = [f"{name} ne {one}" for one in literals]
    if empty:
        return f"({' and '.join([*lines, f'{name} ne null'])})"
    return f"({' and '.join(f'({line} or {name} eq null)' for line in lines)})"
