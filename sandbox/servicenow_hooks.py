"""Outbound messages of the simulated instance: what a customer's asynchronous business rule posts when a record changes.

The body is the capture of Remote Process Sync: `capture_metadata` and all included fields as `changed_fields`. There is no
retry, as with the vendor; changes made through the API fire as well.
"""

import asyncio
import dataclasses
import hashlib
import hmac
from datetime import UTC
from typing import TYPE_CHECKING, Any

import aiohttp

from sandbox.servicenow_dictionary import TABLES, columns_of
from sandbox.servicenow_query import Asker, Row, Search, parse
from sandbox.servicenow_store import UTC_ZONE, Change
from sandbox.simulator import json_text

if TYPE_CHECKING:
    from sandbox.servicenow import ServiceNow

TIMEOUT_S = 10


@dataclasses.dataclass
class Hook:
    """One business rule that posts to an address."""

    table: str
    url: str
    condition: str = ""  # encoded query on the record's current values; a deleted record always meets it
    operations: tuple[str, ...] = ("insert", "update", "delete")
    fields: tuple[str, ...] = ()  # included fields, sys_id always; none named: all
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # further keys of the body, as the rule's script adds them
    secret: str = ""  # signs the body: header X-Signature, hex HMAC-SHA256

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ValueError(f"there is no table {self.table}")
        self.operations, self.fields = tuple(self.operations), tuple(self.fields)


class Hooks:
    """Sends what the hooks ask for, in the background of the instance's loop."""

    def __init__(self, instance: "ServiceNow") -> None:
        self.instance = instance
        self.hooks: list[Hook] = []
        self.sent: list[tuple[str, dict[str, Any], int]] = []  # url, body, status (0: no answer)
        self._loop: asyncio.AbstractEventLoop | None = None
        instance.app.on_startup.append(self._remember_loop)
        instance.records.on_change.append(self.on_change)

    async def _remember_loop(self, _app: object) -> None:
        self._loop = asyncio.get_running_loop()

    def on_change(self, change: Change) -> None:
        """Post a change to every hook that it concerns; without a running server nothing is sent."""
        for hook in self.hooks:
            if self._concerns(hook, change) and self._loop is not None and not self._loop.is_closed():
                body = self._capture(hook, change)
                self._loop.call_soon_threadsafe(lambda h=hook, b=body: self.instance.spawn(self._post(h, b)))

    def _concerns(self, hook: Hook, change: Change) -> bool:
        if hook.table != change.table or change.operation not in hook.operations:
            return False
        if not hook.condition or change.operation == "delete":
            return True
        asker = Asker("", change.by, UTC_ZONE, self.instance.clock.now_s())
        found = Search(self.instance.records, asker).run(hook.table, parse(hook.condition))
        return any(row is change.row for row in found.rows)

    def _capture(self, hook: Hook, change: Change) -> dict[str, Any]:
        columns = columns_of(change.table)
        names = [name for name in columns if not hook.fields or name in {*hook.fields, "sys_id"}]
        fields = [self._field(change.table, name, change.row) for name in names if not columns[name].is_journal]
        fields += [{"key": name, "value": text, "display_value": ""} for name, text in change.notes if name in names]
        timestamp = self.instance.clock.now_s().astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        return {
            "capture_metadata": {"changed_by": change.by, "timestamp": timestamp},
            "changed_fields": fields,
        } | hook.extra

    def _field(self, table: str, name: str, row: Row) -> dict[str, str]:
        column = columns_of(table)[name]
        shown = self.instance.table_api.shown(column, row[name], UTC_ZONE) if column.reference else ""
        return {"key": name, "value": row[name], "display_value": shown}

    async def _post(self, hook: Hook, body: dict[str, Any]) -> None:
        content = json_text(body).encode()
        headers = {"Content-Type": "application/json", **hook.headers}
        if hook.secret:
            headers["X-Signature"] = hmac.new(hook.secret.encode(), content, hashlib.sha256).hexdigest()
        status = 0
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(hook.url, data=content, headers=headers, ssl=False) as response,
            ):
                status = response.status
        except (TimeoutError, aiohttp.ClientError):
            status = 0  # nobody there: the rule logs it and goes on
        self.sent.append((hook.url, body, status))
