"""Rules that a recipe keeps to, alone and beside the others."""

import pytest

from sync.recipe_faults import RecipeError
from sync.recipe_loader import parse_recipe
from sync.recipe_rules import Capability, ConnectionFacts, check_together
from tests.unit.recipe_texts import HEAD, recipe_of

ALL = frozenset(Capability)
MARKERLESS = """
match: [a]
fields: {a: x}
children: [{from: journal, record: note, match: [text], write: create, fields: {text: text}}]
"""


TWO_WAY = "title: From {0}\nsource: {0}\ntarget: {1}\nstart: {{http: today}}\nwrite: update\nfields: {{k: z}}\n{2}\n"


def recipe(name, source, target, fields, *, title="", start="{http: today}"):
    """Return a recipe with the given fields, all of them match fields of their own."""
    text = (
        f"title: {title or name}\nsource: {source}\ntarget: {target}\nstart: {start}\nwrite: update\n"
        f"notify: {{summary: email}}\nfields: {{{fields}}}\n"
    )
    return parse_recipe(text, name)


def together(*recipes, **given):
    """Return the sentences of faults that recipes have beside each other."""
    return [fault.sentence for fault in check_together({each.name: each for each in recipes}, **given)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("fields: {a: x}", "names a rule in `match`"),
        ("match: [b]\nfields: {a: x}", "`b` is not among the block's fields"),
        ("match: [{fields: [a], same_or_empty: [b]}]\nfields: {a: x}", "`b` is not among"),
        ("match: [a]\nwrite: mirror\nfields: {a: x}", "cannot `mirror`"),
        ("match: [a]\nwrite: never\nfields: {a: x}", "cannot `never`"),
        ("match: [link, a]\nfields: {a: x}", "always decides first"),
        ("match: [a]\nfields: {}", "names its `fields`"),
        ("match: [a]\nfields: {a: {from: x, find: {record: r, fields: {n: n}}}}", "or that looks"),
        (
            "match: [a]\nfields: {a: {from: x, default: y, find: {record: r, match: [[n, m]], fields: {n: n, m: m}}}}",
            "first match rule of one field",
        ),
        (
            MARKERLESS,
            "put {id} into `text`",
        ),
        (
            "match: [a]\nfields: {a: x}\nchildren: [{from: journal, record: note, write: mirror, fields: {text: text}}]",
            "names a rule in `match`",
        ),
        (
            "match: [a]\nfields: {a: {from: x, find: {record: r, match: [n], fields: {n: n}, children: [{record: c}]}}}",
            "not under `find`",
        ),
        (
            "match: [a]\nfields: {a: x}\nchildren: [{from: b, record: c, match: [n], fields: {n: {from: n, write: newest}}}]",
            "no time of change for `newest`",
        ),
        (
            "match: [a]\nfields: {a: x}\nchildren: [{from: b, record: c, match: [n], fields: {n: {from: n, find: {record: u, match: [m], write: create, fields: {m: m}}}}}]",
            "a `find` of a child only looks",
        ),
        (
            "match: [a]\nfields: {a: x}\nchildren: [{from: b, record: c, match: [n], write: never, fields: {n: n}}]",
            "take it out",
        ),
        (
            "match: [a]\nfields: {a: x}\nchildren:\n  - {from: b, record: c, match: [n], fields: {n: n}}\n  - {from: b, record: c, match: [n], write: mirror, fields: {n: n}}",
            "one block alone may",
        ),
        (
            "match: [a]\nfields: {a: x}\nchildren:\n  - {record: c, match: [n], fields: {n: {value: Mail}}}\n  - {record: c, match: [n], fields: {n: {value: Mail}}}",
            "differ in a constant",
        ),
    ],
)
def test_a_block_that_cannot_work_is_refused(body, says):
    """Whatever may create can be found again; children that are only added carry a marker."""
    with pytest.raises(RecipeError) as caught:
        recipe_of(body)

    assert any(says in fault.sentence for fault in caught.value.faults)


def test_children_with_a_marker_or_two_match_fields_are_fine():
    """A marker in the text, an id, or several fields together find a child that is only added."""
    recipe_of(
        """
match: [a]
fields: {a: x}
children:
  - {from: journal, record: note, match: [text], write: create, fields: {text: {value: "[#{id}] {text}"}}}
  - {from: journal, record: note, match: [key], write: create, fields: {key: id}}
  - {from: attachment, record: attachment, match: [[hash, name]], write: create, fields: {hash: hash, name: name}}
"""
    )


def test_children_that_are_mapped_both_ways_name_a_winner():
    """The same rule holds for the fields of children."""
    child = "children: [{{from: {0}, record: {1}, match: [n], fields: {{n: {{from: n{2}}}}}}}]"

    def back_and_forth(write):
        return together(
            parse_recipe(TWO_WAY.format("a.one", "b.two", child.format("x", "y", write)), "one_to_two"),
            parse_recipe(TWO_WAY.format("b.two", "a.one", child.format("y", "x", "")), "two_to_one"),
        )

    assert len(back_and_forth("")) == 2
    assert back_and_forth(", write: unless_changed") == []


def test_a_daily_timer_says_who_gets_its_summary():
    """A timer's mail has a reader; a sweep beside a webhook owes none."""
    head = HEAD.replace("{http: yesterday}", "{daily: since_last_run}")
    body = "match: [a]\nfields: {a: x}"

    with pytest.raises(RecipeError, match="owes a summary"):
        recipe_of(body, head=head)
    recipe_of(body, head=head.replace("{daily", "{webhook: true, daily"))
    recipe_of(body + "\nnotify: {summary: email}", head=head)


@pytest.mark.parametrize(
    ("name", "title", "good"),
    [
        ("case_to_incident", "Anything", True),
        ("hardware_request", "Request Hardware", True),
        ("hardware_request", "Fulfilment", False),
        ("Case_to_incident", "Anything", False),
        ("case-to-incident", "Anything", False),
        ("a_to_" + "b" * 60, "Anything", False),
    ],
)
def test_a_recipes_name_says_what_it_does(name, title, good):
    """A file is named <source>_to_<target>, or with the words of a process event's title."""
    text = HEAD.replace("Cases to incidents", title) + "match: [a]\nfields: {a: x}"

    if good:
        assert parse_recipe(text, name).name == name
    else:
        with pytest.raises(RecipeError, match="name"):
            parse_recipe(text, name)


def test_a_recipe_with_another_name_gets_a_good_one():
    """Who wrote a first recipe of his own reads what to call its file."""
    with pytest.raises(RecipeError, match=r"as `incident_to_incident\.yaml`"):
        parse_recipe(HEAD + "match: [a]\nfields: {a: x}", "mine")


def test_a_process_events_title_is_its_exact_name():
    """Both sides know the event by its name alone."""
    head = HEAD.replace("{http: yesterday}", "{webhook: Request Hardware}")

    with pytest.raises(RecipeError, match="its exact name, `Request Hardware`"):
        recipe_of("match: [a]\nfields: {a: x}", head=head)


@pytest.mark.parametrize(
    ("here", "there", "good"),
    [
        ("newest", "newest", True),
        ("always", "unless_changed", True),
        ("unless_changed", "always", True),
        ("on_create", "always", True),
        ("always", "if_empty", True),
        ("always", "always", False),
        ("always", "newest", False),
        ("unless_changed", "unless_changed", False),
        ("newest", "unless_changed", False),
    ],
)
def test_fields_mapped_both_ways_name_one_winner(here, there, good):
    """Two recipes in opposite directions never overwrite each other for ever."""
    out = recipe("a_to_b", "s.a", "t.b", f"state: {{from: Status, write: {here}}}")
    back = recipe("b_to_a", "t.b", "s.a", f"Status: {{from: state, write: {there}}}")

    sentences = together(out, back)

    assert len(sentences) == (0 if good else 2)


def test_fields_of_other_records_are_no_pair():
    """Only the same two kinds of record meet; other fields of them do not."""
    out = recipe("a_to_b", "s.a", "t.b", "state: Status, number: Key")
    other = recipe("b_to_c", "t.b", "s.c", "Status: state", title="x")
    back = recipe("b_to_a", "t.b", "s.a", "Key: state")

    assert together(out, other, back) == []


def test_titles_and_orders_are_checked_together():
    """Titles differ, `after` names a recipe, and no recipes wait for each other."""
    first = recipe("a_to_b", "s.a", "t.b", "x: y", title="Same", start="{after: b_to_c}")
    second = recipe("b_to_c", "s.b", "t.c", "x: y", title="same", start="{after: a_to_b}")
    third = recipe("c_to_d", "s.c", "t.d", "x: y", start="{after: b_to_cc}")

    assert together(first, second, third) == [
        "these recipes wait for each other: a_to_b, b_to_c",
        "recipes/a_to_b.yaml has this title already",
        "these recipes wait for each other: a_to_b, b_to_c",
        "there is no recipe `b_to_cc`; did you mean `b_to_c`?",
    ]


def test_connections_must_be_able_to_do_what_a_recipe_asks():
    """A source, a target and a sender are asked for by name; an unknown name gets a suggestion."""
    one = recipe("a_to_b", "marketo.a", "dynamics365.b", "x: y", start="{webhook: true}")
    two = recipe("b_to_c", "dynamcs365.b", "marketo.c", "x: y")
    connections = {
        "marketo": ConnectionFacts(frozenset({Capability.TARGET}), "test"),
        "dynamics365": ConnectionFacts(frozenset({Capability.SOURCE, Capability.SENDER}), "test"),
    }

    assert together(one, two, connections=connections) == [
        "`marketo` cannot be a source",
        "`dynamics365` cannot be a target",
        "`marketo` cannot be a sender",
        "there is no connection `dynamcs365`; did you mean `dynamics365`?",
    ]


def test_production_and_test_are_not_joined_by_accident():
    """A recipe joins both environments only where the setting names it."""
    mixed = recipe("a_to_b", "s.a", "t.b", "x: y")
    connections = {"s": ConnectionFacts(ALL, "production"), "t": ConnectionFacts(ALL, "test")}

    refused = together(mixed, connections=connections)
    allowed = together(mixed, connections=connections, mixed_allowed=["a_to_b"])

    assert len(refused) == 1
    assert refused[0].startswith("the recipe joins a production and a test connection")
    assert refused[0].endswith("name `a_to_b` in the setting ALLOW_MIXED_ENVIRONMENTS")
    assert allowed == []


def test_a_time_zone_and_days_belong_to_a_time():
    """Without `at` the app's own daily time counts: zone and days would be passed over."""
    body = "match: [a]\nfields: {a: x}\nnotify: {summary: email}"

    for daily in ("{days: mon-fri}", "{zone: Europe/Berlin}"):
        with pytest.raises(RecipeError, match="add `at`"):
            recipe_of(body, head=HEAD.replace("{http: yesterday}", f"{{daily: {daily}}}"))
    recipe_of(body, head=HEAD.replace("{http: yesterday}", '{daily: {at: "06:30", days: mon-fri}}'))
