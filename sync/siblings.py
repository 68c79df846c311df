"""Finding a child among its parent's children: all children of a batch's parents are read together, once."""

from collections.abc import Mapping, Sequence

from shared.clients.system import Row, Value
from shared.errors import RejectedError, SyncError
from shared.state.rows import LinkRow
from sync.decide import search_key
from sync.flow import Flow
from sync.matching import Match, find_among
from sync.placeholders import MARKER_PATH, text_of
from sync.recipe import MatchRule, WriteMode
from sync.work import Siblings, Work


def siblings_of(work: Work) -> Siblings:
    """Return a child's siblings. Raises ValueError for a record that is no child."""
    if work.siblings is None:
        raise ValueError("this record is no child")
    return work.siblings


def read_siblings(flow: Flow, works: Sequence[Work], *, anew: bool = False) -> None:
    """Read the target's children of the works' parents; a parent that is gone is its children's error."""
    unread = {siblings_of(work).parent: siblings_of(work) for work in works if anew or siblings_of(work).rows is None}
    if not unread:
        return
    parent, _, kind = flow.recipe.target.record.rpartition(".")
    paths = frozenset(f"{kind}.{path}" for path in (*flow.recipe.target_paths(), MARKER_PATH))
    found = {row.key: row for row in flow.target.fetch_rows(parent, paths, (), [(key,) for key in unread])}
    for work in works:
        siblings = siblings_of(work)
        row = found.get(siblings.parent)
        if row is not None and siblings.parent in unread:
            siblings.rows, siblings.closed = _rows(row, kind), row.closed
        elif siblings.parent in unread:  # what was read of it before is no answer
            noun = flow.target.describe(parent).noun
            text = f"The linked {noun} is gone, or we may not read it. Choose recreate or unlink."
            work.error = RejectedError(text, code="target_missing")


def _rows(parent: Row, kind: str) -> dict[str, Row]:
    entries = parent.fields.get(kind)
    listed = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return {key: Row(key, entry) for entry in listed if (key := text_of(entry[MARKER_PATH]))}


def find_sibling(flow: Flow, work: Work, rules: Sequence[MatchRule]) -> Match | SyncError | None:
    """Find a child among what was read, by the rules of its block, and note whose it is now."""
    siblings = siblings_of(work)

    def taken(key: str) -> str:
        owner = siblings.owners.get(key, work.key)
        return "" if owner == work.key else f"{flow.source_type().noun} {owner}"

    answer = find_among(rules, list((siblings.rows or {}).values()), work.fields, taken)
    if isinstance(answer, Match):
        siblings.owners[answer.row.key] = work.key
    return answer


def with_first_match(flow: Flow, work: Work) -> LinkRow | None:
    """Return the link of a record that is to be made; of a child under `mirror` it says what that will be known by.

    So the child is found and taken away, should the answer be lost and the source not have it any more.
    """
    block = flow.recipe.block
    if work.link is None or work.siblings is None or block.write is not WriteMode.MIRROR:
        return work.link
    values = {name: work.fields.fields[name].value for name in block.first_match}
    digest = flow.digests.of(_first_match(flow, work.siblings, values))
    return work.link.model_copy(update={"inputs": {flow.target_name: digest}})


def find_made(flow: Flow, siblings: Siblings, link: LinkRow) -> str:
    """Return the key of the child that was made for a link, as far as that is nobody's by now; "" when there is none."""
    digest = link.inputs.get(flow.target_name, "")
    free = [row for key, row in (siblings.rows or {}).items() if key not in siblings.owners]
    return next((row.key for row in free if flow.digests.matches(_first_match(flow, siblings, row.fields), digest)), "")


def _first_match(flow: Flow, siblings: Siblings, fields: Mapping[str, Value]) -> list[Value]:
    return [siblings.parent, *(search_key(fields.get(name)) for name in flow.recipe.block.first_match)]
