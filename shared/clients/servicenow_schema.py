"""What a ServiceNow instance says about its tables, and how its text becomes canonical values and back.

The Table API sends and takes text only; the types stand in `sys_dictionary`, where a table inherits the columns of
its parents (`sys_db_object.super_class`), the values of choice lists in `sys_choice`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

from shared.clients.lookups import as_text
from shared.clients.servicenow_query import format_time
from shared.clients.system import FieldKind, FieldType, RecordType, Scalar, Value
from shared.errors import ConfigError, MappingError, RejectedError

KINDS = {
    "boolean": FieldKind.BOOLEAN,
    "reference": FieldKind.REFERENCE,
    "journal": FieldKind.APPEND,
    "journal_input": FieldKind.APPEND,
    "glide_list": FieldKind.LIST,
    **dict.fromkeys(("glide_date_time", "glide_date", "due_date", "date", "datetime"), FieldKind.TIME),
    **dict.fromkeys(("integer", "longint", "decimal", "float", "percent_complete"), FieldKind.NUMBER),
}
DATE_TYPES = ("glide_date", "date")
NOT_SEARCHABLE = ("journal", "journal_input", "journal_list", "password", "password2")
LIST_CHOICES = ("1", "2", "3")  # of sys_dictionary.choice: the column has a list of values
JOURNAL = "journal"  # the child type that this client adds to tables with journal fields: their entries
JOURNAL_TABLE = "sys_journal_field"
JOURNAL_ENTRY = {  # path within an entry -> column of the table
    "id": "sys_id",
    "element": "element",  # the journal field: "comments" or "work_notes"
    "text": "value",
    "author": "sys_created_by",
    "created_at": "sys_created_on",
}
CHILD_TABLES = {("sys_user_group", "member"): "sys_user_grmember"}  # child types that have a name of their own
NOUNS = {"sys_user": "user", "sys_user_group": "group", "change_request": "change", "alm_asset": "asset"}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column, with the vendor's internal type."""

    name: str
    type: str
    table: str  # that defines it
    length: int | None = None
    refers_to: str = ""
    read_only: bool = False
    has_choices: bool = False

    @property
    def kind(self) -> FieldKind:
        """Return the canonical type, choices apart."""
        return KINDS.get(self.type, FieldKind.TEXT)

    @property
    def appends(self) -> bool:
        """Return whether writing adds an entry."""
        return self.kind is FieldKind.APPEND


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with all its columns, inherited ones included."""

    name: str
    lineage: tuple[str, ...]  # itself and its parents, nearest first
    columns: Mapping[str, Column]

    @property
    def moment(self) -> str:
        """Return the column that orders the table's changes: journal entries and the like are only ever created."""
        return "sys_updated_on" if "sys_updated_on" in self.columns else "sys_created_on"

    @property
    def has_journal(self) -> bool:
        """Return whether records of the table have journal entries."""
        return JOURNAL not in self.columns and any(column.appends for column in self.columns.values())

    def asks_children(self, path: str) -> bool:
        """Tell whether a path leads into child records, which stand in another table."""
        name, _, rest = path.partition(".")
        return name not in self.columns and (bool(rest) or (self.has_journal and name == JOURNAL))


@dataclasses.dataclass(frozen=True)
class ChildType:
    """A table whose rows belong to records of another one."""

    parent: Table
    table: Table
    column: str  # of the children: what refers to the parent

    @property
    def is_journal(self) -> bool:
        """Return whether the children are journal entries, which are made by writing a field of their parent."""
        return self.table.name == JOURNAL_TABLE


def build_table(name: str, lineage: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Build a table from its rows of `sys_dictionary`; the nearest table's definition of a column holds."""
    columns: dict[str, Column] = {}
    for row in sorted(rows, key=lambda row: lineage.index(row["name"]), reverse=True):
        length = str(row.get("max_length") or "")
        columns[row["element"]] = Column(
            name=row["element"],
            type=row.get("internal_type") or "string",
            table=row["name"],
            length=int(length) if length.isdigit() else None,
            refers_to=row.get("reference") or "",
            read_only=row.get("read_only") == "true",
            has_choices=row.get("choice") in LIST_CHOICES,
        )
    return Table(name, lineage, columns)


def build_fields(table: Table, choices: Iterable[Mapping[str, Any]]) -> dict[str, FieldType]:
    """Build the canonical description from a table and its rows of `sys_choice`; the nearest table's list holds.

    Tables with journal fields get `journal`, the list of their entries, which those fields refer to.
    """
    lists: dict[str, dict[str, dict[Scalar, None]]] = {}
    for row in choices:
        if (column := table.columns.get(row["element"])) and row.get("value"):
            value = read_value(column, row["value"])
            if not isinstance(value, list | dict):
                lists.setdefault(row["element"], {}).setdefault(row["name"], {})[value] = None
    journal = {JOURNAL: FieldType(JOURNAL, FieldKind.LIST, writable=False, searchable=False)}
    return (journal if table.has_journal else {}) | {
        column.name: FieldType(
            name=column.name,
            kind=FieldKind.CHOICE if (values := _nearest(table, lists.get(column.name, {}))) else column.kind,
            length=column.length if column.kind in (FieldKind.TEXT, FieldKind.APPEND) else None,
            choices=values,
            # System fields are the server's own, unless an instance and a flag say otherwise.
            writable=not column.read_only and not column.name.startswith("sys_"),
            searchable=column.type not in NOT_SEARCHABLE,
            refers_to=_refers_to(table, column),
        )
        for column in table.columns.values()
    }


def describe_child(child: ChildType, name: str, base: RecordType) -> RecordType:
    """Build the description of a child type from its table's."""
    if child.is_journal:
        elements = tuple(column.name for column in child.parent.columns.values() if column.appends)
        fields = {
            "id": FieldType("id", writable=False),
            "element": FieldType("element", FieldKind.CHOICE, choices=elements),
            "text": FieldType("text"),
            "author": FieldType("author", writable=False),
            "created_at": FieldType("created_at", FieldKind.TIME, writable=False),
        }
        return RecordType(name, "entry", fields, only_added=True)
    link = dataclasses.replace(
        base.fields[child.column], writable=False
    )  # the parent, which is not the recipe's to say
    own = {"id": FieldType("id", writable=False), child.column: link}
    return RecordType(name, base.noun, {**base.fields, **own})


def find_reference(parent: Table, table: Table) -> str:
    """Return the column of a table that refers to its parent's record: to its own table, else to one it extends.

    Raises RejectedError when there is none, ConfigError naming them when there are several.
    """
    for kinds in ({parent.name}, set(parent.lineage)):
        found = sorted(column.name for column in table.columns.values() if column.refers_to in kinds)
        if len(found) > 1:
            text = (
                f"{table.name} refers to {parent.name} by {' and '.join(found)}: it cannot be worked as its child type."
            )
            raise ConfigError(f"{text} Make it a recipe of its own, with the one that is meant among its `fields`.")
        if found:
            return found[0]
    raise RejectedError(
        f"{table.name} has no field that refers to {parent.name}: it is no child type of it.",
        code="unknown_record_type",
    )


def read_value(column: Column, text: str) -> Value:
    """Return a field's text as a canonical value; text that is not of its column's type stays text."""
    if text == "":
        return None
    try:
        match column.kind:
            case FieldKind.BOOLEAN:
                return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
            case FieldKind.NUMBER:
                return _read_number(text)
            case FieldKind.TIME:
                return read_time(text)
            case FieldKind.LIST:
                return [part.strip() for part in text.split(",") if part.strip()]
    except (KeyError, ValueError):
        pass
    return text


def flatten(value: object) -> str | None:
    """Return a field's raw text, also where an instance adds a link although none was asked for; None: not shown."""
    if isinstance(value, Mapping):
        value = value.get("value")
    return None if value is None else str(value)


def read_time(text: str) -> datetime:
    """Return a stored time or date as aware UTC. Raises ValueError."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def write_value(column: Column, value: Value) -> str:
    """Return a canonical value as ServiceNow stores it. Raises MappingError for a form that no column takes."""
    match value:
        case None:
            return ""
        case datetime():
            text = format_time(value)
            return text[:10] if column.type in DATE_TYPES else text
        case date() | dict():
            raise MappingError(
                f"A value of this form cannot be written to {column.name} in ServiceNow.", code="unwritable_value"
            )
        case list():
            return ",".join(write_value(column, part) for part in value)
    return as_text(value)


def _read_number(text: str) -> int | float:
    plain = text.replace(",", "")
    return int(plain) if plain.lstrip("-").isdigit() else float(plain)


def _refers_to(table: Table, column: Column) -> tuple[str, ...]:
    if column.appends and table.has_journal:
        return (JOURNAL,)
    return (column.refers_to,) if column.refers_to else ()


def _nearest(table: Table, lists: Mapping[str, Mapping[Scalar, None]]) -> tuple[Scalar, ...]:
    return next((tuple(lists[name]) for name in table.lineage if name in lists), ())
