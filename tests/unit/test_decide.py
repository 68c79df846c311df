"""The pure decision: which fields go out, which stay, and why; and what a link remembers afterwards."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.clients.system import FieldKind, FieldType, RecordType, Row, Value
from shared.digests import Digests, parse_digest_keys
from shared.state.rows import LinkRow
from sync.decide import (
    Action,
    Decision,
    agreement,
    comparable,
    decide,
    is_stale,
    same_value,
    search_key,
    wants_find,
    wants_rekeying,
)
from sync.mapping import Mapped, map_record
from sync.recipe import Block

DIGESTS = Digests(parse_digest_keys("k:a-key-that-is-used-in-tests-alone-0001"))
TARGET = "servicenow.incident"
NOW = datetime(2026, 3, 10, 9, tzinfo=UTC)
RECORD = RecordType(
    "incident",
    "incident",
    {"work_notes": FieldType("work_notes", FieldKind.APPEND), "title": FieldType("title"), "level": FieldType("level")},
)
UNLINKED = None


def _block(rule: dict[str, Any] | None = None, name: str = "title", write: str = "upsert") -> Block:
    fields = {name: {"from": "source", **(rule or {})}}
    return Block.model_validate({"record": "incident", "match": [name], "write": write, "fields": fields})


def _mapped(block: Block, value: Value) -> Mapped:
    return map_record(block, Row("case-1", {"source": value}))


def _link(**agreed: str | None) -> LinkRow:
    """Return a settled link; a value after `!` was the target's own, one after `?` was never shown."""
    stored = {}
    for name, text in agreed.items():
        sign = text[0] if text and text[0] in "!?" else ""
        stored[f"{TARGET}.{name}"] = sign + DIGESTS.of(comparable(text[len(sign) :] if text else None))
    return LinkRow(pair="p", side="s", key="case-1", other_key="sys-1", agreed=stored)


def _decide(
    block: Block,
    value: Value,
    link: LinkRow | None = UNLINKED,
    held: Value = None,
    *,
    read: bool = True,
    target_changed_at: datetime = NOW,
    closed: bool = False,
    **facts: Any,
) -> Decision:
    name = next(iter(block.fields))
    return decide(
        block,
        _mapped(block, value),
        record=RECORD,
        target_name=TARGET,
        source=Row("case-1", {"source": value}, changed_at=NOW),
        link=link,
        target=Row("sys-1", {name: held}, changed_at=target_changed_at, closed=closed) if read else None,
        digests=DIGESTS,
        **facts,
    )


# -- one field ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "link", "held", "written"),
    [
        pytest.param("new", _link(title="old"), "old", True, id="source changed"),
        pytest.param("old", _link(title="old"), "old", False, id="nothing changed"),
        pytest.param("old", _link(title="old"), "agent's", False, id="only the target changed"),
        pytest.param("new", _link(title="old"), "agent's", True, id="both changed"),
        pytest.param("new", _link(title="old"), "new", False, id="target holds it already"),
        pytest.param("new", _link(), "other", True, id="field that was never agreed on"),
        pytest.param("old", _link(title="?old"), "other", False, id="sent and never shown: not sent again"),
        pytest.param("new", _link(title="?old"), "other", True, id="never shown, and changed since"),
        pytest.param("old", _link(title="!old"), "agent's", False, id="the target's own, and equal"),
        pytest.param("new", _link(title="!old"), "old", True, id="the target's own, and changed in the source"),
        pytest.param(None, _link(title="old"), "old", True, id="emptied, and filled by us"),
        pytest.param(None, _link(title="old"), "agent's", True, id="emptied, filled by us, then changed"),
        pytest.param(None, _link(title="!old"), "old", False, id="emptied, and the target's own"),
        pytest.param(None, _link(), "agent's", False, id="empty, and never ours"),
        pytest.param(None, _link(title=None), "agent's", False, id="emptied by us before"),
        pytest.param(None, _link(title="old"), None, False, id="emptied on both sides"),
        pytest.param("a  \r\nb", _link(title="old"), "a\nb", False, id="white space that systems change"),
    ],
)
def test_linked_field_is_written_when_the_source_changed(
    value: Value, link: LinkRow, held: Value, written: bool
) -> None:
    """A field goes out when its mapped value changed since it was last agreed, and the target does not hold it."""
    decision = _decide(_block(), value, link, held)

    assert decision.action is (Action.UPDATE if written else Action.NOTHING)
    assert decision.writes == ({"title": value} if written else {})
    assert decision.fields[0].reason


@pytest.mark.parametrize(
    ("mode", "held", "changed_at", "first_run", "written"),
    [
        pytest.param("on_create", "other", NOW, False, False, id="on_create"),
        pytest.param("if_empty", "other", NOW, False, False, id="if_empty, filled"),
        pytest.param("if_empty", None, NOW, False, True, id="if_empty, empty"),
        pytest.param("if_empty", "other", NOW, True, True, id="if_empty, first run"),
        pytest.param("unless_changed", "other", NOW, False, False, id="unless_changed, changed"),
        pytest.param("unless_changed", "old", NOW, False, True, id="unless_changed, untouched"),
        pytest.param("newest", "other", NOW + timedelta(hours=1), False, False, id="newest, target is newer"),
        pytest.param("newest", "other", NOW - timedelta(hours=1), False, True, id="newest, source is newer"),
        pytest.param("newest", "old", NOW + timedelta(hours=1), False, True, id="newest, only the source changed"),
    ],
)
def test_write_modes(mode: str, held: Value, changed_at: datetime, first_run: bool, written: bool) -> None:
    """Each mode keeps what it promises to keep, of a field that changed in the source."""
    block = _block({"write": mode})

    decision = _decide(block, "new", _link(title="old"), held, target_changed_at=changed_at, first_run=first_run)

    assert decision.writes == ({"title": "new"} if written else {})


def test_any_accepted_value_counts_as_equal() -> None:
    """A lossy pair of states does not swing: what stands for the same source value is left as it is."""
    block = _block({"choices": {"Working": ["2", "3"]}}, name="level")

    decisions = [_decide(block, "Working", _link(level="1"), held) for held in ("2", "3", "4")]

    assert [decision.writes for decision in decisions] == [{}, {}, {"level": "2"}]


def test_unusable_value_leaves_the_target_alone() -> None:
    """A value that stands in no table is no reason to clear what stands there."""
    block = _block({"choices": {"known": "1"}}, name="level")

    decision = _decide(block, "unknown", _link(level="1"), "1")

    assert decision.writes == {}


def test_field_whose_condition_does_not_hold_is_left_alone() -> None:
    """`when` of a field says when it is ours at all."""
    block = _block({"when": {"source": "x"}})

    decision = _decide(block, "y", _link(title="x"), "x")

    assert (decision.action, decision.writes) == (Action.NOTHING, {})


# -- the record ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "linked", "found", "action"),
    [
        pytest.param("upsert", False, False, Action.CREATE, id="new"),
        pytest.param("upsert", False, True, Action.UPDATE, id="adopted"),
        pytest.param("upsert", True, True, Action.UPDATE, id="linked"),
        pytest.param("create", False, False, Action.CREATE, id="create, new"),
        pytest.param("create", True, True, Action.NOTHING, id="create, exists"),
        pytest.param("update", False, False, Action.SKIP, id="update, nothing to update"),
        pytest.param("update", True, True, Action.UPDATE, id="update, exists"),
    ],
)
def test_how_far_a_block_may_go(write: str, linked: bool, found: bool, action: Action) -> None:
    """A block's `write` bounds what becomes of its record."""
    block = _block(write=write)

    decision = _decide(block, "new", _link(title="old") if linked else None, "old", read=found)

    assert decision.action is action


def test_create_sends_what_is_not_empty() -> None:
    """A new record gets its filled fields only; a claimed link without a target is none."""
    claimed = LinkRow(pair="p", side="s", key="case-1")

    filled, empty = (_decide(_block(), value, claimed, read=False) for value in ("new", None))

    assert (filled.action, filled.writes) == (Action.CREATE, {"title": "new"})
    assert (empty.action, empty.writes) == (Action.CREATE, {})


def test_closed_target_is_skipped_only_if_there_was_something_to_write() -> None:
    """A closed record that is up to date is unchanged; one that is not takes no changes."""
    same, other = (_decide(_block(), value, _link(title="old"), "old", closed=True) for value in ("old", "new"))

    assert same.action is Action.NOTHING
    assert (other.action, other.code) == (Action.SKIP, "target_closed")


def test_decision_without_the_target_is_preliminary() -> None:
    """Without the target's row a changed field counts as to be written: the row is read before anything is."""
    changed, same = (_decide(_block(), value, _link(title="old"), read=False) for value in ("new", "old"))

    assert (changed.action, same.action) == (Action.UPDATE, Action.NOTHING)


@pytest.mark.parametrize(("again", "written"), [(True, True), (False, False)])
def test_appended_text_is_due_again_for_another_occasion(again: bool, written: bool) -> None:
    """The same closing note is written once per closing."""
    block = _block(name="work_notes")

    decision = _decide(block, "Closed", _link(work_notes="Closed"), append_again=again)

    assert decision.writes == ({"work_notes": "Closed"} if written else {})


def test_appended_text_is_never_compared_with_what_stands_there() -> None:
    """A journal is not a value: text of somebody else's is no reason to leave ours out."""
    block = _block(name="work_notes")

    decision = _decide(block, "Closed", _link(), "Closed")

    assert decision.writes == {"work_notes": "Closed"}


# -- look-ups -------------------------------------------------------------------------------------------------------


def _reference(value: Value) -> Mapped:
    find = {"record": "sys_user", "match": ["email"], "fields": {"email": "mail"}}
    block = Block.model_validate(
        {
            "record": "incident",
            "match": ["title"],
            "fields": {"title": "source", "caller": {"from": "who", "find": find}},
        }
    )
    return map_record(block, Row("case-1", {"source": "t", "who": "contact-1", "who.mail": value}))


@pytest.mark.parametrize(
    ("asked", "now", "wanted"),
    [
        pytest.param("a@example.com", "a@example.com", False, id="as before"),
        pytest.param("a@example.com", "A@Example.com", False, id="as before, in other letters"),
        pytest.param("a@example.com", "b@example.com", True, id="another person"),
        pytest.param(None, "a@example.com", True, id="never asked"),
    ],
)
def test_reference_is_asked_for_when_its_question_changed(asked: str | None, now: str, wanted: bool) -> None:
    """While the question stays the same the answer is not looked up again, and an agent's choice stays."""
    link = LinkRow(pair="p", side="s", key="case-1", other_key="sys-1")
    if asked:
        answered = _answered(_reference(asked))
        _, inputs, _ = agreement(Decision(Action.NOTHING), answered, TARGET, link, None, None, DIGESTS)
        link = link.model_copy(update={"inputs": inputs})

    fields = wants_find(_reference(now), link, TARGET, DIGESTS)

    assert [field.name for field in fields] == (["caller"] if wanted else [])


def test_new_record_asks_for_every_reference() -> None:
    """Without a link nothing was ever asked."""
    fields = wants_find(_reference("a@example.com"), None, TARGET, DIGESTS)

    assert [field.name for field in fields] == ["caller"]


def _answered(mapped: Mapped, key: str | None = "user-1") -> Mapped:
    return dataclasses.replace(mapped, fields={**mapped.fields, "caller": mapped.fields["caller"].found(key)})


# -- what the link remembers ------------------------------------------------------------------------------------------


def _remember(value: Value, link: LinkRow | None, held: Value, shown: dict[str, Value] | None) -> tuple[Any, list[str]]:
    block = _block()
    decision = _decide(block, value, link, held)
    target = Row("sys-1", {"title": held})
    agreed, _, lost = agreement(decision, _mapped(block, value), TARGET, link, target, shown, DIGESTS)
    return agreed.get(f"{TARGET}.title"), lost


@pytest.mark.parametrize(
    ("value", "link", "held", "shown", "sign", "text", "lost"),
    [
        pytest.param("new", _link(title="old"), "old", {"title": "new"}, "", "new", [], id="written and shown"),
        pytest.param("new", _link(title="old"), "old", None, "", "new", [], id="written, the answer shows nothing"),
        pytest.param("new", _link(title="old"), "old", {"title": "old"}, "?", "new", ["title"], id="not taken"),
        pytest.param("new", _link(title="old"), "new", None, "", "new", [], id="found to be held"),
        pytest.param("same", None, "same", None, "!", "same", [], id="adopted with it"),
        pytest.param("old", _link(title="old"), "agent's", None, "", "old", [], id="the agent's change is not ours"),
    ],
)
def test_link_remembers_what_both_sides_agreed_on(
    value: Value, link: LinkRow | None, held: Value, shown: Any, sign: str, text: str, lost: list[str]
) -> None:
    """A link holds digests of what was agreed: ours, the target's own, or sent and never shown."""
    stored, missing = _remember(value, link, held, shown)

    assert stored == sign + DIGESTS.of(comparable(text))
    assert missing == lost


def test_remembered_decision_is_repeated_as_nothing() -> None:
    """Whatever was agreed on, the same record brings nothing new."""
    block = _block()
    for shown in ({"title": "new"}, {"title": "old"}, None):
        stored, _ = _remember("new", _link(title="old"), "old", shown)
        link = _link().model_copy(update={"agreed": {f"{TARGET}.title": stored}})

        assert _decide(block, "new", link, "old").action is Action.NOTHING


# -- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("", None, True, id="empty"),
        pytest.param("  \n", None, True, id="white space"),
        pytest.param(3, "3", True, id="number and text"),
        pytest.param(3.0, 3, True, id="whole number"),
        pytest.param(True, "true", True, id="boolean and text"),
        pytest.param("a\r\nb", "a\nb", True, id="line ends"),
        pytest.param("é", "e\u0301", True, id="Unicode form"),
        pytest.param(NOW.replace(microsecond=5), NOW, True, id="within a second"),
        pytest.param("A", "a", False, id="case"),
        pytest.param("0", None, False, id="zero is a value"),
        pytest.param(False, None, False, id="false is a value"),
    ],
)
def test_comparable_values(one: Value, other: Value, same: bool) -> None:
    """Two systems' spellings of the same thing are equal, and nothing else is."""
    assert same_value(one, other) is same


def test_search_key_ignores_case() -> None:
    """Match rules find an email however it is written."""
    assert search_key("Ada@Example.COM ") == search_key("ada@example.com")


@pytest.mark.parametrize(
    ("seen", "version", "stale"), [("5", "4", True), ("5", "5", False), ("5", "6", False), ("", "1", False)]
)
def test_only_a_strictly_older_version_is_stale(seen: str, version: str, stale: bool) -> None:
    """An equal version is compared by content."""
    link = LinkRow(pair="p", side="s", key="k", versions={"dynamics365.incident": seen})

    assert is_stale(link, "dynamics365.incident", Row("k", {}, version=version)) is stale


# -- rotating the digests' key --------------------------------------------------------------------------------------------

ROTATING = Digests(
    parse_digest_keys("n:a-newer-key-that-tests-alone-use-0002,k:a-key-that-is-used-in-tests-alone-0001")
)
NEW_ALONE = Digests(parse_digest_keys("n:a-newer-key-that-tests-alone-use-0002"))


@pytest.mark.parametrize(
    ("agreed", "value", "held", "value_known"),
    [
        pytest.param("same", "same", None, "same", id="the source's value"),
        pytest.param("!same", "same", None, "same", id="the target's own"),
        pytest.param("?same", "same", None, "same", id="never shown"),
        pytest.param(None, None, None, None, id="nothing"),
        pytest.param("agent's", "ours", "agent's", "agent's", id="the target's value"),
    ],
)
def test_digests_outlive_the_end_of_a_rotation(
    agreed: str | None, value: Value, held: Value, value_known: Value
) -> None:
    """While two keys hold, what is worked goes over to the new one, so that the old one can go."""
    link = _link(title=agreed)
    target = Row("sys-1", {"title": held}) if held else None

    after, _, _ = agreement(Decision(Action.NOTHING), _mapped(_block(), value), TARGET, link, target, None, ROTATING)

    stored = after[f"{TARGET}.title"]
    assert stored[:1] == (agreed[:1] if agreed and agreed[0] in "!?" else "n")
    assert NEW_ALONE.matches(comparable(value_known), stored.lstrip("!?"))


def test_unknown_value_keeps_its_old_digest() -> None:
    """What neither side holds any more cannot be made anew: the older key still recognises it."""
    link = _link(title="gone")

    after, _, _ = agreement(Decision(Action.NOTHING), _mapped(_block(), "other"), TARGET, link, None, None, ROTATING)

    assert after == link.agreed
    assert wants_rekeying(link, ROTATING)
    assert not wants_rekeying(link, DIGESTS)


def test_value_that_both_sides_came_to_by_themselves_is_not_ours() -> None:
    """What the target held by itself, and changed by itself to what the source says, was never filled by us."""
    link, target = _link(title="!old"), Row("sys-1", {"title": "new"})

    after, _, _ = agreement(Decision(Action.NOTHING), _mapped(_block(), "new"), TARGET, link, target, None, DIGESTS)

    assert after == _link(title="!new").agreed
