"""Section 4: the cost of parsing a request head, compared with picohttpparser in C and usual parsers in Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from bench.environment import PEER_PYTHON, ROOT, Missing, command, picohttpparser, program
from bench.servers import SERVER_CORES, on_cores
from bench.session import Session


def run(session: Session) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    try:
        out += _in_c(session)
    except Missing as error:
        session.missing["parsing in C"] = str(error)
    try:
        out += _in_python(session)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        session.missing["parsing in Python"] = str(error)
    return out


def _in_c(session: Session) -> list[dict[str, Any]]:
    session.say("parsing in C")
    flags = [f"-I{ROOT / 'ext' / 'http'}"]
    sources: list[str | Path] = ["parse.c", ROOT / "ext" / "http" / "http1.c"]
    if os.uname().machine == "x86_64":
        flags.append("-msse4.2")
    try:
        folder = picohttpparser()
        flags += [f"-I{folder}", "-DPICO"]
        sources.append(folder / "picohttpparser.c")
    except Missing as error:
        session.missing["picohttpparser"] = str(error)
    binary = program("parse", *sources, flags=tuple(flags))
    with on_cores(SERVER_CORES):
        text = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    rows = []
    for line in text.splitlines():
        case = line.split()[0]
        for name, ns in re.findall(r"(\w+) ([\d.]+) ns", line):
            row: dict[str, Any] = {"level": "C", "case": case, "parser": _title(name), "ns": float(ns)}
            if not session.quick and (count := _instructions(session, binary, name, case)):
                row["instructions"] = count
            rows.append(row)
    return rows


def _title(name: str) -> str:
    return {"ours": "pkg", "pico": "picohttpparser"}.get(name, name)


def _instructions(session: Session, binary: Path, name: str, case: str) -> float:
    """Instructions per head, counted by callgrind; 0 without callgrind."""
    session.say(f"counting instructions: {_title(name)}, {case}")
    try:
        done = subprocess.run(
            [command("valgrind"), "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, name, case],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except Missing as error:
        session.missing["instruction counts"] = str(error)
        return 0
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None or done.returncode:  # valgrind does not support every SSE4.2 instruction
        session.missing[f"instruction counts of {_title(name)}"] = "it does not run under callgrind"
        return 0
    return round(int(found[1]) / 100_000, 1)


def _in_python(session: Session) -> list[dict[str, Any]]:
    session.say("parsing in Python")
    with on_cores(SERVER_CORES):
        done = subprocess.run(
            [PEER_PYTHON, "-m", "bench.parsers", "1" if session.quick else "5"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = json.loads(done.stdout)
    session.missing |= found["missing"]
    rows: list[dict[str, Any]] = found["rows"]
    return rows
