"""Known vulnerabilities of what is deployed, asked of a public service by pip-audit; part of `make check`.

python -m tests.security.audit            a known vulnerability fails; no answer is said in one line, and is no failure
python -m tests.security.audit --strict   no answer is a failure too: before a release
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
COMMAND = (
    sys.executable,
    "-m",
    "pip_audit",
    "--no-deps",
    "--disable-pip",
    "--progress-spinner",
    "off",
    "--timeout",
    "5",
)
PROBE_S, WHOLE_S = 8.0, 180.0  # for the first package: is anybody there; for all
AGAIN = "Run `make audit` where the service can be reached."


class NoAnswerError(Exception):
    """The service said nothing that counts; the text says why."""


def ask(command: Sequence[str], pins: Sequence[str], patience_s: float) -> list[dict[str, object]]:
    """Return what is said of each package. Raises NoAnswerError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(pins))
        try:
            said = subprocess.run(
                [*command, "--requirement", str(file), "--format", "json"],
                capture_output=True,
                text=True,
                timeout=patience_s,
                check=False,
            )
            packages: list[dict[str, object]] = json.loads(said.stdout)["dependencies"]
        except subprocess.TimeoutExpired:
            raise NoAnswerError(f"no answer within {patience_s:.0f} seconds") from None
        except (ValueError, KeyError, TypeError):
            raise NoAnswerError((said.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]) from None
    return packages


def audit(
    command: Sequence[str], pins: Sequence[str], *, strict: bool, probe_s: float = PROBE_S
) -> tuple[int, list[str]]:
    """Return the exit code and what to say."""
    try:
        ask(command, pins[:1], probe_s)
        packages = ask(command, pins, WHOLE_S)
    except NoAnswerError as exc:
        line = f"audit: NOT DONE, the service that knows vulnerabilities cannot be used: {exc}. {AGAIN}"
        return int(strict), [line]
    found = [
        f"audit: {each['name']} {each['version']} has {one['id']}; mended in {', '.join(one['fix_versions']) or 'no version'}"
        for each in packages
        for one in each.get("vulns", ())  # type: ignore[attr-defined]  # JSON
    ]
    unknown = [str(each["name"]) for each in packages if "skip_reason" in each]
    if unknown:
        found.append(
            f"audit: NOT DONE for {len(unknown)} of {len(packages)} packages, {unknown[0]} for one: the service knows nothing of them. {AGAIN}"
        )
    failed = len(found) > bool(unknown) or (strict and bool(unknown))
    return int(failed), found or [f"audit: no known vulnerability in {len(packages)} packages"]


def main() -> int:
    """Audit what is deployed."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.lstrip().startswith("#")]
    code, said = audit(COMMAND, pins, strict="--strict" in sys.argv)
    print("\n".join(said))
    return code


if __name__ == "__main__":
    sys.exit(main())
