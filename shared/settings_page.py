"""Prints `docs/settings.md` from the settings' own descriptions, so that page and errors cannot disagree."""

from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shared.connections import Connection
from shared.settings import HEADS, STORAGE, Mail, Settings, Storage
from shared.settings_faults import tagged

Line = tuple[str, str, str, str]  # name, what it says, default, example

HOST_SETTINGS: tuple[Line, ...] = (  # read by others than us: the Functions host, its worker, requests, ssl
    ("FUNCTIONS_WORKER_RUNTIME", "the language of the app, for the Functions host", "", "python"),
    (
        "PYTHON_THREADPOOL_THREAD_COUNT",
        "threads of a worker: all queues' messages in flight (host.json) and 16 more",
        "4 more than processors",
        "176",
    ),
    (
        "GLIBC_TUNABLES",
        "two heaps for all threads of a worker, and no freed blocks that a thread keeps: memory that one has freed serves the others",
        "8 heaps for each processor",
        "glibc.malloc.arena_max=2:glibc.malloc.tcache_count=0",
    ),
    (
        f"{STORAGE}__blobServiceUri",
        "the account's blob address, with a managed identity: the host keeps its timers there",
        "",
        "https://contoso.blob.core.windows.net",
    ),
    (f"{STORAGE}__credential", "`managedidentity`, with a managed identity", "", "managedidentity"),
    (
        "REQUESTS_CA_BUNDLE",
        "a file of certificates to trust instead of the public ones: the sandbox's, or a company proxy's",
        "",
        "ca.pem",
    ),
    ("SSL_CERT_FILE", "the same for the mail server", "", "ca.pem"),
)

_INTRODUCTION = """# Settings

<!-- Printed from shared/settings.py by `python cli.py docs`; edit the descriptions there. -->

App settings in Azure, `Values` of `local.settings.json` locally. Names are read without regard to case, an empty value counts
as not set, and all faults are reported in one error at start. Secrets belong into Key Vault:
`@Microsoft.KeyVault(SecretUri=https://<vault>.vault.azure.net/secrets/<name>)`. `local.settings.example.json` holds a complete
set that runs against the sandbox.
"""

_CONNECTIONS = """One group for each connection; its name is what recipes say (`servicenow.incident`). Two instances of a system
are two names, and `SYSTEM` says which system a name belongs to unless it is the system's own."""


def settings_table() -> str:
    """Return the whole of `docs/settings.md`."""
    plain = [line for name, field in Settings.model_fields.items() for line in _lines(name, field)]
    parts = [_INTRODUCTION, "## The app", _table(plain)]
    parts += ["## Storage", _table(list(_group(Storage, STORAGE)))]
    parts += ["## Mail", _table(list(_group(Mail, "MAIL")))]
    parts += ["## Connections", _CONNECTIONS]
    for system, model in tagged(Connection):
        parts += [f"### {system}", (model.__doc__ or "").strip(), _table(list(_group(model, "CONNECTIONS__<NAME>")))]
    parts += ["## Read by the Functions host and by libraries", _table(list(HOST_SETTINGS))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _lines(name: str, field: FieldInfo) -> Iterator[Line]:
    kind = field.annotation
    if name == "connections" or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return  # has a section of its own
    shown = field.alias or name.upper()
    if name.lower() in HEADS:
        shown = f"{shown}, {shown}__<RECIPE>"
    elif get_origin(kind) is dict:
        shown = f"{shown}__<NAME>"
    yield (shown, field.description or "", _default(field), _example(field))


def _group(model: type[BaseModel], prefix: str) -> Iterator[Line]:
    bare = {full: head for head, full in HEADS.items()}
    for name, field in model.model_fields.items():
        shown = f"{prefix}__{field.alias or name.upper()}"
        if shown.lower() in bare:
            shown = prefix
        if name == "system":
            yield shown, "the system behind the name", "the name", str(get_args(field.annotation)[0])
        else:
            yield shown, field.description or "", _default(field), _example(field)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value in (None, "", (), {}) or (value == 0 and "default:" in (field.description or "")):
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _example(field: FieldInfo) -> str:
    return str((field.examples or [""])[0])


def _table(lines: list[Line]) -> str:
    rows = ["| Setting | What it is | Default | Example |", "|---|---|---|---|"]
    rows += [
        f"| {_code(name)} | {_cell(says)} | {default if default.startswith('**') else _code(default)} | {_code(example)} |"
        for name, says, default, example in lines
    ]
    return "\n".join(rows)


def _code(text: str) -> str:
    return ", ".join(f"`{part}`" for part in text.split(", ")) if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
