"""`find` blocks that keep their record in step (Marketo's company before its lead): the engine, called for the block.

Such a record has its own link, so its own digests, claims and doubts; it is worked before the record that needs its id.
"""

import dataclasses
from collections.abc import Sequence

from shared.clients.system import Row
from shared.errors import MappingError
from shared.state.messages import ItemModel
from shared.state.rows import RunRow
from sync import bulk, links
from sync.flow import Flow
from sync.items import prepare
from sync.mapping import FieldWarning
from sync.recipe import Find, Gone, RecordRef
from sync.references import Ask, Reference, kinds_of
from sync.work import Work


def sync_found(flow: Flow, run: RunRow, find: Find, asks: Sequence[tuple[Work, Ask]]) -> list[Reference | Exception]:
    """Keep the records that fields refer to in step, equal ones once, and return what a reference to each holds."""
    inner: dict[str, tuple[Flow, Work]] = {}
    for work, ask in asks:
        key = str(ask.inputs.key)
        if key not in inner:
            under = _flow_under(flow, find, ask)
            row = _part_of(work.source, ask, key, under)
            inner[key] = (under, Work(ItemModel(key=key), row=row, owner=ask.owner))
    for under in {each.source_name: each for each, _ in inner.values()}.values():
        works = [work for each, work in inner.values() if each.source_name == under.source_name]
        prepare(under, run, works, create_references=True)
        if not run.preview:
            bulk.finish(under, run, works)
    return [_answer(*inner[str(ask.inputs.key)], ask) for _, ask in asks]


def _flow_under(flow: Flow, find: Find, ask: Ask) -> Flow:
    kinds = kinds_of(flow, ask.field)
    if len(kinds) != 1:
        raise MappingError(f"{ask.field.name} may refer to several kinds of record; name one of them in `from`.")
    source = RecordRef(connection=flow.recipe.source.connection, record=kinds[0])
    target = RecordRef(connection=flow.recipe.target.connection, record=find.record)
    changes = {"source": source, "target": target, "block": find, "gone": Gone()}
    return dataclasses.replace(flow, recipe=flow.recipe.model_copy(update=changes), two_way=False, shared=True)


def _part_of(row: Row, ask: Ask, key: str, under: Flow) -> Row:
    """Return the part of a record that belongs to the one it refers to, as a row of its own."""
    paths = [path for path in ask.field.rule.from_ if row.fields.get(path) is not None]
    prefix = f"{paths[0]}." if paths else ""
    version = row.inner.get(paths[0], "") if paths else ""
    fields = {path.removeprefix(prefix): value for path, value in row.fields.items() if path.startswith(prefix)}
    return Row(key, fields, version=version, url=under.source.url(under.recipe.source.record, key))


def _answer(flow: Flow, work: Work, ask: Ask) -> Reference | Exception:
    if work.error is not None:
        return work.error
    target = work.written or work.target
    key = links.target_key(flow, work.link) if work.link and work.link.other_key else target.key if target else None
    if key is None:
        text = f"{ask.field.name}: {work.message or 'the record it refers to would be made.'}"
        return Reference(warnings=(FieldWarning(work.reason or "would_be_created", text),))
    return Reference(key)
