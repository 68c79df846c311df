"""The rows of the Dynamics 365 simulator and the rules for writing them: types, lengths, states, lookups, versions, deletions.

All writes, by the Web API or by a person, go through `create`, `update`, `resolve`, `merge` and `delete`, which tell `changed` about each row.
"""

import contextlib
import dataclasses
import random
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from sandbox.dynamics365_query import Ref, Row, order_value, read_moment
from sandbox.dynamics365_tables import CHOICES, Column, Navigation, Table, build_tables
from sandbox.simulator import Clock

GUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
FIRST_VERSION = 7_310_000
BUSINESS_UNIT = Ref("businessunit", "44444444-0000-0000-0000-0000000000b1")
CURRENCY = Ref("transactioncurrency", "cccccccc-0000-0000-0000-0000000000e0")
ORGANIZATION_ID = "88888888-0000-0000-0000-000000000001"
TICKET_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"

Changed = Callable[[str, str, str, list[str], Row | None], None]


class ApiError(Exception):
    """A refusal in the words of the Web API."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


def not_found(table: Table, row_id: str) -> ApiError:
    """Return the refusal for a row that does not exist."""
    return ApiError(404, "0x80040217", f"{table.name} With Id = {row_id} Does Not Exist")


def bad_payload(table: Table, reason: str) -> ApiError:
    """Return the refusal for a body that does not fit its table."""
    return ApiError(
        400, "0x80048d19", f"Error identified in Payload provided by the user for Entity :'{table.set_name}': {reason}"
    )


@dataclasses.dataclass(frozen=True)
class Actor:
    """Who writes, and how; kept while a write is under way so that event listeners can tell."""

    user_id: str
    tag: str = ""  # ?tag= of the request
    correlation_id: str = ""
    by_person: bool = False


class Rows:
    """All rows by table and id. A row is never changed in place: a write replaces it, so a reader keeps what it has."""

    def __init__(self, clock: Clock, changed: Changed, person_id: str) -> None:
        self.clock = clock
        self.changed = changed
        self.tables = build_tables()
        self.by_set = {table.set_name: table for table in self.tables.values()}
        self.data: dict[str, dict[str, Row]] = {name: {} for name in self.tables}
        self.version = FIRST_VERSION
        self.deleted: list[tuple[int, str, str]] = []  # version, table, id
        self.person = Actor(person_id, by_person=True)
        self.actor = self.person
        self._tickets = 1000
        self._random = random.Random("tickets")
        self._undo: list[Callable[[], None]] | None = None
        self._events: list[tuple[Actor, tuple[str, str, str, list[str], Row | None]]] = []

    # -- reading

    def find(self, table: str, row_id: str) -> Row | None:
        """Return a row or None."""
        rows = self.data.get(table)
        return rows.get(row_id) if rows is not None else None

    def related(self, navigation: Navigation, row_id: str) -> list[Row]:
        """Return the rows that point to a row through the navigation's column."""
        return [row for row in self.all(navigation.target) if (ref := row.get(navigation.column)) and ref.id == row_id]

    def all(self, table: str) -> list[Row]:
        """Return all rows of a table, oldest first."""
        return list(self.data[table].values())

    def label_of(self, ref: Ref) -> str | None:
        """Return the primary name of the row that a lookup holds."""
        row = self.find(ref.table, ref.id)
        return row.get(self.tables[ref.table].label) if row else None

    def order_value(self, column: Column, row: Row) -> tuple[bool, Any]:
        """Return a comparable form of a row's column; a lookup is ordered by the name of the row that it holds."""
        value = row.get(column.name)
        if not isinstance(value, Ref):
            return order_value(column, value)
        label = self.label_of(value) if value.table in self.tables else None
        return (label is not None, (label or "").casefold())

    # -- transactions and actors

    @contextlib.contextmanager
    def acting(self, actor: Actor) -> Iterator[None]:
        """Write as somebody for a while."""
        before, self.actor = self.actor, actor
        try:
            yield
        finally:
            self.actor = before

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Take all writes back, and tell nobody, if the block raises; one inside another is part of it."""
        if self._undo is not None:
            yield
            return
        self._undo, self._events = [], []
        try:
            yield
        except BaseException:
            for step in reversed(self._undo):
                step()
            self._events = []
            raise
        finally:
            self._undo = None
            events, self._events = self._events, []
        for actor, event in events:
            with self.acting(actor):
                self.changed(*event)

    def _put(self, table: str, row_id: str, row: Row) -> None:
        rows = self.data[table]
        if self._undo is not None:
            before = rows.get(row_id)
            self._undo.append(
                (lambda: rows.pop(row_id)) if before is None else (lambda: rows.__setitem__(row_id, before))
            )
        self.version += 1
        rows[row_id] = {**row, "versionnumber": self.version}

    def _tell(self, *event: Any) -> None:
        if self._undo is not None:
            self._events.append((self.actor, event))
        else:
            self.changed(*event)

    # -- writing: `values` are canonical (Ref, datetime, int …) under logical names

    def create(self, table: Table, values: Row, row_id: str | None = None) -> str:
        """Insert a row with its defaults and return its id."""
        row_id = (values.get(table.key) or row_id or str(uuid.uuid4())).lower()
        if row_id in self.data[table.name]:
            raise ApiError(412, "0x80040237", "A record with matching key values already exists.")
        now = self.clock.now_s()
        row: Row = dict.fromkeys(table.columns)
        row.update(self._defaults(table, now))
        row.update(values)
        row[table.key] = row_id
        row.update(self._dependents(table, row, set(values)))
        self._put(table.name, row_id, row)
        self._tell(table.name, row_id, "Create", [name for name, value in row.items() if value is not None], None)
        return row_id

    def update(self, table: Table, row_id: str, values: Row, message: str = "Update") -> None:
        """Change columns of a row; equal values count as changed too."""
        before = self.find(table.name, row_id)
        if before is None:
            raise not_found(table, row_id)
        row = {**before, **values}
        dependents = self._dependents(table, row, set(values))
        stamps = {"modifiedon": self.clock.now_s(), "modifiedby": Ref("systemuser", self.actor.user_id)}
        stamps = {name: value for name, value in stamps.items() if name in table.columns and name not in values}
        row.update(dependents | stamps)
        self._put(table.name, row_id, row)
        changed = list(dict.fromkeys([*values, *dependents, *(["modifiedon", "modifiedby"] if stamps else [])]))
        self._tell(table.name, row_id, message, changed, before)

    def delete(self, table: Table, row_id: str) -> None:
        """Remove a row; cases and notes go with their parent, other lookups to it become empty."""
        before = self.find(table.name, row_id)
        if before is None:
            raise not_found(table, row_id)
        for other in self.tables.values():
            for column in other.columns.values():
                if not column.is_lookup or table.name not in column.targets or column.name.startswith("owning"):
                    continue
                for row in self.related(Navigation("", other.name, column.name), row_id):
                    if (other.name, column.name) in {
                        ("incident", "customerid"),
                        ("annotation", "objectid"),
                        ("incidentresolution", "incidentid"),
                    }:
                        self.delete(other, row[other.key])
                    elif column.update and column.kind != "Owner":
                        self.update(other, row[other.key], {column.name: None})
        rows = self.data[table.name]
        if self._undo is not None:
            self._undo.append(lambda: rows.__setitem__(row_id, before))
            self._undo.append(lambda: self.deleted.pop() and None)
        self.version += 1
        del rows[row_id]
        self.deleted.append((self.version, table.name, row_id))
        self._tell(table.name, row_id, "Delete", [], before)

    def resolve(
        self,
        case_id: str,
        status: int,
        subject: str | None,
        description: str | None = None,
        timespent: int | None = None,
    ) -> None:
        """Resolve an active case and keep its resolution activity."""
        incident, resolution = self.tables["incident"], self.tables["incidentresolution"]
        case = self.find("incident", case_id)
        if case is None:
            raise not_found(incident, case_id)
        reasons = incident.status_options(1)
        status = reasons[0] if status == -1 else status
        if status not in reasons:
            raise ApiError(
                400,
                "0x80048408",
                f"{status} is not a valid status code for state code IncidentState.Resolved on incident.",
            )
        if case["statecode"] != 0:
            raise ApiError(400, "0x80040225", "This case has already been resolved or canceled. Reactivate it first.")
        self.create(
            resolution,
            {
                "subject": subject,
                "description": description,
                "timespent": timespent,
                "incidentid": Ref("incident", case_id),
            },
        )
        self.update(incident, case_id, {"statecode": 1, "statuscode": status}, "Close")

    def merge(self, master_id: str, subordinate_id: str) -> None:
        """Merge a case into another: it becomes cancelled with the reason Merged and names its master."""
        if master_id not in self.data["incident"]:
            raise not_found(self.tables["incident"], master_id)
        values = {"statecode": 2, "statuscode": 2000, "masterid": Ref("incident", master_id), "merged": True}
        self.update(self.tables["incident"], subordinate_id, values, "Merge")

    def _defaults(self, table: Table, now: datetime) -> Row:
        user = Ref("systemuser", self.actor.user_id)
        row: Row = {"createdon": now, "modifiedon": now, "createdby": user, "modifiedby": user}
        if "ownerid" in table.columns and table.columns["ownerid"].is_lookup:
            row["ownerid"] = user
        if "statecode" in table.columns:
            row |= {"statecode": 0, "statuscode": table.status_options(0)[0]}
        match table.name:
            case "incident":
                row |= {"ticketnumber": self._next_ticket(), "prioritycode": 2, "severitycode": 1, "merged": False}
            case "systemuser":
                row |= {"isdisabled": False, "businessunitid": BUSINESS_UNIT}
            case "team":
                row |= {"isdefault": False, "teamtype": 0, "businessunitid": BUSINESS_UNIT}
            case "annotation":
                row["isdocument"] = False
        return {name: value for name, value in row.items() if name in table.columns}

    @staticmethod
    def _dependents(table: Table, row: Row, given: set[str]) -> Row:
        """Return computed columns that follow from the given ones."""
        values: Row = {}
        if "fullname" in table.columns and given & {"firstname", "lastname"}:
            values["fullname"] = " ".join(part for part in (row.get("firstname"), row.get("lastname")) if part) or None
        if table.name in {"systemuser", "team"}:
            if not row.get("ownerid"):
                values["ownerid"] = row[table.key]
        elif (
            "ownerid" in table.columns
            and row.get("owninguser") != (owner := row["ownerid"])
            and row.get("owningteam") != owner
        ):
            values["owninguser"] = owner if owner.table == "systemuser" else None
            values["owningteam"] = owner if owner.table == "team" else None
            values["owningbusinessunit"] = BUSINESS_UNIT
        if (
            table.name == "account"
            and "revenue" in given
            and row.get("revenue") is not None
            and not row.get("transactioncurrencyid")
        ):
            values["transactioncurrencyid"] = CURRENCY
        if table.name == "annotation" and "documentbody" in given:
            values["isdocument"] = row.get("documentbody") is not None
        if "statecode" in given and "statuscode" not in given:
            values["statuscode"] = next(iter(table.status_options(row["statecode"])), None)
        return values

    def _next_ticket(self) -> str:
        self._tickets += 1
        return f"CAS-{self._tickets:05d}-{''.join(self._random.choices(TICKET_LETTERS, k=6))}"

    # -- reading what callers send

    def check_write(self, table: Table, values: Row, current: Row | None) -> None:
        """Refuse values that the platform's own rules do not allow; `current` is None on create."""
        for name, value in values.items():
            column = table.columns[name]
            allowed = column.create if current is None else column.update
            if not allowed and not (name == table.key and current is not None and value == current[name]):
                when = "create" if current is None else "update"
                raise ApiError(400, "0x80048d19", f"The column '{name}' of '{table.name}' is not valid for {when}.")
            check_length(table, column, value)
            check_option(table, column, value)
            if value is None and column.required == "SystemRequired":
                raise ApiError(400, "0x80040203", f"The column '{name}' of '{table.name}' cannot be empty.")
        if current is None and table.name == "incident" and not values.get("customerid"):
            raise ApiError(400, "0x80040203", "You should specify a parent contact or account.")
        if "statecode" in table.columns:
            check_state(table, values, current)

    def read_person_values(self, table: Table, columns: dict[str, Any]) -> Row:
        """Return canonical values of what a test or a form gives: logical, property or navigation names; any option value.

        Raises ValueError for a name or value that the table cannot hold.
        """
        values: Row = {}
        for name, value in columns.items():
            navigation = table.navigations.get(name)
            column = table.columns.get(
                navigation.column if navigation and not navigation.many else name
            ) or table.property(name)
            if column is None:
                raise ValueError(f"table {table.name} has no column {name}")
            if column.is_lookup:
                target = navigation.target if navigation and navigation.target != "principal" else None
                values[column.name] = self._read_reference(column, value, target)
            else:
                try:
                    values[column.name] = convert(table, column, value, strict=False)
                except ApiError as exc:
                    raise ValueError(exc.message) from exc
                check_length(table, column, values[column.name])
        return values

    def _read_reference(self, column: Column, value: Any, target: str | None) -> Ref | None:
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            name, row_id = value
            return Ref(name, row_id.lower())
        targets = (target,) if target else column.targets
        if len(targets) == 1:
            return Ref(targets[0], value.lower())
        found = next((name for name in targets if self.find(name, value.lower())), None)
        if found is None:
            raise ValueError(f"{column.name}: none of {', '.join(targets)} has the id {value}")
        return Ref(found, value.lower())


def check_length(table: Table, column: Column, value: Any) -> None:
    """Refuse a text that is longer than its column."""
    if isinstance(value, str) and column.max_length is not None and len(value) > column.max_length:
        raise ApiError(
            400,
            "0x80044331",
            f"A validation error occurred. The length of the '{column.name}' attribute of the '{table.name}' entity exceeded "
            f"the maximum allowed length of '{column.max_length}'.",
        )


def check_option(table: Table, column: Column, value: Any) -> None:
    """Refuse a value that is not among the options of a choice column, and numbers out of range."""
    if value is None:
        return
    if column.kind in CHOICES and value not in (accepted := [option.value for option in column.options]):
        raise ApiError(
            400,
            "0x8004431a",
            f"A validation error occurred. The value {value} of '{column.name}' on record of type '{table.name}' is outside the "
            f"valid range. Accepted Values: {','.join(map(str, accepted))}",
        )
    if column.kind == "Integer" and not 0 <= value <= 1_000_000_000:
        raise ApiError(
            400,
            "0x80044330",
            f"A validation error occurred. The value of '{column.name}' on record of type '{table.name}' is outside the valid range.",
        )


def check_state(table: Table, values: Row, current: Row | None) -> None:
    """Refuse state changes that the platform leaves to actions, status reasons of another state and edits of closed cases."""
    now = current["statecode"] if current else 0
    state = values.get("statecode", now)
    if table.name == "incident" and current is not None:
        if "statecode" in values and state == 1:
            raise ApiError(
                400, "0x80048408", "A case cannot be resolved by an update of its state: use the CloseIncident action."
            )
        if now != 0 and (state != 0 or set(values) - {"statecode", "statuscode"}):
            raise ApiError(
                400, "0x80040225", "This case is resolved or canceled and read-only. Reactivate it before changing it."
            )
    status = values.get("statuscode")
    if "statuscode" in values and status not in table.status_options(state):
        raise ApiError(
            400, "0x80048408", f"{status} is not a valid status code for state code {state} on {table.name}."
        )


def convert(table: Table, column: Column, value: Any, strict: bool = True) -> Any:
    """Return the stored form of a JSON value; strict means as the Web API reads it."""
    if value is None:
        return None
    match column.edm, value:
        case "String", str():
            return value
        case "Boolean", bool():
            return value
        case "Int32" | "Int64", int() if not isinstance(value, bool):
            return value
        case "Decimal" | "Double", int() | float() if not isinstance(value, bool):
            return float(value)
        case "Guid", str() if GUID.fullmatch(value):
            return value.lower()
        case "DateTimeOffset", str():
            with contextlib.suppress(ValueError):
                return read_moment(value).replace(microsecond=0)
        case "DateTimeOffset", datetime() if not strict:
            return value.astimezone(UTC).replace(microsecond=0)
    raise bad_payload(
        table, f"Cannot convert the literal '{value}' of '{column.name}' to the expected type 'Edm.{column.edm}'."
    )
