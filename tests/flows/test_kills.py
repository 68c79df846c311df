"""The process ends before or after any call that leaves it, the messages are delivered again: the end is always the same."""

import dataclasses
import os
from datetime import timedelta

import pytest

from shared.state.rows import OpenRow
from tests.flows.world import CALLER, ENDED, NOW, Facts, Killed, World

ROLES = ("new", "new_user", "changed", "unchanged", "adopted", "failing")


@dataclasses.dataclass
class Days:
    """One world in which every day brings the same six cases, so that days can be compared."""

    world: World
    number: int = 0
    cases: dict[str, str] = dataclasses.field(default_factory=dict)

    def begin(self) -> None:
        """Let the next day begin, with the cases of the day before."""
        world = self.world
        self.number += 1
        for row in list(world.view.query(OpenRow, "case_to_incident")):
            world.view.delete(row)
        world.clock.freeze(NOW + timedelta(days=self.number))
        world.mailbox.mails.clear()
        changed = {"modifiedon": world.now() - timedelta(hours=20)}
        if not self.cases:
            self.cases = {role: world.add_case(f"{role} case", **changed) for role in ("changed", "unchanged")}
            self.cases["failing"] = world.add_case(title="", **changed)
            world.sync(f"ids={self.cases['changed']},{self.cases['unchanged']}")
            world.mailbox.mails.clear()
        world.dynamics.update("incident", self.cases["changed"], title=f"Changed on day {self.number}", **changed)
        world.dynamics.update("incident", self.cases["unchanged"], **changed)
        world.dynamics.update("incident", self.cases["failing"], **changed)
        contact = world.add_contact(self.email)
        created = changed | {"createdon": changed["modifiedon"]}  # since the run of the day before
        self.cases["new"] = world.add_case(f"New on day {self.number}", **created)
        self.cases["new_user"] = world.add_case(f"New user on day {self.number}", contact=contact, **created)
        self.cases["adopted"] = world.add_case(f"Adopted on day {self.number}", **changed)
        number = world.number_of(self.cases["adopted"])
        world.servicenow.insert("incident", number=number, short_description="From the former integration")

    @property
    def email(self) -> str:
        return f"day{self.number}@customer.example"

    def work(self) -> Facts:
        """Start the day's run as a browser does, which asks again when it gets no answer; return how the day ended."""
        world = self.world
        try:
            run = world.start()
        except Killed:
            world.restart()
            run = world.start()
        world.pump.run()
        if world.run_row(run).state not in ENDED or not world.mailbox.mails:
            world.tick_for(15)  # a message was lost with the process that was to send it
        return self.state(run.run_id)

    def state(self, run_id: str) -> Facts:
        """Return what the day has come to, by roles."""
        world, run = self.world, self.world.run_row(run_id)
        results = world.results(run)
        incidents = {role: world.incidents(correlation_id=case) for role, case in self.cases.items()}
        links = {role: world.link_of(case) for role, case in self.cases.items()}
        return {
            "state": run.state,
            "counts": run.counts,
            "results": {role: (results[case].outcome, results[case].reason) for role, case in self.cases.items()},
            "others": len(results) - len(ROLES),
            "incidents": {
                role: [
                    (row["short_description"].replace(str(self.number), ""), world.user_name(row["caller_id"]) == CALLER)
                    for row in rows
                ]
                for role, rows in incidents.items()
            },
            "numbers": [len(world.incidents(number=world.number_of(case))) for case in self.cases.values()],
            "users": len(world.users(self.email)),
            "links": {
                role: bool(link and link.other_key and link.claim is None) for role, link in links.items()
            },
            "mails": len({mail.message["Message-ID"] for mail in world.mailbox.mails}),  # a repeated one says so
        }  # fmt: skip


def _describe(days: Days) -> tuple[Facts, list[str]]:
    """Work one day without any fault; return its end and all calls that it made."""
    days.begin()
    days.world.wire.calls = []
    expected = days.work()
    return expected, list(days.world.wire.calls)


def _sweep(world: World, chosen: list[int], calls: int) -> list[str]:
    """Kill at each of the chosen calls, before and after it; return what ended differently."""
    days, wrong = Days(world), []
    expected, labels = _describe(days)
    expected, labels = _describe(days)  # the second day knows the tables and the recipe
    assert expected["counts"] == {"created": 2, "updated": 1, "unchanged": 1, "adopted": 1, "failed": 1}
    assert expected["mails"] == 1
    for number in chosen or firsts(labels) if calls == 0 else range(len(labels)):
        for after in (False, True):
            days.begin()
            world.wire.kill_at(number, after=after)
            found = days.work()
            struck = world.wire.calls[number] if number < len(world.wire.calls) else "nothing"
            world.wire.kill_at(-1, after=False)
            if found != expected:
                differs = {name: (found[name], expected[name]) for name in found if found[name] != expected[name]}
                wrong.append(f"{'after' if after else 'before'} {number} {struck}: {differs}")
    return wrong


def firsts(labels: list[str]) -> list[int]:
    """Return the first and the last occurrence of each distinct call."""
    firsts = {label: number for number, label in reversed(list(enumerate(labels)))}
    lasts = {label: number for number, label in enumerate(labels)}
    return sorted({*firsts.values(), *lasts.values()})


def test_kill_at_each_kind_of_call_changes_nothing(world: World) -> None:
    """Whatever call the process dies at, everything is written once and told once."""
    wrong = _sweep(world, [], 0)

    assert wrong == [], "\n".join(wrong)


@pytest.mark.skipif(not os.environ.get("FAULTS"), reason="long: FAULTS=1 (make faults)")
@pytest.mark.parametrize("lease_s", [0, 120], ids=["worker dies", "host dies"])
def test_kill_at_every_call_changes_nothing(world: World, lease_s: int) -> None:
    """The same for every single call of the run; a host that dies leaves its messages hidden until their lease ends."""
    world.pump.lease_left_s = lease_s

    wrong = _sweep(world, [], 1)

    assert wrong == [], "\n".join(wrong)
