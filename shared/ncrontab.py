"""The schedules that the Functions host understands: NCRONTAB, six fields."""

import re

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("weekday", 0, 6, _DAYS),
)


def check_ncrontab(schedule: str) -> str:
    """Return a schedule of six fields as the Functions host reads it. Raises ValueError that names the wrong field."""
    fields = schedule.lower().split()
    if len(fields) != len(_CRON):
        raise ValueError(f"should have six fields (second minute hour day month weekday), not {len(fields)}")
    for field, (name, low, high, words) in zip(fields, _CRON, strict=True):
        for part in field.split(","):
            if not _cron_part_holds(part, low, high, words):
                raise ValueError(f"has {part!r} as its {name}; that should be *, {low} to {high}, a range or a step")
    return " ".join(fields)


def _cron_part_holds(part: str, low: int, high: int, words: tuple[str, ...]) -> bool:
    match = re.fullmatch(r"(?:\*|([a-z]+|\d+)(?:-([a-z]+|\d+))?)(?:/([1-9]\d*))?", part, re.ASCII)
    if not match:
        return False
    values = [words.index(each) + low if each in words else each for each in match.group(1, 2) if each]
    if not all(isinstance(each, int) or each.isdigit() for each in values):
        return False
    numbers = [int(each) for each in values]
    return all(low <= each <= high for each in numbers) and numbers == sorted(numbers)
