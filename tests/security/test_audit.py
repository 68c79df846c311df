"""The audit fails on a known vulnerability, and never passes in silence where nobody answered."""

import json
import sys
from typing import Any

import pytest

from tests.security.audit import audit

PINS = ["one==1.0", "two==2.0"]
CLEAN = {"name": "one", "version": "1.0", "vulns": []}
BAD = {"name": "two", "version": "2.0", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "two", "skip_reason": "not found"}


def service(*packages: dict[str, Any]) -> list[str]:
    """Return a command that answers as pip-audit does."""
    return [sys.executable, "-c", f"print('''{json.dumps({'dependencies': packages})}''')"]


DEAD = [sys.executable, "-c", "import sys; sys.exit('cannot connect')"]
SILENT = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.mark.parametrize(
    ("command", "code", "strict_code", "says"),
    [
        (service(CLEAN), 0, 0, "no known vulnerability in 1 packages"),
        (service(CLEAN, BAD), 1, 1, "two 2.0 has CVE-2026-1; mended in 2.1"),
        (service(CLEAN, UNKNOWN), 0, 1, "NOT DONE for 1 of 2 packages, two for one"),
        (service(UNKNOWN), 0, 1, "NOT DONE for 1 of 1 packages, two for one"),
        (DEAD, 0, 1, "NOT DONE, the service that knows vulnerabilities cannot be used: cannot connect"),
        (SILENT, 0, 1, "NOT DONE, the service that knows vulnerabilities cannot be used: no answer within"),
    ],
    ids=["clean", "vulnerable", "some unknown", "all unknown", "dead", "silent"],
)
def test_audit_says_what_it_found(command: list[str], code: int, strict_code: int, says: str) -> None:
    """A vulnerability fails always; what could not be asked is said in one line, and fails where strictness was asked for."""
    usual = audit(command, PINS, strict=False, probe_s=1.0)
    strict = audit(command, PINS, strict=True, probe_s=1.0)

    assert (usual[0], strict[0]) == (code, strict_code)
    assert len(usual[1]) == 1
    assert says in usual[1][0]
