"""The lock files: complete, of one mind, and free of addresses."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = {"requirements.txt": (), "requirements-sandbox.txt": ("sandbox",), "requirements-dev.txt": ("sandbox", "dev")}
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.+!]*)(?: ; .+)?")


def read_lock(name: str) -> dict[str, str]:
    """Return versions by package; comments are left out, every other line has to be a pin."""
    lines = (line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    pins = [PIN.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert all(pins), f"{name} holds something else than name==version"
    return {pin[1]: pin[2] for pin in pins if pin}


def normal(requirement: str) -> str:
    """Return the name of a requirement as lock files write it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


@pytest.mark.parametrize(("lock", "extras"), LOCKS.items(), ids=LOCKS)
def test_lock_pins_what_the_project_asks_for(lock: str, extras: tuple[str, ...]) -> None:
    """Every dependency of pyproject.toml stands in its lock file; `make lock` was run after the last change."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(each for name in extras for each in project["optional-dependencies"][name])]

    assert {normal(each) for each in asked} <= read_lock(lock).keys()


def test_locks_agree() -> None:
    """A package has one version: what is tested is what is deployed."""
    deployed, sandbox, dev = (read_lock(name).items() for name in LOCKS)

    assert deployed <= sandbox <= dev


@pytest.mark.parametrize("lock", [*LOCKS, "package-lock.json"])
def test_locks_name_no_place(lock: str) -> None:
    """No index, no host and no path: they install from wherever a machine is set up to install from."""
    text = (ROOT / lock).read_text(encoding="utf-8")

    assert not re.search(r"--\w|file://|\.whl|\"resolved\"|index|trusted|/opt|/home|/tmp", text)
    assert lock == "package-lock.json" or "://" not in text


def test_deployed_packages_leave_the_worker_alone() -> None:
    """The platform brings its worker; a test tool or the sandbox has no place in Azure."""
    deployed = read_lock("requirements.txt").keys()

    assert not deployed & {
        "azure-functions-worker",
        "aiohttp",
        "aiosmtpd",
        "trustme",
        "croniter",
        "pytest",
        "hypothesis",
    }


def test_azurite_is_locked() -> None:
    """package.json names one version of Azurite, and the lock file has it."""
    wanted = json.loads((ROOT / "package.json").read_text(encoding="utf-8"))["devDependencies"]["azurite"]
    locked = json.loads((ROOT / "package-lock.json").read_text(encoding="utf-8"))["packages"]["node_modules/azurite"]

    assert re.fullmatch(r"\d+\.\d+\.\d+", wanted)
    assert locked["version"] == wanted
    assert locked["integrity"].startswith("sha512-")
