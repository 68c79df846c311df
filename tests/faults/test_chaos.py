"""A short chaos with real worker processes, killed by SIGKILL; `python -m faults.chaos` plays longer ones."""

import pytest

from faults.chaos import play


@pytest.mark.xdist_group("faults")
def test_a_short_chaos_ends_as_promised() -> None:
    """Workers die, storage stumbles, messages come twice, a backfill runs beside the run: nothing is lost or doubled."""
    ended = play(seed=2, minutes=0.15, workers=2, records=30, echo=lambda _: None)

    assert ended.wrong == [], "\n".join([*ended.blows, *ended.wrong])
    assert ended.links > 0
