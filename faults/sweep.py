"""Break every outgoing call of a run in every way, and compare what the run has come to with the undisturbed one.

    python -m faults.sweep               everything, four processes side by side; writes docs/faults.md with --write
    python -m faults.sweep --resume verdicts.jsonl --minutes 5     a piece of it; the same command goes on
    python -m faults.sweep --bounded     every call, a rotating share of the faults (--seed)
    python -m faults.sweep --only "POST /api/now" --fault "late effect" --alone     a few, one fault a run

Of each distinct call its first, a middle and its last occurrence are struck. Several faults that have nothing to do with
each other strike in one run; when that run ends differently, each of them is run alone, and the matrix counts these.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from faults import report
from faults.kinds import BY_NAME, FAULTS, MAIL
from faults.scene import Kept, Scene, staged
from faults.trials import TRIALS, Facts, difference, healthy
from faults.wire import Strike
from sandbox.processes import tie_to_parent

PROCESSES = 4
TOGETHER = 10  # faults in one run
REPEATS = 4  # undisturbed runs after the first, of which two must make the same calls
BOUNDED = "cases"  # trial of the bounded sweep, with two faults a call; one of the others joins it, with one


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one strike."""

    trial: str
    label: str
    occurrence: int
    fault: str
    reached: bool
    differences: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the run ended as the undisturbed one."""
        return not self.differences


# -- in a worker ----------------------------------------------------------------------------------------------------------


class Bench:
    """A worker's scene with what each trial begins with and comes to."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._known: dict[str, tuple[Kept, Facts, list[str]]] = {}

    def know(self, trial: str) -> tuple[Kept, Facts, list[str]]:
        """Return a trial's beginning, its undisturbed end and its calls."""
        if trial not in self._known:
            kept = TRIALS[trial].begin(self._scene)
            facts = self._run(trial, kept, ())
            if said := healthy(TRIALS[trial], facts):
                raise RuntimeError(f"{trial} is not in order without any fault: {said}")
            self._known[trial] = kept, facts, self._calls_that_repeat(trial, kept, facts)
        return self._known[trial]

    def _calls_that_repeat(self, trial: str, kept: Kept, facts: Facts) -> list[str]:
        """Return the calls that two undisturbed runs made, of a few: a machine that stands still may cost a call its connection."""
        seen = [list(self._scene.wire.calls)]
        for _ in range(REPEATS):
            if said := difference(self._run(trial, kept, ()), facts, mail_struck=False):
                raise RuntimeError(f"{trial} does not repeat: {said}")
            if self._scene.wire.calls in seen:
                return self._scene.wire.calls
            seen.append(list(self._scene.wire.calls))
        differing = [dict(Counter(each) - Counter(seen[0])) for each in seen[1:]]
        raise RuntimeError(f"{trial} calls differently each time; more than in the first run: {differing}")

    def _run(self, trial: str, kept: Kept, strikes: Sequence[Strike]) -> Facts:
        self._scene.open(kept, TRIALS[trial].recipes, TRIALS[trial].settings)
        self._scene.wire.arm(*strikes)
        return TRIALS[trial].work(self._scene)

    def judge(self, trial: str, strikes: Sequence[Strike]) -> list[Verdict]:
        """Run with strikes; when something differs, again with either half; when one was not reached, again without the others."""
        kept, expected, _ = self.know(trial)
        try:
            found = self._run(trial, kept, strikes)
            said = difference(found, expected, mail_struck=any(_touches_mail(strike) for strike in strikes))
        except Exception as exc:  # a scenario that breaks is a finding, not the sweep's end
            said = [f"{type(exc).__name__}: {exc}"]
        reached = set(self._scene.wire.struck)
        missed = [each for each in strikes if each not in reached]
        if len(strikes) == 1:
            again: list[Sequence[Strike]] = []
        elif said:
            again = [strikes[: len(strikes) // 2], strikes[len(strikes) // 2 :]]
        else:
            again = [missed] if 0 < len(missed) < len(strikes) else [[each] for each in missed]
        settled = [each for each in strikes if not any(each in group for group in again)]
        verdicts = [
            Verdict(trial, each.label, each.occurrence, each.fault.name, each in reached, tuple(said))
            for each in settled
        ]
        return verdicts + [verdict for group in again for verdict in self.judge(trial, group)]


def _touches_mail(strike: Strike) -> bool:
    """Tell whether a fault may make a summary go out twice: between its sending and the note that it was sent."""
    return any(part in strike.label for part in (f"{MAIL} SEND", "summaries.", "/summaries", "runs.note_fired"))


_BENCH: list[Bench] = []


def _start_worker(parent_pid: int) -> None:
    import atexit  # noqa: PLC0415
    import logging  # noqa: PLC0415

    tie_to_parent(parent_pid)
    logging.disable(logging.CRITICAL)
    staging = staged()
    _BENCH.append(Bench(staging.__enter__()))
    atexit.register(staging.__exit__, None, None, None)


def _calls_of(trial: str) -> list[str]:
    try:
        return _BENCH[0].know(trial)[2]
    except Exception as exc:
        raise RuntimeError("".join(traceback.format_exception(exc))) from None  # others cannot all travel


def _judge(trial: str, strikes: Sequence[Strike]) -> list[Verdict]:
    _calls_of(trial)
    return _BENCH[0].judge(trial, strikes)


# -- choosing -------------------------------------------------------------------------------------------------------------


def points_of(calls: Sequence[str]) -> dict[str, list[int]]:
    """Return the first, a middle and the last occurrence of each distinct call."""
    counts = Counter(calls)
    return {label: sorted({0, count // 2, count - 1}) for label, count in counts.items()}


def all_strikes(calls: Sequence[str]) -> list[Strike]:
    """Return every point with every fault that fits."""
    return [
        Strike(label, occurrence, fault)
        for label, occurrences in points_of(calls).items()
        for occurrence in occurrences
        for fault in FAULTS
        if fault.fits(label.split(" ", 1)[0])
    ]


def bounded_strikes(calls: Sequence[str], seed: int, faults: int) -> list[Strike]:
    """Return every distinct call with a few faults; which ones, and where, rotates with the seed."""
    chosen = []
    for number, (label, occurrences) in enumerate(points_of(calls).items()):
        fitting = [fault for fault in FAULTS if fault.fits(label.split(" ", 1)[0])]
        for turn in range(faults):
            step = seed * faults + turn + number * 5
            chosen.append(Strike(label, occurrences[step % len(occurrences)], fitting[step % len(fitting)]))
    return chosen


def bounded_trials(seed: int) -> list[str]:
    """Return the trials of a bounded sweep."""
    others = [name for name in TRIALS if name != BOUNDED]
    return [BOUNDED, others[seed % len(others)]]


def grouped(
    strikes: Iterable[Strike], calls: Sequence[str], chance: random.Random, size: int
) -> Iterator[list[Strike]]:
    """Put strikes together that are far apart in the run: no two of the same call, at most one that ends the listing."""
    first = {label: index for index, label in reversed(list(enumerate(calls)))}
    ordered = sorted(strikes, key=lambda strike: (first.get(strike.label, 0), strike.label, strike.occurrence))
    share = max(1, -(-len(ordered) // size))  # none are left when a piece that is gone on with has tried them all
    columns = [ordered[start : start + share] for start in range(0, len(ordered), share)]
    for column in columns:
        chance.shuffle(column)
    for number in range(share):
        group: dict[str, Strike] = {}
        for column in columns:
            if number < len(column):
                strike = column[number]
                if strike.label in group:
                    yield [strike]
                else:
                    group[strike.label] = strike
        if group:
            yield list(group.values())


# -- the sweep ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Swept:
    """A finished sweep."""

    verdicts: list[Verdict]
    calls: dict[str, int]  # distinct calls by trial
    seconds: float
    processes: int
    bounded: bool
    seed: int
    left: int = 0  # runs that its time did not allow

    @property
    def failures(self) -> list[Verdict]:
        """Return what did not end as it should."""
        return [verdict for verdict in self.verdicts if not verdict.passed]


class Notes:
    """Verdicts in a file, so that a sweep that was interrupted goes on where it stood; without a path nowhere.

    What failed is tried again, and what the code no longer calls is passed over.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._began_s = time.monotonic()
        self.verdicts: list[Verdict] = []
        self.seconds = 0.0  # of the sweeps before
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self.seconds += entry.pop("seconds")
                self.verdicts.append(Verdict(**entry | {"differences": tuple(entry["differences"])}))

    def add(self, found: Sequence[Verdict]) -> None:
        """Note verdicts, and the time since the last ones."""
        if self._path is None:
            return
        now_s = time.monotonic()
        with self._path.open("a") as file:
            for number, verdict in enumerate(found):
                seconds = 0.0 if number else now_s - self._began_s
                file.write(json.dumps(dataclasses.asdict(verdict) | {"seconds": seconds}) + "\n")
        self._began_s = now_s


def sweep(options: argparse.Namespace, echo: Any = print) -> Swept:
    """Run the sweep that the options ask for."""
    began_s = time.monotonic()
    chance = random.Random(options.seed)
    size = 1 if options.alone else TOGETHER
    names = options.trial or (bounded_trials(options.seed) if options.bounded else list(TRIALS))
    notes = Notes(options.resume)
    verdicts: list[Verdict] = []
    done = {(each.trial, each.label, each.occurrence, each.fault): each for each in notes.verdicts if each.passed}
    distinct: dict[str, int] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, _start_worker, (os.getpid(),)) as pool:
        listed = {name: pool.submit(_calls_of, name) for name in names}
        futures = []
        for name, future in listed.items():
            calls = future.result()
            distinct[name] = len(set(calls))
            strikes = (
                bounded_strikes(calls, options.seed, 2 if name == BOUNDED else 1)
                if options.bounded
                else all_strikes(calls)
            )
            strikes = [strike for strike in strikes if options.only in strike.label]
            strikes = [strike for strike in strikes if not options.fault or strike.fault.name in options.fault]
            if options.sample:
                strikes = chance.sample(strikes, min(options.sample, len(strikes)))
            ids = {each: (name, each.label, each.occurrence, each.fault.name) for each in strikes}
            verdicts += [done[each] for each in ids.values() if each in done]
            strikes = [each for each in strikes if ids[each] not in done]
            futures += [pool.submit(_judge, name, group) for group in grouped(strikes, calls, chance, size)]
            echo(f"{name}: {len(calls)} calls, {distinct[name]} distinct; {len(strikes)} faults")
        ends_at_s, left = began_s + 60 * (options.minutes or float("inf")), 0
        for number, future in enumerate(as_completed(futures), 1):
            if future.cancelled():
                left += 1
                continue
            if time.monotonic() > ends_at_s:
                for each in futures:
                    each.cancel()
            found = future.result()
            verdicts += found
            notes.add(found)
            for verdict in found:
                if not verdict.passed:
                    echo(report.describe(verdict))
            if number % 100 == 0:
                echo(f"{number} of {len(futures)} runs, {time.monotonic() - began_s:.0f} s")
    seconds = notes.seconds + time.monotonic() - began_s
    return Swept(verdicts, distinct, seconds, options.processes, options.bounded, options.seed, left)


def seed_of_commit() -> int:
    """Return a seed that moves on with each commit, so that bounded sweeps take turns."""
    command = ["git", "rev-list", "--count", "HEAD"]
    said = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return int(said) if said.isdigit() else 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m faults.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bounded", action="store_true", help="every call, a rotating share of the faults")
    parser.add_argument("--seed", type=int, default=seed_of_commit(), help="default: follows from the commit")
    parser.add_argument("--trial", action="append", choices=list(TRIALS), help="only this one; may be repeated")
    parser.add_argument("--only", default="", help="only calls that contain this text")
    parser.add_argument("--fault", action="append", choices=list(BY_NAME), help="only this fault; may be repeated")
    parser.add_argument("--sample", type=int, default=0, help="only so many faults per trial, chosen by the seed")
    parser.add_argument("--alone", action="store_true", help="one fault a run")
    parser.add_argument("--processes", type=int, default=min(PROCESSES, os.cpu_count() or 1))
    parser.add_argument("--resume", type=Path, help="file of verdicts: those that it holds are not tried again")
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop after so many; with --resume the next one goes on"
    )
    parser.add_argument("--write", action="store_true", help="write docs/faults.md")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Sweep, print the matrix and return the exit code."""
    options = parse(arguments)
    swept = sweep(options, lambda text: print(text, flush=True))
    print(report.matrix(swept.verdicts))
    print(report.totals(swept))
    if swept.left:
        print(f"{swept.left} runs are left: there was no more time.")
    elif options.write:
        report.write(swept)
    return 1 if swept.failures or swept.left else 0


if __name__ == "__main__":
    sys.exit(main())
