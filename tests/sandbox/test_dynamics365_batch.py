"""$batch of the simulated Web API."""

import json

import pytest

from tests.sandbox.dynamics365_caller import ADA, BOB, add_case, served


@pytest.fixture
def world():
    with served() as caller:
        yield caller


def part(method: str, url: str, body: dict | None = None, content_id: str = "", headers: str = "") -> str:
    head = "Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"
    head += f"Content-ID: {content_id}\r\n" if content_id else ""
    text = f"{head}\r\n{method} {url} HTTP/1.1\r\n{headers}"
    return text + (f"Content-Type: application/json\r\n\r\n{json.dumps(body)}" if body is not None else "\r\n")


def change_set(*parts: str) -> str:
    inner = "".join(f"--cs\r\n{text}\r\n" for text in parts) + "--cs--\r\n"
    return f'Content-Type: multipart/mixed; boundary="cs"\r\n\r\n{inner}'


def send(world, *parts: str, prefer: str = "", line_end: str = "\r\n"):
    body = "".join(f"--b1\r\n{text}\r\n" for text in parts) + "--b1--\r\n"
    headers = {"Content-Type": 'multipart/mixed; boundary="b1"', **({"Prefer": prefer} if prefer else {})}
    return world.session.post(
        f"{world.root}$batch", data=body.replace("\r\n", line_end).encode(), headers=headers, timeout=10
    )


def statuses(response) -> list[int]:
    return [int(line.split(" ")[1]) for line in response.text.split("\r\n") if line.startswith("HTTP/1.1 ")]


def test_parts_are_answered_in_order(world):
    """Relative, rooted and whole addresses work; each part has its own status and body."""
    response = send(
        world,
        part("GET", f"contacts({ADA})?$select=fullname"),
        part(
            "GET", f"/api/data/v9.2/contacts({BOB})?$select=fullname&$filter=", headers="Accept: application/json\r\n"
        ),
        prefer="odata.continue-on-error",
    )

    assert response.status_code == 200
    assert statuses(response) == [200, 400]
    assert '"fullname":"Ada Quill"' in response.text
    assert response.headers["Content-Type"].startswith("multipart/mixed; boundary=batchresponse_")


def test_first_failure_stops_the_batch(world):
    """Without continue-on-error nothing after a failure is worked, and the batch has its status."""
    parts = [
        part("PATCH", f"{world.root}contacts({ADA})", {"jobtitle": "First"}),
        part("PATCH", f"contacts({ADA})", {"nosuch": 1}),
        part("PATCH", f"contacts({ADA})", {"jobtitle": "Third"}),
    ]

    stopped = send(world, *parts)
    after_stop = world.get(f"contacts({ADA})?$select=jobtitle")["jobtitle"]
    gone_on = send(world, *parts, prefer="odata.continue-on-error")

    assert (stopped.status_code, statuses(stopped), after_stop) == (400, [204, 400], "First")
    assert (gone_on.status_code, statuses(gone_on)) == (200, [204, 400, 204])


def test_a_change_set_holds_together(world):
    """When one operation fails all are taken back, and nobody hears of them."""
    heard = []
    world.sim.store.changed = lambda *event: heard.append(event)

    response = send(
        world,
        change_set(
            part("POST", "contacts", {"lastname": "Lost"}, "1"),
            part("DELETE", f"contacts({BOB})", None, "2"),
            part("PATCH", f"contacts({ADA})", {"lastname": "x" * 51}, "3"),
        ),
    )

    assert (response.status_code, statuses(response)) == (400, [400])
    assert [row["lastname"] for row in world.sim.rows("contact")] == ["Quill", "O'Brien"]
    assert world.sim.store.deleted == []
    assert heard == []


def test_content_ids_refer_to_earlier_operations(world):
    """`$1` stands for the row that the first operation made, in addresses and in bindings."""
    response = send(
        world,
        change_set(
            part("POST", "contacts", {"lastname": "Fresh"}, "1"),
            part("POST", "incidents", {"title": "Hers", "customerid_contact@odata.bind": "$1"}, "2"),
            part("PATCH", "$2", {"prioritycode": 1}, "3", "If-Match: *\r\n"),
        ),
    )

    case = world.get("incidents?$select=title,prioritycode&$expand=customerid_contact($select=lastname)")["value"][0]
    assert (response.status_code, statuses(response)) == (200, [204, 204, 204])
    assert (case["prioritycode"], case["customerid_contact"]["lastname"]) == (1, "Fresh")
    assert "Content-ID: 3" in response.text


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([change_set(part("GET", "contacts", None, "1"))], id="GET in a change set"),
        pytest.param([change_set(part("POST", "contacts", {"lastname": "x"}))], id="no content id"),
        pytest.param([part("POST", "$batch", {})], id="batch in a batch"),
        pytest.param([part("GET", "WhoAmI")] * 1001, id="too many"),
        pytest.param([part("FETCH", "WhoAmI")], id="method"),
        pytest.param(["Content-Type: text/plain\r\n\r\nhello"], id="content type"),
        pytest.param([part("GET", "https://other.example/api/data/v9.2/contacts")], id="another environment"),
    ],
)
def test_batches_that_cannot_be_read(world, parts):
    """A malformed batch is refused as a whole, with a JSON error."""
    response = send(world, *parts)

    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_lines_end_with_both_characters(world):
    """A batch with bare line feeds is refused."""
    assert send(world, part("GET", "WhoAmI"), line_end="\n").status_code == 400


def test_a_batch_counts_as_one_request_and_takes_long_urls(world):
    """The request limit sees the batch only; a part's URL may be longer than a request's."""
    world.sim.settings.request_limit = 1
    query = "incidents?$select=title&$filter=" + " or ".join(f"title eq '{number:040d}'" for number in range(700))

    response = send(world, part("GET", query), part("GET", "WhoAmI"))

    assert statuses(response) == [200, 200]
    assert world.call("GET", "WhoAmI").status_code == 429


def test_annotations_are_asked_for_in_the_part(world):
    """A part has its own headers."""
    case = add_case(world.sim)

    response = send(
        world, part("GET", f"incidents({case})?$select=statecode", headers='Prefer: odata.include-annotations="*"\r\n')
    )

    assert '"statecode@OData.Community.Display.V1.FormattedValue":"Active"' in response.text
