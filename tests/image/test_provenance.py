"""The statement of where an image came from: what it says, that it is the image's, and that a signature holds it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image.conftest import needed
from tests.image.engine import ROOT, Engine
from tests.support.pages import blocks

STATEMENT = "pkg-0.1.0.provenance.json"  # as docs/deploying.md calls it
COMMIT, ID, BASE = "c" * 40, "1" * 64, "2" * 64
BUILD = {
    "IMAGE_NAME": "pkg",
    "IMAGE_ID": f"sha256:{ID}",
    "TARGET": "runtime",
    "BASES": f"gcr.io/runtime:nonroot sha256:{BASE}\ndebian:13-slim \n",
    "VERSION": "0.1.0",
    "REVISION": COMMIT,
    "SOURCE_DATE_EPOCH": "1767225600",
}


def written(**more: str) -> str:
    command = [sys.executable, str(ROOT / "deploy/image/provenance.py")]
    return subprocess.run(command, env={**BUILD, **more}, capture_output=True, text=True, check=True).stdout


def validate(text: str) -> None:
    """By in-toto's own library: the structure, and what in-toto demands of it."""
    json_format = needed("google.protobuf.json_format")
    resource = needed("in_toto_attestation.v1.resource_descriptor").ResourceDescriptor
    statement = needed("in_toto_attestation.v1.statement").Statement
    provenance = needed("in_toto_attestation.predicates.provenance.v1.provenance_pb2").Provenance
    found = json_format.Parse(text, needed("in_toto_attestation.v1.statement_pb2").Statement())
    statement.copy_from_pb(found).validate()
    predicate = json_format.ParseDict(json.loads(text)["predicate"], provenance())
    assert predicate.build_definition.build_type and predicate.run_details.builder.id
    for dependency in predicate.build_definition.resolved_dependencies:
        resource.copy_from_pb(dependency).validate()


def test_what_it_says() -> None:
    text = written(SOURCE_URI="git+https://example.com/pkg", BUILDER_ID="https://ci.example.com/1")
    validate(text)
    document = json.loads(text)
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    assert document["subject"] == [{"name": "pkg", "digest": {"sha256": ID}}]
    definition = document["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {
        "target": "runtime",
        "bases": ["gcr.io/runtime:nonroot", "debian:13-slim"],
    }
    assert definition["resolvedDependencies"] == [
        {"name": "source", "uri": "git+https://example.com/pkg", "digest": {"gitCommit": COMMIT}},
        {"uri": "docker://gcr.io/runtime:nonroot", "digest": {"sha256": BASE}},
        {"uri": "docker://debian:13-slim"},
    ]
    assert document["predicate"]["runDetails"] == {"builder": {"id": "https://ci.example.com/1"}}


@pytest.mark.parametrize("revision", [f"{COMMIT}-dirty", "unknown"])
def test_what_was_not_committed_has_no_digest(revision: str) -> None:
    source, *_ = json.loads(written(REVISION=revision))["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source == {"name": "source", "annotations": {"revision": revision}}


def commands(test: str) -> list[str]:
    """Of the page, those below the comment that names a test of this file."""
    (block,) = (
        b for b in blocks(ROOT / "docs/deploying.md") if b.what == f"tested by: tests/image/test_provenance.py::{test}"
    )
    return re.findall(r"^\$ (.+)$", block.text, re.MULTILINE)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=60)


def sign(text: str, folder: Path) -> str:
    """With a new key; the command that checks it."""
    (folder / STATEMENT).write_text(text)
    for command in commands("test_it_is_signed_as_the_page_says"):
        done = run(command, folder)
        assert done.returncode == 0, done.stderr
    return commands("test_the_statement_is_of_the_image")[0]


def test_it_is_signed_as_the_page_says(tmp_path: Path) -> None:
    check = sign(written(), tmp_path)
    done = run(check, tmp_path)
    assert (done.returncode, done.stdout) == (0, "Verified OK\n")
    signature = (tmp_path / "pkg-0.1.0.provenance.sig").read_bytes()

    def is_refused() -> bool:
        done = run(check, tmp_path)
        return done.returncode != 0 and "Verified OK" not in done.stdout

    (tmp_path / STATEMENT).write_text(written(IMAGE_ID=BASE))  # another image
    assert is_refused()
    (tmp_path / STATEMENT).write_text(written())
    (tmp_path / "pkg-0.1.0.provenance.sig").write_bytes(signature[:-1] + bytes([signature[-1] ^ 1]))
    assert is_refused()
    sign(written(), tmp_path)  # another key
    (tmp_path / "pkg-0.1.0.provenance.sig").write_bytes(signature)
    assert is_refused()


def test_the_statement_is_of_the_image(engine: Engine, image: str, tmp_path: Path) -> None:
    text = engine.provenance[image]
    validate(text)
    signed, told, asked = commands("test_the_statement_is_of_the_image")
    assert sign(text, tmp_path) == signed
    assert run(signed, tmp_path).stdout == "Verified OK\n"
    digest = run(told, tmp_path).stdout.strip()
    asked = asked.replace("docker", engine.name).replace("pkg:0.1.0", image)
    found = subprocess.run(asked, shell=True, env=engine.environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip().removeprefix("sha256:") == digest
    labels = engine.inspect(image)["Config"]["Labels"]
    source, base, _ = json.loads(text)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert base["digest"]["sha256"] == labels["org.opencontainers.image.base.digest"].removeprefix("sha256:")
    assert labels["org.opencontainers.image.revision"] in (
        source.get("digest", {}).get("gitCommit"),
        source.get("annotations", {}).get("revision"),
    )
    assert str(ROOT) not in text and os.path.expanduser("~") + "/" not in text
