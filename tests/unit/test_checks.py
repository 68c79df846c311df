"""A recipe against what both systems say about their records."""

from shared.clients.system import FieldKind, FieldType, RecordType
from shared.errors import RejectedError
from sync.checks import Severity, validate
from tests.unit.recipe_texts import recipe_of


def record(name, *fields):
    """Return a type with these fields; a text is a plain field."""
    types = [FieldType(field) if isinstance(field, str) else field for field in fields]
    return RecordType(name, name, {each.name: each for each in types})


def reference(name, *records):
    return FieldType(name, FieldKind.REFERENCE, refers_to=records)


SYSTEMS = {
    ("dynamics365", "incident"): record(
        "incident", "title", "ticketnumber", "prioritycode", reference("customerid_contact", "contact"),
        FieldType("notes", FieldKind.LIST, refers_to=("annotation",)),
    ),
    ("dynamics365", "contact"): record("contact", "emailaddress1", reference("parentcustomerid", "account", "contact")),
    ("dynamics365", "account"): record("account", "name"),
    ("dynamics365", "annotation"): record("annotation", "text"),
    ("servicenow", "incident"): record(
        "incident",
        FieldType("number", length=40),
        FieldType("short_description", length=160, searchable=False),
        FieldType("urgency", FieldKind.CHOICE, choices=("1", "2", "3")),
        FieldType("priority", writable=False),
        reference("caller_id", "sys_user"),
        FieldType("work_notes", FieldKind.APPEND),
        FieldType("properties", FieldKind.OBJECT),
        "active",
    ),
    ("servicenow", "sys_user"): record("sys_user", "email", "name"),
    ("servicenow", "journal"): record("journal", "key"),
    ("servicenow", "incident.journal"): record("incident.journal", FieldType("text", FieldKind.APPEND), "key"),
}  # fmt: skip


def describe(connection, name):
    if (connection, name) not in SYSTEMS:
        raise RejectedError("no such record")
    return SYSTEMS[connection, name]


def problems_of(body):
    """Return the problems of a recipe as (line, sentence)."""
    return [(problem.line, problem.sentence) for problem in validate(recipe_of(body), describe)]


def test_a_recipe_that_fits_has_no_problems():
    """Paths are followed through references and child types, to any record that a reference may lead to."""
    body = """
match: [number]
gone: {work_notes: "Case {ticketnumber} is over"}
fields:
  number: ticketnumber
  short_description: {from: title, convert: {truncate: 160}}
  urgency: {from: prioritycode, choices: {1: 1, 2: [2, 3]}, default: 3}
  properties.Any Name: customerid_contact.parentcustomerid.name
  caller_id:
    from: customerid_contact
    default: guest@x.example
    find: {record: sys_user, match: [email], fields: {email: emailaddress1, name: parentcustomerid.emailaddress1}}
children:
  - {from: notes, record: journal, match: [key], write: create, fields: {key: id, text: text}}
"""

    assert problems_of(body) == []


def test_paths_and_fields_that_do_not_exist_are_found_where_they_stand():
    """Each problem has the line of its field and a suggestion."""
    body = """
when: {state: 0}
match: [{fields: [number], when: {activ: true}}]
gone: {work_note: "{ticketnumbr}"}
fields:
  number: ticket
  numbr: title
  urgency: title.more
  caller_id:
    from: customerid_contact
    find: {record: sys_user, match: [email],
      fields: {email: emailaddress,
        mail: emailaddress1}}
children:
  - {from: notes, record: journal, match: [key], write: create, fields: {key: id, text: txt}}
  - {from: comments, record: comment, match: [key], write: create, fields: {key: id}}
"""

    assert problems_of(body) == [
        (7, "incident has no field `state`; did you mean `title`?"),
        (8, "incident has no field `activ`; did you mean `active`?"),
        (9, "incident has no field `ticketnumbr`; did you mean `ticketnumber`?"),
        (9, "incident has no field `work_note`; did you mean `work_notes`?"),
        (11, "incident has no field `ticket`; did you mean `ticketnumber`?"),
        (12, "incident has no field `numbr`; did you mean `number`?"),
        (13, "`title` leads to no other record"),
        (13, "`urgency` takes certain values alone, and the recipe hands the source's on without `choices`"),
        (17, "contact has no field `emailaddress`; did you mean `emailaddress1`?"),
        (18, "sys_user has no field `mail`; did you mean `email`?"),
        (20, "annotation has no field `txt`; did you mean `text`?"),
        (
            21,
            "incident has no field `comments`; known are customerid_contact, notes, prioritycode, ticketnumber, title",
        ),
        (21, "servicenow has no record `incident.comment`"),
    ]


def test_values_that_the_target_will_not_take_are_found():
    """Unwritable fields, unknown choices, too long texts and wrong references."""
    body = """
match: [number, work_notes]
fields:
  number: {from: ticketnumber, convert: {truncate: 50}}
  priority: prioritycode
  urgency: {from: prioritycode, choices: {1: 1, 2: 9}, default: 8}
  work_notes: {from: title, write: if_empty}
  caller_id: {from: customerid_contact, find: {record: journal, match: [key], fields: {key: emailaddress1}}}
"""

    assert problems_of(body) == [
        (7, "`work_notes` only appends and cannot find a record"),
        (9, "`number` takes 40 characters, and the text is cut only after 50"),
        (10, "`priority` cannot be written"),
        (11, "`9` is not a choice of `urgency`; known are 1, 2, 3"),
        (11, "`8` is not a choice of `urgency`; known are 1, 2, 3"),
        (12, "`work_notes` only appends and is never empty or full: `if_empty` does not fit"),
        (13, "`caller_id` refers to sys_user, not journal"),
    ]


def test_what_works_but_may_surprise_is_a_warning():
    """Unsearchable match fields, references without `find` and choices handed on run, but are said."""
    body = """
match: [short_description]
fields:
  short_description: title
  urgency: prioritycode
  caller_id: customerid_contact
"""

    problems = validate(recipe_of(body), describe)

    assert [problem.severity for problem in problems] == [Severity.WARNING] * 3
    assert [problem.line for problem in problems] == [7, 10, 11]
    assert str(problems[0]).startswith(
        "recipes/case_to_incident.yaml:7: warning: `short_description` cannot be searched"
    )


def test_a_condition_that_no_record_meets_is_a_warning():
    """Who writes a choice's label for its value would see every record skipped, and no word why."""
    systems = SYSTEMS | {
        ("dynamics365", "incident"): record("incident", "title", FieldType("state", FieldKind.CHOICE, choices=(0, 1))),
        ("servicenow", "incident"): record("incident", "number", FieldType("active", FieldKind.BOOLEAN)),
    }
    body = """
when: {state: [0, active, null], title: anything}
match: [{fields: [number], when: {active: yes please}}, {fields: [number], when: {active: true}}]
fields: {number: title}
"""

    problems = validate(recipe_of(body), lambda connection, name: systems[connection, name])

    assert [(problem.severity, problem.line, problem.sentence) for problem in problems] == [
        (Severity.WARNING, 7, "`state` of incident is never `active`; known are 0, 1"),
        (Severity.WARNING, 8, "`active` of incident is never `yes please`; known are false, true"),
    ]


def test_a_system_without_the_record_is_said_once():
    """A wrong record type hides nothing else and is not repeated for each field."""
    text = "match: [a]\nfields: {a: x, b: y}"
    recipe = recipe_of(text, head="title: T\nsource: dynamics365.lead\ntarget: servicenow.tsk\nstart: {http: today}\n")

    problems = validate(recipe, describe)

    assert [problem.sentence for problem in problems] == [
        "dynamics365 has no record `lead`",
        "servicenow has no record `tsk`",
    ]
