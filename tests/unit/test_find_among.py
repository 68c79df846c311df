"""A child among its parent's children: by its marker or by values, never guessed, never another's."""

from typing import Any

import pytest

from shared.clients.system import Row
from shared.errors import MappingError
from sync.mapping import map_record
from sync.matching import Match, find_among
from sync.recipe import Block

COMMENT = {"text": {"value": "[{author} #{id}] {text}"}}
DEVICE = {"name": "name", "kind": "kind"}


def find(block: Block, child: dict[str, Any], *rows: dict[str, Any], taken: tuple[str, ...] = ()) -> Any:
    """Look for a child among rows, oldest first, of which some belong to others."""
    mapped = map_record(block, Row(str(child.get("id")), child))
    among = [Row(str(row["id"]), row) for row in rows]
    return find_among(block.match, among, mapped, lambda key: "another" if key in taken else "")


def block_of(match: list[Any], fields: dict[str, Any], write: str = "upsert") -> Block:
    return Block.model_validate(
        {"record": "child", "from": "children", "match": match, "write": write, "fields": fields}
    )


@pytest.mark.parametrize(
    ("texts", "taken", "found"),
    [
        (["[Ada #7] Hi"], (), "1"),
        (["[Bo #7] edited by a rule"], (), "1"),
        (["[Ada #17] Hi", "Hi"], (), None),
        (["[Ada #7] Hi", "> [Ada #7] Hi\nYes"], (), "1"),
        (["[Ada #7] Hi"], ("1",), None),
    ],
    ids=["as written", "author and text differ", "another id, equal text", "quoted", "another's"],
)
def test_a_comment_is_found_by_its_marker(texts: list[str], taken: tuple[str, ...], found: str | None) -> None:
    """Neither the author nor the text counts; a quote comes later; what is another's is not taken."""
    block = block_of(["text"], COMMENT, "create")
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts, 1)]

    answer = find(block, {"id": "7", "author": "Ada", "text": "Hi"}, *rows, taken=taken)

    assert (answer.row.key if isinstance(answer, Match) else answer) == found


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([{"id": "1", "name": "WORK mail", "kind": "email"}], "1"),
        ([{"id": "1", "name": "Work mail", "kind": None}], None),
        ([{"id": "1", "name": "Home mail", "kind": "email"}], None),
        ([], None),
    ],
    ids=["without regard to case", "one value empty", "another value", "none"],
)
def test_a_device_is_found_by_all_fields_of_a_rule(rows: list[dict[str, Any]], found: str | None) -> None:
    """Values compare as they do for records; an empty one matches nothing."""
    answer = find(block_of([["name", "kind"]], DEVICE), {"id": "7", "name": "Work mail", "kind": "email"}, *rows)

    assert (answer.row.key if isinstance(answer, Match) else answer) == found


def test_two_devices_that_match_are_not_chosen_between() -> None:
    """Two hits are the child's error."""
    rows = [{"id": "1", "name": "Mail", "kind": None}, {"id": "2", "name": "mail", "kind": None}]

    answer = find(block_of(["name"], DEVICE), {"id": "7", "name": "Mail"}, *rows)

    assert isinstance(answer, MappingError)
    assert answer.code == "ambiguous_match"


def test_a_later_rule_takes_nothing_that_the_first_rule_would_tell_apart() -> None:
    """What carries another value in the first rule's field is another child."""
    block = block_of(["name", "kind"], DEVICE)

    other = find(block, {"id": "7", "name": "Mail", "kind": "email"}, {"id": "1", "name": "Else", "kind": "email"})
    nameless = find(block, {"id": "7", "name": "Mail", "kind": "email"}, {"id": "1", "name": None, "kind": "email"})

    assert other is None
    assert nameless.row.key == "1"
