"""What is installed: this distribution, and another `pkg` that is in the way.  It installs nothing."""

from __future__ import annotations

import os

__all__ = ["DISTRIBUTION", "conflict", "version"]

DISTRIBUTION = "pkg-service"  # the package index has a `pkg` that is another project's


def version() -> str:
    """Of this distribution; "" if it runs from a checkout that is not installed.  Takes 20 ms."""
    from importlib import metadata

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return ""


def conflict(folder: str = os.path.dirname(os.path.abspath(__file__))) -> str:
    """What to do about a distribution called `pkg` whose files lie among ours in `folder`; "" if there is none.

    pip installs both without a word, the later over the earlier, and takes files of ours away with it when it
    uninstalls the other.  One look into one folder: this is asked at each start, where importlib.metadata is too slow.
    """
    beside, name = os.path.split(folder)
    try:
        with os.scandir(beside) as entries:
            found = [entry.name for entry in entries if entry.name.startswith("pkg-")]
        for info in found:
            if info.endswith(".dist-info"):
                with open(os.path.join(beside, info, "RECORD"), encoding="utf-8", errors="replace") as record:
                    if any(line.startswith(f"{name}/") for line in record):
                        return (
                            f"the distribution pkg {info[4:-10]}, another project, is installed into the folder of "
                            f"{DISTRIBUTION}, and each replaces files of the other; run: "
                            f"pip uninstall pkg; pip install --force-reinstall {DISTRIBUTION}"
                        )
    except OSError:
        pass  # a zip archive, or a folder that may not be listed: nothing to compare with
    return ""
