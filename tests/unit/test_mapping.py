"""Mapping: what each target field should hold."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clients.system import FieldKind, FieldType, RecordType, Row
from shared.clients.system import Test as Line
from shared.errors import MappingError
from sync.mapping import child_rows, holds, map_record, same
from sync.placeholders import Template, parse_template
from sync.recipe import WriteMode
from tests.unit.recipe_texts import block_of, recipe_of, row_of

NEEDLE = "Ada-Quill-4711"


def field_of(line, *, types=None, **fields):
    """Map one field `a` of a recipe."""
    record = RecordType("incident", "incident", {"a": types}) if types else None
    return map_record(block_of(f"a: {line}"), row_of(**fields), record).fields["a"]


def codes(field):
    return [warning.code for warning in field.warnings]


def test_several_paths_give_the_first_that_is_not_empty():
    """Paths are asked in order."""
    field = field_of("{from: [x, y.z]}", x=None, y__z="second")

    assert field.value == "second"
    assert not field.source_empty


def test_an_empty_source_is_empty():
    """Empty is None, also where a system gave an empty text or list."""
    for nothing in (None, "", []):
        field = field_of("x", x=nothing)

        assert (field.value, field.empty, field.source_empty) == (None, True, True)


@pytest.mark.parametrize(
    ("nothing", "convert"), [("  ", "strip"), ("\n \n", "tidy_lines"), ("<p>&nbsp;</p>", "html_to_text")]
)
def test_what_converts_to_nothing_is_empty(nothing, convert):
    """Blanks and markup without text are an empty source: they clear what we filled, and fail where it is required."""
    field = field_of(f"{{from: x, convert: {convert}}}", x=nothing)

    assert (field.value, field.source_empty) == (None, True)
    with pytest.raises(MappingError, match="x is empty"):
        field_of(f"{{from: x, convert: {convert}, required: it_is_needed}}", x=nothing)


def test_zero_and_false_are_not_empty():
    """A zero is a value."""
    assert field_of("x", x=0).value == 0
    assert field_of("x", x=False).value is False


@pytest.mark.parametrize(
    ("source", "expected", "warned"),
    [
        (1, 10, []),
        ("1", 10, []),
        (7, 30, ["unknown_choice"]),
        (None, 30, []),
    ],
)
def test_choices_with_a_default(source, expected, warned):
    """An empty source takes the default in silence, a value in no row takes it with a warning."""
    field = field_of("{from: x, choices: {1: 10, 2: [20, 21]}, default: 30}", x=source)

    assert field.value == expected
    assert codes(field) == warned


def test_choices_without_a_default_leave_the_field_empty():
    """A value in no row, without default, warns; the source still counts as filled."""
    field = field_of("{from: x, choices: {1: 10}}", x=5)

    assert (field.value, field.empty, field.source_empty) == (None, True, False)
    assert codes(field) == ["unknown_choice"]


def test_a_list_on_the_right_is_written_first_and_accepted_as_any():
    """The first value is written; the others count as equal."""
    field = field_of("{from: x, choices: {Working: [2, 3]}}", x="Working")

    assert field.value == 2
    assert field.accepted == (2, 3)


def test_of_several_source_values_the_top_row_wins():
    """The table's order decides, not the source's."""
    field = field_of("{from: x, choices: {admin: FULL, viewer: PART}}", x=["viewer", "other", "admin"])

    assert field.value == "FULL"


def test_true_is_not_one():
    """A table for booleans does not take numbers."""
    field = field_of("{from: x, choices: {true: ACTIVE, false: INACTIVE}}", x=1)

    assert codes(field) == ["unknown_choice"]


def test_a_row_may_mean_empty():
    """`null` on the right empties the field on purpose: no warning, no default."""
    field = field_of("{from: x, choices: {0: null, 1: 5}, default: 9}", x=0)

    assert field.value is None
    assert codes(field) == []


def test_templates_are_filled_and_empty_without_any_value():
    """Empty holes leave nothing; a text whose holes are all empty is empty."""
    line = '{value: "[{b}] {c}"}'

    assert field_of(line, b="x", c=None).value == "[x] "
    assert field_of(line, b=datetime(2026, 3, 1, 9, tzinfo=UTC), c=True).value == "[2026-03-01T09:00:00Z] true"
    assert field_of(line, b=None, c="").source_empty


def test_a_constant_needs_no_source():
    """A constant is written as it stands, with doubled braces made single."""
    assert field_of('{value: "a {{b}}"}').value == "a {b}"
    assert field_of("{value: [Standard User]}").value == ["Standard User"]
    assert field_of("{value: 0}").value == 0


def test_required_fails_the_record_with_its_reason():
    """An empty source fails with the recipe's word; the sentence says it plainly and names the field and its path."""
    with pytest.raises(MappingError) as caught:
        field_of("{from: [x, y], required: contact_without_email}", x=None, y=None)

    assert caught.value.code == "contact_without_email"
    assert caught.value.message == "The contact has no email (a: x or y is empty or cannot be used)."


def test_required_alone_has_a_reason_of_its_own():
    """`required: true` fails with a general reason."""
    with pytest.raises(MappingError) as caught:
        field_of("{from: x, required: true}", x=None)

    assert caught.value.code == "required_empty"


def test_required_counts_the_source_and_not_the_default():
    """With both, an empty source fails and a bad value takes the default."""
    line = "{from: x, convert: e164, required: no_phone, default: '+490'}"

    with pytest.raises(MappingError, match="a: x"):
        field_of(line, x=None)
    assert field_of(line, x="call me").value == "+490"


def test_an_invalid_value_takes_the_default_or_nothing_with_a_warning():
    """A converter's refusal is never silent."""
    with_default = field_of("{from: x, convert: iana_zone, default: US/Eastern}", x="System")
    without = field_of("{from: x, convert: iana_zone}", x="System")

    assert (with_default.value, codes(with_default)) == ("US/Eastern", ["invalid_value"])
    assert (without.value, without.empty, without.source_empty) == (None, True, False)
    assert codes(without) == ["invalid_value"]


def test_a_cut_text_warns_and_accepts_the_whole_one():
    """The target may hold the text whole or as we cut it."""
    field = field_of("{from: x, convert: {truncate: 8}}", x="Printer offline")

    assert field.accepted == ("Printer…", "Printer offline")
    assert codes(field) == ["truncated"]


def test_when_skips_a_field():
    """A field whose condition does not hold is not mapped at all, not even when it would fail."""
    field = field_of("{from: x, when: {y: [1, 2]}, required: true}", x=None, y=3)

    assert field.skipped_by_when
    assert not field.source_empty


@pytest.mark.parametrize(
    ("test", "value", "expected"),
    [
        (Line((1, 2)), 2, True),
        (Line((1, 2)), "2", True),
        (Line((1, 2)), 3, False),
        (Line((None,)), None, True),
        (Line((None,)), [], True),
        (Line((None,), negated=True), None, False),
        (Line((None,), negated=True), "x", True),
        (Line(("a", None)), None, True),
        (Line(("a",), negated=True), "b", True),
        (Line(("itil",)), ["admin", "itil"], True),
        (Line(("itil",), negated=True), ["admin", "itil"], False),
        (Line((True,)), 1, False),
    ],
)
def test_conditions(test, value, expected):
    """Any of the values, none of them when negated, null for empty, and a list by its items."""
    assert holds({"path": test}, {"path": value}) is expected


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (FieldKind.NUMBER, "3", 3),
        (FieldKind.NUMBER, "2.5", 2.5),
        (FieldKind.TEXT, 3, "3"),
        (FieldKind.TEXT, True, "true"),
        (FieldKind.BOOLEAN, "true", True),
        (FieldKind.TIME, "2026-03-01T09:00:00+01:00", datetime(2026, 3, 1, 8, tzinfo=UTC)),
        (FieldKind.LIST, "one", ["one"]),
        (FieldKind.REFERENCE, "id", "id"),
        (FieldKind.OBJECT, {"a": 1}, {"a": 1}),
    ],
)
def test_values_fit_the_kind_of_the_targets_field(kind, value, expected):
    """Harmless differences between systems are bridged."""
    field = field_of("x", types=FieldType("a", kind), x=value)

    assert field.value == expected
    assert type(field.value) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (FieldKind.NUMBER, NEEDLE),
        (FieldKind.NUMBER, True),
        (FieldKind.NUMBER, "nan"),
        (FieldKind.BOOLEAN, 1),
        (FieldKind.TIME, "2026-03-01T09:00:00"),
        (FieldKind.TEXT, {"a": 1}),
        (FieldKind.OBJECT, "x"),
    ],
)
def test_a_value_of_another_kind_fails_the_record_or_takes_the_default(kind, value):
    """Nothing of the wrong kind reaches a client."""
    types = FieldType("a", kind)

    with pytest.raises(MappingError, match="a: the target takes") as caught:
        field_of("x", types=types, x=value)
    assert caught.value.code == "wrong_kind"
    if kind is FieldKind.NUMBER:
        assert codes(field_of("{from: x, default: 3}", types=types, x=value)) == ["wrong_kind"]


def test_a_choice_of_the_target_keeps_the_targets_type():
    """The recipe writes 3, the target's choice is "3"."""
    types = FieldType("a", FieldKind.CHOICE, choices=("1", "3"))

    assert field_of("x", types=types, x=3).value == "3"
    assert codes(field_of("x", types=types, x=4)) == ["not_a_choice"]
    assert field_of("{from: x, default: 1}", types=types, x=4).value == "1"


def test_a_text_longer_than_the_field_warns():
    """Without truncate the text stays whole, and the engine decides."""
    field = field_of("x", types=FieldType("a", length=3), x="long")

    assert field.value == "long"
    assert codes(field) == ["too_long"]


FIND = """
a: {from: customer, required: customer_is_account, find: {record: sys_user, match: [email], write: create, fields: {email: mail, last_name: last}}}
"""


def test_a_reference_asks_with_the_fields_of_what_it_points_to():
    """Paths inside `find` begin at the reference."""
    row = row_of(customer="C1", customer__mail="ada@x.example", customer__last="Quill")

    field = map_record(block_of(FIND), row).fields["a"]

    assert field.needs_find
    assert field.value == "C1"
    assert field.find_inputs.key == "C1"
    assert field.find_inputs.values == {"email": "ada@x.example", "last_name": "Quill"}
    assert field.find_inputs.match_values(field.rule.find.match[0]) == ("ada@x.example",)


def test_a_found_reference_becomes_the_value():
    """The answer replaces the source's own id; none empties the field."""
    row = row_of(customer="C1", customer__mail="ada@x.example", customer__last="Quill")
    field = map_record(block_of(FIND), row).fields["a"]

    found, missed = field.found("U1"), field.found(None)

    assert (found.value, found.accepted, found.empty) == ("U1", ("U1",), False)
    assert (missed.value, missed.empty, missed.source_empty) == (None, True, False)


def test_a_reference_that_is_empty_fails_where_it_is_required():
    """A case whose customer is an account has no contact."""
    with pytest.raises(MappingError) as caught:
        map_record(block_of(FIND), row_of(customer=None))

    assert caught.value.code == "customer_is_account"


def test_a_reference_without_match_values_is_never_asked():
    """No email: not searched, not created, a warning instead."""
    row = row_of(customer="C1", customer__mail=None, customer__last="Quill")

    field = map_record(block_of(FIND), row).fields["a"]

    assert not field.needs_find
    assert field.empty
    assert codes(field) == ["a_without_email"]


def test_a_default_is_looked_up_like_the_value_and_never_created():
    """The default stands in the first match rule's field; the block that carries it only looks."""
    block = block_of(FIND.replace("required: customer_is_account", "default: guest@x.example"))

    empty = map_record(block, row_of(customer=None)).fields["a"]
    filled = map_record(block, row_of(customer="C1", customer__mail="ada@x.example")).fields["a"]
    unusable = map_record(block, row_of(customer="C1", customer__mail=None)).fields["a"]

    assert empty.find_inputs.values == {"email": "guest@x.example"}
    assert empty.find_inputs.block.write is WriteMode.NEVER
    assert codes(empty) == []
    assert filled.find_inputs.block.write is WriteMode.CREATE
    assert filled.default_inputs.values == {"email": "guest@x.example"}
    assert unusable.find_inputs.values == {"email": "guest@x.example"}
    assert codes(unusable) == ["a_without_email"]


@pytest.mark.parametrize(("required", "code"), [("true", "a_without_email"), ("no_caller", "no_caller")])
def test_a_reference_that_must_be_there_fails_the_record(required, code):
    """`required` inside `find` turns the warning into a failure."""
    block = block_of(FIND.replace("write: create", f"write: create, required: {required}"))

    with pytest.raises(MappingError) as caught:
        map_record(block, row_of(customer="C1", customer__mail=None))

    assert caught.value.code == code


def test_a_failure_inside_a_reference_is_a_warning_outside():
    """A required field of the record referred to leaves the reference empty, not the record unsynced."""
    block = block_of(FIND.replace("email: mail", "email: {from: mail, required: contact_without_email}"))

    field = map_record(block, row_of(customer="C1", customer__mail=None)).fields["a"]

    assert codes(field) == ["contact_without_email"]


def test_the_first_filled_reference_gives_the_fields():
    """With several paths the block reads behind the one that counts."""
    block = block_of(FIND.replace("from: customer", "from: [customer, account.primary]"))
    row = row_of(customer=None, account__primary="C2", account__primary__mail="bo@x.example")

    field = map_record(block, row).fields["a"]

    assert field.find_inputs.values["email"] == "bo@x.example"
    assert "account.primary.mail" in set(block.read_paths())


def test_a_record_can_be_its_own_reference():
    """`from: .` looks up by the record's own fields."""
    block = block_of("a: {from: ., find: {record: core_company, match: [name], fields: {name: Name}}}")

    field = map_record(block, row_of(Name="Contoso")).fields["a"]

    assert field.value == "K1"
    assert field.find_inputs.values == {"name": "Contoso"}
    assert set(block.read_paths()) == {".", "Name"}


def test_a_path_can_be_its_own_record():
    """`.` inside a `find` is the value itself."""
    block = block_of("a: {from: owner.email, find: {record: User, match: [Email], fields: {Email: .}}}")

    field = map_record(block, row_of(owner__email="ada@x.example")).fields["a"]

    assert field.find_inputs.values == {"Email": "ada@x.example"}


def test_a_reference_by_link_needs_no_fields():
    """`match: [link]` asks with the reference's own key."""
    block = block_of("a: {from: manager, find: {record: person, match: [link]}}")

    field = map_record(block, row_of(manager="U9")).fields["a"]

    assert field.needs_find
    assert field.find_inputs.key == "U9"


CHILDREN = """
write: update
fields: {}
children:
  - from: journal
    record: CaseComment
    match: [CommentBody]
    write: create
    when: {element: comments}
    fields:
      CommentBody: {value: "[{author} #{id}] {text}"}
  - record: device
    match: [name]
    when: {email: {not: null}}
    fields: {name: {value: Work Email}, address: email}
"""


def test_children_are_rows_of_their_own():
    """A child type's entries that meet `when` come with their id as key; a child without `from` is the record itself."""
    recipe = recipe_of(CHILDREN.replace("fields: {}", "fields: {a: x}"))
    journal = [
        {"id": "J1", "author": "Ada", "text": "Hi", "element": "comments"},
        {"id": "J2", "author": "Bo", "text": "Secret", "element": "work_notes"},
    ]
    comments, device = recipe.block.children

    rows = child_rows(comments, row_of(journal=journal, email=None))
    mapped = map_record(comments, rows[0]).fields["CommentBody"]

    assert [row.key for row in rows] == ["J1"]
    assert mapped.value == "[Ada #J1] Hi"
    assert mapped.marker == "#J1]"
    assert child_rows(device, row_of(journal=journal, email=None)) == ()
    assert child_rows(device, row_of(email="ada@x.example"))[0].key == "K1"


def test_the_marker_does_not_depend_on_the_author():
    """A comment whose author was renamed is still found."""
    block = recipe_of(CHILDREN.replace("fields: {}", "fields: {a: x}")).block.children[0]
    entries = [Row("J1", {"id": "J1", "author": name, "text": name, "element": "comments"}) for name in ("Ada", "Bo")]

    markers = {map_record(block, entry).fields["CommentBody"].marker for entry in entries}

    assert markers == {"#J1]"}


def test_read_paths_name_everything_a_recipe_reads():
    """Finds, templates, converters, conditions, children and `gone` are among the paths of the source."""
    body = CHILDREN.replace(
        "fields: {}",
        """gone: {note: "Case {ticket} closed"}
when: {statecode: 0}
fields:
  a: {from: x, when: {y: 1}, convert: {opens_with: {path: title, longer_than: 3}}}
  b: {from: team, find: {record: group, match: [name], fields: {name: name, mail: {value: "{user.mail}"}}}}""",
    )

    paths = recipe_of(body).read_paths()

    assert paths == {
        "statecode", "x", "y", "title", "team", "team.name", "team.user.mail", "ticket", "email",
        "journal.id", "journal.author", "journal.text", "journal.element",
    }  # fmt: skip


def test_target_paths_hold_fields_and_match_conditions():
    """What deciding and matching read of the target."""
    recipe = recipe_of(
        "match: [{fields: [a], when: {active: true}, same_or_empty: [b]}]\ngone: {note: closed}\nfields: {a: x, b: y}"
    )

    assert recipe.block.target_paths() == {"a", "b", "active"}
    assert recipe.target_paths() == {"a", "b", "active", "note"}


def test_the_fields_of_gone_are_mapped_like_a_block():
    """A short value in `gone` is a text with paths; paths that are gone too count as empty."""
    recipe = recipe_of('match: [a]\ngone: {note: "Case {ticket} closed", status: INACTIVE}\nfields: {a: x}')

    there = map_record(recipe.gone_block, row_of(ticket="CAS-1"))
    deleted = map_record(recipe.gone_block, Row("K1", {}))

    assert there.values == {"note": "Case CAS-1 closed", "status": "INACTIVE"}
    assert deleted.values == {"note": None, "status": "INACTIVE"}


@pytest.mark.parametrize(
    "line",
    [
        "{from: x, choices: {1: 2}}",
        "{from: x, convert: e164}",
        "{from: x, convert: {truncate: 3}}",
        "{from: x, convert: iana_zone, required: bad}",
        "x",
    ],
)
def test_no_text_repeats_a_value(line):
    """Warnings and errors travel into results and mails: they name fields and paths."""
    types = FieldType("a", FieldKind.CHOICE, length=2, choices=("z",))
    try:
        texts = [warning.text for warning in field_of(line, types=types, x=NEEDLE).warnings]
    except MappingError as exc:
        texts = [exc.message]

    assert texts
    assert not any(NEEDLE[:4] in text for text in texts)


@given(text=st.text())
def test_an_escaped_text_is_a_constant_that_says_the_same(text):
    """Doubled braces are the way to mean them."""
    doubled = text.replace("{", "{{").replace("}", "}}")

    assert parse_template(doubled) == text


@given(values=st.dictionaries(st.sampled_from(["a", "b.c", "d"]), st.text(min_size=1)))
def test_a_value_is_never_read_as_a_template(values):
    """Braces inside a record's value stay what they are."""
    template = parse_template("{a}|{b.c}|{d}")

    assert isinstance(template, Template)
    assert template.render(values.get) == (
        "|".join(values.get(path, "") for path in ("a", "b.c", "d")) if values else None
    )


@pytest.mark.parametrize("text", ["{", "}", "{}", "{ }", "{a", "a}", "{a{b}}", "{{a}"])
def test_a_lone_brace_is_refused(text):
    """A brace without its partner is a slip."""
    with pytest.raises(ValueError, match="brace"):
        parse_template(text)


@given(st.one_of(st.integers(), st.text(), st.booleans()))
def test_values_are_the_same_as_themselves(value):
    """Equality holds for every kind of value."""
    assert same(value, value)
