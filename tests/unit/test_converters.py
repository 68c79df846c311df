"""Converters: value in, value out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import MappingError
from sync.converters import CONVERTERS, ConverterCall, apply_converters, check_call, cut_text
from sync.html_text import html_to_text


def convert(value, *calls, **paths):
    named = tuple(ConverterCall(*call) if isinstance(call, tuple) else ConverterCall(call) for call in calls)
    return apply_converters(named, value, paths.get)


@pytest.mark.parametrize(
    ("value", "call", "expected"),
    [
        ("Ada@Example.COM", "lower", "ada@example.com"),
        ("de", "upper", "DE"),
        ("  x ", "strip", "x"),
        ("   ", "strip", None),
        ("1 Main  St\n\n  \nFloor 2 ", "tidy_lines", "1 Main St\nFloor 2"),
        ("\n", "tidy_lines", None),
        ("+49 (0)30 / 123-4567", "e164", "+49301234567"),
        ("0049 30 1234567", "e164", "+49301234567"),
        ("030 1234567", ("e164", 49), "+49301234567"),
        ("(555) 010-0199", ("e164", 1), "+15550100199"),
        ("1 555 010 0199", ("e164", 1), "+15550100199"),
        ("us/eastern", "iana_zone", "US/Eastern"),
        ("America/New York", "iana_zone", "America/New_York"),
        (3, "strip", "3"),
        (None, "lower", None),
    ],
)
def test_converters_give_values(value, call, expected):
    """Each converter does what its name says; an empty result is None, and an empty value is not asked."""
    converted, warnings = convert(value, call)

    assert converted.value == expected
    assert warnings == ()


@pytest.mark.parametrize(
    ("value", "call"),
    [
        ("12", "e164"),
        ("030 1234567", "e164"),
        ("call me", ("e164", 49)),
        ("+49 30 ext 5", "e164"),
        ("System", "iana_zone"),
    ],
)
def test_a_value_that_cannot_be_converted_is_refused(value, call):
    """A bad value raises MappingError, whose text does not repeat it."""
    with pytest.raises(MappingError) as caught:
        convert(value, call)

    assert value not in caught.value.message


def test_truncate_warns_and_knows_the_whole_text():
    """A cut text ends in `…`, is as long as asked for, and the whole text counts as equal."""
    converted, warnings = convert("Printer offline", ("truncate", 8))

    assert converted.value == "Printer…"
    assert converted.also == ("Printer offline",)
    assert warnings == ("truncated",)


@given(text=st.text(), length=st.integers(1, 50))
def test_a_cut_text_fits(text, length):
    """A cut text is never longer than asked for, and a text that fits stays as it is."""
    cut = cut_text(text, length)

    assert len(cut) <= max(length, 1)
    assert cut == text or len(text) > length


@pytest.mark.parametrize(
    ("title", "description", "expected"),
    [
        ("short", "Body", "Body"),
        ("a longer title", "Body", "a longer title\n\nBody"),
        ("a longer title", None, "a longer title"),
        (None, None, None),
    ],
)
def test_opens_with_puts_a_long_text_in_front(title, description, expected):
    """A text that is too long elsewhere opens this one, also when this one is empty."""
    call = ("opens_with", {"path": "title", "longer_than": 10})

    converted, _ = convert(description, call, title=title)

    assert converted.value == expected


def test_converters_run_in_order():
    """Each converter gets what the one before it made."""
    converted, warnings = convert("<p>Hello</p><p>World</p>", "html_to_text", "upper", ("truncate", 6))

    assert converted.value == "HELLO…"
    assert warnings == ("truncated",)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("truncate", None),
        ("truncate", 0),
        ("truncate", True),
        ("truncate", "x"),
        ("lower", 3),
        ("e164", "de"),
        ("opens_with", {"path": "title"}),
        ("opens_with", 3),
    ],
)
def test_arguments_are_checked_when_the_recipe_is_read(name, argument):
    """A converter with the wrong argument never runs."""
    with pytest.raises(ValueError, match=name):
        check_call(ConverterCall(name, argument))


def test_every_converter_can_be_described():
    """The field table has words for every converter."""
    assert all(converter.says for converter in CONVERTERS.values())


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("plain text", "plain text"),
        ("if a < b and c > d", "if a < b and c > d"),
        ("R&D & more", "R&D & more"),
        ("line\r\nbreak", "line\nbreak"),
        ("<p>One</p><p>Two</p>", "One\n\nTwo"),
        ("<div>One</div><div>Two<br>Three</div>", "One\nTwo\nThree"),
        ("<p>a &amp; b &lt;c&gt; &#8364;&nbsp;5</p>", "a & b <c> € 5"),
        ("<ul><li>One</li><li><p>Two</p></li></ul>after", "- One\n- Two\n\nafter"),
        ("<ol><li>One<ul><li>In</li></ul></li><li>Two</li></ol>", "1. One\n  - In\n2. Two"),
        ('<a href="https://x.example/a">here</a>', "here (https://x.example/a)"),
        ('<a href="https://x.example/">https://x.example</a>', "https://x.example"),
        ('<a href="mailto:ada@x.example">ada@x.example</a>', "ada@x.example"),
        ('<a href="javascript:alert(1)">click</a>', "click"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a | b\nc"),
        ("<head><title>T</title><style>p{}</style></head><body>x<script>if(a<b){}</script>y</body>", "xy"),
        ("<head><body>x", "x"),
        ("<pre>a\n  b</pre>", "a\n  b"),
        ("<b>bold</b> <i>it</i>", "bold it"),
        ("a   \n  b<br/>", "a b"),
        ('<img src="x" alt="Chart"><img src="y">', "[Chart]"),
        ("From: <ada@x.example><br>Hi", "From: <ada@x.example>\nHi"),
        ("<o:p>word</o:p><br>", "word"),
        ("one<hr>two", "one\n\n----\n\ntwo"),
        ("<!-- c -->x", "x"),
        ("&lt;b&gt;", "<b>"),
        ("", ""),
        ("<p></p>", ""),
    ],
)
def test_html_becomes_readable_text(html, text):
    """Paragraphs, lists, links, tables and entities survive; markup and scripts do not."""
    assert html_to_text(html) == text


@pytest.mark.parametrize(
    "html",
    [
        "<p",
        "<p>a</div></p>",
        "</li></ul>x<br>",
        "<a href='",
        "<!--",
        "<![CDATA[",
        "&#xffffffff;<p>",
        "<p>" * 5000,
        "<" * 5000,
    ],
)
def test_broken_html_never_fails(html):
    """Whatever arrives, a text comes out."""
    assert isinstance(html_to_text(html), str)


def test_html_beyond_all_measure_is_cut_with_a_warning():
    """No case's text, however large or broken, holds up the others."""
    converted, warnings = convert("<!--" * 200_000 + "<p>end", "html_to_text")

    assert converted.value is None
    assert warnings == ("truncated",)


@given(
    st.lists(
        st.sampled_from(
            [
                "<p>",
                "</p>",
                "<ul>",
                "<li>",
                "</ul>",
                "<a href='https://x'>",
                "</a>",
                "<pre>",
                "x ",
                "<td>",
                "<",
                "&",
                "&lt;",
            ]
        )
    )
)
def test_any_mixture_of_tags_gives_text(parts):
    """Tags in any order give text without doubled empty lines."""
    text = html_to_text("<br>" + "".join(parts))

    assert "\n\n\n" not in text or "<pre>" in parts
