"""What a person and a test see and change in the simulated environment, beside the Web API."""

import re

import pytest

from tests.sandbox.dynamics365_caller import ACME, ADA, TEAM, add_case, served

NASTY = "<script>alert('x')</script> & \"javascript:\""


@pytest.fixture
def world():
    with served() as caller:
        yield caller


def html(world, path: str) -> str:
    response = world.session.get(world.origin + path, timeout=10)
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    return response.text


def test_overview_shows_newest_first_without_foreign_assets(world):
    """Cases, contacts and accounts stand on one page that needs nothing from elsewhere and works on a phone."""
    add_case(world.sim, "Old one")
    world.sim.clock.advance(60)
    add_case(world.sim, NASTY, ownerid=("team", TEAM), prioritycode=99)

    text = html(world, "/")

    assert text.index("alert(") < text.index("Old one")
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;javascript:&quot;" in text
    assert "unknown option (99)" in text
    assert "width=device-width" in text
    assert not re.search(r"(src|href)=\"https?:", text)
    assert all(name in text for name in ("Support EMEA", "Ada Quill", "Acme", "CAS-"))


def test_search_narrows_the_lists(world):
    """The search box finds by number, title, name and email."""
    add_case(world.sim, "Find me")
    add_case(world.sim, "Not me")

    text = html(world, "/?q=FIND")

    assert "Find me" in text
    assert "Not me" not in text


def test_record_page_has_the_vendors_address(world):
    """/main.aspx shows one record; braces around the id are taken; an unknown one is 404."""
    case = add_case(world.sim, NASTY)

    text = html(world, f"/main.aspx?etn=incident&pagetype=entityrecord&id={{{case.upper()}}}")
    missing = world.session.get(f"{world.origin}/main.aspx?etn=incident&pagetype=entityrecord&id={ADA}", timeout=10)

    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert f"etn=contact&amp;pagetype=entityrecord&amp;id={ADA}" in text
    assert missing.status_code == 404


def save(world, entity: str, row_id: str, **form):
    return world.session.post(
        f"{world.origin}/_sandbox/form/{entity}/{row_id}", data=form, allow_redirects=False, timeout=10
    )


def test_form_changes_what_differs(world, monkeypatch):
    """A saved form writes only the fields that differ, as the person."""
    heard = []
    monkeypatch.setattr(
        world.sim.store, "changed", lambda *event: heard.append((event, world.sim.store.actor.by_person))
    )
    form = {
        "firstname": "Ada",
        "lastname": "Quill",
        "telephone1": "+44 1",
        "emailaddress1": "ada@acme.example",
        "jobtitle": "",
    }

    response = save(world, "contact", ADA, **form)

    assert response.status_code == 303
    assert heard[0][0][3] == ["telephone1", "modifiedon", "modifiedby"]
    assert heard[0][1] is True


def test_account_has_a_form_too(world):
    """Numbers are numbers; what is none is explained, and nothing is written."""
    changed = save(world, "account", ACME, name="Acme Ltd", revenue="1250000.5", numberofemployees="7", sic="7372")
    refused = [
        save(world, "account", ACME, name="Lost", **{field: text})
        for field, text in (("revenue", "much"), ("revenue", "nan"), ("numberofemployees", "1.5"), ("revenue", "-1"))
    ]
    [row] = world.sim.rows("account")

    assert (changed.status_code, [response.status_code for response in refused]) == (303, [400] * 4)
    assert "Annual revenue is a number" in refused[0].text
    assert (row["name"], row["revenue"], row["numberofemployees"], row["sic"]) == ("Acme Ltd", 1250000.5, 7, "7372")
    assert 'value="1250000.5"' in html(world, f"/main.aspx?etn=account&id={ACME}")


def test_contact_changes_its_company_and_state(world):
    """A company is chosen from those there are, or none; a contact can be made inactive."""
    other = world.sim.insert("account", name="Other <b>")
    shown = html(world, f"/main.aspx?etn=contact&id={ADA}")

    moved = save(world, "contact", ADA, parentcustomerid=f"account:{other}", statecode="1", address1_city="Malmö")
    wrong = save(world, "contact", ADA, parentcustomerid=f"account:{ADA}")
    row = next(row for row in world.sim.rows("contact") if row["contactid"] == ADA)
    left = save(world, "contact", ADA, parentcustomerid="")

    assert f'<option value="account:{ACME}" selected>Acme</option>' in shown
    assert "Other &lt;b&gt;" in shown
    assert [response.status_code for response in (moved, wrong, left)] == [303, 400, 303]
    assert (row["_parentcustomerid_value"], row["statecode"], row["address1_city"]) == (other, 1, "Malmö")
    assert all(row["_parentcustomerid_value"] is None for row in world.sim.rows("contact"))


def test_form_follows_the_rules_of_a_case(world):
    """Resolving goes its own way with other changes first; a closed case must be opened before it is changed."""
    case = add_case(world.sim)

    resolved = save(world, "incident", case, title="Renamed", statecode="1")
    refused = save(world, "incident", case, title="Late")
    too_long = save(world, "incident", case, title="x" * 201, statecode="0")
    opened = save(world, "incident", case, title="Open again", statecode="0")
    row = world.sim.rows("incident")[0]

    assert [r.status_code for r in (resolved, refused, too_long, opened)] == [303, 400, 400, 303]
    assert (row["title"], row["statecode"], row["statuscode"]) == ("Open again", 0, 1)
    assert world.sim.rows("incidentresolution")


def test_records_can_be_set_without_a_login(world):
    """The sandbox's own addresses list, insert, change and delete as a person, with any option value."""
    base = f"{world.origin}/_sandbox/records/"

    made = world.session.post(
        f"{base}incident",
        json={"title": "Made", "customerid_account": ACME, "prioritycode": 5, "modifiedon": "2026-03-11T10:00:00Z"},
        timeout=10,
    )
    case = made.json()["id"]
    changed = world.session.patch(f"{base}incidents/{case}", json={"title": "Changed", "ownerid": TEAM}, timeout=10)
    listed = world.session.get(f"{base}incident", timeout=10).json()
    deleted = world.session.delete(f"{base}incident/{case}", timeout=10)

    assert (made.status_code, changed.status_code, deleted.status_code) == (201, 204, 204)
    assert listed["count"] == 1
    row = listed["records"][0]
    assert (row["title"], row["prioritycode"], row["_owningteam_value"]) == ("Changed", 5, TEAM)
    assert row["modifiedon"] == "2026-03-12T09:30:15Z"
    assert world.sim.rows("incident") == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        pytest.param("GET", "nosuch", None, 404, id="table"),
        pytest.param("POST", "contact", {"nosuch": 1}, 400, id="column"),
        pytest.param("POST", "contact", {"lastname": "x" * 51}, 400, id="too long"),
        pytest.param("PATCH", "contact/00000000-0000-0000-0000-000000000000", {"lastname": "x"}, 404, id="row"),
        pytest.param(
            "POST", "incident", {"customerid": "00000000-0000-0000-0000-000000000000"}, 400, id="lookup to nothing"
        ),
    ],
)
def test_mistakes_in_the_controls_are_explained(world, method, path, body, status):
    """A wrong name or value is answered with a sentence."""
    response = world.session.request(method, f"{world.origin}/_sandbox/records/{path}", json=body, timeout=10)

    assert response.status_code == status
    assert response.json()["error"]
