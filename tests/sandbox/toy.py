"""The toy app of `toy_app/`, as the tests see it."""

import json
from pathlib import Path
from typing import Any

from sandbox.azurite import Azurite
from sandbox.host import Host
from sandbox.host_queue import open_queue

TOY_APP = Path(__file__).parent / "toy_app"
NEVER = "0 0 0 1 1 *"


class Toy:
    """The toy app with its queue and its journal."""

    def __init__(self, azurite: Azurite, folder: Path, queue: str, schedule: str = NEVER) -> None:
        self.folder = folder
        self.queue = open_queue(azurite.connection_string, queue)
        self.env = {
            "AzureWebJobsStorage": azurite.connection_string,
            "PYTHON_THREADPOOL_THREAD_COUNT": "8",
            "TOY_FOLDER": str(folder),
            "TOY_QUEUE": queue,
            "TOY_SCHEDULE": schedule,
        }

    def host(self, settings: dict[str, str] | None = None, **facts: Any) -> Host:
        """Return a host that has not been started; settings may override host.json."""
        return Host(TOY_APP, self.env | (settings or {}), **facts)

    def send(self, token: str, do: str = "pass") -> str:
        """Order something by a message and return its text."""
        text = json.dumps({"token": token, "do": do})
        self.queue.send_message(text)
        return text

    def release(self, token: str) -> None:
        """Let go what waits for a token."""
        (self.folder / f"release-{token}").touch()

    def journal(self, function: str, **facts: Any) -> list[dict[str, Any]]:
        """Return what a function noted, oldest first, as far as the given facts agree."""
        file = self.folder / "journal"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        wanted = facts | {"function": function}
        return [line for line in lines if wanted.items() <= line.items()]

    def waiting(self) -> int:
        """Return how many messages the queue holds, hidden ones too."""
        return self.queue.get_queue_properties().approximate_message_count or 0
