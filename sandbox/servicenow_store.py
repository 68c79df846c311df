"""The simulated instance's records, with the business rules, data policies and indexes that every write passes.

Writes by people (tests, the page) and by API users go the same way; rights are the API's business, not the store's.
"""

import bisect
import dataclasses
import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from sandbox.servicenow_dictionary import (
    CHANGE_STATES,
    SETTABLE_SYSTEM_COLUMNS,
    TABLES,
    Column,
    blank_row,
    columns_of,
    family,
    lineage,
    unique_columns,
)
from sandbox.servicenow_query import Row
from sandbox.simulator import Clock

INDEXED = {
    "assigned_to", "assignment_group", "caller_id", "contains", "correlation_id", "element_id", "email", "group", "incident",
    "manager", "name", "number", "parent", "role", "short_description", "table_sys_id", "user", "user_name",
}  # fmt: skip
PRIORITY = {  # (impact, urgency)
    ("1", "1"): "1", ("1", "2"): "2", ("1", "3"): "3",
    ("2", "1"): "2", ("2", "2"): "3", ("2", "3"): "4",
    ("3", "1"): "3", ("3", "2"): "4", ("3", "3"): "5",
}  # fmt: skip
SYS_ID = re.compile(r"[0-9a-f]{32}$")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?$")
VARCHAR_LIMIT = 255  # longer columns are stored as text without a limit
UTC_ZONE = ZoneInfo("UTC")


class RefusedError(Exception):
    """A write that the instance refuses, with the status and the two texts of the vendor's error body."""

    def __init__(self, status: int, message: str, detail: str | None) -> None:
        super().__init__(f"{status} {message}: {detail}")
        self.status = status
        self.message = message
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Change:
    """Something that happened to a record."""

    table: str
    row: Row
    operation: str  # insert, update or delete
    by: str
    notes: tuple[tuple[str, str], ...] = ()  # journal column and text of each entry written


class Rules:
    """What differs between instances in the way that records behave; each may be changed at any time."""

    own_number: bool = False  # a number that the caller sends is replaced by ours
    cut_long_values: bool = False  # text over its column's length is cut (columns up to 255), else kept whole
    short_description_mandatory: bool = False  # data policy on incidents
    close_needs_code: bool = True  # data policy: states 6 and 7 need close_code and close_notes
    awaiting_caller_needs_comment: bool = True  # data policy: on hold for the caller needs a comment in the same write
    block_state_skips: bool = False  # a business rule aborts New -> Closed
    group_change_clears_assignee: bool = True
    resolve_names: bool = False  # a name sent for a reference in value mode finds its record, else it is dropped


class Records:
    """All tables of an instance; `tables[name][sys_id]` is a row of strings, to be read but changed only through methods."""

    def __init__(self, clock: Clock, rules: Rules, instance: str = "instance") -> None:
        self.clock = clock
        self.rules = rules
        self.lock = threading.RLock()  # tests write from their own thread
        self.tables: dict[str, dict[str, Row]] = {name: {} for name in TABLES}
        self.on_change: list[Callable[[Change], None]] = []
        self._instance = instance
        self._made: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._index: dict[str, dict[str, dict[str, dict[str, Row]]]] = {
            name: {field: {} for field in INDEXED & columns_of(name).keys()} for name in TABLES
        }
        self._order: dict[str, list[str]] = {name: [] for name in TABLES}
        self._describe_itself()

    # -- reading ------------------------------------------------------------------------------------------------------

    def rows_of(self, table: str) -> list[Row]:
        """Return the rows of a table and of the tables that extend it, by sys_id."""
        names = [name for name in family(table) if self.tables[name]]
        if len(names) == 1:
            rows = self.tables[names[0]]
            return [rows[sys_id] for sys_id in self._order[names[0]]]
        return sorted((row for name in names for row in self.tables[name].values()), key=lambda row: row["sys_id"])

    def find(self, table: str, sys_id: str, by_name: bool = False) -> Row | None:
        """Return one row of a table or of one that extends it."""
        if by_name:
            return next(iter(self.lookup(table, "name", [sys_id.lower()]) or ()), None)
        for name in family(table):
            row = self.tables[name].get(sys_id)
            if row is not None:
                return row
        return None

    def class_of(self, table: str, row: Row) -> str:
        """Return the table that a row really stands in."""
        return next((name for name in family(table) if row["sys_id"] in self.tables[name]), table)

    def lookup(self, table: str, field: str, values: Iterable[str]) -> list[Row] | None:
        """Return the rows whose field is one of these lower-cased values; None when the field has no index."""
        if field == "sys_id":
            found = (self.find(table, value) for value in dict.fromkeys(values))
            return [row for row in found if row is not None]
        if field not in INDEXED:
            return None
        wanted = list(dict.fromkeys(values))
        return [
            row
            for name in family(table)
            for value in wanted
            for row in self._index[name][field].get(value, {}).values()
        ]

    def role_names(self, user_id: str) -> set[str]:
        """Return the names of a user's roles, direct and inherited."""
        roles = self.tables["sys_user_role"]
        held = self.lookup("sys_user_has_role", "user", [user_id]) or []
        return {roles[row["role"]]["name"] for row in held if row["role"] in roles}

    def display(self, table: str, row: Row) -> str:
        """Return the text that stands for a row where something refers to it."""
        name = TABLES[table].display
        column = columns_of(table)[name]
        if column.type == "reference":
            other = self.find(column.reference, row[name])
            return self.display(column.reference, other) if other else ""
        return row[name]

    def journal(self, row: Row, element: str) -> list[Row]:
        """Return a record's entries of one journal column, newest first."""
        entries = [
            entry
            for entry in self.lookup("sys_journal_field", "element_id", [row["sys_id"]]) or ()
            if entry["element"] == element
        ]
        return sorted(entries, key=lambda entry: entry["sys_created_on"])[::-1]

    # -- writing ------------------------------------------------------------------------------------------------------

    def insert_row(
        self,
        table: str,
        values: Mapping[str, str],
        by: str,
        at: datetime | None = None,
        system: bool = False,
        zone: ZoneInfo | None = None,
    ) -> Row:
        """Create a record through all rules; `system` lets sys_ columns be set, `zone` means that values are display values.

        Raises RefusedError when a rule says no.
        """
        now = _stamp(at or self.clock.now_s())
        cells, notes = self._clean(table, values, system, zone, None)
        row = blank_row(table).copy()
        row.update(cells)
        row["sys_id"] = cells.get("sys_id") or self._new_sys_id(table)
        self._fill_new(table, row, cells, by, now)
        self._apply_rules(table, None, row, cells, notes, by, now)
        self._check_unique(table, row, None)
        for name in ("sys_created", "sys_updated"):
            row[f"{name}_on"] = cells.get(f"{name}_on") or now
            row[f"{name}_by"] = cells.get(f"{name}_by") or by
        self._put(table, row)
        self._note(table, row, notes, by, now)
        self._after_insert(table, row, by)
        self._announce(Change(table, row, "insert", by, tuple(notes)))
        return row

    def update_row(
        self,
        table: str,
        row: Row,
        values: Mapping[str, str],
        by: str,
        at: datetime | None = None,
        system: bool = False,
        zone: ZoneInfo | None = None,
    ) -> bool:
        """Change a record through all rules and tell whether anything changed; see insert_row.

        Raises RefusedError when a rule says no.
        """
        now = _stamp(at or self.clock.now_s())
        cells, notes = self._clean(table, values, system, zone, row)
        cells.pop("sys_id", None)
        after = row | cells
        self._apply_rules(table, row, after, cells, notes, by, now)
        changed = [name for name, value in after.items() if value != row[name]]
        if not changed and not notes:
            return False
        self._check_unique(table, after, row)
        after["sys_updated_on"] = cells.get("sys_updated_on") or now
        after["sys_updated_by"] = cells.get("sys_updated_by") or by
        after["sys_mod_count"] = str(int(row["sys_mod_count"]) + 1)
        self._reindex(table, row, after, changed)
        row.update(after)
        self._note(table, row, notes, by, now)
        self._announce(Change(table, row, "update", by, tuple(notes)))
        return True

    def delete_row(self, table: str, row: Row, by: str) -> None:
        """Remove a record."""
        sys_id = row["sys_id"]
        for field, entries in self._index[table].items():
            entries[row[field].lower()].pop(sys_id, None)
        del self.tables[table][sys_id]
        order = self._order[table]
        del order[bisect.bisect_left(order, sys_id)]
        if table in {"sys_user_grmember", "sys_group_has_role"}:
            self._withdraw_group_roles(row["group"], row.get("user", ""), row.get("role", ""), by)
        self._announce(Change(table, row, "delete", by))

    # -- cells --------------------------------------------------------------------------------------------------------

    def _clean(
        self, table: str, values: Mapping[str, str], system: bool, zone: ZoneInfo | None, row: Row | None
    ) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """Split what was sent into cells as they are stored and journal entries; what a column cannot take is dropped."""
        cells: dict[str, str] = {}
        notes: list[tuple[str, str]] = []
        columns = columns_of(table)
        for name, value in values.items():
            column = columns.get(name)
            if column is None or (column.read_only and not (system and name in SETTABLE_SYSTEM_COLUMNS)):
                continue
            if column.is_journal:
                if value:
                    notes.append((name, value))
                continue
            if value == "" and column.choices:
                continue  # a choice cannot be cleared
            cell = self._cell(column, value, zone)
            if cell is not None:
                cells[name] = cell
        return cells, notes

    def _cell(self, column: Column, value: str, zone: ZoneInfo | None) -> str | None:
        if zone is not None and column.choices:
            value = next((known for known, label in column.choices.items() if label == value), value)
        match column.type:
            case "boolean":
                return "true" if value.lower() in {"true", "1"} else "false"
            case "integer":
                return value if value == "" or re.fullmatch(r"-?\d{1,10}", value) else None
            case "glide_date_time":
                return _moment_cell(value, zone or UTC_ZONE)
            case "glide_date":
                return value if value == "" else (_moment_cell(value[:10], UTC_ZONE) or "")[:10] or None
            case "GUID":
                return value if SYS_ID.match(value) else None
            case "reference":
                return self._reference_cell(column, value, zone is not None)
        if self.rules.cut_long_values and column.length <= VARCHAR_LIMIT:
            return value[: column.length]
        return value

    def _reference_cell(self, column: Column, value: str, by_display: bool) -> str | None:
        if value == "" or column.by_name or (SYS_ID.match(value) and not by_display):
            return value
        if not by_display and not self.rules.resolve_names:
            return None
        name = TABLES[column.reference].display
        return next((row["sys_id"] for row in self.lookup(column.reference, name, [value.lower()]) or ()), None)

    # -- rules --------------------------------------------------------------------------------------------------------

    def _fill_new(self, table: str, row: Row, cells: Mapping[str, str], by: str, now: str) -> None:
        if "sys_class_name" in row:
            row["sys_class_name"] = table
        if "task" in lineage(table):
            row["opened_at"] = row["opened_at"] or now
            opener = next(iter(self.lookup("sys_user", "user_name", [by.lower()]) or ()), None)
            row["opened_by"] = row["opened_by"] or (opener["sys_id"] if opener else "")
            if self.rules.own_number or not row["number"]:
                self._numbers[table] = self._numbers.get(table, 10_000) + 1
                row["number"] = f"{TABLES[table].prefix}{self._numbers[table]:07d}"

    def _apply_rules(
        self,
        table: str,
        before: Row | None,
        after: Row,
        cells: Mapping[str, str],
        notes: list[tuple[str, str]],
        by: str,
        now: str,
    ) -> None:
        if table == "sys_user":
            after["name"] = " ".join(filter(None, (after["first_name"], after["last_name"])))
        if "task" not in lineage(table):
            return
        if "impact" in after:
            after["priority"] = PRIORITY.get((after["impact"], after["urgency"]), after["priority"])
        if (
            before is not None
            and self.rules.group_change_clears_assignee
            and _changes(before, after, "assignment_group")
        ):
            after["assigned_to"] = "" if not _changes(before, after, "assigned_to") else after["assigned_to"]
        if table == "incident":
            self._incident_rules(before, after, cells, notes, by, now)
        elif _changes(before, after, "state"):
            done = {"3", "4"} if TABLES[table].choices.get("state") is CHANGE_STATES else {"3", "4", "7"}
            self._close(after, after["state"] in done, by, now)

    def _incident_rules(
        self, before: Row | None, after: Row, cells: Mapping[str, str], notes: list[tuple[str, str]], by: str, now: str
    ) -> None:
        if _changes(before, after, "incident_state") and "state" not in cells:
            after["state"] = after["incident_state"]
        after["incident_state"] = after["state"]
        if self.rules.short_description_mandatory and not after["short_description"]:
            raise _data_policy("Short description")
        if not _changes(before, after, "state") and not (before is None and after["state"] in {"6", "7"}):
            if _changes(before, after, "hold_reason"):
                self._check_hold(after, notes)
            return
        old, new = before["state"] if before else "", after["state"]
        if self.rules.block_state_skips and (old, new) == ("1", "7"):
            raise RefusedError(
                403,
                "Operation Failed",
                "Operation against file 'incident' was aborted by Business Rule 'Incident state order'",
            )
        if self.rules.close_needs_code and new in {"6", "7"}:
            missing = [name for name in ("close_code", "close_notes") if not after[name]]
            if missing:
                raise _data_policy(", ".join(columns_of("incident")[name].label for name in missing))
        self._check_hold(after, notes)
        if new in {"6", "7"} and not after["resolved_at"]:
            after["resolved_at"], after["resolved_by"] = now, after["resolved_by"] or self._user_id(by)
        elif new not in {"6", "7"} and old in {"6", "7"}:
            after["resolved_at"], after["resolved_by"] = "", ""
            after["reopen_count"] = str(int(after["reopen_count"] or 0) + 1)
        self._close(after, new in {"7", "8"}, by, now)

    def _check_hold(self, after: Row, notes: list[tuple[str, str]]) -> None:
        on_hold = (after["state"], after["hold_reason"]) == ("3", "1")
        if on_hold and self.rules.awaiting_caller_needs_comment and not any(name == "comments" for name, _ in notes):
            raise _data_policy("Additional comments")

    def _close(self, after: Row, closed: bool, by: str, now: str) -> None:
        after["active"] = "false" if closed else "true"
        after["closed_at"] = (after["closed_at"] or now) if closed else ""
        after["closed_by"] = (after["closed_by"] or self._user_id(by)) if closed else ""

    def _check_unique(self, table: str, row: Row, own: Row | None) -> None:
        for name in unique_columns(table):
            if row[name] and any(other is not own for other in self.lookup(table, name, [row[name].lower()]) or ()):
                raise RefusedError(
                    403,
                    "Operation Failed",
                    f"Unique Key violation detected by database (Duplicate entry '{row[name]}' for key '{name}')",
                )

    def _after_insert(self, table: str, row: Row, by: str) -> None:
        match table:
            case "sys_user_grmember":
                for held in self.lookup("sys_group_has_role", "group", [row["group"]]) or ():
                    self._inherit(row["user"], held["role"], by, granted_by=row["group"])
            case "sys_group_has_role":
                for member in self.lookup("sys_user_grmember", "group", [row["group"]]) or ():
                    self._inherit(member["user"], row["role"], by, granted_by=row["group"])
            case "sys_user_has_role":
                for inner in self.lookup("sys_user_role_contains", "role", [row["role"]]) or ():
                    self._inherit(row["user"], inner["contains"], by, included_in_role=row["role"])

    def _inherit(self, user_id: str, role_id: str, by: str, **path: str) -> None:
        self.insert_row("sys_user_has_role", {"user": user_id, "role": role_id, "inherited": "true", **path}, by)

    def _withdraw_group_roles(self, group_id: str, user_id: str, role_id: str, by: str) -> None:
        granted = [row for row in self.rows_of("sys_user_has_role") if row["granted_by"] == group_id]
        for row in granted:
            if user_id in {"", row["user"]} and role_id in {"", row["role"]}:
                self.delete_row("sys_user_has_role", row, by)

    def _note(self, table: str, row: Row, notes: Iterable[tuple[str, str]], by: str, now: str) -> None:
        for element, value in notes:
            entry = blank_row("sys_journal_field") | {
                "sys_id": self._new_sys_id("sys_journal_field"),
                "name": table,
                "element": element,
                "element_id": row["sys_id"],
                "value": value,
                "sys_created_on": now,
                "sys_created_by": by,
            }
            self._put("sys_journal_field", entry)

    # -- keeping ------------------------------------------------------------------------------------------------------

    def _put(self, table: str, row: Row) -> None:
        self.tables[table][row["sys_id"]] = row
        bisect.insort(self._order[table], row["sys_id"])
        for field, entries in self._index[table].items():
            entries.setdefault(row[field].lower(), {})[row["sys_id"]] = row

    def _reindex(self, table: str, row: Row, after: Row, changed: Iterable[str]) -> None:
        for field in self._index[table].keys() & set(changed):
            entries = self._index[table][field]
            entries[row[field].lower()].pop(row["sys_id"], None)
            entries.setdefault(after[field].lower(), {})[row["sys_id"]] = row

    def _new_sys_id(self, table: str) -> str:
        self._made[table] = self._made.get(table, 0) + 1
        seed = f"{self._instance}:{table}:{self._made[table]}"
        return hashlib.md5(seed.encode(), usedforsecurity=False).hexdigest()

    def _user_id(self, user_name: str) -> str:
        found = self.lookup("sys_user", "user_name", [user_name.lower()]) or []
        return found[0]["sys_id"] if found else ""

    def _announce(self, change: Change) -> None:
        for listener in self.on_change:
            listener(change)

    def _describe_itself(self) -> None:
        """Fill the tables that describe tables: sys_db_object, sys_dictionary, sys_choice, sys_glide_object."""
        stamps = {"sys_created_on": "2020-01-01 00:00:00", "sys_created_by": "system"}
        stamps |= {"sys_updated_on": stamps["sys_created_on"], "sys_updated_by": "system"}

        def add(table: str, **cells: str) -> str:
            row = blank_row(table) | stamps | cells | {"sys_id": self._new_sys_id(table)}
            if "sys_class_name" in row:
                row["sys_class_name"] = table
            self._put(table, row)
            return row["sys_id"]

        ids: dict[str, str] = {}
        kinds = {column.type for name in TABLES for column in columns_of(name).values()} | {"collection"}
        for kind in sorted(kinds):
            add("sys_glide_object", name=kind, label=kind.replace("_", " ").capitalize())
        for table in TABLES.values():  # parents stand before the tables that extend them
            extended = "true" if len(family(table.name)) > 1 else "false"
            parent = ids.get(table.parent, "")
            ids[table.name] = add(
                "sys_db_object", name=table.name, label=table.label, super_class=parent, is_extendable=extended
            )
            add("sys_dictionary", name=table.name, internal_type="collection", column_label=table.label)
            for column in columns_of(table.name).values():
                if column.owner == table.name:
                    add("sys_dictionary", **_dictionary_cells(table.name, column))
                own = column.owner == table.name or column.name in table.choices
                for sequence, (value, label) in enumerate(column.choices.items() if own else ()):
                    add(
                        "sys_choice",
                        name=table.name,
                        element=column.name,
                        value=value,
                        label=label,
                        sequence=str(sequence),
                    )


def _dictionary_cells(table: str, column: Column) -> dict[str, str]:
    return {
        "name": table,
        "element": column.name,
        "column_label": column.label,
        "internal_type": column.type,
        "max_length": str(column.length),
        "reference": column.reference,
        "mandatory": _flag(column.mandatory),
        "read_only": _flag(column.read_only),
        "unique": _flag(column.unique),
        "display": _flag(TABLES[table].display == column.name),
        "choice": "3" if column.choices else "0",
        "default_value": column.default,
    }


def text_of(value: Any) -> str | None:
    """Return a JSON value as the string that the instance stores; None for what it ignores."""
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return _flag(value)
        case int() | float():
            return str(value)
        case {"value": inner} | {"display_value": inner}:
            return text_of(inner)
    return None


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _moment_cell(value: str, zone: ZoneInfo) -> str | None:
    if value == "":
        return ""
    if not _MOMENT.match(value):
        return None
    try:
        return _stamp(datetime.fromisoformat(value).replace(tzinfo=zone))
    except ValueError:
        return None


def _changes(before: Row | None, after: Row, name: str) -> bool:
    return (before[name] if before is not None else blank_row("incident").get(name, "")) != after[name]


def _data_policy(labels: str) -> RefusedError:
    return RefusedError(403, "Operation Failed", f"Data Policy Exception: The following fields are mandatory: {labels}")
