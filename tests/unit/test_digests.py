"""Digests: equal values have equal digests, others do not, and a rotation keeps both keys valid."""

import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.digests import DigestKey, Digests, canonical, parse_digest_keys

OLD = DigestKey("k1", "a" * 32)
NEW = DigestKey("k2", "b" * 32)
DIGESTS = Digests([NEW])

times = st.datetimes(timezones=st.just(UTC))
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | times
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)


@given(values)
def test_digest_has_a_key_id_and_22_characters(value):
    """A digest says which key made it and has a fixed, key-safe form."""
    key_id, _, mac = DIGESTS.of(value).partition(".")

    assert key_id == "k2"
    assert len(mac) == 22
    assert set(mac) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert DIGESTS.matches(value, DIGESTS.of(value))


@given(values, values)
def test_digest_tells_different_values_apart(one, other):
    """Two values share a digest only if they mean the same."""
    assume(canonical(one) != canonical(other))

    assert DIGESTS.of(one) != DIGESTS.of(other)
    assert not DIGESTS.matches(one, DIGESTS.of(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(1, 1.0, id="number"),
        pytest.param(0, -0.0, id="zero"),
        pytest.param("é", "e\u0301", id="unicode"),
        pytest.param({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, id="order of names"),
        pytest.param(
            datetime(2026, 3, 1, 12, tzinfo=UTC),
            datetime(2026, 3, 1, 13, tzinfo=timezone(timedelta(hours=1))),
            id="zone of a time",
        ),
    ],
)
def test_digest_is_the_same_for_what_means_the_same(one, other):
    """Spelling does not matter, meaning does."""
    assert DIGESTS.of(one) == DIGESTS.of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(None, "", id="empty and empty text"),
        pytest.param(None, "null", id="empty and a word"),
        pytest.param(None, False, id="empty and false"),
        pytest.param(1, True, id="one and true"),
        pytest.param(1, "1", id="number and text"),
        pytest.param("a", "A", id="case"),
        pytest.param([1, 2], [2, 1], id="order of a list"),
        pytest.param([], {}, id="list and object"),
    ],
)
def test_digest_differs_for_what_differs(one, other):
    """Values of different kinds never share a digest by accident."""
    assert DIGESTS.of(one) != DIGESTS.of(other)


@given(st.text())
def test_digest_ignores_the_form_of_unicode(text):
    """Composed and decomposed text is the same text."""
    decomposed = unicodedata.normalize("NFD", text)

    assert DIGESTS.of(decomposed) == DIGESTS.of(unicodedata.normalize("NFC", text))


@given(values)
def test_digest_of_either_key_matches_during_a_rotation(value):
    """While two keys are valid the new one makes digests and both are recognised; afterwards the old one is not."""
    stored = Digests([OLD]).of(value)
    rotating = Digests([NEW, OLD])

    assert rotating.matches(value, stored)
    assert rotating.candidates(value) == (DIGESTS.of(value), stored)
    assert rotating.of(value) == DIGESTS.of(value)
    assert not rotating.is_current(stored)
    assert not DIGESTS.matches(value, stored)


@pytest.mark.parametrize("stored", ["", "k2", "k2.", "k9.abc", "\u00e9.x", "k2.\u00e9"])
def test_digest_that_is_none_matches_nothing(stored):
    """What is no digest of ours is simply not equal."""
    assert not DIGESTS.matches("x", stored)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), datetime(2026, 3, 1)])  # noqa: DTZ001
def test_digest_refuses_what_has_no_meaning(value):
    """Naive times and infinite numbers are mistakes of the caller."""
    with pytest.raises(ValueError, match="to have a digest"):
        DIGESTS.of(value)


def test_digest_keys_stay_out_of_repr():
    """A key shows its id only."""
    assert repr(parse_digest_keys(f"k1:{'s' * 32}")) == "(DigestKey(id='k1'),)"


def test_digest_keys_may_hold_colons():
    """Only the first colon separates id and secret."""
    secret = "a:b:" + "c" * 40

    assert parse_digest_keys(f" k1:{secret} , k2:{secret}") == (DigestKey("k1", secret), DigestKey("k2", secret))
