"""Attachment API of the simulated instance: metadata rows in sys_attachment, the bytes beside them."""

import hashlib
import json
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from typing import TYPE_CHECKING, Any

from sandbox.servicenow_answers import Answer, Call, failure
from sandbox.servicenow_dictionary import TABLES
from sandbox.servicenow_query import Row
from sandbox.servicenow_store import RefusedError

if TYPE_CHECKING:
    from sandbox.servicenow import ServiceNow
    from sandbox.servicenow_tables import TableApi


class AttachmentApi:
    """Answers `/attachment`; `files` holds the bytes by the metadata's sys_id."""

    def __init__(self, instance: "ServiceNow", tables: "TableApi") -> None:
        self.instance = instance
        self.tables = tables
        self.files: dict[str, bytes] = {}

    def handle(self, call: Call, parts: list[str]) -> Answer:
        """Answer one call; parts are what follows `/attachment/`."""
        match call.method, parts:
            case "GET" | "HEAD", []:
                return self._list(call)
            case "POST", ["file"]:
                return self._store_file(call)
            case "POST", ["upload"]:
                return self._store_form(call)
            case "GET" | "HEAD", [sys_id]:
                row = self._visible(call, sys_id)
                return Answer(200, {"result": self._metadata(call, row)})
            case "GET" | "HEAD", [sys_id, "file"]:
                row = self._visible(call, sys_id)
                headers = {"X-Attachment-Metadata": json.dumps(self._metadata(call, row))}
                return Answer(200, headers=headers, raw=self.files.get(sys_id, b""), content_type=row["content_type"])
            case "DELETE", [sys_id]:
                answer = self.tables.delete(call, "sys_attachment", self._visible(call, sys_id))
                self.files.pop(sys_id, None)
                return answer
            case _, [] | [_] | [_, "file"]:
                return failure(405, "Method not supported", None)
        return failure(400, "Requested URI does not represent any resource", call.url.path)

    def _list(self, call: Call) -> Answer:
        for name in ("sysparm_display_value", "sysparm_fields"):  # the Attachment API knows neither
            call.query.pop(name, None)
        call.query["sysparm_exclude_reference_link"] = "true"
        answer = self.tables.list_rows(call, "sys_attachment")
        if answer.status == 200 and isinstance(answer.payload, dict):
            found = self.instance.tables["sys_attachment"]
            shown = [self._metadata(call, found[row["sys_id"]]) for row in answer.payload["result"]]
            answer.payload = {**answer.payload, "result": shown}
        return answer

    def _store_file(self, call: Call) -> Answer:
        if not call.content_type:
            raise RefusedError(400, "Content-Type header is missing", None)
        names = ("table_name", "table_sys_id", "file_name")
        table, sys_id, file_name = (call.query.get(name, "") for name in names)
        return self._store(call, table, sys_id, file_name, call.content_type, call.body)

    def _store_form(self, call: Call) -> Answer:
        if call.content_type != "multipart/form-data":
            raise RefusedError(415, "Unsupported media type", call.content_type)
        head = f"Content-Type: {call.headers['Content-Type']}\r\n\r\n".encode()
        fields: dict[str, str] = {}
        for part in BytesParser(policy=HTTP).parsebytes(head + call.body).iter_parts():
            content = part.get_payload(decode=True) or b""
            if part.get_filename() is None:
                fields[_part_name(part)] = content.decode("utf-8", "replace").strip()
                continue
            kind = part.get_content_type()  # what follows the file is not read: the file must be the last part
            return self._store(
                call,
                fields.get("table_name", ""),
                fields.get("table_sys_id", ""),
                part.get_filename() or "",
                kind,
                content,
            )
        raise RefusedError(400, "Exception while reading request", "The form has no file part")

    def _store(self, call: Call, table: str, sys_id: str, file_name: str, kind: str, content: bytes) -> Answer:
        if not file_name or table not in TABLES:
            raise RefusedError(
                400, "Missing or invalid parameter", "table_name, table_sys_id and file_name are required"
            )
        self.tables.readable(call, table, sys_id)
        self.tables.check_right(call, "create", "sys_attachment", "Insert")
        if len(content) > self.instance.attachment_limit_bytes:
            raise RefusedError(
                413, "Attachment too large", f"The limit is {self.instance.attachment_limit_bytes} bytes"
            )
        cells = {
            "file_name": file_name,
            "content_type": kind,
            "size_bytes": str(len(content)),
            "size_compressed": str(len(content)),
            "table_name": table,
            "table_sys_id": sys_id,
            "hash": hashlib.sha256(content).hexdigest(),
        }
        row = self.instance.records.insert_row("sys_attachment", cells, call.user.user_name)
        self.files[row["sys_id"]] = content
        location = f"{call.url.origin()}/api/now/attachment/{row['sys_id']}"
        return Answer(201, {"result": self._metadata(call, row)}, {"Location": location})

    def _visible(self, call: Call, sys_id: str) -> Row:
        row = self.tables.readable(call, "sys_attachment", sys_id)
        self.tables.readable(call, row["table_name"], row["table_sys_id"])  # who cannot see the record sees no file
        return row

    def _metadata(self, call: Call, row: Row) -> dict[str, Any]:
        return row | {"download_link": f"{call.url.origin()}/api/now/attachment/{row['sys_id']}/file"}


def _part_name(part: Message) -> str:
    return str(part.get_param("name", "", "content-disposition"))
