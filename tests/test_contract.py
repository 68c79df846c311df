"""What Microsoft's worker and host check of the app when they load it; one bad function takes all of them away.

Source: azure-functions-python-worker (loader, functions) and the host.json reference, as the design's fact sheet has them.
"""

import functools
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import azure.functions as func
import pytest
from azure.functions.decorators.function_app import FunctionRegister

from sandbox.host_config import read_host_config, read_settings
from shared.state.messages import MESSAGES

ROOT = Path(__file__).parent.parent
ROUTES = {
    "start_sync": ("sync/{recipe}", ["GET", "POST"]),
    "list_runs": ("runs", ["GET"]),
    "get_run": ("runs/{run_id}", ["GET"]),
    "list_results": ("runs/{run_id}/results", ["GET"]),
    "change_run": ("runs/{run_id}/{action}", ["POST"]),
    "health": ("health", ["GET"]),
}
ANONYMOUS = re.compile(r"health|webhooks/.*")  # webhook receivers check a key or signature of their own
ARGUMENTS = {"httpTrigger": func.HttpRequest, "queueTrigger": func.QueueMessage, "timerTrigger": func.TimerRequest}
WORKER_ONLY = {"context"}  # the one argument that the worker adds by itself

COLD_IMPORT = """
import json, sys
sys.path.insert(0, {root!r})
def guard(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise RuntimeError(f"importing the app does {{event}} {{args}}")
sys.addaudithook(guard)
import function_app
names = [each.get_function_name() for each in function_app.app.get_functions()]
print(json.dumps(dict(names=names, sandbox=[name for name in sys.modules if name.partition(".")[0] == "sandbox"])))
"""


@functools.cache
def load_app() -> ModuleType:
    """Load function_app under a name of its own: an app object lists its functions only once."""
    spec = importlib.util.spec_from_file_location("function_app_under_contract", ROOT / "function_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def functions() -> dict[str, Any]:
    """Return the app's functions by name, as the worker is told of them."""
    return {each.get_function_name(): each for each in load_app().app.get_functions()}


def bindings(name: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in functions()[name].get_raw_bindings()]


def triggers(kind: str) -> dict[str, dict[str, Any]]:
    """Return the trigger of each function of a kind."""
    found = {name: next(each for each in bindings(name) if each["type"].endswith("Trigger")) for name in functions()}
    return {name: trigger for name, trigger in found.items() if trigger["type"] == kind}


def every_function() -> list[str]:
    return sorted(functions())


# -- indexing -----------------------------------------------------------------------------------------------------------


def test_there_is_one_app() -> None:
    """The worker scans the module for exactly one FunctionApp, counted by attribute."""
    found = [name for name, value in vars(load_app()).items() if isinstance(value, FunctionRegister)]

    assert found == ["app"]


def test_names_are_unique() -> None:
    """Two functions of one name remove all of them."""
    load_app()
    fresh = [each.get_function_name() for each in functions().values()]

    assert len(fresh) == len({name.lower() for name in fresh}) > 0


@pytest.mark.parametrize("name", every_function())
def test_arguments_are_the_bindings(name: str) -> None:
    """Each bound argument is declared and nothing else is; a route's parameters are read from the request."""
    bound = {each["name"] for each in bindings(name)} - {"$return"}
    declared = set(inspect.signature(functions()[name].get_user_function()).parameters) - WORKER_ONLY
    route = next((each.get("route") or "" for each in bindings(name) if each["type"] == "httpTrigger"), "")

    assert declared == bound
    assert not declared & {part.split(":")[0].rstrip("?") for part in re.findall(r"{\*?([^}]+)}", route)}


@pytest.mark.parametrize("name", every_function())
def test_annotations_fit_the_trigger(name: str) -> None:
    """Annotations resolve, arguments have their trigger's type, and only HTTP functions return something."""
    function = functions()[name].get_user_function()
    trigger = next(each for each in bindings(name) if each["type"].endswith("Trigger"))

    hints = typing.get_type_hints(function)

    assert hints[trigger["name"]] is ARGUMENTS[trigger["type"]]
    assert hints["return"] is (func.HttpResponse if trigger["type"] == "httpTrigger" else type(None))
    assert not inspect.iscoroutinefunction(function), (
        "functions run on threads: an async one that blocks stops them all"
    )


def test_every_function_says_what_it_does() -> None:
    """A trigger's docstring is what an operator reads in the list of functions."""
    assert [name for name in functions() if not functions()[name].get_user_function().__doc__] == []


def test_cold_import_needs_nothing() -> None:
    """The app is indexed without settings, network or sandbox."""
    command = [sys.executable, "-I", "-c", COLD_IMPORT.format(root=str(ROOT))]

    done = subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert sorted(told["names"]) == every_function()
    assert told["sandbox"] == []


# -- triggers -----------------------------------------------------------------------------------------------------------


def test_http_endpoints() -> None:
    """The addresses that people and links use, with their methods."""
    found = {name: (trigger["route"], trigger["methods"]) for name, trigger in triggers("httpTrigger").items()}

    assert {name: found.get(name) for name in ROUTES} == ROUTES
    assert all(name in ROUTES or route.startswith("webhooks/") for name, (route, _) in found.items())


def test_http_endpoints_want_a_key() -> None:
    """Everything asks for a function key, except health and the receivers of webhooks."""
    open_to_all = {t["route"] for t in triggers("httpTrigger").values() if t["authLevel"].lower() != "function"}

    assert all(ANONYMOUS.fullmatch(route) for route in open_to_all)
    assert "health" in open_to_all


def test_every_queue_has_its_handlers() -> None:
    """Each queue that is sent to has one trigger and one for its poison queue, and no trigger listens in vain."""
    sent_to = {message.QUEUE for message in MESSAGES}
    listening = sorted(trigger["queueName"] for trigger in triggers("queueTrigger").values())

    assert listening == sorted([*sent_to, *(f"{queue}-poison" for queue in sent_to)])


def test_triggers_name_their_connection() -> None:
    """`connection` is the name of a setting, never its value."""
    assert {trigger["connection"] for trigger in triggers("queueTrigger").values()} == {"AzureWebJobsStorage"}


def test_timers_have_known_schedules() -> None:
    """The daily time is a setting that the example holds; a timer never fires just because an instance starts."""
    timers = triggers("timerTrigger")
    example = read_settings(ROOT / "local.settings.example.json")
    named = {name for trigger in timers.values() for name in re.findall(r"%(\w+)%", trigger["schedule"])}

    assert set(timers) == {"daily_sync", "poll"}
    assert timers["daily_sync"]["schedule"] == "%DAILY_SYNC_SCHEDULE%"
    assert named <= example.keys()
    assert not any(trigger.get("runOnStartup") for trigger in timers.values())


# -- host.json and what is deployed -------------------------------------------------------------------------------------


def test_host_json_is_what_messages_need() -> None:
    """Messages are ASCII JSON as they are; the poison queue has a last attempt to come after."""
    config = read_host_config(ROOT, {})
    raw = json.loads((ROOT / "host.json").read_text(encoding="utf-8"))

    assert raw["version"] == "2.0"
    assert config.extensions.queues.message_encoding == "none"
    assert config.extensions.http.route_prefix == "api"
    assert raw["extensionBundle"]["id"] == "Microsoft.Azure.Functions.ExtensionBundle"


def test_host_json_is_explained() -> None:
    """Each queue setting stands in the page on hosting, with the value that host.json has and a reason."""
    settings = json.loads((ROOT / "host.json").read_text(encoding="utf-8"))["extensions"]["queues"]
    page = (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `extensions\.queues\.(\w+)` \| (.+?) \| .+\|$", page, re.MULTILINE))

    assert rows == {name: _written(value) for name, value in settings.items()}


def _written(value: Any) -> str:
    """Return a setting's value as the page writes it: a TimeSpan in seconds, a word in code type."""
    if isinstance(value, str) and re.fullmatch(r"00:00:\d\d", value):
        return f"{int(value[-2:])} s"
    return f"`{value}`" if isinstance(value, str) else str(value)


def test_nothing_of_the_sandbox_is_deployed() -> None:
    """.funcignore keeps sandbox, tests, benchmarks and settings of this machine out of the package."""
    ignored = {line.strip().rstrip("/") for line in (ROOT / ".funcignore").read_text(encoding="utf-8").splitlines()}

    assert {"sandbox", "tests", "benchmarks", "local.settings.json", ".venv", "node_modules"} <= ignored
    assert not {"function_app.py", "sync", "shared", "web", "recipes", "host.json", "requirements.txt"} & ignored
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
