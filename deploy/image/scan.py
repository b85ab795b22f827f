"""Looks for known vulnerabilities in a bill of materials; exits 1 with a line for each, 2 if it cannot tell.

    scan.py SBOM DATA      SBOM: SPDX JSON by syft (sbom.sh)
                           DATA: records of OSV, as a JSON file, a zip file, or a folder of both

Nothing is fetched, so whoever runs it decides what the data are and how old.  OSV publishes them for each ecosystem:
https://osv-vulnerabilities.storage.googleapis.com/Debian/all.zip, and PyPI in place of Debian.  Debian's name source
packages, which syft gives as `upstream`.  It does not know which code is reached; that is for whoever reads the lines.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from debian.debian_support import Version as DebianVersion
from packageurl import PackageURL
from packaging.utils import canonicalize_name
from packaging.version import Version as PythonVersion

Record = dict[str, Any]
COMPARED: dict[str, Callable[[str], Any]] = {"Debian": DebianVersion, "PyPI": PythonVersion}


class Package(NamedTuple):
    """What a record may name.  `ecosystem` as OSV spells it, with Debian's release: `Debian:13`."""

    ecosystem: str
    name: str
    version: str


def packages(sbom: Record) -> dict[Package, list[str]]:
    """With the names under which each is installed."""
    found: dict[Package, list[str]] = {}
    for entry in sbom["packages"]:
        for reference in entry.get("externalRefs", ()):
            if reference["referenceType"] == "purl":
                package = package_of(PackageURL.from_string(reference["referenceLocator"]))
                if package is not None:
                    found.setdefault(package, []).append(entry["name"])
    return found


def package_of(purl: PackageURL) -> Package | None:
    if purl.type == "pypi":
        return Package("PyPI", canonicalize_name(purl.name), purl.version)
    if purl.type == "deb" and purl.namespace == "debian":
        release = purl.qualifiers.get("distro", "").removeprefix("debian-").partition(".")[0]
        # `upstream` is the source package, with a version only if it has another one.
        name, _, version = purl.qualifiers.get("upstream", purl.name).partition("@")
        return Package(f"Debian:{release}", name, version or purl.version)
    return None


def records(data: Path) -> Iterator[Record]:
    for path in sorted(data.rglob("*")) if data.is_dir() else [data]:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".json"):
                        yield json.loads(archive.read(name))
        elif path.suffix == ".json":
            yield json.loads(path.read_bytes())


def is_affected(package: Package, affected: Record) -> bool:
    """The evaluation of OSV's schema: the version is listed, or the last event at or before it introduced the fault."""
    if package.version in affected.get("versions", ()):
        return True
    compared = COMPARED[package.ecosystem.partition(":")[0]]
    version = compared(package.version)
    for ordered in affected.get("ranges", ()):
        if ordered["type"] != "ECOSYSTEM":
            continue  # of commits
        events = [(kind, at) for event in ordered["events"] for kind, at in event.items() if kind != "limit"]
        within = False
        for kind, at in sorted(events, key=lambda event: (event[1] != "0", compared(event[1]))):
            if kind == "introduced":
                within = within or at == "0" or version >= compared(at)
            elif version > compared(at) or (kind == "fixed" and version == compared(at)):
                within = False
        if within:
            return True
    return False


def fixes(affected: Record) -> list[str]:
    return [event["fixed"] for ordered in affected.get("ranges", ()) for event in ordered["events"] if "fixed" in event]


def main(sbom: Path, data: Path) -> int:
    installed = packages(json.loads(sbom.read_bytes()))
    by_name: dict[tuple[str, str], list[Package]] = {}
    for package in installed:
        by_name.setdefault((package.ecosystem, package.name), []).append(package)
    known = dict.fromkeys(sorted({package.ecosystem for package in installed}), 0)
    findings, untold = set(), set()
    for record in records(data):
        for affected in record.get("affected", ()):
            ecosystem, name = affected["package"]["ecosystem"], affected["package"]["name"]
            if ecosystem not in known or "withdrawn" in record:
                continue
            known[ecosystem] += 1
            for package in by_name.get((ecosystem, canonicalize_name(name) if ecosystem == "PyPI" else name), ()):
                try:
                    if is_affected(package, affected):
                        fixed = ", ".join(fixes(affected))
                        what = f"{package.name} {package.version} ({', '.join(sorted(installed[package]))})"
                        findings.add(f"{what}: {record['id']}, {f'fixed in {fixed}' if fixed else 'not fixed yet'}")
                except ValueError as error:
                    untold.add(f"{package.name} {package.version}: {record['id']} cannot be compared: {error}")
    for line in sorted(findings | untold):
        print(line)
    for ecosystem, count in known.items():
        scanned = len([package for package in installed if package.ecosystem == ecosystem])
        print(f"{ecosystem}: {scanned} packages, {count} records", file=sys.stderr)
    if findings:
        return 1
    # Data without an ecosystem would find nothing there, which is not the same as nothing to find.
    if not known or 0 in known.values() or untold:
        print("some packages could not be looked up", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        print(f"not scanned: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
