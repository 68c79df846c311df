"""Injection into the pages of the sandbox: what a person clicks through shows hostile records as text."""

from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
import requests

from sandbox.dynamics365 import Dynamics365
from sandbox.mailbox import Mailbox
from sandbox.marketo import Marketo
from sandbox.servicenow import ServiceNow
from sandbox.simulator import Clock, serve_in_thread
from shared.mail import Email, SmtpMailer
from shared.settings import Mail
from tests.flows.world import NOW
from tests.security.payloads import LINKS, MARKUP

TEXTS = (*MARKUP, *LINKS)


class Dangers(HTMLParser):
    """Notes what could run or load something from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "svg", "base", "object", "embed", "link"):
            self.found.append(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.found.append(name)
            address = "".join((value or "").split()).lower()
            if (
                name in ("href", "src", "action")
                and address
                and not address.startswith(("/", "?", "#", "http://127.0.0.1"))
            ):
                self.found.append(f"{name}={address}")
            if name in ("href", "src", "action") and address.startswith("//"):
                self.found.append(address)


@pytest.fixture(scope="module")
def pages() -> Iterator[dict[str, str]]:
    """Fill every simulator with hostile texts and return the pages' addresses."""
    clock = Clock(NOW)
    dynamics, servicenow, marketo, mailbox = Dynamics365(clock), ServiceNow(clock), Marketo(clock), Mailbox(clock=clock)
    with serve_in_thread(dynamics, servicenow, marketo, mailbox) as (d, s, m, b):
        records = []
        for number, text in enumerate(TEXTS):
            contact = dynamics.insert("contact", firstname=text[:50], lastname=text[:50])
            case = dynamics.insert("incident", title=text, description=text, customerid_contact=contact)
            incident = servicenow.insert("incident", short_description=text, description=text, number=text[:30])
            servicenow.insert("sys_user", user_name=f"{number}{text[:20]}", email=text[:90])
            records += [f"http://127.0.0.1:{s}/incident.do?sys_id={incident}", dynamics_address(d, case)]
            mailer = SmtpMailer(Mail(host="127.0.0.1", port=mailbox.smtp_port, security="none", sender="a@example.com"))
            line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
            mailer.send(Email(("b@example.com",), line, text, f"<p>{text}</p>"))
        homes = {"dynamics": d, "servicenow": s, "marketo": m, "mailbox": b}
        yield {name: f"http://127.0.0.1:{port}/" for name, port in homes.items()} | {
            f"record {index}": url for index, url in enumerate(records)
        }


def dynamics_address(port: int, case: str) -> str:
    return f"http://127.0.0.1:{port}/main.aspx?etn=incident&pagetype=entityrecord&id={case}"


@pytest.mark.parametrize("search", ["", *MARKUP[:6]])
@pytest.mark.parametrize("system", ["dynamics", "servicenow", "marketo", "mailbox"])
def test_overview_runs_nothing(pages: dict[str, str], system: str, search: str) -> None:
    """Lists of hostile records, and a hostile search in the address, show text."""
    answer = requests.get(pages[system], params={"q": search} if search else {}, timeout=10)

    assert answer.status_code == 200
    assert Dangers(answer.text).found == []


def test_record_pages_run_nothing(pages: dict[str, str]) -> None:
    """Each record's own page shows its fields as text."""
    answers = [requests.get(url, timeout=10) for name, url in pages.items() if name.startswith("record")]

    assert len(answers) == 2 * len(TEXTS)
    assert {answer.status_code for answer in answers} == {200}
    assert [found for answer in answers if (found := Dangers(answer.text).found)] == []


@pytest.mark.parametrize(
    "path",
    ["incident.do?sys_id=<script>alert(1)</script>", "main.aspx?etn=<script>&id=<script>", "<script>alert(1)</script>"],
)
@pytest.mark.parametrize("system", ["dynamics", "servicenow", "marketo", "mailbox"])
def test_page_that_is_not_there_repeats_no_markup(pages: dict[str, str], system: str, path: str) -> None:
    """What was asked for comes back escaped, or not as a page."""
    answer = requests.get(pages[system] + path, timeout=10)

    is_page = "html" in answer.headers.get("Content-Type", "")
    assert not is_page or Dangers(answer.text).found == []


def test_mail_page_lets_a_mail_do_nothing(pages: dict[str, str]) -> None:
    """A mail's HTML stands in a frame without scripts, and the page's policy forbids loading from elsewhere."""
    listed = requests.get(pages["mailbox"], timeout=10).text
    address = next(part.split('"')[0] for part in listed.split('href="')[1:])

    answer = requests.get(pages["mailbox"].rstrip("/") + address, timeout=10)

    assert "allow-scripts" not in answer.text
    assert "allow-same-origin" not in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert Dangers(answer.text).found == []
