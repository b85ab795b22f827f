"""Draws docs/dashboard.svg: what the dashboard shows of a service whose database goes away and comes back.

    python -m tests.prometheus.picture

A real Prometheus scrapes the service of a drill twice a second, and is asked the dashboard's own queries.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.prometheus.drills import DRILLS, ROOT
from tests.support import dashboard
from tests.support.chart import Chart, Points, draw
from tests.support.client import wait_for
from tests.support.prometheus import Prometheus

PICTURE = ROOT / "docs" / "dashboard.svg"
BEFORE, AWAY, AFTER = 20.0, 20.0, 20.0  # seconds
SHOWN = {  # panels by row
    "Requests": ("Requests by status", "Duration", "In flight"),
    "Health": ("Ready",),
    "Database pool": ("Connections", "Timeouts"),
}
WINDOW = "4s"  # in place of $__rate_interval


def charts(prometheus: Prometheus, begin: float, end: float) -> list[Chart]:
    found = []
    for row, titles in SHOWN.items():
        for title, unit, queries in dashboard.ROWS[row]:
            if title in titles:
                lines: dict[str, Points] = {}
                for legend, query in queries.items():
                    lines |= series(prometheus, legend, query, begin, end)
                found.append(Chart(title, unit if unit == "s" else "", lines))
    return found


def series(prometheus: Prometheus, legend: str, query: str, begin: float, end: float) -> dict[str, Points]:
    query = query.replace("$__rate_interval", WINDOW).replace("$job", "pkg").replace("$instance", ".*")
    found: dict[str, Points] = {}
    for one in prometheus.over_time(query, begin, end, 0.5):
        name = legend
        for label, value in one["metric"].items():
            name = name.replace(f"{{{{{label}}}}}", "shop" if label == "instance" else value)
        points = [(at - begin, float(value)) for at, value in one["values"]]
        found[name.removeprefix("shop main ").removesuffix(" main")] = [
            point for point in points if math.isfinite(point[1])
        ]
    return found


def main() -> None:
    drill = DRILLS["database-away"]
    with (
        tempfile.TemporaryDirectory(prefix="picture-") as folder,
        drill.scene() as scene,
        Prometheus(Path(folder), [("127.0.0.1", scene.admin)]) as prometheus,
    ):
        scene.start()
        try:
            with scene.load("/query", 4), scene.load("/slow_query"):
                wait_for(lambda: prometheus.query(f"rate(process_cpu_seconds_total[{WINDOW}])"), 20)
                time.sleep(4)
                begin = time.time()
                time.sleep(BEFORE)
                scene.server.stop()  # type: ignore[attr-defined]
                time.sleep(AWAY)
                scene.server.start()  # type: ignore[attr-defined]
                time.sleep(AFTER)
            found = charts(prometheus, begin, begin + BEFORE + AWAY + AFTER)
        finally:
            scene.stop()
    about = "in the coloured time the database is away; four clients, and a fifth whose queries take half a second"
    PICTURE.write_text(draw("A database that goes away", about, found, (BEFORE, BEFORE + AWAY)))


if __name__ == "__main__":
    if shutil.which("prometheus") is None:
        sys.exit("prometheus is not installed (Debian: prometheus)")
    main()
