"""What product code does not contain, read from its syntax trees: ways to run data, to skip checks, to wait for ever."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from sync import summary

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("shared", "sync", "web")
FILES = sorted(
    [ROOT / "function_app.py", ROOT / "cli.py", *(f for name in FOLDERS for f in (ROOT / name).rglob("*.py"))]
)
TREES = {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
RUNS_DATA = {"pickle", "marshal", "shelve", "dill", "jsonpickle", "subprocess", "pty", "code", "runpy", "ctypes", "yaml", "telnetlib", "ftplib", "lxml"}  # fmt: skip
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "execfile", "input", "breakpoint"}
SHELL = {"os.system", "os.popen", "os.execv", "os.spawnl", "os.startfile", "pty.spawn", "importlib.import_module"}
UNSAFE = {"tempfile.mktemp", "ssl._create_unverified_context", "ssl.CERT_NONE", "urllib3.disable_warnings", "hashlib.md5", "hashlib.sha1", "jinja2.Markup", "markupsafe.Markup", "logging.captureWarnings"}  # fmt: skip
VERBS = {"requests." + verb for verb in ("get", "post", "put", "patch", "delete", "head", "options", "request")}
GUARDED = re.compile(r"key|secret|signature|token|password|digest", re.IGNORECASE)


def nodes(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node of a kind with its place."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{name}:{getattr(node, 'lineno', 0)}", node


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` of a name; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def calls() -> Iterator[tuple[str, str, dict[str, ast.expr]]]:
    """Yield place, name and keywords of every call."""
    for place, node in nodes(ast.Call):
        assert isinstance(node, ast.Call)
        yield place, dotted(node.func), {each.arg: each.value for each in node.keywords if each.arg}


def test_the_trees_are_the_product() -> None:
    """All folders are read: an empty list would prove nothing."""
    assert len(TREES) > 50
    assert {"function_app.py", "web/api.py", "shared/clients/http.py"} <= TREES.keys()


def test_nothing_runs_data() -> None:
    """No pickle, no PyYAML, no XML, no other program: what arrives is read as JSON, or as YAML without tags."""
    imported = [
        (place, name)
        for place, node in nodes((ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])  # type: ignore[attr-defined]
    ]

    assert [each for each in imported if each[1].split(".")[0] in RUNS_DATA] == []
    assert {name for _, name in imported if name.split(".")[0] == "xml"} <= {
        "xml.sax.saxutils"
    }  # it escapes, and reads nothing


def test_nothing_runs_text() -> None:
    """No eval and its like, no shell, no module by a name that was read."""
    assert [(place, name) for place, name, _ in calls() if name in RUNS_TEXT | SHELL] == []


def test_no_check_is_switched_off() -> None:
    """Certificates are verified, nothing is trusted as markup, no digest is a broken one."""
    used = [(place, dotted(node)) for place, node in nodes(ast.Attribute) if dotted(node) in UNSAFE]
    off = [
        (place, name)
        for place, name, given in calls()
        for argument in ("verify", "check_hostname", "autoescape", "connection_verify")
        if isinstance(given.get(argument), ast.Constant) and given[argument].value is False  # type: ignore[attr-defined]
    ]
    assigned = [
        place
        for place, node in nodes(ast.Assign)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is False
        for target in node.targets
        if isinstance(target, ast.Attribute) and target.attr in ("verify", "check_hostname")
    ]

    assert (used, off, assigned) == ([], [], [])


def test_no_call_waits_for_ever() -> None:
    """Vendors are called by one module alone, with a time-out; so are mail and sign-in."""
    bare = [(place, name) for place, name, _ in calls() if name in VERBS or name.endswith("urlopen")]
    untimed = [
        (place, name)
        for place, name, given in calls()
        if name in ("smtplib.SMTP", "smtplib.SMTP_SSL", "socket.create_connection") or name.endswith("_adapter.send")
        if "timeout" not in given
    ]
    sessions = {place.split(":")[0] for place, name, _ in calls() if name == "requests.Session"}

    assert (bare, untimed) == ([], [])
    assert sessions <= {"shared/clients/http.py", "shared/state/storage.py"}


def test_yaml_is_read_safely() -> None:
    """ruamel's safe reader is the only one, in one place."""
    readers = [(place.split(":")[0], given) for place, name, given in calls() if name.endswith("YAML")]

    assert {place for place, _ in readers} == {"sync/recipe_loader.py"}
    assert all(isinstance(given["typ"], ast.Constant) and given["typ"].value == "safe" for _, given in readers)


def test_keys_are_compared_in_constant_time() -> None:
    """Where callers prove who they are, `hmac.compare_digest` decides; nothing named like a key is compared by == or in."""
    receivers = {name: tree for name, tree in TREES.items() if "webhook" in name}
    deciding = [name for name, tree in receivers.items() for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func) == "hmac.compare_digest"]  # fmt: skip
    leaky = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, tree in receivers.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and re.search(r"check_(key|signature|token)|verify", function.name)
        for node in ast.walk(function)
        if isinstance(node, ast.Compare)
        and any(isinstance(each, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for each in node.ops)
        and any(GUARDED.search(ast.unparse(each)) for each in [node.left, *node.comparators])
    ]

    assert "shared/clients/dynamics365_webhook.py" in deciding
    assert leaky == []


def test_html_is_escaped_by_itself() -> None:
    """Every template environment escapes; `safe` stands behind constants alone; text templates are no HTML."""
    environments = [given for _, name, given in calls() if name.endswith("Environment") and "Dependency" not in name]
    templates = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "sync/templates").iterdir()}
    unescaped = [found for text in templates.values() for found in re.findall(r"([^{|]*)\|\s*safe\b", text)]

    assert environments
    assert all("autoescape" in given for given in environments)
    assert all(re.fullmatch(r'\s*"[^"]*"', found) for found in unescaped)
    for name in templates:
        escapes = summary._TEMPLATES.autoescape
        assert callable(escapes)
        assert escapes(name) == name.endswith("html.j2")
    assert not [name for name, text in templates.items() if re.search(r"autoescape|\|\s*(?:e|escape)\s*\}", text)]


@pytest.mark.parametrize("name", ["mail.html.j2"])
def test_templates_name_no_other_host(name: str) -> None:
    """A mail loads nothing: no image, script or style from elsewhere, and no link of its own."""
    text = (ROOT / "sync/templates" / name).read_text(encoding="utf-8").replace("http://www.w3.org/1999/xhtml", "")

    assert "://" not in text
    assert not re.search(r"<(?:img|script|link|iframe|form|object|base)\b", text)
    assert jinja2.Environment(autoescape=True).parse(text)


def test_secrets_stay_out_of_repr() -> None:
    """A settings field that holds a secret is a SecretStr, so that no error and no log line shows it."""
    names = re.compile(r"(?:^|_)(?:secret|password|webhook_key|token|connection_string)$")
    fields = [
        (place, node.target.id, ast.unparse(node.annotation))
        for place, node in nodes(ast.AnnAssign)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and names.search(node.target.id)
        if place.startswith(("shared/settings.py", "shared/connections.py"))
    ]

    assert len(fields) >= 5
    assert [field for field in fields if "SecretStr" not in field[2]] == []
