"""The Marketo client against its simulator: what it reads, writes and refuses to believe."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import responses

from sandbox.marketo_fields import Field
from sandbox.simulator import FaultKind
from shared.clients import marketo, marketo_batches
from shared.clients.system import FieldKind, Write, Written
from shared.errors import (
    AccessError,
    AmbiguousWriteError,
    MappingError,
    RateLimitedError,
    RejectedError,
    RemoteError,
    SyncError,
    TransientError,
)
from tests.clients.connections import NOW, Permits, connect
from tests.clients.marketo_bench import MarketoBench, marketo_bench, sign_in

LEADS, COMPANIES = "/rest/v1/leads.json", "/rest/v1/companies.json"
ACCOUNT = "8f1c0000-0000-4000-8000-000000000001"


@pytest.fixture
def bench() -> Iterator[MarketoBench]:
    """Serve an empty instance."""
    with marketo_bench() as bench:
        yield bench


def kinds(answers: list[Written | SyncError]) -> list[Any]:
    """Return what became of each write, in a word."""
    return [("created" if a.created else "updated") if isinstance(a, Written) else (type(a), a.code) for a in answers]


# -- describing -----------------------------------------------------------------------------------------------------------


def test_describe_tells_types_lengths_and_what_can_be_written(bench: MarketoBench) -> None:
    """Fields come from the instance; what the sync must not overwrite counts as not writable."""
    lead, company = bench.client.describe("lead"), bench.client.describe("company")

    assert (lead.noun, lead.fields["email"].searchable, lead.fields["lastName"].searchable) == ("lead", True, False)
    assert (lead.fields["email"].length, lead.fields["annualRevenue"].kind) == (255, FieldKind.NUMBER)
    assert (lead.fields["dateOfBirth"].kind, lead.fields["unsubscribed"].kind) == (FieldKind.TIME, FieldKind.BOOLEAN)
    assert not any(lead.fields[name].writable for name in ("unsubscribed", "emailInvalid", "id", "contactCompany"))
    assert (company.fields["externalCompanyId"].searchable, company.fields["company"].writable) == (True, True)


def test_describe_asks_once(bench: MarketoBench) -> None:
    """A record type is described once per process."""
    first = bench.client.describe("lead")

    assert bench.client.describe("lead") is first
    assert bench.calls() == 1


def test_unknown_record_and_field_are_refused_without_a_call(bench: MarketoBench) -> None:
    """Names are checked against what the instance described."""
    bench.client.describe("lead")
    for record, field, by, code in (("opportunity", "email", "email", "unknown_record_type"), ("lead", "nope", "email", "unknown_field"), ("lead", "company.name", "email", "unknown_field"), ("lead", "email", "lastName", "unsearchable_field")):  # fmt: skip
        with pytest.raises(RejectedError) as caught:
            bench.client.fetch_rows(record, frozenset({field}), (by,), [("ada@acme.example",)])

        assert caught.value.code == code
    assert bench.calls() == 1


# -- looking up -----------------------------------------------------------------------------------------------------------


def test_rows_hold_canonical_values(bench: MarketoBench) -> None:
    """What the answer leaves out is None; times are aware; a lead shows its company's values."""
    bench.sim.insert("companies", externalCompanyId=ACCOUNT, company="Acme, Inc.", numberOfEmployees=250)
    key = bench.sim.insert("leads", email="Ada@acme.example", dateOfBirth="1990-05-01", externalCompanyId=ACCOUNT)
    paths = frozenset({"email", "lastName", "company", "numberOfEmployees", "dateOfBirth", "createdAt"})

    (row,) = bench.client.fetch_rows("lead", paths, (), [(str(key),)])

    assert row.fields == {
        "email": "Ada@acme.example",
        "lastName": None,
        "company": "Acme, Inc.",
        "numberOfEmployees": 250,
        "dateOfBirth": datetime(1990, 5, 1, tzinfo=UTC),
        "createdAt": NOW,
    }
    assert (row.key, row.label, row.changed_at, row.version) == (str(key), str(key), NOW, NOW.isoformat())
    assert not row.closed


def test_all_leads_of_an_email_are_found_whatever_its_case(bench: MarketoBench) -> None:
    """Doubled leads are seen, so that nobody guesses between them."""
    keys = {str(bench.sim.insert("leads", email=email)) for email in ("ada@acme.example", "ADA@acme.example")}
    bench.sim.insert("leads", email="bo@acme.example")

    assert {row.key for row in bench.find("Ada@Acme.example")} == keys


def test_many_values_are_asked_for_in_few_calls(bench: MarketoBench) -> None:
    """Up to 300 values go in one call, as a form where an address would be too long."""
    emails = [f"person.number{i}@a-rather-long-customer.example" for i in range(450)]
    for email in emails:
        bench.sim.insert("leads", email=email)
    bench.client.describe("lead")

    rows = bench.find(*emails)

    assert len({row.key for row in rows}) == len(rows) == 450
    assert (bench.calls("GET", LEADS), bench.calls("POST", LEADS)) == (0, 2)
    assert all(entry.query == "_method=GET" for entry in bench.sim.requests("POST", LEADS))


def test_lead_that_two_calls_find_comes_once(bench: MarketoBench) -> None:
    """One address in two spellings, far apart."""
    bench.sim.insert("leads", email="ada@acme.example")
    others = [f"p{i}@acme.example" for i in range(300)]

    assert len(bench.find("ada@acme.example", *others, "ADA@acme.example")) == 1


def test_few_values_are_asked_for_in_the_address(bench: MarketoBench) -> None:
    """A short question is a plain GET."""
    bench.client.describe("lead")

    assert bench.find("ada@acme.example", "a+b&c=d@acme.example") == []
    assert (bench.calls("GET", LEADS), bench.calls("POST", LEADS)) == (1, 0)


def test_pages_are_followed_to_their_end(bench: MarketoBench) -> None:
    """More rows than fit one page come with a token."""
    for _ in range(301):
        bench.sim.insert("leads", email="many@acme.example")

    assert len(bench.find("many@acme.example")) == 301


def test_too_many_matches_are_asked_for_in_halves(bench: MarketoBench) -> None:
    """Over 1,000 matches the vendor refuses the question, not the values."""
    for i in range(1100):
        bench.sim.insert("leads", email=f"p{i % 11}@acme.example")

    assert len(bench.find(*(f"p{i}@acme.example" for i in range(11)))) == 1100

    for _ in range(1001):
        bench.sim.insert("leads", email="endless@acme.example")
    with pytest.raises(RejectedError) as caught:
        bench.find("endless@acme.example")
    assert caught.value.code == "too_many_results"


@pytest.mark.parametrize(
    "value", ["ada,bo@acme.example", "ada@acme.example,", "größe@acme.example", "a\nb@acme.example"]
)
def test_value_that_no_filter_can_hold_is_refused(bench: MarketoBench, value: str) -> None:
    """There is no escape for a comma, and no lead has an email beyond ASCII."""
    bench.client.describe("lead")

    with pytest.raises(RejectedError) as caught:
        bench.find(value)

    assert caught.value.code == "unsearchable_value"
    assert "acme" not in str(caught.value)
    assert bench.calls(path=LEADS) == 0


def test_empty_value_is_never_asked_for(bench: MarketoBench) -> None:
    """It would match nothing, or everything."""
    with pytest.raises(ValueError, match="empty"):
        bench.find("  ")


def test_answer_that_ignored_the_question_is_refused() -> None:
    """A row with another email than the one asked for is not believed."""
    with responses.RequestsMock() as stub:
        described = {"searchableFields": [["email"]], "fields": [{"name": "email", "dataType": "email"}]}
        stub.get("https://m.example/rest/v1/leads/describe2.json", json={"success": True, "result": [described]})
        stub.get(f"https://m.example{LEADS}", json={"success": True, "result": [{"id": 7, "email": "x@else.example"}]})
        client = marketo.Marketo(connect("https://m.example", marketo.DIALECT))

        with pytest.raises(RejectedError) as caught:
            client.fetch_rows("lead", frozenset({"email"}), ("email",), [("ada@acme.example",)])

    assert caught.value.code == "filter_ignored"


def test_url_leads_to_the_page_for_people() -> None:
    """A lead has a page; without the address that people use there is no link."""
    with marketo_bench(web_url="https://app-ab12.marketo.com/") as bench:
        assert bench.client.url("lead", "7") == "https://app-ab12.marketo.com/leadDatabase/loadLeadDetail?leadId=7"
        assert bench.client.url("company", ACCOUNT) == ""


# -- writing leads --------------------------------------------------------------------------------------------------------


def test_lone_new_lead_is_created_only_if_its_email_is_new(bench: MarketoBench) -> None:
    """A lead that came meanwhile is not overwritten: the create is ambiguous, and looked up by whoever asked."""
    (first,) = bench.create("ada@acme.example", lastName="Quill", leadScore=5, mktoPersonNotes=None)
    (second,) = bench.create("ADA@acme.example", lastName="Other")

    assert isinstance(first, Written)
    assert (first.created, first.row) == (True, None)
    assert kinds([second]) == [(AmbiguousWriteError, "exists_already")]
    (row,) = bench.sim.rows("leads")
    assert (str(row["id"]), row["lastName"], row["leadScore"]) == (first.key, "Quill", 5)
    body = json.loads(bench.sim.requests("POST", LEADS)[0].body)
    assert (body["action"], body["lookupField"]) == ("createOnly", "email")


def test_several_new_leads_are_one_call_joined_by_position(bench: MarketoBench) -> None:
    """Answers name no record: each result belongs to the write in its place."""
    old = bench.sim.insert("leads", email="b@acme.example")
    emails = ["c@acme.example", "b@acme.example", "a@acme.example"]

    answers = bench.create(*emails, lastName="Q")

    assert kinds(answers) == ["created", "updated", "created"]
    found = {row["email"]: str(row["id"]) for row in bench.sim.rows("leads")}
    assert [a.key for a in answers if isinstance(a, Written)] == [found[email] for email in emails]
    assert found["b@acme.example"] == str(old)
    assert bench.calls("POST", LEADS) == 1


def test_300_leads_fit_one_call(bench: MarketoBench) -> None:
    """The rest of a batch goes in further calls."""
    answers = bench.create(*(f"p{i}@acme.example" for i in range(601)))

    assert kinds(answers) == ["created"] * 601
    bodies = [json.loads(entry.body) for entry in bench.sim.requests("POST", LEADS)]
    assert [(len(body["input"]), body["action"]) for body in bodies] == [(300, "createOrUpdate")] * 2 + [
        (1, "createOnly")
    ]


def test_calls_keep_below_the_vendors_size(bench: MarketoBench) -> None:
    """A batch of long notes is cut by size, before the vendor answers 413."""
    notes = "ä" * 2000

    answers = bench.create(*(f"p{i}@acme.example" for i in range(150)), mktoPersonNotes=notes, address=notes)

    assert kinds(answers) == ["created"] * 150
    assert bench.calls("POST", LEADS) > 1


def test_change_goes_by_id_and_keeps_what_was_not_sent(bench: MarketoBench) -> None:
    """A changed email moves the linked lead; None empties a field."""
    key = bench.sim.insert("leads", email="old@acme.example", title="Buyer", phone="1")
    other = bench.sim.insert("leads", email="b@acme.example")

    answers = bench.client.write_rows(
        "lead", [Write(str(key), {"email": "new@acme.example", "title": None}), Write(str(other), {"leadScore": 3})]
    )

    assert kinds(answers) == ["updated", "updated"]
    (row,) = bench.sim.rows("leads", id=key)
    assert (row["email"], row["title"], row["phone"]) == ("new@acme.example", None, "1")
    (entry,) = bench.sim.requests("POST", LEADS)  # and one look-up, of who has the new email
    assert (json.loads(entry.body)["action"], json.loads(entry.body)["lookupField"]) == ("updateOnly", "id")


def test_email_of_another_lead_is_not_taken(bench: MarketoBench) -> None:
    """The vendor would let two leads have it; case alone, or one's own email, is no move."""
    taken, mover, late = (str(bench.sim.insert("leads", email=f"{who}@acme.example")) for who in ("a", "b", "c"))
    moves = [(taken, "A@acme.example"), (mover, "a@acme.example"), (mover, "new@acme.example"), (late, "NEW@acme.example"), (late, "a,c@acme.example")]  # fmt: skip
    for _ in range(2):
        bench.sim.insert("leads", email="twice@acme.example")

    answers = bench.client.write_rows(
        "lead", [*(Write(key, {"email": email}) for key, email in moves), Write(late, {"email": "twice@acme.example"})]
    )

    assert kinds(answers) == [
        "updated",
        (RejectedError, "ambiguous_match"),
        "updated",
        (RejectedError, "ambiguous_match"),
        (RejectedError, "unsearchable_value"),
        (RejectedError, "ambiguous_match"),
    ]
    emails = [row["email"] for row in bench.sim.rows("leads")]
    assert emails == ["A@acme.example", "new@acme.example", "c@acme.example", *["twice@acme.example"] * 2]


def test_email_is_not_moved_while_nobody_can_say_who_has_it(bench: MarketoBench) -> None:
    """A look-up that fails leaves its change for later, and the other changes go on."""
    key = str(bench.sim.insert("leads", email="a@acme.example"))
    other = str(bench.sim.insert("leads", email="b@acme.example"))
    bench.client.describe("lead")
    bench.sim.script_error("713", method="GET", times=3)

    answers = bench.client.write_rows("lead", [Write(key, {"email": "n@acme.example"}), Write(other, {"title": "x"})])

    assert kinds(answers) == [(TransientError, "vendor_unavailable"), "updated"]


def test_two_changes_of_one_lead_go_one_after_the_other(bench: MarketoBench) -> None:
    """A call holds each key once; the later change wins."""
    key = str(bench.sim.insert("leads", email="a@acme.example"))

    answers = bench.client.write_rows("lead", [Write(key, {"title": "one"}), Write(key, {"title": "two"})])

    assert kinds(answers) == ["updated", "updated"]
    assert bench.sim.rows("leads")[0]["title"] == "two"
    assert bench.calls("POST", LEADS) == 2


def test_two_new_leads_of_one_email_are_not_merged(bench: MarketoBench) -> None:
    """The second is looked up instead: then its owner is known."""
    answers = bench.create("a@acme.example", "A@acme.example ", "b@acme.example")

    assert kinds(answers) == ["created", (AmbiguousWriteError, "exists_already"), "created"]
    assert len(bench.sim.rows("leads")) == 2


def test_one_bad_record_does_not_touch_its_neighbours(bench: MarketoBench) -> None:
    """A success with skipped records: every write has its own answer, in order."""
    for _ in range(2):
        bench.sim.insert("leads", email="twice@acme.example")
    key = str(bench.sim.insert("leads", email="k@acme.example"))
    writes = [
        *(Write(None, {"email": e, **f}, {"email": e}) for e, f in (
            ("a@acme.example", {}),
            ("twice@acme.example", {}),
            ("c@acme.example", {"leadScore": "many"}),
            ("d@acme.example", {"externalCompanyId": "nobody"}),
            ("e@acme.example", {"nope": 1}),
            ("f@acme.example", {"unsubscribed": False}),
            ("größe@acme.example", {}),
            ("g@acme.example", {"title": ["a", "list"]}),
            ("h@acme.example", {"company": "Acme"}),
            ("i@acme.example", {"lastName": "x" * 256}),
        )),
        Write("999999", {"title": "gone"}),
        Write("not an id", {"title": "gone"}),
        Write(key, {}),
        Write(key, {"title": "Buyer"}),
        Write(None, {"title": "nobody"}),
    ]  # fmt: skip

    answers = bench.client.write_rows("lead", writes)

    assert kinds(answers) == [
        "created",
        (RejectedError, "ambiguous_match"),
        (RejectedError, "invalid_value"),
        (RejectedError, "company_missing"),
        (RejectedError, "unknown_field"),
        (MappingError, "unwritable_field"),
        (MappingError, "unwritable_value"),
        (MappingError, "unwritable_value"),
        (RejectedError, "company_fields_refused"),
        (RejectedError, "invalid_value"),
        (RejectedError, "target_missing"),
        (RejectedError, "target_missing"),
        (MappingError, "nothing_to_write"),
        "updated",
        (MappingError, "lead_without_email"),
    ]
    assert "leadScore" in str(answers[2])
    assert "many" not in str(answers[2])
    assert "recipe" in str(answers[8])
    assert bench.calls("POST", LEADS) == 2


def test_refusal_of_a_whole_call_is_narrowed_down(bench: MarketoBench) -> None:
    """Where the vendor refuses everything for one record, the others are written all the same."""
    bench.client.describe("lead")
    bench.sim.script_error("1003", path=LEADS, times=3)  # the call of 8, then the half of 4, then the half of 2

    answers = bench.create(*(f"p{i}@acme.example" for i in range(8)))

    assert kinds(answers) == ["created"] * 8
    bench.sim.script_error("1003", path=LEADS, times=1000)
    refused = bench.create(*(f"q{i}@acme.example" for i in range(300)))
    assert set(kinds(refused)) == {(RejectedError, "invalid_value")}
    assert bench.calls("POST", LEADS) < 7 + 2 * marketo_batches.SPLITS + 2


def test_times_and_dates_are_written_in_the_vendors_form(bench: MarketoBench) -> None:
    """A date field takes a day, a time field a time with its zone."""
    bench.sim.add_field("leads", Field("renewedAt", "Renewed", "datetime"))
    moment = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)

    bench.create("a@acme.example", renewedAt=moment, dateOfBirth=moment)

    (row,) = bench.sim.rows("leads")
    assert (row["renewedAt"], row["dateOfBirth"]) == ("2026-03-01T08:30:00Z", "2026-03-01")


def test_lookup_field_can_be_left_to_the_instance() -> None:
    """An explicit field would override an instance's own rules for duplicates."""
    with marketo_bench(lookup_field="") as bench:
        bench.create("a@acme.example")
        bench.create("b@acme.example", "c@acme.example")

        assert all("lookupField" not in json.loads(entry.body) for entry in bench.sim.requests("POST", LEADS))


# -- writing companies ----------------------------------------------------------------------------------------------------


def test_company_is_made_and_kept_by_its_external_id(bench: MarketoBench) -> None:
    """Its key is what leads refer to it by, so that a look-up's answer can go into a lead; no create changes one that is there."""
    made = bench.client.write_rows(
        "company",
        [Write(None, {"externalCompanyId": ACCOUNT, "company": "Acme, Inc."}, {"externalCompanyId": ACCOUNT})],
    )
    changed = bench.client.write_rows("company", [Write(ACCOUNT, {"company": "Acme", "annualRevenue": 1.5})])
    again = bench.client.write_rows(
        "company", [Write(None, {"externalCompanyId": ACCOUNT, "website": "https://a.example"})]
    )
    lead = bench.create("a@acme.example", externalCompanyId=ACCOUNT)

    assert [answer.key for answer in (*made, *changed) if isinstance(answer, Written)] == [ACCOUNT] * 2
    assert kinds([*made, *changed, *again, *lead]) == [
        "created",
        "updated",
        (AmbiguousWriteError, "exists_already"),
        "created",
    ]
    (row,) = bench.find(ACCOUNT, record="company", by="externalCompanyId", also="website")
    assert (row.key, row.fields["website"]) == (ACCOUNT, None)
    assert bench.sim.rows("leads")[0]["company"] == "Acme"


def test_companies_skipped_one_by_one(bench: MarketoBench) -> None:
    """A missing company is not made by a change, and its key is never changed."""
    answers = bench.client.write_rows(
        "company",
        [
            Write("nobody", {"company": "x"}),
            Write(None, {"company": "x"}),
            Write(ACCOUNT, {"externalCompanyId": "other"}),
            Write(None, {"externalCompanyId": ACCOUNT, "company": "x"}),
        ],
    )

    assert kinds(answers) == [
        (RejectedError, "target_missing"),
        (MappingError, "company_without_externalCompanyId"),
        (MappingError, "unwritable_value"),
        "created",
    ]


def test_two_companies_of_one_external_id_are_both_found(bench: MarketoBench) -> None:
    """It has happened; nobody guesses between them."""
    for name in ("one", "two"):
        bench.sim.insert("companies", externalCompanyId=ACCOUNT, company=name)

    rows = bench.find(ACCOUNT, record="company", by="externalCompanyId", also="company")

    assert [row.fields["company"] for row in rows] == ["one", "two"]


@pytest.mark.parametrize(
    ("code", "reason"), [("1018", "company_interface_off"), ("603", "access_denied"), ("703", "feature_off")]
)
def test_closed_company_interface_names_the_other_recipe(code: str, reason: str) -> None:
    """With native CRM sync companies cannot be written; a person reads what to do instead."""
    with marketo_bench({"crm_sync": True, "crm_code": code}) as bench:
        answers = bench.client.write_rows("company", [Write(None, {"externalCompanyId": ACCOUNT, "company": "x"})])

        assert kinds(answers) == [(AccessError, reason)]
        assert "recipes/optional" in str(answers[0])
        with pytest.raises(AccessError, match="recipes/optional"):
            bench.client.describe("company")


def test_company_fields_on_a_lead_work_where_the_instance_takes_them() -> None:
    """The alternative recipe writes them; they hold for all leads of the company."""
    with marketo_bench({"crm_sync": True, "company_fields_on_lead": True}) as bench:
        assert kinds(bench.create("a@acme.example", company="Acme", billingCity="Oslo")) == ["created"]
        assert bench.find("a@acme.example", also="company")[0].fields["company"] == "Acme"


# -- tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("void", ["expire_tokens", "invalidate_tokens"])
def test_refused_token_is_renewed_once(bench: MarketoBench, void: str) -> None:
    """602 and 601 come inside HTTP 200; a create that met them has not taken effect and is sent again."""
    bench.client.describe("lead")
    getattr(bench.sim, void)()

    answers = bench.create("a@acme.example")

    assert kinds(answers) == ["created"]
    assert (bench.calls(path="/identity/"), bench.calls("POST", LEADS)) == (2, 2)


def test_token_expires_by_itself_and_in_the_middle(bench: MarketoBench) -> None:
    """A token that the fault voids at this very call is renewed too."""
    bench.client.describe("lead")
    bench.sim.add_fault(FaultKind.EXPIRE_TOKEN, method="POST", path=LEADS)

    assert kinds(bench.create("a@acme.example")) == ["created"]


def test_lasting_refusal_is_the_connections_fault(bench: MarketoBench) -> None:
    """Only one renewal is tried."""
    bench.client.describe("lead")
    bench.sim.script_error("601", path=LEADS, times=10)

    answers = bench.create("a@acme.example")

    assert kinds(answers) == [(TransientError, "credentials_refused")]
    assert bench.calls("POST", LEADS) == 1  # the identity endpoint still gives out the token that was refused


def test_short_lived_token_is_used_and_asked_for_again() -> None:
    """Tokens are shared: the one that comes may be near its end."""
    with marketo_bench({"token_life_s": 4}) as bench:
        now_s = [0.0]
        auth = sign_in(bench.base_url, now_s=lambda: now_s[0])
        first = auth.headers()
        now_s[0] = 3.0
        bench.sim.clock.advance(5)

        assert auth.headers() != first


def test_wrong_secret_stops_the_connection_and_shows_nothing_of_it(bench: MarketoBench, caplog: Any) -> None:
    """The secret travels in the query string; no error and no log line has it."""
    auth = sign_in(bench.base_url, secret="s3cr3t-and-wrong")
    http = connect(bench.base_url, marketo.DIALECT, auth, Permits())

    with pytest.raises(AccessError) as caught:
        marketo.Marketo(http).describe("lead")

    facts = json.dumps({name: str(value) for name, value in vars(caught.value).items()})
    assert caught.value.code == "sign_in_refused"
    assert "s3cr3t" not in f"{caught.value} {facts} {caught.value.__context__!r} {caplog.text}"
    http.close()


@pytest.mark.parametrize("kind", [FaultKind.TRUNCATED, FaultKind.RESET_AFTER, FaultKind.HTML])
def test_broken_sign_in_shows_neither_secret_nor_token(bench: MarketoBench, kind: FaultKind) -> None:
    """Half an answer may hold a whole token."""
    bench.sim.add_fault(kind, path="/identity/", times=0)

    with pytest.raises(TransientError) as caught:
        bench.client.describe("lead")

    assert caught.value.body_excerpt == ""
    assert "secret" not in str(caught.value)
    assert caught.value.path == "/identity/oauth/token"


def test_token_is_sent_in_the_header_only(bench: MarketoBench) -> None:
    """The parameter is on its way out."""
    bench.create("a@acme.example")

    entries = bench.sim.requests(path="/rest/")
    assert all(entry.headers["authorization"] == "Bearer" for entry in entries)
    assert all("access_token" not in entry.target + entry.body for entry in entries)


# -- bad days -------------------------------------------------------------------------------------------------------------


CREATE_FAULTS: list[tuple[str, Any, type[RemoteError], bool]] = [  # name, what goes wrong, error, whether it took effect
    ("cut before", FaultKind.REFUSE, AmbiguousWriteError, False),
    ("cut after", FaultKind.RESET_AFTER, AmbiguousWriteError, True),
    ("truncated", FaultKind.TRUNCATED, AmbiguousWriteError, True),
    ("html", FaultKind.HTML, AmbiguousWriteError, True),
    ("http 502 after", (FaultKind.STATUS_AFTER, {"status": 502}), AmbiguousWriteError, True),
    ("empty object", (FaultKind.STATUS, {"status": 200, "body": "{}"}), AmbiguousWriteError, False),
    ("no results", (FaultKind.STATUS, {"status": 200, "body": '{"success":true,"result":[]}'}), AmbiguousWriteError, False),
    ("odd result", (FaultKind.STATUS, {"status": 200, "body": '{"success":true,"result":[{"status":"done","id":1}]}'}), AmbiguousWriteError, False),
    ("no code", (FaultKind.STATUS, {"status": 200, "body": '{"success":false}'}), AmbiguousWriteError, False),
    ("http 413", (FaultKind.STATUS, {"status": 413}), RejectedError, False),
    ("604", {"code": "604"}, AmbiguousWriteError, False),
    ("604 after", {"code": "604", "after": True}, AmbiguousWriteError, True),
    ("500", {"code": "500"}, AmbiguousWriteError, False),
    ("502 after", {"code": "502", "after": True}, AmbiguousWriteError, True),
    ("611", {"code": "611"}, AmbiguousWriteError, False),
    ("713", {"code": "713"}, AmbiguousWriteError, False),
    ("608", {"code": "608"}, TransientError, False),
    ("614", {"code": "614"}, TransientError, False),
    ("606", {"code": "606"}, RateLimitedError, False),
    ("607", {"code": "607"}, RateLimitedError, False),
    ("615", {"code": "615"}, RateLimitedError, False),
    ("603", {"code": "603"}, AccessError, False),
    ("1014 of the record", {"code": "1014", "record": 0}, TransientError, False),
    ("604 of the record", {"code": "604", "record": 0}, TransientError, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fault", "error", "effect"), CREATE_FAULTS, ids=[fault[0] for fault in CREATE_FAULTS])
def test_create_that_failed_is_told_by_what_may_have_happened(
    bench: MarketoBench, name: str, fault: Any, error: type[RemoteError], effect: bool
) -> None:
    """Whatever may have taken effect is ambiguous, and is sent once."""
    bench.client.describe("lead")
    if isinstance(fault, dict):
        bench.sim.script_error(**fault, path=LEADS)
    else:
        kind, facts = fault if isinstance(fault, tuple) else (fault, {})
        bench.sim.add_fault(kind, method="POST", path=LEADS, **facts)

    (answer,) = bench.create("a@acme.example")

    assert type(answer) is error
    assert bench.calls("POST", LEADS) == 1
    assert bool(bench.sim.rows("leads")) is effect
    assert "acme" not in str(answer)


@pytest.mark.parametrize("kind", [FaultKind.REFUSE, FaultKind.RESET_AFTER, FaultKind.TRUNCATED, FaultKind.HTML, "604", "713", "608"])  # fmt: skip
def test_change_survives_a_passing_fault(bench: MarketoBench, kind: Any) -> None:
    """A change by id is harmless to repeat, and is repeated at once."""
    key = str(bench.sim.insert("leads", email="a@acme.example"))
    bench.client.describe("lead")
    if isinstance(kind, FaultKind):
        bench.sim.add_fault(kind, method="POST")
    else:
        bench.sim.script_error(kind)

    assert kinds(bench.client.write_rows("lead", [Write(key, {"title": "Buyer"})])) == ["updated"]
    assert bench.sim.rows("leads")[0]["title"] == "Buyer"


@pytest.mark.parametrize("kind", [FaultKind.REFUSE, FaultKind.TRUNCATED, FaultKind.HTML, "604", "502", "608", "713"])
def test_read_survives_two_passing_faults_and_tells_a_lasting_one(bench: MarketoBench, kind: Any) -> None:
    """Reads are repeated briefly; then the fault is transient."""
    bench.sim.insert("leads", email="a@acme.example")
    bench.client.describe("lead")

    def plan(times: int) -> None:
        if isinstance(kind, FaultKind):
            bench.sim.add_fault(kind, path=LEADS, times=times)
        else:
            bench.sim.script_error(kind, times=times or 1000)

    plan(2)
    assert len(bench.find("a@acme.example")) == 1
    plan(0)
    with pytest.raises(TransientError):
        bench.find("a@acme.example")


def test_result_of_another_lead_is_not_believed(bench: MarketoBench) -> None:
    """Results are joined by position; for a change the id shows whether the position is right."""
    key = str(bench.sim.insert("leads", email="a@acme.example"))
    bench.client.describe("lead")
    body = '{"success":true,"result":[{"id":999,"status":"updated"}]}'
    bench.sim.add_fault(FaultKind.STATUS, method="POST", status=200, body=body)

    answers = bench.client.write_rows("lead", [Write(key, {"title": "Buyer"})])

    assert kinds(answers) == [(TransientError, "unreadable_answer")]


def test_partial_success_is_told_record_by_record(bench: MarketoBench) -> None:
    """One record of three is skipped: the others are written, and only it is tried again."""
    bench.client.describe("lead")
    bench.sim.script_error("713", record=1)

    answers = bench.create("a@acme.example", "b@acme.example", "c@acme.example")

    assert kinds(answers) == ["created", (TransientError, "vendor_unavailable"), "created"]
    assert [row["email"] for row in bench.sim.rows("leads")] == ["a@acme.example", "c@acme.example"]


def test_lost_answer_of_a_batch_leaves_every_record_in_doubt(bench: MarketoBench) -> None:
    """Nothing is repeated: a second upsert at the same time could double the leads."""
    bench.client.describe("lead")
    bench.sim.add_fault(FaultKind.RESET_AFTER, method="POST")

    answers = bench.create("a@acme.example", "b@acme.example")

    assert {type(answer) for answer in answers} == {AmbiguousWriteError}
    assert (len(bench.sim.rows("leads")), bench.calls("POST", LEADS)) == (2, 1)


def test_hanging_create_is_ambiguous() -> None:
    """No answer within the time-out."""
    with marketo_bench(read_s=0.3) as bench:
        bench.client.describe("lead")
        bench.sim.add_fault(FaultKind.HANG, method="POST", path=LEADS, seconds=0.7)

        assert kinds(bench.create("a@acme.example")) == [(AmbiguousWriteError, "no_answer")]


# -- limits ---------------------------------------------------------------------------------------------------------------


def test_window_that_is_full_rests_the_connection_for_its_length() -> None:
    """606 has no Retry-After; after 20 seconds the window is surely open again."""
    with marketo_bench({"calls_per_window": 2}) as bench:
        bench.create("a@acme.example")
        (answer,) = bench.create("b@acme.example")

        assert isinstance(answer, RateLimitedError)
        assert (answer.retry_after_s, bench.permits.pauses) == (20.0, [20.0])
        bench.sim.clock.advance(20)
        assert kinds(bench.create("b@acme.example")) == ["created"]


def test_rest_of_a_batch_is_put_back_when_the_connection_rests() -> None:
    """After a 606 nothing more is asked."""
    with marketo_bench() as bench:
        key = str(bench.sim.insert("leads", email="k@acme.example"))
        bench.client.describe("lead")
        bench.sim.script_error("606")
        writes = [Write(key, {"title": "x"}), Write(None, {"email": "a@acme.example"})]

        answers = bench.client.write_rows("lead", writes)

        assert [type(answer) for answer in answers] == [RateLimitedError] * 2
        assert bench.calls("POST", LEADS) == 1


def test_spent_daily_quota_rests_until_midnight_in_us_central() -> None:
    """607 says when by nothing but the day; the sentence tells people."""
    with marketo_bench({"daily_calls": 1}) as bench:
        bench.client.describe("lead")

        (answer,) = bench.create("a@acme.example")

        assert isinstance(answer, RateLimitedError)
        midnight = datetime(2026, 3, 13, 5, tzinfo=UTC)  # summer time since 8 March
        assert answer.retry_after_s == (midnight - NOW).total_seconds() + 60
        assert answer.code == "daily_quota"
        assert "US Central" in str(answer)
        bench.sim.clock.advance(answer.retry_after_s)
        bench.sim.expire_tokens()
        bench.sim.daily_calls = 2
        assert kinds(bench.create("a@acme.example")) == ["created"]


def test_too_many_calls_at_once_give_a_short_pause() -> None:
    """615 rests for seconds."""
    with marketo_bench() as bench:
        bench.client.describe("lead")
        bench.sim.script_error("615")

        (answer,) = bench.create("a@acme.example")

        assert isinstance(answer, RateLimitedError)
        assert 0 < answer.retry_after_s <= 5


def test_errors_carry_the_vendors_request_id(bench: MarketoBench) -> None:
    """The vendor's support asks for it; it stands in the body."""
    bench.client.describe("lead")
    bench.sim.script_error("1003")

    (answer,) = bench.create("a@acme.example")

    assert isinstance(answer, RejectedError)
    assert "#" in answer.request_id
    assert answer.request_id in str(answer)


def test_parallel_batches_in_race_mode_double_and_a_lone_create_does_not() -> None:
    """The reason for the claim on an email, and for createOnly."""
    with marketo_bench({"race_delay_s": 0.3}) as bench:
        bench.client.describe("lead")
        pairs = [("a@acme.example", "b@acme.example"), ("a@acme.example", "c@acme.example")]
        threads = [threading.Thread(target=bench.create, args=pair) for pair in pairs]
        threads += [threading.Thread(target=bench.create, args=("lone@acme.example",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        emails = [row["email"] for row in bench.sim.rows("leads")]
        assert emails.count("a@acme.example") == 2
        assert emails.count("lone@acme.example") == 1
        (answer,) = [a for a in bench.create("a@acme.example", "d@acme.example") if not isinstance(a, Written)]
        assert answer.code == "ambiguous_match"
