"""Injection into queries, end to end: real clients ask strict simulators for hostile values."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clients import system
from shared.clients.system import Changed, Row, Write
from shared.errors import RejectedError
from shared.state.rows import Outcome
from tests.clients.connections import DynamicsBench, ServiceNowBench, dynamics_bench, servicenow_bench
from tests.clients.marketo_bench import MarketoBench, marketo_bench
from tests.flows.world import World
from tests.security.payloads import ENCODED_QUERY, MARKUP, ODATA, VALUE_LIST

EVERYTHING = (*ENCODED_QUERY, *ODATA, *VALUE_LIST)
BOUNDED = settings(max_examples=60, deadline=None)
DECOYS = ("Printer", "decoy", "x", "a", "b", "INC0000001", "active=true")

servicenow_texts = st.one_of(
    st.sampled_from(EVERYTHING),
    st.lists(st.sampled_from(("^", "^OR", "^NQ", "javascript:", ",", "@", "=", "a", "\n", "%5E", "NULL")), max_size=8).map("".join),
    st.text(max_size=40),
).filter(lambda text: bool(text.strip()))  # fmt: skip
odata_texts = st.one_of(
    st.sampled_from((*ODATA, *ENCODED_QUERY)),
    st.lists(st.sampled_from(("'", "''", " or ", "1 eq 1", ")", "(", "%27", "&", "$filter=", "+", "#", "a")), max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
).filter(lambda text: bool(text.strip()))  # fmt: skip


def rows_or_refused(ask: Callable[[], Sequence[Row]]) -> list[Row] | None:
    """Return what a look-up gives; None when the client refused the value by name, which is the one refusal that may be."""
    try:
        return list(ask())
    except RejectedError as exc:
        if exc.code != "unsearchable_value":
            raise
        return None


@pytest.fixture(scope="module")
def servicenow() -> Iterator[ServiceNowBench]:
    with servicenow_bench() as bench:
        for text in DECOYS:
            bench.sim.insert("incident", short_description=text)
            bench.sim.insert("sys_user", user_name=f"{text}-user", email=f"{text}@decoy.example")
        yield bench


@pytest.fixture(scope="module")
def dynamics() -> Iterator[DynamicsBench]:
    with dynamics_bench() as bench:
        for text in DECOYS:
            bench.sim.insert("contact", firstname=text, lastname=text)
        yield bench


@pytest.fixture(scope="module")
def marketo() -> Iterator[MarketoBench]:
    with marketo_bench() as bench:
        bench.create("ada@customer.example", "eve@customer.example")
        yield bench


# -- ServiceNow: encoded queries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["short_description", "correlation_id", "number"])
@BOUNDED
@given(texts=st.lists(servicenow_texts, min_size=1, max_size=4, unique=True))
def test_servicenow_returns_only_rows_that_carry_a_value(
    servicenow: ServiceNowBench, field: str, texts: list[str]
) -> None:
    """Whatever a value holds, no other record comes back, and nothing of it runs on the server."""
    keys = [(text,) for text in texts]

    rows = rows_or_refused(lambda: servicenow.client.fetch_rows("incident", frozenset({field}), (field,), keys))

    wanted = {text.casefold() for text in texts}
    assert all(str(row.fields[field]).casefold() in wanted for row in rows or ())
    assert servicenow.sim.scripts == []


@pytest.mark.parametrize("text", EVERYTHING)
def test_servicenow_finds_a_searchable_value_itself(servicenow: ServiceNowBench, text: str) -> None:
    """Escaping changes no meaning: the record that holds the text is found, or the text is refused by name."""
    sys_id = servicenow.sim.insert("incident", short_description=text)
    name = "short_description"

    rows = rows_or_refused(lambda: servicenow.client.fetch_rows("incident", frozenset({name}), (name,), [(text,)]))

    assert rows is None or sys_id in [row.key for row in rows]
    assert servicenow.sim.scripts == []


@pytest.mark.parametrize("text", ENCODED_QUERY)
def test_servicenow_conditions_keep_their_values(servicenow: ServiceNowBench, text: str) -> None:
    """A recipe's condition with such a value lists nothing but records that meet it."""
    when = {"short_description": system.Test((text,)), "active": system.Test((True,))}

    rows = rows_or_refused(
        lambda: (
            servicenow.client.fetch_page(
                "incident", frozenset({"short_description"}), Changed(None, None, when), None
            ).rows
        )
    )

    assert {str(row.fields["short_description"]).casefold() for row in rows or ()} <= {text.casefold()}
    assert servicenow.sim.scripts == []


@pytest.mark.parametrize("key", ["../sys_user/1", "a" * 31, "A" * 32, "x^ORactive=true", "a" * 32 + "\n", "%2e%2e/"])
def test_servicenow_key_is_an_id_or_no_call(servicenow: ServiceNowBench, key: str) -> None:
    """What becomes part of a path is 32 hex digits; anything else is refused before a call."""
    calls = len(servicenow.sim.journal)
    write = Write(key, {"short_description": "x"}, {})

    with pytest.raises(RejectedError):
        servicenow.client.fetch_rows("incident", frozenset({"number"}), (), [(key,)])
    (answer,) = servicenow.client.write_rows("incident", [write])

    assert isinstance(answer, RejectedError)
    made = [entry for entry in servicenow.sim.journal[calls:] if "/incident" in entry.path]
    assert made == []


def test_hostile_cases_become_their_own_incidents(world: World) -> None:
    """End to end: titles, ticket numbers and emails full of query syntax create or adopt nothing but their own records."""
    decoys = {text: world.servicenow.insert("incident", short_description=text) for text in DECOYS}
    before = {key: dict(world.servicenow.tables["incident"][key]) for key in decoys.values()}
    users = len(world.servicenow.rows("sys_user"))
    cases = {
        text: world.add_case(text[:200]) for text in (*ENCODED_QUERY, *MARKUP) if text.strip() and "\x00" not in text
    }
    for number, text in enumerate(ENCODED_QUERY[:12]):
        contact = world.add_contact(f"{text}@customer.example", lastname=str(number))
        cases[f"email {text}"] = world.add_case(f"by a hostile address {number}", contact=contact)
    for number, text in enumerate(("X^ORactive=true", "javascript:1", "A,B", "'", "a@b", "X^NQ")):
        cases[f"ticket {text}"] = world.add_case(f"hostile ticket number {number}", ticketnumber=f"{text}{number}")

    run = world.sync()

    results = world.results(run)
    assert world.servicenow.scripts == []
    assert {key: dict(world.servicenow.tables["incident"][key]) for key in decoys.values()} == before
    assert set(results) == set(cases.values())
    for text, case in cases.items():
        result = results[case]
        found = world.incidents(correlation_id=case)
        assert len(found) == (result.outcome is Outcome.CREATED), text
        assert result.outcome in (Outcome.CREATED, Outcome.FAILED), (text, result.outcome)
        if result.outcome is Outcome.FAILED:
            assert result.reason in ("unsearchable_value", "email_malformed", "invalid_value"), (
                text,
                result.reason,
                result.message,
            )
    created = {row["email"] for row in world.servicenow.rows("sys_user")}
    assert len(created) <= users + 12
    assert not any("\n" in email or "," in email for email in created)


# -- Dynamics: OData ------------------------------------------------------------------------------------------------------


@BOUNDED
@given(texts=st.lists(odata_texts, min_size=1, max_size=4, unique=True))
def test_dynamics_returns_only_rows_that_carry_a_value(dynamics: DynamicsBench, texts: list[str]) -> None:
    """A quote, an operator, a parameter or an escape in a value stays inside its literal."""
    keys = [(text,) for text in texts]

    rows = dynamics.client.fetch_rows("contact", frozenset({"lastname"}), ("lastname",), keys)

    wanted = {text.casefold() for text in texts}
    assert all(str(row.fields["lastname"]).casefold() in wanted for row in rows)


@pytest.mark.parametrize("text", [text for text in (*ODATA, *ENCODED_QUERY) if len(text) <= 50 and text.isprintable()])
def test_dynamics_finds_the_value_itself(dynamics: DynamicsBench, text: str) -> None:
    """Escaping changes no meaning: the contact of this very name is found."""
    key = dynamics.sim.insert("contact", firstname="x", lastname=text)

    rows = dynamics.client.fetch_rows("contact", frozenset({"lastname"}), ("lastname",), [(text,)])

    assert key in [row.key for row in rows]


@pytest.mark.parametrize("text", ODATA)
def test_dynamics_condition_keeps_its_value(dynamics: DynamicsBench, text: str) -> None:
    """A recipe's condition with such a value lists nothing but records that meet it."""
    page = dynamics.client.fetch_page(
        "contact", frozenset({"lastname"}), Changed(None, None, {"lastname": system.Test((text,))}), None
    )

    assert {str(row.fields["lastname"]).casefold() for row in page.rows} <= {text.casefold()}


@pytest.mark.parametrize("text", [*ODATA, "../contacts", "contacts(1)", "a?b", "a#b", "a/b", "a;b"])
def test_dynamics_names_and_ids_are_checked_before_a_call(dynamics: DynamicsBench, text: str) -> None:
    """What becomes part of a path or of $select is a name or a GUID; anything else is refused."""
    calls = len(dynamics.sim.journal)

    for record, path, by, key in (
        (text, "lastname", (), "1"),
        ("contact", text, (), "11111111-1111-1111-1111-111111111111"),
        ("contact", "lastname", (), text),
        ("contact", "lastname", (text,), "x"),
    ):
        with pytest.raises(RejectedError):
            dynamics.client.fetch_rows(record, frozenset({path}), by, [(key,)])

    asked = [entry for entry in dynamics.sim.journal[calls:] if "EntityDefinitions" not in entry.path]
    assert asked == []


# -- Marketo: lists of filter values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*VALUE_LIST, *ENCODED_QUERY, *ODATA])
def test_marketo_never_finds_somebody_else(marketo: MarketoBench, text: str) -> None:
    """A comma cannot be escaped in a list of values: such a value is refused, every other finds its own lead or none."""
    rows = rows_or_refused(lambda: marketo.find(text))

    assert {str(row.fields["email"]).casefold() for row in rows or ()} <= {text.casefold()}


@BOUNDED
@given(st.lists(st.one_of(st.sampled_from(VALUE_LIST), st.text(min_size=1, max_size=30)), min_size=1, max_size=4))
def test_marketo_list_holds_what_was_asked(marketo: MarketoBench, texts: list[str]) -> None:
    """However many values go into one call, the rows carry one of them."""
    asked = [text for text in texts if text.strip()]
    if not asked:
        return

    rows = rows_or_refused(lambda: marketo.find(*asked))

    assert {str(row.fields["email"]).casefold() for row in rows or ()} <= {text.casefold() for text in asked}
