"""Named converters: value in, value out. What a recipe cannot say with its keys becomes a line here, never a key."""

import dataclasses
import functools
import re
import zoneinfo
from collections.abc import Callable
from enum import StrEnum

from shared.clients.system import Scalar, Value
from shared.errors import MappingError
from sync.html_text import MAX_CHARS, html_to_text
from sync.placeholders import Read, text_of

Argument = Scalar | dict[str, Scalar]
"""What a recipe writes behind a converter's name: nothing, a number, a text, or named parts."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a converter made of a value."""

    value: Value
    warning: str = ""  # a warning's code: what a person should know
    also: tuple[Value, ...] = ()  # other values that say the same in the target: the text before it was cut


class Takes(StrEnum):
    """What a converter expects behind its name."""

    NOTHING = "nothing"
    NUMBER = "a number"
    PARTS = "named parts"
    NUMBER_OR_NOTHING = "a number or nothing"


@dataclasses.dataclass(frozen=True)
class Converter:
    """One line of the registry."""

    convert: Callable[[Value, Argument, Read], Converted]
    says: str  # for the field table; `{}` stands for the argument
    does: str  # for the reference: what becomes of a value, in full sentences
    example: str  # as a recipe writes it
    takes: Takes = Takes.NOTHING
    parts: tuple[str, ...] = ()  # names of the parts, all needed
    path_part: str = ""  # the part that holds a path which the converter reads
    on_empty: bool = False  # is asked for empty values too


@dataclasses.dataclass(frozen=True)
class ConverterCall:
    """A converter's name with its argument, as a recipe writes it."""

    name: str
    argument: Argument = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the paths that the call reads besides the field's own."""
        part = CONVERTERS[self.name].path_part
        return (str(self.argument[part]),) if part and isinstance(self.argument, dict) else ()


def check_call(call: ConverterCall) -> None:
    """Raise ValueError when a call's argument is not what its converter takes."""
    converter, argument = CONVERTERS[call.name], call.argument
    number = isinstance(argument, int) and not isinstance(argument, bool) and argument > 0
    fits = {
        Takes.NOTHING: argument is None,
        Takes.NUMBER: number,
        Takes.NUMBER_OR_NOTHING: argument is None or number,
        Takes.PARTS: isinstance(argument, dict) and sorted(argument) == sorted(converter.parts),
    }
    if not fits[converter.takes]:
        parts = f" ({', '.join(converter.parts)})" if converter.parts else ""
        raise ValueError(f"the converter {call.name} takes {converter.takes}{parts}")


def apply_converters(calls: tuple[ConverterCall, ...], value: Value, read: Read) -> tuple[Converted, tuple[str, ...]]:
    """Run converters in order; return what the last one made and the codes of all warnings.

    `read` gives other paths of the record. Raises MappingError when a value cannot be converted.
    """
    converted = Converted(value)
    warnings: list[str] = []
    for call in calls:
        converter = CONVERTERS[call.name]
        if converted.value is None and not converter.on_empty:
            continue
        converted = converter.convert(converted.value, call.argument, read)
        warnings += [converted.warning] if converted.warning else []
    return converted, tuple(warnings)


def _text(change: Callable[[str], str]) -> Callable[[Value, Argument, Read], Converted]:
    """Make a converter of a function on texts; an empty result is empty."""

    def convert(value: Value, _argument: Argument, _read: Read) -> Converted:
        return Converted(change(text_of(value)) or None)

    return convert


def _truncate(value: Value, argument: Argument, _read: Read) -> Converted:
    text, length = text_of(value), int(str(argument))
    if len(text) <= length:
        return Converted(text)
    return Converted(cut_text(text, length), warning="truncated", also=(text,))


def cut_text(text: str, length: int) -> str:
    """Cut a text to a length in characters; its last one is then `…`."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _html_to_text(value: Value, _argument: Argument, _read: Read) -> Converted:
    html = text_of(value)
    warning = "truncated" if len(html) > MAX_CHARS else ""
    text = html_to_text(html[:MAX_CHARS])
    return Converted(text if text.strip() else None, warning)


def _opens_with(value: Value, argument: Argument, read: Read) -> Converted:
    parts = argument if isinstance(argument, dict) else {}
    opening = text_of(read(str(parts["path"])))
    if len(opening) <= int(str(parts["longer_than"])):
        return Converted(value)
    return Converted("\n\n".join(text for text in (opening, text_of(value)) if text))


def _tidy_lines(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _e164(value: Value, argument: Argument, _read: Read) -> Converted:
    text = re.sub(r"\(0\)", "", text_of(value)).strip()
    digits = re.sub(r"[\s().\-/]", "", text)
    if digits.startswith("00"):
        digits = "+" + digits[2:]
    if not digits.startswith("+") and argument is not None:
        country = str(argument)
        national = digits if country == "39" else digits.lstrip("0")  # Italy keeps the zero of its area codes
        digits = national if country == "1" and len(national) == 11 else country + national
        digits = "+" + digits
    if not re.fullmatch(r"\+[1-9]\d{6,14}", digits, re.ASCII):
        raise MappingError("The phone number is not an international one (+49…).", code="invalid_value")
    return Converted(digits)


@functools.cache
def _zones() -> dict[str, str]:
    return {name.lower(): name for name in zoneinfo.available_timezones()}


def _iana_zone(value: Value, _argument: Argument, _read: Read) -> Converted:
    zone = _zones().get(text_of(value).strip().replace(" ", "_").lower())
    if not zone:
        raise MappingError("The time zone is not in the IANA list.", code="invalid_value")
    return Converted(zone)


CONVERTERS: dict[str, Converter] = {
    "truncate": Converter(
        _truncate,
        "cut after {} characters",
        "Cuts a longer text to so many characters, the last of them `…`, with the warning `truncated`.",
        "{truncate: 160}",
        Takes.NUMBER,
    ),
    "lower": Converter(_text(str.lower), "in lower case", "Writes a text in lower case.", "lower"),
    "upper": Converter(_text(str.upper), "in capitals", "Writes a text in capitals.", "upper"),
    "strip": Converter(
        _text(str.strip), "without spaces around it", "Takes spaces and line ends away from both ends.", "strip"
    ),
    "tidy_lines": Converter(
        _text(_tidy_lines),
        "without empty lines",
        "Takes empty lines away, and spaces that are too many in the others.",
        "tidy_lines",
    ),
    "html_to_text": Converter(
        _html_to_text,
        "HTML becomes readable text",
        f"Makes readable text of HTML: paragraphs, lists, links and tables stay. Reads {MAX_CHARS:,} characters at most. A text without HTML keeps its words.",
        "html_to_text",
    ),
    "opens_with": Converter(
        _opens_with,
        "opens with {path} when that is longer than {longer_than} characters",
        "Puts the text at `path` and an empty line before the value if that text is longer than `longer_than` characters; else the value stays. Works on an empty value too.",
        "{opens_with: {path: title, longer_than: 160}}",
        Takes.PARTS,
        parts=("path", "longer_than"),
        path_part="path",
        on_empty=True,
    ),
    "e164": Converter(
        _e164,
        "as an international phone number",
        "Writes a phone number as `+49301234567`. The number behind it is the country code for national numbers (030 …); without one only "
        "numbers with + or 00 can be used. What is no phone number is `invalid_value`.",
        "{e164: 49}",
        Takes.NUMBER_OR_NOTHING,
    ),
    "iana_zone": Converter(
        _iana_zone,
        "as an IANA time zone",
        "Writes a time zone's name as the IANA list has it, whatever its case. Another name is `invalid_value`.",
        "iana_zone",
    ),
}
