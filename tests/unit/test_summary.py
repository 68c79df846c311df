"""Summaries and digests: what they say, whom they can harm (nobody), and how long lists are shown."""

import csv
import dataclasses
import io
import re
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.state.rows import RunState
from sync.reasons import REASONS, explain
from sync.summary import (
    BY_ITSELF,
    CSV_ROWS,
    GROUP_ABOVE,
    KEY_WANTED,
    SAME_FROM,
    DigestFacts,
    FailureLine,
    Guard,
    RecordLink,
    SummaryFacts,
    WarningLine,
    build_digest,
    build_summary,
    safe_link,
    spreadsheet_safe,
)

COMMON = {
    "to": ("lead@example.com",),
    "title": "Cases to incidents",
    "environment": "test",
    "status_url": "https://concord.example.com/runs/run-1",
    "zone": ZoneInfo("Europe/Berlin"),
}
FACTS = SummaryFacts(
    **COMMON,
    run_id="run-1",
    state=RunState.COMPLETED_WITH_FAILURES,
    window="yesterday",
    since=datetime(2026, 3, 12, 23, tzinfo=UTC),
    until=datetime(2026, 3, 13, 23, tzinfo=UTC),
    started_at=datetime(2026, 3, 14, 5, tzinfo=UTC),
    ended_at=datetime(2026, 3, 14, 5, 2, 5, tzinfo=UTC),
    counts={"created": 5, "adopted": 1, "updated": 2, "unchanged": 4, "skipped": 3, "failed": 2},
    skipped={"case_not_active": 3},
    failures=(
        FailureLine("CAS-01042", "customer_is_account", source_url="https://crm.example.com/c?id=1"),
        FailureLine(
            "CAS-01077",
            "rejected",
            "ServiceNow rejected it: 403.",
            target_url="https://now.example.com/i",
            target_label="INC7",
        ),
    ),
)
EMPTY = dataclasses.replace(FACTS, state=RunState.COMPLETED, counts={}, skipped={}, failures=())
DIGEST = DigestFacts(
    **COMMON, recipe="contact_to_lead", day=date(2026, 3, 14), counts={"failed": 1}, failures=FACTS.failures[:1]
)


class Page(HTMLParser):
    """The tags and addresses of a page, and whether every tag is closed in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.open, self.texts = set(), [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def lines(count, reason="rejected", **fields):
    return tuple(FailureLine(f"CAS-{number:05}", reason, **fields) for number in range(count))


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        pytest.param({}, "12 synced, 2 failed (test)", id="failures"),
        pytest.param({"counts": {}, "state": RunState.COMPLETED}, "nothing to sync (test)", id="nothing"),
        pytest.param({"counts": {"skipped": 1}}, "0 synced, 0 failed (test)", id="only skipped"),
        pytest.param({"counts": {"unchanged": 1234}}, "1,234 synced, 0 failed (test)", id="thousands"),
        pytest.param({"preview": True}, "preview, 12 would sync, 2 would fail (test)", id="preview"),
        pytest.param({"state": RunState.FAILED}, "run failed after 12 synced, 2 failed (test)", id="failed on the way"),
        pytest.param({"state": RunState.FAILED, "counts": {}}, "run failed (test)", id="failed at once"),
        pytest.param({"state": RunState.CANCELLED}, "cancelled after 12 synced, 2 failed (test)", id="cancelled"),
        pytest.param({"state": RunState.AWAITING_CONFIRMATION}, "waits for your confirmation (test)", id="guard"),
        pytest.param(
            {"state": RunState.WAITING, "waiting_for": "servicenow"}, "waits for servicenow (test)", id="down"
        ),
        pytest.param({"environment": "production"}, "12 synced, 2 failed (production)", id="production"),
    ],
)
def test_summary_subject_says_what_happened(changes, subject):
    """The subject alone tells the state; synced is created, adopted, updated and unchanged together."""
    email = build_summary(dataclasses.replace(FACTS, **changes))

    assert email.subject == f"[Concord] Cases to incidents: {subject}"
    assert Page(email.html).open == []


def test_summary_of_a_run_without_records_says_so():
    """A run that found nothing still gets its mail."""
    email = build_summary(EMPTY)

    assert "No record changed in this window." in email.html
    assert "NO RECORD CHANGED IN THIS WINDOW." in email.text


def test_summary_names_each_failure_with_reason_and_links():
    """Every failed record: its number, why, what to do, where."""
    email = build_summary(FACTS)

    page = Page(email.html)
    text = " ".join(" ".join(page.texts).split())
    for where in (text, email.text):
        assert "CAS-01042" in where
        assert "Customer is account" in where
        assert "The case's customer is an account, not a contact." in where
        assert "Set a contact as customer" in where
        assert "ServiceNow rejected it: 403." in where
        assert "INC7" in where
    assert page.links.count("https://crm.example.com/c?id=1") == 1
    assert "https://now.example.com/i" in page.links
    assert "<https://now.example.com/i>" in email.text
    assert email.attachments == ()


def test_summary_separates_new_failures_from_repeated_ones():
    """What has been failing since an earlier run stands apart, with the day since when."""
    since = datetime(2026, 3, 10, 23, 30, tzinfo=UTC)

    email = build_summary(dataclasses.replace(FACTS, repeated=lines(1, "target_missing", since=since)))

    assert email.text.index("2 RECORDS FAILED") < email.text.index("1 RECORD STILL FAILING")
    assert "Target missing (since Wed 11 March 2026)" in email.text


@pytest.mark.parametrize("count", [GROUP_ABOVE, GROUP_ABOVE + 1], ids=["at the limit", "above"])
def test_summary_groups_long_lists_and_attaches_them(count):
    """Up to 100 failed records stand there one by one; more are grouped by reason, the commonest first, and attached."""
    half = count // 3
    failures = lines(half, "contact_without_email") + lines(count - half - 1)

    email = build_summary(dataclasses.replace(FACTS, failures=failures, repeated=lines(1, "target_missing")))

    if count == GROUP_ABOVE:
        assert email.attachments == ()
        assert len(re.findall(r"^(- |    )CAS-", email.text, re.MULTILINE)) == count
        return
    (attachment,) = email.attachments
    assert (attachment.name, attachment.type) == ("failed-records.csv", "text/csv")
    assert email.text.index(f"- {count - half - 1} x Rejected") < email.text.index(f"- {half} x Contact without email")
    assert f"All {count} records are in failed-records.csv" in email.text
    assert email.text.count("CAS-") == 3 + 3 + 1
    rows = list(csv.reader(io.StringIO(attachment.content.decode("utf-8-sig"))))
    assert rows[0][:4] == ["record", "new", "failing since", "reason"]
    assert len(rows) == 1 + count


@pytest.mark.parametrize("count", [SAME_FROM - 1, SAME_FROM], ids=["few", "from ten"])
def test_summary_says_the_same_of_many_records_once(count):
    """What is the same of ten records stands there once, with all of them by number and link; others keep a line each."""
    url = "https://crm.example.com/c?id="
    same = tuple(FailureLine(f"CAS-{n}", "customer_is_account", source_url=f"{url}{n}") for n in range(count))
    other = FailureLine("CAS-other", "customer_is_account", "Its customer is Fabrikam.")
    since = datetime(2026, 3, 10, 12, tzinfo=UTC)
    old = tuple(dataclasses.replace(line, since=since) for line in same)

    email = build_summary(dataclasses.replace(FACTS, failures=(same[0], other, *same[1:]), repeated=old))

    page = Page(email.html)
    says = explain("customer_is_account").says
    for text in (email.text, " ".join(" ".join(page.texts).split())):
        assert text.count(says) == 2 * (count if count < SAME_FROM else 1)
        assert "Its customer is Fabrikam." in text
        assert "since Tue 10 March 2026" in text
        assert all(f"CAS-{n}" in text for n in range(count))
    assert (f"{count} x Customer is account" in email.text) is (count >= SAME_FROM)
    assert all(page.links.count(f"{url}{n}") == 2 for n in range(count))
    assert email.attachments == ()
    assert page.open == []


def test_summary_link_says_what_it_asks_for():
    """No link carries a key, so in Azure a browser gets an empty 401 from it."""
    email = build_summary(FACTS)

    assert f"{FACTS.status_url}\n{KEY_WANTED}" in email.text
    assert "x-functions-key" in email.html


def test_preview_says_what_it_cannot_know():
    """Two new records that share an email do not meet before the first of them is made."""
    preview, run = (build_summary(dataclasses.replace(FACTS, preview=each)) for each in (True, False))

    assert BY_ITSELF in preview.text
    assert BY_ITSELF not in run.text


def test_summary_attached_list_is_bounded():
    """A mail service takes 10 MB: beyond the bound the mail says where the rest is."""
    email = build_summary(dataclasses.replace(FACTS, failures=lines(CSV_ROWS + 1)))

    assert f"The first {CSV_ROWS:,} of {CSV_ROWS + 1:,} records" in email.text
    assert email.attachments[0].content.count(b"\r\n") == CSV_ROWS + 1
    assert len(email.attachments[0].content) < 8_000_000


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_summary_spreadsheet_runs_nothing(start):
    """A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    assert spreadsheet_safe(f"{start}HYPERLINK(1)") == f"'{start}HYPERLINK(1)"
    assert spreadsheet_safe("CAS-1 = fine") == "CAS-1 = fine"


def test_summary_attached_cells_are_safe():
    """The rule holds for the file as it is attached."""
    failures = tuple(dataclasses.replace(line, label='=cmd|" /C calc"!A0', sentence="@SUM(1)") for line in lines(101))

    email = build_summary(dataclasses.replace(FACTS, failures=failures))

    rows = list(csv.reader(io.StringIO(email.attachments[0].content.decode("utf-8-sig"))))
    assert rows[1][0] == '\'=cmd|" /C calc"!A0'
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}\r\nBcc: evil@example.com'


def test_summary_markup_in_records_stays_text():
    """Titles, labels and sentences come from records: none becomes markup, a header or a template."""
    link = RecordLink(EVIL, f"javascript:{EVIL}")

    email = build_summary(
        dataclasses.replace(
            FACTS,
            title=EVIL,
            environment=EVIL,
            error=EVIL,
            access_error=EVIL,
            window=EVIL,
            waiting_for=EVIL,
            waiting_since=FACTS.since,
            guard=Guard(EVIL, f"javascript:{EVIL}"),
            status_url=f"https://concord.example.com/{EVIL}",
            skipped={EVIL: 1},
            failures=(FailureLine(EVIL, EVIL, EVIL, EVIL, f"https://x.example/{EVIL}", EVIL),),
            created=(link,),
            warnings=(WarningLine(EVIL, 1, EVIL, (link,)),),
        )
    )

    page = Page(email.html)
    assert page.open == []
    assert not page.tags & {"script", "img"}
    assert "\n" not in email.subject
    assert all(each.startswith("https://") for each in page.links)
    assert "49" not in email.subject


@given(st.text(), st.text(), st.text())
def test_summary_any_text_gives_a_mail(label, sentence, url):
    """Whatever a record holds, the mail is built, its tags are in order, and links lead to the web only."""
    line = FailureLine(
        label, sentence, sentence, source_url=url, target_url=f"https://x.example/{url}", target_label=label
    )

    email = build_summary(dataclasses.replace(FACTS, title=label, failures=(line,)))

    page = Page(email.html)
    assert page.open == []
    assert page.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "body",
        "div",
        "table",
        "tr",
        "td",
        "a",
        "strong",
        "span",
        "br",
    }
    assert all(each.startswith(("https://", "http://")) for each in page.links)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        pytest.param("https://crm.example.com/main.aspx?etn=incident&id=1#x", True, id="record"),
        pytest.param("http://localhost:7103/incident?sys_id=1", True, id="sandbox"),
        pytest.param("https://now.example.com/nav_to.do?uri=incident.do?sys_id=1", True, id="ServiceNow"),
        pytest.param("https://app.example.com/api/runs/1?code=abc", False, id="function key"),
        pytest.param("https://app.example.com/r?x=1&Access_Token=abc", False, id="token"),
        pytest.param("https://app.example.com/r#access_token=abc", False, id="token in the fragment"),
        pytest.param("https://a.example/b?sv=1&sig=abc", False, id="signature"),
        pytest.param("https://u:p@a.example/", False, id="password"),
        pytest.param("javascript:alert(1)", False, id="script"),
        pytest.param("data:text/html,x", False, id="data"),
        pytest.param("//a.example/x", False, id="no scheme"),
        pytest.param("https://[bad", False, id="broken"),
        pytest.param("https://a.example/x\r\nBcc: y", False, id="line break"),
        pytest.param("https://a.example/x y", False, id="blank"),
        pytest.param("", False, id="none"),
    ],
)
def test_summary_links_carry_no_key(url, safe):
    """An address with a key, or that is none of the web, becomes plain text."""
    assert safe_link(url) == (url if safe else "")


@pytest.mark.parametrize(
    ("changes", "period"),
    [
        pytest.param({}, "yesterday: Fri 13 March 2026 (Europe/Berlin)", id="one day"),
        pytest.param(
            {
                "window": "last_week",
                "since": datetime(2026, 3, 22, 23, tzinfo=UTC),
                "until": datetime(2026, 3, 29, 22, tzinfo=UTC),
            },
            "last week: Mon 23 March 2026 to Sun 29 March 2026 (Europe/Berlin)",
            id="over the change of clocks",
        ),
        pytest.param(
            {"window": "since_last_run", "until": datetime(2026, 3, 13, 5, tzinfo=UTC)},
            "since last run: from Fri 13 March 2026, 00:00 to Fri 13 March 2026, 06:00 (Europe/Berlin)",
            id="part of a day",
        ),
        pytest.param({"window": "all", "since": None, "until": None}, "all\n", id="everything"),
        pytest.param({"window": "ids=a_1,b", "since": None, "until": None}, "ids=a_1,b\n", id="two ids"),
        pytest.param(
            {"window": "ids=a,b,c,d", "since": None, "until": None}, "4 records by their ids\n", id="many ids"
        ),
    ],
)
def test_summary_window_is_in_local_time(changes, period):
    """The window stands in the app's zone; whole days are named as days."""
    email = build_summary(dataclasses.replace(FACTS, **changes))

    assert f"\n{period}" in email.text


@pytest.mark.parametrize(
    ("seconds", "took"),
    [(0, "under a second"), (59, "59 s"), (125, "2 min 5 s"), (3600, "1 h"), (90061, "25 h 1 min 1 s")],
)
def test_summary_says_how_long_it_took(seconds, took):
    """Start in local time, and the time it took in words."""
    ended_at = FACTS.started_at + timedelta(seconds=seconds)

    email = build_summary(dataclasses.replace(FACTS, ended_at=ended_at))

    assert f"started Sat 14 March 2026, 06:00, took {took}\n" in email.text


def test_summary_says_a_refused_connection_once_and_first():
    """A connection's fault explains the failures below it, so it comes first, and once."""
    fault = "ServiceNow refuses concord.integration on sys_user: role missing."

    email = build_summary(dataclasses.replace(FACTS, access_error=fault, error=fault, preview=True))

    assert email.text.count(fault) == 1
    assert (
        email.text.index(fault) < email.text.index("THIS WAS A PREVIEW") < email.text.index("12 would sync, 3 skipped")
    )


def test_summary_asks_for_a_confirmation_with_its_link():
    """A guard says what waits, until when, and where it is decided."""
    guard = Guard(
        "The run would create 312 users.",
        "https://concord.example.com/runs/run-1/confirm",
        datetime(2026, 3, 21, 6, tzinfo=UTC),
    )

    email = build_summary(
        dataclasses.replace(FACTS, state=RunState.AWAITING_CONFIRMATION, guard=guard, counts={"held": 312})
    )

    assert guard.url in Page(email.html).links
    assert (
        "The run would create 312 users. Without an answer by Sat 21 March 2026, 07:00 it is cancelled." in email.text
    )
    assert "POST to its address with /confirm" in email.text
    assert "312 held back" in email.text


def test_cancelled_run_has_not_failed():
    """Who cancels a run is not told that it failed, but what has become of its records."""
    email = build_summary(dataclasses.replace(EMPTY, state=RunState.CANCELLED, error="Cancelled by a person."))

    assert "THE RUN WAS CANCELLED\nCancelled by a person. What was written before stays written." in email.text
    assert "run failed" not in email.text.lower()


def test_failed_run_says_what_to_do():
    """The reason of a run that failed is followed by what comes next."""
    email = build_summary(dataclasses.replace(EMPTY, state=RunState.FAILED, error="The secret has expired."))

    assert "The secret has expired. When that is mended, start the run again." in email.text


@pytest.mark.parametrize(
    ("change", "headline", "section", "next_step"),
    [
        pytest.param({}, "12 synced, 2 failed", "2 RECORDS FAILED", True, id="run"),
        pytest.param({"preview": True}, "12 would sync, 2 would fail", "2 RECORDS WOULD FAIL", False, id="preview"),
        pytest.param({"verify": True}, "12 agree, 2 differ", "2 RECORDS DIFFER", False, id="verification"),
    ],
)
def test_numbers_are_called_what_they_are(change: dict[str, bool], headline: str, section: str, next_step: bool):
    """A preview plans and a verification compares: neither says that something was synced, or asks for a retry."""
    email = build_summary(dataclasses.replace(FACTS, **change))

    assert headline in email.subject
    assert section in email.text
    assert ("/retry" in email.text) is next_step


def test_group_tells_what_happened_not_only_its_code():
    """Above a hundred failures a group's sentence is the one that its records share, or an example of them."""
    shared = tuple(FailureLine(f"CAS-{n}", "rejected", "ServiceNow refused it: rule x.") for n in range(GROUP_ABOVE))
    other = FailureLine("CAS-other", "ambiguous_match", "2 incidents match.")
    third = FailureLine("CAS-third", "ambiguous_match", "3 incidents match.")

    email = build_summary(dataclasses.replace(FACTS, failures=(*shared, other, third)))

    assert "100 x Rejected: ServiceNow refused it: rule x." in email.text
    assert "2 x Ambiguous match: Several target records match; none was chosen. For example: 2 incidents" in email.text


def test_long_words_break_on_a_phone():
    """An address that is wider than a phone does not push the mail off its right edge."""
    email = build_summary(dataclasses.replace(FACTS, created=(RecordLink("a" * 60 + "@example.com"),)))

    (layout,) = [line for line in email.html.splitlines() if "max-width:600px" in line]
    assert "word-break:break-word" in layout


def test_digest_counts_no_successes():
    """A digest knows what failed, not how many went well: it shows no zero for them."""
    email = build_digest(
        DigestFacts(**COMMON, recipe="r", day=date(2026, 3, 13), counts={"failed": 1}, failures=FACTS.failures[:1])
    )

    assert "synced" not in email.text
    assert "synced" not in email.html


def test_summary_says_since_when_it_waits():
    """A vendor that is down is named with the time since when."""
    since = datetime(2026, 3, 14, 5, 20, tzinfo=UTC)

    email = build_summary(
        dataclasses.replace(EMPTY, state=RunState.WAITING, waiting_for="servicenow", waiting_since=since)
    )

    assert "servicenow has not answered since Sat 14 March 2026, 06:20." in email.text
    assert "No record changed" not in email.text


def test_summary_lists_created_users_warnings_and_skipped():
    """What was made on the way, what was odd, and what was left out on purpose, each by kind with numbers."""
    created = tuple(RecordLink(f"User {number}", f"https://now.example.com/u/{number}") for number in range(52))
    warnings = (WarningLine("field_not_written", 12, records=tuple(RecordLink(f"CAS-{n}") for n in range(12))),)

    email = build_summary(dataclasses.replace(FACTS, created=created, warnings=warnings))

    assert "52 USERS CREATED" in email.text
    assert "User 49" in email.text
    assert "User 50" not in email.text
    assert "and 2 more" in email.text
    assert "- 12 x Field not written" in email.text
    assert "CAS-9\n    and 2 more" in email.text
    assert "- 3 x Case not active: The case is resolved or cancelled" in email.text


def test_summary_repeat_has_the_same_message_id():
    """The same run gives the same message id, so a second sending is shown once."""
    assert build_summary(FACTS).message_id == build_summary(FACTS).message_id == "<run-1.summary@concord.example.com>"


def test_summary_long_title_is_cut_in_the_subject_only():
    """A subject stays readable in a list of mails."""
    email = build_summary(dataclasses.replace(FACTS, title="x" * 300))

    assert len(email.subject) < 150
    assert "x" * 300 in email.html


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        pytest.param({}, "1 new failure", id="new"),
        pytest.param({"repeated": lines(2)}, "1 new failure, 2 still failing", id="both"),
        pytest.param({"failures": (), "repeated": lines(2)}, "2 still failing", id="repeated only"),
    ],
)
def test_digest_tells_new_failures_from_repeated_ones(changes, headline):
    """One mail per recipe and day, with its own message id."""
    email = build_digest(dataclasses.replace(DIGEST, **changes))

    assert email.subject == f"[Concord] Cases to incidents: {headline} (test)"
    assert email.message_id == "<contact_to_lead-20260314.digest@concord.example.com>"
    assert "Sat 14 March 2026 (Europe/Berlin)" in email.text
    assert Page(email.html).open == []


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("case_not_active", "The case is resolved or cancelled and was never synced."),
        ("contact_without_email", "The contact has no email."),
        ("user_inactive", "The user is inactive in the target; the field was left empty."),
        ("external_company_id_shared", "Another record has the same external company id and came first."),
        ("vip_needs_approval", "Vip needs approval."),
        ("", "Unknown."),
    ],
)
def test_reason_codes_are_words(code, says):
    """A code formed from a record's noun follows its pattern; a recipe's own code is read as its words."""
    assert explain(code).says == says


@pytest.mark.parametrize("code", sorted(REASONS))
def test_reasons_are_sentences(code):
    """Every reason says what happened and what to do, each as a sentence."""
    reason = REASONS[code]

    assert reason.says[0].isupper()
    assert reason.says.endswith(".")
    assert not reason.do or (reason.do[0].isupper() and reason.do.endswith("."))
