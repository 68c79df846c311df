"""Where a listing of ServiceNow stands: the page's place, and the window of changes that is asked for."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from shared.clients import servicenow_query as query
from shared.clients.servicenow_schema import flatten
from shared.clients.system import Changed
from shared.errors import RejectedError, TransientError

MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a listing goes on: behind a row (its time and sys_id), and at an offset where rights hid a whole page."""

    moment: str = ""
    sys_id: str = ""
    offset: int = 0

    @classmethod
    def read(cls, page: str | None) -> "Place":
        if page is None:
            return cls()
        try:
            moment, sys_id, offset = json.loads(page)
            place = cls(moment, sys_id, max(int(offset), 0))
            good = not moment or bool(MOMENT.fullmatch(moment) and query.SYS_ID.fullmatch(sys_id))
        except (TypeError, ValueError):
            good = False
        if not good:
            raise RejectedError("This page of a ServiceNow listing is not one we gave.", code="page_expired")
        return place

    def after(self, raw: Sequence[Mapping[str, Any]], moment: str, page_size: int) -> "Place":
        if not raw:
            return dataclasses.replace(self, offset=self.offset + page_size)
        places = [Place(str(flatten(row[moment])), str(row["sys_id"])) for row in raw]
        readable = [place for place in places if MOMENT.fullmatch(place.moment)]
        if not readable:
            raise TransientError(
                f"ServiceNow listed only records whose {moment} is no time. It is read again later.",
                code="unreadable_answer",
                status=200,
            )
        return readable[-1]

    def write(self) -> str:
        return json.dumps([self.moment, self.sys_id, self.offset])


def build_window(moment: str, changed: Changed) -> str:
    """Build the condition on the time of change."""
    since, until = ceil(changed.since), ceil(changed.until)
    lines = [f"{moment}>={query.format_time(since)}"] if since else []
    return "^".join(lines + ([f"{moment}<{query.format_time(until)}"] if until else []))


def ceil(moment: datetime | None) -> datetime | None:
    """Round a bound up to whole seconds, the vendor's resolution: the same records lie on either side of it."""
    if moment is None or not moment.microsecond:
        return moment
    return moment.replace(microsecond=0) + timedelta(seconds=1)
