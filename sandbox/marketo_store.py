"""The leads and companies of the simulated Marketo instance, and what syncing them does record by record.

Several leads may have one email. Every lead belongs to a company from its first day, even if nobody named one; it shows
that company's values as its own. All methods are atomic; what the vendor does between look-up and insert is the caller's.
"""

import dataclasses
import itertools
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

from sandbox.marketo_fields import COMPANY, LEAD, Field, UnfitError, format_time, standard_fields
from sandbox.simulator import Clock

Record = dict[str, Any]
INDEXED = {LEAD: ("email",), COMPANY: ("externalCompanyId", "company")}
FILTER_ALIASES = {"idField": "id", "dedupeFields": "externalCompanyId"}  # companies only
CREATES = frozenset({"createOrUpdate", "createOnly", "createDuplicate"})


class CallError(Exception):
    """A call that fails as a whole, with the vendor's code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code, self.message = code, message


class Rules(Protocol):
    """What differs between instances in the way that records behave."""

    company_fields_on_lead: bool
    unknown_company_skips: bool
    partitions: list[str]
    partition_required: bool


@dataclasses.dataclass
class LeadCall:
    """One call of Sync Leads."""

    action: str
    lookup_field: str
    partition: str | None


@dataclasses.dataclass
class Planned:
    """What a look-up decided about one input record."""

    values: Record = dataclasses.field(default_factory=dict)
    target: Record | None = None  # None: to be created
    skip: UnfitError | None = None


class Records:
    """All records of an instance; `tables[name][id]` are to be read, and changed only through methods."""

    def __init__(self, clock: Clock, rules: Rules) -> None:
        self._clock, self._rules = clock, rules
        self.lock = threading.RLock()  # tests write from their own thread
        self.fields = standard_fields()
        self.tables: dict[str, dict[int, Record]] = {LEAD: {}, COMPANY: {}}
        self._index: dict[tuple[str, str], dict[str, dict[int, Record]]] = {
            (table, name): defaultdict(dict) for table, names in INDEXED.items() for name in names
        }
        self._ids = {LEAD: itertools.count(1001), COMPANY: itertools.count(501)}

    # -- reading ------------------------------------------------------------------------------------------------------

    def find(self, table: str, name: str, values: Iterable[Any]) -> list[Record]:
        """Return the records whose field holds one of these values, by id; text is compared without case."""
        wanted = {_folded(value) for value in values}
        if name == "id":
            ids = (int(value) for value in wanted if value.isdigit())
            found = [self.tables[table][number] for number in ids if number in self.tables[table]]
        elif (table, name) in self._index:
            index = self._index[table, name]
            found = [record for value in wanted for record in index.get(value, {}).values()]
        else:
            shown = (record for record in self.tables[table].values() if self.show(table, record).get(name) is not None)
            found = [record for record in shown if _folded(self.show(table, record)[name]) in wanted]
        return sorted(found, key=lambda record: record["id"])

    def show(self, table: str, record: Record) -> Record:
        """Return a record as answers show it: a lead with its company's values."""
        if table == COMPANY:
            return record
        company = self.tables[COMPANY][record["contactCompany"]]
        shared = {name: company.get(name) for name, field in self.fields[LEAD].items() if field.of_company}
        return record | shared | {"externalCompanyId": company.get("externalCompanyId")}

    def companies(self) -> list[Record]:
        """Return the companies that somebody named, without those that merely stand behind a lead."""
        return [company for company in self.tables[COMPANY].values() if company.get("externalCompanyId")]

    # -- leads --------------------------------------------------------------------------------------------------------

    def plan_lead(self, call: LeadCall, raw: Any) -> Planned:
        """Check one input record and look up what it would change."""
        try:
            values = self._read(LEAD, raw, allowed={"id"} if call.action == "updateOnly" else set())
            self._check_partition(call)
            self._check_company(values)
            return self._look_up_lead(call, values, raw)
        except UnfitError as skip:
            return Planned(skip=skip)

    def _look_up_lead(self, call: LeadCall, values: Record, raw: Mapping[str, Any]) -> Planned:
        if call.action == "createDuplicate":
            return Planned(values)
        name = call.lookup_field
        if name not in raw:
            raise UnfitError("1002", f"Missing value for required parameter '{name}'")
        key = raw[name] if name == "id" else values[name]
        if key is None or str(key).strip() == "":
            raise UnfitError("1003", f"Value for lookup field '{name}' cannot be empty")
        found = self.find(LEAD, name, [key])
        if len(found) > 1:
            raise UnfitError("1007", "Multiple lead match lookup criteria")
        if found and call.action == "createOnly":
            raise UnfitError("1005", "Lead already exists")
        if not found and call.action == "updateOnly":
            raise UnfitError("1004", "Lead not found")
        if found and call.partition and self._partition_id(call.partition) != found[0]["leadPartitionId"]:
            raise UnfitError("1010", "Lead partition change is not allowed")
        return Planned(values, found[0] if found else None)

    def carry_out_lead(self, call: LeadCall, plan: Planned) -> Record:
        """Write what was planned and return the item of the answer."""
        if plan.skip is not None:
            return _skipped(plan.skip)
        if plan.target is not None and plan.target["id"] in self.tables[LEAD]:
            self._change_lead(plan.target, plan.values)
            return {"id": plan.target["id"], "status": "updated"}
        return {"id": self._add_lead(plan.values, call.partition)["id"], "status": "created"}

    def _check_partition(self, call: LeadCall) -> None:
        if call.partition is None:
            if self._rules.partition_required and call.action in CREATES:
                raise UnfitError("1009", "Lead partition name required")
        elif call.partition not in self._rules.partitions:
            raise UnfitError("1008", f"Partition '{call.partition}' access denied")

    def _check_company(self, values: Record) -> None:
        named = [name for name in values if self.fields[LEAD][name].of_company]
        if named and not self._rules.company_fields_on_lead:
            raise UnfitError("1021", "Company update not allowed")
        external = values.get("externalCompanyId")
        if external and not self.find(COMPANY, "externalCompanyId", [external]) and self._rules.unknown_company_skips:
            raise UnfitError("1013", f"Company '{external}' not found")

    def _partition_id(self, name: str) -> int:
        return self._rules.partitions.index(name) + 1

    def _add_lead(self, values: Record, partition: str | None, at: datetime | None = None) -> Record:
        behind = self._add(COMPANY, {}, at)
        number = self._partition_id(partition) if partition else 1
        lead = self._add(LEAD, {"contactCompany": behind["id"], "leadPartitionId": number}, at)
        self._change_lead(lead, values, at)
        return lead

    def _change_lead(self, lead: Record, values: Record, at: datetime | None = None) -> None:
        own = {k: v for k, v in values.items() if not self.fields[LEAD][k].of_company and k != "externalCompanyId"}
        if external := values.get("externalCompanyId"):  # null does not unlink: a lead can only be moved
            found = self.find(COMPANY, "externalCompanyId", [external])
            self._move(lead, found[0] if found else None)
        self._change(LEAD, lead, own, at)
        if shared := {name: value for name, value in values.items() if self.fields[LEAD][name].of_company}:
            self._change(COMPANY, self.tables[COMPANY][lead["contactCompany"]], shared, at)

    def _move(self, lead: Record, company: Record | None) -> None:
        before = self.tables[COMPANY][lead["contactCompany"]]
        if company is None or company is before:
            return
        lead["contactCompany"] = company["id"]
        if not before.get("externalCompanyId"):
            self._forget(COMPANY, before)

    # -- companies ----------------------------------------------------------------------------------------------------

    def sync_companies(self, action: str, by: str, inputs: list[Any]) -> list[Record]:
        """Work the records of one call of Sync Companies, in order."""
        seen: set[str] = set()
        items = []
        for seq, raw in enumerate(inputs):
            try:
                items.append({"seq": seq} | self._sync_company(action, by, raw, seen))
            except UnfitError as skip:
                items.append({"seq": seq} | _skipped(skip))
        return items

    def _sync_company(self, action: str, by: str, raw: Any, seen: set[str]) -> Record:
        values = self._read(COMPANY, raw, allowed={"id"} if by == "id" else set())
        key = raw.get(by) if by == "id" else values.get(by)
        if key is None or str(key).strip() == "":
            raise UnfitError("1002", f"Missing value for required parameter '{by}'")
        if _folded(key) in seen:
            raise UnfitError("1036", "Duplicate object found in input")
        seen.add(_folded(key))
        found = self.find(COMPANY, by, [key])
        if found and action == "createOnly":
            raise UnfitError("1017", "Object already exists")
        if not found and (action == "updateOnly" or by == "id"):
            raise UnfitError("1013", "Record not found")
        if found:
            self._change(COMPANY, found[0], values)
            return {"id": found[0]["id"], "status": "updated"}
        return {"id": self._add(COMPANY, values)["id"], "status": "created"}

    def delete_companies(self, by: str, inputs: list[Any]) -> list[Record]:
        """Work the records of one call of Delete Companies."""
        items: list[Record] = []
        for seq, raw in enumerate(inputs):
            key = raw.get(by) if isinstance(raw, dict) else None
            found = self.find(COMPANY, by, [key]) if key is not None else []
            used = {lead["contactCompany"] for lead in self.tables[LEAD].values()}
            if not found:
                items.append({"seq": seq} | _skipped(UnfitError("1013", "Record not found")))
            elif found[0]["id"] in used:
                items.append({"seq": seq} | _skipped(UnfitError("1022", "Object in use")))
            else:
                self._forget(COMPANY, found[0])
                items.append({"seq": seq, "id": found[0]["id"], "status": "deleted"})
        return items

    # -- as a person does ---------------------------------------------------------------------------------------------

    def insert(self, table: str, values: Mapping[str, Any], at: datetime | None = None) -> int:
        """Create a record past the rules of the API: also a second lead with one email. Raises UnfitError."""
        read = self._read(table, values, allowed=set())
        if table == LEAD:
            partition = self._rules.partitions[0]
            return int(self._add_lead(read, partition, at)["id"])
        return int(self._add(table, read, at)["id"])

    def update(self, table: str, number: int, values: Mapping[str, Any], at: datetime | None = None) -> None:
        """Change a record past the rules of the API; raises UnfitError, KeyError."""
        record, read = self.tables[table][number], self._read(table, values, allowed=set())
        if table == LEAD:
            self._change_lead(record, read, at)
        else:
            self._change(table, record, read, at)

    def delete(self, table: str, number: int) -> None:
        """Remove a record, a company's leads with it; raises KeyError."""
        record = self.tables[table][number]
        if table == COMPANY:
            for lead in [lead for lead in self.tables[LEAD].values() if lead["contactCompany"] == number]:
                self._forget(LEAD, lead)
        self._forget(table, record)

    # -- cells --------------------------------------------------------------------------------------------------------

    def _read(self, table: str, raw: Any, allowed: set[str]) -> Record:
        """Return an input record's values as they are stored; raises UnfitError for the first that is refused."""
        if not isinstance(raw, Mapping):
            raise UnfitError("1003", "A record must be an object")
        values: Record = {}
        for name, value in raw.items():
            field: Field | None = self.fields[table].get(name)
            if field is None:
                raise UnfitError("1006", f"Field '{name}' not found")
            if not field.updateable and name not in allowed:
                raise UnfitError("1003", f"Field '{name}' cannot be set by this call")
            fitted = field.fit(value)
            if field.updateable:
                values[name] = fitted
        return values

    def _add(self, table: str, values: Record, at: datetime | None = None) -> Record:
        now = format_time(at or self._clock.now_s())
        record: Record = {"id": next(self._ids[table]), "createdAt": now, "updatedAt": now}
        self.tables[table][record["id"]] = record
        self._put(table, record, values)
        return record

    def _change(self, table: str, record: Record, values: Record, at: datetime | None = None) -> None:
        self._put(table, record, values)
        record["updatedAt"] = format_time(at or self._clock.now_s())

    def _put(self, table: str, record: Record, values: Record) -> None:
        for name, value in values.items():
            if (table, name) in self._index:
                self._unindex(table, name, record)
                if value is not None:
                    self._index[table, name][_folded(value)][record["id"]] = record
            record[name] = value

    def _unindex(self, table: str, name: str, record: Record) -> None:
        if record.get(name) is not None:
            self._index[table, name][_folded(record[name])].pop(record["id"], None)

    def _forget(self, table: str, record: Record) -> None:
        for name in INDEXED[table]:
            self._unindex(table, name, record)
        del self.tables[table][record["id"]]


def _folded(value: Any) -> str:
    return str(value).strip().casefold()


def _skipped(skip: UnfitError) -> Record:
    return {"status": "skipped", "reasons": [{"code": skip.code, "message": skip.message}]}
