"""The pages of the Dynamics 365 simulator for a person: what is there, and forms to change a case, a contact or an account."""

from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import urlencode

from sandbox.dynamics365_query import Ref, Row
from sandbox.dynamics365_store import Rows
from sandbox.dynamics365_tables import Column

SHOWN = 100
STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--accent:#2266dd}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
a{color:var(--accent)}nav a{margin-right:1rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:break-word}
th{font-size:.8rem;color:#777}tr:hover td{background:var(--soft)}
form.search{display:flex;gap:.5rem;margin:1rem 0}
input,select,textarea,button{font:inherit;padding:.4rem .6rem;border:1px solid var(--line);border-radius:.4rem;max-width:100%;box-sizing:border-box}
label{display:block;margin:.8rem 0}label input,label select,label textarea{display:block;width:100%}
textarea{min-height:8rem}button{background:var(--accent);color:#fff;border:0;padding:.5rem 1.2rem}
.error{border-left:4px solid #c33;padding:.5rem 1rem;background:var(--soft)}
dl{display:grid;grid-template-columns:minmax(8rem,14rem) 1fr;gap:.2rem 1rem}dt{color:#777}dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
@media(max-width:40rem){thead{display:none}tr{display:block;border-bottom:2px solid var(--line);padding:.4rem 0}
td{display:block;border:0;padding:.1rem .2rem;overflow-wrap:anywhere}td:before{content:attr(data-name) ": ";color:#777;font-size:.8rem}dl{display:block}dd{margin-bottom:.5rem}}
"""
LISTS = {  # table -> heading, columns shown
    "incident": (
        "Cases",
        ("ticketnumber", "title", "customerid", "ownerid", "prioritycode", "statecode", "modifiedon"),
    ),
    "contact": (
        "Contacts",
        ("fullname", "emailaddress1", "telephone1", "jobtitle", "parentcustomerid", "statecode", "modifiedon"),
    ),
    "account": ("Accounts", ("name", "emailaddress1", "telephone1", "primarycontactid", "statecode", "modifiedon")),
}
HEADINGS = {
    "ticketnumber": "Ticket", "title": "Title", "customerid": "Customer", "ownerid": "Owner", "prioritycode": "Priority", "statecode": "State",
    "modifiedon": "Modified", "fullname": "Name", "emailaddress1": "Email", "telephone1": "Phone", "jobtitle": "Job title",
    "parentcustomerid": "Company", "name": "Name", "primarycontactid": "Primary contact", "description": "Description",
    "firstname": "First name", "lastname": "Last name", "mobilephone": "Mobile phone", "fax": "Fax", "address1_line1": "Street 1",
    "address1_line2": "Street 2", "address1_line3": "Street 3", "address1_city": "City", "address1_stateorprovince": "State or province",
    "address1_country": "Country", "address1_postalcode": "Postal code", "websiteurl": "Website", "sic": "SIC code",
    "revenue": "Annual revenue", "numberofemployees": "Number of employees",
}  # fmt: skip
ADDRESS = (
    "address1_line1", "address1_line2", "address1_line3", "address1_postalcode", "address1_city", "address1_stateorprovince", "address1_country",
)  # fmt: skip
EDITABLE = {
    "incident": ("title", "prioritycode", "description", "statecode"),
    "contact": (
        "firstname", "lastname", "emailaddress1", "parentcustomerid", "jobtitle", "telephone1", "mobilephone", "fax", *ADDRESS, "description",
        "statecode",
    ),
    "account": (
        "name", "telephone1", "websiteurl", "sic", "revenue", "numberofemployees", *ADDRESS, "description", "statecode",
    ),
}  # fmt: skip
LARGEST = 1_000_000_000
NUMBERS = ("Integer", "Money", "Double")


def show_overview(rows: Rows, search: str = "") -> str:
    """Return the page with cases, contacts and accounts, newest first."""
    search_box = (
        f'<form class="search"><input name="q" value="{escape(search)}" placeholder="Number, title, name, email" aria-label="Search">'
        "<button>Search</button></form>"
    )
    parts = [
        "<nav>"
        + "".join(f'<a href="#{name}">{heading} ({len(rows.data[name])})</a>' for name, (heading, _) in LISTS.items())
        + "</nav>",
        search_box,
    ]
    for name, (heading, columns) in LISTS.items():
        found = sorted(
            _search(rows, name, search), key=lambda row: (row["modifiedon"], row["versionnumber"]), reverse=True
        )
        more = f" <small>newest {SHOWN} of {len(found)}</small>" if len(found) > SHOWN else ""
        parts.append(f'<h2 id="{name}">{heading}{more}</h2>{_table(rows, name, columns, found[:SHOWN])}')
    return _page("Dynamics 365 (sandbox)", "".join(parts))


def show_record(rows: Rows, table_name: str, row: Row, error: str = "") -> str:
    """Return the page of one record, with its form if a person may edit it here."""
    table = rows.tables[table_name]
    parts = ['<p><a href="/">All records</a></p>']
    if error:
        parts.append(f'<p class="error">{escape(error)}</p>')
    if table_name in EDITABLE:
        fields = "".join(_field(rows, table.columns[name], row.get(name)) for name in EDITABLE[table_name])
        parts.append(
            f'<form method="post" action="/_sandbox/form/{table_name}/{row[table.key]}">{fields}<button>Save</button></form>'
        )
    values = "".join(
        f"<dt>{escape(name)}</dt><dd>{_cell(rows, column, row.get(name))}</dd>"
        for name, column in table.columns.items()
    )
    parts.append(f"<h2>All columns</h2><dl>{values}</dl>")
    return _page(str(row.get(table.label) or row[table.key]), "".join(parts))


def read_field(rows: Rows, column: Column, text: str) -> Any:
    """Return the value that a form's text stands for. Raises ValueError for what is none."""
    if not text:
        return None
    if column.is_lookup:
        table, _, row_id = text.partition(":")
        if table not in column.targets or rows.find(table, row_id) is None:
            raise ValueError(f"{HEADINGS[column.name]}: there is no such record")
        return Ref(table, row_id)
    if column.options or column.kind in NUMBERS:
        try:
            number = float(text) if column.kind in ("Money", "Double") else int(text)
        except ValueError:
            raise ValueError(f"{HEADINGS[column.name]} is a number") from None
        if not 0 <= number <= LARGEST:
            raise ValueError(f"{HEADINGS[column.name]} is a number from 0 to {LARGEST:,}")
        return number
    return text


def show_message(title: str, text: str) -> str:
    """Return a page with one sentence."""
    return _page(title, f'<p>{escape(text)}</p><p><a href="/">All records</a></p>')


def record_url(table_name: str, row_id: str) -> str:
    """Return the path of a record's page, as the vendor writes it."""
    return "/main.aspx?" + urlencode({"etn": table_name, "pagetype": "entityrecord", "id": row_id})


def _search(rows: Rows, table_name: str, text: str) -> Iterable[Row]:
    wanted = text.strip().casefold()
    columns = ("ticketnumber", "title", "fullname", "name", "emailaddress1")
    if not wanted:
        return rows.all(table_name)
    return [
        row for row in rows.all(table_name) if any(wanted in str(row.get(name) or "").casefold() for name in columns)
    ]


def _table(rows: Rows, table_name: str, columns: tuple[str, ...], found: list[Row]) -> str:
    table = rows.tables[table_name]
    head = "".join(f"<th>{HEADINGS[name]}</th>" for name in columns)
    lines = []
    for row in found:
        cells = []
        for position, name in enumerate(columns):
            text = _cell(rows, table.columns[name], row.get(name))
            if position == 0 or name == "title":
                text = f'<a href="{escape(record_url(table_name, row[table.key]))}">{text or "(empty)"}</a>'
            cells.append(f'<td data-name="{HEADINGS[name]}">{text}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(rows: Rows, column: Column, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Ref):
        name = (rows.label_of(value) if value.table in rows.tables else None) or value.id
        return f'<a href="{escape(record_url(value.table, value.id))}">{escape(name)}</a> <small>{escape(value.table)}</small>'
    if column.options:
        label = next((option.label for option in column.options if option.value == value), "unknown option")
        return escape(f"{label} ({value})")
    if column.kind == "DateTime":
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return escape(str(value))


def _field(rows: Rows, column: Column, value: Any) -> str:
    name, heading = escape(column.name), escape(HEADINGS[column.name])
    if column.is_lookup:
        return f'<label>{heading}<select name="{name}">{_accounts(rows, value)}</select></label>'
    if column.options:
        known = [(option.value, option.label) for option in column.options]
        if value is not None and value not in dict(known):
            known.append((value, "unknown option"))
        options = "".join(
            f'<option value="{number}"{" selected" if number == value else ""}>{escape(label)} ({number})</option>'
            for number, label in known
        )
        empty = (
            "" if column.kind == "State" else f"<option value=''{'' if value is not None else ' selected'}></option>"
        )
        return f'<label>{heading}<select name="{name}">{empty}{options}</select></label>'
    if column.kind == "Memo":
        return f'<label>{heading}<textarea name="{name}" maxlength="{column.max_length}">\n{escape(value or "")}</textarea></label>'
    if column.kind in NUMBERS:
        shown = "" if value is None else f"{value:g}" if float(value).is_integer() and value < 1e6 else str(value)
        return f'<label>{heading}<input name="{name}" inputmode="decimal" value="{escape(shown)}"></label>'
    return (
        f'<label>{heading}<input name="{name}" maxlength="{column.max_length}" value="{escape(value or "")}"></label>'
    )


def _accounts(rows: Rows, value: Ref | None) -> str:
    """Return the companies to choose from, and what is chosen now if that is none of them."""
    refs = [Ref("account", row["accountid"]) for row in rows.all("account")]
    named = sorted((rows.label_of(ref) or ref.id, ref) for ref in {*refs, *([value] if value else [])})
    return "<option value=''></option>" + "".join(
        f'<option value="{escape(f"{ref.table}:{ref.id}")}"{" selected" if ref == value else ""}>{escape(label)}</option>'
        for label, ref in named
    )


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
