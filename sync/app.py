"""The recipes of this installation together with the services they run on; what every trigger starts from."""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path

from shared.clients.system import Source, System, Target
from shared.connections import Connection
from shared.digests import Digests
from shared.errors import ConfigError, MappingError
from shared.mail import Delivery, Email
from shared.services import Services
from shared.settings import Settings
from shared.settings_faults import nearest
from shared.state.queues import Queues
from shared.state.rows import RunRow, newest_first, recipe_of
from shared.state.tables import Tables
from sync.flow import Flow, Limits
from sync.outcomes import Results
from sync.owners import writers_of
from sync.recipe import Recipe, RecordRef
from sync.recipe_faults import RecipeError
from sync.recipe_loader import load_recipes
from sync.recipe_rules import Capability, ConnectionFacts, check_together

LOG = logging.getLogger(__name__)

LEASE_SHARE = 0.4  # of a message's lease: after this an attempt starts no vendor call any more
RUN_MEMORY_S = 3.0  # how long a worker believes what it read of a run: a cancel is seen after this, or twice as long


@dataclasses.dataclass(frozen=True)
class App:
    """Recipes and services."""

    settings: Settings
    recipes: Mapping[str, Recipe]  # the active ones
    inactive: Mapping[str, tuple[str, ...]]  # recipes whose connections are not configured, and which are missing
    tables: Tables
    queues: Queues
    digests: Digests
    system: Callable[[str], System]  # by connection name; raises ConfigError
    send_mail: Callable[[Email], Delivery]
    now: Callable[[], datetime]  # aware UTC
    runs: "RunMemory"
    results: Results
    close: Callable[[], None]  # for an orderly end of the process

    def recipe(self, name: str) -> Recipe:
        """Return a recipe. Raises MappingError `unknown_recipe` that lists what there is."""
        if name in self.inactive:
            missing = " and ".join(self.inactive[name])
            raise MappingError(
                f"{name} is not active: the connection {missing} is not configured (docs/settings.md).",
                code="unknown_recipe",
            )
        if name not in self.recipes:
            known = ", ".join(sorted(self.recipes))
            raise MappingError(f"There is no recipe {name[:80]!r}. There are: {known}.", code="unknown_recipe")
        return self.recipes[name]

    def flow(self, name: str) -> Flow:
        """Return what the engine needs for a recipe."""
        recipe = self.recipe(name)
        target = self.settings.connection(recipe.target.connection)
        slack_s = self.settings.queue_lease_s / 40  # between claiming and sending
        limits = Limits(
            claim_s=self.settings.queue_lease_s,
            create_s=target.connect_timeout_s + target.read_timeout_s + slack_s,
            max_attempts=self.settings.max_attempts,
            max_wait_s=self.settings.max_wait_s,
            prepared_s=self.settings.queue_lease_s,
        )
        return Flow(
            recipe=recipe,
            source=_as_source(self.system(recipe.source.connection)),
            target=_as_target(self.system(recipe.target.connection)),
            tables=self.tables,
            digests=self.digests,
            now=self.now,
            limits=limits,
            two_way=any(
                (other.source, other.target) == (recipe.target, recipe.source) for other in self.recipes.values()
            ),
            shared=any(_keeps_in_step(other, recipe.target) for other in self.recipes.values()),
            writers=writers_of(self.recipes.values(), self.system),
        )

    def environment(self, recipe: Recipe) -> str:
        """Return the environment a recipe works in, as subjects and pages show it."""
        names = {self.settings.connection(ref.connection).environment for ref in (recipe.source, recipe.target)}
        return " and ".join(sorted(names))

    def find_run(self, run_id: str) -> RunRow | None:
        """Find a run by its id."""
        try:
            recipe = recipe_of(run_id)
        except ValueError:
            return None
        return self.tables.get(RunRow, recipe, newest_first(run_id))

    def known_run(self, run_id: str) -> RunRow | None:
        """Find a run, from memory if it was read a moment ago: what a run is does not change, whether it ended may."""
        return self.runs.get(run_id, self.find_run)

    def change_run(self, run_id: str, **changes: object) -> RunRow | None:
        """Change a run's row by compare-and-set; None when there is no such run."""
        return self.update_run(run_id, lambda run: run.model_copy(update=changes))

    def update_run(self, run_id: str, change: Callable[[RunRow], RunRow], known: RunRow | None = None) -> RunRow | None:
        """Change a run's row by compare-and-set; None when there is no such run. `known` saves the read if it still holds.

        A run that has ended keeps its state, whatever a slower worker makes of what it read before.
        """

        def changed(row: RunRow | None) -> RunRow | None:
            if row is None:
                return None
            wanted = change(row)
            return wanted.model_copy(update={"state": row.state}) if row.state.ended else wanted

        return self.tables.update(RunRow, recipe_of(run_id), newest_first(run_id), changed, known=known)


class RunMemory:
    """Runs that this worker read a moment ago, so that a record costs no read of its run."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s, self._lock = now_s, threading.Lock()
        self._seen: dict[str, tuple[float, float, RunRow | None]] = {}  # read at, read again since

    def get(self, run_id: str, read: Callable[[str], RunRow | None]) -> RunRow | None:
        """Return a run, read anew when the memory is older than RUN_MEMORY_S, by whoever notices first.

        The others go by what is known for as long again, but no longer.
        """
        now_s = self._now_s()
        with self._lock:
            read_s, again_s, run = self._seen.get(run_id, (-math.inf, -math.inf, None))
            if now_s - max(read_s, again_s) < RUN_MEMORY_S and now_s - read_s < 2 * RUN_MEMORY_S:
                return run
            self._seen[run_id] = (read_s, now_s, run)
        run = read(run_id)
        with self._lock:
            self._seen = {key: entry for key, entry in self._seen.items() if now_s - entry[1] < 2 * RUN_MEMORY_S}
            self._seen[run_id] = (now_s, now_s, run)
        return run


def _as_source(system: System) -> Source:
    if not hasattr(system, "fetch_page"):
        raise ConfigError("A recipe reads from a system that is no source.")
    return system  # type: ignore[return-value]  # the loader has checked it; the attribute proves it


def _as_target(system: System) -> Target:
    if not hasattr(system, "write_rows"):
        raise ConfigError("A recipe writes to a system that is no target.")
    return system  # type: ignore[return-value]  # as above


def _keeps_in_step(recipe: Recipe, target: RecordRef) -> bool:
    """Tell whether a recipe writes records of this kind on the way, under one of its fields."""
    finds = [rule.find for rule in recipe.block.fields.values() if rule.find]
    return recipe.target.connection == target.connection and any(
        find.record == target.record and find.write.may_change for find in finds
    )


RECIPES = Path(__file__).parent.parent / "recipes"


def build_app(settings: Settings, folder: Path = RECIPES) -> App:
    """Build an app from its settings and the folder of its recipes; nothing is called yet.

    Raises ConfigError with everything that is wrong in the recipes, or missing for them in the settings.
    """
    loaded = load_recipes(folder, settings=settings.recipe_values)
    _check_names(settings, loaded)
    inactive = {name: missing for name, recipe in loaded.items() if (missing := _missing(settings, recipe))}
    recipes = {name: recipe for name, recipe in loaded.items() if name not in inactive}
    connections = {name: _facts(connection) for name, connection in settings.connections.items()}
    faults = check_together(recipes, connections, settings.allow_mixed_environments)
    if faults:
        raise RecipeError(faults)
    for name, missing in inactive.items():
        LOG.info("recipe is not active", extra={"recipe": name, "connections": ", ".join(missing)})
    nobody = [recipe.name for recipe in recipes.values() if recipe.start.timed and not settings.recipients(recipe.name)]
    if nobody:
        wanted = ", ".join(f"NOTIFY__{name.upper()}" for name in nobody)
        raise ConfigError(f"A daily run has to tell somebody of its result: set NOTIFY, or {wanted}.")
    _check_times(settings)
    listening = [recipe for recipe in recipes.values() if recipe.start.webhook is not None]
    ends = {ref.connection for recipe in listening for ref in (recipe.source, recipe.target)}
    services = Services(settings, ends)
    return App(
        settings=settings,
        recipes=recipes,
        inactive=inactive,
        tables=services.tables,
        queues=services.queues,
        digests=settings.digests(),
        system=services.system,
        send_mail=services.send_mail,
        now=services.tables.now,  # workers compare times with each other: their own clocks may differ
        runs=RunMemory(),
        results=Results(services.tables),
        close=services.close,
    )


def _check_names(settings: Settings, recipes: Collection[str]) -> None:
    """Refuse settings that name a recipe which is none: its summaries would go to somebody else. Raises ConfigError."""
    named = [(f"NOTIFY__{name.upper()}", name) for name in settings.notify if name != "*"]
    named += [("ALLOW_MIXED_ENVIRONMENTS", name) for name in settings.allow_mixed_environments]
    faults = [
        f"{setting} names no recipe{nearest(name, recipes) or '.'}" for setting, name in named if name not in recipes
    ]
    if faults:
        raise ConfigError(" ".join(faults))


def _check_times(settings: Settings) -> None:
    """Refuse times with which no vendor call could ever start: one must fit into an attempt.

    Raises ConfigError.
    """
    attempt_s = settings.queue_lease_s * LEASE_SHARE
    slow = [
        name
        for name, connection in settings.connections.items()
        if connection.connect_timeout_s + connection.read_timeout_s >= attempt_s
    ]
    if slow:
        raise ConfigError(
            f"A call of {' and '.join(slow)} may take as long as an attempt ({attempt_s:.0f} s, {LEASE_SHARE:.0%} of "
            f"QUEUE_LEASE_S): lower CONNECTIONS__{slow[0].upper()}__READ_TIMEOUT_S."
        )


def _missing(settings: Settings, recipe: Recipe) -> tuple[str, ...]:
    """Return the connections that a recipe needs and the settings do not have: it is then not active."""
    needed = dict.fromkeys((recipe.source.connection, recipe.target.connection))
    return tuple(name for name in needed if name not in settings.connections)


def _facts(connection: Connection) -> ConnectionFacts:
    return ConnectionFacts(CAPABILITIES[connection.system], connection.environment)


CAPABILITIES = {
    "dynamics365": frozenset({Capability.SOURCE, Capability.SENDER}),
    "servicenow": frozenset({Capability.SOURCE, Capability.TARGET}),
    "marketo": frozenset({Capability.TARGET}),
}
