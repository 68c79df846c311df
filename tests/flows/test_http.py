"""The HTTP interface through the trigger functions: real request objects in, answers out."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import azure.functions as func
import pytest

import function_app
from shared.errors import StateError
from shared.state.rows import RunKind, RunRow, RunState
from tests.flows.world import RECIPE, RECIPIENT, Stage, World, new_world
from web import api

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FORM = "application/x-www-form-urlencoded"
NO_RUN = f"{RECIPE}-20260310T090000000-abcd"
SETTING_NAMES = ("AzureWebJobsStorage", "APP_URL", "DIGEST_KEYS", "MAIL__HOST", "ALLOWED_MAIL_DOMAINS")


@pytest.fixture
def app(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Let the triggers work on this test's own world."""
    monkeypatch.setattr(function_app, "_build_app", lambda: world.app)
    return world


@pytest.fixture(scope="module")
def idle_world(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with new_world(stage, tmp_path_factory.mktemp("recipes"), "tidlehttp") as made:
        yield made


@pytest.fixture
def idle(idle_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Let the triggers work on a world in which no run is started: what a refused request leaves behind."""
    monkeypatch.setattr(function_app, "_build_app", lambda: idle_world.app)
    yield idle_world
    assert list(idle_world.tables.query(RunRow, RECIPE)) == []


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the app without a single setting."""
    for name in SETTING_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(function_app, "configure_logging", lambda: None)  # pytest's handlers are not ours to change
    function_app._build_app.cache_clear()


def call(
    trigger: Any,
    params: dict[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    **route: str,
) -> func.HttpResponse:
    """Call a trigger function as the worker does."""
    request = func.HttpRequest(
        method, "http://localhost:7071/api/x", params=params, headers=headers, route_params=route, body=body
    )
    response: func.HttpResponse = trigger.build().get_user_function()(request)
    return response


def start(params: dict[str, str] | None = None, *, recipe: str = RECIPE, **facts: Any) -> func.HttpResponse:
    return call(function_app.start_sync, params, recipe=recipe, **facts)


def post(body: Any, kind: str = "application/json", params: dict[str, str] | None = None) -> func.HttpResponse:
    """Post a body to the start."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return start(params, method="POST", body=content, headers={"Content-Type": kind})


def data_of(response: func.HttpResponse) -> Any:
    return json.loads(response.get_body())


# -- starting ---------------------------------------------------------------------------------------------------------


def test_a_client_gets_json_with_run_and_status_link(app: World) -> None:
    """A start answers 202 at once: run id, status link and the sentence that the background job has started."""
    response = start({"Email": RECIPIENT})

    answer = data_of(response)
    assert response.status_code == 202
    assert response.headers["Content-Type"] == "application/json"
    assert answer["status"] == f"http://localhost:7071/api/runs/{answer['run_id']}"
    assert "background job has started" in answer["message"]
    assert app.run_row(answer["run_id"]).mail_to == [RECIPIENT]
    assert app.run_row(answer["run_id"]).window == "yesterday"


def test_a_browser_gets_plain_text(app: World) -> None:
    """What a person sees in a browser is text that nobody takes for anything else."""
    response = start({"email": RECIPIENT}, headers=BROWSER)

    text = response.get_body().decode()
    run_id = app.runs()[0].run_id
    assert response.status_code == 202
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "background job has started" in text
    assert run_id in text
    assert f"http://localhost:7071/api/runs/{run_id}" in text


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param({"Email": RECIPIENT, "window": "last_days:3"}, "application/json", id="json"),
        pytest.param({"EMAIL": RECIPIENT, "Window": "last_days:3"}, "application/json; charset=utf-8", id="charset"),
        pytest.param(urlencode({"email": RECIPIENT, "window": "last_days:3"}).encode(), FORM, id="form"),
    ],
)
def test_a_start_may_be_posted(app: World, body: Any, kind: str) -> None:
    """Parameters come in the body as well as in the query, whatever the case of their names."""
    response = post(body, kind)

    assert response.status_code == 202
    assert [run.window for run in app.runs()] == ["last_days:3"]


def test_query_and_body_complete_each_other(app: World) -> None:
    """A function key and the address in the query, the rest in the body; the same said twice is fine."""
    response = post({"preview": True, "email": RECIPIENT}, params={"code": "key", "Email": RECIPIENT})

    assert response.status_code == 202
    assert app.runs()[0].preview


def test_ids_may_be_a_list(app: World) -> None:
    """A JSON list of ids is the same as ids with commas between them."""
    case_ids = [app.add_case(), app.add_case()]

    response = post({"email": RECIPIENT, "ids": case_ids})

    assert response.status_code == 202
    assert app.runs()[0].ids == sorted(case_ids)


def test_a_repeated_get_joins_the_run(app: World) -> None:
    """Browsers repeat a GET: the second one gets the first one's run, a second address gets the mail too."""
    first = data_of(start({"Email": RECIPIENT}))
    second = data_of(start({"Email": RECIPIENT}))
    third = data_of(start({"Email": "grace@example.com"}))

    assert first["run_id"] == second["run_id"] == third["run_id"]
    assert [answer["joined"] for answer in (first, second, third)] == [False, True, True]
    assert "running already" in second["message"]
    assert app.run_row(first["run_id"]).mail_to == [RECIPIENT, "grace@example.com"]


def test_another_window_is_refused_and_names_the_run(app: World) -> None:
    """One windowed run per recipe: another window is 409 naming the run in progress."""
    run_id = data_of(start({"Email": RECIPIENT}))["run_id"]

    response = start({"Email": RECIPIENT, "window": "last_days:2"})

    assert response.status_code == 409
    assert run_id in data_of(response)["message"]
    assert len(app.runs()) == 1


def test_only_get_and_post_start(app: World) -> None:
    """A HEAD, as link checkers send it, has no route: it starts nothing."""
    (trigger,) = [
        binding
        for binding in function_app.start_sync.build().get_bindings_dict()["bindings"]
        if binding["type"] == "httpTrigger"
    ]

    methods = {getattr(method, "value", method) for method in trigger["methods"]}

    assert methods == {"GET", "POST"}


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "code", "says"),
    [
        pytest.param({}, "email_missing", "email address is missing", id="none"),
        pytest.param({"Email": ""}, "email_missing", "email address is missing", id="empty"),
        pytest.param({"Email": "ada"}, "email_malformed", "not an email address", id="word"),
        pytest.param({"Email": "ada@example"}, "email_not_allowed", "example.com", id="no-domain"),
        pytest.param({"Email": "Ada <ada@example.com>"}, "email_malformed", "write it plainly", id="with-name"),
        pytest.param({"Email": "a@example.com\r\nBcc: b@example.com"}, "email_several", "exactly one", id="header"),
        pytest.param({"Email": "a@example.com\r\nX-Other: 1"}, "email_malformed", "not an email", id="line"),
        pytest.param({"Email": "a@example.com,b@example.com"}, "email_several", "exactly one", id="several"),
        pytest.param({"Email": "a@example.com", "email": "b@example.com"}, "bad_parameter", "twice", id="twice"),
        pytest.param({"Email": "eve@elsewhere.example"}, "email_not_allowed", "example.com", id="foreign"),
        pytest.param({"Email": "eve@example.com.evil.example"}, "email_not_allowed", "example.com", id="longer"),
    ],
)
def test_a_bad_address_is_told_so(idle: World, params: dict[str, str], code: str, says: str) -> None:
    """400 says what is wrong with the address and never repeats it."""
    response = start(params)

    answer = data_of(response)
    assert (response.status_code, answer["error"]) == (400, code)
    assert says in answer["message"]
    assert all(value not in answer["message"] for value in params.values() if value)


def test_a_browser_is_told_in_plain_text(idle: World) -> None:
    """A person reads a sentence, not JSON."""
    response = start({}, headers=BROWSER)

    assert response.status_code == 400
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.get_body().decode().startswith("An email address is missing")


@pytest.mark.parametrize("name", ["incident_to_case", "<script>alert(1)</script>", "x\r\nSet-Cookie: a=b", "\ud800"])
def test_an_unknown_recipe_gets_the_list(idle: World, name: str) -> None:
    """404 names the recipes that there are; what was asked for reaches no header and no HTML."""
    for headers in ({}, BROWSER):
        response = start({"Email": RECIPIENT}, recipe=name, headers=headers)

        assert response.status_code == 404
        assert RECIPE in response.get_body().decode()
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "html" not in response.headers["Content-Type"]
        assert set(response.headers.keys()) == {"Content-Type", "X-Content-Type-Options", "Cache-Control"}


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"window": "fortnight"}, id="word"),
        pytest.param({"window": "last_days:0"}, id="no-days"),
        pytest.param({"window": "yesterday", "ids": "a"}, id="mixed"),
        pytest.param({"from": "2026-03-05", "to": "2026-03-01"}, id="backwards"),
        pytest.param({"from": "2026-03-05T06:00:00"}, id="no-zone"),
        pytest.param({"from": "05/03/2026"}, id="other-form"),
        pytest.param({"from": "0001-01-01"}, id="no-such-time-in-storage"),
        pytest.param({"to": "9999-12-31"}, id="no-next-day"),
        pytest.param({"ids": ","}, id="no-id"),
        pytest.param({"ids": ",".join(str(number) for number in range(600))}, id="many-ids"),
        pytest.param({"ids": "x" * 200}, id="long-id"),
        pytest.param({"window": "x" * 10_000}, id="long"),
        pytest.param({"window": "\ud800"}, id="half-character"),
    ],
)
def test_a_bad_window_gets_the_allowed_forms(idle: World, params: dict[str, str]) -> None:
    """400 says what is wrong and, where it is not a matter of length, the forms that are allowed."""
    for headers in ({}, BROWSER):
        response = start({"Email": RECIPIENT} | params, headers=headers)

        text = response.get_body().decode()
        assert response.status_code == 400
        assert "last_days:N" in text or "one start takes 500" in text
        assert len(text) < 1000


@pytest.mark.parametrize(
    ("params", "says"),
    [
        pytest.param({"windows": "yesterday"}, "'windows' means nothing here", id="unknown"),
        pytest.param({"preview": "maybe"}, "preview takes true or false", id="flag"),
        pytest.param({"preview": "true", "verify": "true"}, "preview and verify do not go together", id="two-kinds"),
        pytest.param({"Email": ""}, "as in Email=you@your-company.com", id="no-email"),
        pytest.param({"from": "2026-03-05", "window": "today"}, "window and from do not go together", id="two-windows"),
        pytest.param({"from": "2100-01-01"}, "lies in the future", id="future"),
    ],
)
def test_a_parameter_that_means_nothing_is_refused(idle: World, params: dict[str, str], says: str) -> None:
    """A misspelt parameter is not silently left out."""
    response = start({"Email": RECIPIENT} | params)

    assert response.status_code == 400
    assert says in data_of(response)["message"]


@pytest.mark.parametrize("name", ["window", "from", "to", "ids", "preview", "verify"])
def test_a_parameter_without_a_value_starts_nothing(idle: World, name: str) -> None:
    """`ids=` of a script whose variable is empty must not become a run over yesterday; the host hands no empty one on."""
    address = f"http://localhost:7071/api/sync/{RECIPE}?Email={RECIPIENT}&{name}="
    request = func.HttpRequest("GET", address, params={"Email": RECIPIENT}, route_params={"recipe": RECIPE}, body=b"")

    response: func.HttpResponse = function_app.start_sync.build().get_user_function()(request)

    assert response.status_code == 400
    assert data_of(response)["message"] == f"{name} has no value: give it one, or leave it out."


def test_a_repair_without_a_value_repairs_nothing(app: World) -> None:
    """`retry?ids=` is not a retry of everything."""
    run_id = app.start().run_id
    address = f"http://localhost:7071/api/runs/{run_id}/retry?ids="
    request = func.HttpRequest("POST", address, route_params={"run_id": run_id, "action": "retry"}, body=b"")

    response: func.HttpResponse = function_app.change_run.build().get_user_function()(request)

    assert response.status_code == 400
    assert [row.run_id for row in app.runs()] == [run_id]


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        pytest.param(b"email=ada@example.com", "text/plain", 415, "wrong_content_type", id="text"),
        pytest.param(b"email=ada@example.com", "", 415, "wrong_content_type", id="none"),
        pytest.param(b"--x--", "multipart/form-data; boundary=x", 415, "wrong_content_type", id="multipart"),
        pytest.param(b"x" * (api.MAX_BODY_BYTES + 1), "application/json", 413, "body_too_large", id="oversized"),
        pytest.param(b"{'email': 1}", "application/json", 400, "bad_body", id="no-json"),
        pytest.param(b"\xff\xfe", "application/json", 400, "bad_body", id="no-text"),
        pytest.param(b'["email"]', "application/json", 400, "bad_body", id="list"),
        pytest.param(b'[["email", "ada@example.com"]]', "application/json", 400, "bad_body", id="pairs"),
        pytest.param(b'"email"', "application/json", 400, "bad_body", id="string"),
        pytest.param(b'{"email": {"a": 1}}', "application/json", 400, "bad_body", id="object"),
        pytest.param(b'{"ids": [{"a": 1}]}', "application/json", 400, "bad_body", id="list-of-objects"),
        pytest.param(b"[" * 60_000, "application/json", 400, "bad_body", id="deep"),
        pytest.param(b'{"ids": "a", "ids": "b"}', "application/json", 400, "bad_parameter", id="json-twice"),
        pytest.param(b"email=a@example.com&email=b@example.com", FORM, 400, "bad_parameter", id="form-twice"),
        pytest.param(b"email", FORM, 400, "bad_body", id="no-form"),
        pytest.param(b'{"email": null}', "application/json", 400, "email_missing", id="null"),
        pytest.param(b"{}", "application/json", 400, "email_missing", id="empty"),
    ],
)
def test_a_bad_body_is_refused(idle: World, body: bytes, kind: str, status: int, code: str) -> None:
    """Content type, size and form are each refused with their own status and a sentence."""
    response = post(body, kind)

    answer = data_of(response)
    assert (response.status_code, answer["error"]) == (status, code)
    assert answer["message"].endswith(".")


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_shown_without_addresses(app: World) -> None:
    """State, progress, counts and mail of a run; its results by outcome; never a recipient."""
    app.add_case()
    app.add_case(title="")
    run_id = app.sync().run_id

    run = call(function_app.get_run, run_id=run_id)
    results = call(function_app.list_results, {"outcome": "failed"}, run_id=run_id)
    runs = call(function_app.list_runs, {"limit": "1"})

    assert (data_of(run)["state"], data_of(run)["counts"]) == ("completed_with_failures", {"created": 1, "failed": 1})
    assert data_of(run)["mail"] == {"state": "sent", "sends": 1, "undelivered": 0, "problem": ""}
    assert [result["reason"] for result in data_of(results)["results"]] == ["case_without_title"]
    assert [entry["run_id"] for entry in data_of(runs)["runs"]] == [run_id]
    assert all(b"@" not in response.get_body() for response in (run, results, runs))


def test_results_that_are_cut_say_where_the_next_ones_are(app: World) -> None:
    """Whoever follows `next` until there is none has seen every result once, in the outcome that was asked for."""
    for _ in range(3):
        app.add_case(title="")
    app.add_case()
    run_id = app.sync().run_id

    seen, asked = [], {"outcome": "failed", "limit": "2"}
    while asked:
        answer = data_of(call(function_app.list_results, asked, run_id=run_id))
        seen.append([result["key"] for result in answer["results"]])
        asked = dict(parse_qsl(urlsplit(answer["next"] or "").query))

    assert [len(keys) for keys in seen] == [2, 1]
    assert len({key for keys in seen for key in keys}) == 3
    assert data_of(call(function_app.list_results, run_id=run_id))["next"] is None


@pytest.mark.parametrize("run_id", [NO_RUN, "nothing", "../x", "a" * 2000, "\ud800"])
@pytest.mark.parametrize("trigger", ["get_run", "list_results", "confirm", "cancel"])
def test_a_run_that_is_not_there_is_404(idle: World, run_id: str, trigger: str) -> None:
    """Every endpoint of a run says that there is no such run."""
    if trigger in ("confirm", "cancel"):
        response = call(function_app.change_run, method="POST", run_id=run_id, action=trigger)
    else:
        response = call(getattr(function_app, trigger), run_id=run_id)

    assert response.status_code == 404
    assert "There is no run" in data_of(response)["message"]
    assert len(response.get_body()) < 1000


@pytest.mark.parametrize(
    ("trigger", "params", "code"),
    [
        pytest.param("list_results", {"outcome": "wrong"}, "bad_outcome", id="outcome"),
        pytest.param("list_results", {"limit": "many"}, "bad_parameter", id="limit"),
        pytest.param("list_results", {"outcom": "failed"}, "bad_parameter", id="misspelt"),
        pytest.param("list_runs", {"limit": "-1"}, "bad_parameter", id="negative"),
        pytest.param("list_runs", {"limit": "٣"}, "bad_parameter", id="other-digits"),
        pytest.param("list_runs", {"limit": "0"}, "bad_parameter", id="none"),
        pytest.param("list_results", {"limit": "0"}, "bad_parameter", id="no-results"),
        pytest.param("list_runs", {"recipe": "nothing"}, "unknown_recipe", id="recipe"),
    ],
)
def test_bad_questions_are_told_so(app: World, trigger: str, params: dict[str, str], code: str) -> None:
    """An outcome, a number or a recipe that is none gets a sentence."""
    run_id = app.start().run_id

    response = call(getattr(function_app, trigger), params, run_id=run_id)

    assert response.status_code == (404 if code == "unknown_recipe" else 400)
    assert data_of(response)["error"] == code


def test_confirming_and_cancelling_need_the_right_state(app: World) -> None:
    """Only a waiting run is confirmed, only a living one is cancelled; anything else is 409, an unknown action 404."""
    run_id = app.start().run_id

    confirm = call(function_app.change_run, method="POST", run_id=run_id, action="confirm")
    cancel = call(function_app.change_run, method="POST", run_id=run_id, action="cancel")
    again = call(function_app.change_run, method="POST", run_id=run_id, action="cancel")
    unknown = call(function_app.change_run, method="POST", run_id=run_id, action="explode")

    assert (confirm.status_code, data_of(confirm)["error"]) == (409, "nothing_to_confirm")
    assert (cancel.status_code, data_of(cancel)["state"]) == (200, "cancelled")
    assert (again.status_code, data_of(again)["error"]) == (409, "run_ended")
    assert (unknown.status_code, data_of(unknown)["error"]) == (404, "unknown_action")


@pytest.mark.parametrize("action", ["confirm", "cancel"])
def test_confirming_and_cancelling_take_no_parameters(app: World, action: str) -> None:
    """`confirm?ids=…` confirms all that is held, so it is refused: nobody takes it for a part."""
    run_id = app.start().run_id

    response = call(function_app.change_run, {"ids": "a"}, method="POST", run_id=run_id, action=action)

    assert response.status_code == 400
    assert data_of(response)["message"] == "'ids' means nothing here; this call takes no parameters."
    assert not app.run_row(run_id).state.ended


def test_a_day_of_webhooks_is_not_cancelled(app: World) -> None:
    """Its events would be worked all the same, and its failures would be told in no digest."""
    day = app.start()
    app.tables.update(
        RunRow, RECIPE, day.row_key, lambda row: row.model_copy(update={"kind": RunKind.EVENTS}) if row else None
    )

    response = call(function_app.change_run, method="POST", run_id=day.run_id, action="cancel")

    assert (response.status_code, data_of(response)["error"]) == (409, "not_cancellable")
    assert not app.run_row(day.run_id).state.ended


@pytest.mark.parametrize("kind", ["preview", "verification"])
def test_a_start_says_that_it_writes_nothing(app: World, kind: str) -> None:
    """Who asked for a preview or a verification reads that it is one."""
    response = start({"Email": RECIPIENT, "preview" if kind == "preview" else "verify": "true"})

    assert f"has started as a {kind}, which writes nothing." in data_of(response)["message"]


def test_a_guarded_run_is_confirmed_once(app: World) -> None:
    """A run that asks goes on after its confirmation, and a second confirmation finds nothing to do."""
    app.change_settings(max_new_users=0)
    app.add_case(contact=app.add_contact("new@customer.example"))
    run_id = app.start().run_id
    app.pump.run(for_s=60)
    assert data_of(call(function_app.get_run, run_id=run_id))["held"] == {"for": "new_users", "count": 1}

    first = call(function_app.change_run, method="POST", run_id=run_id, action="confirm")
    second = call(function_app.change_run, method="POST", run_id=run_id, action="confirm")
    app.pump.run()

    assert (first.status_code, second.status_code) == (200, 409)
    assert app.run_row(run_id).state in (RunState.COMPLETED, RunState.COMPLETED_WITH_WARNINGS)
    assert len(app.users("new@customer.example")) == 1


# -- health and faults of our own ---------------------------------------------------------------------------------------


def test_health_tells_nothing_but_that_it_is_well(idle: World) -> None:
    """Anyone may ask, so nothing of the installation is told."""
    response = call(function_app.health)

    assert response.status_code == 200
    assert data_of(response) == {"status": "ok"}


def test_health_hides_what_is_wrong_with_the_settings(unconfigured: None) -> None:
    """Without its settings the app is not healthy, and an anonymous caller learns no more."""
    response = call(function_app.health)

    assert response.status_code == 503
    assert data_of(response) == {"status": "not configured"}


@pytest.mark.parametrize("trigger", ["start_sync", "list_runs", "get_run", "list_results", "change_run"])
def test_bad_settings_are_named_behind_the_key(unconfigured: None, trigger: str) -> None:
    """Whoever has the function key reads all names that are missing, in one message."""
    response = call(getattr(function_app, trigger), {"Email": RECIPIENT}, recipe=RECIPE, run_id="x", action="cancel")

    assert response.status_code == 500
    assert all(name in data_of(response)["message"] for name in SETTING_NAMES)


def test_storage_that_refuses_is_503(idle: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may try again later; the anonymous one learns nothing of the storage."""

    def refuse(*_: Any, **__: Any) -> None:
        raise StateError("Storage account concordprod refused.")

    monkeypatch.setattr(idle.queues, "length", refuse)
    monkeypatch.setattr(idle.tables, "get", refuse)

    health, run = call(function_app.health), call(function_app.get_run, run_id=NO_RUN)

    assert (health.status_code, data_of(health)) == (503, {"status": "storage unavailable"})
    assert (run.status_code, data_of(run)["error"]) == (503, "storage_error")


def test_a_fault_of_our_own_is_told_without_its_text(idle: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception becomes a sentence; what it holds stays in the log."""

    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("canary@customer.example")

    monkeypatch.setattr(idle.queues, "length", explode)
    monkeypatch.setattr(idle.tables, "get", explode)

    health, run = call(function_app.health), call(function_app.get_run, run_id=NO_RUN)

    assert (health.status_code, data_of(health)) == (503, {"status": "error"})
    assert run.status_code == 500
    assert "canary" not in run.get_body().decode()
