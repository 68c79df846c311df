"""Route templates of httpTriggers: `cases/{id:int}/{part:alpha?}`, matched without regard to case, as ASP.NET routing does.

https://learn.microsoft.com/aspnet/core/fundamentals/routing#route-constraints has all constraints; those that take
arguments are not needed here and are refused.
"""

import dataclasses
import re
from collections.abc import Iterable
from urllib.parse import unquote

from sandbox.host_config import HostConfigError
from sandbox.host_messages import FunctionFacts

CONSTRAINTS = {
    "alpha": r"[A-Za-z]*",
    "bool": r"true|false",
    "decimal": r"[+-]?\d+(?:\.\d+)?",
    "guid": r"\{?[0-9A-Fa-f]{8}-?(?:[0-9A-Fa-f]{4}-?){3}[0-9A-Fa-f]{12}\}?",
    "int": r"[+-]?\d{1,10}",
    "long": r"[+-]?\d{1,19}",
}
PARAMETER = re.compile(r"\{(?P<rest>\*?)(?P<name>\w+)(?::(?P<constraint>\w+))?(?P<optional>\??)\}")
LITERAL, BOUND, FREE, REST = range(4)  # which segment is preferred where two routes fit


@dataclasses.dataclass(frozen=True)
class Route:
    """One httpTrigger's address."""

    function: str
    template: str  # with the prefix, without a leading slash
    methods: frozenset[str]  # empty: all
    auth_level: str  # anonymous, function or admin
    pattern: re.Pattern[str]
    rank: tuple[int, ...]

    @property
    def label(self) -> str:
        """Return the methods as Core Tools lists them."""
        return f"[{','.join(sorted(self.methods))}]" if self.methods else "[ALL]"


def build_route(function: FunctionFacts, prefix: str) -> Route:
    """Read a function's httpTrigger binding. Raises HostConfigError when its template is not understood."""
    binding = function.trigger
    template = "/".join(
        part for part in (prefix.strip("/"), (binding.get("route") or function.name).strip("/")) if part
    )
    pattern, rank = "", []
    for segment in template.split("/"):
        text, preferred = _segment(function.name, template, segment)
        pattern += text
        rank.append(preferred)
    return Route(
        function=function.name,
        template=template,
        methods=frozenset(binding.get("methods") or ()),
        auth_level=binding.get("authLevel", "FUNCTION").lower(),
        pattern=re.compile(pattern + "/?", re.IGNORECASE),
        rank=tuple(rank),
    )


def find_route(routes: Iterable[Route], method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """Return the most specific route for a raw (still quoted) path and the values of its parameters."""
    fitting = []
    for route in routes:
        match = route.pattern.fullmatch(path)
        if match and (not route.methods or method in route.methods):
            fitting.append((route.rank, route.function, route, match))
    if not fitting:
        return None
    _, _, route, match = min(fitting, key=lambda entry: entry[:2])
    return route, {name: unquote(value) for name, value in match.groupdict().items() if value}


def _segment(function: str, template: str, segment: str) -> tuple[str, int]:
    parameter = PARAMETER.fullmatch(segment)
    if parameter is None:
        if "{" in segment or "}" in segment:
            raise HostConfigError(f"{function}: route {template!r}: segment {segment!r} is not understood")
        return "/" + re.escape(segment), LITERAL
    name, constraint = parameter["name"], parameter["constraint"]
    if constraint and constraint not in CONSTRAINTS:
        raise HostConfigError(
            f"{function}: route {template!r}: constraint {constraint!r} is none of {', '.join(CONSTRAINTS)}"
        )
    if parameter["rest"]:
        return f"(?:/(?P<{name}>.*))?", REST
    value = f"/(?P<{name}>{CONSTRAINTS.get(constraint, '[^/]+')})"
    return (f"(?:{value})?" if parameter["optional"] else value), BOUND if constraint else FREE
