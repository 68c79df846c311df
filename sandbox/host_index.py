"""Loading `function_app.py` as Microsoft's Python worker does, with its refusals: one bad function, and the app has none.

The rules are those of the worker's loader (https://github.com/Azure/azure-functions-python-worker): every binding is a
parameter, every parameter is a binding or the context, annotations resolve and fit.
"""

import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import azure.functions as func
from azure.functions.meta import get_binding_registry

from sandbox.host_messages import FunctionFacts

SCRIPT_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_\-]*\.py")
SERVED_TRIGGERS = ("httpTrigger", "queueTrigger", "timerTrigger")
RETURN = "$return"
CONTEXT = "context"


class FunctionLoadError(RuntimeError):
    """A function, and with it the app, cannot be loaded."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot load the {name} function: {reason}")


@dataclasses.dataclass(frozen=True)
class LoadedFunction:
    """A function that passed all checks."""

    facts: FunctionFacts
    run: Callable[..., Any]
    argument: str  # name of the trigger's parameter
    annotation: Any  # of the trigger's parameter; None without one
    takes_context: bool
    is_async: bool
    returns: bool  # has a $return binding


def load_functions(app_dir: Path, script: str = "function_app.py") -> dict[str, LoadedFunction]:
    """Import the app's module from `sys.path` and return its functions by name; any exception means: no functions."""
    if not SCRIPT_NAME.fullmatch(script):
        raise ValueError(f"PYTHON_SCRIPT_FILE_NAME must be the name of a Python file, not {script!r}")
    if not (app_dir / script).is_file():
        raise FileNotFoundError(f"{app_dir / script} is missing")
    module = importlib.import_module(script.removesuffix(".py"))
    built = find_app(module).get_functions()  # a second call would find every name taken
    return {function.get_function_name(): check_function(function) for function in built}


def find_app(module: ModuleType) -> Any:
    """Return the module's one function app. Raises ValueError when there is none or more than one."""
    apps = [name for name, value in vars(module).items() if isinstance(value, func.FunctionRegister)]
    if not apps:
        raise ValueError(f"{module.__name__} has no function app at its top level")
    if len(apps) > 1:
        raise ValueError(f"{module.__name__} has more than one function app at its top level: {', '.join(apps)}")
    return getattr(module, apps[0])


def check_function(function: Any) -> LoadedFunction:
    """Hold a function's signature against its bindings. Raises FunctionLoadError."""
    name, run = function.get_function_name(), function.get_user_function()
    bindings = {binding["name"]: binding for binding in map(json.loads, function.get_raw_bindings())}
    trigger = bindings[function.get_trigger().name]
    if trigger["type"] not in SERVED_TRIGGERS:
        raise FunctionLoadError(name, f"the stand-in host serves no {trigger['type']}")
    if function.get_settings_dict("retry_policy"):
        raise FunctionLoadError(name, "the stand-in host follows no retry policy")
    parameters = set(inspect.signature(run).parameters)
    annotations = _resolve_annotations(name, run)
    returns = bindings.pop(RETURN, None)
    takes_context = CONTEXT in parameters and CONTEXT not in bindings
    if takes_context:
        parameters.discard(CONTEXT)
        _check_context(name, annotations.get(CONTEXT))
    if surplus := parameters - set(bindings):
        raise FunctionLoadError(name, f"parameters without a binding: {_names(surplus)}")
    if missing := set(bindings) - parameters:
        raise FunctionLoadError(name, f"bindings without a parameter: {_names(missing)}")
    for parameter, binding in bindings.items():
        if binding["name"] != trigger["name"]:
            raise FunctionLoadError(name, f"the stand-in host serves no {binding['type']} binding")
        _check_input(name, parameter, binding["type"], annotations)
    if returns is not None:
        _check_return(name, returns["type"], annotations)
    return LoadedFunction(
        facts=FunctionFacts(name, trigger),
        run=run,
        argument=trigger["name"],
        annotation=annotations.get(trigger["name"]),
        takes_context=takes_context,
        is_async=inspect.iscoroutinefunction(run),
        returns=returns is not None,
    )


def _resolve_annotations(name: str, run: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(run)
    except Exception as exc:
        raise FunctionLoadError(name, f"its annotations cannot be resolved: {exc}") from exc


def _check_context(name: str, annotation: Any) -> None:
    if annotation is not None and getattr(annotation, "__name__", "") != "Context":
        raise FunctionLoadError(name, f"the context parameter must be azure.functions.Context, not {annotation!r}")


def _check_input(name: str, parameter: str, kind: str, annotations: dict[str, Any]) -> None:
    if parameter not in annotations:
        return
    annotation = annotations[parameter]
    origin = typing.get_origin(annotation) or annotation
    if origin is func.Out:
        raise FunctionLoadError(name, f"binding {parameter} goes in, but its annotation is azure.functions.Out")
    if not isinstance(annotation, type):
        raise FunctionLoadError(name, f"binding {parameter} has an annotation that is no type: {annotation!r}")
    if annotation in (str, bytes):  # the worker's generic binding takes any payload as text
        return
    if not get_binding_registry().get(kind).check_input_type_annotation(annotation):
        raise FunctionLoadError(name, f"binding {parameter} of type {kind} cannot be {annotation.__name__}")


def _check_return(name: str, kind: str, annotations: dict[str, Any]) -> None:
    if "return" not in annotations:
        return
    annotation = annotations["return"]
    if not isinstance(annotation, type):
        raise FunctionLoadError(name, f"its return annotation is no type: {annotation!r}")
    if not get_binding_registry().get(kind).check_output_type_annotation(annotation):
        raise FunctionLoadError(name, f"its return annotation {annotation.__name__} does not fit binding type {kind}")


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))
