"""Hostile requests to the HTTP interface: paths, names, parameters, sizes; and what an answer gives away."""

import json
from collections.abc import Iterator
from typing import Any

import azure.functions as func
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import function_app
from shared.state.rows import RunRow
from tests.flows.world import RECIPE, RECIPIENT, Stage, World, new_world
from tests.security.payloads import HEADERS, MARKUP, PATHS
from web import api

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
RUN_TRIGGERS = ("get_run", "list_results", "confirm", "cancel", "retry", "skip", "recreate", "unlink")
BOUNDED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EXPECTED = {400, 404, 409, 413, 415}


@pytest.fixture(scope="module")
def idle(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Let the triggers work on a world in which, whatever is asked, no run starts."""
    with (
        new_world(stage, tmp_path_factory.mktemp("recipes"), "tidlesecurity") as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(function_app, "_build_app", lambda: made.app)
        yield made
        assert list(made.tables.scan(RunRow)) == []


def call(
    trigger: str,
    params: dict[str, str] | None = None,
    method: str = "GET",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    **route: str,
) -> func.HttpResponse:
    """Call a trigger function as the worker does."""
    request = func.HttpRequest(
        method, "http://localhost/api/x", params=params, headers=headers, route_params=route, body=body
    )
    return getattr(function_app, trigger).build().get_user_function()(request)


def about_run(trigger: str, run_id: str, params: dict[str, str] | None = None) -> func.HttpResponse:
    """Ask something about a run, or something of it."""
    if trigger in ("get_run", "list_results"):
        return call(trigger, params, run_id=run_id)
    return call("change_run", params, method="POST", run_id=run_id, action=trigger)


def is_harmless(answer: func.HttpResponse) -> bool:
    """Tell whether an answer is a short refusal, of a type that no browser runs, with no header of the caller's making."""
    names = {name.lower() for name in answer.headers.keys()}  # noqa: SIM118  # not a dict
    body = answer.get_body()
    kind = answer.headers["Content-Type"]
    body.decode()
    return (
        answer.status_code in EXPECTED
        and names == {"content-type", "x-content-type-options", "cache-control"}
        and (kind == JSON or kind.startswith("text/plain"))
        and len(body) < 2000
        and b"Traceback" not in body
    )


# -- paths and names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS, ids=range(len(PATHS)))
@pytest.mark.parametrize("accept", ["", "text/html"])
def test_odd_recipe_names_are_unknown(idle: World, name: str, accept: str) -> None:
    """A recipe is looked up among those that were loaded; no name becomes a path, a key or markup."""
    answer = call("start_sync", {"Email": RECIPIENT}, headers={"Accept": accept}, recipe=name)
    listed = call("list_runs", {"recipe": name} if name else {"limit": "x"})
    event = call("receive_webhook", method="POST", recipe=name)

    assert (answer.status_code, event.status_code) == (404, 404)
    assert is_harmless(answer)
    assert is_harmless(listed)
    assert is_harmless(event)


@pytest.mark.parametrize("run_id", [*PATHS, *MARKUP, *HEADERS], ids=range(len([*PATHS, *MARKUP, *HEADERS])))
@pytest.mark.parametrize("trigger", RUN_TRIGGERS)
def test_odd_run_ids_are_unknown(idle: World, trigger: str, run_id: str) -> None:
    """A run id has one form; what has another one reaches no table."""
    before = idle.tables.operations.total()

    answer = about_run(trigger, run_id)

    after = idle.tables.operations.total()
    assert answer.status_code == 404
    assert is_harmless(answer)
    assert after == before


@BOUNDED
@given(run_id=st.text(max_size=80), action=st.text(max_size=30), recipe=st.text(max_size=40))
def test_no_path_breaks_anything(idle: World, run_id: str, action: str, recipe: str) -> None:
    """Any text in any place of any path gets a refusal."""
    answers = [
        call("get_run", run_id=run_id),
        call("list_results", {"outcome": action, "limit": recipe}, run_id=run_id),
        call("change_run", method="POST", run_id=run_id, action=action),
        call("start_sync", {"Email": RECIPIENT}, recipe=recipe),
    ]

    assert all(is_harmless(answer) for answer in answers)


# -- parameters and bodies ---------------------------------------------------------------------------------------------------

names = st.one_of(
    st.sampled_from(["email", "Email", "EMAIL", "window", "from", "to", "ids", "preview", "verify", "code"]),
    st.text(max_size=20),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=60))
values = st.recursive(leaves, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)))  # fmt: skip


@BOUNDED
@given(params=st.dictionaries(names, st.one_of(st.sampled_from([*HEADERS, *PATHS]), st.text(max_size=60)), max_size=5))
def test_no_query_breaks_anything(idle: World, params: dict[str, str]) -> None:
    """Any parameters: a refusal with a sentence."""
    params = {name: value for name, value in params.items() if name.lower() != "email"} | {
        "Email": "nobody@elsewhere.example"
    }

    answer = call("start_sync", params, recipe=RECIPE)

    assert is_harmless(answer)


@BOUNDED
@given(st.dictionaries(names, values, max_size=5))
def test_no_json_body_breaks_anything(idle: World, body: dict[str, Any]) -> None:
    """Any object, however nested: a refusal with a sentence."""
    content = json.dumps(body | {"email": "nobody@elsewhere.example"}).encode()

    answer = call("start_sync", method="POST", body=content, headers={"Content-Type": JSON}, recipe=RECIPE)

    assert is_harmless(answer)


@BOUNDED
@given(
    st.binary(max_size=300),
    st.sampled_from([JSON, FORM, "text/plain", "", "application/json; charset=utf-16", "APPLICATION/JSON"]),
)
def test_no_bytes_break_anything(idle: World, body: bytes, kind: str) -> None:
    """Any bytes under any type: a refusal with a sentence."""
    answer = call("start_sync", {"Email": "x"}, "POST", body, {"Content-Type": kind}, recipe=RECIPE)

    assert is_harmless(answer)


DEEP = {
    "lists": b"[" * 65_000,
    "objects": b'{"a":' * 13_000,
    "closed": b"[" * 30_000 + b"]" * 30_000,
    "inside": b'{"ids":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "number": b'{"ids":' + b"9" * 60_000 + b"}",
    "exponent": b'{"ids":1e999999999}',
    "names": b"{" + b",".join(b'"k%d":1' % number for number in range(5000)) + b"}",
    "escapes": b'{"email":"' + b"\\u0000" * 5000 + b'"}',
    "surrogate": b'{"email":"\\ud800@example.com"}',
    "pairs": b"&".join(b"k%d=1" % number for number in range(6000)),
    "too large": b" " * (api.MAX_BODY_BYTES + 1),
}


@pytest.mark.parametrize("kind", [JSON, FORM])
@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP.keys())
@pytest.mark.parametrize("trigger", ["start", "retry"])
def test_deep_and_giant_bodies_are_refused(idle: World, trigger: str, body: bytes, kind: str) -> None:
    """Depth, size and number end in a refusal; the answer to five thousand names is no longer than others."""
    headers = {"Content-Type": kind}
    if trigger == "start":
        answer = call("start_sync", method="POST", body=body, headers=headers, recipe=RECIPE)
    else:
        answer = call("change_run", method="POST", body=body, headers=headers, run_id="x", action="retry")

    assert is_harmless(answer)


@pytest.mark.parametrize(
    "params",
    [
        {"Email": RECIPIENT, "email": "eve@example.com"},
        {"Email": RECIPIENT, "EMAIL": "eve@evil.example"},
        {"Email": f"{RECIPIENT},eve@example.com"},
        {"Email": f"{RECIPIENT}\r\nBcc: eve@example.com"},
        {"Email": "ada@example.com@evil.example"},
        {"Email": "ada@evil.example/example.com"},
        {"Email": '"ada@evil.example"@x@example.com'},
        {"Email": "ada@example.com.evil.example"},
        {"Email": "ada@еxample.com"},
        {"Email": "ada@example.com\x00"},
        {"Email": "<ada@example.com>"},
    ],
)
def test_mail_goes_to_one_plain_allowed_address(idle: World, params: dict[str, str]) -> None:
    """Doubled, joined, hidden or look-alike addresses start nothing."""
    answer = call("start_sync", params, recipe=RECIPE)

    assert answer.status_code == 400
    assert is_harmless(answer)


# -- repairs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [{"id": "a"}, {"ids": ""}, {"ids": " , "}, {"ids": "a", "IDS": "b"}, {"ids": "a", "all": "true"}],
    ids=["misspelt", "empty", "commas", "twice", "more"],
)
@pytest.mark.parametrize("action", ["retry", "skip", "recreate", "unlink"])
def test_a_repair_of_some_never_becomes_one_of_all(
    world: World, monkeypatch: pytest.MonkeyPatch, action: str, params: dict[str, str]
) -> None:
    """A misspelt, empty or doubled list of ids is refused: it does not silently mean every failed record."""
    monkeypatch.setattr(function_app, "_build_app", lambda: world.app)
    world.add_case(title="")
    run = world.sync()

    answer = about_run(action, run.run_id, params)

    assert answer.status_code == 400
    assert len(world.open_keys()) == 1
    assert len(world.runs()) == 1
