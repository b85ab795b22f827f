"""Removes random data that podman's builder puts into an image, so that equal images have equal digests.

In Docker's format, podman's only one with a HEALTHCHECK, the configuration contains the random names of the containers
and images in which the steps ran.  Docker's own builder does not write them.  Podman also cannot set different times
for the files and the image, so the time of the image is set here.

    podman save --format docker-archive IMAGE | python3 normalize.py SECONDS_SINCE_1970 | podman load
"""

import hashlib
import io
import json
import sys
import tarfile
import time


def normal(config, created):
    for name in ("container", "container_config", "parent"):
        config.pop(name, None)
    config["config"].pop("Hostname", None)
    config["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))
    for step in config["history"]:
        if step.get("comment", "").startswith("FROM "):
            del step["comment"]
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def main(source, target, created):
    configs = {}
    with tarfile.open(fileobj=source, mode="r|") as old, tarfile.open(fileobj=target, mode="w|") as new:

        def add(name, content):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))

        for member in old:
            if member.name == "manifest.json":  # the last but for what older versions of Docker read
                (image,) = json.load(old.extractfile(member))
                image["Config"] = configs[image["Config"]]
                add("manifest.json", json.dumps([image]).encode())
            elif member.name.endswith(".json"):
                content = normal(json.load(old.extractfile(member)), created)
                configs[member.name] = f"{hashlib.sha256(content).hexdigest()}.json"
                add(configs[member.name], content)
            elif member.isreg() and member.name.endswith(".tar"):
                new.addfile(member, old.extractfile(member))


main(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]))
