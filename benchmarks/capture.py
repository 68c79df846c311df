"""What the stub cannot know by itself, taken from the strict simulators: every schema answer, and the shape of a case."""

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import requests

import sandbox.dynamics365_records as dynamics365_records
from sandbox.dynamics365 import Dynamics365
from sandbox.dynamics365_login import EntraLogin
from sandbox.servicenow import ServiceNow
from sandbox.simulator import serve_in_thread
from shared.clients.system import Changed
from shared.settings import load_settings
from sync.app import build_app
from sync.checks import validate

RECIPE = "case_to_incident"
SCHEMA = "/EntityDefinitions|/sys_db_object|/sys_dictionary|/sys_choice"


def capture(env: Mapping[str, str], login: EntraLogin, crm: Dynamics365, login_url: str, path: Path) -> None:
    """Let our own clients ask the simulators all that a run asks about schemas, and keep the answers in a file.

    `env` holds working storage settings; the two systems' addresses are replaced.
    """
    desk = ServiceNow()
    dynamics365_records.seed(crm, 60)
    with serve_in_thread(crm, desk) as (crm_port, desk_port):
        crm_url, desk_url = f"http://localhost:{crm_port}", f"http://localhost:{desk_port}"
        own = {
            "CONNECTIONS__DYNAMICS365__URL": crm_url,
            "CONNECTIONS__SERVICENOW__URL": desk_url,
            "CONNECTIONS__DYNAMICS365__AUTHORITY": login_url,
        }
        app = build_app(load_settings(dict(env) | own))
        flow = app.flow(RECIPE)
        validate(flow.recipe, lambda connection, record: app.system(connection).describe(record))
        flow.source.fetch_page(flow.recipe.source.record, flow.recipe.read_paths(), Changed(None, None, {}), None)
        bearer = {"Authorization": f"Bearer {login.tokens.issue(crm_url)}", "OData-Version": "4.0"}
        basic = (env["CONNECTIONS__SERVICENOW__USER"], env["CONNECTIONS__SERVICENOW__PASSWORD"])
        answers = {}
        for entry in [*crm.requests("GET", SCHEMA)]:
            answers[unquote(entry.target)] = _get(crm_url + entry.target, headers=bearer)
        for entry in [*desk.requests("GET", SCHEMA)]:
            answers[unquote(entry.target)] = _get(desk_url + entry.target, auth=basic)
        listed = json.loads(_get(crm_url + crm.requests("GET", "/incidents")[-1].target, headers=bearer))["value"]
    case = next(case for case in listed if case.get("customerid_contact") and case.get("owninguser"))
    case |= {"statecode": 0, "owningteam": None, "caseorigincode": 2, "prioritycode": 2}
    path.write_text(json.dumps({"answers": answers, "case": case}))


def _get(url: str, **how: object) -> str:
    answer = requests.get(url, timeout=30, **how)  # type: ignore[arg-type]  # passed through
    answer.raise_for_status()
    return answer.text
