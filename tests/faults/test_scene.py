"""The scene of the sweep: each scenario finds what it was set back to, and nothing of another one."""

from datetime import timedelta

from faults.scene import staged
from faults.trials import ACCOUNTS
from shared.clients.system import Changed


def test_a_scene_that_is_set_back_shows_nothing_of_another() -> None:
    """Two beginnings that were made alike have the same versions, and yet their own records."""
    beginnings = []
    with staged() as scene:
        for name in ("Acorn", "Birch"):
            scene.open(None, (ACCOUNTS,))
            scene.dynamics.insert("account", name=name)
            beginnings.append(scene.keep())
        seen = []
        for beginning in beginnings:
            scene.open(beginning, (ACCOUNTS,))
            window = Changed(scene.now() - timedelta(days=1), scene.now() + timedelta(days=1))
            page = scene.app.flow(ACCOUNTS).source.fetch_page("account", frozenset({"name"}), window, None)
            seen.append([row.fields["name"] for row in page.rows])

    assert seen == [["Acorn"], ["Birch"]]


def test_a_scene_that_is_set_back_has_used_none_of_its_allowances() -> None:
    """The clock goes back to the same minutes each time: what others asked for in them does not count."""
    with staged() as scene:
        scene.dynamics.settings.request_limit = 5
        for _ in range(4):
            scene.open(None, (ACCOUNTS,))
            window = Changed(scene.now() - timedelta(days=1), scene.now() + timedelta(days=1))
            scene.app.flow(ACCOUNTS).source.fetch_page("account", frozenset({"name"}), window, None)
            scene.clock.advance(3600)
