"""Writes an image's provenance: an unsigned in-toto statement with a SLSA v1 predicate, to standard output.

It says from which commit and on which bases an image was built.  It is as reproducible as the image: it has neither
times nor a number of the build, so that whoever builds the same commit again can compare it byte by byte.  It names
the image by the digest of its configuration, which is its id in Docker and podman; a registry's digest of the same
image depends on how its layers were compressed on the way there.

build.sh sets the variables that this reads.  An id of an image may begin with `sha256:` or not.
"""

import json
import os
import re

# URIs of what only this project can define.  A build service names itself by BUILDER_ID.
BUILD_TYPE = "urn:pkg-service:deploy/image/build.sh:v1"
LOCAL_BUILDER = "urn:pkg-service:local"


def sha256(digest):
    return {"sha256": digest.removeprefix("sha256:")}


def base(name, digest=None):
    return {"uri": f"docker://{name}"} | ({"digest": sha256(digest)} if digest else {})


def source(revision, uri=None):
    """The commit; with changes that were not committed it is no digest of what was built."""
    is_commit = re.fullmatch("[0-9a-f]{40}", revision)
    known = {"digest": {"gitCommit": revision}} if is_commit else {"annotations": {"revision": revision}}
    return {"name": "source"} | ({"uri": uri} if uri else {}) | known


def statement(given):
    bases = [line.split() for line in given["BASES"].splitlines()]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": given["IMAGE_NAME"], "digest": sha256(given["IMAGE_ID"])}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"target": given["TARGET"], "bases": [name for name, *_ in bases]},
                "internalParameters": {"SOURCE_DATE_EPOCH": given["SOURCE_DATE_EPOCH"], "version": given["VERSION"]},
                "resolvedDependencies": [
                    source(given["REVISION"], given.get("SOURCE_URI")),
                    *(base(*parts) for parts in bases),
                ],
            },
            "runDetails": {"builder": {"id": given.get("BUILDER_ID") or LOCAL_BUILDER}},
        },
    }


print(json.dumps(statement(os.environ), indent=2))
