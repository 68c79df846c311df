"""Who may import whom, and how large a module may grow."""

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = ("function_app.py", "cli.py", "sync", "shared", "web")
ALL = (*PRODUCT, "sandbox", "benchmarks", "faults", "tests")


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a package may import of ours, and what of that it may not."""

    may: frozenset[str]
    but_not: frozenset[str] = frozenset()
    after_all: frozenset[str] = frozenset()  # exceptions from `but_not`

    def allows(self, name: str) -> bool:
        return _lies_in(name, self.may) and (not _lies_in(name, self.but_not) or _lies_in(name, self.after_all))


def _lies_in(name: str, packages: frozenset[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in packages)


def layer(may: str, but_not: str = "", after_all: str = "") -> Layer:
    return Layer(*(frozenset(names.split()) for names in (may, but_not, after_all)))


PROTOCOL = "shared.clients.system"  # rows, pages and writes, which everybody speaks of
LAYERS = {  # the longest name that fits a module counts
    "function_app": layer("sync shared web"),
    "cli": layer("sync shared web"),
    "web": layer("web sync shared", "shared.clients shared.services", PROTOCOL),
    "sync": layer("sync shared", "shared.clients shared.services", PROTOCOL),  # knows no vendor
    "sync.app": layer("sync shared", "shared.clients", PROTOCOL),
    "shared": layer("shared", "shared.clients shared.state shared.services", PROTOCOL),  # knows no recipe
    "shared.clients": layer("shared", "shared.state shared.services"),
    "shared.state": layer("shared", "shared.clients shared.services", PROTOCOL),
    "shared.services": layer("shared"),
    "sandbox": layer("sandbox"),
    "benchmarks": layer("benchmarks sandbox shared sync web"),
    "faults": layer("faults tests sandbox shared sync web"),  # on the harness of the flows
    "tests": layer("tests faults benchmarks sandbox shared sync web function_app cli"),
}
OURS = {name.removesuffix(".py") for name in ALL}
LONGEST_MODULE = 800  # lines; most are far below, a stand-in's query language is one subject
LONGEST_PRODUCT_MODULE = 600
UNKNOWN_TO_SYNC = {"requests", "urllib3", "azure", "msal", "smtplib", "os", "socket"}  # no HTTP, no SDK, no environment


def modules(*parts: str) -> list[Path]:
    found: list[Path] = []
    for part in parts:
        path = ROOT / part
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [path for path in found if "toy_app" not in path.parts]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def walk(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the modules that a file imports, at the top or inside functions, with the line; `from a import b` as `a.b`."""
    for node in walk(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", modules(*ALL), ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    """function_app → sync → shared; clients and state do not know each other; only tests, benchmarks and faults the sandbox."""
    own = LAYERS[max((each for each in LAYERS if _lies_in(name_of(path), frozenset({each}))), key=len)]

    wrong = [
        f"line {line} imports {name}"
        for name, line in imports(path)
        if name.partition(".")[0] in OURS and not own.allows(name)
    ]

    assert wrong == []


@pytest.mark.parametrize("path", modules("sync"), ids=name_of)
def test_sync_reaches_nothing(path: Path) -> None:
    """What we do with records knows no HTTP, no SDK and no environment."""
    wrong = {
        f"{path.name}:{line} imports {name}"
        for name, line in imports(path)
        if name.partition(".")[0] in UNKNOWN_TO_SYNC
    }

    assert wrong == set()


def test_environment_has_one_reader() -> None:
    """The environment is read where the app begins; everything else is handed its settings."""
    readers = {name_of(path) for path in modules(*PRODUCT) if any(_reads_environment(node) for node in walk(path))}

    assert readers <= {"function_app", "cli"}


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id == "os" and node.attr in {"environ", "getenv"}
    return isinstance(node, ast.ImportFrom) and node.module == "os"


@pytest.mark.parametrize("path", modules(*ALL), ids=name_of)
def test_modules_stay_readable(path: Path) -> None:
    """A module is one noun; one that grows past this holds two."""
    longest = LONGEST_PRODUCT_MODULE if path in modules(*PRODUCT) else LONGEST_MODULE

    assert len(path.read_text(encoding="utf-8").splitlines()) <= longest
