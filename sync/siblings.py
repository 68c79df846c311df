"""Finding a child among its parent's children: all children of a batch's parents are read together, once."""

from collections.abc import Sequence

from shared.clients.system import Row
from shared.errors import RejectedError, SyncError
from sync.flow import Flow
from sync.matching import Match, find_among
from sync.placeholders import MARKER_PATH, text_of
from sync.recipe import MatchRule
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
        elif siblings.rows is None:
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
