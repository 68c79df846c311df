"""Marketo through its REST API: leads and companies are looked up and written up to 300 in a call.

Follows https://experienceleague.adobe.com/en/docs/marketo-developer/marketo/rest/lead-database/leads and …/companies.
Three habits of the vendor shape this client: failures hide inside HTTP 200 (marketo_errors.py); results name no record, so
they are joined by position; and two upserts of one email at the same time can make two leads, so a lone create is
`createOnly` and the rest relies on the caller's claim of the email.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from shared.clients.http import Answer, Dialect, HttpConnection, Meaning, Reading, encode_query
from shared.clients.lookups import as_text, check_values, keep_asked
from shared.clients.marketo_batches import MOST_RECORDS, Batch, Course, Entry, split
from shared.clients.marketo_errors import (
    COMPANY_ON_LEAD,
    NOT_FOUND,
    TOO_MANY,
    read_answer,
    read_skipped,
)
from shared.clients.marketo_schema import KIND_OF, Kind, Schema, build_schema, read_time, read_value, write_value
from shared.clients.system import Key, Paths, RecordType, Row, Scalar, Write, Written
from shared.errors import (
    EXISTS_ALREADY,
    AccessError,
    AmbiguousWriteError,
    MappingError,
    RejectedError,
    SyncError,
    TransientError,
)

SYSTEM = "Marketo"
DIALECT = Dialect(SYSTEM, read_answer, request_id_member="requestId")
MOST_URI_CHARS = 7_500  # of the vendor's 8 KB; above that the question travels in a body
MOST_PAGES = 100


class Marketo:
    """One instance: System and Target, for the records `lead` and `company`.

    A company's key is its externalCompanyId, which is what leads refer to it by. Answers to writes show no record, so
    `Written.row` is None. `lookup_field` is the field by which leads are deduplicated; empty where the instance has rules
    of its own, which an explicit field would override.
    """

    writes_together = MOST_RECORDS

    def __init__(
        self,
        http: HttpConnection,
        *,
        lookup_field: str = "email",
        web_url: str = "",
        transaction_s: float = 90.0,
    ) -> None:
        self.transaction_s = transaction_s
        self._http, self._lookup_field, self._web_url = http, lookup_field, web_url.rstrip("/")
        self._schemas: dict[str, Schema] = {}
        self._lock = threading.RLock()  # held while a record is described, so that threads do not all ask

    # -- System -------------------------------------------------------------------------------------------------------

    def describe(self, record: str) -> RecordType:
        return self._schema(_kind(record)).record_type

    def fetch_rows(self, record: str, paths: Paths, by: Sequence[str], values: Sequence[Key]) -> list[Row]:
        kind, keys = _kind(record), check_values(by, values)
        schema = self._schema(kind)
        if len(by) > 1:
            raise RejectedError("Marketo searches by one field at a time.", code="unsearchable_field")
        name = by[0] if by else kind.key
        names = sorted({*paths, *by})
        for each in names:
            _check_field(schema, each)
        if not schema.fields[name].searchable:
            raise RejectedError(f"Marketo cannot search {record} by {name}.", code="unsearchable_field")
        texts = [_filter_text(schema, name, key[0]) for key in keys]
        rows: list[Row] = []
        seen: set[Any] = set()
        for start in range(0, len(texts), MOST_RECORDS):
            for raw in self._search(kind, name, texts[start : start + MOST_RECORDS], sorted({*names, *kind.extra})):
                row = self._build_row(kind, schema, names, raw)
                if row is not None and raw.get("id") not in seen:  # two companies may share one externalCompanyId
                    seen.add(raw.get("id"))
                    rows.append(row)
        return keep_asked(rows, by, keys, SYSTEM, self._http.connection)

    def url(self, record: str, key: str) -> str:
        if not self._web_url or record != "lead":  # a company has no page of its own
            return ""
        return f"{self._web_url}/leadDatabase/loadLeadDetail?leadId={quote(key, safe='')}"

    # -- Target -------------------------------------------------------------------------------------------------------

    def write_rows(self, record: str, writes: Sequence[Write]) -> list[Written | SyncError]:
        """Write records, up to 300 in a call.

        New companies, and a lone new lead, are created only if their key or email is new (else AmbiguousWriteError
        `exists_already`); several leads are created or updated. A changed email that another lead has is RejectedError
        `ambiguous_match`.
        The caller holds the claim on match values.
        """
        kind = _kind(record)
        answers: dict[int, Written | SyncError] = {}
        try:
            schema = self._schema(kind)
        except SyncError as exc:
            return [exc for _ in writes]
        ready = []
        for index, write in enumerate(writes):
            try:
                ready.append(self._build_entry(kind, schema, index, write))
            except SyncError as exc:
                answers[index] = exc
        if kind.record == "lead":
            ready = self._without_taken(schema, ready, answers)
        course = Course()
        for batch in self._build_batches(kind, ready, answers):
            self._run(kind, batch, answers, course)
        return [answers[index] for index in range(len(writes))]

    def _build_entry(self, kind: Kind, schema: Schema, index: int, write: Write) -> Entry:
        if write.fields is None:
            raise RejectedError(f"Concord removes no {kind.noun} from Marketo.", code="unwritable_value")
        values = dict(write.match) | dict(write.fields) if write.key is None else dict(write.fields)
        if not values:
            raise MappingError(f"There is nothing that can be written to {kind.record}.", code="nothing_to_write")
        body = {name: _checked_value(schema, name, value) for name, value in values.items()}
        if kind.record == "lead" and write.key is not None:
            if not (write.key.isascii() and write.key.isdigit()):
                raise RejectedError("A Marketo lead's id is a number.", code="target_missing")
            return Entry(index, {"id": int(write.key)} | body, write.key, write.key, "id")
        by = kind.key if kind.record == "company" else self._match_field(write)
        if write.key is not None:
            body = {by: write.key} | body
            if as_text(body[by]).casefold() != write.key.casefold():
                raise MappingError("The key of a company cannot be changed.", code="unwritable_value")
        value = body.get(by)
        if value is None or not as_text(value).strip():
            raise MappingError(
                f"A {kind.noun} without {by} cannot be created in Marketo.", code=f"{kind.noun}_without_{by}"
            )
        return Entry(index, body, write.key, as_text(value).strip().casefold(), by)

    def _without_taken(
        self, schema: Schema, entries: Sequence[Entry], answers: dict[int, Written | SyncError]
    ) -> list[Entry]:
        """Leave out changes that would give a lead the email of another one: the vendor does not refuse them."""
        field, wanted = self._lookup_field, dict[int, str]()
        for entry in entries:
            value = entry.body.get(field) if entry.key is not None else None
            if value is None or not as_text(value).strip():
                continue
            try:
                wanted[entry.index] = _filter_text(schema, field, value).casefold()
            except RejectedError as exc:
                answers[entry.index] = exc
        try:
            holders = self._holders(field, wanted.values())
        except SyncError as exc:
            answers.update(dict.fromkeys(wanted, exc))
            wanted, holders = {}, {}
        for entry in entries:
            text = wanted.get(entry.index)
            if text is not None and holders.setdefault(text, str(entry.key)) != entry.key:
                answers[entry.index] = RejectedError(
                    f"Another lead in Marketo has this {field} ({self._http.connection}). Merge the two.",
                    code="ambiguous_match",
                    connection=self._http.connection,
                )
        return [entry for entry in entries if entry.index not in answers]

    def _holders(self, field: str, texts: Iterable[str]) -> dict[str, str]:
        """Return which lead has each of a field's values now; "" for a value that several have."""
        holders: dict[str, str] = {}
        keys = [(text,) for text in texts]
        for row in self.fetch_rows("lead", frozenset((field,)), (field,), keys) if keys else ():
            text = str(row.fields[field]).casefold()
            holders[text] = row.key if holders.get(text, row.key) == row.key else ""
        return holders

    def _match_field(self, write: Write) -> str:
        return next(iter(write.match)) if len(write.match) == 1 else self._lookup_field or "email"

    def _build_batches(
        self, kind: Kind, entries: Sequence[Entry], answers: dict[int, Written | SyncError]
    ) -> Iterator[Batch]:
        """Group changes and creates into calls; a record that is the same as an earlier one of its call waits its turn."""
        groups: dict[tuple[bool, str], list[Entry]] = {}
        created: set[tuple[str, str]] = set()
        for entry in entries:
            if entry.key is None and (entry.by, entry.identity) in created:
                answers[entry.index] = AmbiguousWriteError(
                    f"Another {kind.noun} of the same batch has this {entry.by}. The record is looked up.",
                    code=EXISTS_ALREADY,
                    connection=self._http.connection,
                )
                continue
            if entry.key is None:
                created.add((entry.by, entry.identity))
            groups.setdefault((entry.key is None, entry.by), []).append(entry)
        for (create, by), members in groups.items():
            for part in split(members):
                yield Batch(create, by, tuple(part))

    def _run(self, kind: Kind, batch: Batch, answers: dict[int, Written | SyncError], course: Course) -> None:
        """Make one call; a refusal of the whole call is narrowed down, so that a bad record spoils no other."""
        action = f"{'create' if batch.create else 'update'} {kind.record}"
        try:
            course.check()
            answer = self._call(
                kind, "POST", kind.path, action=action, safe=not batch.create, json_body=self._body(kind, batch)
            )
            items = self._read_items(batch, answer, action)
        except RejectedError as exc:
            if len(batch.entries) > 1 and course.may_split():
                for part in batch.halves():
                    self._run(kind, part, answers, course)
            else:
                answers.update((entry.index, exc) for entry in batch.entries)
        except SyncError as exc:
            course.note(exc)
            answers.update((entry.index, exc) for entry in batch.entries)
        else:
            request_id = str(answer.data.get("requestId") or "")
            for entry, item in zip(batch.entries, items, strict=True):
                answers[entry.index] = self._read_item(kind, batch, entry, item, f"{action}, request {request_id}")

    def _body(self, kind: Kind, batch: Batch) -> dict[str, Any]:
        records = [entry.body for entry in batch.entries]
        if kind.record == "company":
            action = "createOnly" if batch.create else "updateOnly"
            return {"action": action, "dedupeBy": "dedupeFields", "input": records}
        if not batch.create:
            return {"action": "updateOnly", "lookupField": "id", "input": records}
        action = "createOnly" if len(records) == 1 else "createOrUpdate"
        lookup = {"lookupField": batch.by} if self._lookup_field else {}
        return {"action": action, **lookup, "input": records}

    def _read_items(self, batch: Batch, answer: Answer, action: str) -> list[Mapping[str, Any]]:
        items = answer.data.get("result")
        sound = isinstance(items, list) and all(isinstance(item, dict) and item.get("status") for item in items)
        if sound and len(items) == len(batch.entries):
            return items  # type: ignore[no-any-return]  # JSON
        error = AmbiguousWriteError if batch.create else TransientError
        raise error(
            f"Marketo answered without a result for each record ({self._http.connection}: {action}). "
            f"{'They are looked up.' if batch.create else 'It is tried again later.'}",
            code="unreadable_answer",
            connection=self._http.connection,
            status=answer.status,
            request_id=str(answer.data.get("requestId") or ""),
        )

    def _read_item(
        self, kind: Kind, batch: Batch, entry: Entry, item: Mapping[str, Any], where: str
    ) -> Written | SyncError:
        """Return what became of one record; the answer names none, so its place is all there is to go by."""
        status, number = item.get("status"), item.get("id")
        if status == "skipped":
            return self._build_error(read_skipped(item, kind.record, entry.body), where)
        misplaced = number is None or (kind.record == "lead" and entry.key not in (None, str(number)))
        if status not in ("created", "updated") or misplaced:
            reading = Reading(Meaning.LOST, "unreadable_answer", "answered with a result that is not the record's")
            return self._build_error(reading, where, create=batch.create)
        key = str(number) if kind.record == "lead" else as_text(entry.body[kind.key])
        return Written(key, created=status == "created")

    def _build_error(self, reading: Reading, where: str, create: bool = False) -> SyncError:
        connection, code = self._http.connection, reading.code or None
        what = f"Marketo {reading.reason} ({connection}: {where})."
        match reading.meaning:
            case Meaning.EXISTS:
                return AmbiguousWriteError(f"{what} The record is looked up.", code=code, connection=connection)
            case Meaning.LOST if create:
                return AmbiguousWriteError(f"{what} The record is looked up.", code=code, connection=connection)
            case Meaning.LOST | Meaning.NOT_DONE:
                return TransientError(f"{what} It is tried again later.", code=code, connection=connection)
            case Meaning.NO_ACCESS:
                return AccessError(what, code=code, connection=connection)
        return RejectedError(what, code=code, connection=connection)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _search(self, kind: Kind, name: str, texts: Sequence[str], fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield what a filter finds, over all pages; a question with too many answers is asked in halves."""
        try:
            yield from list(self._pages(kind, name, texts, fields))
        except RejectedError as exc:
            if exc.code == NOT_FOUND:
                return
            if exc.code != TOO_MANY or len(texts) == 1:
                raise
            middle = len(texts) // 2
            for part in (texts[:middle], texts[middle:]):
                yield from self._search(kind, name, part, fields)

    def _pages(self, kind: Kind, name: str, texts: Sequence[str], fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        query = {
            "filterType": name,
            "filterValues": ",".join(texts),
            "fields": ",".join(fields),
            "batchSize": str(MOST_RECORDS),
        }
        for _ in range(MOST_PAGES):
            answer = self._ask(kind, query)
            rows = answer.data.get("result")
            if rows is None:
                rows = []
            if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("id") for row in rows):
                raise TransientError("Marketo answered a search without rows. It is tried again later.")
            yield from rows
            token = str(answer.data.get("nextPageToken") or "")
            if not answer.data.get("moreResult") or not token:
                return
            query["nextPageToken"] = token
        raise TransientError("Marketo's answer to a search does not end. It is tried again later.")

    def _ask(self, kind: Kind, query: Mapping[str, str]) -> Answer:
        action = f"look up {kind.record}"
        if len(kind.path) + len(encode_query(query)) <= MOST_URI_CHARS:
            return self._call(kind, "GET", kind.path, action=action, safe=True, query=query)
        return self._call(kind, "POST", kind.path, action=action, safe=True, query={"_method": "GET"}, form=query)

    def _build_row(self, kind: Kind, schema: Schema, names: Sequence[str], raw: Mapping[str, Any]) -> Row | None:
        """Build a row; None for a company that nothing can refer to. A field that the answer leaves out is empty."""
        key = raw.get(kind.key)
        if key is None or key == "":
            return None
        moment = read_time(str(raw.get("updatedAt") or ""))
        return Row(
            key=str(key),
            fields={name: read_value(schema.fields[name], raw.get(name)) for name in names},
            version=moment.isoformat() if moment else "",
            changed_at=moment,
            label=str(raw["id"]),
            url=self.url(kind.record, str(key)),
        )

    # -- schema and calls ---------------------------------------------------------------------------------------------

    def _schema(self, kind: Kind) -> Schema:
        if (known := self._schemas.get(kind.record)) is not None:
            return known
        with self._lock:
            if kind.record not in self._schemas:
                answer = self._call(kind, "GET", kind.describe_path, action=f"describe {kind.record}", safe=True)
                result = answer.data.get("result")
                described = result[0] if isinstance(result, list) and result else None
                if not isinstance(described, dict) or not described.get("fields"):
                    raise TransientError(f"Marketo did not describe {kind.record}. It is tried again later.")
                self._schemas[kind.record] = build_schema(kind, described)
            return self._schemas[kind.record]

    def _call(self, kind: Kind, method: str, path: str, **facts: Any) -> Answer:
        try:
            return self._http.call(method, path, **facts)
        except AccessError as exc:
            if kind.record == "company" and exc.code in _COMPANIES_CLOSED:
                exc.message += f" Where native CRM sync keeps the companies, {COMPANY_ON_LEAD}."
                exc.args = (exc.message,)
            raise


_COMPANIES_CLOSED = (AccessError.code, "company_interface_off", "feature_off")


def _kind(record: str) -> Kind:
    if record not in KIND_OF:
        raise RejectedError(f"Marketo has no record {record}; there are lead and company.", code="unknown_record_type")
    return KIND_OF[record]


def _check_field(schema: Schema, name: str) -> None:
    if name not in schema.fields:
        raise RejectedError(f"Marketo has no field {name} on {schema.record_type.record}.", code="unknown_field")


def _checked_value(schema: Schema, name: str, value: Any) -> Any:
    _check_field(schema, name)
    if not schema.fields[name].writable:
        raise MappingError(f"{name} is not written in Marketo: it is the system's or the person's own.", code="unwritable_field")  # fmt: skip
    return write_value(schema, name, value)


def _filter_text(schema: Schema, name: str, value: Scalar) -> str:
    """Return a value as it stands in a list of filter values, for whose comma there is no escape."""
    text = as_text(value)
    foreign = schema.types[name] == "email" and not text.isascii()  # Marketo holds none such
    if "," in text or not text.isprintable() or foreign or (schema.types[name] == "integer" and not text.isdigit()):
        raise RejectedError(
            f"Marketo cannot be searched for a value of this form in {name}.", code="unsearchable_value"
        )
    return text
