"""What is advised about a reason can be done."""

import re

import pytest

from sync.reasons import REASONS
from sync.repairs import RECREATES, UNLINKS


@pytest.mark.parametrize(("call", "takes"), [("unlink", UNLINKS), ("recreate", RECREATES)])
def test_advice_names_a_repair_only_where_it_takes_the_record(call: str, takes: tuple[str, ...]) -> None:
    """`unlink` refuses all but a few reasons: nobody else is sent there."""
    advised = {code for code, reason in REASONS.items() if re.search(call, reason.do, re.IGNORECASE)}

    assert advised == set(takes)


def test_advice_for_a_taken_target_is_about_the_two_records() -> None:
    """The pair that exists may be right: what a person can do is to make the two source records differ."""
    assert "two source records" in REASONS["target_taken"].do
