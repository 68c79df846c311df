"""Rows of measurements as one table, with what was aimed at, and as a file that says where and with what they were made."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
LEAST_STUB = 3_000  # requests/s; below that the stub, not the product, is measured
Json = dict[str, Any]

COLUMNS = (
    ("mode", "mode", "{}"),
    ("lane", "lane", "{}"),
    ("cases", "cases", "{}"),
    ("latency_ms", "latency ms", "{:g}"),
    ("workers", "workers", "{}"),
    ("cap", "cap", "{}"),
    ("page_size", "page", "{}"),
    ("tables", "tables", "{}"),
    ("others", "others", "{}"),
    ("cases_per_s", "cases/s", "{:.1f}"),
    ("cases_per_s_to_end", "to the end", "{:.1f}"),
    ("bare_cases_per_s", "bare/s", "{:.0f}"),
    ("ratio_to_bare", "ratio", "{:.0%}"),
    ("first_write_s", "first s", "{:.2f}"),
    ("cold_first_write_s", "cold s", "{:.2f}"),
    ("servicenow_calls", "SN calls/case", "{:.3f}"),
    ("dynamics365_calls", "D365 calls", "{}"),
    ("storage_operations", "storage/case", "{:.2f}"),
    ("cpu_ms", "CPU ms/case", "{:.1f}"),
    ("peak_mb", "peak MB", "{:.0f}"),
    ("most_in_flight", "in flight", "{}"),
    ("azurite_cpu_ms", "Azurite ms/case", "{:.1f}"),
    ("beside_cpu_ms", "beside ms/case", "{:.1f}"),
    ("stub_per_s", "stub/s", "{:.0f}"),
    ("load_before", "load", "{:.1f}"),
    ("repeats", "runs", "{}"),
    ("verdict", "target", "{}"),
)


def write_table(rows: list[Json]) -> str:
    """Return the rows as a table."""
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    cells = [[title for _, title, _ in shown]]
    cells += [[form.format(row[name]) if row.get(name) is not None else "-" for name, _, form in shown] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(shown))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    void = [f"void: the stub sustains less than {LEAST_STUB}/s" for row in rows if not row["valid"]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *void[:1]])


def median_of(rows: list[Json]) -> Json:
    """Return the median of each number over repeated rows."""
    first = rows[0]
    numbers = {
        name: statistics.median(values)
        for name, value in first.items()
        if isinstance(value, float) and None not in (values := [row[name] for row in rows])
    }
    return first | numbers | {"repeats": len(rows)}


def judge(row: Json, targets: Sequence[tuple[str, str, float]]) -> str:
    """Say of each target of a row, a number with its bound, whether it is met."""
    titles = {name: (title, form) for name, title, form in COLUMNS}
    said = []
    for name, operator, bound in targets:
        (title, form), value = titles[name], row[name]
        met = value >= bound if operator == ">=" else value <= bound
        said.append(f"{title} {operator} {form.format(bound)}: {'met' if met else 'NOT MET'}")
    return "; ".join(said) or "-"


def report(rows: list[Json], command: list[str], folder: Path | None) -> None:
    """Print the rows as one table with machine and versions, and write them to a file in a folder."""
    facts = machine()
    print(write_table(rows))
    print(", ".join(f"{name} {value}" for name, value in facts.items() if name != "packages"))
    print(", ".join(f"{name} {value}" for name, value in facts["packages"].items()))
    if folder is not None:
        folder.mkdir(exist_ok=True)
        path = folder / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}.json"
        path.write_text(json.dumps({"machine": facts, "command": command, "rows": rows}, indent=1) + "\n")
        print(f"written to {path.relative_to(ROOT)}")


def machine() -> Json:
    """Say where and with what this was measured."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = ("azure-functions", "azure-data-tables", "azure-storage-queue", "requests", "pydantic", "aiohttp")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    azurite = json.loads((ROOT / "node_modules" / "azurite" / "package.json").read_text())["version"]
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages} | {"azurite": azurite},
        "commit": commit,
    }
