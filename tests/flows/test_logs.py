"""No personal data and no secrets in logs, rows and exception texts: canaries, planted in a run in which everything fails."""

import io
import json
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from azure.functions import HttpRequest

import function_app
from sandbox.mailbox import MailFault, MailFaultKind
from sandbox.simulator import FaultKind
from shared.state.rows import (
    AuditRow,
    CursorRow,
    IdentityRow,
    LinkRow,
    OpenRow,
    PageRow,
    ResultRow,
    RunRow,
    StateRow,
    TargetRow,
)
from shared.telemetry import AttemptFilter, FieldsFormatter, RedactingFilter
from sync import items, messages
from tests.flows.world import RECIPE, TRIGGERS, World

RECIPIENT = "canary.reader@example.com"
CALLER = "canary.caller@customer.example"
OWNER = "canary.owner@contoso.example"
CANARIES = {
    "recipient": RECIPIENT,
    "caller": CALLER,
    "owner": OWNER,
    "first name": "Kanarienvogel",
    "last name": "Serinuscanaria",
    "title": "Gelberkanari",
    "description": "Harzerroller",
    "vendor's body": "Kanarengirlitz",
    "exception's text": "Girlitzgesang",
    "function key": "Kaefigschluessel",
    "mail server's words": "Voliere",
    "client secret": "sandbox-secret",
    "client secret of ServiceNow": "concord-secret",
    "password": "integration-password",
    "digest key": "a-key-that-is-used-in-tests-alone-0001",
}
VOICE = CANARIES["mail server's words"]
BODY = CANARIES["vendor's body"]
ECHO = json.dumps({"error": {"message": f"{BODY} {CALLER}", "detail": CANARIES["title"]}})
OURS = ("sync", "shared", "web")


class Lines(logging.StreamHandler):
    """What a host's handler gets: each line as it was logged, and as it leaves."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.raw: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.addFilter(self._note)
        self.addFilter(AttemptFilter())
        self.addFilter(RedactingFilter())
        self.setFormatter(FieldsFormatter(with_time=True))

    def _note(self, record: logging.LogRecord) -> bool:
        own = {name: value for name, value in vars(record).items() if name not in ("exc_info", "exc_text")}
        self.raw.append(f"{record.getMessage()} {own}")
        self.records.append(record)
        return True

    @property
    def text(self) -> str:
        return self.stream.getvalue()


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Listen to everything: our loggers from DEBUG, all others from INFO."""
    handler, root = Lines(), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", *OURS)}
    root.setLevel(logging.INFO)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    root.handlers.insert(0, handler)  # before any other takes something out of a line
    yield handler
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def add_canary_case(world: World, title: str = CANARIES["title"]) -> str:
    """Add a case all of whose values are canaries."""
    contact = world.add_contact(CALLER, firstname=CANARIES["first name"], lastname=CANARIES["last name"])
    owner = world.add_owner(OWNER, firstname=CANARIES["first name"], lastname=CANARIES["last name"])
    owned = {"ownerid": ("systemuser", owner)}
    return world.add_case(title, contact=contact, description=CANARIES["description"], **owned)


def start(world: World, monkeypatch: pytest.MonkeyPatch, **params: str) -> Any:
    """Start over HTTP as a user does, with the function key in the address."""
    monkeypatch.setattr(function_app, "_build_app", lambda: world.app)
    given = {"Email": RECIPIENT, "code": CANARIES["function key"]} | params
    request = HttpRequest("GET", "http://localhost/api/sync", params=given, route_params={"recipe": RECIPE}, body=b"")
    return function_app.start_sync.build().get_user_function()(request)


def found_in(text: str, *, but: tuple[str, ...] = ()) -> list[str]:
    """Return which canaries stand in a text."""
    lowered = text.lower()
    return [name for name, canary in CANARIES.items() if name not in but and canary.lower() in lowered]


def rows_of(world: World) -> str:
    """Return all rows that are stored, runs without their recipients."""
    models: tuple[type[StateRow], ...] = (
        PageRow, ResultRow, OpenRow, LinkRow, TargetRow, IdentityRow, CursorRow, AuditRow,
    )  # fmt: skip
    rows = [row.model_dump_json() for model in models for row in world.tables.scan(model)]
    runs = [row.model_dump_json(exclude={"mail_to", "mail_left"}) for row in world.tables.scan(RunRow)]
    return "\n".join(rows + runs)


def issued_tokens(world: World) -> list[str]:
    """Return every access token that was given out."""
    servicenow = [token for token in vars(world.servicenow.tokens).values() if isinstance(token, dict)]
    dynamics = [token for token in vars(world.dynamics.tokens).values() if isinstance(token, dict)]
    return [key for each in (*servicenow, *dynamics) for key in each if isinstance(key, str) and len(key) > 20]


FAULTS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "create refused": [{"kind": FaultKind.STATUS, "method": "POST", "path": "/incident", "status": 400, "body": ECHO}],
    "look-up refused": [{"kind": FaultKind.STATUS, "method": "GET", "path": "/sys_user", "status": 400, "body": ECHO}],
    "no access": [{"kind": FaultKind.STATUS, "method": "POST", "path": "/sys_user", "status": 403, "body": ECHO}],
    "exists": [{"kind": FaultKind.STATUS, "method": "POST", "path": "/incident", "status": 403, "body": ECHO.replace(BODY, f"Unique Key {BODY}")}],
    "error in 200": [{"kind": FaultKind.STATUS, "method": "POST", "path": "/incident", "status": 200, "body": ECHO}],
    "failed": [{"kind": FaultKind.STATUS, "path": "/table/incident", "status": 500, "body": ECHO}],
    "html": [{"kind": FaultKind.STATUS, "path": "/table/incident", "status": 503, "body": f"<html>{ECHO}</html>"}],
    "limited": [{"kind": FaultKind.STATUS, "path": "/table/", "status": 429, "body": ECHO, "times": 3}],
    "cut": [{"kind": FaultKind.RESET_AFTER, "path": "/table/"}],
    "token refused": [{"kind": FaultKind.STATUS, "path": "/oauth_token.do", "status": 401, "body": ECHO, "times": 0}],
    "token expired": [{"kind": FaultKind.EXPIRE_TOKEN, "path": "/table/incident"}],
}  # fmt: skip


def test_the_canaries_are_planted(world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """They travel to ServiceNow and into the mail, and would be found in a line: else nothing here proves anything."""
    case = add_canary_case(world)

    start(world, monkeypatch)
    world.pump.run()
    logging.getLogger("sync.items").debug("Gelberkanari %s", CALLER, extra={"password": CANARIES["password"]})

    incident = world.incident_of(case)
    assert found_in(f"{incident} {world.users(CALLER)}") == [
        "caller",
        "first name",
        "last name",
        "title",
        "description",
    ]
    assert CALLER in world.mailbox.mails[0].text
    assert found_in("\n".join(lines.raw)) == ["caller", "title", "password"]
    assert len(issued_tokens(world)) >= 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_leaves_no_canary(world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever a vendor answers, and whatever it repeats of what we sent: lines and rows hold none of it."""
    add_canary_case(world)
    add_canary_case(world, title="")
    for fault in FAULTS[name]:
        world.servicenow.add_fault(**fault)

    start(world, monkeypatch)
    world.pump.run(for_s=2 * 86_400)

    assert world.runs()[0].state.ended
    assert found_in("\n".join(lines.raw)) == []
    assert found_in(lines.text) == []
    assert found_in(rows_of(world)) == []
    assert not any(token in lines.text or token in "\n".join(lines.raw) for token in issued_tokens(world))


@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_a_listing_leaves_no_canary(world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """The source's answers are treated as the target's."""
    add_canary_case(world)
    world.dynamics.add_fault(FaultKind.STATUS, path=r"/incidents\?", status=status, body=ECHO, times=2)

    start(world, monkeypatch)
    world.pump.run(for_s=2 * 86_400)

    assert found_in("\n".join([*lines.raw, lines.text, rows_of(world)])) == []


@pytest.mark.parametrize("kind", [MailFaultKind.REFUSE_RECIPIENT, MailFaultKind.REFUSE_MESSAGE])
@pytest.mark.parametrize("code", [450, 550])
def test_a_mail_server_that_repeats_the_address_is_not_repeated(
    world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch, kind: MailFaultKind, code: int
) -> None:
    """Mail servers name the recipient in their answers; neither the log nor the run does."""
    words = f"{code} {VOICE} <{RECIPIENT}>"
    monkeypatch.setattr(MailFault, "answer", property(lambda _: words))
    world.mailbox.add_mail_fault(kind, code=code, times=3)

    start(world, monkeypatch)
    world.pump.run(for_s=3600)

    assert found_in("\n".join([*lines.raw, lines.text, rows_of(world)])) == []


@pytest.mark.parametrize("place", ["decide_work", "map_work", "resolve_references", "prepare"])
def test_an_unexpected_exception_tells_its_place_alone(
    world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A fault of our own may hold a record's values in its text: type and place are told, to the host as well."""
    add_canary_case(world)
    raised: list[str] = []

    def explode(*_: Any, **__: Any) -> None:
        raise ValueError(CANARIES["exception's text"])

    def listen(*facts: Any) -> None:
        try:
            messages.on_page(*facts)
        except Exception as exc:
            raised.extend(traceback.format_exception(exc))
            raise

    monkeypatch.setattr(items, place, explode)
    monkeypatch.setitem(TRIGGERS, "pages", listen)
    start(world, monkeypatch)
    world.pump.run(for_s=2 * 86_400)

    assert "ValueError (its text is withheld)" in lines.text
    assert "in explode" in lines.text
    assert found_in("\n".join([*lines.raw, lines.text, rows_of(world), *raised])) == []
    assert world.runs()[0].state.ended


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"Email": "canary.reader@example.com, second@example.com"}, id="several"),
        pytest.param({"Email": f"{CANARIES['first name']} <canary.reader@example.com>"}, id="name"),
        pytest.param({"window": CANARIES["title"]}, id="window"),
        pytest.param({"Kanarienvogel": "x"}, id="parameter"),
    ],
)
def test_a_refused_request_leaves_no_canary(
    world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch, params: dict[str, str]
) -> None:
    """What was asked for wrongly is told to the one who asked, and to nobody else."""
    response = start(world, monkeypatch, **params)

    assert response.status_code == 400
    assert found_in("\n".join([*lines.raw, lines.text])) == []


def test_lines_name_run_recipe_record_and_correlation(
    world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is logged of a record can be found by its run, and told apart from its neighbours."""
    case = world.add_case()

    def explode(*_: Any, **__: Any) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(items, "settle_without_write", explode)
    run = world.start()
    world.pump.run(for_s=60)

    line = next(record for record in lines.records if record.getMessage() == "a step failed unexpectedly")
    assert (line.run_id, line.recipe, line.record_key, line.correlation_id) == (run.run_id, RECIPE, case, run.run_id)
    started = next(record for record in lines.records if record.getMessage() == "run started")
    assert (started.run_id, started.recipe) == (run.run_id, RECIPE)


def test_lines_are_constant_texts(world: World, lines: Lines) -> None:
    """What differs stands in fields, so that equal lines can be counted."""
    world.add_case()
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, code=450)
    world.dynamics.add_fault(FaultKind.STATUS, path=r"/incidents\?", status=400)
    world.pump.repeats = 1

    world.sync()

    ours = [record for record in lines.records if record.name.split(".")[0] in OURS]
    assert len({record.msg for record in ours}) > 3
    assert all(record.args in ((), None) for record in ours)
    assert all(not any(character.isdigit() for character in str(record.msg)) for record in ours)


def test_the_correlation_id_reaches_the_vendor_that_takes_one(world: World) -> None:
    """Dynamics 365 keeps the run's id beside its own, so that its support finds our calls."""
    world.add_case()

    run = world.sync()

    listed = world.dynamics.requests("GET", r"/incidents\?")
    assert {call.headers.get("x-ms-client-request-id") for call in listed} == {run.run_id}
