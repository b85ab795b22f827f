"""`python -m bench`: runs the sections, writes results.json and the plots, and prints the tables.  See --help."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench import (
    api,
    asgi,
    environment,
    hosting,
    latency,
    memory,
    orm,
    overhead,
    parsing,
    peers,
    plots,
    probes,
    report,
    restarts,
    startup,
    steady,
    workers,
)
from bench.peers import THREADS
from bench.servers import LOAD_CORES, SERVER_CORES
from bench.session import Session

SECTIONS = {
    "probes": probes,
    "latency": latency,
    "hosting": hosting,
    "parsing": parsing,
    "memory": memory,
    "startup": startup,
    "restarts": restarts,
    "overhead": overhead,
    "asgi": asgi,
    "orm": orm,
    "workers": workers,
    "steady": steady,
    "api-4": api,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Our server beside its peers on this machine: " + ", ".join(SECTIONS) + ".",
        epilog="Exit code 0: all that this machine allows has been measured; what it does not is listed.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer servers and rounds; less than five minutes")
    parser.add_argument("--only", default="", metavar="A,B", help="run these sections; keep the results of the others")
    parser.add_argument("--servers", default="", metavar="A,B", help="run these servers: " + ", ".join(peers.BY_NAME))
    parser.add_argument("--output", type=Path, default=environment.BENCH / "results.json", help="default: %(default)s")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing; make tables and plots from existing results"
    )
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    arguments = parser.parse_args()

    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    if not arguments.report:
        measure(arguments, results)
    for name, picture in plots.draw(results).items():
        (arguments.output.parent / f"{name}.svg").write_text(picture)
    print(report.terminal(results))
    if arguments.docs:
        report.update(arguments.docs, results)
    return 0


def measure(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Runs the sections and puts their results among those given; writes all of them after each section."""
    wanted = [name for name in arguments.only.split(",") if name] or list(SECTIONS)
    chosen = [name for name in arguments.servers.split(",") if name]
    unknown = [name for name in wanted if name not in SECTIONS] + [n for n in chosen if n not in peers.BY_NAME]
    if unknown:
        raise SystemExit(f"python -m bench: no section or server {', '.join(unknown)}")
    session = Session(arguments.quick, [], {})
    session.missing |= environment.prepare(session.say)
    if "wrk" in session.missing:
        raise SystemExit(f"python -m bench: no load generator: {session.missing['wrk']}")
    there, reasons = peers.available(session.missing)
    session.missing |= reasons
    session.peers = [peer for peer in there if not chosen or peer.name in chosen]
    session.started = time.monotonic()
    if not arguments.only:
        results.clear()
    measured: dict[str, dict[str, str]] = results.pop("meta", {}).get("measured", {})
    machine = environment.machine()
    for name in wanted:
        try:
            results[name] = SECTIONS[name].run(session)
            measured[name] = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "cpu": str(machine["cpu"])}
        except Exception as error:  # do not lose half an hour of results because of one section
            session.missing[name] = f"{type(error).__name__}: {error}"
            results.pop(name, None)
            measured.pop(name, None)
        results["meta"] = {"measured": measured, "machine": machine, **_circumstances(session)}
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    session.clear()


def _circumstances(session: Session) -> dict[str, Any]:
    return {
        "quick": session.quick,
        "seconds": round(time.monotonic() - session.started),
        "load_before": os.getloadavg()[0],
        "threads": THREADS,
        "server_cores": sorted(SERVER_CORES),
        "load_cores": sorted(LOAD_CORES),
        "versions": environment.versions(),
        "settings": {
            peer.name + where: peer.settings()
            for where, group in {
                "": session.peers,
                ", ASGI": peers.ASGI_PEERS,
                ", ORM": peers.ORM_WSGI_PEERS,
                ", async psycopg": peers.ORM_ASGI_PEERS,
                ", two workers": peers.REPLACING_PEERS,
                ", constant rate": [peer for peer in peers.STEADY_PEERS if peer not in peers.PEERS],
            }.items()
            for peer in group
        },
        "missing": session.missing,
    }


if __name__ == "__main__":
    sys.exit(main())
