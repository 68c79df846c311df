"""`make bench`: every line of the performance targets that can be measured here, as one table and one file.

    make bench                     all lines, medians of three or five runs, of two where one is long: about 13 minutes on four idle cores
    make bench ARGS=--quick        the telling ones, one run each: below three minutes
    make bench ARGS=--curve        memory and time at 1,000, 10,000 and 100,000 cases alone, the last also on Azurite as it is

Single lines with other numbers: `python -m benchmarks.cases --help`. `cold s` is the time from the first HTTP start of a
fresh installation to its first incident.
"""

import argparse
import dataclasses
import sys

from benchmarks.cases import PAGE_SIZES, Bench, Setup, bench
from benchmarks.report import RESULTS, Json, judge, median_of, report

Target = tuple[str, str, float]
CPU: Target = ("cpu_ms", "<=", 6.0)
MEMORY: Target = ("peak_mb", "<=", 150.0)
COLD: Target = ("cold_first_write_s", "<=", 3.0)
RATIOS = {100.0: (2, 0.75), 25.0: (3, 0.30), 0.0: (4, 0.09)}  # by latency: workers, of the bare program's rate
ALONE = 0.40  # of the bare program, by one worker at 100 ms
CAP, SMALL_CAP = 52, 8
LARGE_PAGE = 400  # BULK_PAGE_SIZE where many calls may be made at once, as docs/settings.md has it
BULK_CALLS: tuple[Target, ...] = (("servicenow_calls", "<=", 1.1), ("storage_operations", "<=", 0.3))
SINGLE: Target = ("storage_operations", "<=", 6.5)
LINKED: Target = ("storage_operations", "<=", 1.3)  # where links exist
CHANGED_CALLS: Target = ("servicenow_calls", "<=", 1.05)
UNCHANGED_CALLS: Target = ("servicenow_calls", "<=", 0.03)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: what is measured, and what is aimed at."""

    setup: Setup
    targets: tuple[Target, ...]
    repeats: int = 3


def _setup(
    lane: str, latency_ms: float, workers: int, *, mode: str = "new", cap: int = CAP, cases: int = 2000
) -> Setup:
    page_size = LARGE_PAGE if lane == "bulk" and cap == CAP else PAGE_SIZES[lane]
    return Setup(cases, latency_ms, workers, mode, lane, cap, page_size)


def _ratio(bound: float) -> Target:
    return ("ratio_to_bare", ">=", bound)


def _small_cap(latency_ms: float) -> Target:
    return ("cases_per_s", ">=", 0.88 * SMALL_CAP / (latency_ms / 1000))


def all_lines() -> list[Line]:
    """Return every line: lanes, latencies, workers, the small cap, and records that have changed or not."""
    lines = [
        Line(_setup("bulk", latency_ms, workers), (_ratio(bound), CPU, MEMORY, *BULK_CALLS), repeats=5)
        for latency_ms, (workers, bound) in RATIOS.items()
    ]
    return [
        Line(_setup("bulk", 100.0, 1), (_ratio(ALONE), CPU, MEMORY, COLD, *BULK_CALLS)),
        *lines,
        Line(_setup("bulk", 100.0, 2, mode="since"), (CPU, *BULK_CALLS), repeats=1),
        Line(_setup("bulk", 100.0, 1, mode="changed"), (CPU, LINKED, CHANGED_CALLS), repeats=1),
        Line(_setup("bulk", 100.0, 1, mode="unchanged"), (LINKED, UNCHANGED_CALLS), repeats=1),
        Line(_setup("bulk", 100.0, 1, cap=SMALL_CAP), (_small_cap(100.0),), repeats=2),
        Line(_setup("single", 100.0, 1), (("cases_per_s", ">=", 60.0), SINGLE)),
        Line(_setup("single", 100.0, 1, mode="since"), (SINGLE,), repeats=1),
        Line(_setup("single", 100.0, 1, mode="later"), (SINGLE,), repeats=1),
        Line(_setup("single", 100.0, 1, mode="changed"), (SINGLE, CHANGED_CALLS), repeats=1),
        Line(_setup("bulk", 25.0, 1, cases=1_000), (MEMORY,), repeats=1),
        Line(_setup("bulk", 25.0, 1, cases=10_000), (MEMORY,), repeats=1),
    ]


def quick_lines() -> list[Line]:
    """Return the lines that tell most in little time."""
    return [
        Line(_setup("bulk", 100.0, 1), (_ratio(ALONE), CPU, MEMORY, COLD, *BULK_CALLS), repeats=1),
        *(Line(_setup("bulk", ms, RATIOS[ms][0]), (_ratio(RATIOS[ms][1]), CPU), repeats=1) for ms in (100.0, 0.0)),
        Line(_setup("bulk", 100.0, 1, cap=SMALL_CAP), (_small_cap(100.0),), repeats=1),
        Line(_setup("single", 100.0, 1, cases=500), (("cases_per_s", ">=", 60.0),), repeats=1),
    ]


def curve_lines() -> list[Line]:
    """Return the curve of memory and time over the number of cases.

    A row costs Azurite more the more rows a table has: tables with an index show what is the product's own. How the
    emulator takes it as it is, is the last line.
    """
    lines = [Line(_setup("bulk", 25.0, 1, cases=cases), (MEMORY,), repeats=1) for cases in (1_000, 10_000, 100_000)]
    indexed = [dataclasses.replace(line, setup=dataclasses.replace(line.setup, tables="indexed")) for line in lines]
    return [*indexed, lines[-1]]


def measure(shared: Bench, line: Line) -> Json:
    """Measure a line as often as it says, and judge its medians."""
    print(f"{line.setup} x {line.repeats}", file=sys.stderr, flush=True)
    row = median_of([shared.measure(line.setup, None) for _ in range(line.repeats)])
    return row | {"verdict": judge(row, line.targets)}


def main() -> int:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__.partition("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="the telling lines, one run each: below three minutes")
    which.add_argument("--curve", action="store_true", help="memory and time at 1,000, 10,000 and 100,000 cases")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    lines = quick_lines() if options.quick else curve_lines() if options.curve else all_lines()
    with bench() as shared:
        rows = [measure(shared, line) for line in lines]
    report(rows, sys.argv[1:], None if options.no_file else RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
