"""Injection into mails: what spreadsheets would run, what mail programs would show, open or send on."""

import csv
import dataclasses
import io
import re
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from html.parser import HTMLParser
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.mail import Email, build_message
from shared.state.rows import RunState
from sync import summary
from sync.summary import FailureLine, Guard, RecordLink, SummaryFacts, WarningLine, build_summary
from tests.flows.world import World
from tests.security.payloads import FORMULAS, HEADERS, LINKS, MARKUP

HOSTILE = (*MARKUP, *LINKS, *FORMULAS, *HEADERS)
BOUNDED = settings(max_examples=60, deadline=None)
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=60))
OUR_TAGS = {
    "html", "head", "meta", "title", "body", "div", "table", "tr", "td", "span", "strong", "br", "a",
}  # fmt: skip
OUR_ATTRIBUTES = {
    "lang", "xmlns", "charset", "name", "content", "style", "bgcolor", "role", "width", "cellpadding", "cellspacing",
    "border", "align", "height", "valign", "href",
}  # fmt: skip
FORMULA = re.compile(r"[=+\-@＝＋－＠]")


class Markup(HTMLParser):
    """Notes which tags, attributes and links a page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]


def facts(text: str = "plain", url: str = "https://contoso.example/1", failures: int = 1) -> SummaryFacts:
    """Return a run that says everything a run can say, every word of it the same text."""
    line = FailureLine(text, "mapping_failed", text, url, url, text)
    return SummaryFacts(
        to=("ada@example.com",),
        title=text,
        environment="test",
        status_url="https://concord.example/api/runs/r",
        zone=ZoneInfo("UTC"),
        counts={"failed": failures, "created": 1},
        skipped={text: 1},
        failures=(line,) * failures,
        repeated=(dataclasses.replace(line, since=datetime(2026, 3, 1, tzinfo=UTC)),),
        created=(RecordLink(text, url),),
        warnings=(WarningLine(text, 1, text, (RecordLink(text, url),)),),
        access_error=text,
        run_id="case_to_incident-20260310T090000000-abcd",
        state=RunState.COMPLETED_WITH_FAILURES,
        window=text,
        error=text,
        waiting_for=text,
        waiting_since=datetime(2026, 3, 1, tzinfo=UTC),
        guard=Guard(text, url),
    )


def cells(email: Email) -> list[list[str]]:
    """Read the attached list as a spreadsheet does."""
    (attachment,) = email.attachments
    return list(csv.reader(io.StringIO(attachment.content.decode("utf-8-sig"), newline="")))


# -- spreadsheets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str, separator: str) -> None:
    """However a spreadsheet splits the file, no cell begins with what starts a formula, also behind invisible signs."""
    email = build_summary(facts(text, failures=summary.GROUP_ABOVE + 1))
    content = email.attachments[0].content.decode("utf-8-sig")

    rows = list(csv.reader(io.StringIO(content, newline=""), delimiter=separator))

    shown = ["".join(each for each in cell if each.isprintable()).strip() for row in rows for cell in row]
    assert not [cell for cell in shown if FORMULA.match(cell)]


@BOUNDED
@given(texts)
def test_no_text_makes_a_formula(text: str) -> None:
    """Any text at all: each line keeps its eight cells and none of them starts a formula."""
    rows = cells(build_summary(facts(text, failures=summary.GROUP_ABOVE + 1)))

    assert {len(row) for row in rows} == {8}
    assert not [cell for row in rows for cell in row if FORMULA.match(cell.strip())]


# -- HTML and text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [1, summary.GROUP_ABOVE + 1], ids=["lines", "groups"])
@pytest.mark.parametrize("text", [*MARKUP, *LINKS, *HEADERS])
def test_records_bring_no_markup(text: str, failures: int) -> None:
    """Subject, labels, reasons and sentences stay text: the tags of the mail are those of our template."""
    plain = Markup(build_summary(facts(failures=failures)).html)

    markup = Markup(build_summary(facts(text, failures=failures)).html)

    assert markup.tags == plain.tags
    assert set(markup.tags) <= OUR_TAGS
    assert markup.attributes <= OUR_ATTRIBUTES


@BOUNDED
@given(texts, texts)
def test_any_text_and_address_stay_inside_the_template(text: str, url: str) -> None:
    """Any label with any address: no tag, no attribute and no link that is not ours or the web's."""
    markup = Markup(build_summary(facts(text, url)).html)

    assert set(markup.tags) <= OUR_TAGS
    assert markup.attributes <= OUR_ATTRIBUTES
    assert all(link.startswith(("http://", "https://")) for link in markup.links)


@pytest.mark.parametrize("url", [url for url in LINKS if url != "https://"])
def test_links_lead_to_the_web_or_nowhere(url: str) -> None:
    """An address that could run something, or hide where it leads, stands in neither part of the mail."""
    email = build_summary(facts(url=url, failures=summary.GROUP_ABOVE + 1))

    links = Markup(email.html).links
    assert all(
        link.startswith(("http://contoso.example", "https://contoso.example", "https://concord.example"))
        for link in links
    )
    assert url not in email.text or url.startswith("https://contoso.example/")
    assert all(row[6] in ("record link", "", url) for row in cells(email))
    assert "contoso.example@" not in email.html + email.text


@pytest.mark.parametrize("text", [*HEADERS, *MARKUP])
def test_no_header_is_added(text: str) -> None:
    """A title with line breaks gives one subject line; nobody else gets the mail."""
    email = build_summary(facts(text))

    message = message_from_bytes(build_message(email, "concord@example.com").as_bytes(), policy=default)

    assert message["Bcc"] is None
    assert message["X"] is None
    assert message["To"] == "ada@example.com"
    assert len(message.get_all("Subject")) == 1


@pytest.mark.parametrize("text", HEADERS)
@pytest.mark.parametrize("field", ["subject", "message_id", "to", "headers"])
def test_mail_refuses_headers_with_breaks(field: str, text: str) -> None:
    """Whoever builds a mail with a break in a header gets an error and not a second header."""
    good: dict[str, Any] = {"to": ("ada@example.com",), "subject": "s", "text": "t"}
    bad = {"to": (text,), "headers": {"X-Run": text}}.get(field, text)

    with pytest.raises(ValueError, match="one line"):
        Email(**good | {field: bad})


def test_hostile_records_give_a_harmless_mail(world: World) -> None:
    """End to end: cases that fail with hostile titles and numbers; the mail that arrives is text and our own template."""
    for number, text in enumerate(MARKUP):
        contact = world.add_contact(f"javascript:{number}@customer.example", lastname=text[:50])
        world.add_case(text, contact=contact, ticketnumber=f"{text[:20]}{number}")

    world.sync()

    (mail,) = world.mailbox.mails
    markup = Markup(mail.html)
    assert set(markup.tags) <= OUR_TAGS
    assert markup.attributes <= OUR_ATTRIBUTES
    assert all(link.startswith("http://localhost:") for link in markup.links)
    assert list(mail.recipients) == ["ada@example.com"]
