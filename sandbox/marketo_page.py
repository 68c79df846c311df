"""Pages of the simulated Marketo instance for people: the newest leads, the companies, and one record with all its fields."""

from collections.abc import Iterable
from html import escape

from sandbox.marketo_fields import COMPANY, LEAD
from sandbox.marketo_store import Record, Records

SHOWN = 50  # records of a kind on the first page
WATCH_S = 3
_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.3rem}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}a{color:#5b3fa8}table{border-collapse:collapse;width:100%}
@media(prefers-color-scheme:dark){a{color:#b9a5f5}}
th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #8884;vertical-align:top;overflow-wrap:anywhere}
form{display:flex;gap:.5rem;max-width:40rem}input,button{font:inherit;padding:.4rem;box-sizing:border-box}input{flex:1;min-width:0}
table.list th,table.list td:first-child,table.list td:last-child{white-space:nowrap}
pre{white-space:pre-wrap;margin:0;font:inherit}.quiet{opacity:.7}
@media(max-width:40rem){table.list thead{display:none}table.list tr{display:block;padding:.5rem 0;border-bottom:1px solid #8886}
table.list td,table.list td:first-child{display:flex;gap:.6rem;white-space:normal;border:0;padding:.1rem 0}table.list td::before{content:attr(data-name);min-width:7rem;opacity:.7}}
"""
_LEADS = (
    ("Id", "id"),
    ("Name", "name"),
    ("Email", "email"),
    ("Job title", "title"),
    ("Company", "company"),
    ("Changed", "updatedAt"),
)
_COMPANIES = (
    ("Id", "id"),
    ("Company", "company"),
    ("City", "billingCity"),
    ("Employees", "numberOfEmployees"),
    ("External id", "externalCompanyId"),
    ("Changed", "updatedAt"),
)


def home(records: Records, calls_today: int, search: str, watch: bool) -> str:
    """Return the first page: the leads and companies changed last, or those that contain the words searched."""
    leads = [records.show(LEAD, lead) for lead in records.tables[LEAD].values()]
    named = [lead | {"name": _name(lead)} for lead in leads]
    box = f'<input name="q" value="{escape(search)}" placeholder="name, email, company, id" aria-label="Search">'
    parts = [
        f"<form>{box}<button>Search</button></form>",
        f'<div class="quiet">{calls_today} calls today. {_watch_link(search, watch)}</div>',
        _section("leads", named, _LEADS, search),
        _section("companies", records.companies(), _COMPANIES, search),
    ]
    return _page("Marketo stand-in", "".join(parts), watch)


def record(records: Records, table: str, number: str) -> str | None:
    """Return the page of one record; None when there is none."""
    found = records.find(table, "id", [number])
    if not found:
        return None
    shown = records.show(table, found[0])
    rows = "".join(
        f"<tr><th>{escape(field.label)}<br><small class=quiet>{escape(name)}</small></th>"
        f"<td><pre>{_cell(shown.get(name))}</pre></td></tr>"
        for name, field in records.fields[table].items()
    )
    behind = shown.get("contactCompany")
    link = f' · <a href="{_address(COMPANY, behind)}">Its company</a>' if behind else ""
    title = f"{'Lead' if table == LEAD else 'Company'} {number}"
    return _page(title, f'<p><a href="/">All records</a>{link}</p><table>{rows}</table>', False)


def missing() -> str:
    """Return the page for a record that does not exist."""
    return _page("Record not found", '<p><a href="/">All records</a></p>', False)


def _section(title: str, rows: Iterable[Record], columns: Iterable[tuple[str, str]], search: str) -> str:
    found = [row for row in rows if _matches(row, columns, search)]
    found.sort(key=lambda row: (row["updatedAt"], row["id"]), reverse=True)
    head = "".join(f"<th>{escape(label)}</th>" for label, _ in columns)
    table = LEAD if title == "leads" else COMPANY
    lines = "".join(_line(table, row, columns) for row in found[:SHOWN])
    more = f", the {SHOWN} changed last below" if len(found) > SHOWN else ""
    return (
        f"<h2>{len(found)} {title}{more}</h2>"
        f'<table class="list"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    )


def _matches(row: Record, columns: Iterable[tuple[str, str]], search: str) -> bool:
    text = " ".join(str(row.get(name) or "") for _, name in columns).lower()
    return all(word in text for word in search.lower().split())


def _line(table: str, row: Record, columns: Iterable[tuple[str, str]]) -> str:
    cells = []
    for label, name in columns:
        text = _cell(row.get(name))
        if name == "id":
            text = f'<a href="{_address(table, row["id"])}">{text}</a>'
        cells.append(f'<td data-name="{escape(label)}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _name(lead: Record) -> str:
    return " ".join(str(lead[name]) for name in ("firstName", "lastName") if lead.get(name))


def _cell(value: object) -> str:
    return "" if value is None else escape(str(value))


def _address(table: str, number: object) -> str:
    return f"/leadDatabase/loadLeadDetail?leadId={number}" if table == LEAD else f"/companies/{number}"


def _watch_link(search: str, watch: bool) -> str:
    asked = f'<input type="hidden" name="q" value="{escape(search)}">' if search else ""
    if watch:
        return f"Shown anew every {WATCH_S} seconds. <a href='/'>Stop</a>"
    return f'<form style="display:inline">{asked}<button name="watch" value="1">Watch</button></form>'


def _page(title: str, body: str, watch: bool) -> str:
    refresh = f'<meta http-equiv="refresh" content="{WATCH_S}">' if watch else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{refresh}<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
