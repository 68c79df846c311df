"""Child records of ServiceNow: journal entries, and the rows of any table that refers to the record they belong to.

A journal entry is made by writing `comments` or `work_notes` of its record, and the answer does not name it: its key is
read back, by what its text was marked with. Entries can be neither changed nor removed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from shared.clients.servicenow_schema import JOURNAL_ENTRY, ChildType
from shared.clients.system import Paths, Row, Value, Write, Written
from shared.errors import AmbiguousWriteError, MappingError, RejectedError, SyncError
from shared.markers import carries

Entry = dict[str, Value]
ReadAll = Callable[[str, Paths, str, Sequence[str]], list[Row]]
"""Table, paths, the column that refers to the parents, and their keys, to all rows: hidden ones raise AccessError."""


def group_paths(paths: Iterable[str]) -> dict[str, set[str]]:
    """Return the paths below each child type that paths lead into."""
    below: dict[str, set[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        below.setdefault(name, set()).update([rest] if rest else [])
    return below


def read_children(
    child: ChildType, paths: set[str], parents: Sequence[str], read_all: ReadAll
) -> dict[str, list[Entry]]:
    """Return the children of many records by their parent, oldest first. A journal's entries are always complete.

    Raises RejectedError for a path that an entry does not have, AccessError when rights hide some of them.
    """
    columns = dict(JOURNAL_ENTRY) if child.is_journal else {path: path for path in paths} | {"id": "sys_id"}
    if unknown := sorted(paths - columns.keys()):
        raise RejectedError(f"ServiceNow's journal entries have no {unknown[0]}.", code="unknown_field")
    age = {"sys_created_on"} & child.table.columns.keys()
    found: dict[str, list[Entry]] = {parent: [] for parent in parents}
    rows = read_all(child.table.name, frozenset({*columns.values(), *age, child.column}), child.column, parents)
    for row in sorted(rows, key=lambda row: (str(row.fields.get("sys_created_on")), row.key)):
        extra = {name: value for name, value in row.fields.items() if isinstance(value, list)}  # children of their own
        entry = {name: row.fields.get(column, extra.get(column)) for name, column in columns.items()} | extra
        found[str(row.fields[child.column])].append(entry | {"id": row.key})
    return found


def shape(child: ChildType, write: Write) -> Write:
    """Return the write that makes, changes or removes a child: of a journal, the update of its record.

    Raises MappingError or RejectedError for one that cannot be.
    """
    if child.is_journal:
        return _shape_entry(child, write)
    if write.fields is None or write.key is not None:
        return write
    return Write(None, {**write.fields, child.column: write.parent}, write.match)


def _shape_entry(child: ChildType, write: Write) -> Write:
    if write.key is not None or write.fields is None:
        raise RejectedError(
            "A journal entry of ServiceNow can be neither changed nor removed.", code="unwritable_value"
        )
    element, text = write.fields.get("element"), write.fields.get("text")
    column = child.parent.columns.get(str(element))
    if column is None or not column.appends:
        raise MappingError(f"{child.parent.name} has no journal that the entry could go to.", code="unknown_choice")
    if not isinstance(text, str) or write.fields.keys() != {"element", "text"}:
        raise MappingError("A journal entry takes `element` and `text`, and nothing else.", code="nothing_to_write")
    return Write(write.parent, {column.name: text})


def name_entry(write: Write, entries: Sequence[Entry], taken: set[str]) -> Written | SyncError:
    """Return the answer with the key of the entry that was made: the newest in its journal that carries the marker.

    Returns RejectedError when there is none: ServiceNow drops in silence what a user may not write.
    """
    fields = write.fields or {}
    marker = str(write.match.get("text") or fields["text"])
    for entry in reversed(entries):
        key = str(entry["id"])
        if entry["element"] == fields["element"] and key not in taken and carries(str(entry["text"]), marker):
            taken.add(key)
            return Written(key, created=True)
    return RejectedError(
        f"ServiceNow took an entry for {fields['element']} and does not show it. The integration user needs the right to "
        "write this journal and to read sys_journal_field.",
        code="entry_not_shown",
    )


def name_entries(
    sent: Sequence[tuple[Write, Written | SyncError]],
    read: Callable[[list[str]], Mapping[str, Sequence[Entry]]],
) -> list[Written | SyncError]:
    """Return the answers to new journal entries with the entries' keys, which are read for all parents together."""
    parents = list(dict.fromkeys(str(write.parent) for write, answer in sent if isinstance(answer, Written)))
    problem: SyncError | None = None
    entries: Mapping[str, Sequence[Entry]] = {}
    try:
        entries = read(parents) if parents else {}
    except SyncError as exc:
        problem = AmbiguousWriteError(f"The entry was taken and is looked up later: {exc.message}")
    taken: set[str] = set()
    answers: list[Written | SyncError] = []
    for write, answer in sent:
        if isinstance(answer, Written):
            answers.append(problem or name_entry(write, entries[str(write.parent)], taken))
        else:
            answers.append(answer)
    return answers
