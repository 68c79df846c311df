"""Storage whose answers go astray: the network edge under the SDK, everything above it is real."""

import re
from collections.abc import Callable
from typing import Any

from azure.core.exceptions import ServiceRequestError, ServiceResponseError
from azure.core.pipeline.transport import RequestsTransport


class Edge(RequestsTransport):
    """Sends requests for real, and does to the next answers what `faults` says (a request that does not fit is let be)."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[tuple[str, str]] = []  # (pattern of "METHOD path", what happens)
        self.before: Callable[[], None] | None = None  # done once, before the next request that writes leaves
        self.requests: list[str] = []
        self.addresses: list[str] = []  # of the same requests, with their queries

    def send(self, request: Any, **options: Any) -> Any:
        """Send a request, then perhaps lose or falsify its answer."""
        line = f"{request.method} {request.url.split('?')[0]}"
        self.requests.append(line)
        self.addresses.append(request.url)
        if self.before and request.method != "GET":
            before, self.before = self.before, None
            before()
        fault = self._next_fault(line)
        if fault == "few":
            request.url = re.sub(r"(%24|\$)top=\d+", "%24top=3", request.url)
        if fault == "break":
            raise AttributeError("a fault of the SDK's own")
        if fault == "refuse":
            raise ServiceRequestError("connection refused")
        tables = "data-tables" in request.headers.get("User-Agent", "")
        if tables and "x-ms-version" not in request.headers:
            raise AssertionError(f"Azure refuses {line} without a version")
        answer = super().send(request, **options)
        if tables:
            answer.headers.pop("x-ms-error-code", None)  # Azure's tables name a code in the body alone
        if fault == "lose":
            raise ServiceResponseError("connection reset by peer")
        if fault == "cut":
            body = answer.read()
            answer._content = body[: len(body) // 2]  # what the SDK hands out from now on
        if fault.isdigit():
            answer.status_code = int(fault)
        return answer

    def _next_fault(self, line: str) -> str:
        for number, (pattern, fault) in enumerate(self.faults):
            if re.search(pattern, line):
                del self.faults[number]
                return fault
        return ""
