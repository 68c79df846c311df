"""A worker whose machine has the wrong time: what the app asks of its clock is off by as many seconds as a test says.

`SANDBOX_CLOCK_SKEWS` names them, one per worker: "0,-45.5,60". Timers of the machine (`time.monotonic`) stay right, as on
a real machine, and so do storage and the systems.
"""

import datetime
import os
import sys
from collections.abc import Mapping
from typing import Any

SKEWS, WORKER = "SANDBOX_CLOCK_SKEWS", "SANDBOX_WORKER"
PACKAGES = ("function_app", "shared", "sync", "web")


def skew_of(environ: Mapping[str, str]) -> float:
    """Return by how many seconds this worker's clock is wrong."""
    skews = [float(text) for text in environ.get(SKEWS, "").split(",") if text]
    number = int(environ.get(WORKER, "1"))
    return skews[number - 1] if number <= len(skews) else 0.0


def skew_clock() -> None:
    """Set the clock of the app's modules wrong, once they are loaded."""
    seconds = skew_of(os.environ)
    if not seconds:
        return

    class _Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, datetime.datetime)

        def __subclasscheck__(cls, kind: type) -> bool:
            return issubclass(kind, datetime.datetime)

    class Skewed(datetime.datetime, metaclass=_Kind):
        def __new__(cls, *parts: Any, **named: Any) -> Any:
            return datetime.datetime(*parts, **named)  # noqa: DTZ001  # as it was asked for

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=seconds)

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PACKAGES and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = Skewed  # type: ignore[attr-defined]  # it has one, as the line above has seen
