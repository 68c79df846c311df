"""The REST calls of the simulated Marketo instance, free of HTTP: what a call asks for becomes the members of its envelope."""

import asyncio
import base64
import binascii
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from sandbox.marketo_fields import COMPANY, LEAD, describe_fields, describe_old
from sandbox.marketo_limits import Usage
from sandbox.marketo_store import CREATES, FILTER_ALIASES, CallError, LeadCall, Record, Records, Rules

MOST_RECORDS = 300  # of one call: input, filter values, rows of a page
MOST_MATCHES = 1000  # of one filter
LEAD_ACTIONS = CREATES | {"updateOnly"}
COMPANY_ACTIONS = frozenset({"createOrUpdate", "createOnly", "updateOnly"})
DEFAULT_FIELDS = {
    LEAD: ("id", "email", "updatedAt", "createdAt", "firstName", "lastName"),
    COMPANY: ("id", "externalCompanyId", "createdAt", "updatedAt"),
}
Members = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call with its parameters and, for a POST of JSON, its body."""

    method: str  # GET also for a POST that says so
    path: str  # below /rest/v1
    params: Mapping[str, str]
    content_type: str
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body; raises CallError."""
        if self.content_type != "application/json":
            raise CallError("612", "Invalid Content Type")
        try:
            body = json.loads(self.body)
        except ValueError as exc:
            raise CallError("609", "Invalid JSON") from exc
        if not isinstance(body, dict):
            raise CallError("609", "Invalid JSON")
        return body

    def inputs(self, body: Mapping[str, Any]) -> list[Any]:
        """Return the records of a body; raises CallError."""
        records = body.get("input")
        if not isinstance(records, list) or not records:
            raise CallError("1002", "Missing value for required parameter 'input'")
        if len(records) > MOST_RECORDS:
            raise CallError("1003", f"Input holds more than {MOST_RECORDS} records")
        return records


class ApiRules(Rules, Protocol):
    """What differs between instances in the way that the API behaves."""

    crm_sync: bool
    crm_code: str
    denied: list[str]
    race_delay_s: float


class Api:
    """Works the calls."""

    def __init__(self, records: Records, usage: Usage, rules: ApiRules) -> None:
        self._records, self._usage, self._rules = records, usage, rules
        self._routes: dict[str, dict[str, Callable[[Call], Any]]] = {
            "/leads.json": {"GET": self._find_leads, "POST": self._sync_leads},
            "/leads/describe.json": {"GET": self._describe_leads},
            "/leads/describe2.json": {"GET": self._describe2_leads},
            "/leads/partitions.json": {"GET": self._partitions},
            "/companies.json": {"GET": self._find_companies, "POST": self._sync_companies},
            "/companies/describe.json": {"GET": self._describe_companies},
            "/companies/delete.json": {"POST": self._delete_companies},
            "/stats/usage.json": {"GET": lambda _: {"result": self._usage.calls_report(1)}},
            "/stats/usage/last7days.json": {"GET": lambda _: {"result": self._usage.calls_report(7)}},
            "/stats/errors.json": {"GET": lambda _: {"result": self._usage.errors_report(1)}},
            "/stats/errors/last7days.json": {"GET": lambda _: {"result": self._usage.errors_report(7)}},
        }

    async def handle(self, call: Call) -> Members:
        """Work one call and return the envelope's members beside requestId and success; raises CallError."""
        methods = self._routes.get(call.path)
        if methods is None and call.path.startswith("/lead/") and call.path.endswith(".json"):
            methods = {"GET": self._get_lead}
        if methods is None:
            raise CallError("610", "Requested resource not found")
        work = methods.get(call.method)
        if work is None:
            raise CallError("605", f"HTTP Method '{call.method}' is not supported")
        self._check_access(call)
        with self._records.lock:
            members = work(call)
        return await members if asyncio.iscoroutine(members) else members  # type: ignore[no-any-return]

    def _check_access(self, call: Call) -> None:
        about = COMPANY if call.path.startswith("/companies") else LEAD if call.path.startswith("/lead") else "stats"
        if about == COMPANY and self._rules.crm_sync:
            text = "CRM Enabled" if self._rules.crm_code == "1018" else "Access denied"
            raise CallError(self._rules.crm_code, text)
        if about in self._rules.denied:
            raise CallError("603", "Access denied")

    # -- leads --------------------------------------------------------------------------------------------------------

    def _find_leads(self, call: Call) -> Members:
        return self._find(LEAD, call, call.params.get("filterType", ""))

    def _get_lead(self, call: Call) -> Members:
        number = call.path.removeprefix("/lead/").removesuffix(".json")
        found = self._records.find(LEAD, "id", [number]) if number.isdigit() else []
        if not found:
            raise CallError("1004", f"Lead '{number}' not found")
        return {"result": [self._pick(LEAD, found[0], self._asked_fields(LEAD, call))]}

    async def _sync_leads(self, call: Call) -> Members:
        body = call.json()
        inputs = call.inputs(body)
        sync = LeadCall(
            str(body.get("action") or "createOrUpdate"),
            str(body.get("lookupField") or "email"),
            body.get("partitionName"),
        )
        if sync.action not in LEAD_ACTIONS:
            raise CallError("1003", f"Invalid value '{sync.action}' for parameter 'action'")
        if not self._is_searchable(LEAD, sync.lookup_field):
            raise CallError("1011", f"Lookup field '{sync.lookup_field}' is not supported")
        if sync.lookup_field == "id" and sync.action != "updateOnly":
            raise CallError("1003", "Lookup field 'id' is allowed with action 'updateOnly' only")
        if sync.partition is not None and sync.action == "updateOnly":
            raise CallError("1003", "Parameter 'partitionName' is not allowed with action 'updateOnly'")
        if sync.action == "createOrUpdate" and self._rules.race_delay_s:
            plans = [self._records.plan_lead(sync, raw) for raw in inputs]
            await asyncio.sleep(self._rules.race_delay_s)
            items = [self._records.carry_out_lead(sync, plan) for plan in plans]
        else:
            items = [self._records.carry_out_lead(sync, self._records.plan_lead(sync, raw)) for raw in inputs]
        return {"result": [] if body.get("asyncProcessing") else items}

    def _describe_leads(self, call: Call) -> Members:
        return {"result": describe_old(self._records.fields[LEAD])}

    def _describe2_leads(self, call: Call) -> Members:
        fields = self._records.fields[LEAD]
        searchable = [[field.name] for field in fields.values() if field.searchable]
        described = describe_fields(fields, self._rules.crm_sync)
        return {"result": [{"name": "API Lead", "searchableFields": searchable, "fields": described}]}

    def _partitions(self, call: Call) -> Members:
        return {"result": [{"id": number, "name": name} for number, name in enumerate(self._rules.partitions, start=1)]}

    # -- companies ----------------------------------------------------------------------------------------------------

    def _find_companies(self, call: Call) -> Members:
        asked = call.params.get("filterType", "")
        members = self._find(COMPANY, call, FILTER_ALIASES.get(asked, asked))
        return members | {"result": [{"seq": seq} | row for seq, row in enumerate(members["result"])]}

    def _sync_companies(self, call: Call) -> Members:
        body = call.json()
        inputs = call.inputs(body)
        action = str(body.get("action") or "createOrUpdate")
        by = self._read_key(body, "dedupeBy")
        if action not in COMPANY_ACTIONS:
            raise CallError("1003", f"Invalid value '{action}' for parameter 'action'")
        if by == "id" and action != "updateOnly":
            raise CallError("1003", "dedupeBy 'idField' is allowed with action 'updateOnly' only")
        return {"result": self._records.sync_companies(action, by, inputs)}

    def _delete_companies(self, call: Call) -> Members:
        body = call.json()
        return {"result": self._records.delete_companies(self._read_key(body, "deleteBy"), call.inputs(body))}

    @staticmethod
    def _read_key(body: Mapping[str, Any], name: str) -> str:
        asked = str(body.get(name) or "dedupeFields")
        if asked not in FILTER_ALIASES:
            raise CallError("1003", f"Invalid value '{asked}' for parameter '{name}'")
        return FILTER_ALIASES[asked]

    def _describe_companies(self, call: Call) -> Members:
        fields = self._records.fields[COMPANY]
        described = {
            "name": "Company",
            "idField": "id",
            "dedupeFields": ["externalCompanyId"],
            "searchableFields": [["externalCompanyId"], ["id"], ["company"]],
            "fields": describe_fields(fields, self._rules.crm_sync),
        }
        return {"result": [described]}

    # -- finding ------------------------------------------------------------------------------------------------------

    def _find(self, table: str, call: Call, name: str) -> Members:
        if not name:
            raise CallError("1002", "Missing value for required parameter 'filterType'")
        if not self._is_searchable(table, name):
            raise CallError("1011", f"Filter type '{name}' is not supported")
        values = [value.strip() for value in call.params.get("filterValues", "").split(",") if value.strip()]
        if not values:
            raise CallError("1002", "Missing value for required parameter 'filterValues'")
        if len(values) > MOST_RECORDS:
            raise CallError("1003", f"More than {MOST_RECORDS} filter values")
        fields = self._asked_fields(table, call)
        found = self._records.find(table, name, values)
        if len(found) > MOST_MATCHES:
            raise CallError("1003", "Too many results match the filter")
        size = self._read_size(call)
        mark = hashlib.sha256(json.dumps([table, name, sorted(values)]).encode()).hexdigest()[:16]
        start = self._read_token(call, mark)
        rows = [self._pick(table, record, fields) for record in found[start : start + size]]
        if start + size >= len(found):
            return {"result": rows}
        token = base64.urlsafe_b64encode(f"{mark}:{start + size}".encode()).decode()
        return {"result": rows, "nextPageToken": token, "moreResult": True}

    @staticmethod
    def _read_size(call: Call) -> int:
        text = call.params.get("batchSize", str(MOST_RECORDS))
        if not text.isdigit() or not int(text):
            raise CallError("1003", "Invalid value for parameter 'batchSize'")
        return min(int(text), MOST_RECORDS)

    @staticmethod
    def _read_token(call: Call, mark: str) -> int:
        token = call.params.get("nextPageToken")
        if not token:
            return 0
        try:
            told, _, start = base64.urlsafe_b64decode(token).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            told, start = "", ""
        if told != mark or not start.isdigit():
            raise CallError("1003", "Invalid value for parameter 'nextPageToken'")
        return int(start)

    def _is_searchable(self, table: str, name: str) -> bool:
        field = self._records.fields[table].get(name)
        return field is not None and field.searchable

    def _asked_fields(self, table: str, call: Call) -> tuple[str, ...]:
        asked = tuple(name.strip() for name in call.params.get("fields", "").split(",") if name.strip())
        for name in asked:
            if name not in self._records.fields[table]:
                raise CallError("1006", f"Field '{name}' not found")
        return asked or DEFAULT_FIELDS[table]

    def _pick(self, table: str, record: Record, fields: Iterable[str]) -> Record:
        """Return a row of an answer: a field that holds nothing is left out."""
        shown = self._records.show(table, record)
        return {"id": shown["id"]} | {name: shown[name] for name in fields if shown.get(name) is not None}
