"""The bounded part of the fault sweep, and what chooses it. `make faults` runs all of it."""

import os
import random
import select
import subprocess
import sys
from pathlib import Path

import pytest

from faults import report
from faults.kinds import BY_NAME, FAULTS
from faults.sweep import all_strikes, bounded_strikes, grouped, parse, points_of, sweep
from faults.wire import Strike

CALLS = ["table GET /a · x", "queue POST /b · y", *["table GET /a · x"] * 4, "mail SEND · z"]


@pytest.mark.xdist_group("faults")
def test_bounded_sweep_ends_as_the_undisturbed_run() -> None:
    """Every distinct call with some of the faults; which ones follows from the commit."""
    swept = sweep(parse(["--bounded", "--processes", "3"]), lambda _: None)

    assert len(swept.verdicts) > 200
    assert swept.failures == [], "\n".join(report.describe(verdict) for verdict in swept.failures)


def test_a_busy_sign_in_is_over_when_the_scenes_clock_says_so() -> None:
    """What a sign-in library remembers passes with the clock that the scenario moves, not with the machine's."""
    asked = ["--trial", "first cases", "--only", "login POST", "--fault", "429 Retry-After", "--processes", "1"]

    swept = sweep(parse(asked), lambda _: None)

    assert [verdict.reached for verdict in swept.verdicts] == [True]
    assert swept.failures == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel has no such rule")
def test_workers_die_with_their_parent() -> None:
    """A sweep that is killed leaves neither workers nor their storage behind."""
    command = [sys.executable, "-m", "faults.sweep", "--trial", "first cases", "--processes", "1"]
    with subprocess.Popen(command, cwd=report.ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()  # the worker has listed the calls
        below = {pid: os.pidfd_open(pid) for pid in _descendants(parent.pid)}

        parent.kill()
        ended = {pid for pid, end in below.items() if select.select([end], [], [], 20)[0]}

    assert len(below) >= 2
    assert ended == set(below)


def _descendants(pid: int) -> list[int]:
    """Return the processes below one, as Linux lists them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return children + [below for child in children for below in _descendants(child)]


def test_points_are_first_middle_and_last() -> None:
    """Of a call its first, a middle and its last occurrence are struck, once where they are the same."""
    assert points_of(CALLS) == {"table GET /a · x": [0, 2, 4], "queue POST /b · y": [0], "mail SEND · z": [0]}


def test_every_call_meets_every_fault_that_fits() -> None:
    """No token expires at storage, and a mail server knows no HTTP."""
    strikes = all_strikes(CALLS)

    of_storage = {strike.fault.name for strike in strikes if strike.label.startswith("table")}
    of_mail = {strike.fault.name for strike in strikes if strike.label.startswith("mail")}
    assert set(BY_NAME) - of_storage == {"token expired"}
    assert of_mail == {"refused", "answer lost", "hangs", "503", "killed before", "killed after"}


def test_bounded_sweeps_take_turns() -> None:
    """Every call is struck by each seed, and enough seeds try every fault."""
    seeds = [bounded_strikes(CALLS, seed, 2) for seed in range(len(FAULTS))]

    assert all({strike.label for strike in strikes} == set(CALLS) for strikes in seeds)
    assert {strike.fault.name for strikes in seeds for strike in strikes} == set(BY_NAME) - {"token expired"}


def test_groups_lose_nothing_and_never_strike_a_call_twice() -> None:
    """Faults that strike together lie at different calls; each strikes once."""
    strikes = all_strikes(CALLS)

    groups = list(grouped(strikes, CALLS, random.Random(1), 4))

    flat = [strike for group in groups for strike in group]
    assert sorted(map(_name, flat)) == sorted(map(_name, strikes))
    assert all(len({strike.label for strike in group}) == len(group) for group in groups)


def test_nothing_left_makes_no_group() -> None:
    """A sweep that is gone on with finds runs of which all was tried."""
    assert list(grouped([], CALLS, random.Random(1), 4)) == []


def _name(strike: Strike) -> str:
    return f"{strike.label} {strike.occurrence} {strike.fault.name}"
