"""Encoded queries: whatever a value holds, it stays one value of one condition."""

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.servicenow_query import parse
from shared.clients import servicenow_query as query
from shared.clients import system
from shared.clients.lookups import page_length
from shared.errors import RejectedError

PAYLOADS = (
    "x^ORactive=true",
    "Printer^NQnumber=INC0000001",
    "^",
    "^^",
    "a^",
    "^ORDERBYname",
    "a^EQ",
    "a,b",
    "a@b",
    "LIKEx",
    "=x",
    "!=x",
    "INa,b",
    "ISEMPTY",
    "%5EORactive%3Dtrue",
    "a&sysparm_limit=1",
    "O'Brien; DROP TABLE",
    "123TEXTQUERY321=x",
    "RLQUERYa.b,>1",
)
VALUES = st.one_of(st.text(), st.sampled_from(PAYLOADS), st.text("^ORNQ=,a@", max_size=12))


def conditions(text: str) -> list[list[list[tuple[str, str, str]]]]:
    """Read a query with the simulator's parser, which was written apart from ours: groups of clauses of conditions."""
    found = parse(text)
    return [[[(c.path, c.operator, c.value) for c in clause] for clause in group] for group in found.groups]  # type: ignore[union-attr]


def searchable(value: str) -> bool:
    try:
        query.escape(value)
    except (ValueError, RejectedError):
        return False
    return True


@given(VALUES)
@example("x^ORactive=true")
def test_value_never_leaves_its_condition(value: str) -> None:
    """A searchable value comes out of the parser as it went in; the others are refused before anything is sent."""
    if not searchable(value):
        return

    read = conditions(query.build_query(query.equals("email", value), "active=true", order_by=("sys_id",)))

    assert read == [[[("email", "=", value)], [("active", "=", "true")]]]


@given(st.lists(VALUES.filter(searchable), min_size=1, max_size=20, unique=True))
def test_looked_up_values_are_asked_for_each_and_nothing_else(values: list[str]) -> None:
    """All values of a look-up come out again, however they are split over IN lists and alternatives."""
    asked: list[str] = []

    for text in query.build_lookup(("email",), [(value,) for value in values]):
        for group in conditions(text):
            for path, operator, value in [condition for clause in group for condition in clause]:
                assert path == "email"
                asked += value.split(",") if operator == "IN" else [value]

    assert sorted(asked) == sorted(values)


@given(st.lists(st.tuples(VALUES.filter(searchable), VALUES.filter(searchable)), min_size=1, max_size=8, unique=True))
def test_fields_that_belong_together_stay_together(keys: list[tuple[str, str]]) -> None:
    """Each key of several fields is a group of its own."""
    read = [
        tuple(clause[0][2] for clause in group)
        for text in query.build_lookup(("email", "source"), keys)
        for group in conditions(text)
    ]

    assert sorted(read) == sorted(keys)


@pytest.mark.parametrize(
    "value",
    [
        "javascript:gs.getUserID()",
        "  JavaScript:gs.x()",
        "\u200bjavascript:x",
        "java\u00adscript:x",
        "a\nb",
        "a\rb",
        "a\tb",
        "a\x00b",
        "a\u2028b",
        "NULL",
    ],
)
def test_value_that_cannot_be_escaped_is_refused(value: str) -> None:
    """Scripts, control characters and the word that means empty are written, never searched for."""
    with pytest.raises(RejectedError) as caught:
        query.escape(value)

    assert caught.value.code == "unsearchable_value"
    assert value.strip() not in str(caught.value)


@pytest.mark.parametrize("value", ["", "   ", None])
def test_empty_value_is_never_searched_for(value: str | None) -> None:
    """An empty value would match every record whose field is empty."""
    with pytest.raises(ValueError, match="empty"):
        query.equals("email", value)


@pytest.mark.parametrize(
    "name", ["", "Email", "email^x", "email=", "a.", ".a", "a..b", "1a", "e mail", "a,b", "emäil", "email\n"]
)
def test_name_that_is_none_is_refused(name: str) -> None:
    """Tables and fields are names, never text."""
    with pytest.raises(RejectedError) as caught:
        query.equals(name, "x")

    assert caught.value.code == "unknown_field"


def test_list_is_used_only_where_no_comma_can_be() -> None:
    """Ids and numbers travel as a list, text as alternatives."""
    texts = list(query.build_lookup(("number",), [("INC1",), ("INC2",), ("a,b",), ("c d",)]))

    assert texts == ["numberININC1,INC2", "number=a,b^ORnumber=c d"]


@given(st.integers(1, 400), st.integers(1, 160))
def test_queries_stay_below_the_limit_of_a_url(count: int, length: int) -> None:
    """However many and long the values are, and however much encoding adds."""
    values = [(f"{i:05d}^{'ü' * length}",) for i in range(count)]

    texts = list(query.build_lookup(("short_description",), values))

    assert all(len(query.quote(text, safe="")) <= query.MOST_CHARS for text in texts)


def test_value_too_long_for_any_url_is_refused() -> None:
    """One value cannot be split."""
    with pytest.raises(RejectedError) as caught:
        list(query.build_lookup(("description",), [("x y" * 3000,)]))

    assert caught.value.code == "unsearchable_value"


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (system.Test((1,)), "f=1"),
        (system.Test((True,)), "f=true"),
        (system.Test((1.0,)), "f=1"),
        (system.Test(("a^b", "c")), "f=a^^b^ORf=c"),
        (system.Test((None,)), "fISEMPTY"),
        (system.Test(("a", None)), "f=a^ORfISEMPTY"),
        (system.Test((None,), negated=True), "fISNOTEMPTY"),
        (system.Test(("a",), negated=True), "f!=a^ORfISEMPTY"),
        (system.Test(("a", "b"), negated=True), "f!=a^ORfISEMPTY^f!=b^ORfISEMPTY"),
        (system.Test(("a", None), negated=True), "fISNOTEMPTY^f!=a"),
        (system.Test((datetime(2026, 3, 2, 12, 0, tzinfo=UTC),)), "f=2026-03-02 12:00:00"),
    ],
)
def test_condition_says_what_the_recipe_says(test: system.Test, expected: str) -> None:
    """Alternatives, emptiness and negation; a negated value keeps the empty ones."""
    assert query.build_condition({"f": test}) == expected


@pytest.mark.parametrize(("size", "fill", "length"), [(250, 1, 250), (250, 300, 300), (400, 300, 300), (700, 300, 600)])
def test_page_fills_the_calls_of_the_target(size, fill, length):
    """A page that is not a multiple of what a call takes would leave each page's last call half empty."""
    assert page_length(size, fill) == length
