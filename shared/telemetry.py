"""Logging: constant text with fields, the attempt's facts on every line, and a last look for secrets and addresses.

Azure's worker attaches a handler of its own to the root logger; we only add to it. Without one (locally, in tests) a
handler writes to standard error.
"""

import contextlib
import json
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from shared import attempt
from shared.errors import SyncError

LOG = logging.getLogger(__name__)

QUIET = ("azure", "urllib3", "msal", "asyncio", "requests")
ATTEMPT_FIELDS = ("run_id", "recipe", "record_key", "correlation_id")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NAMES = (
    r"client[_-]?secret|client[_-]?assertion|pass(?:word|wd|phrase)|secret|(?:access|refresh|id)[_-]?token"
    r"|api[_-]?key|x-functions-key|webhook[_-]?key|account[_-]?key|shared[_-]?access[_-]?(?:key|signature)|authorization"
)
_SECRET_NAME = re.compile(rf"(?:{_NAMES}|sig|token)", re.IGNORECASE)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(bearer|basic|sharedkey(?:lite)?)\s+[\w.~+/:=-]{6,}", re.IGNORECASE), r"\1 <secret>"),
    (re.compile(r"\beyJ[\w-]{6,}\.[\w-]+(?:\.[\w-]*)?"), "<secret>"),
    (re.compile(r"([?&;](?:code|sig|key|token)=)[^\s&\"'<>;#]+", re.IGNORECASE), r"\1<secret>"),
    (
        re.compile(
            rf"((?:{_NAMES})\\?[\"']?\s{{0,4}}[=:]\s{{0,4}})(?!<secret>|(?:bearer|basic)\s<)"
            r"(?:\\?\"[^\"]*\"|'[^']*'|[^\s&;,\"'}\])]+)",
            re.IGNORECASE,
        ),
        r"\1<secret>",
    ),
    (re.compile(r"[^\s@<>\"'(),:;=\[\]{}/?&|\\]{1,64}(?:@|%40)[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}"), "<email>"),
)


def redact(text: str) -> str:
    """Return a text without bearer tokens, keys, passwords and mail addresses."""
    for pattern, stand_in in _RULES:
        text = pattern.sub(stand_in, text)
    return text


class AttemptFilter(logging.Filter):
    """Adds run_id, recipe, record_key and correlation_id of the attempt in hand, where a line does not name its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        current = attempt.current()
        for name in ATTEMPT_FIELDS:
            if (value := getattr(current, name)) and not hasattr(record, name):
                setattr(record, name, value)
        return True


class RedactingFilter(logging.Filter):
    """The last line of defence: takes secrets and addresses out of message, fields and exception. Logging never fails by it."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001, RUF100  # arguments that do not fit must not stop the work
            message = f"a log line whose arguments do not fit its text: {record.msg}"
            record.msg, record.args = message, ()
        if (clean := redact(message)) != message:
            record.msg, record.args = clean, ()
        for name, value in fields_of(record).items():
            setattr(record, name, _redact_field(name, value))
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            record.exc_text, record.exc_info = format_exception(record.exc_info[1]), None  # nobody formats it himself
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


class FieldsFormatter(logging.Formatter):
    """One line: the constant text, then the fields as JSON. Behind Azure's handler the text alone would lose them."""

    def __init__(self, *, with_time: bool) -> None:
        super().__init__()
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        parts = [record.getMessage()]
        if self._with_time:
            at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            parts = [at, f"{record.levelname:<7}", record.name, *parts]
        if fields := fields_of(record):
            parts.append(json.dumps(fields, ensure_ascii=False, default=str))
        if record.exc_info and record.exc_info[0] and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        return " ".join(parts) + (f"\n{record.exc_text}" if record.exc_text else "")


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that a line carries beside its text."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def format_exception(exc: BaseException) -> str:
    """Return where an exception came from, causes first; its text only if it is ours, as others' hold values of records."""
    told = ""
    link: BaseException | None = exc
    while link is not None:
        text = f": {link}" if isinstance(link, SyncError) else " (its text is withheld)"
        told = f"{''.join(traceback.format_tb(link.__traceback__))}{type(link).__name__}{text}\n{told}"
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return told.rstrip()


@contextlib.contextmanager
def without_texts(**facts: object) -> Iterator[None]:
    """Let no exception leave with a text that is not ours: the host would log it. Its place is logged here instead."""
    try:
        yield
    except SyncError as exc:
        raise exc from None
    except Exception as exc:
        LOG.exception("an invocation failed unexpectedly", extra=facts)
        name = type(exc).__name__
    else:
        return
    raise SyncError(f"Concord hit an error of its own ({name}); its log says more.", code="internal_error") from None


def configure_logging(root: logging.Logger | None = None) -> None:
    """Set logging up once per process; calling it again changes nothing. Handlers that are there are kept."""
    root = root or logging.getLogger()
    if not root.handlers:
        local = logging.StreamHandler()
        local.setFormatter(FieldsFormatter(with_time=True))
        root.addHandler(local)
    if root.level in (logging.NOTSET, logging.WARNING):  # as Python leaves it; the worker has set its own
        root.setLevel(logging.INFO)
    for handler in root.handlers:
        if not any(isinstance(each, RedactingFilter) for each in handler.filters):
            handler.addFilter(AttemptFilter())
            handler.addFilter(RedactingFilter())
        if handler.formatter is None:
            handler.setFormatter(FieldsFormatter(with_time=False))
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _redact_field(name: str, value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case _ if _SECRET_NAME.fullmatch(name):
            return "<secret>"
        case str():
            return redact(value)
        case Mapping():
            return {key: _redact_field(str(key), each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redact_field("", each) for each in value]
    return redact(str(value))
