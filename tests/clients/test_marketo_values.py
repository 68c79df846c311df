"""No value leaves its filter: whatever an email holds, the question stays the one that was meant."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from hypothesis import given
from hypothesis import strategies as st

from shared.clients import marketo
from shared.clients.http import Answer
from shared.clients.http import encode_query as encode
from shared.clients.marketo_batches import MOST_BODY_BYTES, MOST_RECORDS, Entry, split
from shared.clients.marketo_schema import Schema
from shared.clients.system import FieldType, RecordType
from shared.errors import RejectedError

SCHEMA = Schema(
    RecordType("lead", "lead", {name: FieldType(name) for name in ("email", "note")}),
    {"email": "email", "note": "string"},
)
TRICKY = st.text(st.sampled_from(list("ab@.,;&=%+#?'\"\\/ \n\té\u2028\x00")), min_size=1, max_size=12)


class Recorder:
    """Stands where a connection stands, and keeps what would be asked."""

    base_url, connection = "https://m.example", "marketo"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def call(self, method: str, target: str, **facts: Any) -> Answer:
        self.asked.append(facts)
        described = {
            "searchableFields": [["note"]],
            "fields": [{"name": name, "dataType": kind} for name, kind in SCHEMA.types.items()],
        }
        result = [described] if "describe" in target else []
        return Answer(200, {}, b"", {"success": True, "result": result})


@given(st.lists(st.one_of(st.text(min_size=1, max_size=40), TRICKY), min_size=1, max_size=8, unique=True))
def test_values_are_asked_for_one_by_one_or_refused(values: Sequence[str]) -> None:
    """What the vendor splits at commas is exactly what was meant."""
    meant = [value for value in values if value.strip()]
    http = Recorder()
    client = marketo.Marketo(http)  # type: ignore[arg-type]  # only what it calls

    refused = ""
    try:
        client.fetch_rows("lead", frozenset({"note"}), ("note",), [(value,) for value in meant])
    except RejectedError as exc:
        refused = exc.code

    if refused:
        assert refused == "unsearchable_value"
        assert any("," in value or not value.isprintable() for value in meant)
        assert all("filterValues" not in str(facts) for facts in http.asked)
        return
    for facts in http.asked[1:]:
        text = encode(facts["query"]) if "form" not in facts else ""
        read = parse_qs(text, strict_parsing=True)["filterValues"][0] if text else facts["form"]["filterValues"]
        assert read.split(",") == meant


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 400_000)), max_size=700))
def test_calls_hold_every_record_once_within_all_bounds(records: Sequence[tuple[int, int]]) -> None:
    """Number, size and identity; order is kept."""
    entries = [
        Entry(index, {"a": "x" * (size if index % 100 == 0 else 10)}, str(name), str(name), "id")
        for index, (name, size) in enumerate(records)
    ]

    parts = list(split(entries))

    assert [entry for part in parts for entry in part] == entries
    for part in parts:
        assert 1 <= len(part) <= MOST_RECORDS
        assert len({entry.identity for entry in part}) == len(part)
        assert sum(entry.size for entry in part) <= MOST_BODY_BYTES or len(part) == 1
