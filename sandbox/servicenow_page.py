"""Pages of the simulated instance for people: the newest incidents, and one record with a form to play the agent."""

from collections.abc import Iterable, Mapping
from html import escape
from urllib.parse import quote

from sandbox.servicenow_dictionary import TABLES, Column, columns_of
from sandbox.servicenow_query import Row
from sandbox.servicenow_store import Records

SHOWN = 50  # incidents on the first page
EDITABLE = (
    "state",
    "urgency",
    "assigned_to",
    "short_description",
    "close_code",
    "close_notes",
    "comments",
    "work_notes",
)
_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.3rem}a{color:#1a6fb5}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #8884;vertical-align:top;overflow-wrap:break-word}td{overflow-wrap:anywhere}
ul.counts{display:flex;flex-wrap:wrap;gap:.4rem 1rem;list-style:none;padding:0;font-size:.9rem}
form.edit{display:grid;gap:.6rem;max-width:40rem;margin:1rem 0}label{display:grid;gap:.2rem;font-size:.9rem}
input,select,textarea,button{font:inherit;padding:.4rem;box-sizing:border-box;width:100%}button{width:auto}
.search{display:flex;gap:.5rem;max-width:40rem}.error{background:#b003;padding:.6rem;border-left:4px solid #b00}
pre{white-space:pre-wrap;margin:0;font:inherit}
@media(max-width:40rem){table.list thead{display:none}table.list tr{display:block;padding:.5rem 0;border-bottom:1px solid #8886}
table.list td{display:flex;gap:.6rem;border:0;padding:.1rem 0;overflow-wrap:anywhere}table.list td::before{content:attr(data-name);min-width:7rem;opacity:.7}}
"""
_LIST = (
    ("Number", "number"),
    ("Short description", "short_description"),
    ("Caller", "caller_id"),
    ("Assigned to", "assigned_to"),
    ("State", "state"),
    ("Urgency", "urgency"),
    ("Correlation", "correlation_id"),
)


def home(records: Records, instance: str, search: str) -> str:
    """Return the first page: counts of all tables and the newest incidents, or those that contain the words searched."""
    counts = "".join(f"<li>{escape(name)}: {len(rows)}</li>" for name, rows in records.tables.items() if rows)
    found = sorted(_matching(records, search), key=lambda row: (row["sys_created_on"], row["number"]), reverse=True)
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in _LIST)
    lines = "".join(_line(records, row) for row in found[:SHOWN])
    return _page(
        f"ServiceNow stand-in: {instance}",
        f'<form class="search"><input name="q" value="{escape(search)}" placeholder="number, text, caller, correlation" '
        f'aria-label="Search"><button>Search</button></form><ul class="counts">{counts}</ul>'
        f"<p>{len(found)} incidents, the newest {min(SHOWN, len(found))} below.</p>"
        f'<table class="list"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>',
    )


def record(records: Records, table: str, row: Row, error: str) -> str:
    """Return one record with all its fields and, for an incident, the form to edit it."""
    cells = "".join(
        f"<tr><th>{escape(column.label)}<br><small>{escape(name)}</small></th><td>{_value(records, column, row)}</td></tr>"
        for name, column in columns_of(table).items()
    )
    trouble = f'<p class="error">{escape(error)}</p>' if error else ""
    form = _form(records, row) if table == "incident" else ""
    title = f"{TABLES[table].label} {records.display(table, row)}"
    return _page(title, f'<p><a href="/">All incidents</a></p>{trouble}{form}<table>{cells}</table>')


def missing(table: str, sys_id: str) -> str:
    """Return the page for a record that does not exist."""
    return _page(
        "Record not found",
        f'<p>{escape(table)} has no record {escape(sys_id)}.</p><p><a href="/">All incidents</a></p>',
    )


def check_names(table: str, fields: Iterable[str]) -> None:
    """Raise KeyError for a table or a field that does not exist."""
    if table not in TABLES:
        raise KeyError(f"there is no table {table}")
    unknown = [field for field in fields if field not in columns_of(table)]
    if unknown:
        raise KeyError(f"{table} has no field {', '.join(unknown)}")


def _matching(records: Records, search: str) -> list[Row]:
    words = search.lower().split()
    rows = list(records.tables["incident"].values())
    if not words:
        return rows

    def text(row: Row) -> str:
        people = (_name(records, "sys_user", row[name]) for name in ("caller_id", "assigned_to"))
        named = (row[name] for name in ("number", "short_description", "correlation_id", "correlation_display"))
        return " ".join((*named, *people)).lower()

    return [row for row in rows if all(word in text(row) for word in words)]


def _line(records: Records, row: Row) -> str:
    columns = columns_of("incident")
    cells = []
    for title, name in _LIST:
        text = escape(_plain(records, columns[name], row[name]))
        if name == "number":
            text = f'<a href="{_address("incident", row["sys_id"])}">{text}</a>'
        cells.append(f'<td data-name="{escape(title)}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _form(records: Records, row: Row) -> str:
    columns = columns_of("incident")
    inputs = "".join(
        f"<label>{escape(columns[name].label)}{_input(records, columns[name], row)}</label>" for name in EDITABLE
    )
    return f'<form class="edit" method="post" action="/_sandbox/edit/incident/{row["sys_id"]}">{inputs}<p><button>Save</button></p></form>'


def _input(records: Records, column: Column, row: Row) -> str:
    if column.choices:
        return _select(column.name, {"": "", **column.choices}, row[column.name])
    if column.reference:
        users = sorted(records.tables["sys_user"].values(), key=lambda user: user["name"].lower())
        people = {user["sys_id"]: f"{user['name']} ({user['user_name']})" for user in users if user["active"] == "true"}
        kept = {row[column.name]: _name(records, "sys_user", row[column.name])} if row[column.name] else {}
        return _select(column.name, {"": "(nobody)"} | kept | people, row[column.name])
    if column.is_journal or column.length > 255:
        return f'<textarea name="{column.name}" rows="2">{escape(row[column.name])}</textarea>'
    return f'<input name="{column.name}" value="{escape(row[column.name])}">'


def _select(name: str, options: Mapping[str, str], chosen: str) -> str:
    items = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(label)}</option>'
        for value, label in options.items()
    )
    return f'<select name="{name}">{items}</select>'


def _value(records: Records, column: Column, row: Row) -> str:
    if column.is_journal:
        entries = records.journal(row, column.name)
        return "".join(
            f"<p><small>{escape(e['sys_created_on'])} {escape(e['sys_created_by'])}</small></p><pre>{escape(e['value'])}</pre>"
            for e in entries
        )
    value = row[column.name]
    text = f"<pre>{escape(_plain(records, column, value))}</pre>"
    if column.type == "reference" and not column.by_name and value:
        return f'<a href="{_address(column.reference, value)}">{escape(_plain(records, column, value) or value)}</a>'
    return text


def _plain(records: Records, column: Column, value: str) -> str:
    if column.type == "reference" and value:
        return _name(records, column.reference, value) or value
    return column.choices.get(value, value)


def _name(records: Records, table: str, sys_id: str) -> str:
    row = records.find(table, sys_id) if sys_id else None
    return records.display(table, row) if row is not None else ""


def _address(table: str, sys_id: str) -> str:
    return "/nav_to.do?uri=" + quote(f"{table}.do?sys_id={sys_id}", safe="")


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
