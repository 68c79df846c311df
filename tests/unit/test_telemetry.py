"""Telemetry: which fields a line carries, and what never leaves in one."""

import io
import json
import logging
import traceback
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.attempt import attempt
from shared.errors import StateError, SyncError
from shared.telemetry import FieldsFormatter, RedactingFilter, configure_logging, redact, without_texts

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2lnbmF0dXJl"


@pytest.fixture
def root():
    """A root logger of its own, as a process has before anything was configured."""
    return logging.RootLogger(logging.WARNING)


@pytest.fixture
def lines(root):
    """What a handler writes that the Functions worker would have attached before us."""
    stream = io.StringIO()
    root.addHandler(logging.StreamHandler(stream))
    configure_logging(root)
    return stream


def test_logging_keeps_the_handler_that_is_there(root, lines):
    """Behind the worker's handler a line is its text and its fields: no second handler, no second time stamp."""
    root.info("Item finished", extra={"outcome": "created"})

    assert len(root.handlers) == 1
    assert lines.getvalue() == 'Item finished {"outcome": "created"}\n'


def test_logging_twice_is_once(root, lines):
    """Configuring again adds nothing."""
    configure_logging(root)
    configure_logging(root)

    root.info("Item finished")

    assert len(root.handlers) == 1
    assert len(root.handlers[0].filters) == 2
    assert lines.getvalue() == "Item finished\n"


def test_logging_locally_writes_time_level_and_name(root):
    """Without a handler we attach one whose lines can be read and parsed."""
    configure_logging(root)
    record = root.makeRecord(
        "sync.items", logging.WARNING, "", 0, "Item failed", (), None, extra={"reason": "rejected"}
    )
    record.created = datetime(2026, 3, 14, 6, 0, 0, tzinfo=UTC).timestamp()

    line = root.handlers[0].format(record)

    head, _, fields = line.partition(" {")
    assert head == "2026-03-14T06:00:00.000+00:00 WARNING sync.items Item failed"
    assert json.loads("{" + fields) == {"reason": "rejected"}


def test_logging_adds_the_attempt(root, lines):
    """A line inside an attempt says which run, recipe and record it belongs to; its own fields win."""
    with attempt(run_id="run-1", recipe="case_to_incident", record_key="c1", correlation_id="x"):
        root.info("Read")
        root.info("Read", extra={"record_key": "c2"})
    root.info("Read")

    inside, own, outside = lines.getvalue().splitlines()
    fields = {"run_id": "run-1", "recipe": "case_to_incident", "record_key": "c1", "correlation_id": "x"}
    assert json.loads(inside.removeprefix("Read ")) == fields
    assert json.loads(own.removeprefix("Read "))["record_key"] == "c2"
    assert outside == "Read"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        pytest.param("Authorization: Bearer abcdef123456", "Authorization: Bearer <secret>", id="bearer"),
        pytest.param("basic dXNlcjpwYXNz was refused", "basic <secret> was refused", id="basic"),
        pytest.param("SharedKey acc:c2lnbmF0dXJl", "SharedKey <secret>", id="storage signature"),
        pytest.param(f"token {TOKEN} expired", "token <secret> expired", id="jwt"),
        pytest.param("POST /api/x?code=a-b_c==&y=1", "POST /api/x?code=<secret>&y=1", id="function key"),
        pytest.param("https://a.example/q?sv=1&sig=abc%2F", "https://a.example/q?sv=1&sig=<secret>", id="signature"),
        pytest.param("client_secret=s3cr3t&scope=x", "client_secret=<secret>&scope=x", id="form"),
        pytest.param('{"password": "two words", "user": "u"}', '{"password": <secret>, "user": "u"}', id="json"),
        pytest.param("{'client_secret': 'it', 'a': 1}", "{'client_secret': <secret>, 'a': 1}", id="repr"),
        pytest.param(r"{\"password\":\"a b\"}", r"{\"password\":<secret>}", id="escaped json"),
        pytest.param("AccountName=a;AccountKey=abc==;X=1", "AccountName=a;AccountKey=<secret>;X=1", id="storage key"),
        pytest.param("x-functions-key: abc", "x-functions-key: <secret>", id="header"),
        pytest.param("no user for ann.lee+x@example.com.", "no user for <email>.", id="address"),
        pytest.param("?Email=ann%40example.com&b=1", "?Email=<email>&b=1", id="address in a query"),
        pytest.param("<änn@example.com>", "<<email>>", id="address with umlaut"),
        pytest.param(
            "reason code=rejected, passwords are fine", "reason code=rejected, passwords are fine", id="plain"
        ),
    ],
)
def test_redact_takes_out(text, clean):
    """Tokens, keys, passwords and addresses go; what surrounds them stays."""
    assert redact(text) == clean
    assert redact(clean) == clean


def test_logging_redacts_message_arguments_fields_and_exception(root, lines):
    """Wherever a secret stands in a line, it does not come out."""
    given = "password=hunter2 for ann@example.com"
    try:
        int(given)
    except ValueError:
        root.exception(
            "Call %s failed",
            "https://a.example/?code=hunter2",
            extra={
                "client_secret": "hunter2",
                "headers": {"Authorization": "Bearer hunter2x", "token": "hunter2", "n": 1},
                "tried": ["password: hunter2"],
                "status": 401,
                "thing": ValueError("ann@example.com"),
            },
        )

    text = lines.getvalue()
    assert "hunter2" not in text
    assert "example.com" not in text
    assert "https://a.example/?code=<secret>" in text
    assert '"status": 401' in text
    assert "ValueError (its text is withheld)" in text


def test_logging_a_line_without_secrets_keeps_text_and_arguments():
    """Only what has to change is changed, so that lines can still be grouped by their constant text."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "Read %d rows", (3,), None)

    RedactingFilter().filter(record)

    assert (record.msg, record.args) == ("Read %d rows", (3,))


def test_logging_an_exception_tells_texts_of_ours_alone(root, lines):
    """Where it came from and what led to it is told; a text that is not ours may hold a record's values."""
    try:
        try:
            {}["Ada Quill"]
        except KeyError as exc:
            raise StateError("The row cannot be read.") from exc
    except StateError:
        root.exception("Storage refused")

    text = lines.getvalue()
    assert "StateError: The row cannot be read." in text
    assert "KeyError (its text is withheld)" in text
    assert text.index("KeyError") < text.index("StateError")
    assert "test_telemetry.py" in text


def look_up(name):
    return {}[name]


def refuse(name):
    try:
        look_up(name)
    except KeyError as exc:
        raise StateError("Refused.") from exc


@pytest.mark.parametrize(
    ("work", "says"), [(look_up, "an error of its own (KeyError)"), (refuse, "Refused.")], ids=["foreign", "ours"]
)
def test_what_the_host_logs_holds_no_foreign_text(work, says):
    """The host prints what a trigger raises with all its causes: a sentence of ours is left, and its cause is not."""
    with pytest.raises(SyncError) as caught, without_texts(queue="items"):
        work("Ada Quill")

    assert says in caught.value.message
    assert "Ada Quill" not in "".join(traceback.format_exception(caught.value)).replace('work("Ada Quill")', "")


def test_logging_arguments_that_do_not_fit_stop_nothing(root, lines):
    """A wrong log call is written as it is, without its arguments, instead of raising into the work."""
    root.info("Read %d rows of %s", "three")

    assert lines.getvalue() == "a log line whose arguments do not fit its text: Read %d rows of %s\n"


@given(st.text())
def test_redact_never_raises(text):
    """Any text can be redacted, and redacting twice changes nothing more."""
    once = redact(text)

    assert redact(once) == once


def test_logging_quietens_the_libraries(root):
    """SDKs log every request at INFO, with headers: only their warnings pass."""
    configure_logging(root)

    assert all(
        logging.getLogger(name).getEffectiveLevel() == logging.WARNING for name in ("azure.core", "msal", "urllib3")
    )


def test_fields_formatter_writes_what_json_cannot():
    """A field that is no JSON value is written as text."""
    record = logging.makeLogRecord({"msg": "Listed", "until": datetime(2026, 3, 1, tzinfo=UTC)})

    assert FieldsFormatter(with_time=False).format(record) == 'Listed {"until": "2026-03-01 00:00:00+00:00"}'
