"""What people call the records that a run made on the way: asked of their system when a mail is written.

No result stores it, as it is an email address or a name. Whoever cannot be asked is no reason to hold a mail back.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from shared.errors import SyncError
from sync.app import App
from sync.recipe import Block
from sync.summary import RecordLink

LOG = logging.getLogger(__name__)


def label_created(app: App, recipe: str, entries: Sequence[Mapping[str, str]], most: int) -> list[RecordLink]:
    """Return links to created records ({record, key, url}), the first `most` labelled by what they were looked up by."""
    labels: dict[str, str] = {}
    for record in dict.fromkeys(entry["record"] for entry in entries[:most]):
        keys = [entry["key"] for entry in entries[:most] if entry["record"] == record]
        try:
            labels |= _labels(app, recipe, record, keys)
        except SyncError as exc:
            LOG.warning("created records stay without their labels", extra={"code": exc.code})
    return [
        RecordLink(labels.get(entry["key"]) or f"{entry['record']} {entry['key'][:8]}", entry["url"])
        for entry in entries
    ]


def _labels(app: App, recipe: str, record: str, keys: Iterable[str]) -> dict[str, str]:
    flow = app.flow(recipe)
    field = next((names[0] for found, names in _match_fields(flow.recipe.block) if found == record and names), None)
    if field is None:
        return {}
    rows = flow.target.fetch_rows(record, frozenset({field}), (), [(key,) for key in keys])
    return {row.key: str(row.fields[field] or "") for row in rows}


def _match_fields(block: Block) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the record types that `find` blocks look up, each with the fields of its first match rule."""
    for rule in block.fields.values():
        if rule.find is not None:
            yield rule.find.record, rule.find.first_match
            yield from _match_fields(rule.find)
    for child in block.children:
        yield from _match_fields(child)
