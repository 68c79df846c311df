"""The shipped recipe case_to_incident, row by row, with its generated pages."""

import json
import re
from pathlib import Path

import pytest

from cli import main
from shared.clients.system import Row
from shared.errors import MappingError
from sync.catalogue import print_catalogue
from sync.mapping import holds, map_record
from sync.recipe import WriteMode
from sync.recipe_loader import load_recipes, parse_recipe
from sync.recipe_schema import build_schema

ROOT = Path(__file__).parents[2]
RECIPE = load_recipes(ROOT / "recipes")["case_to_incident"]
LONG_TITLE = "Printer offline on floor " + "9" * 160
CASE = {
    "incidentid": "case-1",
    "ticketnumber": "CAS-01001-K2M4N6",
    "title": "Printer offline",
    "description": "<p>It <b>hums</b>.</p><p>Nothing else &amp; no light.</p>",
    "createdon": None,
    "caseorigincode": 2,
    "prioritycode": 1,
    "statecode": 0,
    "customerid_contact": "contact-1",
    "customerid_contact.emailaddress1": "ada@example.com",
    "customerid_contact.firstname": "Ada",
    "customerid_contact.lastname": "Quill",
    "owninguser": "user-1",
    "owninguser.internalemailaddress": "bo@example.com",
    "owninguser.firstname": "Bo",
    "owninguser.lastname": "Reed",
    "owningteam": None,
    "owningteam.name": None,
}


def mapped(**changes):
    """Map the case with some fields changed; `__` stands for a dot."""
    fields = CASE | {name.replace("__", "."): value for name, value in changes.items()}
    return map_record(RECIPE.block, Row("case-1", fields))


@pytest.mark.parametrize(
    ("field", "changes", "value", "warnings"),
    [
        ("correlation_id", {}, "case-1", []),
        ("correlation_display", {}, "CAS-01001-K2M4N6", []),
        ("number", {}, "CAS-01001-K2M4N6", []),
        ("short_description", {}, "Printer offline", []),
        ("short_description", {"title": LONG_TITLE}, LONG_TITLE[:159] + "…", ["truncated"]),
        ("description", {}, "It hums.\n\nNothing else & no light.", []),
        ("description", {"title": LONG_TITLE, "description": "Body"}, LONG_TITLE + "\n\nBody", []),
        ("description", {"title": LONG_TITLE, "description": None}, LONG_TITLE, []),
        ("description", {"description": None}, None, []),
        ("contact_type", {}, "email", []),
        ("contact_type", {"caseorigincode": 3}, "self-service", []),
        ("contact_type", {"caseorigincode": None}, "self-service", []),
        ("contact_type", {"caseorigincode": 700610000}, "self-service", ["unknown_choice"]),
        ("urgency", {}, 1, []),
        ("urgency", {"prioritycode": 9}, 3, ["unknown_choice"]),
    ],
)
def test_a_case_becomes_an_incident(field, changes, value, warnings):
    """Each field of the table holds what the design says."""
    result = mapped(**changes).fields[field]

    assert result.value == value
    assert [warning.code for warning in result.warnings] == warnings


@pytest.mark.parametrize(
    ("field", "email", "name"), [("caller_id", "ada@example.com", "Quill"), ("assigned_to", "bo@example.com", "Reed")]
)
def test_people_are_found_by_email_and_created_when_missing(field, email, name):
    """A created user carries its email as user name, the source `concord`, and neither role nor password."""
    asked = mapped().fields[field].find_inputs

    assert asked.block.record == "sys_user"
    assert asked.block.write is WriteMode.CREATE
    assert asked.block.first_match == ("email",)
    assert asked.values["user_name"] == asked.values["email"] == email
    assert asked.values["last_name"] == name
    assert asked.values["source"] == "concord"
    assert set(asked.values) == {"email", "user_name", "first_name", "last_name", "source"}


def test_a_case_of_an_account_fails():
    """A case without contact says why."""
    with pytest.raises(MappingError) as caught:
        mapped(customerid_contact=None)

    assert caught.value.code == "customer_is_account"


def test_an_account_s_primary_contact_is_one_path_away():
    """The commented path reads the contact behind the account."""
    text = (ROOT / "recipes/case_to_incident.yaml").read_text(encoding="utf-8")
    changed = text.replace(
        "from: customerid_contact\n", "from: [customerid_contact, customerid_account.primarycontactid]\n"
    )

    recipe = parse_recipe(changed, "case_to_incident")

    assert "customerid_account.primarycontactid.emailaddress1" in recipe.read_paths()


def test_a_contact_without_email_leaves_the_caller_empty_with_a_warning():
    """Nobody is searched and nobody is created without an email."""
    field = mapped(customerid_contact__emailaddress1=None).fields["caller_id"]

    assert field.empty
    assert [warning.code for warning in field.warnings] == ["caller_id_without_email"]


def test_a_team_goes_to_the_group_and_leaves_the_assignee_empty():
    """A team-owned case has no owning user."""
    result = mapped(
        owninguser=None, owninguser__internalemailaddress=None, owningteam="team-1", owningteam__name="EMEA"
    )

    assert result.fields["assigned_to"].source_empty
    assert result.fields["assignment_group"].find_inputs.values == {"name": "EMEA"}
    assert result.fields["assignment_group"].find_inputs.block.write is WriteMode.NEVER


def test_only_active_cases_create():
    """Resolved and cancelled cases do not meet the condition."""
    assert [holds(RECIPE.block.when, {"statecode": state}) for state in (0, 1, 2)] == [True, False, False]


def test_a_closed_case_leaves_a_note():
    """The incident of a closed case gets a work note."""
    note = map_record(RECIPE.gone_block, Row("case-1", CASE)).fields["work_notes"]

    assert note.value == "Case CAS-01001-K2M4N6 was closed in Dynamics 365"


def test_every_field_explains_itself():
    """Each line of the table has a sentence for the business reader, those inside `find` too."""
    rules = list(RECIPE.block.fields.values())
    rules += [inside for rule in rules if rule.find for inside in rule.find.fields.values()]

    assert [rule.name for rule in rules if not rule.doc.endswith(".")] == []


def test_the_commented_lines_are_recipes_too():
    """Whoever takes the comment sign away gets a recipe that loads."""
    text = (ROOT / "recipes/case_to_incident.yaml").read_text(encoding="utf-8")
    switched_on = re.sub(r"^( *)# ((?:sys_\w+|impact|700610000|default):? ?.*)$", r"\1\2", text, flags=re.MULTILINE)

    recipe = parse_recipe(switched_on, "case_to_incident")

    assert {"sys_created_on", "sys_updated_on", "impact"} <= set(recipe.block.fields)
    assert recipe.block.fields["caller_id"].default == "guest@example.com"


def test_generated_pages_are_current():
    """The field table and the editor's schema are those of the recipes."""
    assert main(["docs", "--check"]) == 0
    assert main(["schema", "--check"]) == 0


def test_the_command_line_validates_and_prints(tmp_path, capsys):
    """`docs --check` fails while the page is stale, `docs` writes it, `validate` names faults."""
    for folder in ("recipes", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "recipes/case_to_incident.yaml").write_bytes((ROOT / "recipes/case_to_incident.yaml").read_bytes())
    root = ["--root", str(tmp_path)]

    stale = main([*root, "docs", "--check"])
    written = main([*root, "docs"])
    current = main([*root, "docs", "--check"])
    valid = main([*root, "validate"])
    (tmp_path / "recipes/b_to_c.yaml").write_text("titel: x")
    broken = main([*root, "validate"])

    assert (stale, written, current, valid, broken) == (1, 0, 0, 0, 1)
    assert "recipes/b_to_c.yaml:1:1: there is no key `titel` here" in capsys.readouterr().err


def test_the_field_table_is_the_same_each_time():
    """The page depends on the recipes alone, and shows every field and choice."""
    page = print_catalogue({"case_to_incident": RECIPE})

    assert page == print_catalogue({"case_to_incident": RECIPE})
    for words in (
        "`2483` → `self-service`",
        "empty fails with `customer_is_account`",
        "`caller_id` looks up `sys_user`",
    ):
        assert words in page


def test_the_schema_knows_every_key():
    """An editor offers the twenty keys and the converters, and nothing that is ours alone."""
    schema = json.loads(build_schema())
    shapes = [schema, *schema["$defs"].values()]
    keys = {key for shape in shapes for key in shape.get("properties", {})}

    assert {
        "title", "source", "target", "start", "gone", "notify", "record", "from", "when", "match", "write", "fields",
        "children", "value", "find", "choices", "convert", "default", "required", "doc",
    } <= keys  # fmt: skip
    assert not [key for key in keys if key.startswith(" ")]
    assert "html_to_text" in json.dumps(schema["$defs"]["FieldRule"]["properties"]["convert"])
