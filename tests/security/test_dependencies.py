"""What is deployed: every package pinned, installed as pinned, and under a licence that we may pass on.

Known vulnerabilities of packages are a matter of `audit.py`, which needs the network.
"""

import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.+!]*)(?: ; .+)?")
ALLOWED = {"MIT", "MIT-0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "PSF-2.0", "MPL-2.0", "ISC"}
NAMES = {  # how packages without an SPDX expression say it
    "MIT License": "MIT",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def pins() -> dict[str, str]:
    """Return the deployed packages with their versions."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [PIN.fullmatch(line) for line in lines if line and not line.lstrip().startswith("#")]
    assert all(found), "requirements.txt holds something else than name==version"
    return {pin[1]: pin[2] for pin in found if pin}


def licences_of(package: str) -> set[str]:
    """Return the licences that a package offers, one of which may be chosen; empty when it says none."""
    facts = importlib.metadata.metadata(package)
    classifiers = [
        each.split(" :: ")[-1] for each in facts.get_all("Classifier") or [] if each.startswith("License ::")
    ]
    said = facts.get("License-Expression") or facts.get("License") or ""
    names = classifiers or ([said] if "\n" not in said else [])
    return {NAMES.get(name.strip(), name.strip()) for one in names for name in one.split(" OR ")} - {""}


@pytest.mark.parametrize("package", pins())
def test_package_is_installed_as_it_is_pinned(package: str) -> None:
    """What is tested is what is deployed."""
    assert importlib.metadata.version(package) == pins()[package]


@pytest.mark.parametrize("package", pins())
def test_package_has_a_licence_that_is_allowed(package: str) -> None:
    """A new package, or a new licence of an old one, is looked at by a person before it is deployed."""
    licences = licences_of(package)

    assert licences, f"{package} names no licence"
    assert licences & ALLOWED, f"{package} is under {licences}: add it to ALLOWED if we may pass it on"


def test_nothing_is_deployed_that_nobody_asked_for() -> None:
    """Every package of the lock file is ours or needed by another one of it: a stray line is a fault, or worse."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    reasons = dict(re.findall(r"^([a-z0-9-]+)==\S+\n((?:    #.*\n)+)", text, re.MULTILINE))
    known = {*pins(), "concord"}

    assert reasons.keys() == pins().keys()
    for package, reason in reasons.items():
        wanted_by = set(re.findall(r"#\s+(?:via\s+)?([a-z][a-z0-9-]*)", reason)) - {"via"}
        assert wanted_by & known, f"nobody needs {package}"


def test_pyyaml_and_other_unsafe_readers_are_not_deployed() -> None:
    """What can build objects from texts has no place beside recipes and messages."""
    assert not pins().keys() & {"pyyaml", "dill", "jsonpickle", "lxml", "paramiko", "ujson"}
