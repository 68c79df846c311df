"""The short forms of a recipe file, each spelt out by a function that raises ValueError with a sentence."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import time
from typing import Any

from pydantic import BaseModel

from shared.clients.system import Condition, Scalar, Test, Value
from sync.converters import CONVERTERS, Argument, ConverterCall, check_call
from sync.placeholders import Template, parse_template
from sync.schedules import parse_days, parse_interval_s, parse_time, parse_zone
from sync.windows import PLAIN_KINDS, Window, WindowKind, parse_window

PATH = re.compile(r"\.|[A-Za-z_][\w -]*(\.[A-Za-z0-9_][\w -]*)*", re.ASCII)
RECORD = re.compile(r"[a-z][a-z0-9_]*\.[A-Za-z_]\w*", re.ASCII)
REASON = re.compile(r"[a-z][a-z0-9_]{2,39}", re.ASCII)
CHANNELS = ("email", "teams", "slack")
MAX_LISTED = 12
SINCE_LAST_RUN = WindowKind.SINCE_LAST_RUN
NAME_KEY = " name"  # how a field's name reaches its model: a key that nobody writes
LINK_KEY = " link"

ScalarText = str | float | bool | None
ConditionLine = ScalarText | list[ScalarText] | dict[str, ScalarText | list[ScalarText]]
ChoiceRight = ScalarText | list[ScalarText]
ConvertText = str | dict[str, Any] | list[str | dict[str, Any]]
MatchText = str | list[str | list[str] | dict[str, Any]]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for the nearest known word, else what is known if that is short, to end a sentence."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; known are {', '.join(known)}" if 0 < len(known) <= MAX_LISTED else ""


def check_path(path: str) -> str:
    """Refuse what is not a dotted path."""
    if not PATH.fullmatch(path) or path != path.strip():
        raise ValueError(f"`{path}` is not a path; write a field's name, dotted through references")
    return path


def parse_required(raw: object) -> bool | str:
    """Read `required`: true, or a reason code."""
    if raw is True or (isinstance(raw, str) and REASON.fullmatch(raw)):
        return raw
    if raw is False:
        raise ValueError("`required` is true or a reason; leave the key out where the field may be empty")
    raise ValueError(f"`{raw}` is not a reason; write true, or a word in lower case with underscores")


def reason_of(required: bool | str | None, unnamed: str) -> str | None:
    """Return the reason code of a `required`, None without one."""
    return required if isinstance(required, str) else unnamed if required else None


def check_zone(zone: str) -> str:
    """Refuse an unknown time zone."""
    return parse_zone(zone).key


def as_list(raw: object) -> object:
    """Make a list of a single text."""
    return [raw] if isinstance(raw, str) else raw


def parse_record(raw: object) -> object:
    """Split `connection.record`."""
    if not isinstance(raw, str) or not RECORD.fullmatch(raw):
        raise ValueError(f"`{raw}` is not a connection and a record; write them like servicenow.incident")
    connection, _, record = raw.partition(".")
    return {"connection": connection, "record": record}


def parse_condition(raw: object) -> Condition:
    """Read the lines of a condition: a value, a list (any of these), null (empty), `{not: …}`."""
    if not isinstance(raw, Mapping) or not raw:
        raise ValueError("a condition is a table of `path: value`")
    return {check_path(str(path)): _parse_test(str(path), test) for path, test in raw.items()}


def _parse_test(path: str, raw: object) -> Test:
    negated = isinstance(raw, Mapping)
    if isinstance(raw, Mapping):
        if list(raw) != ["not"]:
            raise ValueError(f"the condition on `{path}` is a value, a list of values or {{not: …}}")
        raw = raw["not"]
    values = as_tuple(raw)
    if not values or any(isinstance(value, list | dict) for value in values):
        raise ValueError(f"the condition on `{path}` needs a value or a list of values")
    return Test(values, negated)


def parse_value(raw: object) -> Template | Value:
    """Read a constant or a text with `{paths}`."""
    if not isinstance(raw, str):
        return parse_constant(raw)
    template = parse_template(raw)
    for path in template.paths if isinstance(template, Template) else ():
        check_path(path)
    return template


def parse_constant(raw: Any) -> Value:
    """Take a constant as it is; the empty text is the empty value."""
    constant: Value = raw
    return None if raw == "" else constant


def parse_choices(raw: object) -> tuple[tuple[Scalar, tuple[Value, ...]], ...]:
    """Read a table of values, in its order; a list on the right is what is written first, then what is accepted."""
    if not isinstance(raw, Mapping) or not raw:
        raise ValueError("`choices` is a table of `source value: target value`")
    rows: list[tuple[Scalar, tuple[Value, ...]]] = []
    for left, right in raw.items():
        accepted: tuple[Any, ...] = as_tuple(right)
        if not accepted or any(isinstance(value, list | dict) for value in accepted):
            raise ValueError(f"the row `{left}` of `choices` needs a value or a list of values on its right")
        rows.append((left, accepted))
    return tuple(rows)


def parse_convert(raw: object) -> tuple[ConverterCall, ...]:
    """Read converters: a name, a table of name and argument, or a list of these."""
    calls: list[ConverterCall] = []
    for entry in raw if isinstance(raw, list) else [raw]:
        named: Mapping[str, Argument] = entry if isinstance(entry, Mapping) else {str(entry): None}
        calls += [_parse_call(str(name), argument) for name, argument in named.items()]
    return tuple(calls)


def _parse_call(name: str, argument: Argument) -> ConverterCall:
    if name not in CONVERTERS:
        raise ValueError(f"there is no converter `{name}`{did_you_mean(name, CONVERTERS)}")
    call = ConverterCall(name, dict(argument) if isinstance(argument, Mapping) else argument)
    check_call(call)
    for path in call.paths:
        check_path(path)
    return call


def as_tuple(raw: Any) -> tuple[Any, ...]:
    """Make a tuple of a list, or of a single value."""
    return tuple(raw) if isinstance(raw, list) else (raw,)


def spell_out_match(raw: object) -> object:
    """Spell out the rules of `match`: a field, a list of fields together, or the long form."""
    entries = raw if isinstance(raw, list | tuple) else [raw]
    return [
        {LINK_KEY: True} if entry == "link" else {"fields": entry} if isinstance(entry, str | list) else entry
        for entry in entries
    ]


@dataclasses.dataclass(frozen=True)
class Named:
    """A field as the file has it, with its name; each is spelt out alone, so that one fault does not hide the next."""

    name: object
    raw: object
    short: str  # the key that a short form stands for


def name_fields(raw: object, short: str = "from") -> object:
    """Give each field of a table its name."""
    if not isinstance(raw, Mapping):
        return raw
    return {str(name): rule if isinstance(rule, BaseModel) else Named(name, rule, short) for name, rule in raw.items()}


def spell_out_field(raw: object) -> object:
    """Spell out `field: path`, or the value that is its short form in `gone`."""
    if not isinstance(raw, Named):
        return raw
    name = check_path(str(raw.name))
    if isinstance(raw.raw, Mapping):
        return {**raw.raw, NAME_KEY: name}
    if isinstance(raw.raw, str) or raw.short == "value":
        return {raw.short: raw.raw, NAME_KEY: name}
    if raw.raw is None:
        raise ValueError(f"`{name}` has nothing behind it: it needs a path of the source")
    constant = str(raw.raw).lower() if isinstance(raw.raw, bool) else raw.raw
    instead = (
        "several are written {from: [a, b]}"
        if isinstance(raw.raw, list)
        else f"a constant is written {{value: {constant}}}"
    )
    raise ValueError(f"`{name}` needs a path of the source; {instead}")


def spell_out_gone(raw: object) -> object:
    """Spell out `gone`: a word, or fields whose short form is a value."""
    if isinstance(raw, Mapping):
        return {"action": "write", "fields": name_fields(raw, "value")}
    if raw not in {"ignore", "follow"}:
        near = did_you_mean(raw, ("ignore", "follow")) if isinstance(raw, str) else ""
        raise ValueError(f"`gone` is ignore, follow, or the fields to write{near}")
    return {"action": raw}


def check_channels(channels: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is neither a channel nor an email address."""
    for channel in channels:
        if channel not in CHANNELS and not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+|\$\{\w+\}", channel):
            raise ValueError(f"`{channel}` is neither a channel nor an email address{did_you_mean(channel, CHANNELS)}")
    return channels


def parse_window_key(raw: object) -> Window:
    """Read a window; words that are not windows get a suggestion."""
    if isinstance(raw, Window):
        return raw
    try:
        return parse_window(str(raw))
    except ValueError as exc:
        near = difflib.get_close_matches(str(raw), [kind.value for kind in PLAIN_KINDS], n=1)
        raise ValueError(f"{exc}{f'; did you mean `{near[0]}`?' if near else ''}") from None


def window_or_map(raw: object) -> object:
    """Spell out a timer whose text is its window."""
    return {"window": raw} if isinstance(raw, str) else raw


def parse_webhook(raw: object) -> tuple[str, ...] | None:
    """Read the names of events; `true` is every event."""
    if raw is True:
        return ()
    names = as_list(raw)
    if isinstance(names, list) and names and all(isinstance(name, str) and name for name in names):
        return tuple(names)
    raise ValueError("`webhook` is true, an event's name or a list of names")


def parse_start_from(raw: object) -> Window | None:
    """Read what a first run reads; `activation` is the default, a date or time alone begins a span."""
    text = str(raw)
    if text == "activation":
        return None
    window = parse_window_key(f"from={text}" if re.match(r"\d{4}-", text) else text)
    if window.kind in {WindowKind.IDS, WindowKind.SINCE_LAST_RUN}:
        raise ValueError("`start_from` is activation, a date, a time or a window such as yesterday or last_days:7")
    return window


def parse_time_key(raw: object) -> time:
    """Read a time of day; YAML reads 06:30 as a text, but 630 as a number."""
    return parse_time(str(raw))


def parse_days_key(raw: object) -> frozenset[int]:
    """Read days of the week, as a text or a list."""
    return parse_days(",".join(map(str, raw)) if isinstance(raw, list) else str(raw))


def parse_every_key(raw: object) -> int:
    """Read an interval of a minute or more."""
    seconds = parse_interval_s(str(raw))
    if seconds < 60:
        raise ValueError("`every` is a minute or more: the timer looks once a minute")
    return seconds
