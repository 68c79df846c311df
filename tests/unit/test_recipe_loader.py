"""Recipe files: what is read, and what is said about what cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError
from sync.recipe import FieldWrite, GoneAction, WriteMode
from sync.recipe_faults import RecipeError
from sync.recipe_loader import load_recipes, parse_recipe
from tests.unit.recipe_texts import HEAD, recipe_of

MINIMAL = HEAD + "match: [a]\nfields: {a: x}\n"


def faults_of(text, name="case_to_incident", **given_):
    """Return the faults of a text as (line, column, sentence)."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, name, **given_)
    return [(*fault.place, fault.sentence) for fault in caught.value.faults]


def write_all(folder, **texts):
    """Write recipes into a folder."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_short_forms_are_spelt_out():
    """The engine sees one form only."""
    recipe = recipe_of(
        """
start: {http: yesterday, daily: since_last_run, poll: {every: 5m}, webhook: true, start_from: 2026-03-01}
match: [a, [a, b], {fields: [b], when: {active: true}, same_or_empty: [a]}]
gone: {note: closed}
notify: {summary: email, failed: [teams, ops@x.example]}
fields:
  a: x
  b: {from: [x, y], convert: lower, write: newest}
""",
        head=HEAD.replace("start: {http: yesterday}\n", ""),
    )

    assert recipe.block.fields["a"].from_ == ("x",)
    assert recipe.block.fields["b"].name == "b"
    assert recipe.block.fields["b"].write is FieldWrite.NEWEST
    assert recipe.block.fields["b"].convert[0].name == "lower"
    assert [rule.fields for rule in recipe.block.match] == [("a",), ("a", "b"), ("b",)]
    assert recipe.block.match[2].same_or_empty == ("a",)
    assert recipe.block.first_match == ("a",)
    assert recipe.gone.action is GoneAction.WRITE
    assert recipe.notify.failed == ("teams", "ops@x.example")
    assert str(recipe.start.daily.window) == "since_last_run"
    assert recipe.start.poll.every_s == 300
    assert recipe.start.webhook == ()
    assert str(recipe.start.start_from) == "from=2026-03-01"
    assert (recipe.name, recipe.path) == ("case_to_incident", "recipes/case_to_incident.yaml")


def test_a_find_only_looks_unless_it_says_more():
    """Blocks write by default, look-ups do not."""
    recipe = recipe_of(
        "match: [a]\nfields: {a: {from: x, find: {record: sys_user, match: [link]}}}",
    )

    assert recipe.block.write is WriteMode.UPSERT
    assert recipe.block.fields["a"].find.write is WriteMode.NEVER
    assert recipe.block.fields["a"].find.match[0].link


def test_yaml_words_stay_words():
    """YAML 1.2: `on` and `no` are texts, so a role or an answer may be called so."""
    recipe = recipe_of("match: [a]\nfields: {a: {from: x, choices: {on: yes, no: off}}}")

    assert recipe.block.fields["a"].choices == (("on", ("yes",)), ("no", ("off",)))


def test_every_fault_of_every_file_comes_in_one_error(tmp_path):
    """Whoever mends a recipe sees all that is wrong at once, with file, line, column and a suggestion."""
    write_all(
        tmp_path,
        a_to_b=MINIMAL.replace("match: [a]", "macth: [a]").replace("a: x", "a: {form: x}, b: {from: x, convert: lowr}"),
        b_to_c=MINIMAL.replace("yesterday", "yesterdy"),
        c_to_d=MINIMAL.replace("title", "title ").replace("Cases to incidents", "Other"),
    )

    with pytest.raises(ConfigError) as caught:
        load_recipes(tmp_path)

    lines = str(caught.value).splitlines()
    assert [line.split(" ", 1)[0].removeprefix(tmp_path.name) for line in lines] == [
        "/a_to_b.yaml:6:1:", "/a_to_b.yaml:7:14:", "/a_to_b.yaml:7:37:", "/b_to_c.yaml:5:9:",
    ]  # fmt: skip
    suggestions = (
        "did you mean `match`?",
        "did you mean `from`?",
        "did you mean `lower`?",
        "did you mean `yesterday`?",
    )
    assert all(line.endswith(suggestion) for line, suggestion in zip(lines, suggestions, strict=True))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("match: [a]\nfields: {a: 3}", "a constant is written {value: 3}"),
        ("match: [a]\nfields: {a: true}", "a constant is written {value: true}"),
        ("match: [a]\nfields: {a: [x, y]}", "several are written {from: [a, b]}"),
        ("match: [a]\nfields: {a: }", "it needs a path"),
        ("match: [a]\nfields: {a: {from: x, value: y}}", "not both"),
        ("match: [a]\nfields: {a: {doc: x}}", "one of the two"),
        ("match: [a]\nfields: {a: {value: x, find: {record: r, match: [link]}}}", "`find` needs `from`"),
        ("match: [a]\nfields: {a: {from: x, convert: lower, find: {record: r, match: [link]}}}", "takes no `choices`"),
        ("match: [a]\nfields: {a: {from: x, find: {record: r, from: y, match: [link]}}}", "no key `from` here"),
        ("match: [a]\nfields: {a: {from: x, write: alway}}", "did you mean `always`?"),
        ("match: [a]\nwrite: upset\nfields: {a: x}", "did you mean `upsert`?"),
        ("match: [a]\nfields: {a: {from: x, choices: {}}}", "`choices` is a table"),
        ("match: [a]\nfields: {a: {from: x, choices: {1: []}}}", "needs a value"),
        ("match: [a]\nfields: {a: {from: x, when: {y: {nt: 1}}}}", "{not: …}"),
        ("match: [a]\nfields: {a: {from: x, required: false}}", "leave the key out"),
        ("match: [a]\nfields: {a: {from: x, required: Not a code}}", "not a reason"),
        ("match: [a]\nfields: {a: {from: x, convert: {truncate: many}}}", "takes a number"),
        ('match: [a]\nfields: {a: {value: "{x"}}', "brace"),
        ('match: [a]\nfields: {a: "x^ORactive=true"}', "is not a path"),
        ('match: [a]\nfields: {"a=b": x}', "is not a path"),
        ("match: [a]\nfields: {a: x}\ngone: folow", "did you mean `follow`?"),
        ("match: [a]\nfields: {a: x}\nnotify: {summary: emial}", "did you mean `email`?"),
        ("match: [a]\nfields: {a: x}\nrecord: incident", "there is no key `record` here"),
        ("match: [a]\nfields: [a]", "must be a table"),
        ("match: [a]\nfields: {a: x}\nwhen: active", "table of `path: value`"),
        ("match: [a]\nfields: {a: x}\nchildren: {a: b}", "must be a list"),
        ("match: [a]\nfields: {a: {from: }}", "`from` has no value"),
        ("match:\nfields: {a: x}", "`match` has no value"),
    ],
)
def test_a_bad_key_or_value_is_named(body, says):
    """Anything that the format does not know is an error with a sentence."""
    sentences = [sentence for _, _, sentence in faults_of(HEAD + body)]

    assert len(sentences) == 1
    assert says in sentences[0]


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("{}", "names nothing"),
        ("{start_from: today}", "names nothing"),
        ("{http: last_weak}", "did you mean `last_week`?"),
        ("{htpp: today}", "did you mean `http`?"),
        ("{daily: {at: 6}}", "not a time of day"),
        ("{daily: {zone: Europe/Brelin}}", "not a time zone"),
        ("{daily: {days: monday}}", "not days of the week"),
        ("{poll: {every: 5}}", "not an interval"),
        ("{poll: {every: 5s}}", "a minute or more"),
        ("{webhook: []}", "`webhook` is true"),
        ("{http: today, start_from: since_last_run}", "`start_from` is activation"),
    ],
)
def test_a_bad_start_is_named(start, says):
    """Triggers and windows are checked where they stand."""
    text = MINIMAL.replace("{http: yesterday}", start) + "notify: {summary: email}\n"

    sentences = [sentence for _, _, sentence in faults_of(text)]

    assert any(says in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "`a` stands twice, first in line 1"),
        ("a: {x: 1, b: {x: 1, 'x': 2}}", "`x` stands twice"),
        ("{1: a, '1': b}", "`1` stands twice"),
        ("a: &x 1", "anchors"),
        ("a: &x {b: 1}\nc: *x", "anchors"),
        ("a: !include b.yaml", "tags"),
        ("a: !!python/object:os.system x", "tags"),
        ("a: [1", "not YAML: a brace or bracket is not closed"),
        ("a:\n\tb: 1", "not YAML: a tab stands here; indent with spaces"),
        ("a:\n  b: 1\n    c: 2", "not YAML"),
        ("a:\n    b: 1\n  c: 2", "not YAML: this line is not indented like"),
        ("a: b: c", "not YAML: a colon stands where none may be"),
        ("a: 1\nb\nc: 2", "not YAML: a colon is missing"),
        ("a: 'x", "not YAML: a quote is not closed"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("? [a]\n: b", "a key must be a word"),
        ("[" * 30, "deeper than 20"),
        ("", "the file is empty"),
        ("# a note", "the file is empty"),
        ("- a", "must be a table"),
        ("a: \x07", "not YAML"),
        (b"\xff", "not UTF-8"),
        ("#" * 70_000, "larger than 64 KiB"),
        ("a: 2026-02-31", "not YAML"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_plain_yaml_is_refused(text, says):
    """Doubled keys, anchors, tags and deep or large files end with a sentence, never with a crash."""
    assert any(says in sentence for _, _, sentence in faults_of(text))


@given(st.text(st.sampled_from("ab:{}[]-&*!|>'\"#%\n ${},"), max_size=60))
def test_no_text_crashes_the_loader(text):
    """Whatever stands in a file, the answer is faults with places."""
    faults = faults_of(text)

    assert faults
    assert all(line >= 1 and column >= 1 for line, column, _ in faults)


def test_settings_are_filled_in():
    """`${NAME}` takes what the caller gives, also inside a longer text."""
    body = 'match: [a]\nfields: {a: {from: x, default: "queue@${DOMAIN}"}}'

    recipe = recipe_of(body, settings={"DOMAIN": "x.example"})

    assert recipe.block.fields["a"].default == "queue@x.example"


def test_a_missing_setting_is_named_with_its_place():
    """A setting that nobody gave is an error, and one whose braces would become a path too."""
    text = HEAD + 'match: [a]\nfields: {a: {from: x, default: "${DOMIAN}"}, b: {value: "${BAD}"}}\n'

    faults = faults_of(text, settings={"DOMAIN": "x.example", "BAD": "{a}"})

    assert faults == [
        (7, 23, "the setting `DOMIAN` is missing; did you mean `DOMAIN`?"),
        (7, 50, "the setting `BAD` holds a brace, which would be read as a path"),
    ]


def test_without_settings_names_stand_for_them():
    """The field table is printed without any environment."""
    recipe = recipe_of('match: [a]\nfields: {a: {value: "${DOMAIN}"}}')

    assert recipe.block.fields["a"].value == "<DOMAIN>"


def test_the_hash_follows_the_meaning():
    """Comments and layout leave the hash alone; the order of rows and a setting's value change it."""
    table = "match: [a]\nfields: {a: {from: x, choices: {1: 2, 3: 4}}}"

    plain = recipe_of(table).hash
    commented = recipe_of("# words\n" + table.replace("{from", "{  from")).hash
    turned = recipe_of(table.replace("1: 2, 3: 4", "3: 4, 1: 2")).hash
    texts = recipe_of(table.replace("1: 2", "'1': 2")).hash

    assert plain == commented
    assert len({plain, turned, texts}) == 3


def test_an_empty_folder_and_a_wrong_ending_are_faults(tmp_path):
    """A recipe that would never be read is said, not skipped."""
    with pytest.raises(RecipeError, match="no recipe in this folder"):
        load_recipes(tmp_path)
    (tmp_path / "a_to_b.yml").write_text(MINIMAL)
    with pytest.raises(RecipeError, match=r"ends in \.yaml"):
        load_recipes(tmp_path)
