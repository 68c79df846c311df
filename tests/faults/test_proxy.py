"""What the proxy does to a request and its answer, on real sockets."""

import pytest
import requests
from aiohttp import web

from faults.kinds import Effect
from faults.proxy import Passing, Stroke, Upstream, serving
from sandbox.simulator import Simulator, serve_in_thread

TEXT = "x" * 1000


class Counting(Simulator):
    """Counts what took effect."""

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        self.effects = 0
        routes.add_post("/write", self._write)

    async def _write(self, request: web.Request) -> web.Response:
        await request.read()
        self.effects += 1
        return web.Response(text=TEXT)


@pytest.fixture
def server():
    sim = Counting()
    strokes: list[Stroke | None] = []

    def decide(_: Passing) -> Stroke | None:
        return strokes.pop() if strokes else None

    with serve_in_thread(sim) as (port,), serving(decide) as proxy:
        url = f"http://127.0.0.1:{proxy.open(Upstream('vendor', '127.0.0.1', port))}/write"

        def post(stroke: Stroke | None) -> requests.Response:
            strokes.append(stroke)
            return requests.post(url, data="body", timeout=0.3)

        yield sim, proxy, post


def test_an_undisturbed_request_passes(server) -> None:
    """What is not struck arrives as it was sent."""
    sim, _, post = server

    answer = post(None)

    assert (answer.status_code, answer.text, sim.effects) == (200, TEXT, 1)


@pytest.mark.parametrize(
    ("effect", "effects"),
    [
        (Effect.RESET_BEFORE, 0),
        (Effect.RESET_AFTER, 1),
        (Effect.SILENT_AFTER, 1),
        (Effect.HANG, 0),
        (Effect.CUT, 1),
    ],
)
def test_no_answer_comes(server, effect: Effect, effects: int) -> None:
    """The client sees no answer, whether the request took effect or not."""
    sim, _, post = server

    with pytest.raises(requests.RequestException):
        post(Stroke(effect))

    assert sim.effects == effects


def test_a_late_request_takes_effect_when_it_is_let_go(server) -> None:
    """Until then nothing happens; the client has given up long before."""
    sim, proxy, post = server

    with pytest.raises(requests.Timeout):
        post(Stroke(Effect.LATE))
    before = sim.effects
    released = proxy.release()

    assert (before, released, sim.effects) == (0, 1, 1)


@pytest.mark.parametrize(
    ("stroke", "status", "body", "effects"),
    [
        (Stroke(Effect.STATUS, 503, (("Retry-After", "7"),)), 503, "Bad gateway", 0),
        (Stroke(Effect.STATUS_AFTER, 502), 502, "Bad gateway", 1),
        (Stroke(Effect.SHORT), 200, TEXT[:500], 1),
        (Stroke(Effect.HTML), 200, "guest network", 1),
    ],
    ids=["status", "status after", "short", "html"],
)
def test_a_false_answer_comes(server, stroke: Stroke, status: int, body: str, effects: int) -> None:
    """The answer is not the server's, or only half of it."""
    sim, _, post = server

    answer = post(stroke)

    assert (answer.status_code, sim.effects) == (status, effects)
    assert body in answer.text
