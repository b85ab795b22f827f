"""`make scan`: known vulnerabilities of what a bill of materials lists, by OSV's records, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.image.engine import ROOT

Record = dict[str, Any]

SBOM = {
    "packages": [
        {
            "name": purl.partition("@")[0].rpartition("/")[2],
            "externalRefs": [
                {"referenceType": "cpe23Type", "referenceLocator": "cpe:2.3:a:x:x:1:*:*:*:*:*:*:*"},
                {"referenceType": "purl", "referenceLocator": purl},
            ],
        }
        for purl in (
            "pkg:deb/debian/libssl3t64@3.5.4-1~deb13u1?arch=amd64&distro=debian-13&upstream=openssl",
            "pkg:deb/debian/zlib1g@1%3A1.3.dfsg%2Breally1.3.1-1%2Bb1?arch=amd64&distro=debian-13"
            "&upstream=zlib%401%3A1.3.dfsg%2Breally1.3.1-1",
            "pkg:deb/debian/netbase@6.5?arch=all&distro=debian-13",
            "pkg:pypi/psycopg-pool@3.3.3",
            "pkg:pypi/psycopg@3.3.8",
        )
    ]
    + [{"name": "an-image-itself"}]
}


def record(number: int, name: str, *events: dict[str, str], ecosystem: str = "Debian:13", **more: Any) -> Record:
    affected = {"package": {"ecosystem": ecosystem, "name": name}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    return {"id": f"X-{number}", "affected": [{**affected, **more}]}


ALL = {"introduced": "0"}
# Of what is installed, a fault each and beside it the like that is none.
FOUND = [
    (
        record(1, "openssl", ALL, {"fixed": "3.5.4-1~deb13u2"}),
        "openssl 3.5.4-1~deb13u1 (libssl3t64): X-1, fixed in 3.5.4-1~deb13u2",
    ),
    (record(2, "zlib", ALL), "zlib 1:1.3.dfsg+really1.3.1-1 (zlib1g): X-2, not fixed yet"),
    (
        record(3, "Psycopg_Pool", {"introduced": "3.3rc1"}, {"last_affected": "3.3.3"}, ecosystem="PyPI"),
        "psycopg-pool 3.3.3 (psycopg-pool): X-3, not fixed yet",
    ),
    (record(4, "psycopg", ecosystem="PyPI", versions=["3.3.8"]), "psycopg 3.3.8 (psycopg): X-4, not fixed yet"),
    (
        record(5, "psycopg", ALL, {"fixed": "3.0"}, {"introduced": "3.3"}, {"fixed": "3.3.9"}, ecosystem="PyPI"),
        "psycopg 3.3.8 (psycopg): X-5, fixed in 3.0, 3.3.9",
    ),
]
NOT_FOUND = [
    record(10, "openssl", ALL, {"fixed": "3.5.4-1~deb13u1"}),  # the fix itself
    record(11, "openssl", ALL, {"fixed": "3.5.4-1~~"}),  # less than nothing, as Debian orders
    record(12, "openssl", ALL, ecosystem="Debian:12"),  # another release
    record(13, "libssl3t64", ALL),  # a binary package; records name sources
    record(14, "zlib", ALL, {"fixed": "2"}, {"introduced": "2:0"}),  # below the epoch, and above it
    record(15, "psycopg", {"introduced": "3.3.10"}, ecosystem="PyPI"),  # 10 is more than 8
    record(16, "psycopg-pool", ALL, {"last_affected": "3.3.2"}, ecosystem="PyPI"),
    record(17, "psycopg", ALL, {"fixed": "3.3.8rc1"}, ecosystem="PyPI"),
    record(18, "psycopg", ecosystem="PyPI", versions=["3.3.80"]),
    record(19, "netbase", ALL, ecosystem="PyPI"),  # of the same name
    {**record(20, "netbase", ALL), "withdrawn": "2026-01-01T00:00:00Z"},
    {"id": "X-21", "affected": [{"package": {"ecosystem": "npm", "name": "psycopg"}, "versions": ["3.3.8"]}]},
]


def scan(folder: Path, *known: Record, sbom: Any = SBOM) -> subprocess.CompletedProcess[str]:
    (folder / "data").mkdir(exist_ok=True)
    for entry in known:
        (folder / "data" / f"{entry['id']}.json").write_text(json.dumps(entry))
    (folder / "sbom.json").write_text(json.dumps(sbom))
    command = [sys.executable, ROOT / "deploy/image/scan.py", folder / "sbom.json", folder / "data"]
    return subprocess.run(command, capture_output=True, text=True)


def test_each_known_fault_is_one_line(tmp_path: Path) -> None:
    done = scan(tmp_path, *(entry for entry, _ in FOUND), *NOT_FOUND)
    assert sorted(done.stdout.splitlines()) == sorted(line for _, line in FOUND)
    assert done.returncode == 1


def test_what_does_not_concern_the_image_is_not_told(tmp_path: Path) -> None:
    done = scan(tmp_path, *NOT_FOUND)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "Debian:13: 3 packages, 4 records\nPyPI: 2 packages, 5 records\n"


@pytest.mark.parametrize("ecosystem", ["Debian:13", "PyPI"])
def test_data_that_lack_an_ecosystem_are_not_a_clean_bill(ecosystem: str, tmp_path: Path) -> None:
    done = scan(tmp_path, *(r for r in NOT_FOUND if r["affected"][0]["package"]["ecosystem"] != ecosystem))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{ecosystem}: " in done.stderr and " 0 records\n" in done.stderr
    assert done.stderr.endswith("some packages could not be looked up\n")


def test_versions_that_cannot_be_compared_are_told(tmp_path: Path) -> None:
    done = scan(tmp_path, *NOT_FOUND, record(30, "psycopg", ALL, {"fixed": "three"}, ecosystem="PyPI"))
    assert done.returncode == 2
    assert done.stdout.startswith("psycopg 3.3.8: X-30 cannot be compared: ")


def test_broken_data_are_not_a_clean_bill_either(tmp_path: Path) -> None:
    assert scan(tmp_path).returncode == 2  # nothing there
    (tmp_path / "data/all.zip").write_bytes(b"PK")
    done = scan(tmp_path, *NOT_FOUND)
    assert (done.returncode, done.stderr) == (2, "not scanned: BadZipFile: File is not a zip file\n")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "--old-file=.venv/ready", f"PY={sys.executable}", "scan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_make_scans_a_dump(tmp_path: Path) -> None:
    (tmp_path / "sbom.json").write_text(json.dumps(SBOM))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for entry in (*NOT_FOUND, FOUND[0][0]):
            archive.writestr(f"{entry['id']}.json", json.dumps(entry))
    done = make(f"SBOM={tmp_path}/sbom.json", f"DATA={tmp_path}/all.zip")
    assert done.returncode == 2 and "Error 1" in done.stderr  # make's, and the scan's
    assert done.stdout.splitlines() == [FOUND[0][1]]


def test_without_data_it_says_that_nothing_was_scanned() -> None:
    done = make()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing was scanned: make scan DATA=PATH names OSV's records\n"
