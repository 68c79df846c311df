"""ServiceNow's encoded queries: the one place where a value becomes part of a query.

A caret in a value is written `^^`, the platform's own escape; URL-encoding would not help, as it is undone before the
query is parsed. What has no escape is refused: control characters, and values that the server would run as script.
See facts on encoded queries: https://www.servicenow.com/docs/r/platform-user-interface/c_EncodedQueryStrings.html
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from shared.clients.lookups import as_text, split_terms
from shared.clients.system import Condition, Key, Scalar, Test
from shared.errors import RejectedError

NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*", re.ASCII)
SYS_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
PLAIN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)  # what may stand in an IN list, which has no escape for its comma
MOST_CHARS = 6_500  # of an encoded query; with fields and host the URL stays below 8,000
MOST_TERMS = 250


def check_name(name: str) -> str:
    """Return a table or field name that is safe in a query. Raises RejectedError with code `unknown_field`."""
    if not NAME.fullmatch(name):
        raise RejectedError(f"{name!r} is not a name of a ServiceNow table or field.", code="unknown_field")
    return name


def format_time(moment: datetime) -> str:
    """Return a time as ServiceNow stores it: UTC, whole seconds, no zone. Raises ValueError for a naive time."""
    if moment.tzinfo is None:
        raise ValueError("a time without zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def escape(value: Scalar) -> str:
    """Return a value as text that cannot end its condition or be run as script.

    Raises ValueError for an empty value, RejectedError with code `unsearchable_value` for one that cannot be escaped.
    """
    text = format_time(value) if isinstance(value, datetime) else as_text(value)
    if value is None or not text.strip():
        raise ValueError("an empty value is never searched for")
    # "NULL" is read as "is empty"; format characters (Cf) could hide a script's name from this check.
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf").strip().lower()
    has_control = any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") for c in text)
    if has_control or visible.startswith("javascript:") or text.strip() == "NULL":
        raise RejectedError("ServiceNow cannot search for a value of this form.", code="unsearchable_value")
    return text.replace("^", "^^")


def equals(field: str, value: Scalar) -> str:
    """Build `field=value`."""
    return f"{check_name(field)}={escape(value)}"


def build_lookup(by: Sequence[str], keys: Sequence[Key]) -> Iterator[str]:
    """Build the queries that find records by one field or by several together, each short enough for a URL."""
    if len(by) > 1:
        groups = ("^".join(equals(field, value) for field, value in zip(by, key, strict=True)) for key in keys)
        yield from _join(groups, "^NQ")
        return
    field = check_name(by[0])
    texts = [escape(key[0]) for key in keys]
    plain = [text for text in texts if PLAIN.fullmatch(text)]
    for chunk in split_terms(((t, len(t) + 3) for t in plain), MOST_CHARS, MOST_TERMS):
        yield f"{field}IN{','.join(chunk)}" if len(chunk) > 1 else f"{field}={chunk[0]}"
    yield from _join((f"{field}={text}" for text in texts if not PLAIN.fullmatch(text)), "^OR")


def build_condition(when: Condition) -> str:
    """Build the encoded form of a condition; "" if it is empty. Every line's alternatives stand side by side."""
    return "^".join(_build_test(check_name(path), test) for path, test in when.items())


def build_query(*parts: str, order_by: Sequence[str]) -> str:
    """Join conditions by AND and append the order."""
    return "^".join([*filter(None, parts), *(f"ORDERBY{check_name(name)}" for name in order_by)])


def build_params(query: str, fields: Sequence[str], limit: int, offset: int = 0) -> Mapping[str, str]:
    """Build the parameters of a list call: exactly these fields, raw values."""
    params = {
        "sysparm_query": query,
        "sysparm_fields": ",".join(check_name(name) for name in fields),
        "sysparm_exclude_reference_link": "true",
        "sysparm_display_value": "false",
        "sysparm_limit": str(limit),
    }
    return params | ({"sysparm_offset": str(offset)} if offset else {})


def _join(terms: Iterator[str], separator: str) -> Iterator[str]:
    sized = ((term, len(quote(term + separator, safe=""))) for term in terms)
    for group in split_terms(sized, MOST_CHARS, MOST_TERMS):
        yield separator.join(group)


def _build_test(path: str, test: Test) -> str:
    values = [value for value in test.any_of if value is not None and value != ""]
    empty = len(values) < len(test.any_of)
    if test.negated:  # whether `!=` also finds empty values is not documented: said outright
        lines = [f"{path}!={escape(value)}" + ("" if empty else f"^OR{path}ISEMPTY") for value in values]
        return "^".join([*([f"{path}ISNOTEMPTY"] if empty else []), *lines])
    return "^OR".join([*(f"{path}={escape(value)}" for value in values), *([f"{path}ISEMPTY"] if empty else [])])
